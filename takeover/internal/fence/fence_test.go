package fence

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/balancing/nstest"
)

const mark = 0x70656572

func TestMain(m *testing.M) {
	if os.Getenv(ownerVariable) != "" {
		ownFence()
		return
	}
	os.Exit(m.Run())
}

// TestInNamespace runs the tests that need a network of their own in a child process that
// has one.
func TestInNamespace(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, nil)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lan)
	}{
		{"a marked packet opens it", testOpens},
		{"what leaves", testOutgoing},
		{"what comes in", testIncoming},
		{"closes when the lease is over", testLease},
		{"a lease changes while it runs", testLeaseChanges},
		{"revoked, it is closed until the next marked packet", testRevoke},
		{"nobody else opens it, or finds his mark changed", testForeignMarks},
		{"VIPs change while it is open", testVIPsChange},
		{"repairs what was removed", testRepair},
		{"closes when its owner is killed", testOwnerKilled},
		{"there is one in a namespace", testOneOwner},
		{"reports leave by another device", testReportsElsewhere},
		{"says what is wrong", testErrors},
		{"says that it is not permitted", testNotPermitted},
		{"leaves nothing", testClose},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, l) })
	}
}

// The other devices that carry VIPs. Those that a kernel may lack have tests of their own.
func TestOnBridge(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a := netlink.NewLinkAttrs()
		a.Name, a.HardwareAddr = "bridge-"+wire, stationOf(wire)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
			return "", err
		}
		port, err := netlink.LinkByName(wire)
		if err != nil {
			return "", err
		}
		return a.Name, netlink.LinkSetMaster(port, &netlink.Bridge{LinkAttrs: a})
	})
}

func TestOnMACVLAN(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a, err := attrsOn(wire, "macvlan-"+wire)
		if err != nil {
			return "", err
		}
		a.HardwareAddr = stationOf(wire)
		below := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.ParentIndex}}
		return a.Name, errors.Join(
			netlink.LinkSetHardwareAddr(below, net.HardwareAddr{2, 0, 0, 0, 1, stationOf(wire)[5]}), // the two must differ
			netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	})
}

func TestOnVLAN(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a, err := attrsOn(wire, wire+".10")
		return a.Name, errors.Join(err, netlink.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: 10}))
	})
}

func TestOnBond(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a := netlink.NewLinkAttrs()
		a.Name, a.HardwareAddr = "bond-"+wire, stationOf(wire)
		bond := netlink.NewLinkBond(a)
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		if err := netlink.LinkAdd(bond); err != nil {
			return "", err
		}
		member, err := netlink.LinkByName(wire)
		if err != nil {
			return "", err
		}
		return a.Name, netlink.LinkSetMaster(member, bond)
	})
}

func testOn(t *testing.T, device func(wire string) (string, error)) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, device)
	t.Run("a marked packet opens it", func(t *testing.T) { testOpens(t, l) })
	t.Run("what leaves", func(t *testing.T) { testOutgoing(t, l) })
	t.Run("closes when the lease is over", func(t *testing.T) { testLease(t, l) })
	t.Run("a mark from the device below opens nothing", func(t *testing.T) { testMarkFromBelow(t, l) })
}

// testMarkFromBelow is without the owner, whose table would stop the packets as well.
func testMarkFromBelow(t *testing.T, l *lan) {
	owner := l.startOwner(t)
	must(t, owner.Kill())
	_, err := owner.Wait()
	must(t, err)
	c, err := dial()
	must(t, err)
	defer c.close()
	below := table{name: "below", chains: []chain{
		{name: "below", place: in(nodeWire, 0), rules: []rule{newRule(meta(unix.NFT_META_MARK), change(0, passBit), setMark())}},
	}}
	must(t, c.transact(below.ruleChanges(state{}, true)))
	l.expectStopped(t)
}

func attrsOn(wire, name string) (netlink.LinkAttrs, error) {
	a := netlink.NewLinkAttrs()
	a.Name = name
	parent, err := netlink.LinkByName(wire)
	if err == nil {
		a.ParentIndex = parent.Attrs().Index
	}
	return a, err
}

