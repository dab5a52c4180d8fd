// Package dnsserver answers DNS questions with authority, on port 53 of a node, over UDP
// and TCP.
//
// Start with [Server]. What it answers is in package zone, a pure function; this package
// owns the sockets, the header checks, EDNS(0), truncation and the limits. The addresses
// that a node answers on come and go with its VIPs: [Server.Listen] names the wanted set,
// and [Server.Run], which owns every socket and goroutine, makes it so. Each address has
// a UDP socket and a TCP listener of its own, so that a reply leaves from the address that
// was asked.
//
// UDP is one goroutine a socket with buffers of its own, never one a datagram: a flood
// costs datagrams, not memory. Nothing here recurses, forwards, or answers for a name
// outside its zones (RFC 5358).
package dnsserver

import (
	"context"
	"hash/maphash"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
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

	want   chan []netip.Addr // capacity 1: the newest wanted set
	failed chan struct{}     // capacity 1: an endpoint has failed
	mu     sync.Mutex
	bound  []netip.AddrPort
}

// New returns a server without zones, which refuses every question. It opens nothing.
func New(c Config) *Server {
	s := &Server{c: c, seed: maphash.MakeSeed(), want: make(chan []netip.Addr, 1), failed: make(chan struct{}, 1)}
	s.conns.open = map[*conn]struct{}{}
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

// Listening returns where questions are answered now, over UDP and TCP alike.
func (s *Server) Listening() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bound)
}

// retry is the pause before an address that could not be had is tried again. The usual
// cause is a peer on the same machine that has not let go of it yet.
const retry = 100 * time.Millisecond

// Run answers until ctx ends. Then, and when an address is no longer wanted, its sockets
// and connections are closed at once: whoever asks repeats the question elsewhere.
func (s *Server) Run(ctx context.Context) error {
	var (
		open     = map[netip.Addr]*endpoint{}
		want     []netip.Addr
		told     = map[netip.Addr]string{} // the error last logged
		tryAgain = time.NewTimer(0)
	)
	for {
		select {
		case want = <-s.want:
		case <-s.failed:
		case <-tryAgain.C:
		case <-ctx.Done():
			for _, e := range open {
				e.close()
			}
			s.setBound(nil)
			return nil
		}
		for a, e := range open {
			if e.failed.Load() || !slices.Contains(want, a) {
				e.close()
				delete(open, a)
				s.setBound(open)
				s.c.Log.Info("DNS address closed", "addr", a)
			}
		}
		maps.DeleteFunc(told, func(a netip.Addr, _ string) bool { return !slices.Contains(want, a) })
		for _, a := range want {
			if open[a] != nil {
				continue
			}
			e, err := s.open(a)
			if err != nil {
				tryAgain.Reset(retry)
				if told[a] != err.Error() {
					told[a] = err.Error()
					s.c.Log.Warn("DNS address not opened", "addr", a, "err", err)
				}
				continue
			}
			delete(told, a)
			open[a] = e
			s.setBound(open)
			s.c.Log.Info("DNS address opened", "addr", a)
		}
	}
}

func (s *Server) setBound(open map[netip.Addr]*endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound = nil
	for _, e := range open {
		s.bound = append(s.bound, e.addr)
	}
	slices.SortFunc(s.bound, netip.AddrPort.Compare)
}
