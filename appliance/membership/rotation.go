package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

const (
	// absence is how long a node must have been off-line before a step does not wait for
	// it: one that only starts, or was not heard for a moment, would be cut off.
	absence = 30 * time.Second

	// How often a node looks without being told of a change.
	tickBusy   = time.Second
	tickSteady = 10 * time.Second

	// fetchEvery is how often nodes that are off-line are asked over the peer link: what
	// keeps them off may be that they have another key.
	fetchEvery = 30 * time.Second

	// keptGenerations is how many generations are kept. Past keys are among them.
	keptGenerations = keys.MaxPast + 2
)

// RotationConfig is what a rotation needs of its node.
type RotationConfig struct {
	Self     balancing.NodeID
	Identity *Identity
	Registry *Registry
	Table    *cluster.Table // of [KeysTable]
	Ring     *keys.Ring     // that the node has started with
	// StoreRing makes a ring durable, and has everything take it up that is sealed or opened
	// with it; it returns when that is done, or with an error when the old one counts.
	StoreRing func(context.Context, *keys.Ring) error
	Live      func() []balancing.NodeID // the peers that are on-line by their reports
	Nodes     func() []balancing.NodeID // of the site document
	PinLife   func() time.Duration      // how long a pin lasts at most
	// Peer returns how to ask a node over the peer link: the URL without a path. Nil for
	// never.
	Peer func(balancing.NodeID) (client *http.Client, url string)
	// Refused is told whether a node that was asked has refused this one for its identity, as
	// it does after this one was removed from the site. Nil for nobody.
	Refused func(by balancing.NodeID, refused bool)
	// Ready is closed once the tables have been compared with those of the peers. Nil for at
	// once.
	Ready <-chan struct{}
	Log   *slog.Logger
}

// Rotation keeps the site key ring of a node in step with the site's.
type Rotation struct {
	c     RotationConfig
	began time.Time

	mu      sync.Mutex
	ring    *keys.Ring
	seen    map[balancing.NodeID]time.Time // when each node was last live
	bad     map[string]int                 // how many boxes of a generation do not open
	changed chan struct{}                  // closed once Run has looked again
	digest  [32]byte                       // of the table that records are of
	records []record

	failing string // the last error that was logged; Run's alone
}

// NewRotation returns the rotation of a node. [Rotation.Run] drives it.
func NewRotation(c RotationConfig) *Rotation {
	return &Rotation{
		c: c, began: time.Now(), ring: c.Ring,
		seen: map[balancing.NodeID]time.Time{}, bad: map[string]int{}, changed: make(chan struct{}),
	}
}

// Run follows the tables until ctx ends.
func (r *Rotation) Run(ctx context.Context) error {
	if r.c.Ready != nil {
		select {
		case <-r.c.Ready:
		case <-ctx.Done():
			return nil
		}
	}
	keysChanged, membersChanged := r.c.Table.Watch(), r.c.Registry.Watch()
	tick := time.NewTicker(tickBusy)
	defer tick.Stop()
	var fetching sync.WaitGroup
	defer fetching.Wait()
	fetching.Go(func() { r.fetchLoop(ctx) }) // a node that does not answer must not hold up the rest
	for ctx.Err() == nil {
		every := tickBusy
		// Few steps follow each other at once; the bound is against a mistake.
		for range 16 {
			s := r.situation()
			again, err := r.step(ctx, s)
			r.complain(err)
			if !again || err != nil {
				if phase, _ := s.phase(); phase == PhaseSteady && err == nil && len(s.departed())+len(s.unremoved()) == 0 {
					every = tickSteady
				}
				break
			}
		}
		tick.Reset(every)
		r.announce()
		select {
		case <-ctx.Done():
		case <-keysChanged:
		case <-membersChanged:
		case <-tick.C: // nodes come and go, and past keys end
		}
	}
	return nil
}

