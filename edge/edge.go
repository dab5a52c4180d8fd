// Package edge is the listening side of a node: it terminates HTTP/1.1, HTTP/2 and
// HTTP/3, decides for each request who should serve it, and serves it, redirects the
// requester to a peer, or relays.
//
// Start with [Server]; handler.go reads as the story of one request. The addresses
// that a node answers on come and go with its VIPs: [Server.Listen] names them, and
// [Server.Run], which owns every listener, makes it so. Before a VIP leaves in order,
// [Server.Leave] lets its clients go. A new [Site] replaces the old one for the next request
// and touches no listener and no open connection.
//
// A redirect is built from the site's own table of names, never from what the client
// sent.
package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/listen"
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
	asking   chan struct{} // holds one for each request that asks peers how busy they are

	listeners *listen.Listeners[*address]
	ending    sync.WaitGroup // what drains
	closed    atomic.Bool    // drains: takes no new work
}

// New returns a server of site. It opens nothing.
func New(c Config, site *Site) *Server {
	s := &Server{
		c:        c,
		ledger:   balancing.NewLedger(0),
		counters: newCounters(),
		busyWait: busyWait,
		asking:   make(chan struct{}, maxAsking),
		port:     portSuffix(c.Ports.HTTPS),
		offerH3:  []string{fmt.Sprintf(`h3=":%d"; ma=600`, c.Ports.HTTPS)},
		offerNow: []string{fmt.Sprintf(`h3=":%d"; ma=%d`, c.Ports.HTTPS, int(steerLife.Seconds()))},
		peers:    newPeerAPI(c),
	}
	s.listeners = listen.New(listen.Config[*address]{
		What:  "address",
		New:   func(a netip.Addr) *address { return &address{s: s, addr: a} },
		Retry: retry,
		Log:   c.Log,
	})
	s.keys.Store(c.Keys)
	s.relay = newRelay(c)
	s.site.Store(site)
	return s
}

// SetSite replaces the configuration, from the next request on.
func (s *Server) SetSite(site *Site) { s.site.Store(site) }

// SetKeys replaces the keys of the QUIC tokens and resets, for the addresses that the node
// does not hold now: those that it holds would no longer know their own tokens. The pins'
// are part of the [Site].
func (s *Server) SetKeys(r *keys.Ring) {
	s.keys.Store(r)
	s.listeners.Look()
}

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

// Listen names the addresses that the node holds, and those that it may come to hold at any
// moment, in place of those named before. The sockets of both are open, so that an address is
// served in the instant in which the kernel has it. Listen never blocks; Run makes it so, and
// tries again while an address cannot be had.
//
// The connections of an address that is not named any more are drained. Those of one that is
// only on standby from now on are closed at once: it is gone from this node, and no answer
// leaves it.
func (s *Server) Listen(held, standby []netip.Addr) { s.listeners.Listen(held, standby) }

// Listening returns the addresses that the node holds and answers on now.
func (s *Server) Listening() []netip.Addr {
	var addrs []netip.Addr
	for _, a := range s.listeners.Serving() {
		addrs = append(addrs, a.addr)
	}
	return addrs
}

// InProgress returns how many requests are in progress on each address that the node holds
// and answers on.
func (s *Server) InProgress() map[netip.Addr]int64 {
	n := map[netip.Addr]int64{}
	for _, a := range s.listeners.Serving() {
		if e := a.open.Load(); e != nil {
			n[a.addr] = e.requests.n.Load()
		}
	}
	return n
}

// errStay is the error of a [Server.Leave] that has been called off.
var errStay = errors.New("the addresses stay")

// Leave tells the clients of addresses that leave this node in order to go: connections
// without a request end at once, the others with their last answer (RFC 9112 9.6, RFC 9113
// 6.8, RFC 9114 5.2). Until the address is gone new connections are served all the same; by
// HTTP/1.1 and HTTP/2 they last no longer than what they ask at once.
//
// It returns nil as soon as the clients from before have gone, or have asked nothing more
// for a moment, and no request is in progress: then the addresses can be given up. It
// returns the cause of ctx if that ends first; the clients have been told all the same, and
// are told until [Server.Stay], or until the address is no longer held.
func (s *Server) Leave(ctx context.Context, addrs []netip.Addr) error {
	leaving := s.endpoints(addrs)
	for _, e := range leaving {
		e.leave()
	}
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for slices.ContainsFunc(leaving, (*endpoint).busy) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
	if slices.ContainsFunc(leaving, (*endpoint).stays) {
		return errStay
	}
	return nil
}

// Stay calls [Server.Leave] off: clients that connect from now on are not told to go.
func (s *Server) Stay(addrs []netip.Addr) {
	for _, e := range s.endpoints(addrs) {
		e.stay()
	}
}

// endpoints returns what is open on those of addrs that the node holds.
func (s *Server) endpoints(addrs []netip.Addr) []*endpoint {
	var open []*endpoint
	for _, a := range s.listeners.Serving() {
		if e := a.open.Load(); e != nil && slices.Contains(addrs, a.addr) {
			open = append(open, e)
		}
	}
	return open
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
	s.listeners.Run(ctx)
	s.closed.Store(true)
	s.listeners.Close()
	s.drain(stopRelay)
	s.ending.Wait()
	s.relay.close()
	return nil
}

// drain calls f, and does not wait, with a context that ends after the site's grace.
func (s *Server) drain(f func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), s.site.Load().Grace)
	s.ending.Go(func() {
		defer cancel()
		f(ctx)
	})
}

// errRefused is the error of a request that is answered with an error page of ours.
type errRefused struct {
	status int
	why    string
}

func (e *errRefused) Error() string { return e.why }

func refuse(status int, why string) error { return &errRefused{status, why} }
