package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"time"

	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/dnsserver/zone"
	"peerage/edge"
	"peerage/edge/backend"
	"peerage/edge/route"
	"peerage/edge/static"
)

// generation is the server under one site document. A request keeps the one that it began
// with. What two generations have in common, such as the pool of a back-end with what is
// known of its health, they share.
type generation struct {
	doc     *site.Document
	rules   []route.Rule // of doc
	site    *edge.Site
	zones   []*zone.Zone
	origins *origins
}

// newGeneration makes ready what doc asks for, and starts nothing. was is the generation
// before, or nil.
func newGeneration(nf *site.NodeFile, doc *site.Document, ring *keys.Ring, was *generation, log *slog.Logger) (*generation, error) {
	g := &generation{doc: doc, rules: doc.Rules()}
	var old *origins
	if was != nil {
		old = was.origins
	}
	var err error
	if g.origins, err = openOrigins(nf.Name, doc, old, log); err != nil {
		return nil, err
	}
	if g.site, err = edgeSite(nf, doc, ring, g.origins.handlers); err == nil && doc.DNS != nil {
		g.zones, err = siteZone(nf, doc)
	}
	if err != nil {
		g.origins.closeAllBut(old)
		return nil, err
	}
	return g, nil
}

// origins are the handlers behind the routes.
type origins struct {
	handlers []http.Handler // one a route
	pools    map[string]*pool
	files    map[site.Static]*static.Handler
}

// pool is a back-end with the configuration that it was made from.
type pool struct {
	*backend.Pool
	made  site.Backend
	asked []string // its servers, as this node asks them
}

func openOrigins(self balancing.NodeID, doc *site.Document, was *origins, log *slog.Logger) (_ *origins, err error) {
	o := &origins{pools: map[string]*pool{}, files: map[site.Static]*static.Handler{}}
	defer func() {
		if err != nil {
			o.closeAllBut(was)
		}
	}()
	for name, b := range doc.Backends {
		if o.pools[name], err = was.pool(name, self, b, log); err != nil {
			return nil, err
		}
	}
	rules := doc.Rules()
	for i, r := range doc.Routes {
		if r.Static == nil {
			o.handlers = append(o.handlers, o.pools[r.Backend])
			continue
		}
		h := o.files[*r.Static]
		if h == nil {
			if h, err = was.dir(*r.Static); err != nil {
				return nil, fmt.Errorf("routes[%d]: %w", i, err)
			}
			o.files[*r.Static] = h
		}
		o.handlers = append(o.handlers, below(strings.TrimRight(rules[i].Path, "/*"), h))
	}
	return o, nil
}

// pool returns the pool of that name if it would be made the same way again, else a new one.
func (o *origins) pool(name string, self balancing.NodeID, b site.Backend, log *slog.Logger) (*pool, error) {
	p := &pool{made: b, asked: b.Servers}
	if own, ok := b.ByNode[self]; ok {
		p.asked = own
	}
	if o != nil {
		if old := o.pools[name]; old != nil && reflect.DeepEqual(old.asked, p.asked) && reflect.DeepEqual(old.made.Health, b.Health) {
			return old, nil
		}
	}
	c := backend.Config{Name: name, Log: log}
	for _, s := range p.asked {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("backends.%s: %w", name, err)
		}
		c.Servers = append(c.Servers, u)
	}
	if h := b.Health; h != nil {
		c.Health = &backend.Health{Path: h.Path, Every: h.Every, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall}
	}
	p.Pool = backend.New(c)
	return p, nil
}

// dir returns the handler of a directory, the old one if there is one.
func (o *origins) dir(s site.Static) (*static.Handler, error) {
	if o != nil {
		if h := o.files[s]; h != nil {
			return h, nil
		}
	}
	return static.New(static.Config{Dir: s.Dir, Index: s.Index, Listing: s.Listing, Precompressed: s.Precompressed})
}

// closeAllBut closes the directories that are not open in others too.
func (o *origins) closeAllBut(others ...*origins) {
	kept := map[*static.Handler]bool{}
	for _, other := range others {
		if other != nil {
			for _, h := range other.files {
				kept[h] = true
			}
		}
	}
	for _, h := range o.files {
		if !kept[h] {
			h.Close()
		}
	}
}

func (o *origins) status() map[string][]backend.Server {
	all := map[string][]backend.Server{}
	for name, p := range o.pools {
		all[name] = p.Status()
	}
	return all
}

// below serves the part of a path that lies below prefix.
func below(prefix string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == prefix { // the route's path without its slash: relative links need it
			w.Header().Set("Location", prefix+"/")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return
		}
		http.StripPrefix(prefix, h).ServeHTTP(w, r)
	})
}

// retireAfter is how long the directories of a generation stay open after the next has
// come: a request takes no longer from the choice of its handler to the opening of its
// file.
const retireAfter = 10 * time.Second

// past is what a generation has left.
type past struct {
	*origins
	since time.Time
}

// pasts are those that keepOrigins has not seen yet: several may come and go before it
// looks.
type pasts struct {
	mu  sync.Mutex
	all []past
}

func (p *pasts) add(o *origins) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, past{o, time.Now()})
}

func (p *pasts) take() []past {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.all
	p.all = nil
	return all
}

// keepOrigins has the back-ends of the newest generation checked, and ends what earlier
// generations have left, until ctx ends. The directories of the newest stay open: when ctx
// ends, requests are still under way.
func (s *server) keepOrigins(ctx context.Context) error {
	running := map[*pool]context.CancelFunc{}
	var wg sync.WaitGroup
	var old []past // the oldest first
	defer func() {
		for _, stop := range running {
			stop()
		}
		wg.Wait()
	}()
	retire := time.NewTimer(0)
	defer retire.Stop()
	present := s.current.Load().origins
	for {
		wanted := map[*pool]bool{}
		for _, p := range present.pools {
			wanted[p] = true
			if running[p] == nil {
				var pctx context.Context
				pctx, running[p] = context.WithCancel(ctx)
				wg.Go(func() { p.Run(pctx) })
			}
		}
		for p, stop := range running {
			if !wanted[p] {
				stop()
				delete(running, p)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.renewed:
			present = s.current.Load().origins
			if len(old) == 0 {
				retire.Reset(retireAfter)
			}
			old = append(old, s.past.take()...)
		case <-retire.C:
			for len(old) > 0 && time.Since(old[0].since) >= retireAfter {
				open := []*origins{present}
				for _, o := range old[1:] {
					open = append(open, o.origins)
				}
				old[0].closeAllBut(open...)
				old = old[1:]
			}
			if len(old) > 0 {
				retire.Reset(retireAfter - time.Since(old[0].since))
			}
		}
	}
}
