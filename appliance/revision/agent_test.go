package revision

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

func TestAnEditIsOnAllNodesWithinASecond(t *testing.T) {
	inBubble(t, 8, func(t *testing.T, net *network) {
		net.want(firstText)
		begun := time.Now()
		var events []string
		o := Options{Author: "alice@n3", Comment: "second", Canary: "n5"}
		r, err := net.nodes["n3"].agent.Apply(t.Context(), "second\n", o, func(e Event) {
			events = append(events, string(e.Kind)+" "+string(e.Node))
		})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took >= time.Second {
			t.Errorf("took %s", took)
		}
		if r.Number != 2 || r.Author != "alice@n3" || r.Comment != "second" || r.Signer != "n3" || r.Text != "second\n" {
			t.Errorf("got %+v", r)
		}
		time.Sleep(100 * time.Millisecond)
		net.want("second\n")
		log := strings.Join(events, ", ")
		for _, want := range []string{"proposed n3", "voted n1", "voted n3", "voted n8", "canary n5", "canary-applied n5", "all n3", "applied n1", "applied n5", "applied n8"} {
			if !strings.Contains(log, want) {
				t.Errorf("no event %q in %s", want, log)
			}
		}
		for id, n := range net.nodes {
			s := n.agent.Status()
			if s.Running != r.ID || s.Trouble != "" || len(s.Nodes) != 8 || s.Head.State != InForce || len(s.Conflicts)+len(s.Pending) > 0 {
				t.Errorf("%s: status %+v", id, s)
			}
			if len(n.applied) != 1 {
				t.Errorf("%s applied %q", id, n.applied)
			}
		}
	})
}

func TestNothingToChange(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		if _, err := net.apply("n1", firstText, Options{}); !errors.Is(err, ErrUnchanged) || !strings.Contains(err.Error(), "revision 1 (") {
			t.Error(err)
		}
		if _, err := net.apply("n1", "x", Options{Base: ID(strings.Repeat("ab", 16))}); !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		for _, o := range []Options{{ConfirmWithin: time.Millisecond}, {ConfirmWithin: 48 * time.Hour}, {CanaryFor: 2 * time.Hour}, {Canary: "n9"}, {Comment: "two\nlines"}} {
			if r, err := net.apply("n1", "x", o); err == nil {
				t.Errorf("%+v: got %v", o, r)
			}
		}
		if r, err := net.apply("n1", "", Options{}); err == nil {
			t.Errorf("empty: got %v", r)
		}
		if r, err := net.apply("n1", strings.Repeat("x", MaxText+1), Options{}); err == nil {
			t.Errorf("too long: got %v", r)
		}
		net.want(firstText)
	})
}

func TestOneNodeRefuses(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		_, err := net.apply("n1", "refuse n3\n", Options{})
		refused, ok := errors.AsType[*Refused](err)
		if !ok || refused.Node != "n3" || refused.Problems != "site.yaml:7:3: nodes.n3: no such interface" {
			t.Fatalf("got %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		if _, err := net.apply("n3", "refuse n3\n", Options{}); !errors.As(err, &refused) {
			t.Errorf("by its own node: got %v", err)
		}
		time.Sleep(time.Second)
		net.want(firstText)
		for _, n := range net.nodes {
			if len(n.applied) > 0 {
				t.Errorf("%s applied %q", n.id, n.applied)
			}
		}
		if h := net.nodes["n2"].agent.History(); h[0].State != WasWithdrawn || !strings.Contains(h[0].Reason, "n3 refused it") {
			t.Errorf("got %+v", h[0])
		}
		net.mustApply("n2", "better\n", Options{}) // nothing is left behind
		time.Sleep(time.Second)
		net.want("better\n")
	})
}

