package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
		{"navigation (row 11)", "GET", "/bank/x?y=1", "Sec-Fetch-Mode: navigate", false},
		{"script", "GET", "/bank/x", "", false},
		{"HEAD", "HEAD", "/bank/x", "", false},
		{"entry", "GET", "/bank/", "", false},
		{"exit by navigation (row 38)", "GET", "/bank/logout", "", false},
		{"POST (row 12)", "POST", "/bank/x?y=1", "", true},
		{"DELETE", "DELETE", "/bank/x", "", true},
		{"fetch (row 13)", "GET", "/bank/x", "Sec-Fetch-Mode: cors", true},
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

func TestWebSocketThroughRelay(t *testing.T) { // row 15
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
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Header.Get("Cache-Control") != "no-store" { // row 22
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

// countDials returns the count of connections that n opens to peers from now on.
func countDials(n *node) *atomic.Int32 {
	dials := new(atomic.Int32)
	toPeer := n.relay.c.RelayClient
	n.relay.c.RelayClient = func(peer balancing.NodeID) *tls.Config {
		dials.Add(1)
		return toPeer(peer)
	}
	return dials
}

// The connections to a peer are shared, however clients spell the host.
func TestRelaySharesConnections(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	dials := countDials(c.nodes["a"])
	for i := range 20 {
		a := c.ask(t, question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned, fmt.Sprintf("Host: %s:%d", host, 1000+i)}})
		a.want(t, 200, "b", "")
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("20 requests in a row took %d connections to the peer, want 1", got)
	}
}

// Requests at a time share connections as well, even if none was there to begin with.
func TestRelaysAtOnceShareConnections(t *testing.T) {
	for _, k := range []struct {
		requests int
		dials    int32
	}{{100, 1}, {relayStreams + 50, 3}} {
		t.Run(fmt.Sprint(k.requests), func(t *testing.T) {
			open := make(chan struct{})
			entered := make(chan struct{}, k.requests)
			c := newCluster(t, func(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					entered <- struct{}{}
					<-open
				}
				tell(id, w, r)
			})
			pinned := c.enter(t, "b", "/bank/")
			dials := countDials(c.nodes["a"])
			var clients []http.RoundTripper // each with a connection that takes 100 requests at a time
			for range k.requests/maxStreams + 1 {
				client := newClient("h2", c.nodes["a"].addr, c.ca.pool)
				defer closeClient(client)
				if _, err := c.tryWith(client, question{path: "/"}); err != nil {
					t.Fatal(err)
				}
				clients = append(clients, client)
			}
			var asking sync.WaitGroup
			for i := range k.requests {
				asking.Go(func() {
					q := question{method: "POST", path: "/bank/x", header: []string{pinned}, body: fmt.Sprint(i)}
					a, err := c.tryWith(clients[i%len(clients)], q)
					if err != nil || a.StatusCode != 200 {
						t.Errorf("relay %d of many: %v, %v", i, a.body, err)
						return
					}
					if s := a.seen(t); s.Node != "b" || s.Body != q.body {
						t.Errorf("relay %d: %s saw body %q", i, s.Node, s.Body)
					}
				})
			}
			for range k.requests {
				receive(t, entered, "all requests to be at the origin at once")
			}
			close(open)
			asking.Wait()
			if got := dials.Load(); got > k.dials {
				t.Errorf("%d relays at once took %d connections to the peer, want at most %d", k.requests, got, k.dials)
			}
			if got := c.nodes["a"].Counters().Relays; got["pin-elsewhere"] != uint64(k.requests) || len(got) != 1 {
				t.Errorf("counted relays %v, want %d for pin-elsewhere", got, k.requests)
			}
		})
	}
}

