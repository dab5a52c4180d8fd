package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newTable(t testing.TB, self string, c TableConfig) *Table {
	t.Helper()
	s, err := OpenStore("")
	if err != nil {
		t.Fatal(err)
	}
	if c.Name == "" {
		c.Name = "test"
	}
	table, err := s.Table(self, c)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func put(t testing.TB, table *Table, key, value string) {
	t.Helper()
	if err := table.Put(key, []byte(value), time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func merge(t testing.TB, to, from *Table) {
	t.Helper()
	for _, part := range from.Snapshot() {
		if _, err := to.Merge(part); err != nil {
			t.Fatal(err)
		}
	}
}

// live is what a table has, as text.
func live(table *Table) string {
	var b strings.Builder
	for _, i := range table.Items("") {
		fmt.Fprintf(&b, "%s=%s ", i.Key, i.Value)
	}
	return strings.TrimSpace(b.String())
}

func TestClockOnlyGoesForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock(StampOf(time.Now().Add(time.Hour)))
		last := c.mark()
		for range 100_000 {
			s := c.Now()
			if s <= last {
				t.Fatalf("got %v after %v", s, last)
			}
			last = s
		}
		c = NewClock(0)
		ahead := StampOf(time.Now().Add(MaxAhead))
		if err := c.Observe(ahead); err != nil {
			t.Fatalf("observe %v ahead: %v", MaxAhead, err)
		}
		if s := c.Now(); s <= ahead {
			t.Errorf("got %v, not after the observed %v", s, ahead)
		}
		if err := c.Observe(StampOf(time.Now().Add(MaxAhead + time.Millisecond))); !errors.Is(err, ErrClock) {
			t.Errorf("observe more than %v ahead: got %v", MaxAhead, err)
		}
		if got := c.Now().Time(); got.After(time.Now().Add(MaxAhead + time.Second)) {
			t.Errorf("a refused stamp has moved the clock to %v", got)
		}
	})
}

func TestTableGivesBackWhatWasPut(t *testing.T) {
	table := newTable(t, "node1", TableConfig{})
	watch := table.Watch()
	put(t, table, "a/2", "two")
	put(t, table, "a/1", "one")
	put(t, table, "b", "bee")
	put(t, table, "a/2", "deux")
	if err := table.Delete("b"); err != nil {
		t.Fatal(err)
	}
	if err := table.PutAll(map[string][]byte{"c": []byte("see"), "d": nil}); err != nil {
		t.Fatal(err)
	}
	if got, want := live(table), "a/1=one a/2=deux c=see d="; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := table.Items("a/"); len(got) != 2 || got[0].Node != "node1" || got[0].Stamp <= got[1].Stamp-1<<40 {
		t.Errorf("items of a prefix: got %v", got)
	}
	if _, ok := table.Get("b"); ok {
		t.Error("a deleted key is there")
	}
	select {
	case <-watch:
	default:
		t.Error("the watcher was not told")
	}
	other := newTable(t, "node2", TableConfig{})
	news, err := other.Merge(table.Encode("a/1", "b", "none"))
	if err != nil || news == nil {
		t.Fatalf("merge: %v, %v", news, err)
	}
	if got, want := live(other), "a/1=one"; got != want {
		t.Errorf("got %q from a part of two keys, want %q", got, want)
	}
	if err := table.Drop("a/1", "none"); err != nil {
		t.Fatal(err)
	}
	if got, want := live(table), "a/2=deux c=see d="; got != want {
		t.Errorf("after a drop: got %q, want %q", got, want)
	}
}

// naive is the rule in its plainest form: a set of items, of which the greatest of each key
// counts.
type naive map[string]Item

func (n naive) merge(part []byte) {
	items, err := parsePart(part)
	if err != nil {
		panic(err)
	}
	for _, i := range items {
		if old, ok := n[i.Key]; !ok || old.compare(&i) < 0 {
			n[i.Key] = i
		}
	}
}

func (n naive) live() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(n)) {
		if i := n[key]; !i.Deleted && (i.Expires.IsZero() || i.Expires.After(time.Now())) {
			fmt.Fprintf(&b, "%s=%s ", key, i.Value)
		}
	}
	return strings.TrimSpace(b.String())
}

