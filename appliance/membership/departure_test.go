package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

// drop takes a node out of the site document.
func (l *lan) drop(name balancing.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(slices.Clone(l.list), func(n balancing.NodeID) bool { return n == name })
}

// generations returns how many site keys there were after the first.
func (l *lan) generations(n *lanNode) int { return len(n.keys.Items(genPrefix)) }

// shutOut wants a node that was removed to be no member, and to be unable to open the
// newest key.
func (l *lan) shutOut(out *lanNode) {
	l.t.Helper()
	ring := l.settled()
	for _, n := range l.nodes {
		if n == out || !n.up {
			continue
		}
		if _, ok := n.registry.Member(out.name); ok {
			l.t.Errorf("%s takes %s for a member", n.name, out.name)
		}
		if st := n.rotation.Status(); len(st.Departed) > 0 {
			l.t.Errorf("%s says that %v still know the key", n.name, st.Departed)
		}
	}
	for _, table := range []*cluster.Table{l.nodes[1].members, l.nodes[1].keys} {
		for _, part := range table.Snapshot() {
			for _, to := range []*cluster.Table{out.members, out.keys} {
				if to.Name() == table.Name() {
					to.Merge(part)
				}
			}
		}
	}
	if l.hears(out, &lanNode{ring: ring}) {
		l.t.Errorf("%s has the key", out.name)
	}
	all := readLedger(parseRecords(out.keys), out.registry, out.id.Public(), func(string) bool { return false })
	if newest := all.gens[len(all.gens)-1]; newest.ID != ring.Keys()[0].ID() || newest.mine {
		l.t.Errorf("%s can have key %s, the site seals with %s", out.name, newest.ID, ring.Keys()[0].ID())
	}
}

// TestRemovalIsEndedByOthers has the node that removes another die after each of the steps
// of that.
func TestRemovalIsEndedByOthers(t *testing.T) {
	for name, after := range map[string]int{"announced": 1, "out of the document": 2, "no member": 3, "key made": 4} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t, 5)
				remover, out := l.nodes[0], l.nodes[4]
				// A rotation before it, so that it is the newest key that is known.
				if _, err := remover.rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
					t.Fatal(err)
				}
				for _, step := range []func() error{
					func() error { return remover.registry.AnnounceRemoval("n5") },
					func() error { l.drop("n5"); l.down(out); return nil },
					func() error { return remover.registry.Remove("n5") },
					func() error { _, err := remover.rotation.begin(RotateOptions{Force: true}); return err },
				}[:after] {
					if err := step(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				l.down(remover)
				if st := l.nodes[1].rotation.Status(); (after == 2 || after == 3) && !slices.Equal(st.Departed, []balancing.NodeID{"n5"}) {
					t.Errorf("nobody says that n5 knows the key: %+v", st)
				}
				time.Sleep(2 * patience)
				if after == 1 { // it stays in the document, and so in the site
					if _, ok := l.nodes[1].registry.Member("n5"); !ok || l.generations(l.nodes[1]) != 1 {
						t.Error("n5 was removed, though the document has it")
					}
					return
				}
				l.set(false)
				l.start(remover)
				time.Sleep(5 * time.Second)
				l.set(true)
				l.shutOut(out)
				if n := l.generations(l.nodes[1]); n != 2 {
					t.Errorf("%d keys were made, want 2", n)
				}
				l.quiet(l.settled())
			})
		})
	}
}

// TestRemovalIsEndedOnBothSides has the two sides of a partition end the same removal, each
// with a key of its own. They find together, and are content with that.
func TestRemovalIsEndedOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		out := l.nodes[4]
		l.drop("n5")
		l.down(out)
		if err := l.nodes[0].registry.Remove("n5"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		l.mu.Lock()
		l.cut["n3"], l.cut["n4"] = 1, 1
		l.mu.Unlock()
		time.Sleep(2*patience + 4*turn)
		for _, n := range []*lanNode{l.nodes[0], l.nodes[2]} {
			if l.generations(n) != 1 {
				t.Errorf("on the side of %s %d keys were made, want 1", n.name, l.generations(n))
			}
		}
		l.set(false)
		l.mu.Lock()
		clear(l.cut)
		l.mu.Unlock()
		time.Sleep(2 * fetchEvery)
		l.set(true)
		time.Sleep(time.Minute)
		l.shutOut(out)
		l.pause(time.Hour)
		time.Sleep(2 * time.Minute)
		if n := l.generations(l.nodes[0]); n != 2 {
			t.Errorf("%d keys were made, want the one of each side", n)
		}
	})
}

