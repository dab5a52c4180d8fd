package cluster

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	maxEvents       = 4096
	maxEventsOctets = 128 << 20

	// compareEvery is how often digests are compared with a peer, taken by chance.
	compareEvery = time.Second

	// wantWithin is for the answer to a want, from one part to the next; beginWithin is for
	// its begin, for datagrams get lost.
	wantWithin  = 10 * time.Second
	beginWithin = 900 * time.Millisecond

	// maxSummary is the largest summary that is sent; a larger table is sent as a whole.
	maxSummary = 1 << 20

	markEvery     = time.Minute
	markSoon      = 5 * time.Second // if there are changes
	complainEvery = time.Minute

	// skewWithin is for how long a measured skew counts.
	skewWithin = time.Minute
)

// event is something for the goroutine of run. It is one of these.
type event struct {
	message bool // from the network, in body
	at      time.Time

	doc string // a change of this node to a document, a part in body

	changed string // a member has changed
	state   State

	conflict  string // two nodes of one name
	addresses [2]netip.AddrPort

	body []byte
}

// post hands an event over. If there is no room it is dropped: digests will differ.
func (m *Member) post(e event) {
	if e.at.IsZero() {
		e.at = time.Now()
	}
	n := int64(len(e.body))
	if m.queued.Add(n) <= maxEventsOctets {
		select {
		case m.events <- e:
			return
		default:
		}
	}
	m.queued.Add(-n)
	m.counters.dropped.Add(1)
}

// exchange is the state of the exchange with the peers.
type exchange struct {
	wants     map[wanted]*want
	queue     map[string][]Document // to be asked of a peer when the answer of now has come
	number    uint64                // of the latest
	advertise bool                  // there is news of a peer that others may lack
	changed   bool                  // there is news since the mark on the disk
	complain  map[complaint]time.Time
	pushed    map[string]uint64 // number of the latest push of each peer

	started, marked time.Time
	seen            time.Time // when this node last agreed with a peer, or was the only one
	before          time.Time // the same when it became stale
	source          string    // whose state is taken over
	contact         time.Time // when a stale node first heard of a peer; zero for not yet
}

type (
	wanted    struct{ peer, doc string }
	complaint struct{ peer, what string }
)

// want is a document that was asked of a peer.
type want struct {
	number uint64
	at     time.Time // of the last part
	parts  uint64
	count  uint64 // of parts, if told
	told   bool
	octets int
	staged [][]byte // parts, if the state is taken over
}

// done reports whether all has come. Each message comes by a connection of its own, so the
// end may come before the last part.
func (w *want) done() bool { return w.told && w.parts == w.count }

func (w *want) late(now time.Time) bool {
	if w.parts == 0 {
		return now.Sub(w.at) >= beginWithin
	}
	return now.Sub(w.at) >= wantWithin
}

func (x *exchange) init() {
	x.number = rand.Uint64() // answers to an earlier start of this node are not taken for one to this
	x.wants, x.queue, x.complain, x.pushed = map[wanted]*want{}, map[string][]Document{}, map[complaint]time.Time{}, map[string]uint64{}
}

// run owns the state of the exchange.
func (m *Member) run(ctx context.Context) {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	if len(m.seeds()) == 0 {
		m.setSynced()
	}
	m.keep(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-m.events:
			m.queued.Add(-int64(len(e.body)))
			m.handle(&e)
		case now := <-tick.C:
			m.tick(now)
		}
	}
}

func (m *Member) handle(e *event) {
	switch {
	case e.message:
		m.hear(e)
	case e.doc != "":
		m.counters.changes.Add(1)
		m.x.changed = true
		m.tell(e.doc, e.body)
	case e.changed != "":
		m.member(e.changed, e.state)
	case e.conflict != "":
		m.collide(Conflict{e.conflict, e.addresses[0], e.addresses[1], e.at})
	}
}

// due reports whether a complaint is due again.
func (m *Member) due(peer, what string, now time.Time) bool {
	key := complaint{peer, what}
	if last, ok := m.x.complain[key]; ok && now.Sub(last) < complainEvery {
		return false
	}
	m.x.complain[key] = now
	return true
}

