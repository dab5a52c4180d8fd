package node

import (
	"net/netip"
	"slices"
	"testing"

	"peerage/appliance/site"
	"peerage/balancing"
)

func TestStandby(t *testing.T) {
	vips := func(third byte, n int) (l []netip.Addr) {
		for i := range n {
			l = append(l, netip.AddrFrom4([4]byte{10, 0, third, byte(i)}))
		}
		return l
	}
	doc := &site.Document{Nodes: map[balancing.NodeID]site.Node{"n1": {VIPs: vips(1, 2)}, "n2": {VIPs: vips(2, 2)}, "n3": {VIPs: vips(3, 1)}}}
	s := &server{nodeFile: &site.NodeFile{Name: "n2"}}
	s.current.Store(&generation{doc: doc})
	if got, want := s.standby(), slices.Concat(vips(2, 2), vips(1, 2), vips(3, 1)); !slices.Equal(got, want) {
		t.Errorf("ready for %v, want %v", got, want)
	}
	many := *doc
	many.Nodes = map[balancing.NodeID]site.Node{"n1": {VIPs: vips(1, 255)}, "n2": {VIPs: vips(2, 2)}}
	s.current.Store(&generation{doc: &many})
	if got := s.standby(); len(got) != maxStandby || !slices.Equal(got[:2], vips(2, 2)) {
		t.Errorf("ready for %d addresses, the first of them %v; want %d and its own", len(got), got[:2], maxStandby)
	}
	s.onLoopback = true
	if got := s.standby(); len(got) > 0 {
		t.Errorf("ready for %v, which a peer on the same machine may hold", got)
	}
}
