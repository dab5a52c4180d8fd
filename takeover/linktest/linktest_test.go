package linktest_test

import (
	"net/netip"
	"testing"
	"time"

	"peerage/takeover"
	"peerage/takeover/linktest"
)

func TestFake(t *testing.T) {
	vips := []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}
	linktest.TestLink(t, vips, func(t *testing.T) (mine, other takeover.Link) {
		lan := linktest.NewLAN(time.Millisecond)
		return lan.Host("n1"), lan.Host("n2")
	})
}

func TestFakePrintsItself(t *testing.T) {
	lan := linktest.NewLAN(0)
	n1, n2 := lan.Host("n1"), lan.Host("n2")
	vip := netip.MustParseAddr("192.0.2.11")
	n1.Add(t.Context(), vip)
	n2.Add(t.Context(), vip)
	n2.Crash()
	if got, want := lan.String(), "n1: 192.0.2.11\nn2: 192.0.2.11 (down)\n"; got != want {
		t.Errorf("LAN:\ngot\n%swant\n%s", got, want)
	}
	n2.Boot()
	if got, want := n2.String(), "n2:"; got != want {
		t.Errorf("host after boot: got %q, want %q", got, want)
	}
}
