package fence

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

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
