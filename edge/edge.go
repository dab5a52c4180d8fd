// Package edge is the listening side of a node: it terminates HTTP/1.1, HTTP/2 and
// HTTP/3, decides for each request who should serve it, and serves it, redirects the
// requester to a peer, or relays.
//
// Start with [Server]; handler.go reads as the story of one request. The addresses
// that a node answers on come and go with its VIPs: [Server.Listen] names the wanted
// set, and [Server.Run], which owns every listener, makes it so. A new [Site] replaces
// the old one for the next request and touches no listener and no open connection.
//
// A redirect is built from the site's own table of names, never from what the client
// sent.
package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/meter"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// Config is what a Server needs and never changes, but for the Keys: see
// [Server.SetKeys].
type Config struct {
	Self  balancing.NodeID
	Ports Ports
	View  func() *balancing.View // never nil
	Meter *meter.Meter
	Keys  *keys.Ring
	TLS   *tls.Config // of the public listeners, with GetCertificate

	// The relay link: where peers reach this node, and the two sides of the mutual
	// TLS between nodes. VerifyConnection of RelayServer is asked again for each request,
	// so that a node that was removed is refused on its open connections too; it must be
	// cheap.
	Relay       netip.Addr
	RelayServer *tls.Config
	RelayClient func(peer balancing.NodeID) *tls.Config

	// Peers serves the nodes on the relay link below [PeersPath]; the certificate in
	// Request.TLS says which of them asks. Nil for nobody.
	Peers http.Handler

	// Join serves who is no node yet, and so shows no certificate: on the port of the
	// relay link under the name JoinName, which no node's certificate has, and there
	// nothing but [JoinPath]. JoinTLS is the server side of that. If one of the three is
	// missing, for nobody.
	Join     http.Handler
	JoinName string
	JoinTLS  *tls.Config

	// Ask asks the peers for a report: what is known of one of them is too old to act
	// upon. It must not block; nil for nobody to ask.
	Ask func()

	AccessLog *slog.Logger
	Log       *slog.Logger
}

// Ports are the port numbers of a node's listeners, the same on all nodes of a site.
type Ports struct {
	HTTP  uint16
	HTTPS uint16 // TCP and UDP
	Relay uint16
}

// Site is one generation of the site's configuration. It is immutable; a request is
// served by the generation it began with.
type Site struct {
	Name    string
	Names   *route.Names
	Routes  *route.Table
	Origins []http.Handler // by route.Rule.Index
	Pins    *pin.Ring
	Grace   time.Duration // for work in progress when a listener closes

	// MaxRequests is how many requests may be in progress before new ones are refused; a
	// quarter more for clients that are pinned to this node. 0: no bound.
	MaxRequests int

	// Bursts says that a single request may be carried to a peer that is free just now,
	// when this node is very busy for a moment.
	Bursts bool

	// Proxies are the addresses of proxies that are believed when they say for whom they
	// ask (patent, fourth embodiment). Their clients are moved by relays only, unless
	// ProxyRedirects says that they can reach the node names.
	Proxies        []netip.Prefix
	ProxyRedirects bool
	ProxyProtocol  bool // they begin each TCP connection with the PROXY protocol's header; one without is refused
}

// Server serves the site on all addresses of a node.
type Server struct {
	c        Config
	site     atomic.Pointer[Site]
	ledger   *balancing.Ledger
	counters *counters
	relay    *relay
	keys     atomic.Pointer[keys.Ring]
	peers    *peerAPI

	turn       atomic.Int64 // of rule rotate: see balancing.Request
	asked      atomic.Int64 // when Config.Ask was last called, in unix nanoseconds
	inProgress atomic.Int64 // requests

	port     string   // of HTTPS, as it follows the host in a URL
	offerH3  []string // value of Alt-Svc
	offerNow []string // the same, for no longer than the offer of a peer

	busyWait time.Duration
	asking   chan struct{}     // holds one for each request that asks peers how busy they are
	want     chan []netip.Addr // capacity 1: the newest wanted set
	mu       sync.Mutex
	bound    []netip.Addr
	closed   atomic.Bool // drains: takes no new work
}

// New returns a server of site. It opens nothing.
func New(c Config, site *Site) *Server {
	s := &Server{
		c:        c,
		ledger:   balancing.NewLedger(0),
		counters: newCounters(),
		busyWait: busyWait,
		asking:   make(chan struct{}, maxAsking),
		want:     make(chan []netip.Addr, 1),
		port:     portSuffix(c.Ports.HTTPS),
		offerH3:  []string{fmt.Sprintf(`h3=":%d"; ma=600`, c.Ports.HTTPS)},
		offerNow: []string{fmt.Sprintf(`h3=":%d"; ma=%d`, c.Ports.HTTPS, int(steerLife.Seconds()))},
		peers:    newPeerAPI(c),
	}
	s.keys.Store(c.Keys)
	s.relay = newRelay(c)
	s.site.Store(site)
	return s
}

