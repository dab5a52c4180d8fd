package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"peerage/balancing"
)

// Section 5.3: how a request comes to the node that its client is pinned to.
func TestPinnedElsewhere(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	c.load(10, 99, 10) // a pin beats load
	for _, k := range []struct {
		what         string
		method, path string
		header       string
		relayed      bool
	}{
		{"navigation (case 11)", "GET", "/bank/x?y=1", "Sec-Fetch-Mode: navigate", false},
		{"script", "GET", "/bank/x", "", false},
		{"HEAD", "HEAD", "/bank/x", "", false},
		{"entry", "GET", "/bank/", "", false},
		{"exit by navigation (case 38)", "GET", "/bank/logout", "", false},
		{"POST (case 12)", "POST", "/bank/x?y=1", "", true},
		{"DELETE", "DELETE", "/bank/x", "", true},
		{"fetch (case 13)", "GET", "/bank/x", "Sec-Fetch-Mode: cors", true},
		{"image", "GET", "/bank/x", "Sec-Fetch-Mode: no-cors", true},
		{"range", "GET", "/bank/x", "Range: bytes=1-", true},
		{"exit by POST", "POST", "/bank/logout", "", true},
	} {
		for _, proto := range protocols {
			t.Run(k.what+" "+proto, func(t *testing.T) {
				q := question{at: "a", proto: proto, method: k.method, path: k.path, header: []string{pinned}}
				if k.header != "" {
					q.header = append(q.header, k.header)
				}
				if k.method == "POST" {
					q.body = "body"
				}
				a := c.ask(t, q)
				if !k.relayed {
					a.want(t, 307, "", at("b", k.path))
					return
				}
				a.want(t, 200, "b", "")
				s := a.seen(t)
				if s.URI != k.path || s.Method != k.method || s.Body != q.body || s.Host != fmt.Sprint(host, ":", testPorts.HTTPS) {
					t.Errorf("the origin saw %s %s of %s with body %q", s.Method, s.URI, s.Host, s.Body)
				}
				if left := len(a.Cookies()); (k.path == "/bank/logout") != (left == 1) {
					t.Errorf("Set-Cookie %q", a.Header["Set-Cookie"])
				}
				if got := a.Header["Alt-Svc"]; proto != "h3" && len(got) != 1 {
					t.Errorf("Alt-Svc %q, want that of the node that faces the client", got)
				}
			})
		}
	}
}

// What a node pins for a client that it does not face reaches the client as it is.
func TestRelayedAnswerSetsPin(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	restarted := func(n map[balancing.NodeID]*balancing.Node) { n["b"].Incarnation = 999 }
	before := c.nodes["a"].now.Load()
	c.change(restarted)
	c.nodes["a"].now.Store(before) // a has not heard of it yet
	a := c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned}})
	a.want(t, 200, "b", "")
	if len(a.Cookies()) != 1 || a.Cookies()[0].Domain != host || !a.Cookies()[0].Secure {
		t.Fatalf("Set-Cookie %q, want a new pin to b", a.Header["Set-Cookie"])
	}
	c.change(restarted)
	c.ask(t, question{at: "a", path: "/bank/x", header: []string{cookieLine(a)}}).want(t, 307, "", at("b", "/bank/x"))
}

func TestRelayedRequestGoesOneHop(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	// b believes that it is not b's: the pin is to c in its eyes, for b runs under another name.
	v := *c.nodes["b"].now.Load()
	v.Self = "c"
	c.nodes["b"].now.Store(&v)
	c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned}}).want(t, 503, "", "")
}

func TestWebSocketThroughRelay(t *testing.T) { // case 15
	c := newCluster(t, echoTunnel)
	pinned := c.pin(t, "b")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].State = balancing.Draining })
	resp, conn, br := c.raw(t, c.nodes["a"], upgrade("/bank/ws", pinned))
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("X-Node") != "b" {
		t.Fatalf("status %d, header %v; want 101 from b", resp.StatusCode, resp.Header)
	}
	if got := resp.Header["Connection"]; len(got) != 1 || got[0] != "Upgrade" {
		t.Errorf("Connection %q, want Upgrade alone", got)
	}
	for _, word := range []string{"one\n", "two\n"} {
		io.WriteString(conn, word)
		if got, err := br.ReadString('\n'); got != word {
			t.Fatalf("through the tunnel came %q, %v; want %q", got, err, word)
		}
	}
	conn.Close()
	if line := c.nodes["b"].access.next(t); line["status"] != 101.0 || line["from"] != "a" {
		t.Errorf("access log of b: %v, want the tunnel from a", line)
	}
	if line := c.nodes["a"].access.next(t); line["status"] != 101.0 || line["decision"] != "relay" {
		t.Errorf("access log of a: %v, want the tunnel", line)
	}
}

