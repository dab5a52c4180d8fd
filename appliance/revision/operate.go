package revision

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"peerage/appliance/site"
	"peerage/balancing"
)

// Head returns the revision in force, with its text; nil if this node has not heard of one
// yet.
func (a *Agent) Head() *Revision {
	if e := a.history().head(time.Now()); e != nil {
		return e.revision()
	}
	return nil
}

// Entry is a revision in the history.
type Entry struct {
	Revision
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why it was withdrawn or rolled back

	// ConfirmBy is the time until which it must be confirmed, if it must.
	ConfirmBy time.Time `json:"confirm_by,omitzero"`
}

// State is what has become of a revision.
type State string

const (
	OnVote        State = "proposed"
	OnCanary      State = "canary"
	WasWithdrawn  State = "withdrawn"
	InForce       State = "in force" // the head
	OnTrial       State = "on trial" // the head, and not confirmed yet though it must be
	Past          State = "past"     // the head came from it
	WasRolledBack State = "rolled back"
	Apart         State = "conflict" // was put into force apart from the head
	Settled       State = "settled"  // was a conflict
)

// History returns the revisions without their texts, the newest first.
func (a *Agent) History() []Entry {
	h, now := a.history(), time.Now()
	return h.list(now)
}

func (h *history) list(now time.Time) []Entry {
	chain, apart := h.chain(now), map[ID]bool{}
	for _, e := range h.conflicts(now) {
		for ; e != nil && !chain[e.id]; e = e.parent {
			apart[e.id] = true
		}
	}
	reverted := map[ID]string{}
	for _, e := range h.entries {
		if h.inForce(e) && e.isRollBack() {
			reverted[e.Parent] = e.phases[phaseAll].reason()
		}
	}
	all := slices.SortedFunc(maps.Values(h.entries), func(a, b *entry) int { return compare(b, a) })
	list := make([]Entry, len(all))
	head := h.head(now)
	for i, e := range all {
		x := Entry{Revision: *e.brief(), ConfirmBy: e.confirmBy()}
		why, back := reverted[e.id]
		switch {
		case e == head && !x.ConfirmBy.IsZero():
			x.State = OnTrial
		case e == head:
			x.State, x.Reason = InForce, e.phases[phaseAll].reason()
		case back:
			x.State, x.Reason = WasRolledBack, why
		case chain[e.id]:
			x.State = Past
		case apart[e.id]:
			x.State = Apart
		case h.inForce(e):
			x.State = Settled
		case e.isVoid():
			x.State, x.Reason = WasWithdrawn, fmt.Sprintf("revision %d was confirmed meanwhile", e.parent.Number)
		case !e.isPending(now):
			x.State, x.Reason = WasWithdrawn, cmp.Or(e.phases[phaseWithdrawn].reason(), "its proposer has not gone on in time")
		case e.has(phaseCanary):
			x.State = OnCanary
		default:
			x.State = OnVote
		}
		if e != head {
			x.ConfirmBy = time.Time{}
		}
		list[i] = x
	}
	return list
}

func (p *phase) reason() string {
	if p == nil {
		return ""
	}
	return p.Reason
}

// Get returns the revision that ref names, with its text: "head" or "", a number, or an id
// or the first eight digits of one or more.
func (a *Agent) Get(ref string) (*Revision, error) {
	h := a.history()
	e, err := h.find(ref, time.Now())
	if err != nil {
		return nil, err
	}
	return e.revision(), nil
}