// SetSite replaces the configuration, from the next request on.
func (s *Server) SetSite(site *Site) { s.site.Store(site) }

// SetKeys replaces the keys of the QUIC tokens and resets, for the addresses that are
// opened from now on: those that are open would no longer know their own tokens. The pins'
// are part of the [Site].
func (s *Server) SetKeys(r *keys.Ring) { s.keys.Store(r) }

// SetPeers names the nodes of the site, this one among them or not. It must be called too
// when the identity of one has changed. Those that are not named, or would not be taken
// with the key that they have shown, are sent no request any more over a connection that
// is open; nor are requests of a node that is not named served. Until the first call
// everyone counts whom the relay link's TLS takes.
func (s *Server) SetPeers(nodes []balancing.NodeID) { s.relay.setPeers(nodes) }

// Books returns what this node has sent away lately, for its report: load in mid-visit,
// and load that never showed.
func (s *Server) Books() (debit, shed balancing.Load) {
	b := s.ledger.Books(time.Now(), s.c.View())
	return b.Debit, b.Shed
}

// Listen names the addresses to answer on, in place of those named before. It never
// blocks; Run makes it so, and tries again while an address cannot be had.
func (s *Server) Listen(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	for {
		select {
		case s.want <- addrs:
			return
		default:
		}
		select {
		case <-s.want:
		default:
		}
	}
}

// Listening returns the addresses that are answered on now.
func (s *Server) Listening() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bound)
}

// retry is the pause before an address that could not be had is tried again. The
// usual cause is that it is not let go of yet: by a peer on the same machine, or by
// this server itself, which drains the clients that came by QUIC.
const retry = 50 * time.Millisecond

// Run serves until ctx ends, then lets work in progress finish within the site's
// grace.
func (s *Server) Run(ctx context.Context) error {
	stopRelay, err := s.relay.serve(http.HandlerFunc(s.serveLink))
	if err != nil {
		return err
	}
	l := listeners{s: s, open: map[netip.Addr]*endpoint{}, failed: map[netip.Addr]string{}}
	tryAgain := time.NewTimer(0)
	defer tryAgain.Stop()
	for {
		select {
		case l.want = <-s.want:
		case <-tryAgain.C:
		case <-ctx.Done():
			s.closed.Store(true)
			l.want = nil
			l.match()
			l.drain(stopRelay)
			l.ending.Wait()
			s.relay.close()
			return nil
		}
		if !l.match() {
			tryAgain.Reset(retry)
		}
	}
}

// listeners are the addresses of a server, owned by its Run.
type listeners struct {
	s      *Server
	want   []netip.Addr
	open   map[netip.Addr]*endpoint
	failed map[netip.Addr]string // the error last logged
	ending sync.WaitGroup
}

// match closes what is not wanted and opens what is. It reports whether all of that
// could be had.
func (l *listeners) match() bool {
	for a, e := range l.open {
		if !slices.Contains(l.want, a) {
			delete(l.open, a)
			l.drain(e.drain)
			l.s.c.Log.Info("address closed", "addr", a)
		}
	}
	for a := range l.failed {
		if !slices.Contains(l.want, a) {
			delete(l.failed, a)
		}
	}
	complete := true
	for _, a := range l.want {
		if err := l.complete(a); err != nil {
			complete = false
			if l.failed[a] != err.Error() {
				l.failed[a] = err.Error()
				l.s.c.Log.Warn("address not opened", "addr", a, "err", err)
			}
			continue
		}
		delete(l.failed, a)
	}
	l.publish()
	return complete
}

// complete opens what a lacks.
func (l *listeners) complete(a netip.Addr) error {
	e := l.open[a]
	if e == nil {
		var err error
		if e, err = l.s.open(a); err != nil {
			return err
		}
		l.open[a] = e
		l.s.c.Log.Info("address opened", "addr", a)
	}
	if e.quic == nil {
		return l.s.openQUIC(e)
	}
	return nil
}

// drain calls f, and does not wait, with a context that ends after the site's grace.
func (l *listeners) drain(f func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), l.s.site.Load().Grace)
	l.ending.Go(func() {
		defer cancel()
		f(ctx)
	})
}

// publish makes known what is open.
func (l *listeners) publish() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.bound = slices.SortedFunc(maps.Keys(l.open), netip.Addr.Compare)
}

// errRefused is the error of a request that is answered with an error page of ours.
type errRefused struct {
	status int
	why    string
}

func (e *errRefused) Error() string { return e.why }

func refuse(status int, why string) error { return &errRefused{status, why} }
