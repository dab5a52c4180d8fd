package cluster

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// joiner is a member that hears what the test has its peers say. All of them read one clock
// here, so it is the peers that say another time.
type joiner struct {
	*Member
	store *Store
	table *Table
}

func newJoiner(t *testing.T) *joiner {
	t.Helper()
	store, err := OpenStore("")
	if err != nil {
		t.Fatal(err)
	}
	table, err := store.Table("node1", TableConfig{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{
		Self: "node1", Bind: netip.MustParseAddrPort("10.0.0.1:7946"), Site: "site", Keys: [][32]byte{testKey},
		Store: store, Documents: []Document{table}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []string{"node2", "node3"} {
		delegate{m}.NotifyJoin(&memberlist.Node{Name: peer})
	}
	return &joiner{m, store, table}
}

// hears has both peers tell their state by clocks that are off by so much, and what node2
// has written.
func (j *joiner) hears(off time.Duration, from *Table) {
	now := time.Now()
	for _, peer := range []string{"node2", "node3"} {
		states := []digest{{from.Name(), from.Digest()}}
		j.hear(&event{message: true, at: now, body: stateOf(peer, 0, fresh, now.Add(off), states)})
	}
	for _, part := range from.Snapshot() {
		j.hear(&event{message: true, at: now, body: append(changeOf("node2", from.Name()), part...)})
	}
	j.tick(now)
}

// A node whose clock is an hour behind those of its peers joins: it takes nothing that they
// have written lately, and writes nothing. When its clock is right it needs nothing else to
// have all of it, and what it writes counts.
func TestNodeWhoseClockIsBehindJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, theirs := newJoiner(t), newTable(t, "node2", TableConfig{Name: "test"})
		put(t, theirs, "old", "1")
		theirs.store.Clock().set(StampOf(time.Now().Add(time.Hour)))
		put(t, theirs, "new", "2")

		j.hears(time.Hour, theirs)
		if got := live(j.table); got != "old=1" || j.Counters().Clock != 1 {
			t.Errorf("behind: it has %q, and has refused %d parts, want 1", got, j.Counters().Clock)
		}
		if err := j.table.Put("mine", nil, time.Time{}); !errors.Is(err, ErrOwnClock) {
			t.Errorf("behind: a write gets %v, want %v", err, ErrOwnClock)
		}

		time.Sleep(time.Hour) // its clock is set
		j.hears(0, theirs)
		if got := live(j.table); got != "new=2 old=1" {
			t.Errorf("its clock is right, and it has %q", got)
		}
		put(t, j.table, "new", "3")
		merge(t, theirs, j.table)
		if got := live(theirs); got != "new=3 old=1" {
			t.Errorf("what it writes then does not count: the peer has %q", got)
		}
	})
}

// A node whose clock is an hour ahead joins: it learns what the peers have, and writes
// nothing. What it wrote before it heard them is theirs too once its clock is right.
func TestNodeWhoseClockIsAheadJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, theirs := newJoiner(t), newTable(t, "node2", TableConfig{Name: "test"})
		put(t, theirs, "k", "theirs")
		time.Sleep(time.Second)
		j.store.Clock().set(StampOf(time.Now().Add(time.Hour)))
		put(t, j.table, "mine", "1")

		j.hears(-time.Hour, theirs)
		if got := live(j.table); got != "k=theirs mine=1" {
			t.Errorf("ahead: it has %q", got)
		}
		if err := j.table.Put("k", nil, time.Time{}); !errors.Is(err, ErrOwnClock) {
			t.Errorf("ahead: a write gets %v, want %v", err, ErrOwnClock)
		}
		for _, part := range j.table.Snapshot() {
			if _, err := theirs.Merge(part); !errors.Is(err, ErrClock) {
				t.Errorf("ahead: a peer takes what it wrote: %v, want %v", err, ErrClock)
			}
		}

		j.hears(0, theirs) // its clock is set
		merge(t, theirs, j.table)
		if got := live(theirs); got != "k=theirs mine=1" {
			t.Errorf("its clock is right, and the peer has %q", got)
		}
		put(t, theirs, "mine", "2")
		merge(t, j.table, theirs)
		if got := live(j.table); got != "k=theirs mine=2" {
			t.Errorf("what a peer writes later does not count: it has %q", got)
		}
	})
}
