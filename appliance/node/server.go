package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"peerage/tls/certs"
)

// server is the serving child of a node: HTTP, TLS, QUIC and DNS. It holds no VIP and
// sends no report; it answers on the addresses that its guard says the node holds.
type server struct {
	nodeFile *site.NodeFile
	guard    *channel
	ca       *certs.CA
	access   *accessLog
	running  string // text of the document that the server has started with
	log      *slog.Logger

	member      *member
	relayClient func(peer balancing.NodeID) *tls.Config

	current   atomic.Pointer[generation]
	turning   sync.Mutex    // held while the next generation is made
	ring      *keys.Ring    // of the newest generation; turning guards it
	renewed   chan struct{} // capacity 1: there is a new generation
	past      pasts         // of the generations before
	wishes    wishes
	farewells farewells
	jobs      chan func(context.Context) // see later

	view    atomic.Pointer[balancing.View]
	told    atomic.Pointer[GuardStatus]
	passed  atomic.Int64 // self-checks since the newest generation
	meter   *meter.Meter
	edge    *edge.Server
	dns     *dnsserver.Server
	started time.Time
	ask     chan struct{} // capacity 1: the peers should be asked for their reports
	obeys   chan struct{} // closed when the guard knows the orders

	onLoopback bool
	following  sync.Mutex // held while follow is at work
}

// errGuardGone ends a server whose guard has died: the VIPs are no longer this node's
// to answer for.
var errGuardGone = errors.New("the guard is gone")

func newServer(nf *site.NodeFile, text string, doc *site.Document, ring *keys.Ring, ca *certs.CA, guard *channel, access *accessLog, log *slog.Logger) (*server, error) {
	s := &server{
		nodeFile: nf, guard: guard, ca: ca, access: access, running: text, log: log, started: time.Now(),
		ring: ring, renewed: make(chan struct{}, 1), ask: make(chan struct{}, 1), obeys: make(chan struct{}),
		jobs: make(chan func(context.Context), 8),
	}
	s.meter = meter.New(meterConfig(nf, doc))
	s.meter.Changed = s.refresh
	s.view.Store(firstView(nf, doc))
	var err error
	if s.onLoopback, err = onLoopback(nf); err != nil {
		return nil, err
	}
	first, err := newGeneration(nf, doc, ring, nil, log)
	if err != nil {
		return nil, err
	}
	s.current.Store(first)
	manager := certs.New(certs.Config{
		CA:      ca,
		Names:   func(name string) bool { _, ok := s.current.Load().site.Names.Lookup(name); return ok },
		Addrs:   func(a netip.Addr) bool { _, ok := s.current.Load().site.Names.Lookup(a.String()); return ok },
		Default: func() string { return s.document().Hosts[0] },
		Log:     log,
	})
	if s.member, err = s.newMember(text, ring); err != nil {
		return nil, err
	}
	relayServer, relayClient, err := certs.PeerConfig(ca, nf.Name, certs.PeerOptions{
		Key: s.member.identity.Signer(), Known: s.member.registry.Known,
	})
	if err != nil {
		s.member.store.Close()
		return nil, err
	}
	s.relayClient = relayClient
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
		Peers:       s.peersHandler(),
		Join:        s.joinHandler(),
		JoinName:    certs.JoinName,
		JoinTLS:     certs.JoinConfig(ca),
		AccessLog:   access.logger(),
		Log:         log,
	}, first.site)
	s.dns = dnsserver.New(dnsserver.Config{Port: nf.Listen.DNS, View: s.view.Load, Log: log})
	s.dns.SetZones(first.zones)
	return s, nil
}

// document returns the site document that is served now.
func (s *server) document() *site.Document { return s.current.Load().doc }

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
	run("origins", s.keepOrigins)
	run("edge", s.edge.Run)
	run("DNS", s.dns.Run)
	run("orders", s.passOrders)
	run("self-check", s.check)
	run("questions", s.askPeers)
	run("control socket", s.control)
	run("cluster", s.member.cluster.Run)
	run("site key", s.member.rotation.Run)
	run("site document", s.belong)
	run("members", s.followMembers)
	run("jobs", s.work)
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
	s.farewells.end()
	if err := s.member.store.Close(); err != nil {
		s.log.Error("cluster database not closed", "err", err)
	}
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
		case m.Took != nil:
			s.wishes.answered(*m.Took)
		case m.Leaving != nil:
			s.bid(m.Leaving)
		case m.View != nil:
			s.told.Store(m.Guard)
			s.view.Store(s.withOwnLoad(m.View))
			s.follow()
		}
	}
}

// follow answers on the addresses that the node has now, and is ready for those that it may
// have at any moment.
func (s *server) follow() {
	s.following.Lock() // or an older view could be followed last
	defer s.following.Unlock()
	held := []netip.Addr{s.nodeFile.Address.Public}
	if me := s.view.Load().Me(); me != nil {
		held = append(held, me.Held...)
	}
	slices.SortFunc(held, netip.Addr.Compare)
	held = slices.Compact(held)
	standby := s.standby()
	s.edge.Listen(held, standby)
	if len(s.current.Load().zones) == 0 {
		held, standby = nil, nil
	}
	s.dns.Listen(held, standby)
}

// maxStandby bounds the addresses that a node is ready for but does not hold. Each takes
// five sockets and some 150 KiB.
const maxStandby = 256

// standby returns the VIPs that this node may come to hold, its own first. On loopback there
// are none: there an address is claimed by binding it.
func (s *server) standby() []netip.Addr {
	if s.onLoopback {
		return nil
	}
	doc := s.document()
	vips := slices.Clone(doc.Nodes[s.nodeFile.Name].VIPs)
	for _, id := range doc.NodeIDs() {
		if id != s.nodeFile.Name {
			vips = append(vips, doc.Nodes[id].VIPs...)
		}
	}
	return vips[:min(len(vips), maxStandby)]
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
func (s *server) refresh() {
	was := s.view.Load()
	s.view.CompareAndSwap(was, s.withOwnLoad(was)) // a newer view wins
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
