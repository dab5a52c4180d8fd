package sim

import (
	"time"

	"peerage/balancing"
)

// dies takes n from the site, with all that is in progress on it.
func (s *simulation) dies(n *node) {
	n.advance(s.now)
	n.alive = false
	for n.jobs.len() > 0 {
		s.loses(n.jobs.pop())
	}
	for _, j := range n.waiting {
		s.loses(j)
	}
	n.waiting = nil
	s.changed(n)
	for _, peer := range s.nodes {
		if peer != n {
			s.watch(peer, n)
		}
	}
}

// loses gives up a job of a node that died.
func (s *simulation) loses(j job) {
	if j.client < 0 {
		return
	}
	s.stats.lost(s)
	s.note("lost", &s.clients[j.client], nil, nil)
	s.goesOn(j.client)
}

// standIn moves the address of a dead node to the lightest node that is left, once that
// has seen for itself that the node is off-line. A silence that is only the loss of
// reports moves nothing: the node still defends its address.
func (s *simulation) standIn(peer, n *node) {
	if n.alive || s.holder[n.index] != int32(n.index) {
		return
	}
	heir := -1
	for i := range peer.view.Nodes {
		v := &peer.view.Nodes[i]
		if v.Serves() && (heir < 0 || v.Load < peer.view.Nodes[heir].Load) {
			heir = i
		}
	}
	switch {
	case heir == peer.index:
		s.holder[n.index] = int32(heir)
	case heir >= 0 && s.now >= s.nodes[heir].report.silent[n.index]:
		s.holder[n.index] = int32(heir)
	}
}

// returns starts n again. It knows nothing, and listens before it serves.
func (s *simulation) returns(n *node) {
	n.alive = true
	n.advance(s.now)
	n.load = 0
	n.ledger = balancing.NewLedger(s.Fade)
	n.report.incarnation++
	n.report.state = balancing.Joining
	for i := range n.view.Nodes {
		if i != n.index {
			n.view.Nodes[i].Online = false
		}
	}
	me := n.me()
	me.State, me.Incarnation = balancing.Joining, n.report.incarnation
	s.send(n)
	s.scheduleNext(n)
	s.at(s.now+time.Duration(s.OfflineAfter)*s.Period, event{kind: nodeReady, node: int32(n.index)})
}

// ready lets n serve again, and gives its address back to it.
func (s *simulation) ready(n *node) {
	n.report.state = balancing.OK
	n.me().State = balancing.OK
	s.holder[n.index] = int32(n.index)
	s.send(n)
}
