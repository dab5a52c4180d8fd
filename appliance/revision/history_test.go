package revision

import (
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// random makes up what the agents of some nodes could have written, and what they could
// not.
type random struct {
	*rand.Rand
	items map[string][]byte
	ids   []ID
	begin time.Time
}

func (r *random) stamp() cluster.Stamp {
	return cluster.Stamp(r.begin.Add(r.within(time.Minute)).UnixMilli()) << 16
}

func (r *random) within(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

func (r *random) node() balancing.NodeID {
	return balancing.NodeID(fmt.Sprintf("n%d", 1+r.IntN(4)))
}

// rollBack rolls back one of the revisions.
func (r *random) rollBack() {
	items := make([]cluster.Item, 0, len(r.items))
	for key, value := range r.items {
		items = append(items, cluster.Item{Key: key, Value: value})
	}
	h := newReader("example").read(items)
	b := h.rollBack(h.entries[r.ids[r.IntN(len(r.ids))]])
	if b == nil || r.items[revKey(b.id)] != nil {
		return
	}
	text, err := b.text()
	if err != nil {
		panic(err)
	}
	b.Signer, b.Signature = "n1", ed25519.Sign(keyOf("n1"), signed(b.sum("example", text)))
	r.ids = append(r.ids, b.id)
	r.items[revKey(b.id)] = encode(b.record)
	r.items[phaseKey(b.id, phaseAll)] = encode(phase{Who: "n1", When: r.stamp(), Reason: "why"})
}

func (r *random) revision() {
	parent, number := ID(""), 1
	if len(r.ids) > 0 {
		parent = r.ids[r.IntN(len(r.ids))]
		number = parseItem(revKey(parent), r.items[revKey(parent)]).as.(*record).Number + 1
	}
	id, rec := made(string(r.node()), number, parent, fmt.Sprintf("text %d\n", r.IntN(5)), r.stamp())
	r.ids = append(r.ids, id)
	r.items[revKey(id)] = encode(rec)
	for _, name := range []string{phaseProposed, phaseCanary, phaseAll, phaseConfirmed, phaseWithdrawn} {
		if r.IntN(3) > 0 && (name == phaseProposed || name == phaseAll) || r.IntN(6) == 0 {
			r.items[phaseKey(id, name)] = encode(phase{Who: string(r.node()), When: r.stamp(), Deadline: r.stamp(), Canary: r.node()})
		}
	}
	for r.IntN(2) == 0 {
		w := word{Vote: yes, Applied: r.stamp()}
		if r.IntN(5) == 0 {
			w.Failed, w.Why = r.stamp(), "why"
		}
		r.items[nodeKey(id, r.node())] = encode(w)
	}
}

// TestWhatFollowsDoesNotDependOnTheOrder merges random histories in random orders, and
// expects the same head, list and leavings of every node; that the head can be told is a
// part of it; and that no revision in force is forgotten.
func TestWhatFollowsDoesNotDependOnTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(200) {
			r := &random{rand.New(rand.NewPCG(seed, 4)), map[string][]byte{}, nil, time.Now().Add(-time.Minute)}
			rollBacks := seed%2 == 1
			for range 1 + r.IntN(12) {
				r.revision()
				if rollBacks && r.IntN(3) == 0 {
					r.rollBack()
				}
			}
			keys := make([]string, 0, len(r.items))
			for key := range r.items {
				keys = append(keys, key)
			}
			slices.Sort(keys)
			_, source := newTable(t, "n1")
			for _, key := range keys {
				if err := source.Put(key, r.items[key], time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			want := ""
			now := time.Now().Add(r.within(2*time.Minute) - time.Minute)
			for range 4 {
				r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
				_, table := newTable(t, "n2")
				reader := newReader("example")
				for _, key := range keys {
					if _, err := table.Merge(source.Encode(key)); err != nil {
						t.Fatal(err)
					}
					reader.read(table.Items("")).head(now)
				}
				h := reader.read(table.Items(""))
				got := describe(h, now)
				if want == "" {
					want = got
				}
				if got != want {
					t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, got, want)
				}
				checkLaws(t, h, now, rollBacks)
			}
		}
	})
}

func describe(h *history, now time.Time) string {
	var b strings.Builder
	if head := h.head(now); head != nil {
		fmt.Fprintln(&b, "head", head.revision())
	}
	for i := range 4 {
		if e := h.effective(balancing.NodeID(fmt.Sprintf("n%d", i+1)), now); e != nil {
			fmt.Fprintln(&b, "effective", e.id)
		}
	}
	for _, e := range h.list(now) {
		fmt.Fprintf(&b, "%+v\n", e)
	}
	fmt.Fprintln(&b, h.excess())
	return b.String()
}

// checkLaws checks what must hold of any history.
func checkLaws(t *testing.T, h *history, now time.Time, rollBacks bool) {
	t.Helper()
	head := h.head(now)
	chain := h.chain(now)
	texts := map[string]bool{}
	for id := range chain {
		if e := h.entries[id]; e != nil {
			texts[e.same()] = true
		}
	}
	// What came before something that is at hand, or was taken over, is at hand as well.
	held := map[ID]bool{}
	for _, e := range h.entries {
		if h.inForce(e) && (chain[e.id] || texts[e.same()] || slices.Contains(h.conflicts(now), e)) {
			for ; e != nil; e = e.parent {
				held[e.id] = true
			}
		}
	}
	for _, e := range h.entries {
		if !h.inForce(e) {
			continue
		}
		if head == nil || head.Number < e.Number && !rollBacks {
			t.Errorf("head is %v, and %v is in force", head.brief(), e.brief())
		}
		if best, r := h.recorded(), h.rollBack(e); best.kept < e.kept && (r == nil || !h.inForce(r)) {
			t.Errorf("%d changes have led to %v, and %d to %v, which nobody has rolled back", best.kept, best.brief(), e.kept, e.brief())
		}
		if !held[e.id] {
			t.Errorf("%v is neither in the chain of the head nor of a conflict", e.brief())
		}
	}
	if head != nil && h.rollBackReason(head, now) != "" && h.rollBack(head) != nil {
		t.Errorf("head %v must be rolled back", head.brief())
	}
}
