package sim

import (
	"slices"
	"time"

	"peerage/balancing"
)

// decide asks the shipped policy what becomes of the request that the client made at n,
// on a connection that was idle for so long.
func (s *simulation) decide(n *node, i int32, idle time.Duration) {
	c := &s.clients[i]
	v, now := &n.view, clock(s.now)
	me := n.me()
	me.Load = balancing.Load(n.load)
	r := balancing.Request{
		Position: c.position(), Owner: c.owner, Incarnation: c.incarnation,
		Movable: true,
		Hopped:  c.hops > 0 || c.hopCount > 0 && s.now-c.hopped <= s.Cooldown,
		First:   idle < 0,
		Draw1:   s.random.decision.Float64(), Draw2: s.random.decision.Float64(),
		Turn: n.turn,
	}
	if me.Load > s.Policy.Light { // below, the books cannot change the outcome
		r.Books = n.ledger.Books(now, v)
	}
	d := s.Policy.Decide(v, &r)
	switch d.Pin {
	case balancing.SetPin:
		c.owner, c.incarnation = v.Self, uint32(me.Incarnation)
	case balancing.ClearPin, balancing.DropPin:
		c.owner = ""
	}
	if d.Action != balancing.Redirect {
		n.ledger.Served(now, idle)
		s.serve(n, i)
		return
	}
	to := v.Place(d.Peer)
	if d.Reason == balancing.ReasonLighter {
		n.ledger.Redirected(now, s.Policy, v, d.Peer, r.First)
		n.turn = to + 1
	}
	s.redirect(n, s.nodes[to], i)
}

// position says where on a stateful path the client's request is.
func (c *client) position() balancing.Position {
	switch {
	case c.pinAt == 0 || c.request < c.pinAt || c.request > c.exitAt:
		return balancing.Outside
	case c.request == c.pinAt:
		return balancing.Entry
	case c.request == c.exitAt:
		return balancing.Exit
	}
	return balancing.Interior
}

// redirect tells the client to go from n to peer.
func (s *simulation) redirect(n, peer *node, i int32) {
	c := &s.clients[i]
	back := slices.Contains(c.leftBy[:], int32(peer.index)+1)
	s.stats.redirected(s, back)
	s.note("redirect", c, n, peer)
	if c.fresh {
		s.give(n, job{client: -1, work: s.Handshake.Seconds()})
	}
	c.leftBy[c.hopCount%len(c.leftBy)] = int32(n.index) + 1
	c.hopCount++
	c.hops++
	c.hopped, c.hopLoad, c.arriving = s.now, n.load, true
	c.address = int32(peer.index)
	delay := s.RTT
	if c.connected(peer) == nil {
		delay += s.connectTime()
		c.connecting = true
	}
	s.at(s.now+delay, event{kind: requestArrives, client: i})
}

// The work of a relay, in seconds of CPU time.
const (
	relayWork = 0.1e-3  // at the node that the client talks to
	peerWork  = 0.05e-3 // at the one that serves, beyond the request's own
)

// relayTo returns the peer that should do a single request of the client in place of n,
// or nil: the lighter of two that n asks. A client on a stateful path stays where it is.
func (s *simulation) relayTo(n *node, c *client) *node {
	if !s.Relay || c.owner != "" || n.pressure() < balancing.BurstBusy || len(s.nodes) < 2 {
		return nil
	}
	var best *node
	for range 2 {
		k := s.random.relay.IntN(len(s.nodes) - 1)
		if k >= n.index {
			k++
		}
		if peer := s.nodes[k]; peer.alive && peer.pressure() <= balancing.BurstFree && (best == nil || peer.pressure() < best.pressure()) {
			best = peer
		}
	}
	return best
}

// The central proxy.
const (
	proxyCores = 8
	proxyWork  = 0.1e-3 // seconds of its CPU time for a request
)

// place sends the client's request where the central balancer wants it.
func (s *simulation) place(i int32) {
	c := &s.clients[i]
	if c.request == 1 {
		c.work += s.Handshake.Seconds()
	}
	if s.proxy == nil {
		n := s.best()
		s.note("serve", c, n, nil)
		s.give(n, job{client: i, work: c.work})
		return
	}
	work := proxyWork
	if c.request == 1 { // the proxy terminates TLS
		work += s.Handshake.Seconds()
		c.work -= s.Handshake.Seconds()
	}
	s.give(s.proxy, job{client: i, work: work, passes: true})
}

// passes hands a request from the proxy to a node.
func (s *simulation) passes(j job) {
	c := &s.clients[j.client]
	var n *node
	if s.Balance == ProxyChoice {
		a, b := s.randomNode(s.random.decision), s.randomNode(s.random.decision)
		if n = a; b.pressure() < a.pressure() {
			n = b
		}
	} else {
		n = s.least()
	}
	c.extra = 2 * lan
	s.note("serve", c, n, nil)
	s.give(n, job{client: j.client, work: c.work})
}

// best returns the node where a request ends soonest: the one on which a job more runs
// fastest, and of those the lightest.
func (s *simulation) best() *node {
	var best *node
	var bestRate float64
	for _, n := range s.nodes {
		if !n.alive {
			continue
		}
		rate := n.speed * min(1, n.cores/float64(n.inProgress()+1))
		if best == nil || rate > bestRate || rate == bestRate && n.pressure() < best.pressure() {
			best, bestRate = n, rate
		}
	}
	return best
}

// least returns the node with the fewest requests in progress, a random one of those.
func (s *simulation) least() *node {
	var best *node
	from := s.random.decision.IntN(len(s.nodes))
	for k := range s.nodes {
		n := s.nodes[(from+k)%len(s.nodes)]
		if n.alive && (best == nil || n.inProgress() < best.inProgress()) {
			best = n
		}
	}
	return best
}
