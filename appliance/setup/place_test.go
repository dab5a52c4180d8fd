package setup

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestFindPlaceOnLoopback(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Skip("loopback is not up")
	}
	addr := netip.MustParseAddr
	for _, test := range []struct {
		name       string
		want, good Place
		vips       []netip.Addr
		err        string
	}{
		{name: "interface alone", want: Place{Interface: "lo"}, good: Place{"lo", addr("127.0.0.1")}},
		{name: "address alone", want: Place{Address: addr("127.0.0.31")}, good: Place{"lo", addr("127.0.0.31")}},
		{name: "both", want: Place{"lo", addr("127.9.9.9")}, good: Place{"lo", addr("127.9.9.9")}},
		{name: "unknown interface", want: Place{Interface: "nosuch0"}, err: "network interface nosuch0: not on this machine, which has lo"},
		{name: "unknown address", want: Place{Address: addr("203.0.113.9")}, err: "host address 203.0.113.9: not on this machine"},
		{name: "address elsewhere", want: Place{"lo", addr("203.0.113.9")}, err: "host address 203.0.113.9: not on lo, which has 127.0.0.1"},
		{name: "nothing but VIPs", want: Place{Interface: "lo"}, vips: []netip.Addr{addr("127.0.0.1"), addr("::1")}, err: "network interface lo: no address"},
	} {
		got, err := FindPlace(test.want, test.vips)
		if test.err == "" && (err != nil || got != test.good) {
			t.Errorf("%s: %v, %v, want %v", test.name, got, err, test.good)
		}
		if test.err != "" && (err == nil || !strings.HasPrefix(err.Error(), test.err)) {
			t.Errorf("%s: %v, want %s", test.name, err, test.err)
		}
	}
}

func TestRankOfHostAddresses(t *testing.T) {
	last := -1
	for _, text := range []string{"192.0.2.1/24", "2001:db8::1/64", "192.0.2.11/32", "2001:db8::11/128"} {
		rank := hostAddress{Prefix: netip.MustParsePrefix(text)}.rank()
		if rank <= last {
			t.Errorf("%s has rank %d, want it after the one before, %d", text, rank, last)
		}
		last = rank
	}
}

func TestIsDefault(t *testing.T) {
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	_, some, _ := net.ParseCIDR("192.0.2.0/24")
	for _, test := range []struct {
		name  string
		route netlink.Route
		want  bool
	}{
		{"no destination", netlink.Route{Type: unix.RTN_UNICAST}, true},
		{"everything", netlink.Route{Type: unix.RTN_UNICAST, Dst: all}, true},
		{"a network", netlink.Route{Type: unix.RTN_UNICAST, Dst: some}, false},
		{"refusal of everything", netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: all}, false},
	} {
		if got := isDefault(test.route); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}