// find returns the revision that ref names. Of several with the same number it is the one
// that the head came from.
func (h *history) find(ref string, now time.Time) (*entry, error) {
	if ref == "" || ref == "head" {
		if e := h.head(now); e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("the head: %w: this node has not heard of it yet", ErrUnknown)
	}
	var found []*entry
	if n, err := strconv.Atoi(ref); err == nil && len(ref) < 8 {
		chain := h.chain(now)
		for _, e := range h.entries {
			if e.Number == n && chain[e.id] {
				return e, nil
			}
			if e.Number == n {
				found = append(found, e)
			}
		}
	} else if len(ref) >= 8 {
		for id, e := range h.entries {
			if strings.HasPrefix(string(id), ref) {
				found = append(found, e)
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("revision %q: %w; 'peerage site history' lists the numbers and ids", ref, ErrUnknown)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, e.id.Short())
	}
	slices.Sort(ids)
	return nil, fmt.Errorf("revision %q: there are several, %s; name the one by its id", ref, strings.Join(ids, ", "))
}

// Diff returns what differs between two revisions in the unified form.
func (a *Agent) Diff(from, to string) (string, error) {
	h, now := a.history(), time.Now()
	x, err := h.find(from, now)
	if err != nil {
		return "", err
	}
	y, err := h.find(to, now)
	if err != nil {
		return "", err
	}
	p, q := x.revision(), y.revision()
	return site.Diff(p.Text, q.Text, p.String(), q.String()), nil
}

// Confirm ends the trial of the revision that ref names, which must be the head: it stays.
func (a *Agent) Confirm(ref, who string) (*Revision, error) {
	h, now := a.history(), time.Now()
	e, err := h.find(ref, now)
	if err != nil {
		return nil, fmt.Errorf("confirm: %w", err)
	}
	head := h.head(now)
	switch {
	case head == nil || e.id != head.id:
		return nil, fmt.Errorf("confirm %s: it is not in force; 'peerage site history' says what has become of it", e.brief())
	case e.has(phaseConfirmed):
		return e.brief(), nil
	case e.watchUntil().IsZero() || !now.Before(e.watchUntil()):
		return nil, fmt.Errorf("confirm %s: nothing to confirm, it stays as it is", e.brief())
	}
	if err := a.c.Table.Put(phaseKey(e.id, phaseConfirmed), encode(phase{Who: who, When: a.c.Clock.Now()}), time.Time{}); err != nil {
		return nil, fmt.Errorf("confirm %s: %w", e.brief(), err)
	}
	return e.brief(), nil
}

// Rollback brings back the text of the revision that ref names; "" is the one that was in
// force before. While the head is on trial its parent comes back at once, without votes: every
// node has served it just before. Else it is a change like any other.
func (a *Agent) Rollback(ctx context.Context, ref string, o Options, progress func(Event)) (*Revision, error) {
	h, now := a.history(), time.Now()
	head := h.head(now)
	if head == nil {
		return nil, fmt.Errorf("roll back: the head: %w: this node has not heard of it yet", ErrUnknown)
	}
	e := head.parent
	if head.isRollBack() { // not back to what was rolled back
		e = head.parent.parent.parent
	}
	if ref != "" {
		var err error
		if e, err = h.find(ref, now); err != nil {
			return nil, fmt.Errorf("roll back: %w", err)
		}
	}
	if e == nil {
		return nil, fmt.Errorf("roll back: there is nothing before %s", head.brief())
	}
	if e == head.parent && now.Before(head.watchUntil()) {
		if r := h.rollBack(head); r != nil {
			if err := a.c.Table.PutAll(a.rollBackItems(r, "by "+o.Author)); err != nil {
				return nil, fmt.Errorf("roll back %s: %w", head.brief(), err)
			}
			return a.Head(), nil // as a rule r, but what was made apart from the head may come next
		}
	}
	if !e.understood() {
		return nil, fmt.Errorf("roll back to %s: the software of this node is too old to read it", e.brief())
	}
	o.Base = head.id
	o.Comment = cmp.Or(o.Comment, fmt.Sprintf("rolls back to revision %d", e.Number))
	return a.Apply(ctx, e.revision().Text, o, progress)
}

// Dismiss takes a revision off the list of conflicts. It stays in the history.
func (a *Agent) Dismiss(ref, who string) error {
	h, now := a.history(), time.Now()
	e, err := h.find(ref, now)
	if err != nil {
		return fmt.Errorf("dismiss: %w", err)
	}
	if !slices.Contains(h.conflicts(now), e) {
		return fmt.Errorf("dismiss %s: it is not a conflict", e.brief())
	}
	if err := a.c.Table.Put(phaseKey(e.id, phaseDismissed), encode(phase{Who: who, When: a.c.Clock.Now()}), time.Time{}); err != nil {
		return fmt.Errorf("dismiss %s: %w", e.brief(), err)
	}
	return nil
}

// Status is what the agent knows.
type Status struct {
	Head      *Entry         `json:"head"` // null until this node has heard of one
	Running   ID             `json:"running,omitempty"`
	Trouble   string         `json:"trouble,omitempty"` // why this node does not serve what it should
	Pending   []Entry        `json:"pending,omitempty"`
	Conflicts []Entry        `json:"conflicts,omitempty"`
	Nodes     []NodeRevision `json:"nodes"` // of those that have said so lately
}

// Trouble says why this node does not serve what it should, "" if it does.
func (a *Agent) Trouble() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trouble
}

// NodeRevision is what a node serves.
type NodeRevision struct {
	Node   balancing.NodeID `json:"node"`
	ID     ID               `json:"id"`
	Number int              `json:"number"`
	Since  time.Time        `json:"since"`
	Failed string           `json:"failed,omitempty"` // why it does not serve the head
}

// Status returns what the agent knows.
func (a *Agent) Status() Status {
	h, now := a.history(), time.Now()
	a.mu.Lock()
	s := Status{Running: a.running, Trouble: a.trouble}
	a.mu.Unlock()
	conflicts := map[ID]bool{}
	for _, e := range h.conflicts(now) {
		conflicts[e.id] = true
	}
	head := h.head(now)
	for _, x := range h.list(now) {
		switch {
		case head != nil && x.ID == head.id:
			s.Head = &x
		case x.State == OnVote || x.State == OnCanary:
			s.Pending = append(s.Pending, x)
		case conflicts[x.ID]:
			s.Conflicts = append(s.Conflicts, x)
		}
	}
	if s.Head == nil && head != nil { // a roll-back that could not be written down
		s.Head = &Entry{Revision: *head.brief(), State: InForce}
	}
	s.Nodes = h.nodes(head)
	return s
}

// nodes returns what each node serves.
func (h *history) nodes(head *entry) []NodeRevision {
	serves := map[balancing.NodeID]NodeRevision{}
	for _, e := range h.entries {
		for id, w := range e.words {
			if at := w.Applied.Time(); w.Applied != 0 && at.After(serves[id].Since) {
				serves[id] = NodeRevision{Node: id, ID: e.id, Number: e.Number, Since: at}
			}
		}
	}
	for id, s := range serves {
		if head != nil && s.ID != head.id {
			if w := head.word(id); w.Failed != 0 {
				s.Failed = w.Why
				serves[id] = s
			}
		}
	}
	return slices.SortedFunc(maps.Values(serves), func(a, b NodeRevision) int { return cmp.Compare(a.Node, b.Node) })
}

// forget ends what Changed began.
func (a *Agent) forget(ch <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = slices.DeleteFunc(a.watchers, func(w chan struct{}) bool { return w == ch })
}
