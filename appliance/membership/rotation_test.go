package membership

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

const pinLife = 12 * time.Hour

// lan is a site in one process. Nodes hear from each other what they can open, and nothing
// else, as reports and gossip have it; the peer link works whatever their keys are.
type lan struct {
	t       testing.TB
	journal *journal

	mu    sync.Mutex
	nodes []*lanNode
	list  []balancing.NodeID // of the site document
	cut   map[balancing.NodeID]int
	// Whether it is an error when a live node cannot open what another seals. It is not
	// while one comes back.
	strict bool
	paused bool
	wake   chan struct{}
}

type lanNode struct {
	name     balancing.NodeID
	id       *Identity
	registry *Registry
	members  *cluster.Table
	keys     *cluster.Table
	rotation *Rotation
	ring     *keys.Ring // as stored
	up       bool
	stop     func()
	full     bool // its disk
}

func newLAN(t *testing.T, n int) *lan {
	t.Helper()
	l := &lan{t: t, journal: new(journal), cut: map[balancing.NodeID]int{}, strict: true, wake: make(chan struct{})}
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		l.add(balancing.NodeID(fmt.Sprintf("n%d", i+1)), ring)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			l.rest(ctx, l.gossip())
		}
	})
	t.Cleanup(func() {
		for _, n := range l.nodes {
			l.down(n)
		}
		cancel()
		all.Wait()
	})
	for _, n := range l.nodes {
		l.start(n)
	}
	time.Sleep(time.Second)
	return l
}

func (l *lan) add(name balancing.NodeID, ring *keys.Ring) *lanNode {
	id := newIdentity(l.t)
	store := openStore(l.t, "")
	n := &lanNode{name: name, id: id, members: openTable(l.t, store, name, MembersTable), keys: openTable(l.t, store, name, KeysTable), ring: ring}
	n.registry = NewRegistry(n.members, name, id)
	if err := n.registry.Register(""); err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	l.list = append(l.list, name)
	return n
}

// start starts a node from what it has stored.
func (l *lan) start(n *lanNode) {
	ctx, cancel := context.WithCancel(l.t.Context())
	rotation := NewRotation(RotationConfig{
		Self: n.name, Identity: n.id, Registry: n.registry, Table: n.keys, Ring: l.has(n),
		StoreRing: func(_ context.Context, r *keys.Ring) error { return l.store(n, r) },
		Live:      func() []balancing.NodeID { return l.live(n) },
		Nodes:     func() []balancing.NodeID { l.mu.Lock(); defer l.mu.Unlock(); return slices.Clone(l.list) },
		PinLife:   func() time.Duration { return pinLife },
		Peer: func(name balancing.NodeID) (*http.Client, string) {
			return &http.Client{Transport: peerLink{l, n, name}}, "https://" + string(name)
		},
		Log: l.journal.log(),
	})
	var all sync.WaitGroup
	l.mu.Lock()
	n.rotation, n.up, n.stop = rotation, true, func() { cancel(); all.Wait() }
	l.mu.Unlock()
	// Last: it asks its peers at once, and would find no wire to a node that is not up.
	all.Go(func() {
		if err := rotation.Run(ctx); err != nil {
			l.t.Error(err)
		}
	})
}

// has is the ring that a node has stored.
func (l *lan) has(n *lanNode) *keys.Ring {
	l.mu.Lock()
	defer l.mu.Unlock()
	return n.ring
}

func (l *lan) down(n *lanNode) {
	l.mu.Lock()
	n.up = false
	l.mu.Unlock()
	if n.stop != nil {
		n.stop()
	}
}

func (l *lan) store(n *lanNode, r *keys.Ring) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.full {
		return errors.New("no space left on device")
	}
	n.ring = r
	l.check()
	return nil
}

// hears reports whether a opens what b seals. l.mu is held.
func (l *lan) hears(a, b *lanNode) bool {
	return slices.ContainsFunc(a.ring.Keys(), b.ring.Keys()[0].Equal)
}

// reaches reports whether there is a wire between two nodes that run. l.mu is held.
func (l *lan) reaches(a, b *lanNode) bool {
	return a.up && b.up && l.cut[a.name] == l.cut[b.name]
}