// randomParts makes items that collide in every way: of key, stamp, node and value.
func randomParts(r *rand.Rand, n int) [][]byte {
	base := StampOf(time.Now())
	parts := make([][]byte, n)
	for k := range parts {
		parts[k] = []byte{partVersion}
		for range 1 + r.IntN(3) {
			i := Item{
				Key: fmt.Sprintf("k%d", r.IntN(4)), Stamp: base + Stamp(r.IntN(3)),
				Node: fmt.Sprintf("node%d", r.IntN(2)), Deleted: r.IntN(4) == 0,
			}
			if !i.Deleted {
				i.Value = []byte{'a' + byte(r.IntN(3))}
				if r.IntN(3) == 0 {
					i.Expires = time.UnixMilli(time.Now().UnixMilli() + 3_600_000 + r.Int64N(2))
					i.buried = r.IntN(2) == 0
				}
			}
			parts[k] = i.append(parts[k])
		}
	}
	return parts
}

// The order, the grouping and the number of times that parts come in make no difference,
// and the outcome is that of the naive twin.
func TestMergeIsCommutativeAssociativeIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(500) {
			r := rand.New(rand.NewPCG(seed, 4))
			parts := randomParts(r, 2+r.IntN(6))
			twin := naive{}
			for _, p := range parts {
				twin.merge(p)
			}
			all := func(parts [][]byte) *Table {
				table := newTable(t, "node1", TableConfig{})
				for _, p := range parts {
					if _, err := table.Merge(bytes.Clone(p)); err != nil {
						t.Fatal(err)
					}
				}
				return table
			}
			first := all(parts)
			if got, want := live(first), twin.live(); got != want {
				t.Fatalf("seed %d: got %q, the naive twin has %q", seed, got, want)
			}
			r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			half := len(parts) / 2
			grouped := all(parts[:half])
			merge(t, grouped, all(parts[half:]))
			for name, other := range map[string]*Table{
				"shuffled": all(parts), "twice": all(append(parts, parts...)), "grouped": grouped,
				"at once": all([][]byte{append([]byte{partVersion}, bytes.Join(func() (b [][]byte) {
					for _, p := range parts {
						b = append(b, p[1:])
					}
					return b
				}(), nil)...)}),
			} {
				if first.Digest() != other.Digest() || live(first) != live(other) {
					t.Fatalf("seed %d, %s: got %q, want %q", seed, name, live(other), live(first))
				}
			}
			for _, p := range parts {
				if news, err := first.Merge(p); news != nil || err != nil {
					t.Fatalf("seed %d: a part is news again: %v", seed, err)
				}
			}
			// Later, some have expired.
			time.Sleep(2 * time.Hour)
			if live(first) != twin.live() || first.Digest() != grouped.Digest() {
				t.Fatalf("seed %d, later: got %q, the naive twin has %q", seed, live(first), twin.live())
			}
		}
	})
}

func TestNewsIsWhatWasNew(t *testing.T) {
	a, b := newTable(t, "a", TableConfig{}), newTable(t, "b", TableConfig{})
	put(t, a, "x", "1")
	put(t, a, "y", "1")
	merge(t, b, a)
	put(t, a, "y", "2")
	news, err := b.Merge(a.Encode("x", "y"))
	if err != nil {
		t.Fatal(err)
	}
	items, err := parsePart(news)
	if err != nil || len(items) != 1 || items[0].Key != "y" || string(items[0].Value) != "2" {
		t.Errorf("news: got %v, %v, want y=2 only", items, err)
	}
}

func TestDeletedStaysDeletedForTheLifeOfATombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTable(t, "a", TableConfig{TombstoneLife: time.Hour}), newTable(t, "b", TableConfig{TombstoneLife: time.Hour})
		put(t, a, "k", "v")
		merge(t, b, a)
		time.Sleep(time.Second)
		if err := a.Delete("k"); err != nil {
			t.Fatal(err)
		}
		merge(t, a, b)
		if got := live(a); got != "" {
			t.Errorf("a peer's old item came back: %q", got)
		}
		merge(t, b, a)
		if got := live(b); got != "" || a.Digest() != b.Digest() {
			t.Errorf("the deletion did not go over: %q", got)
		}
		time.Sleep(time.Hour)
		if a.Digest() != (hash{}).digest() || len(a.Snapshot()) != 0 {
			t.Error("the tombstone is still there after its life")
		}
		put(t, b, "k", "new")
		merge(t, a, b)
		if got := live(a); got != "k=new" {
			t.Errorf("got %q after a new put", got)
		}
	})
}