func TestAnEditFromAnOldBaseShowsBothChanges(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		base := net.nodes["n1"].agent.Head().ID
		net.mustApply("n1", firstText+"one\n", Options{Base: base})
		_, err := net.apply("n2", firstText+"two\n", Options{Base: base})
		c, ok := errors.AsType[*Conflict](err)
		if !ok || c.Pending || !strings.Contains(c.BaseDiff, "\n+one\n") || !strings.Contains(c.YourDiff, "\n+two\n") || c.Theirs.Author != "alice@n1" {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{"+one", "+two", "alice@n1", "nothing was changed"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in %v", want, err)
			}
		}
	})
}

// TestOfTwoProposalsOneIsTaken proposes at the same moment, and a little apart.
func TestOfTwoProposalsOneIsTaken(t *testing.T) {
	for _, apart := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(apart.String(), func(t *testing.T) {
			inBubble(t, 5, func(t *testing.T, net *network) {
				errs := make([]error, 3)
				var wg sync.WaitGroup
				for i, id := range []balancing.NodeID{"n1", "n4", "n5"} {
					wg.Go(func() {
						time.Sleep(time.Duration(i) * apart)
						_, errs[i] = net.apply(id, firstText+"by "+string(id)+"\n", Options{})
					})
				}
				wg.Wait()
				won, text := 0, ""
				for i, id := range []string{"n1", "n4", "n5"} {
					c, conflict := errors.AsType[*Conflict](errs[i])
					switch {
					case errs[i] == nil:
						won++
						text = firstText + "by " + id + "\n"
					case !conflict || !strings.Contains(c.YourDiff, "+by "+id) || !strings.Contains(c.BaseDiff, "+by "):
						t.Errorf("%s: got %v", id, errs[i])
					}
				}
				if won != 1 {
					t.Fatalf("%d proposals were taken: %v", won, errs)
				}
				time.Sleep(time.Second)
				net.want(text)
			})
		})
	}
}

func TestEditsOnBothSidesOfAPartition(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, net *network) {
		net.part("n4", "n5")
		a := net.mustApply("n1", firstText+"majority\n", Options{})
		b := net.mustApply("n4", firstText+"minority\n", Options{})
		c := net.mustApply("n5", firstText+"minority\nagain\n", Options{})
		time.Sleep(time.Minute)
		net.heal()
		time.Sleep(time.Second)
		net.want(c.Text)
		for id, n := range net.nodes {
			s := n.agent.Status()
			if len(s.Conflicts) != 1 || s.Conflicts[0].ID != a.ID || s.Conflicts[0].State != Apart {
				t.Errorf("%s: conflicts %+v", id, s.Conflicts)
			}
			d, err := n.agent.Diff(string(a.ID), "head")
			if err != nil || !strings.Contains(d, "-majority") || !strings.Contains(d, "+minority") {
				t.Errorf("%s: diff %v\n%s", id, err, d)
			}
			if r, err := n.agent.Get("2"); err != nil || r.ID != b.ID {
				t.Errorf("%s: revision 2 of the head is %v, %v", id, r, err)
			}
		}
		// It can be taken over, or dismissed.
		net.part("n1")
		d := net.mustApply("n1", "other\n", Options{})
		e := net.mustApply("n2", "third\n", Options{})
		net.mustApply("n2", "fourth\n", Options{})
		time.Sleep(time.Minute)
		net.heal()
		time.Sleep(time.Second)
		net.want("fourth\n")
		n3 := net.nodes["n3"].agent
		if err := n3.Dismiss(string(e.ID), "bob"); err == nil {
			t.Error("dismissed what is no conflict")
		}
		if err := n3.Dismiss(d.ID.Short(), "bob"); err != nil {
			t.Error(err)
		}
		if _, err := n3.Rollback(t.Context(), string(a.ID), Options{Author: "bob"}, nil); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		net.want(a.Text)
		for id, n := range net.nodes {
			if s := n.agent.Status(); len(s.Conflicts) > 0 {
				t.Errorf("%s: conflicts %+v", id, s.Conflicts)
			}
		}
	})
}

