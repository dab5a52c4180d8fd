package cluster

import (
	"slices"
	"time"
)

const (
	// maxStaged is how much a stale node takes from a peer, all documents together.
	maxStaged = 512 << 20

	// sourceWithin is how long a stale node looks for a peer that is not, from the first
	// peer on that it hears.
	sourceWithin = 30 * time.Second
)

// level is how much of what the others have deleted and forgotten a node may still have.
//
//	    away or alone for nearly as long as tombstones last
//	fresh ───────────────▶ alone (it ran), down (it did not) ──▶ fresh
//	                            state of a peer of a lower level taken over, or no such peer
type level byte

const (
	fresh level = iota
	alone       // it ran, but has agreed with no peer
	down        // it did not even run
)

// begin finds out whether this node is stale.
func (m *Member) begin(now time.Time) {
	seen, ran := m.c.Store.times()
	m.x.started, m.x.marked, m.x.seen = now, now, seen
	m.blank.Store(seen.IsZero())
	switch limit := m.limit(); {
	case seen.IsZero() || now.Sub(seen) <= limit:
	case now.Sub(ran) > limit:
		m.stale(down)
	default:
		m.stale(alone)
	}
}

// limit is how long a node may be away and still teach.
func (m *Member) limit() time.Duration {
	life := DefaultTombstoneLife
	for _, d := range m.docs {
		if t, ok := d.(*Table); ok {
			life = min(life, t.c.TombstoneLife)
		}
	}
	// Tombstones of the others may have come to their end before ours.
	return max(life-24*time.Hour, life/2)
}

func (m *Member) stale(l level) {
	m.x.before, m.x.contact, m.x.source = m.x.seen, time.Time{}, ""
	m.level.Store(uint32(l))
	m.c.Log.Warn("state is stale: it will be replaced by that of a peer", "seen", m.x.seen)
}

// takeOver looks whether a peer's state can replace that of this node, which is stale.
func (m *Member) takeOver(g *message, mine level, now time.Time) {
	if m.x.contact.IsZero() {
		m.x.contact = now
	}
	if g.level >= mine || g.flags&flagBlank != 0 || m.x.source != "" {
		return
	}
	m.x.source = g.from
	clear(m.x.wants)
	// A source that is alone sends no digests; it is asked for all.
	for name, doc := range m.docs {
		_, can := doc.(resetter)
		if can && (g.level != fresh || slices.ContainsFunc(g.states, func(d digest) bool { return d.doc == name })) {
			number := m.ask(wanted{g.from, name}, now)
			m.send(g.from, wantOf(m.c.Self, number, name, flagWhole))
		}
	}
}

// replace takes over the state of the source when all of it is there.
func (m *Member) replace() {
	for _, w := range m.x.wants {
		if !w.done() {
			return
		}
	}
	for key, w := range m.x.wants {
		if err := m.docs[key.doc].(resetter).reset(w.staged, m.x.before); err != nil {
			m.c.Log.Error("document not written", "document", key.doc, "err", err)
			m.forget(key.peer)
			return
		}
	}
	m.c.Log.Info("state replaced by that of a peer", "peer", m.x.source)
	m.counters.resets.Add(1)
	m.refresh()
}

// refresh lets this node teach again.
func (m *Member) refresh() {
	clear(m.x.wants)
	m.x.source = ""
	m.level.Store(uint32(fresh))
	m.agreed(time.Now())
	m.keep(m.x.seen)
	m.x.advertise = true
}