func (h hash) digest() (d [32]byte) {
	for i, lane := range h {
		binary.BigEndian.PutUint64(d[8*i:], lane)
	}
	return d
}

func TestExpiredIsAbsentAndBringsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTable(t, "a", TableConfig{}), newTable(t, "b", TableConfig{})
		in := func(d time.Duration) time.Time { return time.Now().Add(d) }
		if err := errors.Join(a.Put("plain", []byte("1"), in(time.Minute)), a.Put("over", []byte("old"), time.Time{})); err != nil {
			t.Fatal(err)
		}
		merge(t, b, a) // b is away from now on
		if err := a.Put("over", []byte("new"), in(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if got, want := live(a), "over=new plain=1"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		digest := a.Digest()
		time.Sleep(time.Minute)
		if got := live(a); got != "" {
			t.Errorf("expired, and still there: %q", got)
		}
		if a.Digest() == digest {
			t.Error("the digest has not changed")
		}
		merge(t, a, b)
		if got := live(a); got != "" {
			t.Errorf("what an expired item had replaced came back: %q", got)
		}
		merge(t, b, a)
		if got := live(b); got != "" || a.Digest() != b.Digest() {
			t.Errorf("b has %q", got)
		}
		if n := len(a.items); n != 1 { // the tombstone of "over"
			t.Errorf("%d items are kept, want 1", n)
		}
	})
}

func TestTableKeepsItsBounds(t *testing.T) {
	c := TableConfig{MaxItems: 3, MaxValue: 10, MaxBytes: 20, Check: func(_ string, v []byte) error {
		if string(v) == "bad" {
			return errors.New("no good")
		}
		return nil
	}}
	a := newTable(t, "a", c)
	for _, test := range []struct {
		name, key, value string
	}{
		{"empty key", "", "v"},
		{"space in the key", "a b", "v"},
		{"key too long", strings.Repeat("k", MaxKey+1), "v"},
		{"value too long", "k", "12345678901"},
		{"refused content", "k", "bad"},
	} {
		if err := a.Put(test.key, []byte(test.value), time.Time{}); err == nil || strings.Contains(err.Error(), "kkk") {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
	put(t, a, "1", "1234567890")
	put(t, a, "2", "1234567890")
	if err := a.Put("3", []byte("1"), time.Time{}); !errors.Is(err, ErrFull) {
		t.Errorf("too many octets: got %v", err)
	}
	put(t, a, "2", "")
	put(t, a, "3", "1")
	if err := a.Delete("4"); !errors.Is(err, ErrFull) {
		t.Errorf("too many items: got %v", err)
	}
	put(t, a, "3", "again")

	free := newTable(t, "b", TableConfig{})
	if err := free.store.Clock().Observe(a.store.Clock().mark()); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"3", "4", "5"} {
		put(t, free, key, "new")
	}
	put(t, free, "1", "bad")
	news, err := a.Merge(free.Encode("3", "4", "1", "5"))
	if !errors.Is(err, ErrFull) || !errors.Is(err, ErrContent) || news == nil {
		t.Errorf("merge beyond the bounds: got %v", err)
	}
	if got, want := live(a), "1=1234567890 2= 3=new"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if strings.Contains(fmt.Sprint(err), "bad") {
		t.Errorf("the error tells content: %v", err)
	}
}

func TestMergeRefusesStampsFromTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTable(t, "a", TableConfig{})
		ahead := Item{Key: "k", Stamp: StampOf(time.Now().Add(MaxAhead + time.Second)), Node: "b", Value: []byte("v")}
		fine := Item{Key: "l", Stamp: StampOf(time.Now().Add(MaxAhead)), Node: "b", Value: []byte("v")}
		part := fine.append(ahead.append([]byte{partVersion}))
		if news, err := a.Merge(bytes.Clone(part)); !errors.Is(err, ErrClock) || news == nil {
			t.Errorf("got %v, %v", news, err)
		}
		put(t, a, "l", "own") // must win, although it is earlier by the wall clock
		if got, want := live(a), "l=own"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		time.Sleep(2 * time.Second)
		if _, err := a.Merge(part); err != nil || live(a) != "k=v l=own" {
			t.Errorf("when its time has come: %v, %q", err, live(a))
		}
		a.store.Clock().setOff(ErrOwnClock)
		if err := a.Put("k", nil, time.Time{}); !errors.Is(err, ErrOwnClock) {
			t.Errorf("own clock off: got %v", err)
		}
	})
}

