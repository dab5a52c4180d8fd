package revision

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/cluster"
)

// propose writes the revision into the table, with the vote of this node.
func (c *change) propose(text string) error {
	a := c.a
	if err := c.choose(); err != nil {
		return err
	}
	e, _, err := c.draft(text)
	if err != nil {
		return err
	}
	if err := a.fault(e); err != nil {
		return &Refused{a.c.Self, err.Error()}
	}
	// The check may have taken long. What has come into force meanwhile is a conflict.
	c.o.Base = e.Parent
	a.deciding.Lock()
	defer a.deciding.Unlock()
	e, orphans, err := c.draft(text)
	if err != nil {
		return err
	}
	e.Made = a.c.Clock.Now()
	e.id = idOf(e.sum(a.c.Name, text))
	items := map[string][]byte{
		revKey(e.id):                  a.sign(e.record),
		phaseKey(e.id, phaseProposed): encode(phase{Who: string(a.c.Self), When: e.Made, Deadline: a.stampIn(voteWithin + spare)}),
		nodeKey(e.id, a.c.Self):       encode(word{Vote: yes}),
	}
	for _, o := range orphans {
		items[phaseKey(o.id, phaseWithdrawn)] = encode(phase{Who: string(a.c.Self), When: e.Made, Reason: orphaned(o)})
	}
	if err := a.c.Table.PutAll(items); err != nil {
		return err
	}
	c.e = e
	c.tell(Proposed, a.c.Self, "%s is proposed to the nodes", c.e.brief())
	return nil
}

// choose checks the options, and chooses the canary.
func (c *change) choose() error {
	a := c.a
	c.o.CanaryFor = max(c.o.CanaryFor, canaryFor)
	if c.o.CanaryFor > maxCanary {
		return fmt.Errorf("a canary for %s; the most is %s", c.o.CanaryFor, maxCanary)
	}
	if c.o.ConfirmWithin != 0 && (c.o.ConfirmWithin < time.Second || c.o.ConfirmWithin > maxConfirm) {
		return fmt.Errorf("%s to confirm; write 1s to %s", c.o.ConfirmWithin, maxConfirm)
	}
	if c.canary = c.o.Canary; c.canary == "" {
		c.canary = a.fittest()
	} else if c.canary != a.c.Self && !slices.Contains(a.c.Site.Live(), c.canary) {
		return fmt.Errorf("canary %s is not on-line; choose another node", c.canary)
	}
	return nil
}

// draft returns the revision as it would be proposed now, without time and id, and the
// proposals that nobody goes on with.
func (c *change) draft(text string) (e *entry, orphans []*entry, err error) {
	h, now := c.a.history(), time.Now()
	head := h.head(now)
	if head == nil {
		return nil, nil, errors.New("this node has not heard yet what the site document is; try again in a moment")
	}
	if orphans, err = c.mayFollow(h, head, text, now); err != nil {
		return nil, nil, err
	}
	r := &record{
		V: version, Number: head.Number + 1, Parent: head.id, Author: c.o.Author, Comment: c.o.Comment,
		ConfirmWithin: c.o.ConfirmWithin.Milliseconds(),
	}
	if why := r.fault(text); why != "" {
		return nil, nil, errors.New(why)
	}
	r.put(text)
	return &entry{record: r, parent: head}, orphans, nil
}

// fittest returns the node that tries a document for all: this one, but rather a peer than
// one that is not well.
func (a *Agent) fittest() balancing.NodeID {
	if !a.c.Site.Well(a.c.Self) {
		for _, id := range slices.Sorted(slices.Values(a.c.Site.Live())) {
			if a.c.Site.Well(id) {
				return id
			}
		}
	}
	return a.c.Self
}

// stampIn returns a stamp for a time to come.
func (a *Agent) stampIn(d time.Duration) cluster.Stamp {
	return cluster.Stamp(time.Now().Add(d).UnixMilli()) << 16
}

// mayFollow says why text cannot follow head, if so. What was proposed beside it and is
// orphaned does not stand in its way.
func (c *change) mayFollow(h *history, head *entry, text string, now time.Time) (orphans []*entry, err error) {
	if !head.understood() {
		return nil, fmt.Errorf("the software of this node is too old to read %s; change the document on a newer node, or update this one", head.brief())
	}
	base := head
	if c.o.Base != "" {
		if base = h.entries[c.o.Base]; base == nil {
			return nil, fmt.Errorf("base %s: %w; 'peerage site history' lists it", c.o.Base.Short(), ErrUnknown)
		}
	}
	if was, err := head.text(); err == nil && was == text {
		return nil, fmt.Errorf("%w: %s has this very text", ErrUnchanged, head.brief())
	}
	if base.id != head.id {
		return nil, conflict(base, head, text, false)
	}
	for _, p := range h.pending(now) {
		switch {
		case p.Parent != head.id:
		case c.a.isOrphan(p, now):
			orphans = append(orphans, p)
		default:
			return nil, conflict(base, p, text, true)
		}
	}
	if by := head.confirmBy(); !by.IsZero() {
		return nil, &Unconfirmed{head.brief(), by}
	}
	return orphans, nil
}

func conflict(base, theirs *entry, text string, pending bool) *Conflict {
	was, _ := base.text()
	is, _ := theirs.text()
	name := base.brief().String()
	return &Conflict{
		Base: base.brief(), Theirs: theirs.brief(), Pending: pending,
		BaseDiff: site.Diff(was, is, name, theirs.brief().String()),
		YourDiff: site.Diff(was, text, name, "yours"),
	}
}
