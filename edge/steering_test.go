package edge

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/edge/route"
)

const fetch = "Sec-Fetch-Mode: cors"

// offer is the value of Alt-Svc that steers to id.
func offer(id balancing.NodeID) string { return fmt.Sprintf(`h3="%s.%s:10443"; ma=60`, id, host) }

const (
	ownOffer   = `h3=":10443"; ma=600`
	shortOffer = `h3=":10443"; ma=60` // where a route is moved quietly
)

func TestWhatCannotBeRedirectedIsSteered(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	for _, proto := range []string{"h1", "h2"} {
		a := c.ask(t, question{at: "a", proto: proto, path: "/api", header: []string{fetch}})
		a.want(t, 200, "a", "")
		if got := a.Header.Get("Alt-Svc"); got != offer("b") {
			t.Errorf("%s: Alt-Svc %q, want %q", proto, got, offer("b"))
		}
		if line := c.nodes["a"].access.next(t); line["steer"] != "b" || line["reason"] != "immovable" || line["decision"] != "here" {
			t.Errorf("%s: access log %v, want the steer to b", proto, line)
		}
	}
	if got := c.nodes["a"].Counters().Steers; got != 2 {
		t.Errorf("counted %d steers, want 2", got)
	}
	// The browser goes on at b, under the same URL, and b stands in for the host.
	c.load(20, 90, 20)
	a := c.ask(t, question{at: "b", proto: "h3", path: "/api", header: []string{fetch, "Alt-Used: b." + host + ":10443"}})
	a.want(t, 200, "b", "")
	if line := c.nodes["b"].access.next(t); line["reason"] != "hopped" {
		t.Errorf("reason %v at b, want hopped", line["reason"])
	}
}

func TestMoveOfARoute(t *testing.T) {
	c := newCluster(t, nil)
	c.reroute(t, route.Rule{Path: "/"}, route.Rule{Path: "/quiet/", Move: balancing.MoveQuiet}, route.Rule{Path: "/still/", Move: balancing.MoveNone})
	c.load(90, 20, 40)
	for _, k := range []struct {
		path, header string
		status       int
		altSvc       string
	}{
		{"/x", "Sec-Fetch-Mode: navigate", 307, shortOffer},
		{"/quiet/x", "Sec-Fetch-Mode: navigate", 200, offer("b")},
		{"/still/x", "Sec-Fetch-Mode: navigate", 200, shortOffer},
		{"/still/x", fetch, 200, shortOffer},
	} {
		client := newClient("h2", c.nodes["a"].addr, c.ca.pool)
		defer closeClient(client)
		a, err := c.tryWith(client, question{path: k.path, header: []string{k.header}})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Header.Get("Alt-Svc"); a.StatusCode != k.status || got != k.altSvc {
			t.Errorf("%s, %s: status %d, Alt-Svc %q; want %d, %q", k.path, k.header, a.StatusCode, got, k.status, k.altSvc)
		}
	}
}

// visit is a request of a client whose connection the test has in hand.
type visit struct {
	proto  int
	name   string
	header http.Header
	conn   *conn
}

// on makes the request at n, and returns the answer's header.
func (v visit) on(t testing.TB, n *node) http.Header {
	t.Helper()
	r := &http.Request{
		Method: "GET", ProtoMajor: v.proto, Host: host, RequestURI: "/x", URL: &url.URL{}, RemoteAddr: "192.0.2.1:1",
		Body: http.NoBody, Header: http.Header{"Sec-Fetch-Mode": {"cors"}},
	}
	if v.name != "" {
		r.Host = v.name
	}
	maps.Copy(r.Header, v.header)
	w := &memory{header: http.Header{}}
	n.serve(w, r.WithContext(context.WithValue(t.Context(), connKey{}, v.conn)))
	if w.status != 200 && w.status != 307 {
		t.Fatalf("status %d", w.status)
	}
	return w.header
}

// seen returns a connection whose first request came some time ago.
func seen(ago time.Duration) *conn {
	c := new(conn)
	if ago > 0 {
		c.request(time.Now().Add(-ago))
	}
	return c
}

