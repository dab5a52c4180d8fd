package revision

import (
	"strings"
	"testing"
	"time"
)

// TestAFailureOnOneSideUndoesNothingOnTheOther has a change fail on one side of a partition,
// while another one goes well on the other. What has come of nothing must not win because
// its roll-back has the greater number.
func TestAFailureOnOneSideUndoesNothingOnTheOther(t *testing.T) {
	for _, c := range []struct {
		name, bad, want string
		o               Options
	}{
		{"a node turns sick", "sick n5\n", "n5 turned sick", Options{}},
		{"nobody confirms", "bad\n", "nobody has confirmed it", Options{ConfirmWithin: time.Minute}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, 5, func(t *testing.T, net *network) {
				net.part("n4", "n5")
				bad := net.mustApply("n4", c.bad, c.o)
				good := net.mustApply("n1", "good\n", Options{})
				time.Sleep(2 * time.Minute)
				if h := net.nodes["n5"].agent.Head(); h.Text != firstText || h.Number != 3 {
					t.Errorf("not rolled back: head %v", h)
				}
				net.heal()
				time.Sleep(time.Second)
				net.want("good\n")
				for id, n := range net.nodes {
					if s := n.agent.Status(); s.Head.ID != good.ID || len(s.Conflicts) > 0 {
						t.Errorf("%s: status %+v", id, s)
					}
					for _, e := range n.agent.History() {
						if e.ID == bad.ID && (e.State != WasRolledBack || !strings.Contains(e.Reason, c.want)) {
							t.Errorf("%s: %+v", id, e)
						}
					}
				}
				net.mustApply("n5", "better\n", Options{})
				time.Sleep(time.Minute)
				net.want("better\n")
			})
		})
	}
}

// TestWhatWasConfirmedIsNotUndoneInSilence has a side of a partition roll back what the
// other side confirms, and go on from there.
func TestWhatWasConfirmedIsNotUndoneInSilence(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, net *network) {
		x := net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		net.part("n4")
		if _, err := net.nodes["n1"].agent.Confirm("head", "alice"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		net.mustApply("n4", "y\n", Options{})
		time.Sleep(time.Minute)
		net.heal()
		time.Sleep(time.Second)
		net.want("y\n")
		for id, n := range net.nodes {
			s := n.agent.Status()
			if len(s.Conflicts) != 1 || s.Conflicts[0].ID != x.ID || s.Conflicts[0].State != Apart {
				t.Errorf("%s: conflicts %+v", id, s.Conflicts)
			}
			if d, err := n.agent.Diff(string(x.ID), "head"); err != nil || !strings.Contains(d, "-x") || !strings.Contains(d, "+y") {
				t.Errorf("%s: diff %v\n%s", id, err, d)
			}
		}
		if err := net.nodes["n2"].agent.Dismiss(string(x.ID), "bob"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		net.want("y\n")
		if s := net.nodes["n4"].agent.Status(); len(s.Conflicts) > 0 {
			t.Errorf("conflicts %+v", s.Conflicts)
		}
	})
}

// TestARollBackBesideAConflict has a head fail beside which another revision was made: that
// one is next, unless somebody has dismissed it.
func TestARollBackBesideAConflict(t *testing.T) {
	for name, c := range map[string]struct {
		dismiss, byHand bool
		want            string
	}{
		"by itself":              {false, false, "other\n"},
		"by hand":                {false, true, "other\n"},
		"dismissed":              {true, false, firstText},
		"dismissed, and by hand": {true, true, firstText},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, net *network) {
				net.part("n3")
				other := net.mustApply("n3", "other\n", Options{})
				net.mustApply("n1", "sick n2\n", Options{ConfirmWithin: time.Hour})
				net.heal()
				time.Sleep(time.Second)
				net.want("sick n2\n")
				n1 := net.nodes["n1"].agent
				if s := n1.Status(); len(s.Conflicts) != 1 || s.Conflicts[0].ID != other.ID {
					t.Errorf("conflicts %+v", s.Conflicts)
				}
				if c.dismiss {
					if err := n1.Dismiss(other.ID.Short(), "bob"); err != nil {
						t.Fatal(err)
					}
				}
				if c.byHand {
					if r, err := n1.Rollback(t.Context(), "", Options{Author: "bob"}, nil); err != nil || r.Text != c.want {
						t.Errorf("got %+v, %v", r, err)
					}
				}
				time.Sleep(10 * time.Second)
				net.want(c.want)
				if s := n1.Status(); len(s.Conflicts) > 0 {
					t.Errorf("conflicts %+v", s.Conflicts)
				}
			})
		})
	}
}