func TestCanaryFails(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
		o                Options
	}{
		{"cannot apply it", "break n2\n", "no such directory", Options{Canary: "n2"}},
		{"does not pass its own check", "hang n2\n", "own check", Options{Canary: "n2"}},
		{"turns sick", "sick n2\n", "turned sick", Options{Canary: "n2", CanaryFor: 10 * time.Second}},
		{"is the proposer itself", "break n1\n", "no such directory", Options{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, 4, func(t *testing.T, net *network) {
				_, err := net.apply("n1", c.text, c.o)
				w, ok := errors.AsType[*Withdrawn](err)
				if !ok || !strings.Contains(w.Reason, c.want) {
					t.Fatalf("got %v, want a reason with %q", err, c.want)
				}
				time.Sleep(time.Second)
				net.want(firstText)
				if n := net.nodes["n3"]; len(n.applied) > 0 {
					t.Errorf("n3 applied %q", n.applied)
				}
				if h := net.nodes["n3"].agent.History(); h[0].State != WasWithdrawn || !strings.Contains(h[0].Reason, c.want) {
					t.Errorf("got %+v", h[0])
				}
			})
		})
	}
}

func TestCanaryGoesOffline(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		time.AfterFunc(200*time.Millisecond, func() { net.part("n2") })
		_, err := net.apply("n1", "x\n", Options{Canary: "n2", CanaryFor: time.Second})
		if w, ok := errors.AsType[*Withdrawn](err); !ok || !strings.Contains(w.Reason, "off-line") {
			t.Fatalf("got %v", err)
		}
		time.Sleep(time.Minute) // the canary gives it up by itself
		if got := net.nodes["n2"].serving(); got != firstText {
			t.Errorf("n2 serves %q", got)
		}
		net.heal()
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

func TestProposerDiesMidCanary(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		time.AfterFunc(500*time.Millisecond, func() {
			n := net.nodes["n1"]
			net.mu.Lock()
			n.alive = false
			net.mu.Unlock()
		})
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := net.nodes["n1"].agent.Apply(ctx, "x\n", Options{Author: "alice", Canary: "n3", CanaryFor: 10 * time.Second}, nil)
			done <- err
		}()
		time.Sleep(5 * time.Second)
		if got := net.nodes["n3"].serving(); got != "x\n" {
			t.Errorf("the canary serves %q", got)
		}
		time.Sleep(time.Minute)
		net.want(firstText)
		if h := net.nodes["n2"].agent.History(); h[0].State != WasWithdrawn || !strings.Contains(h[0].Reason, "has not gone on in time") {
			t.Errorf("got %+v", h[0])
		}
		net.mustApply("n2", "y\n", Options{}) // nothing stands in the way
		cancel()
		<-done
	})
}

func TestProposerGivesUp(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := net.nodes["n1"].agent.Apply(ctx, "x\n", Options{Author: "alice", CanaryFor: time.Minute}, nil)
		if w, ok := errors.AsType[*Withdrawn](err); !ok || !strings.Contains(w.Reason, "given up") {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

// TestANodeDoesNotAnswer has a node that is on-line by its reports, but whose agent is
// stuck.
func TestANodeDoesNotAnswer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n2"]
		n.end()
		_, err := net.apply("n1", "x\n", Options{})
		if w, ok := errors.AsType[*Withdrawn](err); !ok || !strings.Contains(w.Reason, "[n2] did not answer within 3s") {
			t.Errorf("got %v", err)
		}
		// Stuck after it has voted.
		n = net.start("n2", n.kill(), firstText)
		time.Sleep(time.Second)
		var events []Event
		o := Options{Author: "alice", CanaryFor: 5 * time.Second}
		time.AfterFunc(time.Second, func() { n.end() })
		_, err = net.nodes["n1"].agent.Apply(t.Context(), "y\n", o, func(e Event) { events = append(events, e) })
		if last := events[len(events)-1]; err != nil || last.Kind != Missing || last.Node != "n2" {
			t.Errorf("got %v, %v", err, events)
		}
	})
}