// A peer that is on-line for all we know, and does not take the connection.
func TestRelayToDeadPeer(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	c.nodes["b"].cancel()
	receive(t, c.nodes["b"].done, "the end of b")
	c.nodes["b"].cancel = nil
	a := c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned}})
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Header.Get("Cache-Control") != "no-store" { // case 22
		t.Errorf("status %d, header %v; want 503 with Retry-After", a.StatusCode, a.Header)
	}
}

// What was under way when the peer broke off may have been done: nothing says that it
// can be asked for again.
func TestRelayBrokenOff(t *testing.T) {
	c := newCluster(t, func(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			panic(http.ErrAbortHandler)
		}
		tell(id, w, r)
	})
	pinned := c.enter(t, "b", "/bank/")
	a := c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned}})
	if a.StatusCode != 502 || a.Header.Get("Retry-After") != "" {
		t.Errorf("status %d, Retry-After %q; want 502 without", a.StatusCode, a.Header.Get("Retry-After"))
	}
}

func TestRelayTakesPeersOnly(t *testing.T) {
	c := newCluster(t, nil)
	at := netip.AddrPortFrom(c.nodes["a"].addr, testPorts.Relay).String()
	ask := func(conf *tls.Config, header string) (int, error) {
		conn, err := tls.Dial("tcp", at, conf)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n", host, header)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, nil
	}
	peer := c.ca.peerClient(t, "b")("a")
	for _, k := range []struct {
		what   string
		conf   *tls.Config
		header string
		status int // 0: no answer
	}{
		{"a peer", peer, relayClient + ": 192.0.2.1:1\r\n", 200},
		{"a peer that names no client", peer, "", 400},
		{"a peer with a client that is no address", peer, relayClient + ": x\r\n", 400},
		{"no certificate", &tls.Config{RootCAs: c.ca.pool, ServerName: "a" + peerDomain}, relayClient + ": 192.0.2.1:1\r\n", 0},
		{"a certificate of another CA", func() *tls.Config {
			foreign := newAuthority(t).peerClient(t, "b")("a")
			foreign.RootCAs = c.ca.pool
			return foreign
		}(), relayClient + ": 192.0.2.1:1\r\n", 0},
	} {
		if got, err := ask(k.conf, k.header); got != k.status {
			t.Errorf("%s: status %d, %v; want %d", k.what, got, err, k.status)
		}
	}
}

// The connections to a peer are shared, however clients spell the host.
func TestRelaySharesConnections(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	var dials atomic.Int32
	rl := c.nodes["a"].relay
	toPeer := rl.c.RelayClient
	rl.c.RelayClient = func(peer balancing.NodeID) *tls.Config {
		dials.Add(1)
		return toPeer(peer)
	}
	for i := range 20 {
		a := c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned, fmt.Sprintf("Host: %s:%d", host, 1000+i)}})
		a.want(t, 200, "b", "")
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("20 requests in a row took %d connections to the peer, want 1", got)
	}
}

// pin returns a pin to id, as a header line, whatever the origin is.
func (c *cluster) pin(t testing.TB, id balancing.NodeID) string {
	t.Helper()
	a := c.ask(t, question{at: id, path: "/bank/"})
	if a.StatusCode != 200 || len(a.Cookies()) != 1 {
		t.Fatalf("entry at %s: status %d, Set-Cookie %q", id, a.StatusCode, a.Header["Set-Cookie"])
	}
	c.nodes[id].access.next(t)
	return cookieLine(a)
}

// echoTunnel is an origin of WebSockets that send back what they get.
func echoTunnel(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Node", string(id))
	if r.Header.Get("Upgrade") == "" {
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	defer stop()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Node: %s\r\n\r\n", id)
	io.Copy(conn, buf)
}

func upgrade(path, header string) string {
	return strings.Join([]string{
		"GET " + path + " HTTP/1.1", "Host: " + host, "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", header, "", "",
	}, "\r\n")
}