func (m *Member) member(name string, s State) {
	switch s {
	case Alive:
		m.c.Log.Info("member joined", "peer", name)
		m.send(name, m.state(true))
	default:
		m.c.Log.Info("member gone", "peer", name, "state", s)
		m.forget(name)
	}
}

// forget gives up what was asked of a peer.
func (m *Member) forget(name string) {
	for key := range m.x.wants {
		if key.peer == name {
			delete(m.x.wants, key)
		}
	}
	delete(m.x.queue, name)
	delete(m.x.pushed, name)
	if m.x.source == name {
		m.x.source = ""
	}
}

// state is this node's state for a peer. It is called by memberlist too.
func (m *Member) state(ask bool) []byte {
	var flags byte
	if ask {
		flags |= flagAsk
	}
	if m.blank.Load() {
		flags |= flagBlank
	}
	l := m.stage()
	var states []digest
	if l == fresh {
		for _, d := range m.c.Documents {
			states = append(states, digest{d.Name(), d.Digest()})
		}
	}
	return stateOf(m.c.Self, flags, l, time.Now(), states)
}

// hear takes a message from the network.
func (m *Member) hear(e *event) {
	g, err := parse(e.body)
	switch {
	case errors.Is(err, errVersion):
		m.counters.unknown.Add(1)
		return
	case err != nil:
		m.counters.malformed.Add(1)
		return
	case g.from == m.c.Self:
		return
	case !m.c.Allowed(g.from):
		m.counters.strangers.Add(1)
		return
	}
	m.counters.received.Add(1)
	m.heard(&g, e.at)
	doc := m.docs[g.doc]
	if g.doc != "" && doc == nil {
		m.counters.unknown.Add(1)
	}
	switch g.kind {
	case kindChange:
		if doc != nil {
			m.change(&g, doc)
		}
	case kindPush:
		durable := doc != nil && m.merge(&g, doc) == nil
		m.acknowledge(&g, durable)
	case kindAck:
		m.answered(g.number, g.from, g.flags == 1)
	case kindState:
		m.compare(&g, e.at)
	case kindWant:
		m.give(&g, doc)
	case kindPart:
		m.part(&g, doc, e.at)
	case kindDone:
		m.done(&g)
	}
}

// acknowledge answers a push. One that comes again shows that datagrams get lost.
func (m *Member) acknowledge(g *message, durable bool) {
	ack := ackOf(m.c.Self, g.number, durable)
	if g.number <= m.x.pushed[g.from] {
		m.reliably(g.from, job{ack, [][]byte{nil}})
		return
	}
	m.x.pushed[g.from] = g.number
	m.send(g.from, ack)
}

// heard notes that a peer was heard.
func (m *Member) heard(g *message, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[g.from]
	if p == nil {
		return
	}
	p.heard = at
	switch g.kind {
	case kindState:
		p.skew, p.measured = g.sent.Sub(at), true
	case kindFarewell:
		p.farewell = true
		if p.state == Dead {
			p.state = Left
		}
	}
}

// merge takes a part into a document, and returns why not all of it.
func (m *Member) merge(g *message, doc Document) error {
	_, err := m.learn(g, doc)
	return err
}

func (m *Member) learn(g *message, doc Document) (news []byte, err error) {
	news, err = doc.Merge(g.body)
	if news != nil {
		m.counters.news.Add(1)
		m.x.advertise, m.x.changed = true, true
	}
	if err == nil {
		return news, nil
	}
	now := time.Now()
	known := false
	for _, r := range []struct {
		err     error
		counter interface{ Add(uint64) uint64 }
		message string
	}{
		{ErrClock, &m.counters.clock, "clock of a peer is ahead: what it wrote is refused"},
		{ErrFull, &m.counters.full, "document is full: what a peer wrote is refused"},
		{ErrContent, &m.counters.content, "content of a peer is refused"},
		{errPart, &m.counters.malformed, "part of a document not understood"},
	} {
		if errors.Is(err, r.err) {
			known = true
			r.counter.Add(1)
			if m.due(g.from, r.message, now) {
				m.c.Log.Error(r.message, "peer", g.from, "document", doc.Name())
			}
		}
	}
	if !known {
		m.counters.storing.Add(1)
		if m.due(m.c.Self, doc.Name(), now) {
			m.c.Log.Error("document not written", "document", doc.Name(), "err", err)
		}
	}
	return news, err
}

