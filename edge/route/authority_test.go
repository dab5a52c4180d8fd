package route

import (
	"net/netip"
	"strings"
	"testing"

	"peerage/balancing"
)

func TestParseAuthority(t *testing.T) {
	tests := []struct {
		authority, name string
		port            uint16
	}{
		{"www.example.com", "www.example.com", 0},
		{"WWW.Example.COM:8443", "www.example.com", 8443},
		{"www.example.com.", "www.example.com", 0},
		{"www.example.com.:443", "www.example.com", 443},
		{"www.example.com:", "www.example.com", 0},
		{"localhost", "localhost", 0},
		{"bücher.example", "xn--bcher-kva.example", 0},
		{"BÜCHER。example", "xn--bcher-kva.example", 0},
		{"xn--bcher-kva.example", "xn--bcher-kva.example", 0},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example", 0},
		{"192.0.2.1", "192.0.2.1", 0},
		{"192.0.2.1:80", "192.0.2.1", 80},
		{"１92.0.2.1", "192.0.2.1", 0},
		{"[::1]", "::1", 0},
		{"[2001:DB8:0:0::1]:8443", "2001:db8::1", 8443},
		{"[::ffff:192.0.2.1]", "192.0.2.1", 0},
		{"1a.example", "1a.example", 0},
	}
	for _, tt := range tests {
		name, port, err := ParseAuthority(tt.authority)
		if name != tt.name || port != tt.port || err != nil {
			t.Errorf("ParseAuthority(%q) = %q, %d, %v; want %q, %d", tt.authority, name, port, err, tt.name, tt.port)
		}
	}
}

func TestParseAuthorityRefuses(t *testing.T) {
	tests := []struct {
		authority string
		want      error
	}{
		{"", noAuthority},
		{"a/b", badHost},
		{"a b<x>", badHost},
		{"u@a", badHost},
		{"a,b", badHost},
		{"a:99999x", badPort},
		{"a:99999", badPort},
		{"a:0", badPort},
		{"a:+80", badPort},
		{"a:-1", badPort},
		{"a:80:80", badPort},
		{"a: 80", badPort},
		{"[::1", badHost},
		{"::1", badHost},
		{"[::1]80", badPort},
		{"[::1]:x", badPort},
		{"[fe80::1%25eth0]", badHost},
		{"[fe80::1%eth0]", badHost},
		{"[192.0.2.1]", badHost},
		{"[v1.x]", badHost},
		{"[]", badHost},
		{":80", badHost},
		{".", badHost},
		{"a..", badHost},
		{"a..b", badHost},
		{".a", badHost},
		{"-a", badHost},
		{"a-.b", badHost},
		{"a_b", badHost},
		{"%61", badHost},
		{"a\x00", badHost},
		{"\xff", badHost},
		{"xn--\u00e4", badHost},
		{"xn--a", badHost},
		{"1.2.3", badHost},
		{"1", badHost},
		{"1.2.3.256", badHost},
		{"01.2.3.4", badHost},
		{"0x7f.0.0.1", badHost},
		{"a.0x7f", badHost},
		{strings.Repeat("a", 64), badHost},
		{strings.Repeat("a.", 127) + "a", badHost},
		{strings.Repeat("a", 2000), hostTooLong},
	}
	for _, tt := range tests {
		if name, _, err := ParseAuthority(tt.authority); err != tt.want {
			t.Errorf("ParseAuthority(%.40q) = %q, %v; want error %v", tt.authority, name, err, tt.want)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"www.example.com:80", "[::1]:1", "[::ffff:1.2.3.4]", "1.2.3.4.", "BÜCHER。example", "xn--a", "a_b", "０x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		name, _, err := ParseAuthority(authority)
		if err != nil {
			return
		}
		again := name
		if strings.Contains(name, ":") {
			again = "[" + name + "]"
		} else if !isLDH(name) {
			t.Errorf("ParseAuthority(%q) = %q, not a domain name", authority, name)
		}
		if second, _, err := ParseAuthority(again); second != name || err != nil {
			t.Errorf("ParseAuthority(%q) = %q; of that = %q, %v", authority, name, second, err)
		}
	})
}

var testNodes = []balancing.NodeID{"n1", "n2"}

func TestNamesLookup(t *testing.T) {
	n, err := NewNames([]string{"www.example.com", "shop.example.com"}, testNodes, "{node}.{host}",
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("2001:db8::1"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]Name{
		"www.example.com":     {Host: "www.example.com"},
		"shop.example.com":    {Host: "shop.example.com"},
		"n1.www.example.com":  {Host: "www.example.com", Node: "n1"},
		"n2.shop.example.com": {Host: "shop.example.com", Node: "n2"},
		"192.0.2.1":           {Host: "www.example.com", Literal: true},
		"192.0.2.2":           {Host: "www.example.com", Literal: true},
		"2001:db8::1":         {Host: "www.example.com", Literal: true},
	}
	for name, want := range tests {
		if got, ok := n.Lookup(name); got != want || !ok {
			t.Errorf("Lookup(%q) = %+v, %t; want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "example.com", "n3.www.example.com", "n1.n1.www.example.com", "192.0.2.3"} {
		if got, ok := n.Lookup(name); ok {
			t.Errorf("Lookup(%q) = %+v, want none", name, got)
		}
	}
	for _, node := range testNodes {
		want := Name{Host: "shop.example.com", Node: node}
		if got, _ := n.Lookup(n.NodeName(node, want.Host)); got != want {
			t.Errorf("Lookup(NodeName(%s, %s)) = %+v, want %+v", node, want.Host, got, want)
		}
	}
}

func TestNewNamesRefuses(t *testing.T) {
	tests := []struct {
		name    string
		hosts   []string
		pattern string
		want    string
	}{
		{"no hosts", nil, "{node}.{host}", "no hosts"},
		{"no node in the pattern", []string{"a.example"}, "node.{host}", "pattern"},
		{"node names beside the host", []string{"a.example"}, "{node}-{host}", "pattern"},
		{"something after the host", []string{"a.example"}, "{node}.{host}.x", "pattern"},
		{"host with a port", []string{"a.example:80"}, "{node}.{host}", `"a.example:80": not a domain name`},
		{"host not canonical", []string{"A.Example"}, "{node}.{host}", `write it as "a.example"`},
		{"host an address", []string{"192.0.2.1"}, "{node}.{host}", "an address"},
		{"host twice", []string{"a.example", "a.example"}, "{node}.{host}", "by host a.example and by host a.example"},
		{"host like a node name", []string{"a.example", "n1.a.example"}, "{node}.{host}", "by node n1 of host a.example and by host n1.a.example"},
		{"pattern with junk", []string{"a.example"}, "{node}_x.{host}", `"n1_x.a.example": not a domain name`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewNames(tt.hosts, testNodes, tt.pattern)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewNames(%q, %q) = %v, want an error with %q", tt.hosts, tt.pattern, err, tt.want)
			}
		})
	}
}

func BenchmarkParseAuthority(b *testing.B) {
	for _, authority := range []string{"n1.www.example.com:8443", "[2001:db8::1]:8443", "WWW.example.com"} {
		b.Run(authority, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := ParseAuthority(authority); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
