package edge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/edge/route"
)

// relayPort is where n's relay link is.
func (n *node) relayPort() string {
	return netip.AddrPortFrom(n.c.Relay, testPorts.Relay).String()
}

// linkTo returns a client of n's relay link with a TLS configuration of the test's own.
func linkTo(t testing.TB, n *node, proto string, c *tls.Config) *http.Transport {
	p := new(http.Protocols)
	p.SetHTTP1(proto == "h1")
	p.SetHTTP2(proto != "h1")
	tr := &http.Transport{
		Protocols: p, TLSClientConfig: c,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, n.relayPort())
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// send sends a request over tr, and returns the status and the body of the answer.
func send(t testing.TB, tr http.RoundTripper, method, url, body string, header ...string) (int, string) {
	t.Helper()
	status, text, err := trySend(t.Context(), tr, method, url, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return status, text
}

func trySend(ctx context.Context, tr http.RoundTripper, method, url, body string, header ...string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for _, line := range header {
		k, v, _ := strings.Cut(line, ": ")
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestPeersAskEachOther(t *testing.T) {
	c := newCluster(t, nil)
	var asked atomic.Int64
	c.nodes["b"].peers = func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, "%s from %s", r.URL.Path, r.TLS.PeerCertificates[0].DNSNames[0])
	}
	a := linkTo(t, c.nodes["b"], "h2", c.ca.peerClient(t, "a")("b"))
	if status, text := send(t, a, "GET", "https://peer/.peerage/keys", ""); status != 200 || text != "/.peerage/keys from a"+peerDomain {
		t.Errorf("status %d, %q", status, text)
	}
	asked.Store(0)

	// Whatever a client asks for is for the site.
	for _, proto := range protocols {
		for _, path := range []string{"/.peerage/keys", "/x/../.peerage/keys", "/%2epeerage/keys"} {
			for _, header := range [][]string{nil, {relayClient + ": 192.0.2.1:1"}, {"Connection: " + relayClient, relayClient + ": "}} {
				if proto != "h1" && len(header) > 1 {
					continue // there is no such header field in HTTP/2
				}
				c.ask(t, question{at: "b", proto: proto, path: path, header: header})
			}
		}
	}
	// The same when another node carries it here.
	c.reroute(t, route.Rule{Path: "/", Nodes: []balancing.NodeID{"b"}})
	if got := c.ask(t, question{at: "a", method: "POST", path: "/.peerage/keys", body: "x"}); got.seen(t).Node != "b" {
		t.Errorf("the POST was not relayed to b: %q", got.body)
	}
	for _, header := range []string{relayClient + ": 192.0.2.1:1", relayClient + ": "} {
		send(t, a, "GET", "https://"+host+"/.peerage/keys", "", header)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("clients have asked %d times what only peers may", n)
	}
	if status, _ := send(t, a, "GET", "https://peer/elsewhere", ""); status != 400 {
		t.Errorf("a path that is none of the peers': status %d, want 400", status)
	}
}

func TestPeersAreBounded(t *testing.T) {
	c := newCluster(t, nil)
	b := c.nodes["b"]
	tr := linkTo(t, b, "h2", c.ca.peerClient(t, "a")("b"))
	url := "https://peer/.peerage/x"
	b.peers = func(w http.ResponseWriter, r *http.Request) {
		if d, ok := r.Context().Deadline(); !ok || time.Until(d) > apiTime {
			t.Errorf("deadline %v, %t; want one within %v", d, ok, apiTime)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			_, ok := errors.AsType[*http.MaxBytesError](err)
			http.Error(w, fmt.Sprint(ok), http.StatusRequestEntityTooLarge)
		}
	}
	for size, want := range map[int]int{apiBody: 200, apiBody + 1: 413} {
		if status, _ := send(t, tr, "POST", url, strings.Repeat("x", size)); status != want {
			t.Errorf("body of %d octets: status %d, want %d", size, status, want)
		}
		r, err := http.NewRequestWithContext(t.Context(), "POST", url, io.MultiReader(strings.NewReader(strings.Repeat("x", size)))) // of unknown length
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("body of %d octets, which was not announced: status %d, want %d", size, resp.StatusCode, want)
		}
	}

	inside, goOn := make(chan struct{}, apiBusy), make(chan struct{})
	b.peers = func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-goOn
	}
	done := make(chan int, apiBusy)
	for range apiBusy {
		go func() {
			status, _, _ := trySend(t.Context(), tr, "GET", url, "")
			done <- status
		}()
	}
	for range apiBusy {
		receive(t, inside, "the requests that fill the place")
	}
	if status, _ := send(t, tr, "GET", url, ""); status != 503 {
		t.Errorf("one too many: status %d, want 503", status)
	}
	close(goOn)
	for range apiBusy {
		if status := receive(t, done, "an answer"); status != 200 {
			t.Errorf("one of those that were there: status %d", status)
		}
	}
	// A client's request is in nobody's way.
	c.ask(t, question{at: "b", path: "/"}).want(t, 200, "b", "")
}