// change takes a change that a peer tells. If there are many peers, it is told on.
func (m *Member) change(g *message, doc Document) {
	news, _ := m.learn(g, doc) // learn has counted and logged
	if news != nil && len(m.alive()) > direct {
		m.tell(g.doc, news)
	}
}

// compare takes the state of a peer.
func (m *Member) compare(g *message, now time.Time) {
	if g.flags&flagAsk != 0 {
		m.send(g.from, m.state(false))
	}
	mine := m.stage()
	if mine != fresh {
		m.takeOver(g, mine, now)
		return
	}
	if g.level != fresh {
		return // it must not teach
	}
	theirs := map[string][32]byte{}
	for _, d := range g.states {
		theirs[d.doc] = d.sum
	}
	// In the order of Config.Documents: what one holds may be vetted by another before it.
	var differ []Document
	for _, doc := range m.c.Documents {
		if sum, ok := theirs[doc.Name()]; ok && doc.Digest() != sum {
			differ = append(differ, doc)
		}
	}
	switch {
	case len(differ) == 0:
		m.agreed(now)
	case !m.asking(g.from, now):
		m.x.queue[g.from] = differ[1:]
		m.want(g.from, differ[0], now)
	}
}

// asking reports whether a peer still answers.
func (m *Member) asking(peer string, now time.Time) bool {
	for key, w := range m.x.wants {
		if key.peer == peer && !w.late(now) {
			return true
		}
	}
	return false
}

// want asks a peer for what it has of a document and this node lacks.
func (m *Member) want(from string, doc Document, now time.Time) {
	key := wanted{from, doc.Name()}
	if w := m.x.wants[key]; w != nil && !w.late(now) {
		return
	}
	number := m.ask(key, now)
	if d, ok := doc.(differ); ok {
		if s := d.summary(); len(s) <= maxSummary {
			m.send(from, wantOf(m.c.Self, number, doc.Name(), 0), s)
			return
		}
	}
	m.send(from, wantOf(m.c.Self, number, doc.Name(), flagWhole))
}

// ask notes that a document is asked of a peer, and returns the number of the want.
func (m *Member) ask(key wanted, now time.Time) uint64 {
	m.x.number++
	m.x.wants[key] = &want{number: m.x.number, at: now}
	m.counters.wants.Add(1)
	return m.x.number
}

// give answers a want.
func (m *Member) give(g *message, doc Document) {
	if m.stage() != fresh && g.flags&flagWhole == 0 || doc == nil {
		return // the other waits, and asks another
	}
	var parts [][]byte
	if d, ok := doc.(differ); ok && g.flags&flagWhole == 0 {
		parts = d.since(g.body)
	} else {
		parts = doc.Snapshot()
	}
	if len(parts) > 0 {
		m.reliably(g.from, job{partOf(m.c.Self, g.number, g.doc), parts})
	}
	m.reliably(g.from, job{doneOf(m.c.Self, g.number, g.doc, len(parts)), [][]byte{nil}})
}

// part takes an answer to a want.
func (m *Member) part(g *message, doc Document, now time.Time) {
	w := m.x.wants[wanted{g.from, g.doc}]
	if w == nil || doc == nil || w.number != g.number {
		return // too late
	}
	w.at = now
	w.parts++
	if m.x.source != g.from {
		_ = m.merge(g, doc) // it has counted and logged
		m.finish(g.from, w)
		return
	}
	w.octets += len(g.body)
	if w.octets > maxStaged {
		m.forget(g.from)
		return
	}
	w.staged = append(w.staged, g.body)
	m.finish(g.from, w)
}

// done takes the end of the answer to a want.
func (m *Member) done(g *message) {
	w := m.x.wants[wanted{g.from, g.doc}]
	if w == nil || w.number != g.number {
		return
	}
	w.told, w.count = true, g.count
	m.finish(g.from, w)
}