func stationOf(wire string) net.HardwareAddr {
	if wire == nodeWire {
		return slices.Clone(nodeMAC)
	}
	return slices.Clone(neighbourMAC)
}

// config has a lease that does not end by itself.
func (l *lan) config() Config {
	return Config{Device: l.device, Reports: l.device, Mark: mark, VIPs: []netip.Addr{vip4, vip6}, Lease: time.Hour}
}

// fence opens the fence, and sets it.
func (l *lan) fence(t *testing.T, c Config) *Fence {
	t.Helper()
	f, err := Open()
	must(t, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, f.Set(c))
	return f
}

// asked is a question and the same about the host.
type asked struct{ q, host question }

// incoming are the questions of the neighbour about VIPs.
func (l *lan) incoming(vips ...netip.Addr) (all []asked) {
	for _, vip := range vips {
		host := host4
		if vip.Is6() {
			host = host6
		}
		for _, ask := range []func(netip.Addr) question{l.ping, l.resolve, l.resolveDirectly} {
			all = append(all, asked{ask(vip), ask(host)})
		}
	}
	return all
}

func (l *lan) expectOpen(t *testing.T, all []asked) {
	t.Helper()
	for _, a := range all {
		l.expect(t, a.q, a.host)
	}
}

func (l *lan) expectClosed(t *testing.T, all []asked) {
	t.Helper()
	for _, a := range all {
		if !l.silent(t, a.q, a.host) {
			t.Errorf("%s: the fence is open", a.q.answer)
		}
	}
}

// report sends what opens the fence, if the mark is right.
func (l *lan) report(tb testing.TB, mark int) {
	tb.Helper()
	must(tb, sendMarked(netip.AddrPortFrom(host4, 0), netip.AddrPortFrom(far4, 7947), mark))
}

// sendMarked sends a datagram that has the mark.
func sendMarked(from, to netip.AddrPort, mark int) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}), err)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp", from.String())
	if err != nil {
		return err
	}
	_, err = c.WriteTo([]byte("report"), net.UDPAddrFromAddrPort(to))
	return errors.Join(err, c.Close())
}

func testOpens(t *testing.T, l *lan) {
	l.fence(t, l.config())
	all := l.incoming(vip4, vip6)
	l.expectClosed(t, all)
	l.report(t, 0)
	l.report(t, mark+1)
	l.expectClosed(t, all)
	l.report(t, mark)
	l.expectOpen(t, all)
	l.expectOpen(t, l.incoming(spare4, spare6)) // not fenced at all
}

// outgoing are what the node sends as if it had the VIPs, each time with what it sends as
// the host.
func (l *lan) outgoing(t *testing.T) []asked {
	t.Helper()
	arps, ipv6 := l.nodeSends(t, unix.ETH_P_ARP), l.nodeSends(t, unix.ETH_P_IPV6)
	announced := func(op arp.Operation, a netip.Addr) question {
		return arps(fmt.Sprintf("ARP %d of %s for %s", op, a, far4), arpPacket(op, nodeMAC, a, far4))
	}
	advertised := func(target, from netip.Addr) question {
		return ipv6(fmt.Sprintf("NA of %s from %s", target, from),
			ndpPacket(from, netip.IPv6LinkLocalAllNodes(), &ndp.NeighborAdvertisement{TargetAddress: target}))
	}
	return []asked{
		{datagram(vip4, 0), datagram(host4, 0)},
		{datagram(vip6, 0), datagram(host6, 0)},
		{announced(arp.OperationRequest, vip4), announced(arp.OperationRequest, host4)},
		{announced(arp.OperationReply, vip4), announced(arp.OperationReply, host4)},
		{advertised(vip6, host6), advertised(host6, host6)},
	}
}

// datagram is one of the node, with a mark.
func datagram(from netip.Addr, mark int) question {
	to := far4
	if from.Is6() {
		to = far6
	}
	return question{answer: fmt.Sprintf("UDP from %s to %s", from, to), send: func() error {
		return sendMarked(netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 9), mark)
	}}
}

