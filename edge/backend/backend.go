// Package backend carries requests to the origins on the internal network.
//
// Start with [Pool]: the servers of one back-end, with their health. A Pool is an
// [http.Handler]; [Pool.Run] owns the active checks. A request goes to the less busy
// of two servers drawn at random among the healthy ones. It is tried once more on
// another server only if it is idempotent, has no body, and no byte of an answer has
// come. A Pool never forwards what a client says of itself in a forwarding header.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config describes one back-end.
type Config struct {
	Name    string     // for logs
	Servers []*url.URL // scheme http or https, host and port; at least one
	Health  *Health    // active checks; nil for none
	Log     *slog.Logger
}

// Health says how servers are checked.
type Health struct {
	Path    string        // answered with 2xx or 3xx by a healthy server
	Every   time.Duration // between two checks of a server
	Timeout time.Duration // for one check
	Rise    int           // good checks in a row that bring a server back
	Fall    int           // bad ones in a row that take it out
}

// A server without active checks that refuses connections is left alone for this long.
const sulk = 2 * time.Second

// Pool is one back-end. Create it with [New].
type Pool struct {
	name    string
	servers []*server
	health  *Health
	log     *slog.Logger
	proxy   httputil.ReverseProxy
	wire    *http.Transport
}

type server struct {
	url      *url.URL
	inFlight atomic.Int64

	mu     sync.Mutex
	down   bool
	run    int       // checks in a row with the same outcome, against the current state
	sulks  time.Time // not used before, unless nothing else is left
	lastly string    // why it is down
}

// New returns the pool of c. It opens nothing.
func New(c Config) *Pool {
	p := &Pool{name: c.Name, health: c.Health, log: c.Log.With("backend", c.Name)}
	for _, u := range c.Servers {
		p.servers = append(p.servers, &server{url: u})
	}
	p.wire = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       60 * time.Second,
		TLSHandshakeTimeout:   3 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // the client's own Accept-Encoding goes through
	}
	p.proxy = httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper{p},
		BufferPool:     &copyBuffers,
		ErrorHandler:   p.fail,
		ModifyResponse: clean,
		ErrorLog:       slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	return p
}

// ServeHTTP carries r to a server of the pool. r.RemoteAddr must be the client's
// address, and r.URL the canonical target.
func (p *Pool) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.proxy.ServeHTTP(w, r) }

// rewrite makes the request to the origin. The server is filled in by roundTripper.
func rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "backend"
	pr.Out.Host = pr.In.Host
	// Rewrite has dropped the parts of the query that it could not parse; whether
	// they mean something is for the origin to say.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.SetXForwarded()
	Via(pr)
	if u := pr.Out.Header.Get("Upgrade"); u != "" && !strings.EqualFold(u, "websocket") {
		pr.Out.Header.Del("Upgrade")
		pr.Out.Header.Del("Connection")
	}
	if _, ok := pr.In.Header["User-Agent"]; !ok {
		pr.Out.Header.Set("User-Agent", "") // or the transport would add its own
	}
}

// Via says that the request has come through the site (RFC 9110 7.6.3), under one name
// for all nodes: which of them it was is nobody's business.
func Via(pr *httputil.ProxyRequest) {
	version := strconv.Itoa(pr.In.ProtoMajor)
	if pr.In.ProtoMajor == 1 {
		version += "." + strconv.Itoa(pr.In.ProtoMinor)
	}
	pr.Out.Header.Add("Via", version+" peerage")
}

// clean takes from an answer what speaks for the origin's own listener, not ours.
func clean(r *http.Response) error {
	r.Header.Del("Alt-Svc")
	return nil
}

// errNoServer is the answer of a pool without a usable server.
var errNoServer = errors.New("no server of the back-end can be reached")

func (p *Pool) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	var timeout net.Error
	var tooLarge *http.MaxBytesError
	switch {
	case r.Context().Err() != nil:
		return // the client is gone
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errNoServer):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	case errors.As(err, &timeout) && timeout.Timeout():
		status = http.StatusGatewayTimeout
	}
	p.log.Debug("back-end failed", "err", err)
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, http.StatusText(status), status)
}

type roundTripper struct{ p *Pool }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	var tried *server
	for {
		s := t.p.pick(tried)
		if s == nil {
			return nil, errNoServer
		}
		resp, err := t.p.try(s, r)
		if err == nil || tried != nil || !repeatable(r) || r.Context().Err() != nil {
			return resp, err
		}
		if t.p.pick(s) == nil {
			return nil, err
		}
		tried = s
	}
}

