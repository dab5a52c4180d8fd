package edge

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/edge/route"
)

// behind makes the clients of the tests, which come from this machine, a proxy.
func (c *cluster) behind(redirects bool) {
	c.resite(func(s *Site) {
		s.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8")}
		s.ProxyRedirects = redirects
	})
}

func TestClientOfTrustedProxy(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	c.nodes["b"].access.next(t)
	ask := func(proto, path, method string, header ...string) sight {
		return c.ask(t, question{at: "a", proto: proto, path: path, method: method, header: header}).seen(t)
	}
	header := []string{"X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.0.0.5", "X-Forwarded-Host: evil.example", "X-Real-Ip: 6.6.6.6"}
	for _, trusted := range []bool{false, true} {
		if trusted {
			c.behind(false)
		}
		for _, proto := range protocols {
			s := ask(proto, "/", "GET", header...)
			if got := netip.MustParseAddrPort(s.Remote).Addr().String(); (got == "192.0.2.7") != trusted || !trusted && got != "127.0.0.1" {
				t.Errorf("%s, trusted %v: the origin saw client %s", proto, trusted, got)
			}
			for _, k := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip"} {
				if s.Header.Get(k) != "" {
					t.Errorf("%s, trusted %v: the origin saw %s", proto, trusted, k)
				}
			}
		}
	}
	if line := lastLine(t, c.nodes["a"]); line["client"] != "192.0.2.7:0" {
		t.Errorf("access log has client %v", line["client"])
	}
	s := ask("h2", "/bank/x", "POST", append(header, pinned)...)
	if s.Node != "b" || s.Remote != "192.0.2.7:0" {
		t.Errorf("through a relay to %s, the origin saw client %s", s.Node, s.Remote)
	}
	if line := c.nodes["b"].access.next(t); line["client"] != "192.0.2.7:0" {
		t.Errorf("access log of the owner has client %v", line["client"])
	}
}

// The proxy's clients may not reach the names of nodes: what would be a redirect is a
// relay, or served here.
func TestBehindProxy(t *testing.T) {
	c := newCluster(t, nil)
	c.reroute(t, route.Rule{Path: "/"}, route.Rule{Path: "/only-c/", Nodes: []balancing.NodeID{"c"}},
		route.Rule{Path: "/bank/", Stateful: &route.Stateful{Name: "bank", EntryKeepsPin: true}})
	pinned := c.enter(t, "b", "/bank/")
	c.load(90, 20, 40)
	for _, redirects := range []bool{false, true} {
		c.behind(redirects)
		for _, k := range []struct {
			what, path, header string
			servedBy           balancing.NodeID
			location           string
		}{
			{"load", "/", "", "a", at("b", "/")},
			{"row 50 pin", "/bank/x", pinned, "b", at("b", "/bank/x")},
			{"dedication", "/only-c/x", "", "c", at("c", "/only-c/x")},
		} {
			for _, proto := range protocols {
				t.Run(fmt.Sprint(k.what, " ", proto, " redirects=", redirects), func(t *testing.T) {
					q := question{at: "a", proto: proto, path: k.path, header: []string{"X-Forwarded-For: 192.0.2.7"}}
					if k.header != "" {
						q.header = append(q.header, k.header)
					}
					a := c.ask(t, q)
					if redirects {
						a.want(t, 307, "", k.location)
						return
					}
					a.want(t, 200, k.servedBy, "")
					if got := a.Header["Alt-Svc"]; got != nil {
						t.Errorf("Alt-Svc %q would lead the client around its proxy", got)
					}
				})
			}
		}
	}
}

// What the client can reach is the proxy, so a lost client is sent to a path and not to a
// name of ours.
func TestLostClientBehindProxy(t *testing.T) {
	c := newCluster(t, nil)
	lost := c.enter(t, "b", "/restart/")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Online = false })
	c.behind(false)
	c.ask(t, question{at: "a", path: "/restart/x", header: []string{lost}}).want(t, 303, "", "/restart/")
}

func TestPROXYProtocol(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	n := c.nodes["a"]
	ask := func(local, head, request string) (*http.Response, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}, Timeout: 10 * time.Second}
		raw, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(n.addr, testPorts.HTTPS).String())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { raw.Close() })
		raw.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(raw, head)
		conn := tls.Client(raw, &tls.Config{RootCAs: c.ca.pool, ServerName: host})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			return nil, err
		}
		return readAnswer(t, conn, request), nil
	}
	const get = "GET / HTTP/1.1\r\nHost: " + host + "\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
	const v1 = "PROXY TCP4 192.0.2.7 203.0.113.1 4000 443\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xcb\x00\x71\x01\x0f\xa0\x01\xbb"
	c.resite(func(s *Site) {
		s.Proxies, s.ProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, true
	})
	for _, k := range []struct {
		what, local, head string
		status            int // 0: no answer
		client            string
	}{
		{"version 1", "127.0.0.2", v1, 200, "192.0.2.7:4000"},
		{"version 2", "127.0.0.2", v2, 200, "192.0.2.7:4000"},
		{"a proxy that says nothing", "127.0.0.2", "", 0, ""},
		{"somebody else", "127.0.0.3", v1, 0, ""},
		{"somebody else, without", "127.0.0.3", "", 307, ""},
	} {
		t.Run(k.what, func(t *testing.T) {
			resp, err := ask(k.local, k.head, get)
			if k.status == 0 {
				if err == nil {
					t.Fatalf("status %d, want no connection", resp.StatusCode)
				}
				return
			}
			if err != nil || resp.StatusCode != k.status {
				t.Fatalf("%v, %v; want status %d", resp, err, k.status)
			}
			if line := n.access.next(t); k.client != "" && line["client"] != k.client {
				t.Errorf("client %v, want %s", line["client"], k.client)
			}
		})
	}
}
