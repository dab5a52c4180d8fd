package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/meter"
	"peerage/dnsserver"
	"peerage/edge"
	"peerage/edge/route"
	"peerage/tls/certs"
)

// server is the serving child of a node: HTTP, TLS, QUIC and DNS. It holds no VIP and
// sends no report; it answers on the addresses that its guard says the node holds.
type server struct {
	nodeFile *site.NodeFile
	document *site.Document
	rules    []route.Rule // of the document
	guard    *channel
	ca       *certs.CA
	log      *slog.Logger

	view    atomic.Pointer[balancing.View]
	told    atomic.Pointer[GuardStatus]
	meter   *meter.Meter
	edge    *edge.Server
	dns     *dnsserver.Server // nil without a zone
	origins *origins
	started time.Time
	ask     chan struct{} // capacity 1: the peers should be asked for their reports
}

// errGuardGone ends a server whose guard has died: the VIPs are no longer this node's
// to answer for.
var errGuardGone = errors.New("the guard is gone")

func newServer(nf *site.NodeFile, doc *site.Document, ring *keys.Ring, ca *certs.CA, guard *channel, access *slog.Logger, log *slog.Logger) (*server, error) {
	s := &server{nodeFile: nf, document: doc, rules: doc.Rules(), guard: guard, ca: ca, log: log, started: time.Now(), ask: make(chan struct{}, 1)}
	s.meter = meter.New(meterConfig(nf, doc))
	s.view.Store(firstView(nf, doc))

	origins, err := openOrigins(nf.Name, doc, log)
	if err != nil {
		return nil, err
	}
	s.origins = origins
	generation, err := edgeSite(nf, doc, ring, origins.handlers)
	if err != nil {
		return nil, err
	}
	manager := certs.New(certs.Config{
		CA:      ca,
		Names:   func(name string) bool { _, ok := generation.Names.Lookup(name); return ok },
		Addrs:   func(a netip.Addr) bool { _, ok := generation.Names.Lookup(a.String()); return ok },
		Default: doc.Hosts[0],
		Log:     log,
	})
	relayServer, relayClient, err := certs.PeerConfig(ca, nf.Name, doc.NodeIDs())
	if err != nil {
		return nil, err
	}
	s.edge = edge.New(edge.Config{
		Self:        nf.Name,
		Ports:       edge.Ports{HTTP: nf.Listen.HTTP, HTTPS: nf.Listen.HTTPS, Relay: nf.Listen.Relay},
		View:        s.view.Load,
		Meter:       s.meter,
		Keys:        ring,
		Ask:         s.wantReports,
		TLS:         certs.ServerConfig(manager.GetCertificate, certs.Intermediate),
		Relay:       nf.Address.Internal,
		RelayServer: relayServer,
		RelayClient: relayClient,
		AccessLog:   access,
		Log:         log,
	}, generation)
	if doc.DNS != nil {
		z, err := siteZone(nf, doc)
		if err != nil {
			return nil, err
		}
		s.dns = dnsserver.New(dnsserver.Config{Port: nf.Listen.DNS, View: s.view.Load, Log: log})
		s.dns.SetZones(z)
	}
	return s, nil
}

