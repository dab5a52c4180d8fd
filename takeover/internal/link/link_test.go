package link_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"peerage/balancing/nstest"
	"peerage/takeover"
	"peerage/takeover/internal/link"
	"peerage/takeover/linktest"
)

// The two ends of the wire in the namespace. Both are in the same one: a kernel answers
// for an address on the interface that it is asked on.
const (
	near = "near0"
	far  = "far0"
)

var (
	vip4     = netip.MustParseAddr("192.0.2.11")
	vip6     = netip.MustParseAddr("2001:db8::11")
	gateway4 = netip.MustParseAddr("198.51.100.1")
	gateway6 = netip.MustParseAddr("2001:db8:1::1")
	vips     = []netip.Addr{vip4, vip6, netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("2001:db8::12")}
)

// TestInNamespace runs the tests of this file that need a network of their own, in a
// child process that has one. It needs no privileges but that to make user namespaces.
func TestInNamespace(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	setUpNetwork(t)
	t.Run("keeps the contract of a link", testContract)
	t.Run("loopback keeps addresses without neighbours", testLoopback)
	t.Run("adds addresses as VIPs", testAddressFlags)
	t.Run("the kernel takes away what is not added again", testLease)
	t.Run("says that an interface is gone", testInterfaceGone)
	t.Run("sets sysctls", testSysctls)
	t.Run("IPv4 announcement reaches the neighbours", testAnnounceIPv4)
	t.Run("IPv6 announcement reaches the neighbours", testAnnounceIPv6)
	t.Run("announces without a gateway", testAnnounceWithoutGateway)
	t.Run("announces when the interface has been made again", testAnnounceOnNewInterface)
	t.Run("a neighbour's cache follows the announcement", testNeighbourCache)
	t.Run("a probe teaches the neighbours nothing", testProbeIsSilent)
	t.Run("the gateway confirms what it has learned", testConfirm)
	t.Run("a watch sees other stations", testWatchStations)
	t.Run("a watch sees what becomes of the interface", testWatchInterface)
	t.Run("an ended context ends a probe", testContextEnds)
}

// setUpNetwork lays a wire from near to far, and gives near a gateway at its other end.
func setUpNetwork(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = near
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel makes no veth pair for us: %v", err)
	}
	must(t, err)
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	must(t, netlink.LinkSubscribe(updates, done))
	for _, name := range []string{"lo", near, far} {
		must(t, netlink.LinkSetUp(byName(t, name)))
	}
	for running := map[string]bool{}; !running[near] || !running[far]; {
		select {
		case u := <-updates:
			running[u.Attrs().Name] = u.Attrs().RawFlags&unix.IFF_RUNNING != 0
		case <-t.Context().Done():
			t.Fatal("the wire does not come up")
		}
	}
	for prefix, gateway := range map[string]netip.Addr{"198.51.100.2/24": gateway4, "2001:db8:1::2/64": gateway6} {
		a, err := netlink.ParseAddr(prefix)
		must(t, err)
		a.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(byName(t, near), a))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: byName(t, near).Attrs().Index, Gw: gateway.AsSlice()}))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func byName(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func open(t *testing.T, name string) *link.Interface {
	t.Helper()
	i, err := link.Open(name, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { i.Close() })
	return i
}

// unfenced is an interface as a link without a fence, of which there is one a machine.
type unfenced struct{ *link.Interface }

func (unfenced) Fence(context.Context, []netip.Addr, time.Duration) error { return nil }

func testContract(t *testing.T) {
	contract := func(t *testing.T, near, far string) {
		linktest.TestLink(t, vips, func(t *testing.T) (mine, other takeover.Link) {
			return unfenced{open(t, near)}, unfenced{open(t, far)}
		})
	}
	contract(t, near, far)
	t.Run("on a VLAN", func(t *testing.T) {
		for _, name := range []string{near, far} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.ParentIndex = name+".7", byName(t, name).Attrs().Index
			add(t, &netlink.Vlan{LinkAttrs: attrs, VlanId: 7})
		}
		contract(t, near+".7", far+".7")
	})
	t.Run("on a bond", func(t *testing.T) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "leg0"
		add(t, &netlink.Veth{LinkAttrs: attrs, PeerName: "bonded0"})
		bond := netlink.NewLinkBond(netlink.NewLinkAttrs())
		bond.Name, bond.Mode = "bond7", netlink.BOND_MODE_ACTIVE_BACKUP
		add(t, bond)
		must(t, netlink.LinkSetDown(byName(t, "leg0")))
		must(t, netlink.LinkSetMaster(byName(t, "leg0"), byName(t, "bond7")))
		must(t, netlink.LinkSetUp(byName(t, "bonded0")))
		contract(t, "bond7", "bonded0")
	})
}