// TestANodeWhoseClockIsAhead has a proposal come to a node for which its time is over: were
// it not to vote, a site whose clocks differ by seconds could not be changed at all.
func TestANodeWhoseClockIsAhead(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		net.part("n2")
		a := net.nodes["n1"].agent
		c := &change{a: a, o: Options{Author: "alice"}, changed: a.Changed()}
		if err := c.propose("x\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(voteWithin + spare + 10*time.Second)
		net.heal()
		time.Sleep(time.Second)
		if w := a.history().entries[c.e.id].word("n2"); w.Vote != yes {
			t.Errorf("n2 says %+v", w)
		}
		net.want(firstText)
		net.mustApply("n1", "y\n", Options{})
		net.want("y\n")
	})
}

func TestAProposerThatWasStoppedDoesNotGoOn(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		a := net.nodes["n1"].agent
		c := &change{a: a, o: Options{Author: "alice"}, changed: a.Changed()}
		if err := c.propose("x\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if w, ok := errors.AsType[*Withdrawn](c.all(t.Context())); !ok || !strings.Contains(w.Reason, "in time") {
			t.Errorf("got %v", w)
		}
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

func TestTheCanaryIsANodeThatIsWell(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		net.nodes["n1"].kill()
		n := net.start("n1", nil, firstText)
		net.mu.Lock()
		n.text, n.since = "sick n1\n", time.Now().Add(-time.Hour)
		net.mu.Unlock()
		time.Sleep(time.Second)
		if got := n.agent.fittest(); got != "n2" {
			t.Errorf("got %s", got)
		}
		net.mustApply("n1", "cure\n", Options{})
		time.Sleep(time.Minute)
		net.want("cure\n")
	})
}

func TestTwoRevisionsOfOneNumber(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		for _, text := range []string{"a", "b"} {
			if _, err := net.apply("n1", "refuse n2 "+text, Options{}); err == nil {
				t.Fatal("taken")
			}
		}
		a := net.nodes["n1"].agent
		if _, err := a.Get("2"); err == nil || !strings.Contains(err.Error(), "there are several") {
			t.Errorf("got %v", err)
		}
		r := net.mustApply("n1", "c", Options{})
		if got, err := a.Get("2"); err != nil || got.ID != r.ID {
			t.Errorf("got %v, %v", got, err)
		}
		if got, err := a.Get(""); err != nil || got.ID != r.ID {
			t.Errorf("got %v, %v", got, err)
		}
		if d, err := a.Diff("1", "2"); err != nil || !strings.Contains(d, "+c") {
			t.Errorf("got %v\n%s", err, d)
		}
		if s := net.nodes["n2"].agent.Status(); len(s.Nodes) != 2 || s.Nodes[0].Number != 2 || s.Nodes[1].ID != r.ID {
			t.Errorf("status %+v", s.Nodes)
		}
	})
}

