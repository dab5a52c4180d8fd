package edge

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/edge/route"
)

// Patent, summary: the levels of a running site can be re-set.
func TestLevelsAreThoseOfTheView(t *testing.T) {
	c := newCluster(t, nil)
	c.load(90, 20, 40)
	for _, k := range []struct {
		light, margin balancing.Load
		status        int
	}{{50, 20, 307}, {90, 20, 200}, {89, 20, 307}, {50, 71, 200}, {50, 70, 307}} {
		c.settings.Light, c.settings.Margin = k.light, k.margin
		c.load(90, 20, 40)
		if a := c.ask(t, question{at: "a", path: "/"}); a.StatusCode != k.status {
			t.Errorf("L1 %v, L2 %v: status %d, want %d", k.light, k.margin, a.StatusCode, k.status)
		}
	}
}

func TestRotationGoesOn(t *testing.T) {
	c := newCluster(t, nil)
	c.settings.Rule = balancing.Rotate
	c.load(90, 20, 40)
	for _, want := range []balancing.NodeID{"b", "c", "b", "c"} {
		c.ask(t, question{at: "a", path: "/"}).want(t, 307, "", at(want, "/"))
	}
}

func TestBooksAreKept(t *testing.T) {
	c := newCluster(t, nil)
	n := c.nodes["a"]
	c.load(90, 20, 40)
	c.ask(t, question{at: "a", path: "/"}).want(t, 307, "", at("b", "/"))
	if debit, shed := n.Books(); debit != 0 || shed <= 0 {
		t.Errorf("after a redirect of a first request: debit %v, shed %v; want shed alone", debit, shed)
	}
	c.ask(t, question{at: "a", path: "/"})
	if debit, _ := n.Books(); debit <= 0 {
		t.Errorf("after a redirect in mid-visit: debit %v", debit)
	}
}

func TestBooksAreReadByTheDampedRule(t *testing.T) {
	c := newCluster(t, nil)
	n := c.nodes["a"]
	c.load(90, 0, 0)
	before := n.now.Load()
	for range 200 { // on paper, this node has sent nearly all of its load away
		n.ledger.Redirected(time.Now(), before.Settings.Policy, before, "b", false)
	}
	c.settings.Rule = balancing.Damped
	c.load(90, 0, 0)
	c.ask(t, question{at: "a", path: "/"}).want(t, 200, "a", "")
	if line := n.access.next(t); line["reason"] != "light" {
		t.Errorf("reason %v, want light", line["reason"])
	}
}

func TestStaleReportsAreAskedFor(t *testing.T) {
	c := newCluster(t, nil)
	n := c.nodes["a"]
	var asked atomic.Int32
	n.c.Ask = func() { asked.Add(1) }
	fresh, stale := 600*time.Millisecond, 800*time.Millisecond // the period is 500 ms
	for _, k := range []struct {
		what string
		load balancing.Load
		b, c time.Duration
		lost bool // b is off-line
		want int32
	}{
		{"light", 50, stale, stale, false, 0},
		{"loaded, reports fresh", 90, fresh, fresh, false, 0},
		{"loaded, the old one is of a node off-line", 90, stale, fresh, true, 0},
		{"loaded, one is old", 90, fresh, stale, false, 1},
	} {
		t.Run(k.what, func(t *testing.T) {
			c.change(func(nodes map[balancing.NodeID]*balancing.Node) {
				now := time.Now()
				nodes["a"].Load = k.load
				nodes["b"].Heard, nodes["c"].Heard = now.Add(-k.b), now.Add(-k.c)
				nodes["b"].Online = !k.lost
			})
			asked.Store(0)
			n.asked.Store(0)
			r := &http.Request{Header: http.Header{}}
			x := &exchange{start: n.now.Load().Time, site: n.site.Load(), view: n.now.Load(), rule: &route.Rule{}}
			for range 3 { // of one moment
				n.decide(r, x)
			}
			if got := asked.Load(); got != k.want {
				t.Errorf("asked %d times, want %d", got, k.want)
			}
		})
	}
}

// F2: some nodes serve the requests without a URI, and no others do.
func TestLackOfURIIsDedicated(t *testing.T) {
	c := newCluster(t, nil)
	c.reroute(t, route.Rule{Path: "/"}, route.Rule{NoURI: true, Nodes: []balancing.NodeID{"b", "c"}})
	none := balancing.RouteIDOf("", "")
	c.load(10, 30, 20)
	for _, target := range []string{"/", "/?q", "//"} {
		path := target
		if target == "//" {
			path = "/"
		}
		c.ask(t, question{at: "a", path: target}).want(t, 307, "", at("c", path))
	}
	resp, _, _ := c.raw(t, c.nodes["a"], "OPTIONS * HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if got := c.nodes["a"].Counters().Relays["dedicated"]; resp.StatusCode != 200 || got != 1 {
		t.Errorf("OPTIONS *: status %d, %d relays; want it carried to c", resp.StatusCode, got)
	}
	c.ask(t, question{at: "a", path: "/index.html"}).want(t, 200, "a", "")
	c.ask(t, question{at: "b", path: "/"}).want(t, 200, "b", "")
	// The third embodiment: "another server that can handle that URI".
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["c"].Unable = []balancing.RouteID{none} })
	c.ask(t, question{at: "a", path: "/"}).want(t, 307, "", at("b", "/"))
	c.ask(t, question{at: "c", path: "/"}).want(t, 307, "", at("b", "/"))
	c.ask(t, question{at: "c", path: "/", method: "POST", body: "x"}).want(t, 200, "b", "")
	c.ask(t, question{at: "c", path: "/x"}).want(t, 200, "c", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Unable = n["c"].Unable })
	c.ask(t, question{at: "a", path: "/"}).want(t, 503, "", "")
	if line := lastLine(t, c.nodes["c"]); line["reason"] != "relayed" && line["reason"] != "light" {
		t.Errorf("reason %v at c", line["reason"])
	}
}

// lastLine returns the newest line of n's access log.
func lastLine(t testing.TB, n *node) map[string]any {
	t.Helper()
	line := n.access.next(t)
	for len(n.access) > 0 {
		line = n.access.next(t)
	}
	return line
}
