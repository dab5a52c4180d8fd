package site

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestVIPsMustLieInANetwork(t *testing.T) {
	doc, err := LoadDocument("testdata/good/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	network := func(prefix, name string) Network { return Network{netip.MustParsePrefix(prefix), name} }
	both := []Network{network("192.0.2.0/24", "eth0"), network("2001:db8::/64", "eth0")}
	if ps := doc.CheckInterfaces(both); len(ps) != 0 {
		t.Errorf("all VIPs lie in %v, got\n%v", both, ps)
	}
	ps := doc.CheckInterfaces([]Network{network("127.0.0.0/8", "lo"), network("192.0.2.0/24", "eth0")})
	want := `testdata/good/full.yaml:7:67: nodes.n1.vips[1]: 2001:db8::11 lies in no network here; the networks are 127.0.0.0/8 (lo), 192.0.2.0/24 (eth0)
testdata/good/full.yaml:8:47: nodes.n2.vips[1]: 2001:db8::12 lies in no network here; the networks are 127.0.0.0/8 (lo), 192.0.2.0/24 (eth0)`
	if ps.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", ps, want)
	}
	made := &Document{Nodes: doc.Nodes}
	if ps := made.CheckInterfaces(nil); len(ps) != 5 || !strings.Contains(ps[0].Text, "there are none") {
		t.Errorf("without networks: %v", ps)
	}
}

func TestNetworksOfAnInterface(t *testing.T) {
	addr := func(cidr string) net.Addr {
		ip, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return &net.IPNet{IP: ip, Mask: n.Mask}
	}
	for _, c := range []struct {
		name     string
		loopback bool
		addrs    []net.Addr
		want     string
	}{
		{"networks, not the addresses in them", false, []net.Addr{addr("192.0.2.7/24"), addr("2001:db8::7/64")}, "192.0.2.0/24 (x), 2001:db8::/64 (x)"},
		{"a VIP that is held makes no network", false, []net.Addr{addr("192.0.2.11/32"), addr("2001:db8::11/128")}, ""},
		{"loopback without addresses", true, nil, "127.0.0.0/8 (x)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, n := range networksOf("x", c.loopback, c.addrs) {
				got = append(got, n.String())
			}
			if s := strings.Join(got, ", "); s != c.want {
				t.Errorf("got %s, want %s", s, c.want)
			}
		})
	}
}

func TestLocalNetworks(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for _, interfaces := range [][]string{nil, {"lo"}} {
		got, err := LocalNetworks(interfaces...)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(got, func(n Network) bool { return n.Prefix == loopback }) {
			t.Errorf("LocalNetworks(%v) = %v, want %v among them", interfaces, got, loopback)
		}
	}
	if _, err := LocalNetworks("lo", "nowhere0"); err == nil || !strings.Contains(err.Error(), "nowhere0") {
		t.Errorf("an interface that is not there: %v", err)
	}
}
