package revision

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// siteAuthor is who makes a revision that no person has asked for.
const siteAuthor = "site"

// history is what the table says: the rules are methods of it. They read no clock, and
// change nothing: several may look at one history.
type history struct {
	name    string // of the site
	entries map[ID]*entry
	keys    map[ID][]string      // all keys of a revision, whether it is there or not
	newest  map[ID]cluster.Stamp // of what those keys hold
}

// entry is a revision with what has become of it.
type entry struct {
	*record
	id     ID
	size   int
	phases map[string]*phase
	words  map[balancing.NodeID]*word
	parent *entry    // nil if it is not there
	kept   int       // changes that have led to it, without those that were rolled back
	heard  time.Time // when this process heard that it is in force; zero if it was before
}

func (e *entry) has(phase string) bool { return e.phases[phase] != nil }

// word returns what node says of the revision: nothing, to begin with.
func (e *entry) word(node balancing.NodeID) word {
	if w := e.words[node]; w != nil {
		return *w
	}
	return word{}
}

// understood reports whether this software knows what the revision says.
func (e *entry) understood() bool { return e.V == version }

// hasText reports whether the revision has that very text.
func (e *entry) hasText(text string) bool {
	t, err := e.text()
	return err == nil && e.understood() && t == text
}

// revision returns the revision with its text.
func (e *entry) revision() *Revision {
	r := e.brief()
	r.Text, _ = e.text() // it was checked when it came
	return r
}

// brief returns the revision without its text.
func (e *entry) brief() *Revision {
	r := &Revision{
		ID: e.id, Number: e.Number, Parent: e.Parent, Author: e.Author, Comment: e.Comment,
		ConfirmWithin: e.confirmWithin(), Signer: e.Signer,
	}
	if e.Made != 0 {
		r.Made = e.Made.Time()
	}
	return r
}

// compare orders revisions as a list has them.
func compare(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Made, b.Made), cmp.Compare(a.id, b.id))
}

// rollBack returns the revision that brings back what was before e. Whoever makes it, and
// whenever, it is the same. It is nil if that is not known any more, and if e is itself
// such a revision: two documents that are both bad must not take turns.
func (h *history) rollBack(e *entry) *entry {
	p := e.parent
	if p == nil || !p.understood() || !e.understood() || e.isRollBack() {
		return nil
	}
	text, err := p.text()
	if err != nil {
		return nil
	}
	r := &record{
		V: version, Number: e.Number + 1, Parent: e.id, Author: siteAuthor, Made: e.Made + 1,
		Comment: fmt.Sprintf("rolls back revision %d", e.Number),
	}
	id := idOf(r.sum(h.name, text))
	if there := h.entries[id]; there != nil {
		return there
	}
	r.put(text)
	r.digest()
	return &entry{record: r, id: id, parent: e}
}

// isRollBack reports whether e was made by [history.rollBack].
func (e *entry) isRollBack() bool {
	p := e.parent
	return e.Author == siteAuthor && p != nil && p.parent != nil && e.Made == p.Made+1 && e.same() == p.parent.same()
}

// inForce reports whether e was put into force, head or not. A roll-back of what somebody
// has confirmed is not: whoever made it had not heard of that.
func (h *history) inForce(e *entry) bool {
	switch {
	case !e.has(phaseAll) && !e.has(phaseConfirmed):
		return false
	case e.parent == nil:
		return true
	case e.Number != e.parent.Number+1:
		return false
	}
	return !e.isVoid()
}

// isVoid reports whether e is a roll-back of what somebody has confirmed.
func (e *entry) isVoid() bool {
	return e.isRollBack() && e.parent.has(phaseConfirmed)
}

// outranks reports whether a goes before b, of two that are in force apart: the one that
// more changes have led to. What was rolled back counts for nothing, for a change that has
// failed on one side of a partition must not undo one that has not on the other.
func outranks(a, b *entry) bool {
	return cmp.Or(cmp.Compare(a.kept, b.kept), compare(a, b)) > 0
}

// recorded returns the revision in force as it is written down, nil if there is none.
func (h *history) recorded() *entry {
	var in []*entry
	over := map[*entry]bool{} // rolled back
	for _, e := range h.entries {
		if !h.inForce(e) {
			continue
		}
		in = append(in, e)
		if e.isRollBack() {
			over[e.parent] = true
		}
	}
	var best *entry
	for _, e := range in {
		if !over[e] && !e.has(phaseDismissed) && (best == nil || outranks(e, best)) {
			best = e
		}
	}
	return best
}

// head returns the revision in force, nil if there is none. It may be a roll-back that
// nobody has written down yet.
func (h *history) head(now time.Time) *entry {
	best := h.recorded()
	if best != nil && h.rollBackReason(best, now) != "" {
		if r := h.rollBack(best); r != nil {
			return r
		}
	}
	return best
}

// confirmBy returns the time until which e must be confirmed, zero if it need not be. Each
// node counts from when it heard of e: the clock of the proposer may be off by more than
// the time there is to confirm.
func (e *entry) confirmBy() time.Time {
	all := e.phases[phaseAll]
	if all == nil || e.ConfirmWithin == 0 || e.has(phaseConfirmed) {
		return time.Time{}
	}
	from := e.heard
	if from.IsZero() { // this process was started since
		from = all.When.Time()
	}
	return from.Add(e.confirmWithin())
}