// check is the invariant: every node opens what any other seals. l.mu is held.
func (l *lan) check() {
	if !l.strict {
		return
	}
	for _, a := range l.nodes {
		for _, b := range l.nodes {
			if l.reaches(a, b) && slices.Contains(l.list, a.name) && slices.Contains(l.list, b.name) {
				box := b.ring.Sealer(keys.LabelReport).Seal(nil, []byte("report"), nil)
				if _, err := a.ring.Sealer(keys.LabelReport).Open(nil, box, nil); err == nil {
					continue
				}
				l.t.Errorf("%s %v cannot open what %s %v seals", a.name, keyIDs(a.ring), b.name, keyIDs(b.ring))
			}
		}
	}
}

func (l *lan) live(n *lanNode) (names []balancing.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.nodes {
		if o != n && l.reaches(n, o) && l.hears(n, o) {
			names = append(names, o.name)
		}
	}
	return names
}

// pause lets time pass in which nothing happens; every second of it would cost.
func (l *lan) pause(d time.Duration) {
	var up []*lanNode
	l.mu.Lock()
	l.paused = true
	for _, n := range l.nodes {
		if n.up {
			up = append(up, n)
		}
	}
	l.mu.Unlock()
	for _, n := range up {
		n.stop()
	}
	time.Sleep(d)
	for _, n := range up {
		l.start(n)
	}
	l.mu.Lock()
	l.paused = false
	l.mu.Unlock()
	l.wake <- struct{}{}
	time.Sleep(2 * time.Second)
}

// rest waits until something may have happened.
func (l *lan) rest(ctx context.Context, busy bool) {
	l.mu.Lock()
	paused := l.paused
	l.mu.Unlock()
	switch {
	case paused:
		select {
		case <-l.wake:
		case <-ctx.Done():
		}
	case busy:
		time.Sleep(5 * time.Millisecond)
	default:
		time.Sleep(50 * time.Millisecond)
	}
}

func (l *lan) gossip() (busy bool) {
	l.mu.Lock()
	var pairs [][2]*lanNode
	for _, a := range l.nodes {
		for _, b := range l.nodes {
			if a != b && l.reaches(a, b) && l.hears(a, b) {
				pairs = append(pairs, [2]*lanNode{b, a})
			}
		}
	}
	l.mu.Unlock()
	for _, p := range pairs {
		for _, tables := range [][2]*cluster.Table{{p[0].members, p[1].members}, {p[0].keys, p[1].keys}} {
			if tables[0].Digest() == tables[1].Digest() {
				continue
			}
			busy = true
			for _, part := range tables[0].Snapshot() {
				if _, err := tables[1].Merge(part); err != nil {
					l.t.Error(err)
				}
			}
		}
	}
	return busy
}

// peerLink is how a node asks another.
type peerLink struct {
	l  *lan
	n  *lanNode
	to balancing.NodeID
}

func (p peerLink) RoundTrip(q *http.Request) (*http.Response, error) {
	p.l.mu.Lock()
	i := slices.IndexFunc(p.l.nodes, func(n *lanNode) bool { return n.name == p.to && p.l.reaches(p.n, n) })
	var to *lanNode
	var rotation *Rotation
	if i >= 0 {
		to, rotation = p.l.nodes[i], p.l.nodes[i].rotation
	}
	p.l.mu.Unlock()
	if i < 0 {
		time.Sleep(3 * time.Second)
		return nil, errors.New("no route to host")
	}
	if !to.registry.Known(p.n.name, p.n.id.Signer().Public()) {
		return nil, errors.New("bad certificate")
	}
	w := httptest.NewRecorder()
	rotation.Handler().ServeHTTP(w, q)
	return w.Result(), nil
}

func (l *lan) set(strict bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.strict = strict
}

// settled wants all nodes to be done, with the one ring, and returns that.
func (l *lan) settled() *keys.Ring {
	l.t.Helper()
	l.mu.Lock()
	l.check()
	nodes := slices.DeleteFunc(slices.Clone(l.nodes), func(n *lanNode) bool { return !n.up || !slices.Contains(l.list, n.name) })
	l.mu.Unlock()
	var first *lanNode
	for _, n := range nodes {
		if first == nil {
			first = n
		}
		if r := l.has(n); r.Changing() || r.Keys()[0].ID() != l.has(first).Keys()[0].ID() {
			l.t.Errorf("%s has not settled: %v, as %s: %v", n.name, keyIDs(r), first.name, keyIDs(l.has(first)))
		}
		if st := n.rotation.Status(); st.Phase != PhaseSteady || len(st.Waiting) > 0 {
			l.t.Errorf("%s is %s, waits for %v", n.name, st.Phase, st.Waiting)
		}
	}
	return l.has(first)
}

