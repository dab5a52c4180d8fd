package balancing

import (
	"math"
	"sync"
	"time"
)

// Books are the books of a [Ledger] at one instant. The zero value is an empty
// ledger.
type Books struct {
	Debit  Load   // load that was sent away in mid-visit and still shows in the own load
	Shed   Load   // load that was sent away at its first request and never showed
	Credit []Load // load sent to View.Nodes[i] that its reports do not show yet
}

// Ledger keeps the books of what this node has sent away: a redirect moves a client
// with all its later requests, which show in the loads of both nodes only after a
// delay. All books fade with the time constant of the load measure, so that what is
// booked here and what the reports show add up to the truth.
//
// Times come from the caller. The zero value is not usable; see [NewLedger]. It is
// safe for concurrent use.
type Ledger struct {
	fade time.Duration

	mu      sync.Mutex
	at      time.Time
	debit   Load
	shed    Load
	clients float64 // distinct clients served within fade
	credit  map[NodeID]Load
}

// NewLedger returns an empty ledger whose books fade with the time constant fade
// (default 2 s).
func NewLedger(fade time.Duration) *Ledger {
	if fade <= 0 {
		fade = 2 * time.Second
	}
	return &Ledger{fade: fade, credit: make(map[NodeID]Load)}
}

// advance lets the books fade up to now.
func (l *Ledger) advance(now time.Time) {
	passed := now.Sub(l.at)
	if passed <= 0 {
		return
	}
	l.at = now
	f := math.Exp(-passed.Seconds() / l.fade.Seconds())
	l.debit *= Load(f)
	l.shed *= Load(f)
	l.clients *= f
	for id, c := range l.credit {
		if c *= Load(f); c < 0.01 {
			delete(l.credit, id)
		} else {
			l.credit[id] = c
		}
	}
}

// Served books a request that this node serves. idle is the time since the previous
// request of its connection, negative for the first.
func (l *Ledger) Served(now time.Time, idle time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	if idle < 0 {
		l.clients++
		return
	}
	l.clients += 1 - math.Exp(-idle.Seconds()/l.fade.Seconds())
}

// Redirected books a client that was sent to peer, as seen in v under p. first says
// that it was the first request of its connection.
func (l *Ledger) Redirected(now time.Time, p Policy, v *View, peer NodeID, first bool) {
	me, to := v.Me(), v.Node(peer)
	if me == nil || to == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	own := me.Load / Load(max(l.clients, 1))
	l.credit[peer] += own * Load(math.Sqrt(float64(p.Senders(v)))*me.Capacity/to.Capacity)
	if first {
		l.shed += own
	} else {
		l.debit += own
	}
}

// Books returns the books at now, with the credits in the order of v.Nodes.
func (l *Ledger) Books(now time.Time, v *View) Books {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	b := Books{Debit: l.debit, Shed: l.shed}
	if len(l.credit) > 0 {
		b.Credit = make([]Load, len(v.Nodes))
		for i := range v.Nodes {
			b.Credit[i] = l.credit[v.Nodes[i].ID]
		}
	}
	return b
}
