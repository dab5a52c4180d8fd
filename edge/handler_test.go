package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"peerage/balancing"
)

func TestAuthority(t *testing.T) {
	c := newCluster(t, nil)
	for _, k := range []struct {
		what   string
		host   string
		status int
	}{
		{"host", host, 200},
		{"host with port, in upper case, with a final dot", "WWW.Example.TEST.:10443", 200},
		{"own node name", "a." + host, 200},
		{"own address", c.nodes["a"].addr.String(), 200},
		{"not ours", "evil.example", 421},
		{"below ours", "x." + host, 421},
		{"ours below another", host + ".evil.example", 421},
		{"node name of an on-line peer (row 44)", "b." + host, 421},
		{"a list", host + ",evil.example", 400},
		{"a port that is none", host + ":99999", 400},
		{"user information", "u@" + host, 400},
		{"an open bracket", "[::1", 400},
		{"empty", "", 400},
	} {
		for _, target := range []string{"/", HealthPath} {
			t.Run(k.what+" "+target, func(t *testing.T) {
				resp, _, _ := c.raw(t, c.nodes["a"], "GET "+target+" HTTP/1.1\r\nHost: "+k.host+"\r\n\r\n")
				if resp.StatusCode != k.status {
					t.Errorf("Host %q: status %d, want %d", k.host, resp.StatusCode, k.status)
				}
			})
		}
	}
	for _, proto := range protocols {
		a := c.ask(t, question{at: "a", proto: proto, path: "/", header: []string{"Host: evil.example"}})
		a.want(t, 421, "", "")
	}
}

func TestStandInAnswersForItsPeer(t *testing.T) { // row 45
	c := newCluster(t, nil)
	c.change(func(n map[balancing.NodeID]*balancing.Node) {
		n["b"].Online = false
		n["a"].Held = append(n["a"].Held[:1:1], n["b"].Home...)
	})
	c.ask(t, question{at: "a", name: "b." + host, path: "/"}).want(t, 200, "a", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Online = true })
	c.ask(t, question{at: "a", name: "b." + host, path: "/"}).want(t, 200, "a", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].Held = n["a"].Home })
	c.ask(t, question{at: "a", name: "b." + host, path: "/"}).want(t, 421, "", "")
}

func TestOriginSeesCanonicalTarget(t *testing.T) {
	c := newCluster(t, nil)
	for _, proto := range protocols {
		for target, want := range map[string]string{
			"/":                       "/",
			"/a/../b%7ec/./d":         "/b~c/d",
			"//a///b":                 "/a/b",
			"/%62ank%2dx":             "/bank-x",
			"/a%c3%a4?q=%2e%2e&r=a;b": "/a%C3%A4?q=%2e%2e&r=a;b",
		} {
			a := c.ask(t, question{at: "a", proto: proto, path: target})
			a.want(t, 200, "a", "")
			s := a.seen(t)
			if path, _, _ := strings.Cut(want, "?"); s.URI != want || s.Path != path {
				t.Errorf("%s %s: the origin saw %q and path %q, want %q", proto, target, s.URI, s.Path, want)
			}
		}
		a := c.ask(t, question{at: "a", proto: proto, path: "/", header: []string{"Host: WWW.Example.TEST.:6666"}})
		if got, want := a.seen(t).Host, fmt.Sprintf("%s:%d", host, testPorts.HTTPS); got != want {
			t.Errorf("%s: the origin saw host %q, want %q", proto, got, want)
		}
		for _, target := range []string{"/a%2fb", "/a%5cb", "/../x", "/a%00", "/..;/x"} {
			a := c.ask(t, question{at: "a", proto: proto, path: target})
			a.want(t, 400, "", "")
		}
	}
}