// add makes an interface for the time of the test, if the kernel can.
func add(t *testing.T, l netlink.Link) {
	t.Helper()
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel makes no %s for us: %v", l.Type(), err)
	}
	must(t, err)
	t.Cleanup(func() { netlink.LinkDel(l) })
	must(t, netlink.LinkSetUp(l))
}

func testLoopback(t *testing.T) {
	lo := open(t, "lo")
	for _, vip := range vips {
		must(t, lo.Add(t.Context(), vip))
		must(t, lo.Announce(t.Context(), vip))
		if answered, err := lo.Probe(t.Context(), vip); answered || err != nil {
			t.Errorf("probe for %s on loopback: got %v, %v; want false", vip, answered, err)
		}
		must(t, lo.Remove(t.Context(), vip))
	}
}

// testLease waits for the kernel: the address of a process that has died does not stay.
func testLease(t *testing.T) {
	i := open(t, near)
	renewed, left := vip4, vip6
	must(t, i.Add(t.Context(), renewed))
	must(t, i.Add(t.Context(), left))
	defer i.Remove(t.Context(), renewed)
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		must(t, i.Add(t.Context(), renewed))
		there, err := i.Addrs(t.Context())
		must(t, err)
		if !slices.Contains(there, renewed) {
			t.Fatalf("%s is gone after %v, although it was renewed", renewed, time.Since(began))
		}
		if !slices.Contains(there, left) {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s stays", left)
		}
		<-tick.C
	}
	if d := time.Since(began); d < time.Second {
		t.Errorf("%s was gone after %v, want it to stay for about 2 s", left, d)
	}
}

func testAddressFlags(t *testing.T) {
	i := open(t, near)
	for _, vip := range []netip.Addr{vip4, vip6} {
		must(t, i.Add(t.Context(), vip))
		defer i.Remove(t.Context(), vip)
	}
	all, err := netlink.AddrList(byName(t, near), netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range all {
		switch addr, _ := netip.AddrFromSlice(a.IP); addr.Unmap() {
		case vip4:
			if ones, _ := a.Mask.Size(); ones != 32 || a.Scope != unix.RT_SCOPE_UNIVERSE {
				t.Errorf("IPv4 VIP: got length %d, scope %d; want 32, global", ones, a.Scope)
			}
		case vip6:
			want := unix.IFA_F_NODAD | unix.IFA_F_DEPRECATED // never tentative, never a source
			if ones, _ := a.Mask.Size(); ones != 128 || a.Flags&unix.IFA_F_TENTATIVE != 0 || a.Flags&want != want {
				t.Errorf("IPv6 VIP: got length %d, flags %#x; want 128, flags %#x", ones, a.Flags, want)
			}
		}
	}
}

func testInterfaceGone(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "brief0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	i := open(t, "brief0")
	must(t, netlink.LinkDel(byName(t, "brief0")))
	for what, err := range map[string]error{
		"claim 192.0.2.11 on brief0":    i.Add(t.Context(), vip4),
		"release 192.0.2.11 on brief0":  i.Remove(t.Context(), vip4),
		"announce 192.0.2.11 on brief0": i.Announce(t.Context(), vip4),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), what) {
			t.Errorf("got %v, want an error that begins with %q", err, what)
		}
	}
	if _, err := link.Open("brief0", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opening an interface that is gone: got no error")
	}
}

func testSysctls(t *testing.T) {
	open(t, near)
	for key, want := range map[string]string{"arp_ignore": "1", "arp_announce": "2", "promote_secondaries": "1"} {
		got, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + near + "/" + key)
		must(t, err)
		if strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

// sniffer reads what arrives at the far end.
func sniffer(t *testing.T, etherType int) *packet.Conn {
	t.Helper()
	ifi, err := net.InterfaceByName(far)
	must(t, err)
	c, err := packet.Listen(ifi, packet.Datagram, etherType, nil)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second))) // only ever reached by a failure
	return c
}

// next returns the next line that describe makes of a packet, "" for those of no
// interest.
func next(t *testing.T, c *packet.Conn, describe func([]byte) string) string {
	t.Helper()
	var buf [1500]byte
	for {
		n, from, err := c.ReadFrom(buf[:])
		must(t, err)
		if s := describe(buf[:n]); s != "" && from.String() == mac(t) {
			return s
		}
	}
}

// mac is the address of the near end.
func mac(t *testing.T) string { return byName(t, near).Attrs().HardwareAddr.String() }

func expect(t *testing.T, c *packet.Conn, describe func([]byte) string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := next(t, c, describe); got != w {
			t.Errorf("frame at the neighbour: got %q, want %q", got, w)
		}
	}
}