func TestConfirmedInTime(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		r := net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		time.Sleep(30 * time.Second)
		s := net.nodes["n2"].agent.Status()
		if left := time.Until(s.Head.ConfirmBy); s.Head.State != OnTrial || left < 28*time.Second || left > 30*time.Second {
			t.Errorf("got %+v", s.Head)
		}
		if _, err := net.apply("n2", "y\n", Options{}); err == nil {
			t.Error("another change while one waits to be confirmed")
		} else if u, ok := errors.AsType[*Unconfirmed](err); !ok || u.Revision.ID != r.ID {
			t.Errorf("got %v", err)
		}
		if _, err := net.nodes["n3"].agent.Confirm("", "bob@n3"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		net.want("x\n")
		if _, err := net.nodes["n3"].agent.Confirm("1", "bob@n3"); err == nil {
			t.Error("confirmed what is not in force")
		}
		net.mustApply("n2", "y\n", Options{})
		time.Sleep(time.Minute)
		if _, err := net.nodes["n3"].agent.Confirm("", "bob@n3"); err == nil || !strings.Contains(err.Error(), "nothing to confirm") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNobodyConfirms(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		net.part("n3", "n4")
		time.Sleep(50 * time.Second)
		if got := net.nodes["n3"].serving(); got != "x\n" {
			t.Errorf("n3 serves %q too early", got)
		}
		time.Sleep(15 * time.Second)
		first := net.nodes["n1"].agent.Head()
		for id, n := range net.nodes {
			if got, head := n.serving(), n.agent.Head(); got != firstText || head.ID != first.ID || head.Number != 3 {
				t.Errorf("%s serves %q, head %v", id, got, head)
			}
		}
		net.heal()
		time.Sleep(time.Second)
		net.want(firstText)
		h := net.nodes["n4"].agent.History()
		if len(h) != 3 || h[1].State != WasRolledBack || !strings.Contains(h[1].Reason, "nobody has confirmed it") {
			t.Errorf("got %+v", h)
		}
		if s := net.nodes["n4"].agent.Status(); len(s.Conflicts) > 0 {
			t.Errorf("got %+v", s.Conflicts)
		}
	})
}

// TestAConfirmationIsNotLost confirms on one side of a partition while the other side, which
// does not hear of it, rolls back.
func TestAConfirmationIsNotLost(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		net.part("n4")
		if _, err := net.nodes["n1"].agent.Confirm("head", "alice"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if got := net.nodes["n4"].serving(); got != firstText {
			t.Errorf("n4 serves %q", got)
		}
		net.heal()
		time.Sleep(time.Second)
		net.want("x\n")
		if h := net.nodes["n1"].agent.History(); h[0].State != WasWithdrawn || h[0].Reason != "revision 2 was confirmed meanwhile" {
			t.Errorf("the roll-back is %+v", h[0])
		}
	})
}

func TestANodeTurnsSick(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		net.mustApply("n1", "sick n3\n", Options{})
		time.Sleep(time.Second)
		net.want("sick n3\n")
		time.Sleep(4 * time.Second)
		net.want(firstText)
		h := net.nodes["n2"].agent.History()
		if h[1].State != WasRolledBack || !strings.Contains(h[1].Reason, "n3 turned sick") || h[0].Number != 3 || h[0].Author != "site" {
			t.Errorf("got %+v", h)
		}
		// Not back to what was rolled back.
		if _, err := net.nodes["n2"].agent.Rollback(t.Context(), "", Options{Author: "bob"}, nil); err == nil {
			t.Error("rolled back to a document that was rolled back")
		}
	})
}

func TestANodeCannotApplyWhatIsInForce(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		_, err := net.apply("n1", "break n3\n", Options{})
		if r, ok := errors.AsType[*RolledBack](err); !ok || !strings.Contains(r.Reason, "no such directory") {
			t.Fatalf("got %v", err)
		}
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

func TestWhoWasSickBeforeCountsForNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		net.mustApply("n1", "sick n3\nhang n3\n", Options{})
		time.Sleep(time.Minute)
		net.mustApply("n1", "sick n3\nhang n3\nmore\n", Options{})
		time.Sleep(time.Minute)
		net.want(firstText)
	})
}

func TestAProcessDiesWhileItApplies(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n3"]
		net.mu.Lock()
		n.dies = "deadly"
		net.mu.Unlock()
		net.mustApply("n1", "deadly\n", Options{})
		time.Sleep(time.Second)
		stored := n.table.Snapshot()
		n.kill()
		n = net.start("n3", stored, firstText)
		time.Sleep(2 * time.Second)
		net.want(firstText)
		if h := net.nodes["n1"].agent.History(); h[1].State != WasRolledBack || !strings.Contains(h[1].Reason, "n3: its process ended") {
			t.Errorf("got %+v", h)
		}
		if len(n.applied) > 0 {
			t.Errorf("n3 applied %q", n.applied)
		}
	})
}