func TestTargetForms(t *testing.T) {
	c := newCluster(t, nil)
	for _, k := range []struct {
		line   string
		status int
		uri    string
	}{
		{"GET https://" + host + "/a/../b?c HTTP/1.1", 200, "/b?c"}, // RFC 9112 3.2.2
		{"GET HTTP://" + host + " HTTP/1.1", 200, "/"},
		{"GET https://" + host + "?q HTTP/1.1", 200, "/?q"},
		{"GET https://evil.example/ HTTP/1.1", 421, ""},
		{"OPTIONS * HTTP/1.1", 200, "/"},
		{"TRACE / HTTP/1.1", 405, ""},
		{"GET * HTTP/1.1", 400, ""},
		{"CONNECT " + host + ":443 HTTP/1.1", 501, ""},
		{"GET /" + strings.Repeat("x", 8<<10) + " HTTP/1.1", 414, ""}, // RFC 9112 3
		{"GET /" + strings.Repeat("x", 40<<10) + " HTTP/1.1", 431, ""},
	} {
		resp, _, _ := c.raw(t, c.nodes["a"], k.line+"\r\nHost: "+host+"\r\n\r\n")
		var s sight
		if k.uri != "" {
			if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
				t.Fatal(err)
			}
		}
		if resp.StatusCode != k.status || s.URI != k.uri {
			t.Errorf("%.60s: status %d, the origin saw %q; want %d, %q", k.line, resp.StatusCode, s.URI, k.status, k.uri)
		}
	}
}

func TestPlainHTTPLeadsToHTTPS(t *testing.T) {
	c := newCluster(t, nil)
	for _, k := range []struct {
		host, target string
		status       int
		location     string
	}{
		{host, "/x//y?q=1", 308, at("", "/x/y?q=1")},
		{"a." + host + ":80", "/", 308, at("a", "/")},
		{c.nodes["a"].addr.String(), "/", 308, at("", "/")},
		{host, "//evil.example/", 308, at("", "/evil.example/")},
		{host, "/" + strings.Repeat("x", 6000), 308, at("", "/"+strings.Repeat("x", 6000))},
		{host, HealthPath, 200, ""},
		{"evil.example", "/", 421, ""},
		{"a b", "/", 400, ""},
	} {
		resp := plainly(t, c.nodes["a"], "GET "+k.target+" HTTP/1.1\r\nHost: "+k.host+"\r\n\r\n")
		if got := resp.Header.Get("Location"); resp.StatusCode != k.status || got != k.location {
			t.Errorf("http, Host %s, %s: status %d to %q, want %d to %q", k.host, k.target, resp.StatusCode, got, k.status, k.location)
		}
	}
	// The malformed host does not come as far as the handler.
	if got := c.nodes["a"].Counters().Plain; got != 7 {
		t.Errorf("counted %d plain requests, want 7", got)
	}
}

// S209: a node above L1 sends pages to the lightest peer, in all protocols alike.
func TestLoadedNodeRedirectsPages(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	for _, proto := range protocols {
		for _, header := range [][]string{nil, {"Sec-Fetch-Mode: navigate"}} {
			a := c.ask(t, question{at: "a", proto: proto, path: "/p//q?r=1", header: header})
			a.want(t, 307, "", at("b", "/p/q?r=1"))
			if got := a.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("%s: Cache-Control %q, want no-store", proto, got)
			}
			if len(a.Cookies()) != 1 || a.Cookies()[0].Domain != host || a.Cookies()[0].MaxAge != 10 {
				t.Errorf("%s: cookies %v, want one hop marker of 10 s for %s", proto, a.Header["Set-Cookie"], host)
			}
		}
	}
	c.load(50, 20, 40) // equal to L1 (S203)
	c.ask(t, question{at: "a", path: "/"}).want(t, 200, "a", "")
}

// S210: who was redirected is served, with cookies and without, however loaded the
// target is by then. S201: a bookmark of a node name is balanced like any other.
func TestRedirectedClientIsServed(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	first := c.ask(t, question{at: "a", path: "/p"})
	first.want(t, 307, "", at("b", "/p"))
	c.load(20, 95, 20)
	browser := []string{"Sec-Fetch-Mode: navigate"}
	for _, k := range []struct {
		what   string
		header []string
		status int
	}{
		{"browser with the hop marker", append(browser, cookieLine(first)), 200},
		{"script without cookies", nil, 200},
		{"browser with a bookmark", browser, 307},
		{"browser with a forged marker", append(browser, "Cookie: "+first.Cookies()[0].Name+"=AAAA"), 307},
		{"script with another cookie", []string{"Cookie: x=y"}, 307},
	} {
		t.Run(k.what, func(t *testing.T) {
			a := c.ask(t, question{at: "b", name: "b." + host, path: "/p", header: k.header})
			if a.StatusCode != k.status {
				t.Errorf("status %d, want %d", a.StatusCode, k.status)
			}
		})
	}
}

