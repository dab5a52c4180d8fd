package takeover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// LoopbackLink is a [Link] without privileges for nodes that are processes of one
// machine. On the loopback interface every address is local already, so a VIP is
// claimed by binding a UDP socket to it, which only one process at a time can do. The
// kernel frees the address of a process that dies.
type LoopbackLink struct {
	port uint16

	mu   sync.Mutex
	held map[netip.Addr]*net.UDPConn
}

// Loopback returns a [Link] that claims a VIP by binding the UDP port on it. All nodes
// must use the same port, and nothing else on the machine may be bound to it on the
// wildcard address. The caller closes it.
func Loopback(port uint16) *LoopbackLink {
	return &LoopbackLink{port: port, held: make(map[netip.Addr]*net.UDPConn)}
}

// Close gives up all VIPs.
func (l *LoopbackLink) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for vip, c := range l.held {
		errs = append(errs, c.Close())
		delete(l.held, vip)
	}
	return errors.Join(errs...)
}

// Addrs returns what this link has bound.
func (l *LoopbackLink) Addrs(context.Context) ([]netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.held)), nil
}

// Add binds vip. It fails if another process has bound it.
func (l *LoopbackLink) Add(_ context.Context, vip netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[vip] != nil {
		return nil
	}
	c, err := l.bind(vip)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("claim %s: held by another process", vip)
	}
	if err != nil {
		return fmt.Errorf("claim %s: %w", vip, err)
	}
	l.held[vip] = c
	return nil
}

// Remove closes the socket of vip.
func (l *LoopbackLink) Remove(_ context.Context, vip netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.held[vip]
	if c == nil {
		return nil
	}
	delete(l.held, vip)
	if err := c.Close(); err != nil {
		return fmt.Errorf("release %s: %w", vip, err)
	}
	return nil
}

// Announce does nothing: there are no neighbours on loopback.
func (l *LoopbackLink) Announce(context.Context, netip.Addr) error { return nil }

// Probe reports whether another process has bound vip.
func (l *LoopbackLink) Probe(_ context.Context, vip netip.Addr) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[vip] != nil {
		return false, nil
	}
	c, err := l.bind(vip)
	if errors.Is(err, syscall.EADDRINUSE) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("probe for %s: %w", vip, err)
	}
	return false, c.Close()
}

// Confirm does nothing: there is no gateway on loopback.
func (l *LoopbackLink) Confirm(context.Context, netip.Addr) (bool, error) { return true, nil }

// Gateways returns none.
func (l *LoopbackLink) Gateways(context.Context) ([]netip.Addr, error) { return nil, nil }

// Fence does nothing: the address of a process that dies is free at once. That of one that
// is frozen is not.
func (l *LoopbackLink) Fence(context.Context, []netip.Addr, time.Duration) error { return nil }

// Watch sees nothing: nobody else has a hand in the sockets of this process.
func (l *LoopbackLink) Watch(ctx context.Context, _ []netip.Addr, _ func(Sighting)) error {
	<-ctx.Done()
	return nil
}

func (l *LoopbackLink) bind(vip netip.Addr) (*net.UDPConn, error) {
	if !vip.IsLoopback() {
		return nil, errors.New("not a loopback address")
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, l.port)))
	if err != nil {
		return nil, err
	}
	// Nobody reads it: let the kernel keep as little as it can of what strays here.
	if err := c.SetReadBuffer(1); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
