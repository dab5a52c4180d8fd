package takeover_test

import (
	"net"
	"net/netip"
	"testing"

	"peerage/takeover"
	"peerage/takeover/linktest"
)

// freePort returns a UDP port that is free on all of 127.0.0.0/8 at the moment.
func freePort(t *testing.T) uint16 {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func loopbackPair(t *testing.T) (mine, other *takeover.LoopbackLink) {
	port := freePort(t)
	mine, other = takeover.Loopback(port), takeover.Loopback(port)
	t.Cleanup(func() { mine.Close(); other.Close() })
	return mine, other
}

func TestLoopback(t *testing.T) {
	vips := []netip.Addr{netip.MustParseAddr("127.0.0.221"), netip.MustParseAddr("127.0.0.222"), netip.MustParseAddr("127.0.0.223")}
	linktest.TestLink(t, vips, func(t *testing.T) (takeover.Link, takeover.Link) { return loopbackPair(t) })
}

func TestLoopbackRefusesASecondClaimer(t *testing.T) {
	mine, other := loopbackPair(t)
	vip := netip.MustParseAddr("127.0.0.222")
	if err := mine.Add(t.Context(), vip); err != nil {
		t.Fatal(err)
	}
	err := other.Add(t.Context(), vip)
	if want := "claim 127.0.0.222: held by another process"; err == nil || err.Error() != want {
		t.Errorf("second claim: got %v, want %s", err, want)
	}
	mine.Close()
	if err := other.Add(t.Context(), vip); err != nil {
		t.Errorf("claim after the holder has closed: %v", err)
	}
}

func TestLoopbackRefusesOtherAddresses(t *testing.T) {
	mine, _ := loopbackPair(t)
	for _, s := range []string{"192.0.2.1", "0.0.0.0", "::"} {
		if err := mine.Add(t.Context(), netip.MustParseAddr(s)); err == nil {
			t.Errorf("claim of %s: got no error", s)
		}
	}
}