// complain logs an error, once for as long as it stays the same.
func (r *Rotation) complain(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != r.failing && text != "" {
		r.c.Log.Warn("site key rotation held up", "err", err)
	}
	r.failing = text
}

// announce wakes those who wait for a change.
func (r *Rotation) announce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Ring returns the site key ring as it is now.
func (r *Rotation) Ring() *keys.Ring {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ring
}

// RingForJoin returns the ring for a node that joins now. It is an error if this node has
// not got the newest key yet, for then the other could never get it.
func (r *Rotation) RingForJoin() (*keys.Ring, error) {
	s := r.situation()
	if n := len(s.gens); n > 0 && !slices.Contains(s.ring, s.gens[n-1].ID) {
		return nil, errors.New("a new site key is on its way; try again in a few seconds")
	}
	return r.Ring(), nil
}

// situation returns what there is to go by now.
func (r *Rotation) situation() *situation {
	live, nodes := r.c.Live(), r.c.Nodes()
	members := r.c.Registry.Members()
	now := time.Now()

	r.mu.Lock()
	ring := r.ring
	for _, n := range nodes {
		if _, ok := r.seen[n]; !ok {
			r.seen[n] = now
		}
	}
	for _, n := range append(live, r.c.Self) {
		r.seen[n] = now
	}
	maps.DeleteFunc(r.seen, func(n balancing.NodeID, at time.Time) bool {
		return !slices.Contains(nodes, n) && now.Sub(at) > absence
	})
	if d := r.c.Table.Digest(); r.records == nil || d != r.digest {
		r.records, r.digest = parseRecords(r.c.Table), d
	}
	records := r.records
	seen := maps.Clone(r.seen)
	bad := maps.Clone(r.bad)
	r.mu.Unlock()

	s := &situation{now: now, began: r.began, pinLife: r.c.PinLife(), self: r.c.Self, nodes: nodes, departures: r.c.Registry.departures()}
	for _, k := range ring.Keys() {
		s.ring = append(s.ring, k.ID())
	}
	for _, p := range ring.Past() {
		s.past = append(s.past, pastKey{p.Key.ID(), p.Until})
	}
	has := func(id string) bool {
		return slices.Contains(s.ring, id) || slices.ContainsFunc(s.past, func(p pastKey) bool { return p.id == id })
	}
	s.ledger = readLedger(records, r.c.Registry, r.c.Identity.Public(), has)
	for _, g := range s.gens {
		g.boxes = g.boxes[min(bad[g.name], len(g.boxes)):]
		g.mine = len(g.boxes) > 0 || has(g.ID)
	}
	for _, m := range members {
		if m.Name != r.c.Self && !slices.Contains(nodes, m.Name) {
			continue // it has left, though it may still be heard
		}
		n := nodeName{m.Name, m.Fingerprint()}
		s.all = append(s.all, n)
	}
	for name, at := range seen {
		if now.Sub(at) >= absence || name != r.c.Self && !slices.Contains(nodes, name) {
			continue
		}
		n := nodeName{name: name} // one without an identity gets one soon
		if i := slices.IndexFunc(s.all, func(m nodeName) bool { return m.name == name }); i >= 0 {
			n = s.all[i]
		}
		s.waits = append(s.waits, n)
	}
	slices.SortFunc(s.waits, func(a, b nodeName) int { return cmp.Compare(a.name, b.name) })
	s.member = slices.Contains(s.all, nodeName{r.c.Self, r.c.Identity.Public().Fingerprint()})
	return s
}

// step does what is due, and reports whether something has changed.
func (r *Rotation) step(ctx context.Context, s *situation) (again bool, err error) {
	p := decide(s)
	if !slices.Equal(p.ring, s.ring) || !slices.Equal(p.past, s.past) {
		return r.store(ctx, s, p)
	}
	items, err := r.entries(s, p)
	if err != nil {
		return false, err
	}
	if len(items) == 0 {
		return r.end(p)
	}
	for _, key := range slices.Sorted(maps.Keys(items)) {
		if strings.HasPrefix(key, usePrefix) || strings.HasPrefix(key, retiredPrefix) {
			r.c.Log.Info("site key rotation goes on", "step", key)
		}
	}
	if err := r.c.Table.PutAll(items); err != nil {
		return false, err
	}
	if len(p.retire) == 0 {
		return true, nil
	}
	return true, r.prune(s)
}