// repeatable reports whether a failed r may be sent to another server (RFC 9110 9.2.2).
func repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return r.Body == nil || r.Body == http.NoBody
	}
	return false
}

func (p *Pool) try(s *server, r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = s.url.Scheme, s.url.Host
	s.inFlight.Add(1)
	resp, err := p.wire.RoundTrip(out)
	if err != nil {
		s.inFlight.Add(-1)
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			p.refused(s, err)
		}
		return nil, err
	}
	resp.Body = counted(resp.Body, &s.inFlight)
	return resp, nil
}

// counted returns body so that n is decremented once when it is closed. An upgraded
// connection stays writable.
func counted(body io.ReadCloser, n *atomic.Int64) io.ReadCloser {
	c := &countedBody{ReadCloser: body, done: sync.OnceFunc(func() { n.Add(-1) })}
	if w, ok := body.(io.Writer); ok {
		return struct {
			*countedBody
			io.Writer
		}{c, w}
	}
	return c
}

type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Close() error {
	b.done()
	return b.ReadCloser.Close()
}

// pick returns the less busy of two usable servers drawn at random, other than not.
// With none usable it takes one that is down, for a wrong verdict on all of them must
// not take the site away; nil if there is no other server at all.
func (p *Pool) pick(not *server) *server {
	var up, down []*server
	now := time.Now()
	for _, s := range p.servers {
		switch {
		case s == not:
		case s.usable(now):
			up = append(up, s)
		default:
			down = append(down, s)
		}
	}
	if len(up) == 0 {
		up = down
	}
	switch len(up) {
	case 0:
		return nil
	case 1:
		return up[0]
	}
	i := rand.IntN(len(up))
	j := rand.IntN(len(up) - 1)
	if j >= i {
		j++
	}
	if up[j].inFlight.Load() < up[i].inFlight.Load() {
		i = j
	}
	return up[i]
}

func (s *server) usable(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.down && !now.Before(s.sulks)
}

// refused notes that s did not take a connection.
func (p *Pool) refused(s *server, err error) {
	s.mu.Lock()
	s.sulks = time.Now().Add(sulk)
	s.mu.Unlock()
	p.log.Debug("server refused", "server", s.url.Host, "err", err)
}

// Run checks the servers until ctx ends.
func (p *Pool) Run(ctx context.Context) error {
	defer p.wire.CloseIdleConnections()
	var wg sync.WaitGroup
	if p.health != nil {
		for _, s := range p.servers {
			wg.Go(func() { p.watch(ctx, s) })
		}
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

func (p *Pool) watch(ctx context.Context, s *server) {
	t := time.NewTicker(p.health.Every)
	defer t.Stop()
	for {
		if err := p.check(ctx, s); ctx.Err() == nil {
			p.judge(s, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (p *Pool) check(ctx context.Context, s *server) error {
	ctx, cancel := context.WithTimeout(ctx, p.health.Timeout)
	defer cancel()
	u := *s.url
	u.Path = p.health.Path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := p.wire.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode >= 400 {
		return fmt.Errorf("health check answered %s", resp.Status)
	}
	return nil
}

// judge books one outcome of a check, nil for good.
func (p *Pool) judge(s *server, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.sulks = time.Time{}
	}
	if (err != nil) == s.down {
		s.run = 0
		return
	}
	s.run++
	switch {
	case !s.down && s.run >= p.health.Fall:
		s.down, s.run, s.lastly = true, 0, err.Error()
		p.log.Warn("server down", "server", s.url.Host, "err", err)
	case s.down && s.run >= p.health.Rise:
		s.down, s.run, s.lastly = false, 0, ""
		p.log.Info("server up", "server", s.url.Host)
	}
}

// Server is one server of a pool, as [Pool.Status] tells of it.
type Server struct {
	URL      string `json:"url"`
	Up       bool   `json:"up"`
	InFlight int64  `json:"in_flight"`
	Error    string `json:"error,omitempty"`
}

// Status returns the servers of the pool.
func (p *Pool) Status() []Server {
	now := time.Now()
	all := make([]Server, len(p.servers))
	for i, s := range p.servers {
		all[i] = Server{URL: s.url.String(), Up: s.usable(now), InFlight: s.inFlight.Load()}
		s.mu.Lock()
		all[i].Error = s.lastly
		s.mu.Unlock()
	}
	return all
}

// copyBuffers are the buffers that bodies are copied through.
var copyBuffers bufferPool

type bufferPool struct{ p sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.p.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(buf []byte) { b.p.Put(&buf) }
