package heartbeat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
)

// verdicts counts how often a peer was called silent.
func (l *lan) verdicts() int { return strings.Count(l.log.String(), `msg="peer silent"`) }

// must fails the test if one of the changes did.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestSiteKeyRotatesLive: node by node the new key is added below the old one, put above
// it, and the old one is taken away, while reports go on. Not one is lost.
func TestSiteKeyRotatesLive(t *testing.T) {
	k1, k2 := keys.Generate(), keys.Generate()
	for _, mode := range []Mode{Auto, Unicast} {
		synctest.Test(t, func(t *testing.T) {
			ring := func(newest keys.Key, older ...keys.Key) *keys.Ring {
				r, err := keys.NewRing(newest, older...)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			l := newLAN(t, 3, mode)
			l.ring = ring(k1)
			all := []*running{l.start(1, 1), l.start(2, 1), l.start(3, 1)}
			for _, x := range all {
				defer x.end()
			}
			settled(5 * period)
			joined := strings.Count(l.log.String(), `msg="peer online"`)
			for _, stage := range []*keys.Ring{ring(k1, k2), ring(k2, k1), ring(k2).WithPast(keys.Past{Key: k1, Until: time.Now().Add(time.Hour)})} {
				for _, x := range all {
					must(t, x.change(func(c *Config) { c.Sealer = stage.Sealer(keys.LabelReport) }))
					settled(2*period + period/3)
				}
			}
			settled(5 * period)
			for _, x := range all {
				if n := x.Counters(); n.Refused() > 0 || n.Accepted < 20 {
					t.Errorf("%v: %s counted %+v, want that nothing was refused", mode, x.c.Self, n)
				}
			}
			if got := strings.Count(l.log.String(), `msg="peer online"`); l.verdicts() > 0 || got != joined {
				t.Errorf("%v: log\n%s", mode, &l.log)
			}
			// And the old key is good for nothing now.
			before := all[0].Counters().Forged
			all[0].hear(ring(k1).Sealer(keys.LabelReport).Seal(nil, fullReport().appendTo(nil), []byte("test")), false)
			if all[0].Counters().Forged != before+1 {
				t.Error("the old key still opens")
			}
		})
	}
}

func TestNodesComeAndGoLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3, Unicast)
		whole := l.list
		l.list = whole[:2]
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		l.list = whole
		n3 := l.start(3, 1)
		settled(3 * period)
		if n1.View().Node("n3") != nil || !n1.hears("n2") || n1.Counters().Unknown == 0 {
			t.Fatalf("before: %+v, %+v", n1.View().Nodes, n1.Counters())
		}
		must(t,
			n1.change(func(c *Config) { c.Nodes = whole }),
			n2.change(func(c *Config) { c.Nodes = whole }))
		if n := n1.View().Node("n3"); n == nil || n.Online {
			t.Errorf("the moment after, n3 is %+v, want that it is there and off-line", n)
		}
		settled(2 * period)
		if !n1.hears("n3") || !n2.hears("n3") || !n3.hears("n1") || !n1.hears("n2") {
			t.Error("n3 was added, and they do not hear each other")
		}

		// What the document says of a node counts at once, of a peer and of this one.
		vips := addrs("192.0.2.99")
		edited := slices.Clone(whole)
		edited[0].Capacity, edited[0].Home = 3, vips
		edited[2].Capacity, edited[2].Home = 4, vips
		must(t, n1.change(func(c *Config) { c.Nodes, c.Internal = edited, hostOf(200) }))
		v := n1.View()
		if me := v.Me(); me.Capacity != 3 || !slices.Equal(me.Home, vips) || me.Internal != hostOf(200) {
			t.Errorf("n1 sees itself as %+v", me)
		}
		if n := v.Node("n3"); n.Capacity != 4 || !slices.Equal(n.Home, vips) || !n.Online || n.State != balancing.OK || n.Internal != hostOf(103) {
			t.Errorf("n1 sees n3 as %+v", n)
		}
		settled(earliest + viewEvery)
		if n := n2.View().Node("n1"); n.Capacity != 3 || n.Internal != hostOf(200) {
			t.Errorf("n2 sees n1 as %+v: it was not told early", n)
		}
		// An address is the document's until a report says otherwise.
		edited = slices.Clone(edited)
		edited[1].Address = hostOf(77)
		must(t, n1.change(func(c *Config) { c.Nodes = edited }))
		if got := n1.View().Node("n2").Address; got != hostOf(77) {
			t.Errorf("n1 has n2 at %v, want where the document says", got)
		}
		settled(2 * period)
		if got := n1.View().Node("n2").Address; got != hostOf(2) {
			t.Errorf("n1 has n2 at %v, want where its reports say", got)
		}

		// Taken out, a node vanishes, and what it goes on to send counts for nothing.
		tape := slices.Clone(l.bus.taped)
		for _, text := range tape { // what went to others as well
			n1.hear(text, false)
		}
		without := slices.Clone(edited[:2])
		must(t, n1.change(func(c *Config) { c.Nodes = without }))
		settled(3 * period)
		if n1.View().Node("n3") != nil || !n1.hears("n2") {
			t.Errorf("n3 was taken out: %+v", n1.View().Nodes)
		}
		n3.kill()
		settled(maxSkew / 2)
		// It comes back, and what was recorded of it does not pass for a sign of life.
		must(t, n1.change(func(c *Config) { c.Nodes = edited }))
		for _, text := range tape {
			n1.hear(text, false)
		}
		if n1.hears("n3") {
			t.Error("an old report made n3 on-line")
		}
		l.list = edited
		n3 = l.start(3, 2)
		defer n3.end()
		settled(2 * period)
		if !n1.hears("n3") {
			t.Error("n3 is back, and not heard")
		}
	})
}