// TestRemovalIsEndedAtTheSameTime has all nodes begin a key at once, as they may when their
// clocks differ.
func TestRemovalIsEndedAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		out := l.nodes[4]
		l.drop("n5")
		l.down(out)
		if err := l.nodes[0].registry.Remove("n5"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, n := range l.nodes[:4] {
			if _, err := n.rotation.begin(RotateOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * patience)
		l.shutOut(out)
		if n := l.generations(l.nodes[0]); n > 4 {
			t.Errorf("%d keys were made, want no more than 4", n)
		}
	})
}

// TestRemovalIsEndedOverAnUnfinishedRotation has the last rotation wait for a node that is
// off-line, and stays so.
func TestRemovalIsEndedOverAnUnfinishedRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		out := l.nodes[4]
		l.down(l.nodes[3])
		time.Sleep(absence)
		if _, err := l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		l.drop("n5")
		l.down(out)
		if err := l.nodes[0].registry.Remove("n5"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * patience)
		l.shutOut(out)
	})
}

// TestRenamingMakesNoKey: one that has another name has not left.
func TestRenamingMakesNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3)
		for _, names := range [][2]balancing.NodeID{{"n3", "n7"}, {"n7", "n3"}} { // and back
			if err := l.nodes[0].registry.Rename(names[0], names[1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		l.pause(time.Hour)
		time.Sleep(time.Minute)
		if n := l.generations(l.nodes[0]); n != 0 {
			t.Errorf("%d keys were made", n)
		}
		if st := l.nodes[0].rotation.Status(); len(st.Departed) > 0 {
			t.Errorf("%v are said to have left", st.Departed)
		}
	})
}

func TestDepartures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newParty(t, "n1"), newParty(t, "n2")
		if err := errors.Join(a.Register(""), b.Register("")); err != nil {
			t.Fatal(err)
		}
		gossip(t, a, b)
		want := func(what string, all ...string) {
			t.Helper()
			gossip(t, a, b)
			var got []string
			for _, d := range b.departures() {
				got = append(got, fmt.Sprintf("%s gone=%t", d.name, d.removed > 0))
			}
			if !slices.Equal(got, all) {
				t.Errorf("%s: %v, want %v", what, got, all)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		want("at first")
		must(a.AnnounceRemoval("n2"))
		want("announced", "n2 gone=false")
		must(a.RetractRemoval("n2"))
		want("retracted")
		must(a.AnnounceRemoval("n2"))
		time.Sleep(announcementLife)
		want("forgotten")
		must(a.Rename("n2", "n5"))
		// Half of that comes first.
		if _, err := b.table.Merge(a.table.Encode(removedKey("n2", b.id.Public().Fingerprint()))); err != nil {
			t.Fatal(err)
		}
		if _, ok := b.Member("n2"); ok || len(b.departures()) > 0 {
			t.Errorf("half renamed: %v", b.departures())
		}
		want("renamed")
		must(a.AnnounceRemoval("n2"))
		want("announced under its old name")
		must(a.AnnounceRemoval("n5"))
		asked := time.Now().Add(-time.Second)
		must(a.Remove("n5"))
		want("removed", "n5 gone=true")
		if got := b.departures()[0].asked; !got.Equal(asked) {
			t.Errorf("asked for at %v, want %v", got, asked)
		}
		fresh := newParty(t, "n5") // new hardware
		gossip(t, a, fresh)
		must(fresh.Register(""))
		gossip(t, a, b, fresh)
		want("joined anew", "n5 gone=true")
	})
}