// TestAProposerDies has the site go on as soon as its proposer is back, not when the time
// of the proposal is over.
func TestAProposerDies(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n1"]
		ctx, die := context.WithCancel(t.Context())
		var applying sync.WaitGroup
		applying.Go(func() { n.agent.Apply(ctx, "x\n", Options{Author: "alice", CanaryFor: time.Minute}, nil) })
		time.Sleep(time.Second)
		stored := n.kill()
		die()
		applying.Wait()
		time.Sleep(time.Second)
		if _, err := net.apply("n2", "y\n", Options{}); err == nil {
			t.Error("a proposal whose proposer may still go on is passed over")
		}
		net.start("n1", stored, firstText)
		time.Sleep(100 * time.Millisecond)
		net.want(firstText)
		net.mustApply("n2", "z\n", Options{})
		net.want("z\n")
	})
}

func TestADeadNodeCatchesUp(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		stored := net.nodes["n2"].kill()
		net.mustApply("n1", "x\n", Options{})
		r := net.mustApply("n1", "y\n", Options{ConfirmWithin: time.Second})
		if _, err := net.nodes["n1"].agent.Confirm(string(r.ID), "alice"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		net.start("n2", stored, firstText)
		time.Sleep(time.Second)
		net.want("y\n")
		if got := net.nodes["n2"].applied; len(got) != 1 {
			t.Errorf("n2 applied %q", got)
		}
	})
}

func TestRollBackByNumber(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		for _, text := range []string{"two\n", "three\n", "four\n"} {
			net.mustApply("n1", text, Options{})
			time.Sleep(time.Minute)
		}
		r, err := net.nodes["n2"].agent.Rollback(t.Context(), "2", Options{Author: "bob@n2"}, nil)
		if err != nil || r.Number != 5 || r.Text != "two\n" || r.Comment != "rolls back to revision 2" {
			t.Fatalf("got %+v, %v", r, err)
		}
		// At once, while it is on trial.
		begun := time.Now()
		r, err = net.nodes["n3"].agent.Rollback(t.Context(), "", Options{Author: "bob@n3"}, nil)
		if err != nil || r.Number != 6 || r.Text != "four\n" || time.Since(begun) > 10*time.Millisecond {
			t.Fatalf("got %+v, %v after %s", r, err, time.Since(begun))
		}
		time.Sleep(time.Second)
		net.want("four\n")
		if _, err := net.nodes["n3"].agent.Rollback(t.Context(), "77", Options{Author: "bob"}, nil); !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
	})
}

