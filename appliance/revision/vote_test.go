package revision

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"peerage/balancing"
)

// TestTheSiteGoesOnWithoutADeadProposer has a node die in the middle of a change and stay
// dead: its peers can change the document a few seconds later, and it finds its place when
// it is back.
func TestTheSiteGoesOnWithoutADeadProposer(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		n := net.nodes["n1"]
		ctx, die := context.WithCancel(t.Context())
		var applying sync.WaitGroup
		applying.Go(func() { n.agent.Apply(ctx, "x\n", Options{Author: "alice", CanaryFor: time.Hour}, nil) })
		time.Sleep(time.Second)
		stored := n.kill()
		die()
		applying.Wait()
		time.Sleep(deafFor + goneFor - 100*time.Millisecond)
		if _, err := net.apply("n2", "y\n", Options{}); err == nil {
			t.Error("a proposal whose proposer may still go on is passed over")
		}
		time.Sleep(200 * time.Millisecond)
		net.mustApply("n2", "y\n", Options{})
		net.want("y\n")
		if h := net.nodes["n3"].agent.History(); h[1].State != WasWithdrawn || !strings.Contains(h[1].Reason, "n1 is off-line") {
			t.Errorf("history %+v", h)
		}
		net.start("n1", stored, "x\n")
		time.Sleep(time.Second)
		net.want("y\n")
		for id, n := range net.nodes {
			if h := n.agent.History(); len(h) != 3 || h[0].Number != 2 || h[0].State != InForce || h[1].State != WasWithdrawn {
				t.Errorf("%s: history %+v", id, h)
			}
		}
	})
}

// TestTheCanaryGivesUpForADeadProposer has the canary not serve for an hour what nobody can
// bring into force any more.
func TestTheCanaryGivesUpForADeadProposer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n1"]
		ctx, die := context.WithCancel(t.Context())
		var applying sync.WaitGroup
		applying.Go(func() {
			n.agent.Apply(ctx, "x\n", Options{Author: "alice", Canary: "n3", CanaryFor: time.Hour}, nil)
		})
		time.Sleep(time.Second)
		n.kill()
		die()
		applying.Wait()
		if got := net.nodes["n3"].serving(); got != "x\n" {
			t.Errorf("the canary serves %q", got)
		}
		time.Sleep(deafFor + goneFor + time.Second)
		net.want(firstText)
		if s := net.nodes["n2"].agent.Status(); len(s.Pending) > 0 {
			t.Errorf("pending: %+v", s.Pending)
		}
	})
}

// TestAProposerThatWasGivenUpDoesNotGoOn cuts a proposer off for longer than the others
// wait. Back again, it hears of it.
func TestAProposerThatWasGivenUpDoesNotGoOn(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		applied := make(chan error, 1)
		go func() {
			_, err := net.apply("n1", "x\n", Options{CanaryFor: 20 * time.Second})
			applied <- err
		}()
		time.Sleep(time.Second)
		net.part("n1")
		time.Sleep(deafFor + goneFor + 100*time.Millisecond)
		r := net.mustApply("n2", "y\n", Options{})
		net.heal()
		if w, ok := errors.AsType[*Withdrawn](<-applied); !ok || !strings.Contains(w.Reason, "n1 is off-line") {
			t.Errorf("got %v", w)
		}
		time.Sleep(time.Second)
		net.want("y\n")
		if s := net.nodes["n1"].agent.Status(); s.Head.ID != r.ID || len(s.Conflicts) > 0 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestAProposerThatStoodStillDoesNotGoOn stands for a process that is stopped just before it
// brings its proposal into force, for longer than the others wait.
func TestAProposerThatStoodStillDoesNotGoOn(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		a := net.nodes["n1"].agent
		c := &change{a: a, o: Options{Author: "alice"}, changed: a.Changed()}
		if err := errors.Join(c.propose("x\n"), c.vote(t.Context()), c.try(t.Context())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(goneFor)
		if w, ok := errors.AsType[*Withdrawn](c.all(t.Context())); !ok || !strings.Contains(w.Reason, "stood still for 3s") {
			t.Errorf("got %v", w)
		}
		time.Sleep(time.Second)
		net.want(firstText)
	})
}