// TestRemovedNodeIsNotShutOutTwice: a key that was made after a removal, without a box for
// who left, is not known to it, whoever has made it.
func TestRemovedNodeIsNotShutOutTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3)
		out := l.nodes[2]
		l.drop("n3")
		l.down(out)
		if err := l.nodes[0].registry.Remove("n3"); err != nil {
			t.Fatal(err)
		}
		if _, err := l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		l.shutOut(out)
		// Nor once it is in the site again with another identity.
		l.mu.Lock()
		l.nodes = l.nodes[:2]
		l.mu.Unlock()
		ring, err := keys.ParseRing(l.has(l.nodes[0]).Reveal())
		if err != nil {
			t.Fatal(err)
		}
		l.set(false)
		again := l.add("n3", ring)
		exchange(t, l.nodes[0].members, again.members)
		l.start(again)
		time.Sleep(5 * time.Minute)
		l.set(true)
		if n := l.generations(l.nodes[0]); n != 1 {
			t.Errorf("%d keys were made, want 1", n)
		}
		l.settled()
	})
}

func TestAnnouncementsAreVetted(t *testing.T) {
	id := fixedIdentity(t)
	l := leaving{V: 1, Name: "n2", Fingerprint: strings.Repeat("0", 32), By: "n1"}
	key, value := leavingKey(l.Name, l.Fingerprint), id.seal(domainLeaving, l)
	if err := checkMembers(key, value); err != nil {
		t.Error(err)
	}
	for what, e := range map[string]struct {
		key   string
		value []byte
	}{
		"for another node": {leavingKey("n3", l.Fingerprint), value},
		"of another kind":  {key, id.seal(domainRemoved, l)},
		"cut off":          {key, value[:len(value)-2]},
		"as a removal":     {removedKey(l.Name, l.Fingerprint), value},
	} {
		if checkMembers(e.key, e.value) == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

func TestWhoKnowsTheKey(t *testing.T) {
	gen := func(stamp cluster.Stamp, boxed ...string) *generation {
		g := &generation{stamp: stamp, boxed: map[string]bool{}}
		for _, f := range boxed {
			g.boxed[f] = true
		}
		return g
	}
	for name, c := range map[string]struct {
		removed cluster.Stamp
		gens    []*generation
		want    bool
	}{
		"the first key of the site":         {10, nil, true},
		"made before, with a box":           {10, []*generation{gen(9, "f")}, true},
		"made before, and had by joining":   {10, []*generation{gen(9)}, true},
		"made later, by one that knew":      {10, []*generation{gen(9, "f"), gen(11)}, false},
		"made later, by one that did not":   {10, []*generation{gen(9), gen(11, "f")}, true},
		"its own, and the newest is a fork": {10, []*generation{gen(11), gen(9, "f")}, true},
		"not removed yet":                   {0, []*generation{gen(9, "f")}, false},
	} {
		s := &situation{ledger: ledger{gens: c.gens}, departures: []departure{{nodeName: nodeName{"n2", "f"}, removed: c.removed}}}
		if got := len(s.departed()) > 0; got != c.want {
			t.Errorf("%s: known %t, want %t", name, got, c.want)
		}
	}
}

// TestRemovalThatARotationCrosses has the site get a new key, with a box for a node, on the
// side of a partition that has not heard that the node was removed.
func TestRemovalThatARotationCrosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 4)
		out := l.nodes[3]
		l.mu.Lock()
		l.cut["n1"] = 1
		l.mu.Unlock()
		if err := l.nodes[0].registry.Remove("n4"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := l.nodes[1].rotation.begin(RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		l.drop("n4")
		l.set(false)
		l.mu.Lock()
		clear(l.cut)
		l.mu.Unlock()
		time.Sleep(time.Second)
		l.down(out)
		time.Sleep(3 * patience)
		l.set(true)
		time.Sleep(time.Second)
		l.shutOut(out)
	})
}
