package link

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// heard returns the station that p believes to hold vip after a packet, and whether the
// filter of the socket lets it pass.
func heard(t *testing.T, p *protocol, data []byte, from net.HardwareAddr, vip netip.Addr) (net.HardwareAddr, bool) {
	t.Helper()
	filter, err := bpf.NewVM(p.answers(vip))
	if err != nil {
		t.Fatal(err)
	}
	passed, err := filter.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return p.holder(data, from, vip), passed > 0
}

func TestProbesHearWhoHoldsTheAddress(t *testing.T) {
	for _, s := range []string{"192.0.2.11", "2001:db8::11"} {
		vip, other := netip.MustParseAddr(s), netip.MustParseAddr(s).Next()
		p := protocolOf(vip)
		frames, err := p.announcement(theirs, vip, other)
		if err != nil {
			t.Fatal(err)
		}
		if h, passed := heard(t, p, frames[0].data, theirs, vip); !passed || !bytes.Equal(h, theirs) {
			t.Errorf("announcement of %s: got holder %s, passed %v; want %s, true", vip, h, passed, theirs)
		}
		if h, passed := heard(t, p, frames[0].data, theirs, other); passed || h != nil {
			t.Errorf("announcement of %s in place of %s: got holder %s, passed %v; want none, false", vip, other, h, passed)
		}
		question, err := p.probe(theirs, vip)
		if err != nil {
			t.Fatal(err)
		}
		if h, passed := heard(t, p, question.data, theirs, vip); passed || h != nil {
			t.Errorf("probe of %s by another: got holder %s, passed %v; want none, false", vip, h, passed)
		}
	}
}

func TestAdvertisementFromBeyondTheLANDoesNotCount(t *testing.T) {
	vip := netip.MustParseAddr("2001:db8::11")
	frames, err := ndpAnnouncement(theirs, vip, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	data := frames[0].data
	data[7]-- // a router passed it on
	if h := ndpHolder(data, theirs, vip); h != nil {
		t.Errorf("holder by a forwarded advertisement: got %s, want none", h)
	}
}

// Whatever is on the wire, a packet is taken for an answer only if the filter would
// have let it pass, and never ours for another's.
func FuzzHolder(f *testing.F) {
	vips := []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}
	for _, vip := range vips {
		p := protocolOf(vip)
		frames, err := p.announcement(ours, vip, vip.Next())
		if err != nil {
			f.Fatal(err)
		}
		question, err := p.probe(ours, vip)
		if err != nil {
			f.Fatal(err)
		}
		for _, fr := range append(frames, question) {
			f.Add(fr.data)
			f.Add(fr.data[:len(fr.data)-1])
			f.Add(append(fr.data, make([]byte, 18)...)) // padded to the shortest frame
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, vip := range vips {
			h, passed := heard(t, protocolOf(vip), data, theirs, vip)
			if h == nil {
				continue
			}
			if !passed {
				t.Errorf("%x taken for an answer about %s, but filtered", data, vip)
			}
			if len(h) != 6 {
				t.Errorf("holder of %s by %x: got %s, want an Ethernet address", vip, data, h)
			}
			if !bytes.Equal(h, theirs) && !bytes.Contains(data, h) {
				t.Errorf("holder of %s by %x: got %s, which is nowhere in it", vip, data, h)
			}
		}
	})
}