// TestOldSoftwareKeepsWhatItUnderstands has a node refuse the head, which was applied while
// it was away.
func TestOldSoftwareKeepsWhatItUnderstands(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		stored := net.nodes["n3"].kill()
		net.mustApply("n1", "refuse n3\n", Options{})
		time.Sleep(time.Minute)
		n := net.start("n3", stored, firstText)
		time.Sleep(time.Minute)
		s := n.agent.Status()
		if n.serving() != firstText || s.Head.Number != 2 || !strings.Contains(s.Trouble, "revision 2 (") || !strings.Contains(s.Trouble, "no such interface") {
			t.Errorf("serves %q, status %+v", n.serving(), s)
		}
		if got := net.nodes["n1"].agent.Head(); got.Number != 2 {
			t.Errorf("head %v", got)
		}
		net.mustApply("n1", "good\n", Options{})
		time.Sleep(time.Second)
		net.want("good\n")
		if s := n.agent.Status(); s.Trouble != "" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		n1 := net.nodes["n1"]
		parent := n1.agent.Head().ID
		items := map[string][]byte{}
		for i := range 205 {
			id, r := made("n1", i+2, parent, strings.Repeat("x", i+1), cluster.Stamp(i+1))
			items[revKey(id)] = encode(r)
			items[phaseKey(id, phaseAll)] = encode(phase{Who: "n1", When: 1})
			items[nodeKey(id, "n1")] = encode(word{Vote: yes, Applied: cluster.Stamp(i + 1)})
			parent = id
		}
		if err := n1.table.PutAll(items); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for i := range 4 {
			net.mustApply("n2", firstText+strings.Repeat("x", i), Options{})
		}
		time.Sleep(time.Second)
		net.want(firstText + "xxx")
		for id, n := range net.nodes {
			h := n.agent.History()
			if len(h) != Kept || h[0].Number != 210 || h[Kept-1].Number != 11 {
				t.Errorf("%s keeps %d, from %d to %d", id, len(h), h[0].Number, h[len(h)-1].Number)
			}
			for _, i := range n.table.Items(nodePrefix) {
				_, of, _, _ := splitKey(i.Key)
				if r, err := n.agent.Get(string(of)); err != nil || r.Number < 210-keepVote {
					t.Errorf("%s keeps %s of %v, %v", id, i.Key, r, err)
				}
			}
		}
		if _, err := n1.agent.Get("10"); !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
		if r, err := n1.agent.Get("11"); err != nil || r.Number != 11 {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

// TestWhatIsSaidOfForgottenRevisionsIsForgotten has words come of revisions that have left the
// history, and of one that has not come yet.
func TestWhatIsSaidOfForgottenRevisionsIsForgotten(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		n1 := net.nodes["n1"]
		put := func(items map[string][]byte) {
			t.Helper()
			if err := n1.table.PutAll(items); err != nil {
				t.Fatal(err)
			}
		}
		lost, early := ID(strings.Repeat("ab", 16)), ID(strings.Repeat("cd", 16))
		put(map[string][]byte{nodeKey(lost, "n1"): encode(word{Vote: yes}), phaseKey(lost, phaseAll): encode(phase{Who: "n1"})})
		time.Sleep(time.Minute)
		if len(n1.table.Items(nodePrefix+string(lost))) != 1 {
			t.Error("forgotten while the revision may still come")
		}
		parent := n1.agent.Head().ID
		items := map[string][]byte{}
		for i := range Kept + 5 {
			id, r := made("n1", i+2, parent, strings.Repeat("x", i+1), n1.store.Clock().Now())
			items[revKey(id)] = encode(r)
			items[phaseKey(id, phaseAll)] = encode(phase{Who: "n1", When: r.Made})
			parent = id
		}
		put(items)
		put(map[string][]byte{nodeKey(early, "n1"): encode(word{Vote: yes})})
		time.Sleep(time.Second)
		for id, n := range net.nodes {
			for _, i := range n.table.Items("") {
				if strings.Contains(i.Key, string(lost)) {
					t.Errorf("%s keeps %s", id, i.Key)
				}
			}
			if len(n.table.Items(nodePrefix+string(early))) != 1 {
				t.Errorf("%s has forgotten what comes before its revision", id)
			}
			if len(n.agent.History()) != Kept {
				t.Errorf("%s keeps %d revisions", id, len(n.agent.History()))
			}
		}
	})
}

// TestLargeRevisionsAreBounded keeps fewer revisions where they are large, and always the
// one to roll back to.
func TestLargeRevisionsAreBounded(t *testing.T) {
	h := &history{name: "example", entries: map[ID]*entry{}, keys: map[ID][]string{}}
	var parent *entry
	for i := range 20 {
		id, r := made("n1", i+1, "", strings.Repeat("x", i+1), cluster.Stamp(i+1))
		e := &entry{record: r, id: id, size: keepText / 10, phases: map[string]*phase{phaseAll: {}}, parent: parent}
		h.entries[id], h.keys[id], parent = e, []string{revKey(id)}, e
	}
	if got := len(h.excess()); got != 10 {
		t.Errorf("drops %d", got)
	}
	for _, e := range h.entries {
		e.size = keepText
	}
	if got := len(h.excess()); got != 18 {
		t.Errorf("drops %d", got)
	}
}