// joinClient is the TLS configuration of one who would join.
func (c *cluster) joinClient() *tls.Config {
	return &tls.Config{RootCAs: c.ca.pool, ServerName: joinName}
}

func TestJoinReachesNothingElse(t *testing.T) {
	c := newCluster(t, nil)
	b := c.nodes["b"]
	b.peers = func(http.ResponseWriter, *http.Request) {
		t.Error("one who shows no certificate came to the peers' handler")
	}
	var joined atomic.Int64
	b.join = func(w http.ResponseWriter, r *http.Request) {
		joined.Add(1)
		io.Copy(w, r.Body)
	}
	own := "https://" + joinName
	for _, proto := range []string{"h1", "h2"} {
		tr := linkTo(t, b, proto, c.joinClient())
		for _, url := range []string{own + "/join", fmt.Sprintf("%s:%d/join", own, testPorts.Relay), own + "/join?x=y"} {
			if status, text := send(t, tr, "POST", url, "please"); status != 200 || text != "please" {
				t.Errorf("%s: POST %s: status %d, %q", proto, url, status, text)
			}
		}
		joined.Store(0)
		for _, k := range []struct {
			url    string
			header []string
			want   int
		}{
			{own + "/", nil, 404},
			{own + "/join/", nil, 404},
			{own + "/joined", nil, 404},
			{own + "/x/../join", nil, 404},
			{own + "//join", nil, 404},
			{own + "/.peerage/keys", nil, 404},
			{own + busyPath, nil, 404},
			{own + HealthPath, nil, 404},
			{own + "/bank/x", []string{relayClient + ": 192.0.2.1:1"}, 404},
			{"https://" + host + "/", nil, 421},
			{"https://" + host + "/join", nil, 421},
			{"https://b" + peerDomain + "/join", nil, 421},
			{"https://b" + peerDomain + "/.peerage/keys", nil, 421},
			{own + "/join", []string{"Host: " + host}, 421},
			{own + "/join", []string{"Host: " + joinName + ".example.com"}, 421},
			{own + "/join", []string{"Host: " + b.relayPort()}, 421},
			{"https://" + host + "/bank/x", []string{relayClient + ": 192.0.2.1:1"}, 421},
		} {
			if status, text := send(t, tr, "POST", k.url, "x", k.header...); status != k.want {
				t.Errorf("%s: POST %s with %v: status %d %q, want %d", proto, k.url, k.header, status, text, k.want)
			}
		}
		if n := joined.Load(); n > 0 {
			t.Errorf("%s: %d of them came to the joining", proto, n)
		}
		if status, _ := send(t, tr, "POST", own+"/join", strings.Repeat("x", apiBody+1)); status != 413 {
			t.Errorf("%s: too long a body: status %d, want 413", proto, status)
		}
	}
	for _, text := range []string{"OPTIONS * HTTP/1.1\r\nHost: " + joinName + "\r\n\r\n", "CONNECT " + joinName + ":443 HTTP/1.1\r\nHost: " + joinName + ":443\r\n\r\n"} {
		conn, err := tls.Dial("tcp", b.relayPort(), c.joinClient())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if resp := readAnswer(t, conn, text); resp.StatusCode != 404 {
			t.Errorf("%q: status %d, want 404", text, resp.StatusCode)
		}
		conn.Close()
	}
}

