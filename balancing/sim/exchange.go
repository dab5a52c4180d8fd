package sim

import (
	"math"
	"time"

	"peerage/balancing"
)

const (
	jump    = 25                     // points of load that are worth an early report
	between = 100 * time.Millisecond // it and the one before, at least
)

// clock turns virtual time into what the ledgers and views of the product use.
func clock(t time.Duration) time.Time { return time.Unix(0, int64(t)) }

func (s *simulation) startExchange() {
	if !s.exchanges {
		return
	}
	for _, n := range s.nodes {
		for i := range n.report.silent {
			n.report.silent[i] = time.Duration(s.OfflineAfter) * s.Period
		}
		s.schedule(n, time.Duration(s.random.exchange.Float64()*float64(s.Period)))
	}
}

func (s *simulation) schedule(n *node, at time.Duration) {
	n.report.due = at
	s.at(at, event{kind: reportDue, node: int32(n.index)})
}

func (s *simulation) reportIsDue(n *node) {
	if n.alive && n.report.due == s.now { // else n has died since, and perhaps come back
		s.send(n)
		s.scheduleNext(n)
	}
}

// scheduleNext sets the time of the next regular report. The period varies by a tenth, so
// that the nodes do not fall into step. An early report does not put it off.
func (s *simulation) scheduleNext(n *node) {
	s.schedule(n, s.now+time.Duration(float64(s.Period)*(0.9+0.2*s.random.exchange.Float64())))
}

// send lets n report.
func (s *simulation) send(n *node) {
	n.advance(s.now)
	n.report.load = balancing.Load(n.load)
	n.report.sent = s.now
	s.at(s.now+lan, event{kind: reportArrives, node: int32(n.index)})
}

// reportEarly lets n report before its time if its load has crossed L1 or changed by
// much. A report that comes too soon after the last is caught up by the next change.
func (s *simulation) reportEarly(n *node) {
	r := &n.report
	load := balancing.Load(n.load)
	if s.now-r.sent < between {
		return
	}
	if (load > s.Policy.Light) != (r.load > s.Policy.Light) || math.Abs(float64(load-r.load)) > jump {
		s.send(n)
	}
}

// deliver takes the report of n to its peers.
func (s *simulation) deliver(n *node) {
	deadline := s.now + time.Duration(s.OfflineAfter)*s.Period
	for _, peer := range s.nodes {
		if peer == n || !peer.alive {
			continue
		}
		if s.Loss > 0 && s.random.exchange.Float64() < s.Loss {
			s.watch(peer, n)
			continue
		}
		told := &peer.view.Nodes[n.index]
		told.Online, told.State = true, n.report.state
		told.Load, told.Incarnation = n.report.load, n.report.incarnation
		peer.report.silent[n.index] = deadline
	}
}

// watch makes peer judge n at the end of its patience.
func (s *simulation) watch(peer, n *node) {
	s.at(max(peer.report.silent[n.index], s.now), event{kind: silenceJudged, node: int32(n.index), peer: int32(peer.index)})
}

// judge decides whether n is off-line for peer.
func (s *simulation) judge(peer, n *node) {
	if s.now < peer.report.silent[n.index] || !peer.alive {
		return // something was heard meanwhile
	}
	peer.view.Nodes[n.index].Online = false
	s.standIn(peer, n)
}
