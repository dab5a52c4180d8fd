package edge

import (
	"testing"
)

// Section 5.2: "only admission control may answer a pinned request 503, and it sheds
// unpinned ones first".
func TestAdmission(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	pinned := c.enter(t, "a", "/bank/")
	c.resite(func(s *Site) { s.MaxRequests = 4 })
	c.load(90, 20, 40)
	var slow []<-chan outcome
	busy := func() { // one request more stays in progress
		got := make(chan outcome, 1)
		slow = append(slow, got)
		go func() {
			a, err := c.try(t.Context(), question{at: "a", path: "/slow", header: []string{fetch}})
			got <- outcome{a, err}
		}()
		receive(t, g.entered, "the request to reach the origin")
	}
	expect := func(what string, q question, status int) {
		t.Run(what, func(t *testing.T) {
			q.at = "a"
			a := c.ask(t, q)
			if a.StatusCode != status {
				t.Errorf("status %d with %d in progress, want %d", a.StatusCode, n.inProgress.Load(), status)
			}
			if status == 503 && (a.Header.Get("Retry-After") != "1" || a.Header["Set-Cookie"] != nil) {
				t.Errorf("header %v, want Retry-After: 1 and the pin kept", a.Header)
			}
		})
	}
	fetched, client := question{path: "/", header: []string{fetch}}, question{path: "/bank/x", header: []string{pinned}}
	for range 3 {
		busy()
	}
	expect("as many as may be", fetched, 200)
	busy()
	expect("row 51 one too many, without a pin", fetched, 503)
	expect("row 51 one too many, with a pin", client, 200)
	expect("one too many, and a peer is lighter", question{path: "/"}, 307)
	c.resite(func(s *Site) { s.MaxRequests = 3 })
	expect("row 51 more than a quarter too many, with a pin", client, 503)
	if got := n.Counters(); got.Reasons["overload"] != 2 || got.Actions["unavailable"] != 2 {
		t.Errorf("counted %v, %v; want 2 for overload", got.Reasons, got.Actions)
	}
	if a := c.ask(t, question{at: "a", path: HealthPath}); a.StatusCode != 200 {
		t.Errorf("health %d while the node is full", a.StatusCode)
	}
	close(g.open)
	for _, got := range slow {
		if o := receive(t, got, "an answer"); o.err != nil || o.StatusCode != 200 {
			t.Errorf("request in progress: %v", o.err)
		}
	}
	expect("when they have ended", fetched, 200)
}
