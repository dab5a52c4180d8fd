package lab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

var someStation = net.HardwareAddr{2, 0, 192, 0, 2, 11}

// answersFor makes the frames with which a station says that it has an address.
func answerFor(t testing.TB, vip netip.Addr) []byte {
	t.Helper()
	b := append(slices.Clone(observer), someStation...)
	if vip.Is4() {
		p, err := (&arp.Packet{
			HardwareType: 1, ProtocolType: unix.ETH_P_IP, HardwareAddrLength: 6, IPLength: 4, Operation: arp.OperationReply,
			SenderHardwareAddr: someStation, SenderIP: vip, TargetHardwareAddr: observer, TargetIP: netip.IPv4Unspecified(),
		}).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP), p...)
	}
	body, err := ndp.MarshalMessageChecksum(&ndp.NeighborAdvertisement{Solicited: true, TargetAddress: vip}, vip, observer6)
	if err != nil {
		t.Fatal(err)
	}
	h := make([]byte, ipv6.HeaderLen)
	h[0], h[6], h[7] = ipv6.Version<<4, unix.IPPROTO_ICMPV6, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], vip.AsSlice())
	copy(h[24:], observer6.AsSlice())
	return append(append(binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6), h...), body...)
}

func TestAnswer(t *testing.T) {
	for _, vip := range []netip.Addr{netip.MustParseAddr("192.0.2.21"), netip.MustParseAddr("2001:db8::21")} {
		got, station, ok := answer(answerFor(t, vip))
		if !ok || got != vip || !slices.Equal(station, someStation) {
			t.Errorf("got %v at %v, %v; want %v at %v", got, station, ok, vip, someStation)
		}
		q, err := question(vip)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, ok := answer(q); ok {
			t.Errorf("the question who has %v is taken for an answer about %v", vip, got)
		}
	}
}

// FuzzAnswer: no frame can do harm, and none is an answer about no address.
func FuzzAnswer(f *testing.F) {
	for _, vip := range []string{"192.0.2.21", "2001:db8::21"} {
		f.Add(answerFor(f, netip.MustParseAddr(vip)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, station, ok := answer(b); ok && (!a.IsValid() || len(station) != 6) {
			t.Errorf("%x is an answer about %v at %v", b, a, station)
		}
	})
}
