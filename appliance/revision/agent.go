package revision

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// Agent keeps this node at the site's document, and changes the document. Its methods can
// be called at any time; what they begin goes on while Run runs.
type Agent struct {
	c       Config
	changed <-chan struct{} // of the table
	began   cluster.Stamp

	deciding sync.Mutex // held while a vote or a proposal is written down: one after the other

	mu       sync.Mutex // guards what follows; never held over what can take long
	reader   *reader
	digest   [32]byte // of the table that latest was read from
	latest   *history
	running  ID     // what this node serves; "" until that is known
	text     string // of that
	trouble  string // why it does not serve what it should
	watchers []chan struct{}
	gone     map[balancing.NodeID]time.Time // since when, of those who have proposed something

	// Of Run alone.
	faults    map[ID]error // what the check of a proposal has said, until there is a vote
	tried     map[ID]attempt
	settling  *settling
	wellWith  map[ID]map[balancing.NodeID]bool // who was well before a revision came into force
	sickSince map[balancing.NodeID]time.Time
	unwritten string // the last error of the table, for the log
}

// attempt is a revision that this node could not serve.
type attempt struct {
	again time.Time
	pause time.Duration
}

// settling is a revision that this node has just begun to serve.
type settling struct {
	id    ID
	until time.Time
}

const (
	retryFirst = 5 * time.Second
	retryMost  = 5 * time.Minute

	// tickBusy is how often the world is looked at while something is on trial, tickIdle
	// while nothing is. Changes of the table are seen at once.
	tickBusy = 50 * time.Millisecond
	tickIdle = time.Second
)

// New returns an agent that does nothing yet.
func New(c Config) *Agent {
	a := &Agent{
		c: c, changed: c.Table.Watch(), began: c.Clock.Now(), reader: newReader(c.Name), text: c.Running,
		tried: map[ID]attempt{}, wellWith: map[ID]map[balancing.NodeID]bool{}, sickSince: map[balancing.NodeID]time.Time{},
	}
	a.history() // what comes later is news
	return a
}

// Run votes on what is proposed, serves what is in force, and rolls back what goes wrong,
// until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.recover()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
		case <-tick.C:
		}
		if a.step(ctx) {
			tick.Reset(tickBusy)
		} else {
			tick.Reset(tickIdle)
		}
	}
}