// A peer that takes connections and says nothing keeps nobody waiting for long, however
// many wait.
func TestRelayToSilentPeer(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	mute := freeAddr()
	l, err := net.Listen("tcp", netip.AddrPortFrom(mute, testPorts.Relay).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Internal = mute })
	dials := countDials(c.nodes["a"])
	began := time.Now()
	var asking sync.WaitGroup
	for range 40 {
		asking.Go(func() {
			a, err := c.try(t.Context(), question{at: "a", method: "POST", path: "/bank/x", header: []string{pinned}})
			if err != nil || a.StatusCode != 503 || a.Header.Get("Retry-After") != "1" {
				t.Errorf("%v, %v; want 503", a.Response, err)
			}
		})
	}
	asking.Wait()
	if took := time.Since(began); took > 3*relayHandshake || dials.Load() > 5 {
		t.Errorf("40 requests took %v and %d connections", took, dials.Load())
	}
}

// stream is an origin whose answer goes on while the request does: it sends back each
// line when it comes, and ends with a trailer, as gRPC does.
func stream(_ balancing.NodeID, w http.ResponseWriter, r *http.Request) {
	if r.Method != "POST" {
		return
	}
	w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	w.Header().Set("Trailer", "Grpc-Status")
	rc := http.NewResponseController(w)
	rc.Flush()
	for lines := bufio.NewReader(r.Body); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		io.WriteString(w, line)
		rc.Flush()
	}
	w.Header().Set("Grpc-Status", "0")
}

// Both directions of a relay are streams, each line seen before the next one is sent.
func TestRelayStreamsBothWays(t *testing.T) {
	c := newCluster(t, stream)
	pinned := c.pin(t, "b")
	for _, proto := range []string{"h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			body, upload := io.Pipe()
			r, err := http.NewRequestWithContext(t.Context(), "POST", at("", "/bank/rpc"), body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Te", "trailers")
			r.Header.Set("Cookie", strings.TrimPrefix(pinned, "Cookie: "))
			resp, err := c.client(proto, c.nodes["a"].addr).RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer := bufio.NewReader(resp.Body)
			for _, line := range []string{"one\n", "two\n"} {
				io.WriteString(upload, line)
				if got, err := answer.ReadString('\n'); got != line {
					t.Fatalf("came back %q, %v; want %q", got, err, line)
				}
			}
			upload.Close()
			if rest, err := io.ReadAll(answer); len(rest) > 0 || err != nil {
				t.Errorf("then %q, %v", rest, err)
			}
			if got := resp.Trailer.Get("Grpc-Status"); got != "0" {
				t.Errorf("trailer %v, want Grpc-Status 0", resp.Trailer)
			}
		})
	}
}

// An event reaches the client when it happens; and the origin hears when the client has
// gone away.
func TestRelayedEvents(t *testing.T) {
	gone := make(chan struct{}, 1)
	c := newCluster(t, func(_ balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/bank/events" {
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	pinned := c.pin(t, "b")
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := c.open(ctx, question{at: "a", proto: proto, path: "/bank/events", header: []string{pinned, "Accept: text/event-stream"}})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got, err := bufio.NewReader(resp.Body).ReadString('\n'); got != "data: 1\n" {
				t.Fatalf("first event %q, %v", got, err)
			}
			cancel()
			receive(t, gone, "the origin to hear that the client is gone")
		})
	}
}

func TestRelayIsNamedInVia(t *testing.T) {
	c := newCluster(t, nil)
	pinned := c.enter(t, "b", "/bank/")
	for proto, want := range map[string]string{"h1": "1.1 peerage", "h2": "2 peerage", "h3": "3 peerage"} {
		s := c.ask(t, question{at: "a", proto: proto, method: "POST", path: "/bank/x", header: []string{pinned, "Via: 1.1 other"}}).seen(t)
		if got := s.Header["Via"]; !slices.Equal(got, []string{"1.1 other", want}) {
			t.Errorf("%s: Via %q, want %q after the other", proto, got, want)
		}
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

// TestHalfClosedClient: a client that has only closed its own side is not told of a success
// that there was not.
func TestHalfClosedClient(t *testing.T) {
	c := newCluster(t, func(_ balancing.NodeID, _ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // as a proxy gives up
	})
	n := c.nodes["a"]
	conn, err := tls.Dial("tcp", netip.AddrPortFrom(n.addr, testPorts.HTTPS).String(), &tls.Config{ServerName: host, RootCAs: c.ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("it was answered %q", got)
	}
}