func TestHostHeaderDoesNotReachLocation(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	for _, k := range []string{
		"X-Forwarded-Host: evil.example", "Forwarded: host=evil.example", "X-Host: evil.example",
		"Host: WWW.EXAMPLE.TEST.:6666", "X_Forwarded_Host: evil.example",
	} {
		resp, _, _ := c.raw(t, c.nodes["a"], "GET //evil.example/ HTTP/1.1\r\n"+hostLine(k)+k+"\r\n\r\n")
		where := resp.Header.Get("Location")
		if resp.StatusCode != 307 || where != at("b", "/evil.example/") {
			t.Errorf("%s: %d to %q, want 307 to the node name of b", k, resp.StatusCode, where)
		}
	}
}

func TestHeadersAreScrubbed(t *testing.T) {
	c := newCluster(t, nil)
	bad := []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Anything", "Forwarded", "X-Real-Ip", "X-Pin-Lost", "Proxy",
		"X_Forwarded_For", "X.Forwarded.For", "X-Real_ip", relayClient, "Peerage-Other", "Peerage_client",
	}
	header := []string{"X-Kept: yes", "Forwarded-Not: yes"}
	for _, k := range bad {
		header = append(header, k+": 192.0.2.9:1")
	}
	pinned := c.enter(t, "b", "/bank/")
	for _, q := range []question{
		{at: "a", proto: "h1", path: "/", header: header},
		{at: "a", proto: "h2", path: "/", header: header},
		{at: "a", proto: "h3", path: "/", header: header},
		{at: "a", method: "POST", path: "/bank/x", header: append(header, pinned)}, // through the relay
	} {
		s := c.ask(t, q).seen(t)
		for _, k := range bad {
			for got := range s.Header {
				if strings.EqualFold(got, k) {
					t.Errorf("%s %s: the origin saw %s: %s", q.proto, q.path, got, s.Header[got])
				}
			}
		}
		if s.Header.Get("X-Kept") != "yes" || s.Header.Get("Forwarded-Not") != "yes" {
			t.Errorf("%s %s: the origin saw %v, want the innocent headers too", q.proto, q.path, s.Header)
		}
		if client, err := netip.ParseAddrPort(s.Remote); err != nil || !client.Addr().IsLoopback() {
			t.Errorf("%s %s: the origin saw client %s", q.proto, q.path, s.Remote)
		}
	}
}

// Decision 4: what load never moves.
func TestNeverRedirectedByLoad(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	for _, k := range []question{
		{method: "POST", body: "x"},
		{method: "PUT"},
		{method: "DELETE"},
		{method: "OPTIONS", header: []string{"Access-Control-Request-Method: PUT", "Origin: https://x"}},
		{header: []string{"Sec-Fetch-Mode: cors"}},
		{header: []string{"Sec-Fetch-Mode: no-cors"}},
		{header: []string{"Sec-Fetch-Mode: same-origin"}},
		{header: []string{"Authorization: Basic eDp5"}},
		{header: []string{"Range: bytes=5-"}},
		{header: []string{"Accept: text/event-stream"}},
		{header: []string{"Content-Type: application/grpc+proto"}},
		{proto: "h1", header: []string{"Connection: Upgrade", "Upgrade: other"}},
		{method: "GET", body: "x"},
		{proto: "h1", method: "GET", body: "x"},
	} {
		k.at, k.path = "a", "/"
		t.Run(fmt.Sprint(k.proto, k.method, k.header, k.body), func(t *testing.T) {
			c.ask(t, k).want(t, 200, "a", "")
		})
	}
	c.ask(t, question{at: "a", path: "/"}).want(t, 307, "", at("b", "/"))
}

// A body of unknown length over HTTP/2 is a body too.
func TestStreamedBodyIsNotRedirected(t *testing.T) {
	for _, k := range []struct {
		proto   int
		length  int64
		movable bool
	}{
		{1, 0, true},
		{1, -1, false},
		{2, 0, true},
		{2, -1, false},
		{2, 5, false},
		{3, -1, true}, // so is a GET without a body in quic-go
		{3, 5, false},
	} {
		r := &http.Request{Method: "GET", ProtoMajor: k.proto, ContentLength: k.length, Header: http.Header{}}
		if got := movable(r); got != k.movable {
			t.Errorf("HTTP/%d, content length %d: movable = %v, want %v", k.proto, k.length, got, k.movable)
		}
	}
}

