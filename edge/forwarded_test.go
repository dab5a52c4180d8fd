package edge

import (
	"net/http"
	"net/netip"
	"testing"
)

// near are the proxies that the tests trust.
var near = &Site{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ff::/48")}}

func TestForwardedFor(t *testing.T) {
	const from = "10.0.0.1:5000"
	lines := func(l ...string) []string { return l }
	for _, k := range []struct {
		what      string
		forwarded []string
		xff       []string
		want      string
	}{
		{"no header", nil, nil, from},
		{"one address", nil, lines("192.0.2.1"), "192.0.2.1:0"},
		{"IPv6", nil, lines("2001:db8::1"), "[2001:db8::1]:0"},
		{"IPv6 in brackets, with a port", nil, lines("[2001:db8::1]:80"), "[2001:db8::1]:80"},
		{"port", nil, lines("192.0.2.1:80"), "192.0.2.1:80"},
		{"the right-most counts", nil, lines("6.6.6.6, 192.0.2.1"), "192.0.2.1:0"},
		{"right of it are proxies", nil, lines("6.6.6.6,192.0.2.1 , 10.0.0.7,2001:db8:ff::1"), "192.0.2.1:0"},
		{"several lines are one list", nil, lines("192.0.2.1", "10.0.0.7"), "192.0.2.1:0"},
		{"empty elements", nil, lines(", 192.0.2.1, ,"), "192.0.2.1:0"},
		{"proxies alone", nil, lines("10.0.0.9, 10.0.0.7"), "10.0.0.9:0"},
		{"nonsense left of a proxy", nil, lines("x\"y, 10.0.0.7"), "10.0.0.7:0"},
		{"nonsense", nil, lines("unknown"), from},
		{"mapped address", nil, lines("::ffff:192.0.2.1"), "192.0.2.1:0"},
		{"empty", nil, lines(""), from},

		{"RFC 7239 4", lines(`for=192.0.2.43;proto=http;by=203.0.113.43`), nil, "192.0.2.43:0"},
		{"upper case", lines(`Proto=https ; FOR=192.0.2.43`), nil, "192.0.2.43:0"},
		{"quoted, IPv6", lines(`for="[2001:db8:cafe::17]:4711"`), nil, "[2001:db8:cafe::17]:4711"},
		{"list", lines(`for=6.6.6.6, for=192.0.2.43, for="10.0.0.7:99"`), nil, "192.0.2.43:0"},
		{"quoted comma", lines(`for=192.0.2.43;host="a,b;for=6.6.6.6"`), nil, "192.0.2.43:0"},
		{"quote left open by the client", lines(`for="6.6.6.6, for=192.0.2.43`), nil, "192.0.2.43:0"},
		{"quote left open in a line before", lines(`host="`, `for=192.0.2.43`), nil, "192.0.2.43:0"},
		{"unknown", lines(`for=6.6.6.6, for=unknown, for=10.0.0.7`), nil, "10.0.0.7:0"},
		{"hidden", lines(`for=6.6.6.6, for=_secret`), nil, from},
		{"element without it", lines(`for=6.6.6.6, proto=https`), nil, from},
		{"twice", lines(`for=6.6.6.6;for=7.7.7.7`), nil, from},

		{"both agree", lines(`for="192.0.2.1:7"`), lines("192.0.2.1"), "192.0.2.1:0"},
		{"one of the two is the client's own", lines(`for=6.6.6.6`), lines("192.0.2.1"), from},
	} {
		t.Run(k.what, func(t *testing.T) {
			h := http.Header{}
			if k.forwarded != nil {
				h["Forwarded"] = k.forwarded
			}
			if k.xff != nil {
				h["X-Forwarded-For"] = k.xff
			}
			if got := forwardedFor(h, netip.MustParseAddrPort(from), near.trusts); got.String() != k.want {
				t.Errorf("Forwarded %q, X-Forwarded-For %q: client %v, want %v", k.forwarded, k.xff, got, k.want)
			}
		})
	}
}

// FuzzForwardedFor checks that whatever a client writes, it is the address which the
// trusted proxy adds that counts.
func FuzzForwardedFor(f *testing.F) {
	f.Add("6.6.6.6")
	f.Add(`for="6.6.6.6;by=`)
	f.Add(`",for=[::1`)
	f.Add("")
	from := netip.MustParseAddrPort("10.0.0.1:5000")
	client := netip.MustParseAddr("192.0.2.1")
	f.Fuzz(func(t *testing.T, written string) {
		for name, added := range map[string]string{"X-Forwarded-For": client.String(), "Forwarded": "for=" + client.String()} {
			for _, lines := range [][]string{{written + ", " + added}, {written, added}} {
				if got := forwardedFor(http.Header{name: lines}, from, near.trusts); got.Addr() != client {
					t.Errorf("%s %q: client %v, want %v", name, lines, got, client)
				}
			}
			got := forwardedFor(http.Header{name: {written}}, from, near.trusts)
			if !got.Addr().IsValid() || got.Addr().Zone() != "" {
				t.Errorf("%s %q: client %v", name, written, got)
			}
		}
	})
}
