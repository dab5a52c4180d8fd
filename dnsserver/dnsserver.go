// Package dnsserver answers DNS questions with authority, on port 53 of a node, over UDP
// and TCP.
//
// Start with [Server]. What it answers is in package zone, a pure function; this package
// owns the sockets, the header checks, EDNS(0), truncation and the limits. The addresses
// that a node answers on come and go with its VIPs: [Server.Listen] names them, and
// [Server.Run], which owns every socket and goroutine, makes it so. Each address has a UDP
// socket and a TCP listener of its own, so that a reply leaves from the address that was
// asked.
//
// UDP is one goroutine a socket with buffers of its own, never one a datagram: a flood
// costs datagrams, not memory. Nothing here recurses, forwards, or answers for a name
// outside its zones (RFC 5358).
package dnsserver

import (
	"context"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/balancing/listen"
	"peerage/dnsserver/zone"
)

// Config is what a Server needs and never changes.
type Config struct {
	Port uint16                 // of UDP and TCP; 0 stands for any free one, which is of use in tests
	View func() *balancing.View // never nil
	Log  *slog.Logger
}

// Server is the name server of a node.
type Server struct {
	c        Config
	zones    atomic.Pointer[map[string]*zone.Zone] // by origin
	counters counters
	conns    conns

	// Where the next answer's addresses begin, by name and type: one counter for all
	// would give a client that asks A and AAAA in turn the same order for ever. Names
	// that share a slot are no worse off than that.
	turns [256]atomic.Uint32
	seed  maphash.Seed

	listeners *listen.Listeners[*address]
}

// New returns a server without zones, which refuses every question. It opens nothing.
func New(c Config) *Server {
	s := &Server{c: c, seed: maphash.MakeSeed()}
	s.conns.open = map[*conn]struct{}{}
	s.listeners = listen.New(listen.Config[*address]{
		What:  "DNS address",
		New:   func(a netip.Addr) *address { return &address{s: s, addr: a} },
		Retry: retry,
		Log:   c.Log,
	})
	s.SetZones(nil)
	return s
}

// SetZones replaces the zones, all at once, from the next question on.
func (s *Server) SetZones(zones []*zone.Zone) {
	byOrigin := map[string]*zone.Zone{}
	for _, z := range zones {
		byOrigin[z.Origin()] = z
		s.c.Log.Info("zone loaded", "zone", z.Origin())
		for _, name := range z.Outside() {
			s.c.Log.Info("name outside the zone", "zone", z.Origin(), "name", name)
		}
	}
	s.zones.Store(&byOrigin)
}

// Listen names the addresses that the node holds, and those that it may come to hold at any
// moment, whose sockets are open as well, in place of those named before. It never blocks;
// Run makes it so, and tries again while an address cannot be had.
func (s *Server) Listen(held, standby []netip.Addr) { s.listeners.Listen(held, standby) }

// Listening returns where questions are answered on addresses that the node holds, over UDP
// and TCP alike.
func (s *Server) Listening() []netip.AddrPort {
	var at []netip.AddrPort
	for _, a := range s.listeners.Serving() {
		if e := a.open.Load(); e != nil {
			at = append(at, e.addr)
		}
	}
	return at
}

// retry is the pause before an address that could not be had is tried again. The usual
// cause is a peer on the same machine that has not let go of it yet.
const retry = 100 * time.Millisecond

// Run answers until ctx ends. Then, and when an address is no longer held, its connections
// are closed at once: whoever asks repeats the question elsewhere.
func (s *Server) Run(ctx context.Context) error {
	s.listeners.Run(ctx)
	s.listeners.Close()
	return nil
}