// run serves until ctx ends or the guard says stop.
func (s *server) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all sync.WaitGroup
	run := func(what string, f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	run("load", s.meter.Run)
	run("origins", s.origins.run)
	run("edge", s.edge.Run)
	if s.dns != nil {
		run("DNS", s.dns.Run)
	}
	run("own load", s.refresh)
	run("self-check", s.check)
	run("questions", s.askPeers)
	run("control socket", s.control)
	s.follow() // the initial set: the host address
	var hearing sync.WaitGroup
	hearing.Go(func() { s.hear(stop) })

	<-ctx.Done()
	s.log.Info("server stopping")
	if errors.Is(context.Cause(ctx), errGuardGone) {
		return errGuardGone // without the grace that Wait would give
	}
	all.Wait()
	s.guard.close()
	hearing.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// hear takes the guard's messages until the channel closes.
func (s *server) hear(stop context.CancelCauseFunc) {
	for {
		var m toServer
		if err := s.guard.receive(&m); err != nil {
			if !errors.Is(err, io.EOF) {
				s.log.Error("guard not understood", "err", err)
			}
			stop(errGuardGone)
			return
		}
		switch {
		case m.Stop:
			stop(nil)
		case m.View != nil:
			s.told.Store(m.Guard)
			s.view.Store(s.withOwnLoad(m.View))
			s.follow()
		}
	}
}

// follow answers on the addresses that the node has now.
func (s *server) follow() {
	addrs := []netip.Addr{s.nodeFile.Address.Public}
	if me := s.view.Load().Me(); me != nil {
		addrs = append(addrs, me.Held...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	s.edge.Listen(addrs)
	if s.dns != nil {
		s.dns.Listen(addrs)
	}
}

// withOwnLoad returns v with the load as measured just now in place of the one that
// was last reported.
func (s *server) withOwnLoad(v *balancing.View) *balancing.View {
	c := *v
	c.Nodes = slices.Clone(v.Nodes)
	if me := c.Me(); me != nil {
		me.Load = s.meter.Load()
	}
	return &c
}

// refresh keeps the node's own load in its view up to date between the reports: it is
// what the first step of the decision looks at (patent S202).
func (s *server) refresh(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		was := s.view.Load()
		if me := was.Me(); me != nil && me.Load != s.meter.Load() {
			s.view.CompareAndSwap(was, s.withOwnLoad(was)) // a newer view wins
		}
	}
}

// wantReports is for a request that finds what is known of the peers too old. It does not
// wait.
func (s *server) wantReports() {
	select {
	case s.ask <- struct{}{}:
	default:
	}
}

// askPeers passes on to the guard that reports are wanted.
func (s *server) askPeers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ask:
			if s.guard.send(toGuard{Ask: true}) != nil {
				return errGuardGone
			}
		}
	}
}

// settling is how long a server that starts may fail its own check without a word: its
// listeners are being opened.
const settling = time.Second

// check asks the node's own listener for its health, as a client would, and gives the
// guard a token for each answer. No answer, no token; no token, no VIP.
func (s *server) check(ctx context.Context) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ca.CertPEM())
	at := netip.AddrPortFrom(s.nodeFile.Address.Public, s.nodeFile.Listen.HTTPS).String()
	client := &http.Client{
		Timeout: time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, at)
			},
			TLSClientConfig: &tls.Config{RootCAs: roots},
			MaxIdleConns:    1,
		},
	}
	defer client.CloseIdleConnections()
	url := "https://" + s.document.Hosts[0] + edge.HealthPath
	t := time.NewTicker(healthEvery)
	defer t.Stop()
	failing := ""
	for {
		err := ask(ctx, client, url)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if failing != err.Error() && time.Since(s.started) > settling {
				failing = err.Error()
				s.log.Warn("self-check failed", "err", err)
			}
		default:
			failing = ""
			t := &token{Load: s.meter.Load(), InFlight: s.meter.InFlight()}
			t.Debit, t.Shed = s.edge.Books()
			t.Unable, t.Amiss = s.diagnose()
			if s.guard.send(toGuard{Token: t}) != nil {
				return errGuardGone
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	return err // 503 is an answer as well: the node drains, and serves what it has
}

// firstView is what is known before the guard has spoken: the document.
func firstView(nf *site.NodeFile, doc *site.Document) *balancing.View {
	v := &balancing.View{Self: nf.Name, Time: time.Now(), Settings: doc.Balancing.Settings()}
	for _, id := range doc.NodeIDs() {
		n := doc.Nodes[id]
		v.Nodes = append(v.Nodes, balancing.Node{ID: id, Address: n.Address, Internal: n.Internal, Home: n.VIPs, Capacity: n.Capacity})
		if id == nf.Name {
			me := &v.Nodes[len(v.Nodes)-1]
			me.Online, me.State, me.Address = true, balancing.Joining, nf.Address.Public
		}
	}
	return v
}

// guardChannel is the server's end of the channel, which its guard left at descriptor 3.
func guardChannel() (*channel, error) {
	f := os.NewFile(3, "guard")
	if f == nil {
		return nil, errors.New("no channel to a guard: 'peerage run' starts the server by itself")
	}
	return openChannel(f)
}