func TestSnapshotComesInPartsThatFit(t *testing.T) {
	a := newTable(t, "a", TableConfig{MaxBytes: 16 << 20})
	for i := range 20 {
		put(t, a, fmt.Sprintf("k%02d", i), strings.Repeat("v", 100_000))
	}
	put(t, a, "large", strings.Repeat("v", 1<<20))
	large := 0
	for _, p := range a.Snapshot() {
		if len(p) > MaxPart {
			large++
			if items, err := parsePart(p); err != nil || len(items) != 1 {
				t.Errorf("a part of %d octets has %d items, %v", len(p), len(items), err)
			}
		}
	}
	if large != 1 {
		t.Errorf("%d parts are too large, want 1", large)
	}
	b := newTable(t, "b", TableConfig{MaxBytes: 16 << 20})
	merge(t, b, a)
	if a.Digest() != b.Digest() {
		t.Error("the snapshot is not all")
	}
	put(t, a, "k07", "changed")
	parts := a.since(b.summary())
	if len(parts) != 1 || len(parts[0]) > 100 {
		t.Errorf("one change makes %d parts", len(parts))
	}
}

func TestStoreRefusesTablesThatCannotBe(t *testing.T) {
	s, _ := OpenStore("")
	for _, c := range []TableConfig{{}, {Name: "a b"}, {Name: "a", MaxItems: -1}, {Name: "a", MaxValue: MaxValue + 1}} {
		if _, err := s.Table("node1", c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := s.Table("", TableConfig{Name: "a"}); err == nil {
		t.Error("a node without a name was taken")
	}
	if _, err := s.Table("node1", TableConfig{Name: "a"}); err != nil {
		t.Error(err)
	}
	if _, err := s.Table("node1", TableConfig{Name: "a"}); err == nil {
		t.Error("a table was opened twice")
	}
}

func FuzzMerge(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, p := range randomParts(r, 8) {
		f.Add(p)
	}
	f.Add([]byte{})
	f.Add([]byte{partVersion, 0xff})
	f.Fuzz(func(t *testing.T, part []byte) {
		a := newTable(t, "a", TableConfig{MaxItems: 50, MaxBytes: 10_000})
		news, err := a.Merge(bytes.Clone(part))
		items, bad := parsePart(part)
		if bad != nil {
			if err == nil || news != nil || len(a.items) > 0 {
				t.Fatalf("a part that is not understood was taken: %v", err)
			}
			return
		}
		again := []byte{partVersion}
		for _, i := range items {
			again = i.append(again)
		}
		parsed, err := parsePart(again)
		if err != nil || !cmp.Equal(items, parsed, cmp.AllowUnexported(Item{})) {
			t.Fatalf("printed and parsed again, a part is another: %v", err)
		}
		if news == nil {
			return
		}
		b := newTable(t, "b", TableConfig{MaxItems: 50, MaxBytes: 10_000})
		if _, err := b.Merge(news); err != nil || a.Digest() != b.Digest() {
			t.Fatalf("the news do not make the same table: %v", err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(record(&Item{Key: "k", Node: "n", Value: []byte("v")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := parseRecord(b); err == nil && !i.Deleted {
			if again, err := parseRecord(record(&i)); err != nil || again.compare(&i) != 0 {
				t.Fatalf("%v, %v", again, err)
			}
		}
	})
}

func TestStatesAndDistancesAreReadAsTheyAreWritten(t *testing.T) {
	for _, s := range []State{Alive, Suspect, Dead, Left} {
		b, err := s.MarshalText()
		var got State
		if err := errors.Join(err, got.UnmarshalText(b)); err != nil || got != s {
			t.Errorf("%s: got %v, %v", b, got, err)
		}
	}
	for _, d := range []Distance{LAN, WAN} {
		b, err := d.MarshalText()
		var got Distance
		if err := errors.Join(err, got.UnmarshalText(b)); err != nil || got != d {
			t.Errorf("%s: got %v, %v", b, got, err)
		}
	}
	if new(State).UnmarshalText([]byte("?")) == nil || new(Distance).UnmarshalText([]byte("?")) == nil {
		t.Error("nonsense is read")
	}
}
