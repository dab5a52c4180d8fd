package revision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"peerage/balancing"
)

// Apply makes text the site document: every node that is on-line and well checks it, one
// serves it for a moment, then all do. It returns when they serve it, and tells progress
// of each step. If ctx ends before the text is in force the change is withdrawn.
//
// Its errors are [Conflict], [Refused], [Unconfirmed], [Withdrawn] and [RolledBack], and
// [ErrUnchanged] and [ErrUnknown].
func (a *Agent) Apply(ctx context.Context, text string, o Options, progress func(Event)) (*Revision, error) {
	c := &change{a: a, o: o, progress: progress, changed: a.Changed()}
	defer a.forget(c.changed)
	if err := c.propose(text); err != nil {
		return nil, fmt.Errorf("apply the site document: %w", err)
	}
	if err := c.carry(ctx); err != nil {
		return nil, fmt.Errorf("apply the site document: %w", err)
	}
	return c.e.revision(), nil
}

// change is a revision on its way into force, as its proposer sees it.
type change struct {
	a        *Agent
	o        Options
	progress func(Event)
	changed  <-chan struct{}
	e        *entry // as of the proposal, then as of the last look
	canary   balancing.NodeID
	told     map[string]bool
	looked   time.Time // for givenUp
}

// stoppedFor is how long a proposer may look away: who was stopped for longer may have been
// given up by the others ([goneFor]), and not have heard of it yet.
const stoppedFor = 2 * time.Second

// givenUp says why the proposal must not go on, if so.
func (c *change) givenUp(now time.Time) error {
	now = now.Round(0) // the monotonic clock stands still while a machine is suspended
	away := now.Sub(c.looked)
	if c.looked.IsZero() {
		away = 0
	}
	c.looked = now
	switch p := c.e.phases[phaseWithdrawn]; {
	case p != nil:
		return &Withdrawn{c.e.brief(), p.Reason}
	case away > stoppedFor:
		return &Withdrawn{c.e.brief(), fmt.Sprintf("its proposer stood still for %s; apply it again", away.Round(time.Millisecond))}
	}
	return nil
}

// tell reports a step, once.
func (c *change) tell(kind EventKind, node balancing.NodeID, format string, args ...any) {
	key := string(kind) + "/" + string(node)
	if c.told[key] || c.progress == nil {
		return
	}
	if c.told == nil {
		c.told = map[string]bool{}
	}
	c.told[key] = true
	c.progress(Event{kind, node, fmt.Sprintf(format, args...)})
}

// carry brings the proposal into force, or withdraws it.
func (c *change) carry(ctx context.Context) error {
	if err := c.vote(ctx); err != nil {
		return err
	}
	if err := c.try(ctx); err != nil {
		return err
	}
	return c.all(ctx)
}

// await looks at the history after each change and every few milliseconds, until look says
// that it is done, the time is over, or ctx ends.
func (c *change) await(ctx context.Context, atMost time.Duration, look func(h *history, now time.Time) (done bool, err error)) error {
	over := time.NewTimer(atMost)
	defer over.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		h := c.a.history()
		if e := h.entries[c.e.id]; e != nil {
			c.e = e
		}
		if done, err := look(h, time.Now()); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over.C:
			return errOver
		case <-c.changed:
		case <-tick.C:
		}
	}
}

var errOver = errors.New("the time is over")

// withdraw gives the proposal up.
func (c *change) withdraw(reason string, err error) error {
	if put := c.a.withdraw(c.e.id, reason); put != nil { // the deadline will do it
		c.a.c.Log.Error("site history not written", "err", put)
	}
	if err == nil {
		err = &Withdrawn{c.e.brief(), reason}
	}
	return err
}

// vote waits for the nodes to check the document. Those that are off-line are not asked,
// those that are not well are not waited for.
func (c *change) vote(ctx context.Context) error {
	var missing []balancing.NodeID
	var unheard *Refused // for another change, of which this node has not heard yet
	err := c.await(ctx, voteWithin, func(h *history, now time.Time) (bool, error) {
		if err := c.givenUp(now); err != nil {
			return false, err
		}
		unheard = nil
		for _, id := range slices.Sorted(maps.Keys(c.e.words)) {
			w := c.e.words[id]
			switch {
			case w.Vote == yes:
				c.tell(Voted, id, "%s would take it", id)
			case w.Vote == no && w.Against != "" && h.entries[w.Against] != nil:
				theirs := h.entries[w.Against]
				text, _ := c.e.text()
				return false, conflict(c.e.parent, theirs, text, theirs.isPending(now))
			case w.Vote == no && w.Against != "":
				unheard = &Refused{id, w.Problems}
			case w.Vote == no:
				return false, &Refused{id, w.Problems}
			}
		}
		for _, p := range h.pending(now) {
			if p.Parent == c.e.Parent && earlier(p, c.e) {
				text, _ := c.e.text()
				return false, conflict(c.e.parent, p, text, true)
			}
		}
		missing = missing[:0]
		for _, id := range c.a.c.Site.Live() {
			if c.a.c.Site.Well(id) && c.e.word(id).Vote == "" {
				missing = append(missing, id)
			}
		}
		return len(missing) == 0 && unheard == nil, nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errOver) && unheard != nil:
		return c.withdraw(reasonOf(unheard), unheard)
	case errors.Is(err, errOver):
		return c.withdraw(fmt.Sprintf("%v did not answer within %s although on-line; look at the log there: its disk may be full. While a node is stopped, the document can be changed without it", missing, voteWithin), nil)
	case ctx.Err() != nil:
		return c.withdraw("its proposer has given up", nil)
	}
	return c.withdraw(reasonOf(err), err)
}