// Claims 4 to 9: overload never moves a pinned client, up to and including its exit.
func TestPinHoldsUnderLoad(t *testing.T) {
	c := newCluster(t, nil)
	browser := []string{"Sec-Fetch-Mode: navigate"}
	pinned := append(browser, c.enter(t, "a", "/bank/"))
	c.load(99, 5, 20)
	for _, path := range []string{"/bank/", "/bank", "/bank/transfer", "/bank/../bank/x?y"} {
		a := c.ask(t, question{at: "a", path: path, header: pinned})
		a.want(t, 200, "a", "")
		if got := a.Header["Set-Cookie"]; got != nil {
			t.Errorf("%s: Set-Cookie %q, want the pin kept as it is", path, got)
		}
	}
	for _, path := range []string{"/", "/bankers", "/Bank/x"} { // row 6: outside
		if a := c.ask(t, question{at: "a", path: path, header: browser}); a.StatusCode != 307 {
			t.Errorf("%s: status %d, want 307", path, a.StatusCode)
		}
	}
	a := c.ask(t, question{at: "a", path: "/bank/logout?status=500", header: pinned}) // row 10
	if a.want(t, 500, "a", ""); a.Header["Set-Cookie"] != nil {
		t.Errorf("exit with an error: Set-Cookie %q, want the pin kept", a.Header["Set-Cookie"])
	}
	a = c.ask(t, question{at: "a", path: "/bank/logout", header: pinned}) // row 8
	if a.want(t, 200, "a", ""); len(a.Cookies()) != 1 || a.Cookies()[0].MaxAge >= 0 {
		t.Errorf("exit: Set-Cookie %q, want the pin to end", a.Header["Set-Cookie"])
	}
	c.ask(t, question{at: "a", path: "/bank/", header: browser}).want(t, 307, "", at("b", "/bank/")) // row 9
}

func TestWhoIsPinned(t *testing.T) {
	c := newCluster(t, nil)
	for _, k := range []struct {
		what         string
		method, path string
		set          bool
	}{
		{"entry (row 1)", "GET", "/bank/", true},
		{"entry without the slash (row 35)", "GET", "/bank?x=1", true},
		{"interior without a pin (row 5)", "GET", "/bank/x", true},
		{"POST to the interior", "POST", "/bank/x", true},
		{"HEAD of the entry (row 47)", "HEAD", "/bank/", false},
		{"error of the origin", "GET", "/bank/?status=503", false},
		{"not found at the origin", "GET", "/bank/?status=404", false},
		{"redirect of the origin", "GET", "/bank/?status=302", true},
		{"outside", "GET", "/", false},
	} {
		t.Run(k.what, func(t *testing.T) {
			a := c.ask(t, question{at: "a", method: k.method, path: k.path})
			if got := len(a.Cookies()) == 1; got != k.set {
				t.Fatalf("Set-Cookie %q, want a pin: %v", a.Header["Set-Cookie"], k.set)
			}
			if !k.set {
				return
			}
			p := a.Cookies()[0]
			if !p.Secure || !p.HttpOnly || p.SameSite != http.SameSiteLaxMode || p.Domain != host || p.Path != "/bank" || p.MaxAge != 0 {
				t.Errorf("pin %q has other attributes than it should", a.Header["Set-Cookie"])
			}
			if got := a.Header.Get("Cache-Control"); got != "private" {
				t.Errorf("Cache-Control %q, want private", got)
			}
		})
	}
	n := c.nodes["a"].Counters()
	if n.PinsSet != 5 {
		t.Errorf("counted %d pins set, want 5", n.PinsSet)
	}
}

func TestAlteredPinIsNoPin(t *testing.T) { // row 40
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	last := pinned[len(pinned)-3:]
	forged := strings.TrimSuffix(pinned, last) + strings.ToUpper(last) + "A"
	a := c.ask(t, question{at: "a", path: "/bank/x", header: []string{forged}})
	a.want(t, 200, "a", "")
	if len(a.Cookies()) != 1 || c.nodes["a"].Counters().BadPins != 1 {
		t.Errorf("Set-Cookie %q, %d bad pins; want a new pin, 1", a.Header["Set-Cookie"], c.nodes["a"].Counters().BadPins)
	}
}