// nodeSends returns what makes a question of a packet of the node, whatever its addresses.
func (l *lan) nodeSends(t *testing.T, etherType int) func(answer string, data []byte) question {
	t.Helper()
	ifi, err := net.InterfaceByName(l.device)
	must(t, err)
	c, err := packet.Listen(ifi, packet.Datagram, etherType, nil)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return func(answer string, data []byte) question {
		return question{answer: answer, send: func() error {
			_, err := c.WriteTo(data, &packet.Addr{HardwareAddr: everyone})
			if errors.Is(err, unix.ENOBUFS) {
				return nil // what a packet socket is told of a packet that was dropped
			}
			return err
		}}
	}
}

func testOutgoing(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	all := l.outgoing(t)
	l.expectClosed(t, all)
	arps, ipv4, ipv6 := l.nodeSends(t, unix.ETH_P_ARP), l.nodeSends(t, unix.ETH_P_IP), l.nodeSends(t, unix.ETH_P_IPV6)
	nobody4, nobody6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	udp := make([]byte, 8)
	l.expect(t, // a peer may have it
		arps("ARP 1 of 0.0.0.0 for 192.0.2.11", arpPacket(arp.OperationRequest, nodeMAC, nobody4, vip4)),
		arps("ARP 1 of 192.0.2.2 for 192.0.2.11", arpPacket(arp.OperationRequest, nodeMAC, host4, vip4)),
		ipv6("NS of 2001:db8::11 from ::", ndpPacket(nobody6, solicited(vip6), &ndp.NeighborSolicitation{TargetAddress: vip6})),
		ipv4("UDP from 192.0.2.2 to 192.0.2.11", ipv4Packet(host4, vip4, unix.IPPROTO_UDP, udp)),
		ipv6("UDP from 2001:db8::2 to 2001:db8::11", ipv6Packet(host6, vip6, unix.IPPROTO_UDP, udp)))
	l.report(t, mark)
	l.expectOpen(t, all)
	must(t, f.Revoke())
	l.expectClosed(t, all)
}

// testIncoming looks at what comes as far as the node's stack.
func testIncoming(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	l.expectStopped(t)
	l.report(t, mark)
	for _, frame := range append(forVIPs(), ofPeers()...) {
		if !l.arrives(t, frame) {
			t.Errorf("%s: does not come in, though the fence is open", frame.name)
		}
	}
	must(t, f.Revoke())
	l.expectStopped(t)
}

// expectStopped sends all to the closed fence.
func (l *lan) expectStopped(t *testing.T) {
	t.Helper()
	for _, frame := range forVIPs() {
		if l.arrives(t, frame) {
			t.Errorf("%s: comes in, though the fence is closed", frame.name)
		}
	}
	for _, frame := range ofPeers() {
		if !l.arrives(t, frame) {
			t.Errorf("%s: does not come in", frame.name)
		}
	}
}

// frame is one of the neighbour, from its network header on.
type frame struct {
	name      string
	etherType uint16
	data      []byte
}

var other = net.HardwareAddr{2, 0, 0, 0, 0, 9}

// forVIPs are the frames that come in while the fence is open.
func forVIPs() []frame {
	nobody4, nobody6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return []frame{
		{"IPv4 for a VIP", unix.ETH_P_IP, ipv4Packet(far4, vip4, 253, nil)},
		{"IPv6 for a VIP", unix.ETH_P_IPV6, ipv6Packet(far6, vip6, 253, nil)},
		{"ARP request", unix.ETH_P_ARP, arpPacket(arp.OperationRequest, other, far4, vip4)},
		{"ARP probe", unix.ETH_P_ARP, arpPacket(arp.OperationRequest, other, nobody4, vip4)},
		{"NS", unix.ETH_P_IPV6, ndpPacket(nobody6, solicited(vip6), &ndp.NeighborSolicitation{TargetAddress: vip6})},
	}
}