// store puts the ring together that the plan wants, and stores it.
func (r *Rotation) store(ctx context.Context, s *situation, p plan) (bool, error) {
	known := map[string]keys.Key{}
	was := r.Ring()
	for _, k := range was.Keys() {
		known[k.ID()] = k
	}
	for _, k := range was.Past() {
		known[k.Key.ID()] = k.Key
	}
	find := func(id string) (keys.Key, bool) {
		if k, ok := known[id]; ok {
			return k, true
		}
		g := s.gens[s.rank(id)]
		k, err := openKey(r.c.Identity, g.name, g.boxes[0])
		if err != nil {
			r.c.Log.Warn("site key not understood", "key", id, "err", err)
			r.mu.Lock()
			r.bad[g.name]++
			r.mu.Unlock()
			return keys.Key{}, false
		}
		return k, true
	}
	var all []keys.Key
	for _, id := range p.ring {
		k, ok := find(id)
		if !ok {
			return true, nil // without that one, then
		}
		all = append(all, k)
	}
	var past []keys.Past
	for _, id := range p.past {
		k, ok := find(id.id)
		if !ok {
			return true, nil
		}
		past = append(past, keys.Past{Key: k, Until: id.until})
	}
	ring, err := keys.NewRing(all[0], all[1:]...)
	if err != nil {
		return false, err
	}
	ring = ring.WithPast(past...)
	if err := r.c.StoreRing(ctx, ring); err != nil {
		return false, fmt.Errorf("store the site key ring: %w", err)
	}
	r.c.Log.Info("site key ring changed", "seals", p.ring[0], "opens", strings.Join(p.ring, " "))
	r.mu.Lock()
	r.ring = ring
	r.mu.Unlock()
	return true, nil
}

// entries returns what the plan wants to be written.
func (r *Rotation) entries(s *situation, p plan) (map[string][]byte, error) {
	items := map[string][]byte{}
	id := r.c.Identity
	if p.report {
		items[ringPrefix+string(s.self)] = id.seal(domainRing, ringEntry{1, s.self, s.ring[0], s.ring})
	}
	if p.use != "" {
		items[usePrefix+p.use] = id.seal(domainUse, stepEntry{1, p.use, s.self})
	}
	for _, old := range p.retire {
		items[retiredPrefix+old] = id.seal(domainRetired, stepEntry{1, old, s.self})
	}
	for _, b := range p.boxes {
		m, ok := r.c.Registry.Member(b.name)
		if !ok || m.Fingerprint() != b.fingerprint {
			continue
		}
		i := slices.IndexFunc(r.Ring().Keys(), func(k keys.Key) bool { return strings.HasSuffix(b.gen, "/"+k.ID()) })
		if i < 0 {
			continue
		}
		box, err := sealKey(m.Public, b.gen, r.Ring().Keys()[i])
		if err != nil {
			return nil, err
		}
		items[boxPrefix+b.gen+"/"+b.fingerprint] = id.seal(domainBox, boxEntry{1, b.gen, b.fingerprint, box})
	}
	return items, nil
}

