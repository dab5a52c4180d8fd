package revision

import (
	"fmt"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// voteOn votes on what is proposed. A node votes for one of several that were made from
// the same revision: the earliest, if it has the choice. Where it has voted for a later
// one, it waits: that one's proposer withdraws as soon as it sees the earlier one.
func (a *Agent) voteOn() {
	h := a.history()
	faults := map[ID]error{}
	for _, e := range h.pending(time.Now().Add(-cluster.MaxAhead)) {
		if e.word(a.c.Self).Vote != "" {
			continue
		}
		w, ok := a.judge(h, e, time.Now())
		if !ok {
			continue
		}
		if w.Vote == yes {
			fault, known := a.faults[e.id] // where the disk is full, the vote may have to be tried again
			if !known {
				fault = a.fault(e)
			}
			faults[e.id] = fault
		}
		a.vote(e.id, faults)
	}
	a.faults = faults
}

// fault says why this node would not take a proposal. That may take long, so nothing is
// locked meanwhile, and whoever asks looks at the history anew afterwards.
func (a *Agent) fault(e *entry) error {
	text, err := e.text()
	if err != nil {
		return err
	}
	if err := a.c.Site.Check(text); err != nil {
		return err
	}
	return a.c.Site.Room(text)
}

// vote votes on a proposal, whose text was checked if faults has it.
func (a *Agent) vote(id ID, faults map[ID]error) {
	a.deciding.Lock()
	defer a.deciding.Unlock()
	h, now := a.history(), time.Now()
	e := h.entries[id]
	// The deadline is by the clock of the proposer, and this node's may be ahead: a vote that
	// comes too late does no harm, one that never comes keeps the site from any change.
	if e == nil || !e.isPending(now.Add(-cluster.MaxAhead)) {
		return
	}
	said := e.word(a.c.Self)
	w, ok := a.judge(h, e, now)
	fault, checked := faults[id]
	switch {
	case !ok || said.Vote != "" || w.Vote == yes && !checked: // if so, the next look will tell
		return
	case w.Vote == yes && fault != nil:
		w = word{Vote: no, Problems: cut(fault.Error(), maxSays)}
	}
	said.Vote, said.Problems, said.Against = w.Vote, w.Problems, w.Against
	a.say(e, said)
}

// judge returns what this node says of the proposal e, but for its text, if it can say it
// already.
func (a *Agent) judge(h *history, e *entry, now time.Time) (word, bool) {
	head := h.head(now)
	switch {
	case head == nil:
		return word{}, false // it will come
	case !e.understood():
		return word{Vote: no, Problems: "the software of this node is too old to read it; update the node first"}, true
	case e.Parent != head.id:
		if e.Number > head.Number {
			return word{}, false // its parent will come
		}
		return word{Vote: no, Against: head.id, Problems: fmt.Sprintf("%s by %s is in force here", head.brief(), head.Author)}, true
	}
	for _, p := range h.pending(now) {
		if p.id == e.id || p.Parent != e.Parent || p.word(a.c.Self).Vote != yes {
			continue
		}
		if earlier(e, p) {
			return word{}, false
		}
		return word{Vote: no, Against: p.id, Problems: fmt.Sprintf("%s by %s is being applied", p.brief(), p.Author)}, true
	}
	return word{Vote: yes}, true
}

// cut returns at most n octets of s.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// goneFor is how long a proposer must have been gone for what it has proposed to be given
// up. One that was merely stopped, for [stoppedFor], does not go on by itself.
const goneFor = 3 * time.Second

// watchProposers notes who has proposed something and is gone. What this node tries for
// such a one it gives up; what else was proposed stands in nobody's way (see mayFollow).
func (a *Agent) watchProposers(h *history, now time.Time) {
	pending := h.pending(now)
	gone := map[balancing.NodeID]time.Time{}
	for _, e := range pending {
		if id := e.proposer(); id != "" && id != a.c.Self && a.c.Site.Gone(id) {
			gone[id] = now
		}
	}
	a.mu.Lock()
	for id := range gone {
		if since, ok := a.gone[id]; ok {
			gone[id] = since
		}
	}
	a.gone = gone
	a.mu.Unlock()
	for _, e := range pending {
		if c := e.phases[phaseCanary]; c != nil && c.Canary == a.c.Self && a.isOrphan(e, now) {
			a.written(a.withdraw(e.id, orphaned(e)))
		}
	}
}

// isOrphan reports whether nobody will go on with the proposal e.
func (a *Agent) isOrphan(e *entry, now time.Time) bool {
	id := e.proposer()
	a.mu.Lock()
	since, ok := a.gone[id]
	a.mu.Unlock()
	return ok && now.Sub(since) >= goneFor && a.c.Site.Gone(id) // it may be back since the last look
}

func orphaned(e *entry) string {
	return fmt.Sprintf("its proposer %s is off-line, and has not gone on in time", e.proposer())
}

// proposer returns the node that has proposed e, "" if that is not known.
func (e *entry) proposer() balancing.NodeID {
	if p := e.phases[phaseProposed]; p != nil {
		return balancing.NodeID(p.Who)
	}
	return ""
}
