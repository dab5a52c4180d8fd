package heartbeat

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/nstest"
)

// TestSockets exchanges reports over the sockets of a real kernel, by multicast and
// unicast and in both families. It runs in a network namespace of its own, which has an
// interface that carries multicast.
func TestSockets(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	setUpNetwork(t)
	for _, test := range []struct {
		name, link, group string
		hosts             []string
		mode, want        Mode
	}{
		{"multicast IPv4", "wire0", "239.255.79.47", []string{"198.51.100.1", "198.51.100.2"}, Multicast, Multicast},
		{"multicast IPv6", "wire0", "ff05::4f2f", []string{"2001:db8::1", "2001:db8::2"}, Multicast, Multicast},
		{"auto on a LAN", "wire0", "239.255.79.47", []string{"198.51.100.1", "198.51.100.2"}, Auto, Auto},
		{"auto on loopback", "lo", "239.255.79.47", []string{"127.0.0.11", "127.0.0.12"}, Auto, Unicast},
		{"unicast IPv6", "wire0", "", []string{"2001:db8::1", "2001:db8::2"}, Unicast, Unicast},
	} {
		t.Run(test.name, func(t *testing.T) {
			ring, err := keys.NewRing(keys.Generate())
			if err != nil {
				t.Fatal(err)
			}
			c := Config{
				Incarnation: 1, Sealer: ring.Sealer(keys.LabelReport), Site: "test", Document: document, OfflineAfter: 3, Port: 7947,
				Exchange: test.mode, Interface: test.link, Log: slog.New(slog.DiscardHandler),
			}
			if test.group != "" {
				c.Group = netip.MustParseAddr(test.group)
			}
			for i, h := range test.hosts {
				p := Peer{ID: balancing.NodeID([]string{"n1", "n2"}[i]), Capacity: 1}
				if test.want == Unicast { // by multicast, addresses are learned
					p.Address = netip.MustParseAddr(h)
				}
				c.Nodes = append(c.Nodes, p)
			}
			var all []*Exchange
			for i, h := range test.hosts {
				c.Self, c.Address = c.Nodes[i].ID, netip.MustParseAddr(h)
				x, err := New(c)
				if err != nil {
					t.Fatal(err)
				}
				if x.mode != test.want {
					t.Errorf("mode %v, want %v", x.mode, test.want)
				}
				run(t, x)
				all = append(all, x)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i, x := range all {
				other := all[1-i]
				for {
					own := test.want != Multicast || x.Counters().Own > 0 // multicast comes back
					if n := x.View().Node(other.c.Self); own && n.Online && n.Address == other.c.Address {
						break
					}
					select {
					case <-tick.C:
					case <-ctx.Done():
						t.Fatalf("%s does not hear %s: %+v", x.c.Self, other.c.Self, x.Counters())
					}
				}
			}
			for _, x := range all {
				if n := x.Counters(); n.Refused() > 0 {
					t.Errorf("%s counted %+v", x.c.Self, n)
				}
			}
		})
	}
}

// TestSocketsChangeLive goes from one way and network to another with the sockets of a real
// kernel, where one address cannot be bound twice.
func TestSocketsChangeLive(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	setUpNetwork(t)
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	v4 := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	v6 := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	group4, group6 := netip.MustParseAddr("239.255.79.47"), netip.MustParseAddr("ff05::4f2f")
	config := func(i int, mode Mode, hosts []netip.Addr, group netip.Addr) Config {
		c := Config{
			Self: []balancing.NodeID{"n1", "n2"}[i], Address: hosts[i], Incarnation: 1, Sealer: ring.Sealer(keys.LabelReport), Site: "test",
			Document: document, OfflineAfter: 20, Port: 7947, Exchange: mode, Interface: "wire0", Group: group, Log: slog.New(slog.DiscardHandler),
		}
		c.Document.Period = balancing.MinPeriod
		for i, h := range hosts {
			c.Nodes = append(c.Nodes, Peer{ID: []balancing.NodeID{"n1", "n2"}[i], Address: h, Capacity: 1})
		}
		return c
	}
	var all []*Exchange
	for i := range v4 {
		x, err := New(config(i, Unicast, v4, group4))
		if err != nil {
			t.Fatal(err)
		}
		run(t, x)
		all = append(all, x)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	exchanged := func(step string, want func(*balancing.Node) bool) {
		t.Helper()
		var from []uint64
		for _, x := range all {
			from = append(from, x.Counters().Accepted)
		}
		for i, x := range all {
			for other := all[1-i].c.Self; ; {
				if n := x.View().Node(other); x.Counters().Accepted > from[i]+2 && n.Online && want(n) {
					break
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					t.Fatalf("%s: %s does not hear %s: %+v", step, x.c.Self, other, x.Counters())
				}
			}
		}
	}
	byUnicast := func(n *balancing.Node) bool { return !n.ByMulticast }
	byMulticast := func(n *balancing.Node) bool { return n.ByMulticast }
	exchanged("unicast", byUnicast)
	for _, step := range []struct {
		name  string
		mode  Mode
		hosts []netip.Addr
		group netip.Addr
		want  func(*balancing.Node) bool
	}{
		{"the same address, multicast as well", Auto, v4, group4, byMulticast},
		{"another group", Multicast, v4, netip.MustParseAddr("239.255.79.48"), byMulticast},
		{"no multicast again", Unicast, v4, group4, byUnicast},
		{"by question", Query, v4, group4, byUnicast},
		{"the other family", Multicast, v6, group6, byMulticast},
		{"the other family, unicast", Unicast, v6, group6, byUnicast},
	} {
		for i, x := range all {
			if err := x.Reconfigure(config(i, step.mode, step.hosts, step.group)); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		exchanged(step.name, step.want)
	}
	// An address that the machine has not, and a group that cannot be joined there.
	for name, c := range map[string]Config{
		"address":   config(0, Unicast, []netip.Addr{netip.MustParseAddr("203.0.113.9"), v6[1]}, group6),
		"interface": config(0, Multicast, v6, group4),
	} {
		if err := all[0].Reconfigure(c); err == nil {
			t.Errorf("another %s: no error", name)
		}
		exchanged("after another "+name+" that cannot be had", byUnicast)
	}
}

// run runs x until the test ends.
func run(t *testing.T, x *Exchange) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func setUpNetwork(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire0"
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire1"})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel makes no interface for us: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "wire1", "wire0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "wire0" {
			for _, text := range []string{"198.51.100.1/24", "198.51.100.2/24", "2001:db8::1/64", "2001:db8::2/64"} {
				a, err := netlink.ParseAddr(text)
				if err != nil {
					t.Fatal(err)
				}
				if a.IP.To4() == nil {
					a.Flags = unix.IFA_F_NODAD
				}
				if err := netlink.AddrAdd(l, a); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}
