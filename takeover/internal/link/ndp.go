package link

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ndpProtocol is RFC 4861; the probe is that of RFC 4862 section 5.4.2.
var ndpProtocol = protocol{
	etherType:    unix.ETH_P_IPV6,
	family:       netlink.FAMILY_V6,
	announcement: ndpAnnouncement,
	probe:        ndpProbe,
	answers:      ndpAnswers,
	holder:       ndpHolder,
	question:     ndpQuestion,
	answersTo:    ndpAnswersTo,
	claims:       ndpClaims,
	claimed:      ndpClaimed,
}

// hopLimit proves that a packet comes from the LAN: no router passes it on with this
// one (RFC 4861 section 3.1).
const hopLimit = 255

// ndpAnnouncement is an unsolicited advertisement to all nodes, and a solicitation for
// the gateway: its sender is believed even where unsolicited advertisements are dropped.
func ndpAnnouncement(mac net.HardwareAddr, vip, gateway netip.Addr) ([]frame, error) {
	advertisement, err := ndpFrame(vip, netip.IPv6LinkLocalAllNodes(), &ndp.NeighborAdvertisement{
		Override:      true,
		TargetAddress: vip,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}},
	})
	if err != nil || !gateway.IsValid() {
		return []frame{advertisement}, err
	}
	solicitation, err := ndpQuestion(mac, vip, gateway)
	return []frame{advertisement, solicitation}, err
}

// ndpQuestion is a solicitation for asked, from asker.
func ndpQuestion(mac net.HardwareAddr, asker, asked netip.Addr) (frame, error) {
	return ndpSolicitation(asker, asked, &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac})
}

func ndpAnswersTo(data []byte, asker, asked netip.Addr) bool {
	h, err := ipv6.ParseHeader(data)
	if err != nil || ndpHolder(data, noStation, asked) == nil {
		return false
	}
	to, _ := netip.AddrFromSlice(h.Dst)
	return to == asker
}

// ndpProbe asks with no sender's address, so that nobody learns one from it. The answer
// goes to all nodes (RFC 4861 section 7.2.4).
func ndpProbe(_ net.HardwareAddr, vip netip.Addr) (frame, error) {
	return ndpSolicitation(netip.IPv6Unspecified(), vip)
}

func ndpSolicitation(from, target netip.Addr, options ...ndp.Option) (frame, error) {
	group, err := ndp.SolicitedNodeMulticast(target)
	if err != nil {
		return frame{}, err
	}
	return ndpFrame(from, group, &ndp.NeighborSolicitation{TargetAddress: target, Options: options})
}

// ndpFrame is m from one address to a group, IPv6 header included.
func ndpFrame(from, group netip.Addr, m ndp.Message) (frame, error) {
	body, err := ndp.MarshalMessageChecksum(m, from, group)
	if err != nil {
		return frame{}, err
	}
	b := make([]byte, ipv6.HeaderLen, ipv6.HeaderLen+len(body))
	b[0] = ipv6.Version << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	b[6], b[7] = unix.IPPROTO_ICMPV6, hopLimit
	copy(b[8:], from.AsSlice())
	copy(b[24:], group.AsSlice())
	g := group.As16()
	to := append(net.HardwareAddr{0x33, 0x33}, g[12:]...) // RFC 2464 section 7
	return frame{to: to, data: append(b, body...)}, nil
}

// ndpTarget is where an advertisement without extension headers has its target.
const ndpTarget = ipv6.HeaderLen + 8

// ndpAnswers passes neighbour advertisements for vip.
func ndpAnswers(vip netip.Addr) []bpf.Instruction {
	const (
		nextHeader  = 6
		messageType = ipv6.HeaderLen
	)
	a := vip.As16()
	tests := []struct {
		load bpf.LoadAbsolute
		want uint32
	}{
		{bpf.LoadAbsolute{Off: nextHeader, Size: 1}, unix.IPPROTO_ICMPV6},
		{bpf.LoadAbsolute{Off: messageType, Size: 1}, uint32(ipv6.ICMPTypeNeighborAdvertisement)},
		{bpf.LoadAbsolute{Off: ndpTarget, Size: 4}, binary.BigEndian.Uint32(a[0:])},
		{bpf.LoadAbsolute{Off: ndpTarget + 4, Size: 4}, binary.BigEndian.Uint32(a[4:])},
		{bpf.LoadAbsolute{Off: ndpTarget + 8, Size: 4}, binary.BigEndian.Uint32(a[8:])},
		{bpf.LoadAbsolute{Off: ndpTarget + 12, Size: 4}, binary.BigEndian.Uint32(a[12:])},
	}
	var filter []bpf.Instruction
	for _, t := range tests {
		filter = append(filter, t.load,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: t.want, SkipTrue: 1},
			bpf.RetConstant{Val: 0})
	}
	return append(filter, bpf.RetConstant{Val: 1500})
}

func ndpHolder(data []byte, from net.HardwareAddr, vip netip.Addr) net.HardwareAddr {
	h, err := ipv6.ParseHeader(data)
	if err != nil || h.Version != ipv6.Version || h.NextHeader != unix.IPPROTO_ICMPV6 || h.HopLimit != hopLimit {
		return nil
	}
	body := data[ipv6.HeaderLen:]
	if h.PayloadLen > len(body) {
		return nil
	}
	m, err := ndp.ParseMessage(body[:h.PayloadLen])
	if err != nil {
		return nil
	}
	na, ok := m.(*ndp.NeighborAdvertisement)
	if !ok || na.TargetAddress != vip {
		return nil
	}
	for _, o := range na.Options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Target {
			return l.Addr
		}
	}
	return from
}