func TestFormerNodesAreForgotten(t *testing.T) {
	c := Config{Self: "n1", OfflineAfter: 3}
	now := time.Unix(1000, 0)
	p := newPeers(&c)
	for i := range 1000 {
		next := c
		next.Nodes = []Peer{{ID: balancing.NodeID(fmt.Sprint("n", i+2)), Capacity: 1}}
		p, c = p.changed(&c, &next, now), next
		now = now.Add(time.Second)
	}
	if n := len(p.former); n > int(2*maxSkew/time.Second)+2 {
		t.Errorf("%d former nodes are kept", n)
	}
}

func TestOfflineAfterChangesLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3, Unicast)
		n1, n2, n3 := l.start(1, 1), l.start(2, 1), l.start(3, 1)
		defer n1.end()
		settled(5 * period)
		must(t, n1.change(func(c *Config) { c.OfflineAfter = 10 }))
		n2.kill()
		killed := time.Now()
		settled(8 * period)
		if !n1.hears("n2") || !n1.hears("n3") {
			t.Error("off-line after less than ten periods")
		}
		must(t, n1.change(func(c *Config) { c.OfflineAfter = 2 }))
		settled(jumpPause + earliest)
		if n1.hears("n2") || !n1.hears("n3") {
			t.Errorf("silent for %v, and n2 is on-line is %t; n3, which is not, %t", time.Since(killed), n1.hears("n2"), n1.hears("n3"))
		}
		n3.kill()
		settled(2*period + 2*time.Millisecond)
		if n1.hears("n3") {
			t.Error("n3 is still on-line after two periods")
		}
	})
}

func TestDocumentSettingsChangeLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		settled(3 * period)
		set, err := n1.Set(which(func(s *balancing.Settings) { s.Light = 65 }))
		must(t, err)
		settled(3 * period)

		// A change of something else leaves what was set.
		must(t, n1.change(func(c *Config) { c.OfflineAfter = 4 }), n2.change(func(c *Config) { c.OfflineAfter = 4 }))
		if a, b := n1.View().Settings, n2.View().Settings; a != set || b != set {
			t.Errorf("follow %+v and %+v, want %+v as was set", a, b, set)
		}
		// A document that says something else counts, on each node from when it has it.
		doc := document
		doc.Base, doc.Light, doc.Period = 78, 40, 10*period
		must(t, n1.change(func(c *Config) { c.Document = doc }))
		settled(3 * period)
		if a, b := n1.View().Settings, n2.View().Settings; a != doc || b != set {
			t.Errorf("n1 follows %+v, n2 %+v; want the new document, and what was set", a, b)
		}
		must(t, n2.change(func(c *Config) { c.Document = doc }))
		settled(60 * period)
		if a, b := n1.View().Settings, n2.View().Settings; a != doc || b != doc || l.verdicts() > 0 {
			t.Errorf("follow %+v and %+v, %d verdicts; want the new document", a, b, l.verdicts())
		}
		if again, err := n2.Set(which(func(s *balancing.Settings) { s.Light = 45 })); err != nil || again.Base != 78 {
			t.Errorf("set on the new document: %+v, %v", again, err)
		}
		settled(earliest * 10)
		if got := n1.View().Settings.Light; got != 45 {
			t.Errorf("n1 follows L1 %v, want 45", got)
		}
		// Back to the old one: what the caller has kept of it counts again.
		must(t, n1.change(func(c *Config) { c.Document, c.Changed = document, set }))
		if got := n1.View().Settings; got != set {
			t.Errorf("back at the old document n1 follows %+v, want %+v", got, set)
		}
	})
}