// ofPeers are those that come in at all times: that others have a VIP, and what they do
// with it.
func ofPeers() []frame {
	na := &ndp.NeighborAdvertisement{TargetAddress: vip6}
	return []frame{
		{"IPv4 from a VIP", unix.ETH_P_IP, ipv4Packet(vip4, host4, 253, nil)},
		{"IPv6 from a VIP", unix.ETH_P_IPV6, ipv6Packet(vip6, host6, 253, nil)},
		{"gratuitous ARP request", unix.ETH_P_ARP, arpPacket(arp.OperationRequest, other, vip4, vip4)},
		{"gratuitous ARP reply", unix.ETH_P_ARP, arpPacket(arp.OperationReply, other, vip4, vip4)},
		{"ARP request from a VIP", unix.ETH_P_ARP, arpPacket(arp.OperationRequest, other, vip4, host4)},
		{"ARP reply to a probe", unix.ETH_P_ARP, arpPacket(arp.OperationReply, other, vip4, netip.IPv4Unspecified())},
		{"ARP reply to a VIP", unix.ETH_P_ARP, arpPacket(arp.OperationReply, other, far4, vip4)},
		{"unsolicited NA", unix.ETH_P_IPV6, ndpPacket(vip6, netip.IPv6LinkLocalAllNodes(), na)},
		{"NA to a prober", unix.ETH_P_IPV6, ndpPacket(vip6, host6, na)},
	}
}

// arrives reports whether a frame gets past the fence before another that is not fenced.
func (l *lan) arrives(t *testing.T, f frame) (arrived bool) {
	t.Helper()
	marker := map[uint16][]byte{
		unix.ETH_P_ARP:  arpPacket(arp.OperationRequest, neighbourMAC, far4, far4.Next()),
		unix.ETH_P_IP:   ipv4Packet(far4, host4, 254, nil),
		unix.ETH_P_IPV6: ipv6Packet(far6, host6, 254, nil),
	}[f.etherType]
	ifi, err := net.InterfaceByName(l.device)
	must(t, err)
	conn, err := packet.Listen(ifi, packet.Datagram, int(f.etherType), nil)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second))) // only ever reached by a failure
	must(t, l.sends(nodeMAC, f.etherType, f.data))
	must(t, l.sends(nodeMAC, f.etherType, marker))
	for buf := make([]byte, 1500); ; {
		n, _, err := conn.ReadFrom(buf)
		must(t, err)
		switch string(buf[:n]) {
		case string(f.data):
			arrived = true
		case string(marker):
			return arrived
		}
	}
}

// testLease waits for the kernel, whose timer no test can turn on.
func testLease(t *testing.T, l *lan) {
	c := l.config()
	c.Lease = time.Second
	l.fence(t, c)
	for began := time.Now(); time.Since(began) < 2*c.Lease; {
		renewed := time.Now()
		l.report(t, mark)
		if l.silent(t, l.ping(vip4), l.ping(host4)) && time.Since(renewed) < c.Lease/2 {
			t.Fatal("the fence is closed, though just renewed")
		}
	}
	l.expectCloses(t)
}

// expectCloses waits until the fence is closed, without a report.
func (l *lan) expectCloses(t *testing.T) {
	t.Helper()
	for began := time.Now(); !l.silent(t, l.ping(vip4), l.ping(host4)); {
		if time.Since(began) > time.Minute {
			t.Fatal("the fence stays open without a report")
		}
	}
	l.expectClosed(t, l.incoming(vip4, vip6))
}

func testLeaseChanges(t *testing.T, l *lan) {
	c := l.config()
	f := l.fence(t, c)
	all := l.incoming(vip4, vip6)
	l.report(t, mark)
	c.Lease, c.Mark = 300*time.Millisecond, mark+1
	must(t, f.Set(c))
	l.expectOpen(t, all) // the old one runs
	l.report(t, mark+1)
	l.expectCloses(t)
	l.report(t, mark)
	l.expectClosed(t, all)
	c.Lease = time.Hour
	must(t, f.Set(c))
	l.report(t, mark+1)
	l.expectOpen(t, all)
}

func testRevoke(t *testing.T, l *lan) {
	f, err := Open()
	must(t, err)
	defer f.Close()
	must(t, f.Revoke()) // nothing yet
	must(t, f.Set(l.config()))
	all := l.incoming(vip4, vip6)
	for range 3 {
		l.report(t, mark)
		l.expectOpen(t, all)
		must(t, f.Revoke())
		l.expectClosed(t, all)
	}
}

