package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"peerage/balancing"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// This file is the table of stateful paths in docs/decisions/0004, as far as it is told by
// requests. The rule is /banking/* with the exits /banking/logout and /bye; L1 is 50, L2 20.

// row is a request in a situation, and what must come of it.
type row struct {
	name  string
	loads [3]balancing.Load // of a, b and c
	edit  func(map[balancing.NodeID]*balancing.Node)

	// Of the rule.
	dedicated []balancing.NodeID
	lost      balancing.OwnerLoss
	letter    bool // the entry does not keep the pin
	scope     route.Scope

	pin  balancing.NodeID // the client's, from before
	hop  balancing.NodeID // where it was sent a moment ago
	q    question
	want result
}

// result is what becomes of the request.
type result struct {
	status   int
	node     balancing.NodeID // that served it
	location string
	cookie   string // "": as it was; "clear"; or the node that the client is pinned to
}

func (k row) rules() []route.Rule {
	return []route.Rule{
		{Path: "/", Spill: true},
		{Path: "/banking/*", Nodes: k.dedicated, Spill: true, Stateful: &route.Stateful{
			Name: "bank", Exit: []string{"/banking/logout", "/bye"}, OnOwnerLoss: k.lost, EntryKeepsPin: !k.letter, Scope: k.scope,
		}},
		{Path: "/shop/*", Spill: true, Stateful: &route.Stateful{Name: "shop", EntryKeepsPin: true}},
		{Path: "/shop/cart/*", Spill: true, Stateful: &route.Stateful{Name: "cart", EntryKeepsPin: true}},
	}
}

var (
	light    = [3]balancing.Load{30, 30, 30}
	loaded   = [3]balancing.Load{90, 20, 40} // a should send to b
	turned   = [3]balancing.Load{20, 95, 20} // b should send away
	navigate = "Sec-Fetch-Mode: navigate"
)

func offline(id balancing.NodeID) func(map[balancing.NodeID]*balancing.Node) {
	return func(n map[balancing.NodeID]*balancing.Node) { n[id].Online = false }
}

// takenOver has b answer for a, which is off-line.
func takenOver(n map[balancing.NodeID]*balancing.Node) {
	n["a"].Online = false
	n["b"].Held = append(n["b"].Held[:1:1], n["a"].Home...)
}