func TestWhoIsSteered(t *testing.T) {
	c := build(t, nil)
	n := c.nodes["a"]
	c.load(90, 20, 40)
	pinned := seen(time.Minute)
	pinned.pinned.Store(true)
	for _, k := range []struct {
		what string
		v    visit
		want string
	}{
		{"first request", visit{proto: 2, conn: seen(0)}, offer("b")},
		{"HTTP/3, a while ago", visit{proto: 3, conn: seen(11 * time.Second)}, offer("b")},
		{"HTTP/3, first request: perhaps steered here", visit{proto: 3, conn: seen(0)}, ""},
		{"HTTP/3, a moment ago", visit{proto: 3, conn: seen(9 * time.Second)}, ""},
		{"name of this node, which peers do not answer for", visit{proto: 2, name: "a." + host, conn: seen(0)}, ownOffer},
		{"address, for which peers have no certificate", visit{proto: 2, name: n.addr.String(), conn: seen(0)}, ownOffer},
		{"pinned client", visit{proto: 2, conn: pinned}, ownOffer},
		{"steered here a moment ago", visit{proto: 2, conn: seen(9 * time.Second), header: http.Header{"Alt-Used": {"a." + host + ":10443"}}}, ownOffer},
		{"steered here a while ago", visit{proto: 2, conn: seen(11 * time.Second), header: http.Header{"Alt-Used": {"a." + host}}}, offer("b")},
		{"follows this node's own offer", visit{proto: 2, conn: seen(0), header: http.Header{"Alt-Used": {host}}}, offer("b")},
		{"names a peer", visit{proto: 2, conn: seen(0), header: http.Header{"Alt-Used": {"c." + host}}}, offer("b")},
		{"WebSocket", visit{proto: 1, conn: seen(0), header: http.Header{"Upgrade": {"websocket"}}}, ownOffer},
		{"names nonsense", visit{proto: 2, conn: seen(0), header: http.Header{"Alt-Used": {"[::"}}}, offer("b")},
	} {
		t.Run(k.what, func(t *testing.T) {
			if got := k.v.on(t, n).Get("Alt-Svc"); got != k.want {
				t.Errorf("Alt-Svc %q, want %q", got, k.want)
			}
		})
	}
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].State = balancing.Draining })
	if got := (visit{proto: 2, conn: seen(0)}).on(t, n).Get("Alt-Svc"); got != "clear" {
		t.Errorf("draining: Alt-Svc %q, want clear", got)
	}
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].State, n["a"].Load = balancing.OK, 50 })
	if got := (visit{proto: 2, conn: seen(0)}).on(t, n).Get("Alt-Svc"); got != ownOffer {
		t.Errorf("light: Alt-Svc %q, want %q", got, ownOffer)
	}
}

// A navigation of a client that was just steered here is not redirected either.
func TestSteeredClientIsNotRedirected(t *testing.T) {
	c := build(t, nil)
	c.load(20, 90, 20)
	navigation := http.Header{"Sec-Fetch-Mode": {"navigate"}, "Alt-Used": {"b." + host + ":10443"}}
	for ago, moved := range map[time.Duration]bool{0: false, 9 * time.Second: false, 11 * time.Second: true} {
		h := visit{proto: 3, conn: seen(ago), header: navigation}.on(t, c.nodes["b"])
		if got := h.Get("Location") != ""; got != moved {
			t.Errorf("%v after it came: redirected %v, want %v", ago, got, moved)
		}
	}
}

// One connection gets one offer, until that has run out or its target has gone; it is not
// taken back by the node's own.
func TestOfferLasts(t *testing.T) {
	c := build(t, nil)
	n := c.nodes["a"]
	client := seen(0)
	v := visit{proto: 2, conn: client}
	expect := func(what, want string) {
		t.Helper()
		if got := v.on(t, n).Get("Alt-Svc"); got != want {
			t.Errorf("%s: Alt-Svc %q, want %q", what, got, want)
		}
	}
	c.load(90, 20, 40)
	expect("loaded", offer("b"))
	c.load(90, 40, 20)
	expect("another peer is lighter now", offer("b"))
	c.load(20, 40, 20)
	expect("light", "")
	earlier := *client.steer.Load()
	earlier.at = earlier.at.Add(-steerLife)
	client.steer.Store(&earlier)
	expect("light, a minute later", ownOffer)
	c.load(90, 40, 20)
	expect("loaded again", offer("c"))
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["c"].Online = false })
	expect("the target has gone", offer("b"))
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["a"].Load, n["b"].State = 20, balancing.Draining })
	expect("light, and the other target has gone", ownOffer)
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].State = balancing.OK })
	expect("light, and the other target is back", "")
	client.pinned.Store(true)
	expect("pinned since", ownOffer)
}

