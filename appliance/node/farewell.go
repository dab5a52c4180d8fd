package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// farewells tell the clients of VIPs that go to a peer to go as well.
type farewells struct {
	mu    sync.Mutex
	under map[netip.Addr]context.CancelFunc
	tasks sync.WaitGroup
}

// bid makes those of m the VIPs that go.
func (s *server) bid(m *leaving) {
	f := &s.farewells
	f.mu.Lock()
	defer f.mu.Unlock()
	for vip, cancel := range f.under {
		if !slices.Contains(m.VIPs, vip) {
			cancel()
			delete(f.under, vip)
		}
	}
	s.edge.Stay(m.Stay)
	for _, vip := range m.VIPs {
		if _, has := f.under[vip]; has {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		if f.under == nil {
			f.under = map[netip.Addr]context.CancelFunc{}
		}
		f.under[vip] = cancel
		f.tasks.Go(func() {
			if s.edge.Leave(ctx, []netip.Addr{vip}) == nil {
				s.guard.send(toGuard{Left: &left{VIP: vip}}) // if it is gone, so are the VIPs
			}
		})
	}
}

// end ends all farewells, and waits for them.
func (f *farewells) end() {
	f.mu.Lock()
	for _, cancel := range f.under {
		cancel()
	}
	f.mu.Unlock()
	f.tasks.Wait()
}