func describeARP(b []byte) string {
	var p arp.Packet
	if err := p.UnmarshalBinary(b); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("op %d from %s %s to %s %s", p.Operation, p.SenderIP, p.SenderHardwareAddr, p.TargetIP, p.TargetHardwareAddr)
}

func describeNDP(b []byte) string {
	h, err := ipv6.ParseHeader(b)
	if err != nil || h.NextHeader != unix.IPPROTO_ICMPV6 || !slices.Contains([]byte{135, 136}, b[ipv6.HeaderLen]) {
		return ""
	}
	m, err := ndp.ParseMessage(b[ipv6.HeaderLen:])
	if err != nil {
		return err.Error()
	}
	words := []string{fmt.Sprintf("from %s to %s hop limit %d", h.Src, h.Dst, h.HopLimit)}
	var options []ndp.Option
	switch m := m.(type) {
	case *ndp.NeighborAdvertisement:
		words = append(words, fmt.Sprintf("NA %s solicited %v override %v", m.TargetAddress, m.Solicited, m.Override))
		options = m.Options
	case *ndp.NeighborSolicitation:
		words = append(words, fmt.Sprintf("NS %s", m.TargetAddress))
		options = m.Options
	}
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok {
			words = append(words, fmt.Sprintf("option %d %s", l.Direction, l.Addr))
		}
	}
	return strings.Join(words, " ")
}

func testAnnounceIPv4(t *testing.T) {
	c := sniffer(t, unix.ETH_P_ARP)
	must(t, open(t, near).Announce(t.Context(), vip4))
	m := mac(t)
	expect(t, c, describeARP,
		"op 1 from 192.0.2.11 "+m+" to 192.0.2.11 00:00:00:00:00:00",
		"op 2 from 192.0.2.11 "+m+" to 192.0.2.11 "+m,
		"op 1 from 192.0.2.11 "+m+" to 198.51.100.1 00:00:00:00:00:00")
}

func testAnnounceIPv6(t *testing.T) {
	c := sniffer(t, unix.ETH_P_IPV6)
	must(t, open(t, near).Announce(t.Context(), vip6))
	m := mac(t)
	expect(t, c, describeNDP,
		"from 2001:db8::11 to ff02::1 hop limit 255 NA 2001:db8::11 solicited false override true option 2 "+m,
		"from 2001:db8::11 to ff02::1:ff00:1 hop limit 255 NS 2001:db8:1::1 option 1 "+m)
}

func testAnnounceWithoutGateway(t *testing.T) {
	back := open(t, far) // has none
	for _, vip := range []netip.Addr{vip4, vip6} {
		must(t, back.Announce(t.Context(), vip))
	}
}

func testAnnounceOnNewInterface(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "again0"
	var i *link.Interface
	for range 2 {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer0"}))
		must(t, netlink.LinkSetUp(byName(t, "again0")))
		if i == nil {
			i = open(t, "again0")
		}
		for range 2 {
			must(t, i.Announce(t.Context(), vip4))
		}
		must(t, netlink.LinkSetDown(byName(t, "again0")))
		if err := i.Announce(t.Context(), vip4); !errors.Is(err, unix.ENETDOWN) {
			t.Errorf("announcement on an interface that is down: got %v, want %v", err, unix.ENETDOWN)
		}
		must(t, netlink.LinkSetUp(byName(t, "again0")))
		must(t, i.Announce(t.Context(), vip4))
		must(t, netlink.LinkDel(byName(t, "again0")))
	}
}

// The far end knows the VIP by the address of a node that is gone; after the
// announcement by that of the near end.
func testNeighbourCache(t *testing.T) {
	i, index := open(t, near), byName(t, far).Attrs().Index
	for _, vip := range []netip.Addr{vip4, vip6} {
		family := netlink.FAMILY_V4
		if vip.Is6() {
			family = netlink.FAMILY_V6
		}
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: index, Family: family, State: netlink.NUD_STALE,
			IP: vip.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		}))
		updates, done := make(chan netlink.NeighUpdate, 16), make(chan struct{})
		must(t, netlink.NeighSubscribe(updates, done))
		must(t, i.Announce(t.Context(), vip))
		for moved := false; !moved; {
			all, err := netlink.NeighList(index, family)
			must(t, err)
			moved = slices.ContainsFunc(all, func(n netlink.Neigh) bool {
				return n.IP.Equal(vip.AsSlice()) && n.HardwareAddr.String() == mac(t)
			})
			if !moved {
				select {
				case <-updates:
				case <-time.After(10 * time.Second):
					t.Fatalf("the neighbour's entry for %s does not move: %v", vip, all)
				}
			}
		}
		close(done)
	}
}