// An offer is booked once a connection and target, and only for those that follow it.
func TestOffersAreBooked(t *testing.T) {
	c := build(t, nil)
	n := c.nodes["a"]
	c.load(90, 20, 40)
	credits := func() (balancing.Load, balancing.Load, balancing.Load) {
		b := n.ledger.Books(time.Now(), n.now.Load())
		if b.Credit == nil {
			return b.Debit, 0, 0
		}
		return b.Debit, b.Credit[1], b.Credit[2]
	}
	visit{proto: 2, conn: seen(0), header: http.Header{"Sec-Fetch-Mode": nil, "Authorization": {"x"}}}.on(t, n)
	if debit, b, _ := credits(); debit != 0 || b != 0 {
		t.Errorf("client that is no browser: debit %v, credit of b %v; want 0", debit, b)
	}
	v := visit{proto: 2, conn: seen(time.Second)}
	v.on(t, n)
	debit, b, _ := credits()
	if debit <= 0 || b <= 0 {
		t.Errorf("after an offer: debit %v, credit of b %v", debit, b)
	}
	for range 5 {
		v.on(t, n)
	}
	if d, again, _ := credits(); again > b || d > debit {
		t.Errorf("after the same offer five times: debit %v was %v, credit of b %v was %v", d, debit, again, b)
	}
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Online = false })
	v.on(t, n)
	if _, _, credit := credits(); credit <= 0 {
		t.Errorf("after an offer of another peer: credit of c %v", credit)
	}
}

func TestStatefulClientIsNotSteered(t *testing.T) {
	c := newCluster(t, nil)
	client := newClient("h2", c.nodes["a"].addr, c.ca.pool)
	defer closeClient(client)
	if a, err := c.tryWith(client, question{path: "/bank/", header: []string{fetch}}); err != nil || len(a.Cookies()) != 1 {
		t.Fatalf("no pin: %v", err)
	}
	c.load(90, 20, 40)
	// Its later requests elsewhere on the site do not show the pin.
	a, err := c.tryWith(client, question{path: "/", header: []string{fetch}})
	if err != nil || a.Header.Get("Alt-Svc") != ownOffer {
		t.Errorf("Alt-Svc %q, %v; want %q", a.Header.Get("Alt-Svc"), err, ownOffer)
	}
}

// Two nodes, both above L1 by turns, do not send a client back and forth: it stays where it
// came for ten seconds, and each node makes it one offer a minute.
func TestNoPingPong(t *testing.T) {
	c := build(t, nil)
	atA, atB := seen(0), seen(0)
	c.load(90, 20, 85)
	if got := (visit{proto: 2, conn: atA}).on(t, c.nodes["a"]).Get("Alt-Svc"); got != offer("b") {
		t.Fatalf("Alt-Svc %q, want %q", got, offer("b"))
	}
	c.load(20, 90, 85) // the picture has turned
	for range 20 {
		// Chromium does not say that it was sent.
		if got := (visit{proto: 3, conn: atB}).on(t, c.nodes["b"]).Get("Alt-Svc"); got != "" {
			t.Fatalf("Alt-Svc %q at b, want none", got)
		}
	}
}

func TestRelaysAddress(t *testing.T) {
	outer, inner := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.1")
	if got := relayAddr(&balancing.Node{Address: outer, Internal: inner}); got != inner {
		t.Errorf("relays go to %v, want the internal network", got)
	}
	if got := relayAddr(&balancing.Node{Address: outer}); got != outer {
		t.Errorf("relays go to %v, want %v", got, outer)
	}
}