// testForeignMarks sends from a VIP and from the host with marks that others may use, and
// looks at what is left of them behind the fence.
func testForeignMarks(t *testing.T, l *lan) {
	l.fence(t, l.config())
	conn, err := dial()
	must(t, err)
	defer conn.close()
	const foreign = 0x1234
	watch := table{
		name: "watch", sets: []set{{name: "marks", flags: setLease.flags, kind: 19, octets: 4}},
		chains: []chain{{name: "watch", place: out(l.device, stepRenew), rules: []rule{
			newRule(isIPv4, network(ipv4Source, 4), within(vips4), meta(unix.NFT_META_MARK), renew("marks", time.Hour)),
		}}},
	}
	watch.sets = append(watch.sets, set4)
	must(t, conn.transact(append(watch.ruleChanges(state{}, true),
		watch.elements(unix.NFT_MSG_NEWSETELEM, vips4, []string{string(vip4.AsSlice()), string(host4.AsSlice())})...)))
	defer func() { must(t, conn.transact([]message{watch.delete()})) }()

	if !l.silent(t, datagram(vip4, passBit|foreign), datagram(host4, passBit|foreign+1)) {
		t.Error("a mark of somebody else's opens the fence")
	}
	l.report(t, mark)
	l.expect(t, datagram(vip4, foreign+2), datagram(vip4, passBit|foreign+3))
	keys := make(map[string]bool)
	must(t, conn.request(message{
		kind: unix.NFT_MSG_GETSETELEM, flags: unix.NLM_F_DUMP,
		body: attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, "watch").text(unix.NFTA_SET_ELEM_LIST_SET, "marks"),
	},
		func(body []byte) error { return parseElements(body, keys) }))
	for _, want := range []uint32{passBit | foreign + 1, mark, foreign + 2, foreign + 3} {
		if !keys[string(native(want))] {
			t.Errorf("behind the fence nothing has the mark %#x", want)
		}
		delete(keys, string(native(want)))
	}
	delete(keys, string(native(0))) // whatever the host says of itself
	for k := range keys {
		t.Errorf("behind the fence something has the mark %x", k)
	}
}

func testVIPsChange(t *testing.T, l *lan) {
	c := l.config()
	f := l.fence(t, c)
	l.report(t, mark)
	for range 3 {
		c.VIPs = []netip.Addr{vip4, vip6, spare4, spare6, spare4} // twice does not matter
		must(t, f.Set(c))
		l.expectOpen(t, l.incoming(c.VIPs...))
		must(t, f.Revoke())
		l.expectClosed(t, l.incoming(c.VIPs...))
		l.report(t, mark)
		c.VIPs = []netip.Addr{vip6, vip4}
		must(t, f.Set(c))
		l.expectOpen(t, l.incoming(vip4, vip6))
		must(t, f.Revoke())
		l.expectOpen(t, l.incoming(spare4, spare6))
		l.report(t, mark)
	}
	c.VIPs = nil
	must(t, f.Set(c))
	must(t, f.Revoke())
	l.expectOpen(t, l.incoming(vip4, vip6))
}

func testRepair(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	other, err := dial()
	must(t, err)
	defer other.close()
	must(t, f.Set(l.config()))
	whole := tables(t, other)
	all := slices.Concat(l.incoming(vip4, vip6), l.outgoing(t))
	for name, damage := range map[string][]message{
		"all":     {{kind: unix.NFT_MSG_DELTABLE}}, // nft flush ruleset
		"a table": {table{name: standing}.delete()},
		"rules":   {table{name: standing}.flush()},
		"a chain": {table{name: standing}.flush(), table{name: standing}.chainMessage(unix.NFT_MSG_DELCHAIN, 0, "pass-in", nil)},
		"a VIP":   {table{name: standing}.emptied(vips4)},
	} {
		l.report(t, mark)
		must(t, other.transact(damage))
		if tables(t, other) == whole {
			t.Fatalf("%s: nothing was removed", name)
		}
		must(t, f.Revoke())
		l.expectClosed(t, all) // the other table is the process's own
		l.expectStopped(t)
		must(t, f.Set(l.config()))
		if got := tables(t, other); got != whole {
			t.Errorf("%s was removed, and is not there again: got\n%s\nwant\n%s", name, got, whole)
		}
		l.report(t, mark)
		l.expectOpen(t, all)
	}
	if err := other.transact([]message{table{name: owned}.delete()}); !errors.Is(err, unix.EPERM) {
		t.Errorf("another process removes the lease: got %v, want %v", err, unix.EPERM)
	}
}