func testProbeIsSilent(t *testing.T) {
	i := open(t, near)
	m := mac(t)
	arps, ndps := sniffer(t, unix.ETH_P_ARP), sniffer(t, unix.ETH_P_IPV6)
	for _, vip := range []netip.Addr{vip4, vip6} {
		if answered, err := i.Probe(t.Context(), vip); answered || err != nil {
			t.Errorf("probe for %s: got %v, %v; want false", vip, answered, err)
		}
	}
	question := "op 1 from 0.0.0.0 " + m + " to 192.0.2.11 00:00:00:00:00:00"
	expect(t, arps, describeARP, question, question)
	question = "from :: to ff02::1:ff00:11 hop limit 255 NS 2001:db8::11"
	expect(t, ndps, describeNDP, question, question)
}

func testConfirm(t *testing.T) {
	i, gateway := open(t, near), open(t, far)
	want := []netip.Addr{gateway4, gateway6}
	if got, err := i.Gateways(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("gateways: %v, %v; want %v", got, err, want)
	}
	if got, err := gateway.Gateways(t.Context()); err != nil || len(got) > 0 {
		t.Errorf("gateways of an interface without: %v, %v", got, err)
	}
	confirmed := func(vip netip.Addr, want bool) {
		t.Helper()
		if got, err := i.Confirm(t.Context(), vip); err != nil || got != want {
			t.Errorf("%s confirmed: %v, %v; want %v", vip, got, err, want)
		}
	}
	for _, c := range []struct{ vip, gateway netip.Addr }{{vip4, gateway4}, {vip6, gateway6}} {
		confirmed(c.vip, false)
		must(t, gateway.Add(t.Context(), c.gateway))
		confirmed(c.vip, true)
		must(t, gateway.Remove(t.Context(), c.gateway))
		if got, err := gateway.Confirm(t.Context(), c.vip); err != nil || !got {
			t.Errorf("without a gateway: %v, %v; want nothing to be learned", got, err)
		}
	}
}

// watched returns what a watch of i sees, while the test goes on.
func watched(t *testing.T, i *link.Interface) <-chan link.Sighting {
	seen := make(chan link.Sighting, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Watch(ctx, vips, func(s link.Sighting) { seen <- s }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return seen
}

// see waits for a sighting while it has done happen what leads to it.
func see(t *testing.T, seen <-chan link.Sighting, want link.Sighting, do func()) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		do()
		for waiting := true; waiting; {
			select {
			case s := <-seen:
				if s.VIP == want.VIP && s.Station.String() == want.Station.String() {
					return
				}
				if s.VIP.IsValid() && !slices.Contains(vips, s.VIP) {
					t.Errorf("seen: %v, which is not watched", s)
				}
			case <-tick.C:
				waiting = false
			case <-deadline:
				t.Fatalf("not seen: %v", want)
			}
		}
	}
}

func testWatchStations(t *testing.T) {
	i, other := open(t, near), open(t, far)
	seen := watched(t, i)
	station := byName(t, far).Attrs().HardwareAddr
	stranger := netip.MustParseAddr("192.0.2.99")
	for _, vip := range vips {
		see(t, seen, link.Sighting{VIP: vip, Station: station}, func() {
			must(t, i.Announce(t.Context(), vip)) // its own are not seen
			must(t, other.Announce(t.Context(), stranger))
			must(t, other.Announce(t.Context(), vip))
		})
	}
	for len(seen) > 0 {
		if s := <-seen; s.Station.String() == mac(t) || s.VIP == stranger {
			t.Errorf("seen: %v", s)
		}
	}
}

func testWatchInterface(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "seen0"
	make0 := func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "seen1"}))
		must(t, netlink.LinkSetUp(byName(t, "seen0")))
		must(t, netlink.LinkSetUp(byName(t, "seen1")))
	}
	make0()
	i, other := open(t, "seen0"), open(t, "seen1")
	seen := watched(t, i)
	see(t, seen, link.Sighting{}, func() {
		must(t, i.Add(t.Context(), vip4))
		must(t, i.Remove(t.Context(), vip4))
	})
	see(t, seen, link.Sighting{}, func() { must(t, netlink.LinkSetDown(byName(t, "seen1"))) })
	must(t, netlink.LinkDel(byName(t, "seen0")))
	make0() // another under the same name
	station := byName(t, "seen1").Attrs().HardwareAddr
	see(t, seen, link.Sighting{VIP: vip6, Station: station}, func() { must(t, other.Announce(t.Context(), vip6)) })
	must(t, netlink.LinkDel(byName(t, "seen0")))
}

func testContextEnds(t *testing.T) {
	i := open(t, near)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Probe(ctx, vip4); !errors.Is(err, context.Canceled) {
		t.Errorf("probe: got %v, want %v", err, context.Canceled)
	}
	if err := i.Add(ctx, vip4); !errors.Is(err, context.Canceled) {
		t.Errorf("add: got %v, want %v", err, context.Canceled)
	}
}