// TestNobodyWithoutACertificate: every other name asks for one, and that of the joining
// makes no node of anybody, not with a certificate and not with a ticket.
func TestNobodyWithoutACertificate(t *testing.T) {
	c := newCluster(t, nil)
	b := c.nodes["b"]
	b.peers = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "peers") }
	b.join = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "join") }
	for _, name := range []string{"b" + peerDomain, "JOIN" + peerDomain, "x" + peerDomain, host, ""} {
		conf := c.joinClient()
		conf.ServerName, conf.InsecureSkipVerify = name, true
		for _, url := range []string{"https://127.0.0.1/.peerage/keys", "https://127.0.0.1/join"} { // which gives no name in place of none
			if status, text, err := trySend(t.Context(), linkTo(t, b, "h1", conf), "GET", url, ""); err == nil && status < 400 {
				t.Errorf("under the name %q without a certificate: %s gives %d %q", name, url, status, text)
			}
		}
		if name == "" {
			continue // the client would name whom it asks
		}
		if status, text, err := trySend(t.Context(), linkTo(t, b, "h1", conf), "GET", "https://"+joinName+"/join", ""); err == nil {
			t.Errorf("under the name %q without a certificate: the joining gives %d %q", name, status, text)
		}
	}
	node := c.ca.peerClient(t, "a")("b")
	node.ServerName = joinName
	if status, _ := send(t, linkTo(t, b, "h2", node), "GET", "https://peer/.peerage/keys", ""); status != 421 {
		t.Errorf("a node under the name of the joining: status %d, want 421", status)
	}
	cache := tls.NewLRUClientSessionCache(8)
	first := c.joinClient()
	first.ClientSessionCache = cache
	conn, err := tls.Dial("tcp", b.relayPort(), first)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	readAnswer(t, conn, "GET / HTTP/1.1\r\nHost: "+joinName+"\r\n\r\n") // what would bring a ticket along
	conn.Close()
	if _, ok := cache.Get(joinName); ok {
		t.Error("the joining gives out tickets")
	}
}

func TestStrangersAreFew(t *testing.T) {
	c := newCluster(t, nil)
	b := c.nodes["b"]
	dial := func() (*tls.Conn, error) {
		d := tls.Dialer{Config: c.joinClient()}
		conn, err := d.DialContext(t.Context(), "tcp", b.relayPort())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*tls.Conn), nil
	}
	var all []*tls.Conn
	for range joinConns {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
	}
	if _, err := dial(); err == nil {
		t.Errorf("there are %d connections of strangers, and one more was taken", joinConns)
	}
	c.reroute(t, route.Rule{Path: "/", Nodes: []balancing.NodeID{"b"}})
	c.ask(t, question{at: "a", method: "POST", path: "/", body: "x"}).want(t, 200, "b", "") // nodes do not suffer
	for _, conn := range all {
		conn.Close()
	}
	eventually(t, func() bool { _, err := dial(); return err == nil }, func() string { return "nobody is taken after all have gone" })
}