// TestWaysOfExchangeChangeLive goes from each way to each other, node by node and with
// minutes between, so that for long the nodes exchange in different ways.
func TestWaysOfExchangeChangeLive(t *testing.T) {
	modes := []Mode{Auto, Multicast, Unicast, Query}
	for _, from := range modes {
		for _, to := range modes {
			if from == to {
				continue
			}
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLAN(t, 3, from)
					all := []*running{l.start(1, 1), l.start(2, 1), l.start(3, 1)}
					for _, x := range all {
						defer x.end()
					}
					settled(10 * period)
					for _, x := range all {
						must(t, x.change(func(c *Config) { c.Exchange = to }))
						for range 100 {
							settled(period + period/7)
							for _, y := range all {
								for p := range y.View().Peers() {
									if !p.Online {
										t.Fatalf("%s does not hear %s after %s has changed", y.c.Self, p.ID, x.c.Self)
									}
								}
							}
						}
					}
					if l.verdicts() > 0 {
						t.Errorf("%d verdicts", l.verdicts())
					}
					before := all[0].Counters().Sent
					settled(10 * period)
					if sent := all[0].Counters().Sent - before; (to == Auto || to == Multicast) && sent > 12 {
						t.Errorf("%d datagrams in ten periods, want the multicast ones alone", sent)
					}
					for _, x := range all {
						if n := x.Counters(); n.Refused() > 0 {
							t.Errorf("%s counted %+v", x.c.Self, n)
						}
					}
				})
			})
		}
	}
}

// TestFailedChangeChangesNothing: not the sockets, and nothing of what else was wanted.
func TestFailedChangeChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Unicast)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		settled(3 * period)
		l.stuck = true
		was := n1.View()
		err := n1.change(func(c *Config) {
			c.Exchange, c.OfflineAfter, c.Nodes, c.Internal = Query, 9, l.list[:1], netip.Addr{}
			c.Document.Base++
		})
		if !errors.Is(err, errStuck) {
			t.Errorf("Reconfigure = %v, want %v", err, errStuck)
		}
		for name, edit := range map[string]func(*Config){
			"name":        func(c *Config) { c.Self = "n2" },
			"port":        func(c *Config) { c.Port++ },
			"site":        func(c *Config) { c.Site = "other" },
			"incarnation": func(c *Config) { c.Incarnation++ },
			"itself":      func(c *Config) { c.Nodes = l.list[1:] },
			"key":         func(c *Config) { c.Sealer = nil },
			"settings":    func(c *Config) { c.Document.Period = time.Hour },
			"patience":    func(c *Config) { c.OfflineAfter = 1 },
		} {
			if err := n1.change(edit); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		now := n1.View()
		if len(now.Nodes) != 2 || now.Settings != was.Settings || now.Me().Internal != was.Me().Internal || n1.mode != Unicast || n1.c.OfflineAfter != 3 {
			t.Errorf("after changes that failed: %+v", now)
		}
		settled(10 * period)
		if !n1.hears("n2") || !n2.hears("n1") {
			t.Error("they do not hear each other any more")
		}
		l.stuck = false
		must(t, n1.change(func(c *Config) { c.Exchange = Query }))
		settled(10 * period)
		if !n1.hears("n2") || !n2.hears("n1") || n2.Counters().Asked == 0 {
			t.Error("the same change, once it can be made, was not")
		}
	})
}

// TestReconfigureWithoutRun: before it runs, and after its end, nobody waits for sockets.
func TestReconfigureWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Unicast)
		n1 := l.start(1, 1)
		n1.end()
		if err := n1.change(func(c *Config) { c.Exchange = Query }); err == nil {
			t.Error("another way of exchange after the end: no error")
		}
		must(t, n1.change(func(c *Config) { c.OfflineAfter = 5 }))

		c := n1.made
		c.Exchange = Unicast
		x, err := New(c)
		must(t, err)
		c.Exchange, c.Nodes = Query, l.list[:1]
		must(t, x.Reconfigure(c))
		if x.mode != Query || len(x.View().Nodes) != 1 {
			t.Errorf("mode %v, %d nodes; want what it was changed to", x.mode, len(x.View().Nodes))
		}
	})
}
