// Package listen keeps the sockets of a server in step with the addresses of its node.
//
// Start with [Listeners]. A node holds some addresses, and may come to hold others at any
// moment. The sockets of those can be kept open as well: they are its standby. A VIP that is
// claimed is then served in the same instant, and nobody meets a closed door while the
// server hears of it. Nodes that share a kernel, as on loopback, have no standby: one node's
// socket would keep the other's from being opened.
//
// [Listeners.Run] owns the endpoints and calls their methods; everyone else says what is
// wanted, and sees what serves. IP_FREEBIND is ip(7).
package listen

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Endpoint is what a server has open on one address.
type Endpoint interface {
	// Open opens what is not open yet; it is called for each look at the addresses. It
	// reports whether clients are served. With an error something is missing still, and
	// Open is called again after the pause of the configuration.
	Open() (serves bool, err error)

	// Hold says that the node holds the address from now on, or that it is only to be
	// ready for it: then whoever is connected cannot be answered any more.
	Hold(held bool)

	// Close ends it all, whether or not anything is open. It must not wait for clients.
	Close()
}

// Config is what [Listeners] need and never change.
type Config[E Endpoint] struct {
	What  string             // an address in the log: "DNS address"
	New   func(netip.Addr) E // must open nothing
	Retry time.Duration      // the pause before what could not be opened is tried again
	Log   *slog.Logger
}

// Listeners are the endpoints of a server, one an address.
type Listeners[E Endpoint] struct {
	c       Config[E]
	changed chan struct{} // capacity 1: there is something to look at

	mu      sync.Mutex
	held    []netip.Addr
	standby []netip.Addr
	serving []E

	places map[netip.Addr]*place[E] // of Run
}

// place is one address.
type place[E Endpoint] struct {
	endpoint     E
	held, serves bool
	err          string // the error last logged
}

// New returns listeners without an address.
func New[E Endpoint](c Config[E]) *Listeners[E] {
	return &Listeners[E]{c: c, changed: make(chan struct{}, 1), places: map[netip.Addr]*place[E]{}}
}

// Listen names the addresses that the node holds, and those to be ready for besides, in
// place of those named before; an address in both is held. It never blocks; Run makes it so.
func (l *Listeners[E]) Listen(held, standby []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Equal(held, l.held) && slices.Equal(standby, l.standby) {
		return
	}
	l.held, l.standby = slices.Clone(held), slices.Clone(standby)
	l.Look()
}

// Look has Run look at the endpoints, as it does when addresses come or go. It never blocks.
func (l *Listeners[E]) Look() {
	select {
	case l.changed <- struct{}{}:
	default: // it is about to
	}
}

// Serving returns the endpoints that serve clients on addresses that are held, in the order
// of the addresses.
func (l *Listeners[E]) Serving() []E {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.serving)
}

// Run keeps the endpoints in step with what is wanted until ctx ends. It closes nothing
// then: see [Listeners.Close].
func (l *Listeners[E]) Run(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.changed:
		case <-again.C:
		}
		if !l.match(l.wanted()) {
			again.Reset(l.c.Retry)
		}
	}
}

// Close closes all endpoints, after the end of Run.
func (l *Listeners[E]) Close() { l.match(nil) }

// wanted returns the addresses that are wanted, and whether they are held.
func (l *Listeners[E]) wanted() map[netip.Addr]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := make(map[netip.Addr]bool, len(l.held)+len(l.standby))
	for _, a := range l.standby {
		want[a] = false
	}
	for _, a := range l.held {
		want[a] = true
	}
	return want
}

// match closes what is not wanted and opens what is. It reports whether all of that could be
// had.
func (l *Listeners[E]) match(want map[netip.Addr]bool) bool {
	served := l.publish()
	for a, p := range l.places {
		held, ok := want[a]
		if p.held && !held && ok {
			p.held = false
			p.endpoint.Hold(false)
		}
		if !ok {
			p.endpoint.Close()
			delete(l.places, a)
		}
	}
	complete := true
	for a, held := range want {
		complete = l.open(a, held) && complete
	}
	serves := l.publish()
	for _, a := range served {
		if !slices.Contains(serves, a) {
			l.c.Log.Info(l.c.What+" closed", "addr", a)
		}
	}
	for _, a := range serves {
		if !slices.Contains(served, a) {
			l.c.Log.Info(l.c.What+" opened", "addr", a)
		}
	}
	return complete
}

// open opens what a lacks, and reports whether all of that could be had.
func (l *Listeners[E]) open(a netip.Addr, held bool) bool {
	p := l.places[a]
	if p == nil {
		p = &place[E]{endpoint: l.c.New(a)}
		l.places[a] = p
	}
	if held && !p.held {
		p.held = true
		p.endpoint.Hold(true)
	}
	var err error
	if p.serves, err = p.endpoint.Open(); err == nil {
		p.err = ""
		return true
	}
	if text := err.Error(); text != p.err {
		p.err = text
		l.c.Log.Warn(l.c.What+" not opened", "addr", a, "err", err)
	}
	return false
}

// publish makes known what serves, and returns where.
func (l *Listeners[E]) publish() []netip.Addr {
	var addrs []netip.Addr
	for a, p := range l.places {
		if p.held && p.serves {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = nil
	for _, a := range addrs {
		l.serving = append(l.serving, l.places[a].endpoint)
	}
	return addrs
}

// Freebind binds an address whether or not the kernel has it yet. It takes no privileges.
var Freebind = net.ListenConfig{Control: freebind}

func freebind(network, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		if network[len(network)-1] == '6' {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	}); e != nil {
		return e
	}
	return err
}