// TestCacheIsToldOfThePin: an answer that others may cache must not carry one client's pin.
func TestCacheIsToldOfThePin(t *testing.T) {
	c := newCluster(t, func(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		w.Header().Add("Set-Cookie", "__Secure-pg-forged=x; Path=/")
		w.Header().Add("Set-Cookie", "own=1")
	})
	a := c.ask(t, question{at: "a", path: "/bank/"})
	if got := a.Header.Get("Cache-Control"); got != "private" {
		t.Errorf("Cache-Control %q, want private", got)
	}
	if got := a.Cookies(); len(got) != 2 || got[0].Name != "own" || !strings.HasPrefix(got[1].Name, "__Secure-pg-") || got[1].Name == "__Secure-pg-forged" {
		t.Errorf("Set-Cookie %q, want the origin's own and the pin", a.Header["Set-Cookie"])
	}
}

// Section 5.4: the owner is off-line, or was restarted and has forgotten.
func TestOwnerLost(t *testing.T) {
	c := newCluster(t, nil)
	pins := map[string]string{}
	for _, dir := range []string{"/bank/", "/restart/", "/fail/"} {
		pins[dir] = c.enter(t, "b", dir)
	}
	lost := map[string]func(map[balancing.NodeID]*balancing.Node){
		"off-line":        func(n map[balancing.NodeID]*balancing.Node) { n["b"].Online = false },
		"new incarnation": func(n map[balancing.NodeID]*balancing.Node) { n["b"].Online = true; n["b"].Incarnation = 999 },
	}
	for how, edit := range lost {
		c.change(edit)
		for _, k := range []struct {
			method, path string
			status       int
			location     string
			cookie       string // set, clear or keep
		}{
			{"GET", "/bank/x", 200, "", "set"}, // row 16
			{"POST", "/bank/x", 200, "", "set"},
			{"GET", "/bank/logout", 200, "", "clear"},
			{"GET", "/restart/x", 303, at("", "/restart/"), "clear"},  // row 17
			{"POST", "/restart/x?a=b", 409, "", "clear"},              // row 18
			{"GET", "/fail/x", 503, "", "keep"},                       // row 19
			{"HEAD", "/restart/x", 303, at("", "/restart/"), "clear"}, // or it would be sent there for ever
			{"GET", "/restart/", 200, "", "set"},                      // it is there already
			{"GET", "/restart/logout", 303, at("", "/restart/"), "clear"},
		} {
			t.Run(how+" "+k.method+" "+k.path, func(t *testing.T) {
				dir := k.path[:strings.LastIndexByte(k.path, '/')+1]
				a := c.ask(t, question{at: "a", method: k.method, path: k.path, header: []string{pins[dir]}})
				a.want(t, k.status, "", k.location)
				got := "keep"
				if len(a.Cookies()) == 1 {
					got = map[bool]string{true: "clear", false: "set"}[a.Cookies()[0].MaxAge < 0]
				}
				want := k.cookie
				if k.path == "/fail/x" && how == "new incarnation" {
					want = "clear" // the node is back, and knows nothing: refused once, not for ever
				}
				if got != want {
					t.Errorf("Set-Cookie %q, want: %s", a.Header["Set-Cookie"], want)
				}
				switch k.status {
				case 200:
					if s := a.seen(t); s.Node != "a" || s.Header.Get("X-Pin-Lost") != dir {
						t.Errorf("served by %s, X-Pin-Lost %q; want a, %s", s.Node, s.Header.Get("X-Pin-Lost"), dir)
					}
				case 409:
					if got := a.Header.Get("Link"); got != "<"+at("", "/restart/")+`>; rel="start"` {
						t.Errorf("Link %q, want the entry", got)
					}
				case 503:
					if a.Header.Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
				}
			})
		}
	}
}

// Row 20: a client that was pinned anew stays there when its old node is back.
func TestReturnedOwnerDoesNotTakeClientsBack(t *testing.T) {
	c := newCluster(t, nil)
	first := c.enter(t, "a", "/bank/")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].Online = false })
	again := c.ask(t, question{at: "b", path: "/bank/x", header: []string{first}})
	again.want(t, 200, "b", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].Online = true })
	c.ask(t, question{at: "a", path: "/bank/x", header: []string{cookieLine(again)}}).want(t, 307, "", at("b", "/bank/x"))
}