// TestSetPeers: who is taken out of the site, or has another identity, is neither asked nor
// answered any more, though connections are open.
func TestSetPeers(t *testing.T) {
	c := newCluster(t, nil)
	a, b := c.nodes["a"], c.nodes["b"]
	b.peers = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "peers") }
	c.reroute(t, route.Rule{Path: "/", Nodes: []balancing.NodeID{"b"}})
	carry := func() int {
		return c.ask(t, question{at: "a", method: "POST", path: "/", body: "x"}).StatusCode
	}
	conf := c.ca.peerClient(t, "a")("b")
	tr := linkTo(t, b, "h2", conf)
	ask := func() int {
		status, _ := send(t, tr, "GET", "https://peer/.peerage/x", "")
		return status
	}
	wire := func() *wire {
		a.relay.mu.Lock()
		defer a.relay.mu.Unlock()
		return a.relay.wire[link{peer: "b"}]
	}
	if carry() != 200 || ask() != 200 {
		t.Fatal("a does not reach b")
	}
	first := wire()

	a.SetPeers(nodeIDs)
	b.SetPeers(nodeIDs)
	if wire() != first || carry() != 200 || ask() != 200 || wire() != first {
		t.Error("nothing has changed, and the connection was dropped")
	}
	a.SetPeers([]balancing.NodeID{"a", "c"})
	if wire() != nil {
		t.Error("b was taken out, and a keeps its connection")
	}
	if got := carry(); got != 503 {
		t.Errorf("relay to a node that was taken out: status %d, want 503", got)
	}
	a.SetPeers(nodeIDs)
	if got := carry(); got != 200 {
		t.Errorf("b is back: status %d", got)
	}
	b.SetPeers([]balancing.NodeID{"b", "c"})
	if got := ask(); got != 403 {
		t.Errorf("a was taken out of b's site, and asks: status %d, want 403", got)
	}
	if got := carry(); got != 503 {
		t.Errorf("a was taken out of b's site, and carries a request there: status %d, want 503", got)
	}
	b.SetPeers(nodeIDs)
	if carry() != 200 || ask() != 200 {
		t.Error("a is back, and not served")
	}

	// Another identity of b in the eyes of a, then of a in the eyes of b.
	before := wire()
	c.ca.bad.Store(string(before.shown.PeerCertificates[0].Raw), true)
	a.SetPeers(nodeIDs)
	if wire() != nil {
		t.Error("b has another identity, and a keeps its connection")
	}
	if got := carry(); got != 503 {
		t.Errorf("relay to b under its old identity: status %d, want 503", got)
	}
	c.ca.bad.Clear()
	c.ca.bad.Store(string(conf.Certificates[0].Certificate[0]), true)
	if got := ask(); got != 403 {
		t.Errorf("a has another identity, and asks under the old one: status %d, want 403", got)
	}
}

// TestSetKeys: from then on an address that is opened has the new keys, one that is open
// the old ones.
func TestSetKeys(t *testing.T) {
	c := newCluster(t, nil)
	a := c.nodes["a"]
	old := a.c.Keys
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	a.SetKeys(ring)
	later := freeAddr()
	a.Listen([]netip.Addr{a.addr, later}, nil)
	a.await(t, a.addr, later)
	for addr, r := range map[netip.Addr]*keys.Ring{a.addr: old, later: ring} {
		c.ask(t, question{addr: addr, proto: "h3", path: "/"}).want(t, 200, "a", "")
		key := r.Derive(keys.LabelQUICReset, addr.String())
		if id, token := statelessReset(t, addr); !hmac.Equal(token, resetToken(key, id)) {
			t.Errorf("the reset of %v is made with another key", addr)
		}
	}
}

// resetToken is how quic-go makes one.
func resetToken(key [32]byte, id []byte) []byte {
	m := hmac.New(sha256.New, key[:])
	m.Write(id)
	return m.Sum(nil)[:16]
}

// statelessReset sends a packet of a connection that nobody knows, and returns its ID and
// the token of the answer (RFC 9000 10.3).
func statelessReset(t *testing.T, addr netip.Addr) (id, token []byte) {
	t.Helper()
	id, token, err := tryReset(addr, 15*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return id, token
}

func tryReset(addr netip.Addr, wait time.Duration) (id, token []byte, err error) {
	conn, err := net.Dial("udp", netip.AddrPortFrom(addr, testPorts.HTTPS).String())
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	packet := make([]byte, 100)
	rand.Read(packet)
	packet[0] = 0x40
	if _, err := conn.Write(packet); err != nil {
		return nil, nil, err
	}
	conn.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	if err != nil || n < 21 {
		return nil, nil, fmt.Errorf("reset of %d octets: %w", n, err)
	}
	return packet[1:9], b[n-16 : n], nil
}