// recover finds out what the node serves, and whether its process died while it began to
// serve something. It gives up what the process had proposed: nobody goes on with that, and
// until its time is over nothing else could be proposed.
func (a *Agent) recover() {
	h := a.history()
	now := time.Now()
	for _, e := range h.entries {
		w := e.word(a.c.Self)
		if w.Applying > max(w.Applied, w.Failed) {
			w.Failed, w.Why = a.c.Clock.Now(), "its process ended while it began to serve the revision"
			a.say(e, w)
			a.tried[e.id] = attempt{now.Add(retryFirst), retryFirst}
		}
		if p := e.phases[phaseProposed]; p != nil && p.Who == string(a.c.Self) && p.When <= a.began && e.isPending(now) {
			a.written(a.withdraw(e.id, "the process of its proposer has ended"))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var best *entry
	for _, e := range h.entries {
		if h.inForce(e) && (best == nil || compare(e, best) > 0) && e.hasText(a.text) {
			best = e
		}
	}
	if best != nil {
		a.running = best.id
	}
}

// history reads the table.
func (a *Agent) history() *history {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d := a.c.Table.Digest(); a.latest == nil || d != a.digest { // taken before the items: too old does no harm
		a.digest, a.latest = d, a.reader.read(a.c.Table.Items(""))
	}
	return a.latest
}

// step does what is to be done now. It reports whether something is on trial.
func (a *Agent) step(ctx context.Context) (busy bool) {
	a.voteOn()
	h, now := a.history(), time.Now()
	a.watch(h, now)
	a.watchProposers(h, now)
	if h.head(now) != nil && a.rollBackDue(h, now) {
		h = a.history()
	}
	if e := h.effective(a.c.Self, now); e != nil {
		a.serve(ctx, e, now)
	}
	a.settle(now)
	if drop := a.history().excess(); len(drop) > 0 {
		a.written(a.c.Table.Drop(drop...))
	}
	a.signal()
	h, now = a.history(), time.Now()
	head := h.head(now)
	return a.settling != nil || len(h.pending(now)) > 0 || head != nil && now.Before(head.watchUntil())
}

// say writes what this node says of e.
func (a *Agent) say(e *entry, w word) {
	a.written(a.c.Table.Put(nodeKey(e.id, a.c.Self), encode(w), time.Time{}))
}

// withdraw gives up a revision that this node has proposed.
func (a *Agent) withdraw(id ID, reason string) error {
	p := phase{Who: string(a.c.Self), When: a.c.Clock.Now(), Reason: cut(reason, maxSays)}
	return a.c.Table.Put(phaseKey(id, phaseWithdrawn), encode(p), time.Time{})
}

// written tells the log that the table could not be written, but not over and over.
func (a *Agent) written(err error) {
	switch {
	case err == nil:
		a.unwritten = ""
	case a.unwritten != err.Error():
		a.unwritten = err.Error()
		a.c.Log.Error("site history not written", "err", err)
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // none of ours can fail
	}
	return b
}

// rollBackDue writes down a roll-back that is due.
func (a *Agent) rollBackDue(h *history, now time.Time) bool {
	r := h.head(now)
	if r.has(phaseAll) || r.has(phaseConfirmed) {
		return false
	}
	reason := h.rollBackReason(r.parent, now)
	err := a.c.Table.PutAll(a.rollBackItems(r, reason))
	a.written(err)
	if err == nil { // else it is tried over and over
		a.c.Log.Warn("site document rolled back", "rev", r.parent.brief().String(), "reason", reason)
	}
	return err == nil
}

func (a *Agent) rollBackItems(r *entry, reason string) map[string][]byte {
	items := map[string][]byte{phaseKey(r.id, phaseAll): encode(phase{Who: string(a.c.Self), When: a.c.Clock.Now(), Reason: reason})}
	if r.Signature == nil {
		items[revKey(r.id)] = a.sign(r.record)
	}
	return items
}

// sign returns the value of a record that this node vouches for.
func (a *Agent) sign(r *record) []byte {
	text, err := r.text()
	if err != nil {
		panic(err) // it was packed here
	}
	r.Signer = string(a.c.Self)
	r.Signature = a.c.Sign(signed(r.sum(a.c.Name, text)))
	return encode(r)
}

// serve makes this node serve e.
func (a *Agent) serve(ctx context.Context, e *entry, now time.Time) {
	a.mu.Lock()
	running, text := a.running, a.text
	a.mu.Unlock()
	w := e.word(a.c.Self)
	if running == e.id || e.hasText(text) { // under whatever name: nothing need be touched
		if running != e.id || w.Applied == 0 && w.Failed == 0 {
			w.Applied = a.c.Clock.Now()
			w.Settled = w.Applied
			a.say(e, w)
		}
		a.set(e.id, text, "")
		return
	}
	last, failed := a.tried[e.id]
	if failed && now.Before(last.again) {
		return
	}
	why := a.try(ctx, e, w)
	if why == "" {
		clear(a.tried)
		text, _ = e.text()
		a.set(e.id, text, "")
		return
	}
	if ctx.Err() != nil {
		return
	}
	pause := min(max(2*last.pause, retryFirst), retryMost)
	a.tried[e.id] = attempt{time.Now().Add(pause), pause}
	a.set(running, text, fmt.Sprintf("%s: %s", e.brief(), why))
	a.c.Log.Error("site document not served", "rev", e.brief().String(), "err", why)
}

// try makes this node serve e, whatever that takes, or says why it does not.
func (a *Agent) try(ctx context.Context, e *entry, w word) (why string) {
	if !e.understood() {
		return "the software of this node is too old to read it; update the node"
	}
	r := e.revision()
	if err := a.c.Site.Check(r.Text); err != nil {
		return err.Error()
	}
	wasSettled := a.c.Site.Settled()
	w.Applying = a.c.Clock.Now()
	a.say(e, w) // before anything is done: the process may die of it
	within, cancel := context.WithTimeout(ctx, applyWithin)
	err := a.c.Site.Apply(within, r)
	cancel()
	switch {
	case err == nil:
		w.Applied = a.c.Clock.Now()
		a.settling = &settling{e.id, time.Now().Add(settleWithin)}
		if !wasSettled { // what was not well before does not speak against the revision
			a.settling, w.Settled = nil, w.Applied
		}
		a.c.Log.Info("site document served", "rev", e.brief().String())
	case ctx.Err() != nil:
		w.Applying = 0
		why = err.Error()
	default:
		why = err.Error()
		if w.Failed == 0 {
			w.Failed, w.Why = a.c.Clock.Now(), cut(why, maxSays)
		}
	}
	a.say(e, w)
	return why
}

// settle waits for this node to be well with what it has begun to serve.
func (a *Agent) settle(now time.Time) {
	s := a.settling
	if s == nil {
		return
	}
	e := a.history().entries[s.id]
	a.mu.Lock()
	running := a.running
	a.mu.Unlock()
	switch {
	case e == nil || running != s.id:
		a.settling = nil
	case a.c.Site.Settled():
		a.settling = nil
		w := e.word(a.c.Self)
		w.Settled = a.c.Clock.Now()
		a.say(e, w)
	case !now.Before(s.until):
		a.settling = nil
		w := e.word(a.c.Self)
		w.Failed, w.Why = a.c.Clock.Now(), fmt.Sprintf("it has not passed its own check within %s", settleWithin)
		a.say(e, w)
	}
}

// watch looks for nodes that turn sick with the head. One that went off-line is not sick:
// its cable may have been pulled.
func (a *Agent) watch(h *history, now time.Time) {
	live := map[balancing.NodeID]bool{a.c.Self: true}
	for _, id := range a.c.Site.Live() {
		live[id] = true
	}
	head := h.head(now)
	watched := map[ID]bool{}
	for _, e := range append(h.pending(now), head) {
		if e == nil || e == head && !now.Before(e.watchUntil()) {
			continue
		}
		watched[e.id] = true
		if a.wellWith[e.id] == nil {
			a.wellWith[e.id] = map[balancing.NodeID]bool{}
			for id := range live {
				a.wellWith[e.id][id] = a.c.Site.Well(id)
			}
		}
	}
	maps.DeleteFunc(a.wellWith, func(id ID, _ map[balancing.NodeID]bool) bool { return !watched[id] })
	for id := range a.sickSince {
		if !live[id] || a.c.Site.Well(id) {
			delete(a.sickSince, id)
		}
	}
	if head == nil || !watched[head.id] {
		return
	}
	w := head.word(a.c.Self)
	saw := len(w.Saw)
	well := a.wellWith[head.id]
	for _, id := range slices.Sorted(maps.Keys(well)) {
		switch {
		case !well[id]:
		case !live[id]:
			delete(well, id)
		case !a.c.Site.Well(id):
			if a.sickSince[id].IsZero() {
				a.sickSince[id] = now
			}
			if now.Sub(a.sickSince[id]) < sickFor {
				continue
			}
			delete(well, id)
			w.Saw = append(slices.Clip(w.Saw), sight{id, a.c.Clock.Now()})
		}
	}
	if len(w.Saw) > saw {
		a.say(head, w)
	}
}

// set notes what this node serves, and why it does not serve what it should.
func (a *Agent) set(running ID, text, trouble string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running, a.text, a.trouble = running, text, trouble
}

// Changed returns a channel of capacity 1 that gets a value after the history, or what
// this node serves, has changed.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	ch := make(chan struct{}, 1)
	a.watchers = append(a.watchers, ch)
	return ch
}

func (a *Agent) signal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ch := range a.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Import makes text the first revision if there is none. It is the same on every node that
// begins with the same text. Nodes that can hear others should have heard them first.
func (a *Agent) Import(text string) error {
	if len(a.history().entries) > 0 {
		return nil
	}
	r := &record{V: version, Number: 1, Author: siteAuthor}
	if why := r.fault(text); why != "" {
		return fmt.Errorf("first revision of the site document: %s", why)
	}
	id := idOf(r.sum(a.c.Name, text))
	r.put(text)
	err := a.c.Table.PutAll(map[string][]byte{
		revKey(id):             a.sign(r),
		phaseKey(id, phaseAll): encode(phase{Who: string(a.c.Self), When: a.c.Clock.Now()}),
	})
	if err != nil {
		return fmt.Errorf("first revision of the site document: %w", err)
	}
	return nil
}