func TestDedicatedPath(t *testing.T) { // rows 24 to 28
	c := newCluster(t, nil)
	c.ask(t, question{at: "a", path: "/only-c/x"}).want(t, 307, "", at("c", "/only-c/x"))
	c.ask(t, question{at: "a", method: "POST", path: "/only-c/x", body: "b"}).want(t, 200, "c", "")
	c.ask(t, question{at: "c", path: "/only-c/x"}).want(t, 200, "c", "")
	c.load(20, 20, 99)
	c.ask(t, question{at: "c", path: "/only-c/x"}).want(t, 200, "c", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["c"].Online = false })
	c.ask(t, question{at: "a", path: "/only-c/x"}).want(t, 503, "", "")
}

func TestDrainingNodeSendsClientsAway(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "a", "/bank/")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].State = balancing.Draining })
	for _, proto := range protocols {
		a := c.ask(t, question{at: "a", proto: proto, path: "/"}) // row 49
		if a.StatusCode != 307 || a.Header.Get("Alt-Svc") != "clear" {
			t.Errorf("%s: status %d, Alt-Svc %q; want 307, clear", proto, a.StatusCode, a.Header.Get("Alt-Svc"))
		}
		if got := a.Close; proto == "h1" && !got {
			t.Errorf("%s: the connection is kept, want Connection: close", proto)
		}
		a = c.ask(t, question{at: "a", proto: proto, path: "/bank/x", header: []string{pinned}}) // row 48
		if a.want(t, 200, "a", ""); a.Header.Get("Alt-Svc") != "clear" || proto == "h1" && !a.Close {
			t.Errorf("%s, pinned: Alt-Svc %q, close %v; want clear", proto, a.Header.Get("Alt-Svc"), a.Close)
		}
		if a = c.ask(t, question{at: "a", proto: proto, path: HealthPath}); a.StatusCode != 503 {
			t.Errorf("%s: health %d, want 503", proto, a.StatusCode)
		}
	}
}

func TestAltSvcAndCanonicalLink(t *testing.T) {
	c := newCluster(t, nil)
	for proto, want := range map[string]string{"h1": `h3=":10443"; ma=600`, "h2": `h3=":10443"; ma=600`, "h3": ""} {
		a := c.ask(t, question{at: "a", proto: proto, name: "a." + host, path: "/x?y=1"})
		if got := a.Header.Get("Alt-Svc"); got != want {
			t.Errorf("%s: Alt-Svc %q, want %q", proto, got, want)
		}
		if got, want := a.Header.Get("Link"), "<"+at("", "/x?y=1")+`>; rel="canonical"`; got != want {
			t.Errorf("%s: Link %q, want %q", proto, got, want)
		}
	}
	resp, _, _ := c.raw(t, c.nodes["a"], "GET /?a>;rel=x,<b HTTP/1.1\r\nHost: a."+host+"\r\n\r\n")
	if got := resp.Header.Get("Link"); strings.Count(got, "<")+strings.Count(got, ">") != 2 {
		t.Errorf("Link %q: the query has left its brackets", got)
	}
}

func TestAccessLog(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	c.nodes["b"].access.next(t)
	c.ask(t, question{at: "a", proto: "h1", method: "POST", path: "/bank/x?secret=1", header: []string{pinned, "Authorization: secret"}, body: "b"})
	facing, owner := c.nodes["a"].access.next(t), c.nodes["b"].access.next(t)
	for _, k := range []struct {
		line map[string]any
		want map[string]any
	}{
		{facing, map[string]any{
			"proto": "h1", "method": "POST", "host": host, "path": "/bank/x", "status": 200.0,
			"decision": "relay", "reason": "pin-elsewhere", "peer": "b", "pin": "b",
		}},
		{owner, map[string]any{"proto": "relay", "decision": "here", "reason": "pinned", "from": "a", "pin": "b", "client": facing["client"]}},
	} {
		for key, want := range k.want {
			if got := k.line[key]; got != want {
				t.Errorf("access log: %s = %v, want %v", key, got, want)
			}
		}
		if n, ok := k.line["bytes"].(float64); !ok || n < 10 {
			t.Errorf("access log: bytes = %v, want the size of the answer", k.line["bytes"])
		}
		text, _ := json.Marshal(k.line)
		_, value, _ := strings.Cut(pinned, "=")
		for _, secret := range []string{"secret", value} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("access log has %q: %s", secret, text)
			}
		}
	}
	c.ask(t, question{at: "a", path: HealthPath})
	c.ask(t, question{at: "a", path: "/", header: []string{"Host: evil.example"}})
	if line := c.nodes["a"].access.next(t); line["status"] != 421.0 || line["decision"] != nil {
		t.Errorf("access log: %v, want the refusal, and no line for the health check", line)
	}
}

