package link

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// arpProtocol is RFC 826; the probe is that of RFC 5227 section 2.1.1.
var arpProtocol = protocol{
	etherType:    unix.ETH_P_ARP,
	family:       netlink.FAMILY_V4,
	announcement: arpAnnouncement,
	probe:        arpProbe,
	answers:      arpAnswers,
	holder:       arpHolder,
	question:     arpQuestion,
	answersTo:    arpAnswersTo,
	claims:       arpClaims,
	claimed:      arpClaimed,
}

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noStation = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// arpAnnouncement is a gratuitous request, a gratuitous reply, and an ordinary request
// for the gateway: every host merges the sender of that into the entry it has, even one
// that is set to drop gratuitous ARP. The target of the reply is the sender itself:
// Linux heeds no other in the first second of an entry's life.
func arpAnnouncement(mac net.HardwareAddr, vip, gateway netip.Addr) ([]frame, error) {
	packets := []arp.Packet{
		arpPacket(arp.OperationRequest, mac, vip, noStation, vip),
		arpPacket(arp.OperationReply, mac, vip, mac, vip),
	}
	var frames []frame
	for _, p := range packets {
		b, err := p.MarshalBinary()
		if err != nil {
			return nil, err
		}
		frames = append(frames, frame{to: broadcast, data: b})
	}
	if gateway.IsValid() {
		request, err := arpQuestion(mac, vip, gateway)
		if err != nil {
			return nil, err
		}
		frames = append(frames, request)
	}
	return frames, nil
}

// arpQuestion is an ordinary request for asked, from asker.
func arpQuestion(mac net.HardwareAddr, asker, asked netip.Addr) (frame, error) {
	p := arpPacket(arp.OperationRequest, mac, asker, noStation, asked)
	b, err := p.MarshalBinary()
	return frame{to: broadcast, data: b}, err
}

func arpAnswersTo(data []byte, asker, asked netip.Addr) bool {
	var p arp.Packet
	err := p.UnmarshalBinary(data)
	return err == nil && p.Operation == arp.OperationReply && p.SenderIP == asked && p.TargetIP == asker
}

// arpProbe asks with no sender's address, so that nobody learns one from it.
func arpProbe(mac net.HardwareAddr, vip netip.Addr) (frame, error) {
	p := arpPacket(arp.OperationRequest, mac, netip.IPv4Unspecified(), noStation, vip)
	b, err := p.MarshalBinary()
	return frame{to: broadcast, data: b}, err
}

func arpPacket(op arp.Operation, sender net.HardwareAddr, senderIP netip.Addr, target net.HardwareAddr, targetIP netip.Addr) arp.Packet {
	return arp.Packet{
		HardwareType:       1, // Ethernet
		ProtocolType:       unix.ETH_P_IP,
		HardwareAddrLength: 6,
		IPLength:           4,
		Operation:          op,
		SenderHardwareAddr: sender,
		SenderIP:           senderIP,
		TargetHardwareAddr: target,
		TargetIP:           targetIP,
	}
}

// arpSenderIP is where ARP has its sender's protocol address.
const arpSenderIP = 14

// arpAnswers passes ARP whose sender is vip, request or reply.
func arpAnswers(vip netip.Addr) []bpf.Instruction {
	a := vip.As4()
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: arpSenderIP, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[:]), SkipTrue: 1},
		bpf.RetConstant{Val: 1500},
		bpf.RetConstant{Val: 0},
	}
}

func arpHolder(data []byte, _ net.HardwareAddr, vip netip.Addr) net.HardwareAddr {
	var p arp.Packet
	if err := p.UnmarshalBinary(data); err != nil || p.HardwareAddrLength != 6 || p.SenderIP != vip {
		return nil
	}
	return p.SenderHardwareAddr
}
