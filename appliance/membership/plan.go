package membership

import (
	"slices"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

// situation is all that a node goes by when it decides about its ring. Keys are named by
// their IDs.
type situation struct {
	now     time.Time
	began   time.Time // when this node did
	pinLife time.Duration
	self    balancing.NodeID
	member  bool // it is one, by its own identity
	ledger
	ring  []string   // that it has stored, what seals first
	past  []pastKey  // likewise
	waits []nodeName // nodes that are live, or were until just now, with self; sorted
	all   []nodeName // members that are nodes of the site

	nodes      []balancing.NodeID // of the site document
	departures []departure
}

// nodeName is a member: its name, and its identity.
type nodeName struct {
	name        balancing.NodeID
	fingerprint string
}

// pastKey is a key that opens pins only.
type pastKey struct {
	id    string
	until time.Time
}

// plan is what a node should do next. First the ring: only what is stored is told.
type plan struct {
	ring []string
	past []pastKey

	report bool      // tell what is stored
	use    string    // <gen> that all are ready for
	retire []string  // keys that nobody seals with any more
	boxes  []missing // that this node should make

	// What others have left undone, once there is nothing else to do; see departure.go.
	strip []departure // who are members no more
	force *generation // for which nodes that are off-line are not waited for
	shut  []departure // whom the next key is to keep out
}

// missing is a box that a member lacks.
type missing struct {
	gen string
	nodeName
}

// decide is the rule of the rotation. A key goes through these steps on each node, and
// what a step waits for is what keeps every node able to open what any other seals:
//
//	made ──► opens: second in the ring ──► seals: first in the ring ──► past: opens pins
//	              (once it has a box)    (once all live nodes open it)  (once all nodes seal
//	                                                                     with a later one)
//
// A node that comes back goes through the same steps: it finds the others sealing with a
// key that it opens once it has fetched its box. Whoever cannot be there to open (the dead,
// and the other side of a partition) is not waited for in the first two steps.
func decide(s *situation) plan {
	p := plan{ring: slices.Clone(s.ring)}
	latest := s.latest()
	if latest != nil {
		s.moveOn(&p, latest)
	}
	p.past = s.pastFor(p.ring)
	p.report = s.member && !s.told()
	if latest != nil && slices.Equal(p.ring, s.ring) && !p.report {
		s.advance(&p, latest)
	}
	s.end(&p)
	return p
}

// moveOn takes the ring one step towards the latest key.
func (s *situation) moveOn(p *plan, latest *generation) {
	seals := s.ring[0]
	var second string
	if len(s.ring) > 1 {
		second = s.ring[1]
	}
	switch {
	case s.rank(seals) >= s.rank(latest.ID):
		if second != "" && s.isRetired(second) {
			p.ring = s.ring[:1:1]
		}
	case second == latest.ID, second != "" && s.rank(second) > s.rank(seals) && !s.droppable(second):
		// Also one that is not the latest, if others seal with it already: it makes room.
		if g := s.gens[s.rank(second)]; g.used && len(s.without(s.waits, opens(g.ID))) == 0 {
			p.ring = []string{second, seals}
		}
	case second == "" || s.droppable(second):
		p.ring = []string{seals, latest.ID}
	}
}

func (s *situation) isRetired(id string) bool {
	_, ok := s.retired[id]
	return ok
}

// droppable reports whether nothing that arrives now can be sealed with a key.
func (s *situation) droppable(id string) bool {
	return s.isRetired(id) || len(s.without(s.waits, func(r ringEntry) bool { return r.Seals != id })) == 0
}

func opens(id string) func(ringEntry) bool {
	return func(r ringEntry) bool { return slices.Contains(r.Opens, id) }
}

func seals(id string) func(ringEntry) bool {
	return func(r ringEntry) bool { return r.Seals == id }
}

// without returns the nodes that have not told of a ring which is so.
func (s *situation) without(nodes []nodeName, is func(ringEntry) bool) (names []balancing.NodeID) {
	for _, n := range nodes {
		if r, ok := s.rings[n.name]; !ok || !is(r) {
			names = append(names, n.name)
		}
	}
	return names
}

// pastFor returns the past keys beside a ring: those that it has, those that leave it, and
// those that the site has retired while this node was away.
func (s *situation) pastFor(ring []string) []pastKey {
	var all []pastKey
	add := func(id string, until time.Time) {
		until = until.UTC().Truncate(time.Second) // as keys.Past has it
		known := slices.ContainsFunc(all, func(p pastKey) bool { return p.id == id })
		if !known && s.now.Before(until) && !slices.Contains(ring, id) {
			all = append(all, pastKey{id, until})
		}
	}
	for _, p := range s.past {
		add(p.id, p.until)
	}
	for _, id := range s.ring {
		from, ok := s.retired[id]
		if !ok {
			from = s.now
		}
		add(id, from.Add(s.pinLife+cluster.MaxAhead)) // clocks differ
	}
	for _, g := range s.gens {
		if from, ok := s.retired[g.ID]; ok && g.mine {
			add(g.ID, from.Add(s.pinLife+cluster.MaxAhead))
		}
	}
	slices.SortStableFunc(all, func(a, b pastKey) int { return b.until.Compare(a.until) })
	return all[:min(len(all), keys.MaxPast)]
}

// told reports whether this node's own entry says what is stored.
func (s *situation) told() bool {
	r, ok := s.rings[s.self]
	return ok && r.Seals == s.ring[0] && slices.Equal(r.Opens, s.ring)
}

// advance says that a step is done, if it is this node's turn to say so: that of the first
// that is ready itself.
func (s *situation) advance(p *plan, latest *generation) {
	ready := slices.DeleteFunc(slices.Clone(s.waits), func(n nodeName) bool { return !opens(latest.ID)(s.rings[n.name]) })
	if len(ready) == 0 || ready[0].name != s.self {
		return
	}
	for _, n := range s.all {
		if !latest.boxed[n.fingerprint] && !opens(latest.ID)(s.rings[n.name]) {
			p.boxes = append(p.boxes, missing{latest.name, n})
		}
	}
	switch {
	case !latest.used:
		if len(s.without(s.waits, opens(latest.ID))) == 0 {
			p.use = latest.name
		}
	case len(s.without(s.needed(latest), seals(latest.ID))) == 0:
		p.retire = s.older(latest)
	}
}

// needed are the nodes that must seal with a key before those before it are retired.
func (s *situation) needed(latest *generation) []nodeName {
	if latest.force {
		return s.waits
	}
	return s.union()
}

// union is all, and who is live without being known as a node of the site yet.
func (s *situation) union() []nodeName {
	all := slices.Clone(s.all)
	for _, n := range s.waits {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// older returns the keys before the latest that are not retired yet. A key that is not
// known at all may as well be a later one.
func (s *situation) older(latest *generation) (ids []string) {
	add := func(id string) {
		if s.rank(id) < s.rank(latest.ID) && !s.isRetired(id) && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, g := range s.gens[:s.rank(latest.ID)+1] {
		for _, id := range g.After {
			add(id)
		}
		add(g.ID)
	}
	return ids
}

// Phase is how far a rotation is.
type Phase string

// The phases, in this order.
const (
	PhaseSteady   Phase = "steady"         // there is one key
	PhaseHandOut  Phase = "handing out"    // the new key is on its way to all that are live
	PhaseChange   Phase = "changing over"  // they begin to seal with it
	PhaseRetiring Phase = "waiting to end" // some node may still seal with the old one
)

// phase returns how far the rotation is, and whom it waits for.
func (s *situation) phase() (Phase, []balancing.NodeID) {
	if len(s.gens) == 0 {
		return PhaseSteady, nil
	}
	latest := s.gens[len(s.gens)-1]
	if !latest.used {
		return PhaseHandOut, s.without(s.waits, opens(latest.ID))
	}
	if late := s.without(s.waits, seals(latest.ID)); len(late) > 0 {
		return PhaseChange, late
	}
	if len(s.older(latest)) > 0 {
		return PhaseRetiring, s.without(s.needed(latest), seals(latest.ID))
	}
	if s.ring[0] != latest.ID || len(s.ring) > 1 {
		return PhaseRetiring, []balancing.NodeID{s.self}
	}
	if late := s.without(s.waits, func(r ringEntry) bool { return len(r.Opens) == 1 }); len(late) > 0 {
		return PhaseRetiring, late // to have nothing but the new one
	}
	return PhaseSteady, nil
}