func TestRows(t *testing.T) {
	c := newCluster(t, func(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echoTunnel(id, w, r)
			return
		}
		tell(id, w, r)
	})
	for _, k := range []row{
		{
			name: "row 1 entry, light", loads: light,
			q:    question{at: "a", path: "/banking/"},
			want: result{200, "a", "", "a"},
		},
		{
			name: "row 2 entry, loaded", loads: loaded,
			q:    question{at: "a", path: "/banking/"},
			want: result{307, "", at("b", "/banking/"), ""},
		},
		{
			name: "row 3 entry after the hop, however loaded", loads: turned, hop: "b",
			q:    question{at: "b", path: "/banking/", header: []string{navigate}},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 4 interior with a pin, loaded", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking/transfer"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 5 interior without a pin", loads: loaded,
			q:    question{at: "a", path: "/banking/transfer"},
			want: result{200, "a", "", "a"},
		},
		{
			name: "row 6 another path", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/img/logo.png"},
			want: result{307, "", at("b", "/img/logo.png"), ""},
		},
		{
			name: "row 7 another path, scope of the site", loads: loaded, pin: "a", scope: route.ScopeSite,
			q:    question{at: "a", path: "/img/logo.png"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 7 another path, scope of the site, at a peer", loads: loaded, pin: "a", scope: route.ScopeSite,
			q:    question{at: "b", path: "/img/logo.png", header: []string{"Sec-Fetch-Mode: no-cors"}},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 7 another path, scope of the site, without a pin", loads: loaded, scope: route.ScopeSite,
			q:    question{at: "a", path: "/img/logo.png"},
			want: result{307, "", at("b", "/img/logo.png"), ""},
		},
		{
			name: "row 7 exit, scope of the site", loads: loaded, pin: "a", scope: route.ScopeSite,
			q:    question{at: "a", path: "/bye"},
			want: result{200, "a", "", "clear"},
		},
		{
			name: "row 8 exit", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking/logout"},
			want: result{200, "a", "", "clear"},
		},
		{
			name: "row 9 entry after the exit", loads: loaded,
			q:    question{at: "a", path: "/banking/", header: []string{navigate}},
			want: result{307, "", at("b", "/banking/"), ""},
		},
		{
			name: "row 10 exit that fails", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking/logout?status=500"},
			want: result{500, "a", "", ""},
		},
		{
			name: "row 11 navigation to a peer's client", loads: light, pin: "a",
			q:    question{at: "b", path: "/banking/x", header: []string{navigate}},
			want: result{307, "", at("a", "/banking/x"), ""},
		},
		{
			name: "row 12 POST", loads: light, pin: "a",
			q:    question{at: "b", method: "POST", path: "/banking/x", body: "once"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 13 fetch", loads: light, pin: "a",
			q:    question{at: "b", path: "/banking/x", header: []string{fetch}},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 14 preflight, which has no cookie", loads: loaded,
			q: question{at: "a", method: "OPTIONS", path: "/banking/x", header: []string{
				fetch, "Origin: https://x.example", "Access-Control-Request-Method: PUT",
			}},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 16 owner off-line, repin", loads: light, pin: "a", edit: takenOver,
			q:    question{at: "b", name: "a." + host, path: "/banking/x"},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 17 owner off-line, restart", loads: light, pin: "a", edit: takenOver, lost: balancing.Restart,
			q:    question{at: "b", path: "/banking/x"},
			want: result{303, "", at("", "/banking/"), "clear"},
		},
		{
			name: "row 18 owner off-line, restart, POST", loads: light, pin: "a", edit: takenOver, lost: balancing.Restart,
			q:    question{at: "b", method: "POST", path: "/banking/x"},
			want: result{409, "", "", "clear"},
		},
		{
			name: "row 19 owner off-line, fail", loads: light, pin: "a", edit: takenOver, lost: balancing.Fail,
			q:    question{at: "b", path: "/banking/x"},
			want: result{503, "", "", ""},
		},
		{
			name: "row 20 old owner is back", loads: light, pin: "b",
			q:    question{at: "a", path: "/banking/x"},
			want: result{307, "", at("b", "/banking/x"), ""},
		},
		{
			name: "row 21 owner is back with a new incarnation", loads: light, pin: "a",
			edit: func(n map[balancing.NodeID]*balancing.Node) { n["a"].Incarnation = 999 },
			q:    question{at: "a", path: "/banking/x"},
			want: result{200, "a", "", "a"},
		},
		{
			name: "row 22 owner silent for 1.2 periods", loads: light, pin: "a",
			edit: func(n map[balancing.NodeID]*balancing.Node) { n["a"].Heard = time.Now().Add(-600 * time.Millisecond) },
			q:    question{at: "b", path: "/banking/x"},
			want: result{307, "", at("a", "/banking/x"), ""},
		},
		{
			name: "row 22 owner silent, and the relay fails", loads: light, pin: "a",
			edit: func(n map[balancing.NodeID]*balancing.Node) {
				c.nodes["b"].relay.close() // or a connection from before would do
				n["a"].Internal = freeAddr()
			},
			q:    question{at: "b", method: "POST", path: "/banking/x"},
			want: result{503, "", "", ""},
		},
		{
			name: "row 23 a pin from before the dedication", loads: light, pin: "a", dedicated: []balancing.NodeID{"c"},
			q:    question{at: "a", path: "/banking/x"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 24 dedicated to c, entry", loads: light, dedicated: []balancing.NodeID{"c"},
			q:    question{at: "a", path: "/banking/"},
			want: result{307, "", at("c", "/banking/"), ""},
		},
		{
			name: "row 24 dedicated to c, entry, at c", loads: light, dedicated: []balancing.NodeID{"c"}, hop: "c",
			q:    question{at: "c", path: "/banking/"},
			want: result{200, "c", "", "c"},
		},
		{
			name: "row 25 dedicated to c, interior", loads: light, dedicated: []balancing.NodeID{"c"},
			q:    question{at: "a", path: "/banking/x"},
			want: result{307, "", at("c", "/banking/x"), ""},
		},
		{
			name: "row 25 dedicated to c, interior, relayed", loads: light, dedicated: []balancing.NodeID{"c"},
			q:    question{at: "a", method: "POST", path: "/banking/x"},
			want: result{200, "c", "", "c"},
		},
		{
			name: "row 26 dedicated to two, loaded", loads: [3]balancing.Load{0, 80, 40}, dedicated: []balancing.NodeID{"b", "c"},
			q:    question{at: "b", path: "/banking/"},
			want: result{307, "", at("c", "/banking/"), ""},
		},
		{
			name: "row 27 dedicated to one, loaded", loads: [3]balancing.Load{0, 80, 0}, dedicated: []balancing.NodeID{"b"},
			q:    question{at: "b", path: "/banking/"},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 28 dedicated node off-line, spill", loads: light, dedicated: []balancing.NodeID{"b"}, edit: offline("b"),
			q:    question{at: "a", path: "/banking/"},
			want: result{200, "a", "", "a"},
		},
		{
			name: "row 29 entry with a pin", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking/"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 30 entry with a pin, the letter", loads: loaded, pin: "a", letter: true,
			q:    question{at: "a", path: "/banking/"},
			want: result{307, "", at("b", "/banking/"), ""},
		},
		{
			name: "row 30 the letter, then at b", loads: turned, pin: "a", letter: true, hop: "b",
			q:    question{at: "b", path: "/banking/"},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 31 dot segments, encoded", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking/%2e%2e/public"},
			want: result{307, "", at("b", "/public"), ""},
		},
		{
			name: "row 32 repeated slash", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/banking//x"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 33 encoded slash", loads: light, pin: "a",
			q:    question{at: "a", path: "/banking%2Fx"},
			want: result{400, "", "", ""},
		},
		{
			name: "row 34 upper case", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/Banking/x"},
			want: result{307, "", at("b", "/Banking/x"), ""},
		},
		{
			name: "row 35 entry without the slash", loads: light,
			q:    question{at: "a", path: "/banking?x=1"},
			want: result{200, "a", "", "a"},
		},
		{
			name: "row 37 exit outside", loads: loaded, pin: "a",
			q:    question{at: "a", path: "/bye"},
			want: result{200, "a", "", "clear"},
		},
		{
			name: "row 38 exit at the wrong node", loads: light, pin: "a",
			q:    question{at: "b", path: "/banking/logout", header: []string{navigate}},
			want: result{307, "", at("a", "/banking/logout"), ""},
		},
		{
			name: "row 44 name of a peer on this connection", loads: light, pin: "a",
			q:    question{at: "b", name: "a." + host, path: "/banking/x"},
			want: result{421, "", "", ""},
		},
		{
			name: "row 45 name of a peer that was taken over", loads: light, pin: "a", edit: takenOver,
			q:    question{at: "b", name: "a." + host, path: "/banking/x"},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 47 HEAD of the entry", loads: light,
			q:    question{at: "a", method: "HEAD", path: "/banking/"},
			want: result{200, "", "", ""},
		},
		{
			name: "row 48 draining, with a pin", loads: light, pin: "a",
			edit: func(n map[balancing.NodeID]*balancing.Node) { n["a"].State = balancing.Draining },
			q:    question{at: "a", path: "/banking/x"},
			want: result{200, "a", "", ""},
		},
		{
			name: "row 48 drained: the owner is lost", loads: light, pin: "a", edit: offline("a"),
			q:    question{at: "b", path: "/banking/x"},
			want: result{200, "b", "", "b"},
		},
		{
			name: "row 49 draining, without a pin", loads: [3]balancing.Load{10, 40, 60},
			edit: func(n map[balancing.NodeID]*balancing.Node) { n["a"].State = balancing.Draining },
			q:    question{at: "a", path: "/banking/"},
			want: result{307, "", at("b", "/banking/"), ""},
		},
	} {
		t.Run(k.name, func(t *testing.T) { c.play(t, k) })
	}
}

// play brings the site into the situation of k, and asks.
func (c *cluster) play(t *testing.T, k row) {
	t.Helper()
	began := c.state
	defer func() {
		c.state = began
		c.change(func(map[balancing.NodeID]*balancing.Node) {})
	}()
	var cookies []string
	if k.pin != "" {
		c.reroute(t, row{}.rules()...)
		cookies = append(cookies, cookieOf(c.enter(t, k.pin, "/banking/")))
	}
	c.reroute(t, k.rules()...)
	c.change(func(n map[balancing.NodeID]*balancing.Node) {
		for i, id := range nodeIDs {
			n[id].Load = k.loads[i]
		}
		if k.edit != nil {
			k.edit(n)
		}
	})
	if k.hop != "" {
		text, _, _ := strings.Cut(c.nodes["a"].site.Load().Pins.HopCookie(host, pin.Hop{Target: k.hop, At: time.Now()}), ";")
		cookies = append(cookies, text)
	}
	if len(cookies) > 0 {
		k.q.header = append(k.q.header, "Cookie: "+strings.Join(cookies, "; "))
	}
	a := c.ask(t, k.q)
	a.want(t, k.want.status, k.want.node, k.want.location)
	if got := c.pinnedTo(t, a); got != k.want.cookie {
		t.Errorf("the answer's cookie: %q, want %q", got, k.want.cookie)
	}
	switch {
	case k.want.status == 503 && a.Header.Get("Retry-After") != "1":
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	case k.want.status != 200 || k.want.node == "":
	case a.seen(t).Body != k.q.body:
		t.Errorf("the origin saw body %q, want %q", a.seen(t).Body, k.q.body)
	case k.pin != "" && k.want.cookie == string(k.want.node) && k.hop == "" && a.seen(t).Header.Get("X-Pin-Lost") != "bank":
		t.Error("the origin does not hear that the pin was lost")
	}
}

// cookieOf takes the name of the header off.
func cookieOf(line string) string { return strings.TrimPrefix(line, "Cookie: ") }

// pinnedTo says what a does to the client's pin: see result.
func (c *cluster) pinnedTo(t *testing.T, a answer) string {
	t.Helper()
	site := c.nodes["a"].site.Load()
	state, _ := site.Routes.Stateful(host, "/banking/")
	for _, k := range a.Cookies() {
		switch {
		case k.Name != site.Pins.Name("bank"):
			continue
		case k.MaxAge < 0:
			return "clear"
		}
		p, err := site.Pins.Open(pinRule(state), k.Value, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if p.Incarnation != uint32(c.nodes["a"].now.Load().Node(p.Owner).Incarnation) {
			t.Errorf("pin of incarnation %d of %s", p.Incarnation, p.Owner)
		}
		return string(p.Owner)
	}
	return ""
}

// The rows that take more than one request.
func TestRowsOfSeveralRequests(t *testing.T) {
	c := newCluster(t, nil)
	c.reroute(t, row{}.rules()...)
	a, b := c.enter(t, "a", "/banking/"), c.enter(t, "b", "/banking/")
	t.Run("row 36 the longest rule's pin counts", func(t *testing.T) {
		both := "Cookie: " + cookieOf(c.enter(t, "a", "/shop/")) + "; " + cookieOf(c.enter(t, "b", "/shop/cart/"))
		c.ask(t, question{at: "a", path: "/shop/cart/1", header: []string{both}}).want(t, 307, "", at("b", "/shop/cart/1"))
		c.ask(t, question{at: "a", path: "/shop/1", header: []string{both}}).want(t, 200, "a", "")
	})
	t.Run("row 38 the owner clears", func(t *testing.T) {
		first := c.ask(t, question{at: "b", path: "/banking/logout", header: []string{a, navigate}})
		first.want(t, 307, "", at("a", "/banking/logout"))
		then := c.ask(t, question{at: "a", path: "/banking/logout", header: []string{a, navigate}})
		if got := c.pinnedTo(t, then); got != "clear" {
			t.Errorf("cookie %q at the owner, want it cleared", got)
		}
	})
	t.Run("row 39 two tabs", func(t *testing.T) {
		c.load(90, 20, 40)
		defer c.load(30, 30, 30)
		for _, path := range []string{"/banking/one", "/banking/two"} {
			c.ask(t, question{at: "a", path: path, header: []string{a}}).want(t, 200, "a", "")
			c.ask(t, question{at: "c", path: path, header: []string{a, fetch}}).want(t, 200, "a", "")
		}
	})
	t.Run("row 40 cookie altered", func(t *testing.T) {
		name, value, _ := strings.Cut(b, "=")
		i, other := len(value)/2, "A"
		if value[i:i+1] == other {
			other = "B"
		}
		altered := name + "=" + value[:i] + other + value[i+1:]
		got := c.ask(t, question{at: "a", path: "/banking/x", header: []string{altered}})
		got.want(t, 200, "a", "")
		if now := c.pinnedTo(t, got); now != "a" {
			t.Errorf("cookie %q, want a new pin to a", now)
		}
	})
	t.Run("row 41 cookie of another rule", func(t *testing.T) {
		_, value, _ := strings.Cut(b, "=")
		renamed := "Cookie: " + c.nodes["a"].site.Load().Pins.Name("shop") + "=" + value
		c.ask(t, question{at: "a", path: "/shop/x", header: []string{renamed}}).want(t, 200, "a", "")
	})
	t.Run("row 52 two entries at once: the last cookie wins", func(t *testing.T) {
		// The browser keeps one cookie of the name: b's answer came last.
		c.ask(t, question{at: "a", path: "/banking/x", header: []string{b}}).want(t, 307, "", at("b", "/banking/x"))
		c.ask(t, question{at: "b", path: "/banking/x", header: []string{b}}).want(t, 200, "b", "")
	})
}

func TestRowOfWebSocket(t *testing.T) {
	t.Run("row 15 WebSocket to a peer's client", func(t *testing.T) {
		c := newCluster(t, echoTunnel)
		pinned := c.pin(t, "a")
		resp, conn, br := c.raw(t, c.nodes["b"], upgrade("/bank/ws", pinned))
		if resp.StatusCode != 101 || resp.Header.Get("X-Node") != "a" {
			t.Fatalf("status %d from %q, want 101 from a", resp.StatusCode, resp.Header.Get("X-Node"))
		}
		io.WriteString(conn, "one\n")
		if got, err := br.ReadString('\n'); got != "one\n" {
			t.Errorf("through the tunnel came %q, %v", got, err)
		}
	})
}

// Early data can be replayed, and a pin must not be set by a replay: there is none.
func TestRowOfEarlyData(t *testing.T) {
	c := newCluster(t, nil)
	addr := netip.AddrPortFrom(c.nodes["a"].addr, testPorts.HTTPS).String()
	sessions := tls.NewLRUClientSessionCache(4)
	ask := func() (quic.ConnectionState, error) {
		var conn *quic.Conn
		client := &http3.Transport{
			TLSClientConfig: &tls.Config{RootCAs: c.ca.pool, ClientSessionCache: sessions},
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (_ *quic.Conn, err error) {
				conn, err = quic.DialAddrEarly(ctx, addr, tc, qc)
				return conn, err
			},
		}
		defer client.Close()
		a, err := c.tryWith(client, question{method: http3.MethodGet0RTT, path: "/bank/"})
		if err != nil || a.StatusCode != 200 {
			return quic.ConnectionState{}, fmt.Errorf("%v, %w", a.Response, err)
		}
		return conn.ConnectionState(), nil
	}
	t.Run("row 46 no early data", func(t *testing.T) {
		if _, err := ask(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool {
			state, err := ask()
			if err != nil {
				t.Fatal(err)
			}
			if state.Used0RTT {
				t.Fatal("early data was taken")
			}
			return state.TLS.DidResume
		}, func() string { return "no session was resumed" })
	})
}
