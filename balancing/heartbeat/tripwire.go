package heartbeat

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"peerage/balancing"
)

// A tripwire is a connection to a peer over which nothing is ever said. When the peer's
// process dies, its kernel closes the connection, and that comes sooner than any silence
// is noticed. It proves nothing, for a connection may be cut by others: the peer is asked.
const (
	wireDial  = 2 * time.Second        // for a connection to come about
	wirePause = time.Second            // before the next attempt, at least; twice that at most
	wireCheck = 10 * time.Second       // of silence before the kernel asks whether the peer's is there still
	wireSound = 100 * time.Millisecond // who ends a connection sooner has not taken it
	maxWires  = 2 * balancing.MaxNodes
	maxPeer   = 2 // of them from one peer
)

// tripwires connects this node with its peers, as an Exchange says who they are.
type tripwires struct {
	x      *Exchange
	listen net.Listener
	end    context.CancelFunc
	tasks  sync.WaitGroup

	mu  sync.Mutex
	out map[balancing.NodeID]netip.Addr // where a connection is kept, or tried for
	in  map[net.Conn]struct{}
}

// stringTripwires keeps connections to the peers, and those of the peers to local, until
// close.
func stringTripwires(x *Exchange, local netip.AddrPort) (*tripwires, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	w := &tripwires{x: x, listen: l, end: end, out: map[balancing.NodeID]netip.Addr{}, in: map[net.Conn]struct{}{}}
	w.tasks.Go(func() { w.accept(ctx) })
	w.tasks.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *tripwires) close() {
	w.end()
	w.listen.Close()
	w.tasks.Wait()
}

func (w *tripwires) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		w.string(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// string begins a connection to each peer that is on-line and has none.
func (w *tripwires) string(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, at := range w.x.reachable() {
		if _, has := w.out[id]; has {
			continue
		}
		w.out[id] = at
		w.tasks.Go(func() {
			w.keep(ctx, id, at)
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.out, id)
		})
	}
}

// keep connects to a peer once, and says when the connection has ended.
func (w *tripwires) keep(ctx context.Context, id balancing.NodeID, at netip.Addr) {
	local := w.listen.Addr().(*net.TCPAddr)
	d := net.Dialer{
		Timeout: wireDial, LocalAddr: &net.TCPAddr{IP: local.IP},
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: wireCheck, Interval: wireCheck, Count: 2},
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(at, uint16(local.Port)).String())
	if err == nil {
		began := time.Now()
		err = await(ctx, c)
		if time.Since(began) >= wireSound && ctx.Err() == nil && !errors.Is(err, unix.ETIMEDOUT) && !errors.Is(err, unix.EHOSTUNREACH) {
			w.x.cut(id)
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(wirePause + rand.N(wirePause)):
	}
}

// await closes c when the other side has ended it, or said something, which no peer does;
// or when ctx ends.
func await(ctx context.Context, c net.Conn) error {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, err := io.Copy(io.Discard, io.LimitReader(c, 1))
	c.Close()
	return err
}

// accept holds what the peers connect, until they end it or ctx does.
func (w *tripwires) accept(ctx context.Context) {
	for {
		c, err := w.listen.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select { // no descriptors, or no memory
			case <-ctx.Done():
			case <-time.After(wirePause):
			}
			continue
		}
		w.mu.Lock()
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if len(w.in) >= maxWires || w.from(from) >= maxPeer || !w.x.knows(from) {
			w.mu.Unlock()
			c.Close()
			continue
		}
		w.in[c] = struct{}{}
		w.tasks.Go(func() {
			await(ctx, c)
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.in, c)
		})
		w.mu.Unlock()
	}
}

// from counts the connections from an address. w.mu is held.
func (w *tripwires) from(a netip.Addr) (n int) {
	for c := range w.in {
		if c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() == a {
			n++
		}
	}
	return n
}

// reachable returns the peers that are on-line, and where reports go to them.
func (x *Exchange) reachable() map[balancing.NodeID]netip.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := map[balancing.NodeID]netip.Addr{}
	for _, p := range x.peers.list {
		if p.Online && p.reach.IsValid() {
			all[p.ID] = p.reach
		}
	}
	return all
}

// knows reports whether a peer sends its reports from an address.
func (x *Exchange) knows(from netip.Addr) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.peers.list {
		if p.reach == from {
			return true
		}
	}
	return false
}

// cut takes the word that the connection to a peer has ended.
func (x *Exchange) cut(id balancing.NodeID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.peers.close(id, time.Now())
	signal(x.cuts)
}