// try has the canary serve the document for a while.
func (c *change) try(ctx context.Context) error {
	a := c.a
	most := applyWithin + settleWithin + c.o.CanaryFor
	p := phase{Who: string(a.c.Self), When: a.c.Clock.Now(), Canary: c.canary, Deadline: a.stampIn(most + spare)}
	if err := a.c.Table.Put(phaseKey(c.e.id, phaseCanary), encode(p), time.Time{}); err != nil {
		return c.withdraw(err.Error(), nil)
	}
	c.tell(CanaryChosen, c.canary, "%s serves it first, for %s", c.canary, c.o.CanaryFor)
	c.looked = time.Time{} // the disk may be slow; from here on there is time to hear what others have done
	wasWell := a.c.Site.Well(c.canary)
	var since, sick time.Time
	failed := func(format string, args ...any) (bool, error) {
		return false, &Withdrawn{c.e.brief(), fmt.Sprintf("canary "+format, args...)}
	}
	err := c.await(ctx, most, func(h *history, now time.Time) (bool, error) {
		if err := c.givenUp(now); err != nil {
			return false, err
		}
		w := c.e.word(c.canary)
		if head := h.head(now); head == nil || head.id != c.e.Parent {
			return false, c.overtaken(h)
		}
		if c.a.c.Site.Well(c.canary) {
			sick = time.Time{}
		} else if sick.IsZero() {
			sick = now
		}
		switch {
		case w.Failed != 0:
			return failed("%s: %s", c.canary, w.Why)
		case c.canary != a.c.Self && !slices.Contains(a.c.Site.Live(), c.canary):
			return failed("%s is off-line", c.canary)
		case wasWell && !sick.IsZero() && now.Sub(sick) >= sickFor:
			return failed("%s turned sick", c.canary)
		case w.Applied == 0:
			return false, nil
		case since.IsZero():
			since = now
			c.tell(CanaryApplied, c.canary, "%s serves it", c.canary)
		}
		return w.Settled != 0 && now.Sub(since) >= c.o.CanaryFor && (sick.IsZero() || !wasWell), nil
	})
	switch w, withdrawn := errors.AsType[*Withdrawn](err); {
	case err == nil:
		return nil
	case withdrawn:
		return c.withdraw(w.Reason, w)
	case errors.Is(err, errOver):
		return c.withdraw(fmt.Sprintf("canary %s did not serve it within %s", c.canary, most), nil)
	case ctx.Err() != nil:
		return c.withdraw("its proposer has given up", nil)
	}
	return c.withdraw(reasonOf(err), err)
}

// overtaken is the error for a proposal whose parent is not the head any more.
func (c *change) overtaken(h *history) error {
	head := h.head(time.Now())
	text, err := c.e.text()
	if err != nil || head == nil || c.e.parent == nil {
		return &Withdrawn{c.e.brief(), "another revision has come into force"}
	}
	return conflict(c.e.parent, head, text, false)
}

// reasonOf says in one line why a proposal is withdrawn.
func reasonOf(err error) string {
	if c, ok := errors.AsType[*Conflict](err); ok {
		return fmt.Sprintf("%s by %s came first", c.Theirs, c.Theirs.Author)
	}
	if r, ok := errors.AsType[*Refused](err); ok {
		return fmt.Sprintf("%s refused it: %s", r.Node, r.Problems)
	}
	if w, ok := errors.AsType[*Withdrawn](err); ok {
		return w.Reason
	}
	return err.Error()
}

// all puts the document into force, and waits for the nodes to serve it.
func (c *change) all(ctx context.Context) error {
	a := c.a
	// A process that was stopped for a while must not put into force what the others have
	// given up.
	if now := time.Now(); now.After(c.e.deadline().Add(-spare / 3)) {
		return c.withdraw("its proposer has not gone on in time", nil)
	} else if err := c.givenUp(now); err != nil {
		return c.withdraw(reasonOf(err), err)
	}
	p := phase{Who: string(a.c.Self), When: a.c.Clock.Now()}
	if err := a.c.Table.Put(phaseKey(c.e.id, phaseAll), encode(p), time.Time{}); err != nil {
		return fmt.Errorf("%s: %w; look at 'peerage site history' for whether it is in force", c.e.brief(), err)
	}
	c.tell(ForAll, a.c.Self, "%s is in force", c.e.brief())
	var missing []balancing.NodeID
	err := c.await(ctx, allWithin, func(h *history, now time.Time) (bool, error) {
		if r := h.rollBack(c.e); r != nil && h.isRolledBack(c.e, r, now) {
			return false, &RolledBack{c.e.brief(), cmp.Or(h.rollBackReason(c.e, now), r.phases[phaseAll].reason())}
		}
		for _, id := range slices.Sorted(maps.Keys(c.e.words)) {
			if c.e.words[id].Applied != 0 {
				c.tell(Applied, id, "%s serves it", id)
			}
		}
		missing = missing[:0]
		for _, id := range append(a.c.Site.Live(), a.c.Self) {
			if w := c.e.word(id); w.Applied == 0 && (id == a.c.Self || a.c.Site.Well(id)) {
				missing = append(missing, id)
			}
		}
		return len(missing) == 0, nil
	})
	if _, ok := errors.AsType[*RolledBack](err); ok {
		return err
	}
	for _, id := range missing { // it is in force all the same
		c.tell(Missing, id, "%s does not serve it yet", id)
	}
	return nil
}