func keyIDs(r *keys.Ring) (ids []string) {
	for _, k := range r.Keys() {
		ids = append(ids, k.ID())
	}
	for _, p := range r.Past() {
		ids = append(ids, "past "+p.Key.ID())
	}
	return ids
}

// pinned returns a check that all nodes open what n has sealed as a pin now.
func (l *lan) pinned(n *lanNode) func() {
	l.mu.Lock()
	box := n.ring.Sealer(keys.LabelPin).Seal(nil, []byte("pin"), nil)
	l.mu.Unlock()
	return func() {
		l.t.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, n := range l.nodes {
			if !n.up {
				continue
			}
			if _, err := n.ring.PinSealer(time.Now()).OpenAt(time.Now(), nil, box, nil); err != nil {
				l.t.Errorf("%s does not open a pin: %v", n.name, err)
			}
		}
	}
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		before := l.settled()
		if st := l.nodes[0].rotation.Status(); st.Generation != 0 || len(st.Nodes) != 5 || st.Key != before.Keys()[0].ID() {
			t.Errorf("before: %+v", st)
		}
		pin := l.pinned(l.nodes[2])
		began := time.Now()
		var events []Event
		st, err := l.nodes[1].rotation.Rotate(t.Context(), RotateOptions{}, func(e Event) { events = append(events, e) })
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
		if st.Generation != 1 || st.Phase != PhaseSteady || st.By != "n2" || len(st.Past) != 1 || st.Past[0].Key != before.Keys()[0].ID() {
			t.Errorf("status: %+v", st)
		}
		if len(events) == 0 || events[len(events)-1].Phase != PhaseSteady || events[0].Generation != 1 {
			t.Errorf("events: %v", events)
		}
		time.Sleep(time.Second)
		after := l.settled()
		if after.Keys()[0].Equal(before.Keys()[0]) {
			t.Error("it is the same key")
		}
		pin()
		l.pause(pinLife - 2*time.Hour)
		pin()
		l.pause(3 * time.Hour)
		for _, n := range l.nodes {
			if len(l.has(n).Past()) > 0 {
				t.Errorf("%s keeps a past key for ever", n.name)
			}
		}
		// And again, many times: nothing piles up.
		for range 12 {
			if _, err := l.nodes[4].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if got := len(l.settled().Past()); got != keys.MaxPast {
			t.Errorf("%d past keys, want %d", got, keys.MaxPast)
		}
		if got := len(l.nodes[0].keys.Items(genPrefix)); got > keptGenerations+1 {
			t.Errorf("%d generations are kept", got)
		}
		if b, err := json.Marshal(st); err != nil || !strings.Contains(string(b), `"phase":"steady"`) {
			t.Errorf("as JSON: %s, %v", b, err)
		}
		l.quiet(before, after)
	})
}

// quiet wants no key in any log or table.
func (l *lan) quiet(rings ...*keys.Ring) {
	l.t.Helper()
	for _, n := range l.nodes {
		for _, table := range []*cluster.Table{n.members, n.keys} {
			for _, part := range table.Snapshot() {
				l.journal.Write(part)
			}
		}
	}
	for _, r := range rings {
		for _, k := range r.Keys() {
			raw, err := keys.Parse(k.Reveal())
			if err != nil {
				l.t.Fatal(err)
			}
			octets, err := tokenEncoding.DecodeString(raw.Reveal())
			if err != nil {
				l.t.Fatal(err)
			}
			l.journal.silent(l.t, k.Reveal(), string(octets))
		}
	}
}

func TestRotationWithADeadNodeThatComesBackAfterAMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		dead := l.nodes[4]
		l.down(dead)
		time.Sleep(absence)
		pin := l.pinned(l.nodes[0])
		st, err := l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if st.Phase != PhaseRetiring || !slices.Equal(st.Waiting, []balancing.NodeID{"n5"}) || !slices.Equal(st.Absent, st.Waiting) {
			t.Errorf("status: %+v", st)
		}
		_, err = l.nodes[1].rotation.Rotate(t.Context(), RotateOptions{}, nil)
		wantError(t, err, "unfinished", "waits for n5", "force")
		if !errors.Is(err, ErrUnfinished) {
			t.Errorf("%v is not %v", err, ErrUnfinished)
		}
		pin()
		l.pause(30 * 24 * time.Hour)
		if !l.has(l.nodes[0]).Changing() {
			t.Error("the old key was retired without n5")
		}
		l.set(false)
		l.start(dead)
		time.Sleep(2 * time.Second)
		l.set(true)
		time.Sleep(2 * time.Second)
		ring := l.settled()
		pin = l.pinned(dead)
		if _, err := l.nodes[1].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		l.settled()
		pin()
		l.quiet(ring)
	})
}

func TestForcedRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		dead := l.nodes[0]
		l.down(dead)
		time.Sleep(absence)
		old := l.settled()
		pin := l.pinned(l.nodes[1])
		// One that is unfinished, and one that is forced upon it.
		if _, err := l.nodes[1].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		st, err := l.nodes[2].rotation.Rotate(t.Context(), RotateOptions{Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if st.Generation != 2 || st.Phase != PhaseSteady || !st.Forced || !slices.Equal(st.Absent, []balancing.NodeID{"n1"}) {
			t.Errorf("status: %+v", st)
		}
		time.Sleep(time.Second)
		l.settled()
		pin()
		// The dead one still gets the keys once it is back, those of the past too.
		middle := l.pinnedBy(l.has(l.nodes[1]).Past()[0].Key)
		l.set(false)
		l.start(dead)
		time.Sleep(2 * time.Second)
		l.set(true)
		l.settled()
		pin()
		middle()
		if l.has(dead).Keys()[0].Equal(old.Keys()[0]) {
			t.Error("it still has the old key")
		}
	})
}

// pinnedBy is pinned for a pin that a certain key has sealed.
func (l *lan) pinnedBy(k keys.Key) func() {
	r, err := keys.NewRing(k)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.pinned(&lanNode{ring: r})
}

// TestRemovedNodeDoesNotGetTheNewKey removes a node while a rotation waits for it.
func TestRemovedNodeDoesNotGetTheNewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		lost := l.nodes[4]
		l.down(lost)
		time.Sleep(absence)
		if _, err := l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := l.nodes[0].registry.Remove("n5"); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.list = l.list[:4]
		l.mu.Unlock()
		if _, err := l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		ring := l.settled()
		l.start(lost) // in the hands of somebody else
		l.pause(time.Hour)
		// All that the site has ever told, and every box in it.
		for _, table := range []*cluster.Table{l.nodes[0].members, l.nodes[0].keys} {
			for _, part := range table.Snapshot() {
				for _, to := range []*cluster.Table{lost.members, lost.keys} {
					if to.Name() == table.Name() {
						to.Merge(part)
					}
				}
			}
		}
		time.Sleep(time.Minute)
		for _, k := range l.has(lost).Keys() {
			if k.Equal(ring.Keys()[0]) {
				t.Error("the removed node has the new key")
			}
		}
		current := readLedger(parseRecords(l.nodes[0].keys), l.nodes[0].registry, lost.id.Public(), func(string) bool { return false })
		newest := current.gens[len(current.gens)-1]
		if newest.mine || len(newest.boxes) > 0 || newest.boxed[lost.id.Public().Fingerprint()] {
			t.Error("there is a box of the new key for it")
		}
		for f, box := range newest.Boxes {
			if _, err := lost.id.Open(boxInfo(newest.name, f), box); err == nil {
				t.Error("it opens the box of another")
			}
		}
		// Nor does anyone take a key from it.
		if _, err := lost.rotation.Rotate(t.Context(), RotateOptions{}, nil); err == nil {
			t.Error("it rotates the key of a site that it has left")
		}
		l.settled()
	})
}

// TestPartitionedRotations has both sides of a partition change to a key of their own.
func TestPartitionedRotations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5)
		l.mu.Lock()
		l.cut["n4"], l.cut["n5"] = 1, 1
		l.mu.Unlock()
		time.Sleep(absence)
		var pins []func()
		for _, n := range []*lanNode{l.nodes[0], l.nodes[4]} {
			if _, err := n.rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
				t.Fatal(err)
			}
			pins = append(pins, l.pinned(n))
		}
		time.Sleep(time.Minute)
		l.set(false)
		l.mu.Lock()
		clear(l.cut)
		l.mu.Unlock()
		time.Sleep(2 * fetchEvery)
		l.set(true)
		time.Sleep(time.Minute)
		l.settled()
		for _, pin := range pins {
			pin()
		}
		if _, err := l.nodes[3].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		l.settled()
	})
}

func TestRotationWaitsForANodeThatCannotStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3)
		l.mu.Lock()
		l.nodes[2].full = true
		l.mu.Unlock()
		time.Sleep(absence)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var last Event
		_, err := l.nodes[0].rotation.Rotate(ctx, RotateOptions{}, func(e Event) { last = e })
		wantError(t, err, "deadline exceeded", "goes on by itself")
		if last.Phase != PhaseHandOut || !slices.Equal(last.Waiting, []balancing.NodeID{"n3"}) {
			t.Errorf("last event: %+v", last)
		}
		_, err = l.nodes[0].rotation.Rotate(t.Context(), RotateOptions{Force: true}, nil)
		wantError(t, err, "unfinished", "n3", "on-line")
		if _, err := l.nodes[0].rotation.RingForJoin(); err != nil {
			t.Errorf("this node has the key: %v", err)
		}
		_, err = l.nodes[2].rotation.RingForJoin()
		wantError(t, err, "on its way")
		l.mu.Lock()
		l.nodes[2].full = false
		l.mu.Unlock()
		time.Sleep(5 * time.Second)
		l.settled()
		if n := strings.Count(l.journal.b.String(), "no space left"); n != 1 {
			t.Errorf("the full disk was logged %d times", n)
		}
	})
}

// TestNodeThatJoinsDuringARotation was admitted with the old ring just before.
func TestNodeThatJoinsDuringARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3)
		ring, err := l.nodes[0].rotation.RingForJoin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.nodes[1].rotation.Rotate(t.Context(), RotateOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		l.set(false)
		n := l.add("n4", ring)
		exchange(t, l.nodes[0].members, n.members) // what admitting it did
		l.start(n)
		time.Sleep(time.Minute)
		l.set(true)
		l.settled()
	})
}

// TestRandomRotations kills, starts and cuts off nodes at random while keys are changed.
// Whatever has happened, the site finds itself together again.
func TestRandomRotations(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t, 4)
				l.set(false)
				random := rand.New(rand.NewPCG(seed, 1))
				var all sync.WaitGroup
				for range 30 {
					n := l.nodes[random.IntN(len(l.nodes))]
					l.mu.Lock()
					up := n.up
					l.mu.Unlock()
					switch random.IntN(4) {
					case 0:
						if up {
							l.down(n)
						}
					case 1:
						l.mu.Lock()
						l.cut[n.name] = random.IntN(2)
						l.mu.Unlock()
					case 2:
						if up {
							force := random.IntN(2) == 0
							rotation := n.rotation
							all.Go(func() {
								ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
								defer cancel()
								rotation.Rotate(ctx, RotateOptions{Force: force}, nil)
							})
						}
					}
					if !up {
						l.start(n)
					}
					time.Sleep(time.Duration(random.IntN(40_000)) * time.Millisecond)
				}
				for _, n := range l.nodes {
					if l.mu.Lock(); !n.up {
						l.mu.Unlock()
						l.start(n)
						l.mu.Lock()
					}
					l.mu.Unlock()
				}
				l.mu.Lock()
				clear(l.cut)
				l.mu.Unlock()
				all.Wait()
				time.Sleep(5 * time.Minute)
				l.settled()
			})
		})
	}
}

func TestFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2)
		a, b := l.nodes[0], l.nodes[1]
		client := &http.Client{Transport: peerLink{l, b, "n1"}}
		l.down(b)
		if err := b.rotation.Fetch(t.Context(), client, []string{"https://n1"}); err == nil {
			t.Error("fetched over no wire")
		}
		l.start(b)
		l.pause(time.Second) // what comes now comes by Fetch alone
		l.down(b)
		key, value := newIdentity(t).entry("n3", "n3", "")
		if err := a.registry.admit(key, value); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		b.up = true
		l.mu.Unlock()
		for range 2 { // the second has nothing new
			if err := b.rotation.Fetch(t.Context(), client, []string{"https://n1"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := b.registry.Member("n3"); !ok || a.members.Digest() != b.members.Digest() {
			t.Error("not all was fetched")
		}
		w := httptest.NewRecorder()
		a.rotation.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, KeysPath, nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST is answered with status %d", w.Code)
		}
		l.mu.Lock()
		b.up = false
		l.mu.Unlock()
	})
}

func TestUnregisteredNodeWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := openStore(t, "")
		id := newIdentity(t)
		ring, err := keys.NewRing(keys.Generate())
		if err != nil {
			t.Fatal(err)
		}
		table := openTable(t, store, "n1", KeysTable)
		r := NewRotation(RotationConfig{
			Self: "n1", Identity: id, Registry: NewRegistry(openTable(t, store, "n1", MembersTable), "n1", id), Table: table, Ring: ring,
			Live: func() []balancing.NodeID { return nil }, Nodes: func() []balancing.NodeID { return []balancing.NodeID{"n1"} },
			PinLife: func() time.Duration { return pinLife }, Log: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got := table.Items(""); len(got) > 0 {
			t.Errorf("it wrote %d entries", len(got))
		}
		if _, err := r.Rotate(t.Context(), RotateOptions{}, nil); err == nil {
			t.Error("it rotates")
		}
	})
}

func FuzzKeys(f *testing.F) {
	id := fixedIdentity(f)
	gen := genName(1, "00112233")
	f.Add(genPrefix+gen, id.seal(domainGeneration, genEntry{V: 1, Number: 1, ID: "00112233", By: "n1"}))
	f.Add(boxPrefix+gen+"/"+id.Public().Fingerprint(), id.seal(domainBox, boxEntry{V: 1, Gen: gen, For: id.Public().Fingerprint()}))
	f.Add(usePrefix+gen, id.seal(domainUse, stepEntry{V: 1, Subject: gen}))
	f.Add(forcePrefix+gen, id.seal(domainForce, stepEntry{V: 1, Subject: gen}))
	f.Add(retiredPrefix+"00112233", id.seal(domainRetired, stepEntry{V: 1, Subject: "00112233"}))
	f.Add(ringPrefix+"n1", id.seal(domainRing, ringEntry{1, "n1", "00112233", []string{"00112233"}}))
	f.Add("x", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if checkKeys(key, value) == nil && !cluster.ValidKey(key) {
			t.Errorf("%q is no key", key)
		}
		openKey(id, gen, value)
	})
}

// TestSeedsOfFuzzKeysAreGood holds the fuzz target to its purpose.
func TestSeedsOfFuzzKeysAreGood(t *testing.T) {
	id := fixedIdentity(t)
	gen := genName(1, "00112233")
	for key, value := range map[string][]byte{
		genPrefix + gen:            id.seal(domainGeneration, genEntry{V: 1, Number: 1, ID: "00112233", By: "n1"}),
		usePrefix + gen:            id.seal(domainUse, stepEntry{V: 1, Subject: gen}),
		forcePrefix + gen:          id.seal(domainForce, stepEntry{V: 1, Subject: gen}),
		retiredPrefix + "00112233": id.seal(domainRetired, stepEntry{V: 1, Subject: "00112233"}),
		ringPrefix + "n1":          id.seal(domainRing, ringEntry{1, "n1", "00112233", []string{"00112233"}}),
	} {
		if err := checkKeys(key, value); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if checkKeys(key+"x", value) == nil || checkKeys(key, value[1:]) == nil {
			t.Errorf("%s: another one is taken too", key)
		}
	}
}

func FuzzParts(f *testing.F) {
	id := fixedIdentity(f)
	table := openTable(f, openStore(f, ""), "n1", MembersTable)
	if err := NewRegistry(table, "n1", id).Register(""); err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	writeParts(w, []cluster.Document{table})
	w.Flush()
	merged := 0
	err := readParts(&b, func(name string, part []byte) {
		if name != table.Name() || !bytes.Equal(part, table.Snapshot()[0]) {
			f.Errorf("comes back as another")
		}
		merged++
	})
	if err != nil || merged != 1 {
		f.Fatal(merged, err)
	}
	writeParts(w, []cluster.Document{table})
	w.Flush()
	f.Add(b.Bytes())
	f.Add([]byte{partsVersion, 0})
	f.Add([]byte{partsVersion, 1, 'x', 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		readParts(bytes.NewReader(b), func(name string, part []byte) {
			total += len(name) + len(part)
			table.Merge(part)
		})
		if total > len(b) {
			t.Errorf("%d octets of %d", total, len(b))
		}
	})
}

func TestPartsThatAreCutOff(t *testing.T) {
	table := openTable(t, openStore(t, ""), "n1", MembersTable)
	if err := NewRegistry(table, "n1", newIdentity(t)).Register(""); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	writeParts(w, []cluster.Document{table})
	w.Flush()
	for n := range b.Len() {
		if err := readParts(bytes.NewReader(b.Bytes()[:n]), func(string, []byte) {}); !errors.Is(err, errParts) {
			t.Fatalf("%d octets of %d: %v, want %v", n, b.Len(), err, errParts)
		}
	}
}
