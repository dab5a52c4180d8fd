package fence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

var (
	everyone = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nobody   = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// describe puts a frame of the node into words, "" if it is none of those that the tests
// ask about.
func describe(frame []byte) string {
	if len(frame) < 14 || net.HardwareAddr(frame[6:12]).String() != nodeMAC.String() {
		return ""
	}
	switch data := frame[14:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return describeARP(data)
	case unix.ETH_P_IP:
		if h, err := ipv4.ParseHeader(data); err == nil {
			from, to := netip.AddrFrom4([4]byte(h.Src.To4())), netip.AddrFrom4([4]byte(h.Dst.To4()))
			return describeIP(from, to, h.Protocol, data[h.Len:h.TotalLen])
		}
	case unix.ETH_P_IPV6:
		if h, err := ipv6.ParseHeader(data); err == nil {
			from, to := netip.AddrFrom16([16]byte(h.Src)), netip.AddrFrom16([16]byte(h.Dst))
			return describeIP(from, to, h.NextHeader, data[ipv6.HeaderLen:])
		}
	}
	return ""
}

func describeARP(data []byte) string {
	var p arp.Packet
	if p.UnmarshalBinary(data) != nil {
		return ""
	}
	return fmt.Sprintf("ARP %d of %s for %s", p.Operation, p.SenderIP, p.TargetIP)
}

func describeIP(from, to netip.Addr, protocol int, body []byte) string {
	switch {
	case protocol == unix.IPPROTO_UDP:
		return fmt.Sprintf("UDP from %s to %s", from, to)
	case protocol == unix.IPPROTO_ICMP && body[0] == byte(ipv4.ICMPTypeEchoReply),
		protocol == unix.IPPROTO_ICMPV6 && body[0] == byte(ipv6.ICMPTypeEchoReply):
		return "pong from " + from.String()
	case protocol == unix.IPPROTO_ICMPV6:
		switch m, _ := ndp.ParseMessage(body); m := m.(type) {
		case *ndp.NeighborAdvertisement:
			return fmt.Sprintf("NA of %s from %s", m.TargetAddress, from)
		case *ndp.NeighborSolicitation:
			return fmt.Sprintf("NS of %s from %s", m.TargetAddress, from)
		}
	}
	return ""
}

// ping is an echo request of the neighbour.
func (l *lan) ping(to netip.Addr) question {
	return question{answer: "pong from " + to.String(), send: func() error {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 1}}
		if to.Is4() {
			body, err := m.Marshal(nil)
			return errors.Join(err, l.sends(nodeMAC, unix.ETH_P_IP, ipv4Packet(far4, to, unix.IPPROTO_ICMP, body)))
		}
		m.Type = ipv6.ICMPTypeEchoRequest
		body, err := m.Marshal(icmp.IPv6PseudoHeader(far6.AsSlice(), to.AsSlice()))
		return errors.Join(err, l.sends(nodeMAC, unix.ETH_P_IPV6, ipv6Packet(far6, to, unix.IPPROTO_ICMPV6, body)))
	}}
}

// resolve is the neighbour's question for the station of an address, by ARP or NS, which
// names no sender. The answer to the latter goes to all nodes.
func (l *lan) resolve(a netip.Addr) question {
	if a.Is4() {
		return question{answer: fmt.Sprintf("ARP 2 of %s for 0.0.0.0", a), send: func() error {
			return l.sends(everyone, unix.ETH_P_ARP, arpPacket(arp.OperationRequest, neighbourMAC, netip.IPv4Unspecified(), a))
		}}
	}
	return question{answer: fmt.Sprintf("NA of %s from %s", a, a), send: func() error {
		return l.sends(multicastMAC(solicited(a)), unix.ETH_P_IPV6,
			ndpPacket(netip.IPv6Unspecified(), solicited(a), &ndp.NeighborSolicitation{TargetAddress: a}))
	}}
}

// resolveDirectly is the same by a packet for the address itself: the check whether it is
// still there (RFC 4861 section 7.3.3).
func (l *lan) resolveDirectly(a netip.Addr) question {
	q := l.resolve(a)
	q.send = func() error {
		if a.Is4() {
			return l.sends(nodeMAC, unix.ETH_P_ARP, arpPacket(arp.OperationRequest, neighbourMAC, netip.IPv4Unspecified(), a))
		}
		return l.sends(nodeMAC, unix.ETH_P_IPV6, ndpPacket(far6, a, &ndp.NeighborSolicitation{TargetAddress: a}))
	}
	return q
}

func arpPacket(op arp.Operation, sender net.HardwareAddr, senderIP, target netip.Addr) []byte {
	p := arp.Packet{
		HardwareType: 1, ProtocolType: unix.ETH_P_IP, HardwareAddrLength: 6, IPLength: 4, Operation: op,
		SenderHardwareAddr: sender, SenderIP: senderIP, TargetHardwareAddr: nobody, TargetIP: target,
	}
	b, err := p.MarshalBinary()
	if err != nil {
		panic(err) // the addresses are ours
	}
	return b
}

func ndpPacket(from, to netip.Addr, m ndp.Message) []byte {
	body, err := ndp.MarshalMessageChecksum(m, from, to)
	if err != nil {
		panic(err) // the addresses are ours
	}
	return ipv6Packet(from, to, unix.IPPROTO_ICMPV6, body)
}

// solicited is the group that a neighbour solicitation for a goes to.
func solicited(a netip.Addr) netip.Addr {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		panic(err) // the addresses are ours
	}
	return group
}

func multicastMAC(group netip.Addr) net.HardwareAddr {
	g := group.As16()
	return append(net.HardwareAddr{0x33, 0x33}, g[12:]...) // RFC 2464 section 7
}

func ipv6Packet(from, to netip.Addr, protocol byte, body []byte) []byte {
	b := make([]byte, ipv6.HeaderLen, ipv6.HeaderLen+len(body))
	b[0] = ipv6.Version << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	b[6], b[7] = protocol, 255
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return append(b, body...)
}

func ipv4Packet(from, to netip.Addr, protocol byte, body []byte) []byte {
	b := make([]byte, ipv4.HeaderLen, ipv4.HeaderLen+len(body))
	b[0] = ipv4.Version<<4 | ipv4.HeaderLen/4
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(body)))
	b[8], b[9] = 64, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, body...)
}