func TestCounters(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 20)
	for _, proto := range protocols {
		c.ask(t, question{at: "a", proto: proto, path: "/"})
		c.ask(t, question{at: "a", proto: proto, path: "/", method: "POST"})
		c.ask(t, question{at: "a", proto: proto, path: "/", header: []string{"Host: evil.example"}})
	}
	got := c.nodes["a"].Counters()
	if got.Requests != 9 || got.Refused != 3 || sum(got.Protocols) != 9 || got.Protocols["h3"] != 3 ||
		got.Actions["redirect"] != 3 || got.Actions["here"] != 3 ||
		got.Reasons["lighter-peer"] != 3 || got.Reasons["immovable"] != 3 ||
		got.Statuses["2xx"] != 3 || got.Statuses["3xx"] != 3 || got.Statuses["4xx"] != 3 {
		t.Errorf("counters after 3 redirects, 3 POSTs, 3 refusals: %+v", got)
	}
}

func TestOriginThatSaysNothing(t *testing.T) {
	c := newCluster(t, func(_ balancing.NodeID, _ http.ResponseWriter, _ *http.Request) {})
	for _, proto := range protocols {
		a := c.ask(t, question{at: "a", proto: proto, path: "/bank/"})
		if a.StatusCode != 200 || len(a.Cookies()) != 1 {
			t.Errorf("%s: status %d, Set-Cookie %q; want 200 and a pin", proto, a.StatusCode, a.Header["Set-Cookie"])
		}
	}
	if got := c.nodes["a"].Counters().Statuses["2xx"]; got != 3 {
		t.Errorf("counted %d answers of 2xx, want 3", got)
	}
}

func TestPanicIsAnErrorPage(t *testing.T) {
	c := newCluster(t, func(_ balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		if r.URL.Path == "/late" {
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
		}
		panic("bug")
	})
	for _, proto := range protocols {
		a := c.ask(t, question{at: "a", proto: proto, path: "/bank/"})
		if a.StatusCode != 500 || len(a.Cookies()) != 0 {
			t.Errorf("%s: status %d, Set-Cookie %q; want 500 and no pin", proto, a.StatusCode, a.Header["Set-Cookie"])
		}
		if _, err := c.try(t.Context(), question{at: "a", proto: proto, path: "/late"}); err == nil {
			t.Errorf("%s: half an answer looks like a whole one", proto)
		}
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	stop := make(chan struct{})
	var changing sync.WaitGroup
	changing.Go(func() { // the site and the view change all the while
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			c.load(balancing.Load(i%100), 20, 20)
			for _, n := range c.nodes {
				n.SetSite(n.site.Load())
				n.Counters()
			}
		}
	})
	var asking sync.WaitGroup
	for i := range 12 {
		asking.Go(func() {
			for j := range 15 {
				q := question{at: "a", proto: protocols[i%3], path: "/x"}
				if j%3 == 0 {
					q.method, q.path, q.header, q.body = "POST", "/bank/x", []string{pinned}, "body"
				}
				a, err := c.try(t.Context(), q)
				if err != nil {
					t.Error(err)
					return
				}
				if want := []int{200, 307}; !slices.Contains(want, a.StatusCode) || q.method == "POST" && a.StatusCode != 200 {
					t.Errorf("%s %s %s: status %d", q.proto, q.method, q.path, a.StatusCode)
				}
			}
		})
	}
	asking.Wait()
	close(stop)
	changing.Wait()
	if got := c.nodes["a"].Counters(); got.Requests != 180 || sum(got.Actions) != 180 || sum(got.Statuses, "2xx", "3xx") != 180 {
		t.Errorf("counters after 180 requests: %+v", got)
	}
}

// hostLine is the Host header that a request needs beside line.
func hostLine(line string) string {
	if strings.HasPrefix(line, "Host:") {
		return ""
	}
	return "Host: " + host + "\r\n"
}

// plainly sends text to the HTTP port of n.
func plainly(t testing.TB, n *node, text string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", netip.AddrPortFrom(n.addr, testPorts.HTTP).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return readAnswer(t, conn, text)
}