// tables puts what the kernel has of the fence into words.
func tables(t *testing.T, c *conn) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{standing, owned} {
		s, err := c.read(name)
		must(t, err)
		fmt.Fprintf(&b, "%s %v\n", name, s)
	}
	return b.String()
}

const ownerVariable = "PEERAGE_TEST_OWN_FENCE"

// ownFence is the process that is killed.
func ownFence() {
	device := os.Getenv(ownerVariable)
	f, err := Open()
	if err == nil {
		l := lan{device: device}
		err = errors.Join(f.Set(l.config()), sendMarked(netip.AddrPortFrom(host4, 0), netip.AddrPortFrom(far4, 7947), mark))
	}
	fmt.Println(err)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the end of the test, if nobody kills it
}

// startOwner starts it, and returns when it has opened the fence.
func (l *lan) startOwner(tb testing.TB) *os.Process {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerVariable+"="+l.device)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(tb, err)
	tb.Cleanup(func() { in.Close() })
	out, err := cmd.StdoutPipe()
	must(tb, err)
	must(tb, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		tb.Fatalf("the owner of the fence says %q, %v", line, err)
	}
	return cmd.Process
}

func testOwnerKilled(t *testing.T, l *lan) {
	all := slices.Concat(l.incoming(vip4, vip6), l.outgoing(t))
	for range 2 { // the second finds what the first left
		owner := l.startOwner(t)
		l.expectOpen(t, all)
		must(t, owner.Kill())
		if s, err := owner.Wait(); err != nil || s.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the owner ended otherwise: %v, %v", s, err)
		}
		l.expectClosed(t, all)
		l.report(t, mark)
		l.expectClosed(t, append(all, asked{datagram(vip4, passBit), datagram(host4, passBit)}))
		l.expectStopped(t)
	}
	f, err := Open()
	must(t, err)
	defer f.Close()
	l.report(t, mark)
	l.expectClosed(t, all)
	must(t, f.Set(l.config()))
	l.expectClosed(t, all)
	l.report(t, mark)
	l.expectOpen(t, all)
}

func testOneOwner(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	l.report(t, mark)
	if _, err := Open(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second fence: got %v, want that another process has it", err)
	}
	must(t, f.Set(l.config()))
	l.expectOpen(t, l.incoming(vip4, vip6))
}

// TestDeviceMadeAnew lays the wire a second time. A kernel before 6.16 removes the chains
// of a device with it.
func TestDeviceMadeAnew(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, nil)
	c := l.config()
	f := l.fence(t, c)
	for _, removed := range []bool{false, true} {
		l.report(t, mark)
		l.expectOpen(t, l.incoming(vip4, vip6))
		must(t, f.Set(c)) // and all is found as it should be
		must(t, netlink.LinkDel(byName(t, nodeWire)))
		if err := f.Set(c); !errors.Is(err, unix.ENODEV) {
			t.Errorf("without the device: got %v, want %v", err, unix.ENODEV)
		}
		if removed {
			for _, table := range []table{standingTable(c), ownedTable(c)} {
				have, err := f.conn.read(table.name)
				must(t, err)
				msgs := []message{table.flush()}
				for name, h := range have.chains {
					if h.device != "" {
						msgs = append(msgs, table.chainMessage(unix.NFT_MSG_DELCHAIN, 0, name, nil))
					}
				}
				must(t, f.conn.transact(msgs))
			}
		}
		l = newLAN(t, nil)
		must(t, f.Set(c))
		must(t, f.Revoke())
		l.expectClosed(t, append(l.incoming(vip4, vip6), l.outgoing(t)...))
	}
	l.report(t, mark)
	l.expectOpen(t, l.incoming(vip4, vip6))
}