// finish deals with an answer of which all has come. If parts were lost it never does, and
// after a while is asked for again.
func (m *Member) finish(from string, w *want) {
	switch {
	case !w.done():
		return
	case m.x.source == from:
		m.replace()
		return
	}
	rest := m.x.queue[from]
	m.forget(from)
	if len(rest) == 0 {
		m.setSynced()
		return
	}
	m.x.queue[from] = rest[1:]
	m.want(from, rest[0], time.Now())
}

// agreed notes that this node has what a peer has.
func (m *Member) agreed(now time.Time) {
	m.counters.agreed.Add(1)
	m.setSynced()
	first := m.blank.Swap(false)
	m.x.seen = now
	// What is younger than the mark on the disk could be taken for known to nobody.
	if first || m.x.changed && now.Sub(m.x.marked) >= markSoon {
		m.keep(now)
	}
}

// keep keeps on the disk that this node runs, and when it was seen last.
func (m *Member) keep(now time.Time) {
	m.x.marked, m.x.changed = now, false
	if err := m.c.Store.mark(m.x.seen, now); err != nil && m.due(m.c.Self, "mark", now) {
		m.c.Log.Error("time of the last agreement not written", "err", err)
	}
}

// tick does what is due every second.
func (m *Member) tick(now time.Time) {
	x := &m.x
	if now.Sub(x.started) >= 3*time.Second {
		m.setSynced()
	}
	for key, w := range x.wants {
		if w.late(now) {
			m.forget(key.peer)
		}
	}
	m.skew(now)
	peers := 1
	switch {
	case m.Stale():
		peers = direct
		if !x.contact.IsZero() && x.source == "" && now.Sub(x.contact) >= sourceWithin {
			m.c.Log.Warn("no peer knows more than this node: its state counts")
			m.refresh()
		}
	case x.advertise:
		peers = 3
	}
	x.advertise = false
	names := m.some(peers)
	m.broadcast(names, m.state(true))
	if len(names) == 0 && len(m.seeds()) == 0 {
		x.seen = now // nobody could know more
		m.blank.Store(false)
		if m.Stale() {
			m.refresh()
		}
	}
	if now.Sub(x.marked) >= markEvery {
		m.minute(now)
	}
}

func (m *Member) minute(now time.Time) {
	if !m.Stale() && !m.x.seen.IsZero() && now.Sub(m.x.seen) > m.limit() {
		m.stale(alone)
	}
	m.keep(now)
	for key, at := range m.x.complain {
		if now.Sub(at) >= complainEvery {
			delete(m.x.complain, key)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.peers {
		if p.state != Alive && !p.sending && !m.c.Allowed(name) {
			delete(m.peers, name)
		}
	}
}

// skew finds out whether this node's clock is off: against the median of its peers.
func (m *Member) skew(now time.Time) {
	type reading struct {
		peer string
		skew time.Duration
	}
	var all []reading
	m.mu.Lock()
	for name, p := range m.peers {
		if p.state == Alive && p.measured && now.Sub(p.heard) < skewWithin {
			all = append(all, reading{name, p.skew})
		}
	}
	m.mu.Unlock()
	var median reading
	if len(all) > 0 {
		slices.SortFunc(all, func(a, b reading) int { return cmp.Or(cmp.Compare(a.skew, b.skew), cmp.Compare(a.peer, b.peer)) })
		median = all[len(all)/2]
	}
	off := median.skew.Abs() > MaxAhead
	var why error
	if off {
		why = errSkew(median.peer, median.skew)
	}
	m.c.Store.Clock().setOff(why)
	if off && m.due(m.c.Self, "clock", now) {
		m.c.Log.Error("clocks differ: this node writes nothing until one of them is set", "peer", median.peer, "by", median.skew.Round(time.Millisecond), "most", MaxAhead)
	}
	// The clock was ahead and is right now: by the peers, or because there is nobody else.
	right := len(all) > 0 && !off || len(m.alive()) == 0 && len(m.seeds()) == 0
	if right && m.c.Store.Clock().mark() > horizon() {
		items, err := m.c.Store.rebase()
		if err != nil {
			m.c.Log.Error("items stamped in the future not mended", "err", err)
			return
		}
		m.c.Log.Warn("clock was ahead: what was written meanwhile is stamped anew", "items", items)
	}
}