// prune forgets generations that nobody can need any more.
func (r *Rotation) prune(s *situation) error {
	for _, g := range s.gens[:max(0, len(s.gens)-keptGenerations)] {
		if !s.isRetired(g.ID) || slices.Contains(s.ring, g.ID) {
			continue
		}
		for _, key := range []string{genPrefix + g.name, usePrefix + g.name, forcePrefix + g.name, retiredPrefix + g.ID} {
			if _, ok := r.c.Table.Get(key); ok {
				if err := r.c.Table.Delete(key); err != nil {
					return err
				}
			}
		}
		for _, i := range r.c.Table.Items(boxPrefix + g.name + "/") {
			if err := r.c.Table.Delete(i.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// RotateOptions say how.
type RotateOptions struct {
	// Force does not wait for nodes that are off-line before the old key is retired. They
	// get the new one from a peer once they are back. It also ends a rotation that is
	// unfinished because of them. It is for when a node was removed; if nobody does it then,
	// [Rotation.Run] does after some 30 s.
	Force bool
}

// Event tells how far a rotation is.
type Event struct {
	Generation uint64             `json:"generation"`
	Key        string             `json:"key"` // ID of the new one
	Phase      Phase              `json:"phase"`
	Waiting    []balancing.NodeID `json:"waiting,omitempty"`
}

// ErrUnfinished says that the last rotation still waits for a node.
var ErrUnfinished = errors.New("the last rotation of the site key is unfinished")

// Rotate changes the site over to a new key. It returns when that is done, or when nothing
// but nodes that are off-line keeps it from ending: then the status says which, and the
// rotation ends by itself once they are back. Progress may be nil. Run must be running.
func (r *Rotation) Rotate(ctx context.Context, o RotateOptions, progress func(Event)) (*Status, error) {
	if progress == nil {
		progress = func(Event) {}
	}
	if err := r.finish(ctx, o); err != nil {
		return nil, fmt.Errorf("rotate the site key: %w", err)
	}
	number, err := r.begin(o)
	if err != nil {
		return nil, fmt.Errorf("rotate the site key: %w", err)
	}
	var last Event
	err = r.wait(ctx, func(s *situation) bool {
		g := s.gens[len(s.gens)-1]
		phase, waiting := s.phase()
		e := Event{g.Number, g.ID, phase, waiting}
		if g.Number == number && (e.Phase != last.Phase || !slices.Equal(e.Waiting, last.Waiting)) {
			progress(e)
			last = e
		}
		return g.Number != number || phase == PhaseSteady || phase == PhaseRetiring && s.onlyAbsent(waiting)
	})
	if err != nil {
		return nil, fmt.Errorf("rotate the site key: %w; it goes on by itself", err)
	}
	return new(r.Status()), nil
}

// onlyAbsent reports whether none of the names is one that is live.
func (s *situation) onlyAbsent(names []balancing.NodeID) bool {
	return len(names) > 0 && !slices.ContainsFunc(s.waits, func(n nodeName) bool { return slices.Contains(names, n.name) })
}

// finish sees the last rotation to its end. What is live needs a moment at most.
func (r *Rotation) finish(ctx context.Context, o RotateOptions) error {
	forced := false
	var phase Phase
	var waiting []balancing.NodeID
	var failed error
	short, cancel := context.WithTimeout(ctx, finishWithin)
	defer cancel()
	err := r.wait(short, func(s *situation) bool {
		phase, waiting = s.phase()
		if phase == PhaseSteady {
			return true
		}
		if !o.Force {
			return phase == PhaseRetiring && s.onlyAbsent(waiting)
		}
		if !forced {
			forced = true
			failed = r.force(s.gens[len(s.gens)-1])
		}
		return failed != nil
	})
	switch {
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && phase == PhaseSteady:
		return nil
	case phase == PhaseRetiring && !o.Force:
		return fmt.Errorf("%w: it waits for %s; start that, or remove it from the site, or force a new one", ErrUnfinished, names(waiting))
	}
	return fmt.Errorf("%w: it waits for %s, on-line now or until a moment ago", ErrUnfinished, names(waiting))
}

// finishWithin is how long a new rotation waits for the last one.
const finishWithin = 10 * time.Second

func names(all []balancing.NodeID) string {
	var b []string
	for _, n := range all {
		b = append(b, string(n))
	}
	return strings.Join(b, ", ")
}

func (r *Rotation) force(g *generation) error {
	value := r.c.Identity.seal(domainForce, stepEntry{1, g.name, r.c.Self})
	return r.c.Table.Put(forcePrefix+g.name, value, time.Time{})
}

// begin makes the next generation.
func (r *Rotation) begin(o RotateOptions) (number uint64, err error) {
	s := r.situation()
	if !s.member {
		return 0, refuse(ReasonBusy, "this node has no identity that the site knows; 'peerage status' says why")
	}
	if n := len(s.gens); n > 0 {
		number = s.gens[n-1].Number
	}
	number++
	key := keys.Generate()
	e := genEntry{1, number, key.ID(), r.c.Self, s.ring, map[string][]byte{}}
	name := genName(number, e.ID)
	for _, n := range s.all {
		m, ok := r.c.Registry.Member(n.name)
		if !ok {
			continue
		}
		if e.Boxes[m.Fingerprint()], err = sealKey(m.Public, name, key); err != nil {
			return 0, fmt.Errorf("node %s: %w", n.name, err)
		}
	}
	items := map[string][]byte{genPrefix + name: r.c.Identity.seal(domainGeneration, e)}
	if o.Force {
		items[forcePrefix+name] = r.c.Identity.seal(domainForce, stepEntry{1, name, r.c.Self})
	}
	return number, r.c.Table.PutAll(items)
}

// wait looks at the situation whenever it may have changed, until done says so.
func (r *Rotation) wait(ctx context.Context, done func(*situation) bool) error {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if s := r.situation(); done(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Status is how the site key stands.
type Status struct {
	Generation uint64             `json:"generation"` // 0 until the first rotation
	Key        string             `json:"key"`        // ID of the one that this node seals with
	Opens      []string           `json:"opens"`
	Past       []PastStatus       `json:"past,omitempty"`
	Phase      Phase              `json:"phase"`
	By         balancing.NodeID   `json:"by,omitempty"` // that began the last rotation
	Since      time.Time          `json:"since,omitzero"`
	Forced     bool               `json:"forced,omitempty"`
	Waiting    []balancing.NodeID `json:"waiting,omitempty"`  // for whom the rotation waits
	Absent     []balancing.NodeID `json:"absent,omitempty"`   // those that are off-line, and fetch the key once they are back
	Departed   []balancing.NodeID `json:"departed,omitempty"` // those that are out of the site, and know the key until it is replaced
	Nodes      []NodeKeys         `json:"nodes,omitempty"`
}

// PastStatus is a key that opens pins only.
type PastStatus struct {
	Key   string    `json:"key"`
	Until time.Time `json:"until"`
}

// NodeKeys is the ring of a node as it has told.
type NodeKeys struct {
	Node  balancing.NodeID `json:"node"`
	Seals string           `json:"seals"`
	Opens []string         `json:"opens"`
}

// Status returns how the site key stands now.
func (r *Rotation) Status() Status {
	s := r.situation()
	st := Status{Key: s.ring[0], Opens: s.ring}
	st.Phase, st.Waiting = s.phase()
	if n := len(s.gens); n > 0 {
		g := s.gens[n-1]
		st.Generation, st.By, st.Since, st.Forced = g.Number, g.By, g.stamp.Time(), g.force
		for _, n := range s.all {
			if !slices.Contains(s.waits, n) && s.rings[n.name].Seals != g.ID {
				st.Absent = append(st.Absent, n.name)
			}
		}
	}
	st.Departed = namesOf(append(s.unremoved(), s.departed()...))
	for _, p := range s.past {
		st.Past = append(st.Past, PastStatus{p.id, p.until})
	}
	for _, n := range s.all {
		if e, ok := s.rings[n.name]; ok {
			st.Nodes = append(st.Nodes, NodeKeys{n.name, e.Seals, e.Opens})
		}
	}
	return st
}