func testReportsElsewhere(t *testing.T, l *lan) {
	a := netlink.NewLinkAttrs()
	a.Name = "inside0"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "inside1"}))
	inside := byName(t, a.Name)
	defer netlink.LinkDel(inside)
	must(t, netlink.LinkSetUp(byName(t, "inside1")))
	must(t, netlink.LinkSetUp(inside))
	from, to := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	must(t, netlink.AddrAdd(inside, &netlink.Addr{IPNet: &net.IPNet{IP: from.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: inside.Attrs().Index, State: netlink.NUD_PERMANENT, IP: to.AsSlice(), HardwareAddr: neighbourMAC,
	}))
	c := l.config()
	f := l.fence(t, c)
	all := l.incoming(vip4, vip6)
	l.report(t, mark)
	c.Reports = a.Name
	must(t, f.Set(c))
	l.expectOpen(t, all)
	must(t, f.Revoke())
	l.report(t, mark) // by the wrong one
	l.expectClosed(t, all)
	must(t, sendMarked(netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 7947), mark))
	l.expectOpen(t, all)
}

func testErrors(t *testing.T, l *lan) {
	f, err := Open()
	must(t, err)
	for want, change := range map[string]func(*Config){
		`interface "nowhere0"`: func(c *Config) { c.Device = "nowhere0" },
		`interface "nowhere1"`: func(c *Config) { c.Reports = "nowhere1" },
		`interface ""`:         func(c *Config) { c.Device = "" },
		"is not of Ethernet":   func(c *Config) { c.Device = "lo" },
		"mark 0":               func(c *Config) { c.Mark = 0 },
		"lease 9ms":            func(c *Config) { c.Lease = 9 * time.Millisecond },
		"lease 1h0m1s":         func(c *Config) { c.Lease = time.Hour + time.Second },
		"VIP ff02::1":          func(c *Config) { c.VIPs = []netip.Addr{netip.IPv6LinkLocalAllNodes()} },
		"VIP fe80::1%eth0":     func(c *Config) { c.VIPs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"VIP ::ffff:192.0.2.1": func(c *Config) { c.VIPs = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")} },
		"16385 VIPs":           func(c *Config) { c.VIPs = slices.Repeat(c.VIPs[:1], maxVIPs+1) },
		"mark 0: every packet has it; choose another\nlease 0s": func(c *Config) { c.Mark, c.Lease = 0, 0 },
	} {
		c := l.config()
		change(&c)
		if err := f.Set(c); err == nil || !strings.HasPrefix(err.Error(), "fence VIPs on "+c.Device+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	must(t, f.Set(l.config()))
	must(t, f.Close())
	must(t, f.Close())
	if err := f.Set(l.config()); !errors.Is(err, errClosed) {
		t.Errorf("set when closed: got %v", err)
	}
	if err := f.Revoke(); !errors.Is(err, errClosed) {
		t.Errorf("revoke when closed: got %v", err)
	}
}

func testNotPermitted(t *testing.T, _ *lan) {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the capabilities are the thread's
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			_, err = Open()
		}
		result <- err
	}()
	if err := <-result; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want that it needs CAP_NET_ADMIN", err)
	}
}

func testClose(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	l.expectClosed(t, l.incoming(vip4, vip6))
	must(t, f.Close())
	c, err := dial()
	must(t, err)
	defer c.close()
	must(t, c.request(message{kind: unix.NFT_MSG_GETTABLE, flags: unix.NLM_F_DUMP}, func(body []byte) error {
		return walk(body, func(kind uint16, value []byte) error {
			if kind == unix.NFTA_TABLE_NAME {
				t.Errorf("table %s is left", text(value))
			}
			return nil
		})
	}))
	l.expectOpen(t, l.incoming(vip4, vip6))
}

// TestManyVIPs needs a socket buffer beyond the limit of the system, and so root.
func TestManyVIPs(t *testing.T) {
	outside(t)
	c := newLAN(t, nil).config()
	f, err := Open()
	must(t, err)
	defer f.Close()
	all := many(maxVIPs + 1000)
	for _, vips := range [][]netip.Addr{all[:maxVIPs], all[1000:], all[:10]} {
		c.VIPs = vips
		must(t, f.Set(c))
		for _, name := range []string{standing, owned} {
			have, err := f.conn.read(name)
			must(t, err)
			for set, want := range c.keys() {
				if !maps.Equal(have.vips[set], want) {
					t.Errorf("%s %s: %d elements, want %d, or others", name, set, len(have.vips[set]), len(want))
				}
			}
		}
	}
}