// TestANodeWithoutRoomRefuses has a full disk on one node: nothing is tried that this node
// could not keep, the operator hears which node it is, and there is a way out.
func TestANodeWithoutRoomRefuses(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n := net.nodes["n2"]
		set := func(what *bool, to bool) {
			net.mu.Lock()
			defer net.mu.Unlock()
			*what = to
		}
		set(&n.crammed, true)
		for _, at := range []balancing.NodeID{"n1", "n2"} {
			_, err := net.apply(at, "x\n", Options{})
			if r, ok := errors.AsType[*Refused](err); !ok || r.Node != "n2" || !strings.Contains(r.Problems, "no space left") {
				t.Errorf("at %s: got %v", at, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		// Not even its vote can be written.
		set(&n.full, true)
		_, err := net.apply("n1", "y\n", Options{})
		if w, ok := errors.AsType[*Withdrawn](err); !ok || !strings.Contains(w.Reason, "[n2] did not answer") || !strings.Contains(w.Reason, "disk may be full") {
			t.Errorf("got %v", err)
		}
		for id, n := range net.nodes {
			if len(n.applied) > 0 {
				t.Errorf("%s applied %q", id, n.applied)
			}
		}
		stored := n.kill()
		net.mustApply("n1", "z\n", Options{})
		net.start("n2", stored, firstText)
		time.Sleep(time.Second)
		net.want("z\n")
	})
}

// TestACheckKeepsNobodyWaiting has the check of a document take long: what the node knows
// can be asked meanwhile, and a proposal of its own goes before the vote.
func TestACheckKeepsNobodyWaiting(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		n := net.nodes["n2"]
		hold := func(c chan struct{}) {
			net.mu.Lock()
			defer net.mu.Unlock()
			n.hold = c
		}
		slow := make(chan struct{})
		hold(slow)
		first := make(chan error, 1)
		go func() {
			_, err := net.apply("n1", firstText+"one\n", Options{})
			first <- err
		}()
		time.Sleep(100 * time.Millisecond)
		if s := n.agent.Status(); len(s.Pending) != 1 || len(n.agent.History()) != 2 {
			t.Errorf("status %+v", s)
		}
		// An operator at n2, too, while its agent still checks.
		hold(nil)
		_, err := net.apply("n2", firstText+"two\n", Options{})
		if c, ok := errors.AsType[*Conflict](err); !ok || !c.Pending || !strings.Contains(c.BaseDiff, "+one") {
			t.Errorf("got %v", err)
		}
		close(slow)
		if err := <-first; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		net.want(firstText + "one\n")
	})
}

// TestWhatComesWhileAProposalIsChecked has the document change while the node of an
// operator still checks the operator's: that is a conflict, and no change is overwritten.
func TestWhatComesWhileAProposalIsChecked(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, net *network) {
		n := net.nodes["n2"]
		slow := make(chan struct{})
		net.part("n2")
		n.hold = slow
		second := make(chan error, 1)
		go func() {
			_, err := net.apply("n2", firstText+"two\n", Options{})
			second <- err
		}()
		time.Sleep(100 * time.Millisecond)
		net.mustApply("n1", firstText+"one\n", Options{})
		net.heal()
		time.Sleep(100 * time.Millisecond)
		close(slow)
		if c, ok := errors.AsType[*Conflict](<-second); !ok || c.Pending || !strings.Contains(c.BaseDiff, "+one") || !strings.Contains(c.YourDiff, "+two") {
			t.Errorf("got %v", c)
		}
		time.Sleep(10 * time.Second)
		net.want(firstText + "one\n")
	})
}
