package edge

import (
	"net/http"
	"testing"
	"time"

	"peerage/balancing"
)

// TestBurst: a node that is very busy for a moment has single requests done by a peer that
// is free at that instant, whatever its last report said.
func TestBurst(t *testing.T) {
	c := newCluster(t, nil)
	c.load(30, 30, 30)
	c.nodes["a"].busyWait = 10 * time.Second // what is tested is the choice, not the haste
	fill := func(id balancing.NodeID, requests int) {
		m := c.nodes[id].c.Meter
		for m.InFlight() < int64(requests) {
			m.Begin(0)
		}
		for m.InFlight() > int64(requests) {
			m.End(0)
		}
	}
	ask := func(path string) answer {
		return c.ask(t, question{at: "a", proto: "h2", method: http.MethodGet, path: path})
	}
	on := func(want bool) { c.resite(func(s *Site) { s.Bursts = want }) }

	on(false)
	fill("a", 20)
	ask("/page").want(t, 200, "a", "")

	on(true)
	fill("b", 3)
	fill("c", 9)
	ask("/page").want(t, 200, "b", "") // the freer of the two
	fill("b", 9)
	ask("/page").want(t, 200, "a", "") // nobody has room
	fill("b", 0)
	ask("/bank/").want(t, 200, "a", "") // it pins, so it stays where it was decided
	fill("a", 5)
	ask("/page").want(t, 200, "a", "") // no burst
	fill("a", 20)
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].State = balancing.Draining })
	ask("/page").want(t, 200, "a", "") // b takes no new work
	if got := c.nodes["a"].Counters().Reasons["burst"]; got != 1 {
		t.Errorf("counted %d bursts, want 1", got)
	}
	for _, id := range nodeIDs {
		fill(id, 0)
	}
}
