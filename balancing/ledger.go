package balancing

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Books are the books of a [Ledger] at one instant. The zero value is an empty
// ledger.
type Books struct {
	Debit Load // load that was sent away in mid-visit and still shows in the own load
	Shed  Load // load that was sent away at its first request and never showed

	// Credit[i] times Worth is load sent to View.Nodes[i] that its reports do not show
	// yet. A Worth of 0 stands for 1. The slice is shared: it must not be changed.
	Credit []Load
	Worth  Load
}

// Ledger keeps the books of what this node has sent away: a redirect moves a client
// with all its later requests, which show in the loads of both nodes only after a
// delay. All books fade, somewhat slower than the load measure follows, so that what
// is booked here and what the reports show add up to about the truth.
//
// Times come from the caller. The zero value is not usable; see [NewLedger]. It is
// safe for concurrent use. No call but [Ledger.Redirected] costs more for more nodes.
type Ledger struct {
	fade time.Duration

	mu sync.Mutex

	// All amounts are kept as if they had been booked at base, when they would have been
	// worth more: so all of them fade by one factor, and none has to be touched.
	base    time.Time
	debit   Load
	shed    Load
	clients float64 // distinct clients served within fade

	ids    []NodeID // the nodes that credit is for, in the order of the views
	credit []Load   // replaced whole, for Books share it
	total  Load     // of credit
	seen   *View    // the latest view whose nodes were compared with ids
}

// settled is the age of the books, in time constants, at which they are brought up to
// date: their factor must stay within what a float64 can hold.
const settled = 50

// negligible is a credit that is not worth looking at.
const negligible = 0.01

// NewLedger returns an empty ledger whose books fade with the time constant fade
// (default 2 s).
func NewLedger(fade time.Duration) *Ledger {
	if fade <= 0 {
		fade = 2 * time.Second
	}
	return &Ledger{fade: fade}
}

// worth returns what an amount of the books is worth at now.
func (l *Ledger) worth(now time.Time) float64 {
	age := now.Sub(l.base).Seconds() / l.fade.Seconds()
	if age < 0 { // the clock was set back
		return 1
	}
	if age <= settled {
		return math.Exp(-age)
	}
	w := math.Exp(-age)
	l.base = now
	l.debit *= Load(w)
	l.shed *= Load(w)
	l.clients *= w
	l.ids, l.credit, l.total = nil, nil, 0 // e^-50 of anything is nothing
	return 1
}

// Served books a request that this node serves. idle is the time since the previous
// request of its connection, negative for the first.
func (l *Ledger) Served(now time.Time, idle time.Duration) {
	client := 1.0
	if idle >= 0 {
		client -= math.Exp(-idle.Seconds() / l.fade.Seconds())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients += client / l.worth(now)
}

// Redirected books a client that was sent to peer, as seen in v under p. first says
// that it was the first request of its connection.
func (l *Ledger) Redirected(now time.Time, p Policy, v *View, peer NodeID, first bool) {
	me, to := v.Me(), v.Place(peer)
	if me == nil || to < 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	worth := Load(l.worth(now))
	own := me.Load / Load(max(l.clients*float64(worth), 1)) / worth
	l.align(v)
	credit := own * Load(math.Sqrt(float64(p.Senders(v)))*me.Capacity/v.Nodes[to].Capacity)
	l.credit = slices.Clone(l.credit)
	l.credit[to] += credit
	l.total += credit
	if first {
		l.shed += own
	} else {
		l.debit += own
	}
}

// align brings the credits into the order of v.
func (l *Ledger) align(v *View) {
	if l.seen == v && l.credit != nil {
		return
	}
	l.seen = v
	same := len(l.ids) == len(v.Nodes)
	for i := 0; same && i < len(l.ids); i++ {
		same = l.ids[i] == v.Nodes[i].ID
	}
	if same {
		return
	}
	old := make(map[NodeID]Load, len(l.ids))
	for i, id := range l.ids {
		old[id] = l.credit[i]
	}
	l.ids, l.credit, l.total = make([]NodeID, len(v.Nodes)), make([]Load, len(v.Nodes)), 0
	for i := range v.Nodes {
		l.ids[i] = v.Nodes[i].ID
		l.credit[i] = old[l.ids[i]]
		l.total += l.credit[i]
	}
}

// Books returns the books at now, with the credits in the order of v.Nodes.
func (l *Ledger) Books(now time.Time, v *View) Books {
	l.mu.Lock()
	defer l.mu.Unlock()
	worth := Load(l.worth(now))
	b := Books{Debit: l.debit * worth, Shed: l.shed * worth}
	if l.total*worth >= negligible {
		l.align(v)
		b.Credit, b.Worth = l.credit, worth
	}
	return b
}
