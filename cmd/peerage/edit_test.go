package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/balancing"
)

// BenchmarkEdit changes the document of a site of real nodes, at one node after another, and
// measures how long it takes until the change is in force, and until every node that runs
// says that it serves it. Last it measures how long a node that was dead takes to catch up.
func BenchmarkEdit(b *testing.B) {
	for _, c := range []struct {
		name        string
		nodes, dead int
	}{{"8 nodes", 8, 0}, {"2 nodes, 1 dead", 2, 1}} {
		b.Run(c.name, func(b *testing.B) {
			g := newGrown(b)
			for i := 2; i <= c.nodes; i++ {
				g.join(fmt.Sprint("n", i))
			}
			g.awaitWhole()
			for _, n := range g.nodes[c.nodes-c.dead:] {
				n.kill()
			}
			live := g.nodes[:c.nodes-c.dead]
			eventually(b, "the dead are known to be", func() bool {
				st := live[0].status()
				return st != nil && !slices.ContainsFunc(g.nodes[len(live):], func(n *grownNode) bool { return st.View.Node(balancing.NodeID(n.name)).Online })
			})
			var inForce, everywhere []time.Duration
			for i := 0; b.Loop(); i++ {
				at := live[i%len(live)]
				head, err := at.client().Revision(b.Context(), "")
				if err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				var forced time.Duration
				made, err := at.client().Apply(b.Context(), node.Apply{
					Text: withRequests(head.Text, 10_000+i), Base: string(head.ID), User: "bench",
				}, func(s node.Step) {
					if e, ok := s.Event.(map[string]any); ok && e["event"] == string(revision.ForAll) {
						forced = time.Since(began)
					}
				})
				if err != nil {
					b.Fatal(err)
				}
				all := time.Since(began)
				if late := servedBy(b, live, made.ID, began); late > 0 {
					all = late
				}
				inForce, everywhere = append(inForce, forced), append(everywhere, all)
			}
			if c.dead > 0 {
				head, err := live[0].client().Revision(b.Context(), "")
				if err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				for _, n := range g.nodes[len(live):] {
					n.start()
				}
				servedBy(b, g.nodes, head.ID, began)
				b.ReportMetric(ms([]time.Duration{time.Since(began)}, 50), "ms-start-to-caught-up")
			}
			b.ReportMetric(ms(inForce, 50), "ms-in-force")
			b.ReportMetric(ms(everywhere, 50), "ms-everywhere")
			b.ReportMetric(ms(everywhere, 95), "ms-everywhere-p95")
			b.ReportMetric(ms(everywhere, 50)-ms(inForce, 50), "ms-spread")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// servedBy waits until all nodes say that they serve a revision. It returns how long ago
// it began if one did not at the first look, else 0.
func servedBy(b *testing.B, nodes []*grownNode, id revision.ID, began time.Time) (late time.Duration) {
	b.Helper()
	for _, n := range nodes {
		served := func() bool {
			st, err := n.client().Site(b.Context())
			return err == nil && st.Running == id
		}
		if !served() {
			eventually(b, n.name+" serves the change", served)
			late = time.Since(began)
		}
	}
	return late
}

func ms(all []time.Duration, percentile int) float64 {
	slices.Sort(all)
	return float64(all[(len(all)-1)*percentile/100].Microseconds()) / 1000
}

// withRequests sets limits.requests in a document.
func withRequests(text string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "limits:") {
			b.WriteString(line)
		}
	}
	fmt.Fprintf(&b, "limits: {requests: %d}\n", n)
	return b.String()
}

// TestEditsAtOnce lets operators at all nodes change the document at the same moment: of
// each round one is taken, the others are told of it, and nothing is lost.
func TestEditsAtOnce(t *testing.T) {
	g := newGrown(t)
	for _, name := range []string{"n2", "n3"} {
		g.join(name)
	}
	g.awaitWhole()
	for round := range 3 {
		head, err := g.nodes[0].client().Revision(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		errs := make([]error, len(g.nodes))
		for i, n := range g.nodes {
			all.Go(func() {
				_, errs[i] = n.client().Apply(t.Context(), node.Apply{
					Text: withRequests(head.Text, 1000+10*round+i), Base: string(head.ID), User: "op",
				}, nil)
			})
		}
		all.Wait()
		taken := 0
		for i, err := range errs {
			switch {
			case err == nil:
				taken++
			case !strings.Contains(err.Error(), "requests:"):
				t.Errorf("n%d is not told what others have changed: %v", i+1, err)
			}
		}
		if taken != 1 {
			t.Errorf("of %d changes at once %d were taken: %v", len(errs), taken, errs)
		}
		g.awaitWhole()
	}
}