// watchUntil returns the time until which a node that fails brings the document before e
// back, zero if none does.
func (e *entry) watchUntil() time.Time {
	all := e.phases[phaseAll]
	switch {
	case all == nil || e.has(phaseConfirmed):
		return time.Time{}
	case e.ConfirmWithin > 0:
		return e.confirmBy()
	}
	return all.When.Time().Add(watchFor)
}

// rollBackReason says why e must be rolled back, "" if it need not be.
func (h *history) rollBackReason(e *entry, now time.Time) string {
	until := e.watchUntil()
	if until.IsZero() {
		return ""
	}
	for _, node := range slices.Sorted(maps.Keys(e.words)) {
		w := e.words[node]
		if w.Failed != 0 && !w.Failed.Time().After(until) {
			return fmt.Sprintf("%s: %s", node, w.Why)
		}
		for _, s := range w.Saw {
			if !s.At.Time().After(until) {
				return fmt.Sprintf("%s turned sick, as seen by %s", s.Node, node)
			}
		}
	}
	if by := e.confirmBy(); !by.IsZero() && !now.Before(by) {
		return fmt.Sprintf("nobody has confirmed it within %s", e.confirmWithin())
	}
	return ""
}

// isRolledBack reports whether e, whose roll-back is r, was rolled back or must be.
func (h *history) isRolledBack(e, r *entry, now time.Time) bool {
	return h.inForce(r) || h.rollBackReason(e, now) != ""
}

// deadline returns the time until which a revision that is not in force may still come
// into force.
func (e *entry) deadline() time.Time {
	switch p, c := e.phases[phaseProposed], e.phases[phaseCanary]; {
	case c != nil:
		return c.Deadline.Time()
	case p != nil:
		return p.Deadline.Time()
	}
	return time.Time{}
}

// isPending reports whether e may still come into force.
func (e *entry) isPending(now time.Time) bool {
	return !e.has(phaseAll) && !e.has(phaseConfirmed) && !e.has(phaseWithdrawn) && now.Before(e.deadline())
}

// earlier reports whether proposal e goes before f, of two for the same parent.
func earlier(e, f *entry) bool {
	return cmp.Or(cmp.Compare(e.Made, f.Made), cmp.Compare(e.id, f.id)) < 0
}

// pending returns the revisions that may still come into force, the earliest first.
func (h *history) pending(now time.Time) []*entry {
	var ps []*entry
	for _, e := range h.entries {
		if e.isPending(now) {
			ps = append(ps, e)
		}
	}
	slices.SortFunc(ps, func(a, b *entry) int { return cmp.Or(cmp.Compare(a.Made, b.Made), cmp.Compare(a.id, b.id)) })
	return ps
}

// effective returns the revision that node should serve: the head, or one that it tries
// for all.
func (h *history) effective(node balancing.NodeID, now time.Time) *entry {
	head := h.head(now)
	for _, e := range h.pending(now) {
		if c := e.phases[phaseCanary]; c != nil && c.Canary == node && head != nil && e.Parent == head.id {
			return e
		}
	}
	return head
}

// chain returns the head and what it came from, without what was confirmed and rolled back
// at the same time, each on its side of a partition: that is not in the head.
func (h *history) chain(now time.Time) map[ID]bool {
	ids := map[ID]bool{}
	for e := h.head(now); e != nil && !ids[e.id]; e = e.parent {
		ids[e.id] = true
		if e.isVoid() {
			e = e.parent
		}
	}
	return ids
}

// conflicts returns the revisions that were put into force apart from the head, each
// standing for those that it came from, the last first. One whose text the site has taken
// over since, or that somebody has dismissed, is none any more.
func (h *history) conflicts(now time.Time) []*entry {
	chain := h.chain(now)
	built := map[ID]bool{}
	for _, e := range h.entries {
		if h.inForce(e) {
			built[e.Parent] = true
		}
	}
	var found []*entry
	for id, e := range h.entries {
		if h.inForce(e) && !chain[id] && !built[id] && !e.has(phaseDismissed) {
			found = append(found, e)
		}
	}
	if len(found) > 0 {
		texts := map[string]bool{}
		for id := range chain {
			if e := h.entries[id]; e != nil {
				texts[e.same()] = true
			}
		}
		found = slices.DeleteFunc(found, func(e *entry) bool { return texts[e.same()] })
	}
	slices.SortFunc(found, func(a, b *entry) int { return compare(b, a) })
	return found
}

// same is equal for two revisions if their texts are.
func (e *entry) same() string {
	if !e.understood() {
		return string(e.id)
	}
	return string(e.textSum[:])
}

// excess returns the keys that are not kept any longer. It goes by the recorded head: what
// is kept must not depend on the time.
func (h *history) excess() []string {
	head := h.recorded()
	if head == nil {
		return nil
	}
	all := slices.SortedFunc(maps.Values(h.entries), func(a, b *entry) int { return compare(b, a) })
	var drop []string
	size, oldest := 0, head.Made
	for _, e := range all {
		size += e.size
		if e.Number <= head.Number-Kept || size > keepText && e.Number < head.Number-1 {
			drop = append(drop, h.keys[e.id]...)
			continue
		}
		oldest = min(oldest, e.Made)
		if e.Number < head.Number-keepVote {
			for _, key := range h.keys[e.id] {
				if strings.HasPrefix(key, nodePrefix) {
					drop = append(drop, key)
				}
			}
		}
	}
	// What is said of a revision may come before it, and also long after it was dropped.
	for id, keys := range h.keys {
		if h.entries[id] == nil && h.newest[id] < oldest {
			drop = append(drop, keys...)
		}
	}
	slices.Sort(drop)
	return drop
}
