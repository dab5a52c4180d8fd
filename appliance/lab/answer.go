package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// The questions of a lab come from a station that nobody is: the answers pass the client's
// port, but the client's own kernel does not heed them. So asking helps no takeover.
var (
	observer  = net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}
	observer6 = netip.MustParseAddr("fe80::ff:fe00:fe")
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// A holder answers within a millisecond; the second question is for one that is busy.
const (
	askEvery  = 40 * time.Millisecond
	askTimes  = 2
	ethHeader = 14 // octets
	maxFrame  = 1514
)

// whoAnswers asks on the client's port who has each of the addresses.
func (l *Lab) whoAnswers(ctx context.Context, vips []netip.Addr) (map[netip.Addr][]string, error) {
	from, err := l.Machine(client)
	if err != nil {
		return nil, err
	}
	var c *packet.Conn
	err = from.Do(func() (err error) {
		c, err = listenAs(observer, publicLink)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask on the client's port: %w", err)
	}
	defer c.Close()
	answers := map[netip.Addr][]string{}
	for _, vip := range vips {
		answers[vip] = []string{}
	}
	for range askTimes {
		for _, vip := range vips {
			q, err := question(vip)
			if err != nil {
				return nil, err
			}
			// A cable that is pulled is no error: then nobody answers.
			if _, err := c.WriteTo(q, &packet.Addr{HardwareAddr: q[:6]}); err != nil && !errors.Is(err, unix.ENETDOWN) {
				return nil, fmt.Errorf("ask who has %s: %w", vip, err)
			}
		}
		if err := collect(ctx, c, time.Now().Add(askEvery), func(a netip.Addr, station net.HardwareAddr) {
			name := l.stationName(station)
			if known, ok := answers[a]; ok && !slices.Contains(known, name) {
				answers[a] = append(known, name)
			}
		}); err != nil {
			return nil, err
		}
	}
	for _, names := range answers {
		slices.Sort(names)
	}
	return answers, nil
}

// listenAs returns a socket on an interface of this thread's namespace that reads what is
// for the station alone.
func listenAs(station net.HardwareAddr, link string) (*packet.Conn, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(station), SkipTrue: 3},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(station[4:])), SkipTrue: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	return packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
}

// collect calls f for each answer until the deadline.
func collect(ctx context.Context, c *packet.Conn, deadline time.Time, f func(netip.Addr, net.HardwareAddr)) error {
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	var b [maxFrame]byte
	for {
		n, _, err := c.ReadFrom(b[:])
		switch {
		case err == nil:
			if a, station, ok := answer(b[:n]); ok {
				f(a, station)
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ctx.Err()
		case !errors.Is(err, unix.ENETDOWN):
			return fmt.Errorf("read answers: %w", err)
		}
	}
}

// question is the frame that asks who has an address. Over ARP it names no sender's address,
// so that nobody learns one (RFC 5227 section 2.1.1).
func question(vip netip.Addr) ([]byte, error) {
	if vip.Is4() {
		p := arp.Packet{
			HardwareType: 1, ProtocolType: unix.ETH_P_IP, HardwareAddrLength: 6, IPLength: 4, Operation: arp.OperationRequest,
			SenderHardwareAddr: observer, SenderIP: netip.IPv4Unspecified(), TargetHardwareAddr: make(net.HardwareAddr, 6), TargetIP: vip,
		}
		b, err := p.MarshalBinary()
		return frame(broadcast, unix.ETH_P_ARP, b), err
	}
	group, err := ndp.SolicitedNodeMulticast(vip)
	if err != nil {
		return nil, err
	}
	m := &ndp.NeighborSolicitation{TargetAddress: vip, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: observer}}}
	body, err := ndp.MarshalMessageChecksum(m, observer6, group)
	if err != nil {
		return nil, err
	}
	h := make([]byte, ipv6.HeaderLen)
	h[0] = ipv6.Version << 4
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[6], h[7] = unix.IPPROTO_ICMPV6, 255 // RFC 4861 section 4.3
	copy(h[8:], observer6.AsSlice())
	copy(h[24:], group.AsSlice())
	g := group.As16()
	return frame(append(net.HardwareAddr{0x33, 0x33}, g[12:]...), unix.ETH_P_IPV6, append(h, body...)), nil // RFC 2464 section 7
}

// frame is an Ethernet frame from the observer.
func frame(to net.HardwareAddr, etherType uint16, payload []byte) []byte {
	b := append(slices.Clone(to), observer...)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// answer returns the address that a frame says its sender has.
func answer(b []byte) (netip.Addr, net.HardwareAddr, bool) {
	if len(b) < ethHeader {
		return netip.Addr{}, nil, false
	}
	station, payload := net.HardwareAddr(slices.Clone(b[6:12])), b[ethHeader:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		var p arp.Packet
		if p.UnmarshalBinary(payload) != nil || p.Operation != arp.OperationReply || !p.SenderIP.Is4() {
			break
		}
		return p.SenderIP, station, true
	case unix.ETH_P_IPV6:
		h, err := ipv6.ParseHeader(payload)
		if err != nil || h.NextHeader != unix.IPPROTO_ICMPV6 || h.PayloadLen > len(payload)-ipv6.HeaderLen {
			break
		}
		m, err := ndp.ParseMessage(payload[ipv6.HeaderLen : ipv6.HeaderLen+h.PayloadLen])
		if na, ok := m.(*ndp.NeighborAdvertisement); err == nil && ok {
			return na.TargetAddress, station, true
		}
	}
	return netip.Addr{}, nil, false
}

// stationName returns the machine with the station address on the public network, or the
// address.
func (l *Lab) stationName(station net.HardwareAddr) string {
	for _, m := range l.machines {
		if p := m.port(Public); p != nil && slices.Equal(p.mac(), station) {
			return m.Name
		}
	}
	return station.String()
}