func TestTheDiskIsFull(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n2"]
		full := func(is bool) {
			net.mu.Lock()
			defer net.mu.Unlock()
			n.full = is
		}
		full(true)
		if r, err := net.apply("n2", "x\n", Options{}); err == nil {
			t.Errorf("got %v", r)
		}
		full(false)
		net.want(firstText)
		net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		// It cannot be written down that the time is over; it is over all the same.
		net.part("n2")
		full(true)
		time.Sleep(70 * time.Second)
		if got := n.serving(); got != firstText {
			t.Errorf("n2 serves %q", got)
		}
		if s := n.agent.Status(); s.Head == nil || s.Head.Number != 3 {
			t.Errorf("status %+v", s)
		}
		full(false)
		net.heal()
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

func TestARevisionThatNoNodeSignedIsRefused(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		head := net.nodes["n1"].agent.Head().ID
		store, err := cluster.OpenStore("")
		if err != nil {
			t.Fatal(err)
		}
		forger, err := store.Table("x1", cluster.TableConfig{Name: "site"})
		if err != nil {
			t.Fatal(err)
		}
		for _, signer := range []string{"x1", "n1"} {
			id, r := made("x1", 2, head, "forged\n", 7)
			r.Signer = signer
			err := forger.PutAll(map[string][]byte{revKey(id): encode(r), phaseKey(id, phaseAll): encode(phase{When: 7})})
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range forger.Snapshot() {
				if _, err := net.nodes["n1"].table.Merge(part); !errors.Is(err, cluster.ErrContent) {
					t.Errorf("signed by %s: got %v", signer, err)
				}
			}
		}
		time.Sleep(time.Second)
		if got := net.nodes["n1"].agent.Head().ID; got != head {
			t.Errorf("head %s", got)
		}
	})
}

// TestNoEditIsLost has nodes edit while others are cut off, die and come back. In the end
// all agree, and every edit that was acknowledged is in the history as one.
func TestNoEditIsLost(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, 5, func(t *testing.T, net *network) { misuse(t, net, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func misuse(t *testing.T, net *network, random *rand.Rand) {
	type grave struct {
		stored [][]byte
		text   string
	}
	graves := map[balancing.NodeID]grave{}
	var mu sync.Mutex
	taken := map[ID]bool{}
	var edits sync.WaitGroup
	names := []balancing.NodeID{"n1", "n2", "n3", "n4", "n5"}
	for i := range 200 {
		id := names[random.IntN(len(names))]
		n, dead := net.nodes[id], graves[id].stored != nil
		switch what := random.IntN(10); {
		case what == 0 && !dead && len(graves) < 3:
			graves[id] = grave{n.kill(), n.serving()}
		case what == 1 && dead:
			net.start(id, graves[id].stored, graves[id].text)
			delete(graves, id)
		case what == 2:
			net.part(id)
		case what == 3:
			net.heal()
		case !dead:
			o := Options{Author: "alice@" + string(id)}
			if random.IntN(5) == 0 {
				o.ConfirmWithin = time.Minute
			}
			edits.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if r, err := n.agent.Apply(ctx, fmt.Sprintf("edit %d\n", i), o, nil); err == nil {
					mu.Lock()
					defer mu.Unlock()
					taken[r.ID] = true
				}
			})
		}
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
	}
	edits.Wait()
	for id, g := range graves {
		net.start(id, g.stored, g.text)
	}
	net.heal()
	time.Sleep(5 * time.Minute)
	net.heal() // what has died before it was sent
	time.Sleep(time.Second)
	net.want(net.nodes["n1"].serving())
	if len(taken) < 5 {
		t.Errorf("only %d edits were taken", len(taken))
	}
	for id, n := range net.nodes {
		states := map[ID]State{}
		for _, e := range n.agent.History() {
			states[e.ID] = e.State
		}
		for r := range taken {
			if s := states[r]; s == "" || s == WasWithdrawn || s == OnVote || s == OnCanary {
				t.Errorf("%s: %s was acknowledged, and is %q", id, r.Short(), s)
			}
		}
	}
}
