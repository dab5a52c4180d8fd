package sim

import (
	"math/rand/v2"
	"strconv"
	"time"

	"peerage/balancing"
)

// client is a visitor during one visit.
type client struct {
	random rand.PCG // its own wishes; see stream

	number  int   // of the visit, 0 for the first
	request int   // that it makes now, 1 for the first
	last    int   // of the visit
	address int32 // that it talks to
	pinAt   int   // request that enters a stateful path, 0 for none
	exitAt  int   // request that leaves it

	owner       balancing.NodeID // that it is pinned to
	incarnation uint32

	connections [4]connection
	oldest      int // place in connections that is taken next
	connecting  bool

	// The request under way.

	began  time.Duration // when it first met a node, or the silence of one; 0 before
	extra  time.Duration // that the answer takes between nodes
	work   float64       // seconds
	hops   int
	fresh  bool // its connection is new: the node has a TLS handshake to do
	silent bool // it met the silence of a dead node

	// The latest redirect.

	hopped   time.Duration
	hopLoad  float64  // of the node that sent it away
	arriving bool     // it has not yet arrived
	leftBy   [4]int32 // nodes that sent it away, plus 1; 0 for none
	hopCount int
}

// connection is an open one.
type connection struct {
	node        int32 // plus 1; 0 for none
	incarnation uint64
	used        time.Duration // when it last carried a request
}

// connected returns the client's open connection to n, or nil.
func (c *client) connected(n *node) *connection {
	for i := range c.connections {
		k := &c.connections[i]
		if k.node == int32(n.index)+1 && k.incarnation == n.report.incarnation {
			return k
		}
	}
	return nil
}

// connect opens a connection to n, and closes the oldest if there are many.
func (c *client) connect(n *node) *connection {
	k := &c.connections[c.oldest]
	c.oldest = (c.oldest + 1) % len(c.connections)
	*k = connection{node: int32(n.index) + 1, incarnation: n.report.incarnation}
	return k
}

// retry is how long a client waits that meets silence.
const retry = time.Second

// startVisits begins with a site in full swing: as many visits are under way, and as far,
// as there would be after a long time, and evenly. How uneven it becomes is up to the DNS
// and the rule.
func (s *simulation) startVisits() {
	capacity := 0.0 // seconds of work in a second
	for _, n := range s.nodes {
		capacity += n.cores * n.speed
	}
	s.gap = float64(s.Service) * s.Session / (capacity * s.Load / 100)
	if !s.Cold {
		between := s.Think + s.RTT + s.Service // two requests of a visit
		for range int((s.Session - 1) * float64(between) / s.gap) {
			i := s.newClient()
			c := &s.clients[i]
			if s.FixedSize {
				c.last = 1 + s.visitors.IntN(c.last)
			}
			c.address = int32(s.visitors.IntN(len(s.nodes)))
			s.at(pause(s.visitors, between), event{kind: requestArrives, client: i})
		}
	}
	s.scheduleVisit()
}

func (s *simulation) scheduleVisit() {
	s.at(s.now+time.Duration(s.gap*s.random.arrivals.ExpFloat64()), event{kind: visitStarts})
}

func (s *simulation) visitStarts() {
	s.at(s.now, event{kind: requestArrives, client: s.newClient()})
	s.scheduleVisit()
}

// as makes s.visitors draw from the stream of c.
func (s *simulation) as(c *client) { s.streams.PCG = &c.random }

// newClient returns a client with all that it will want, and the address that the DNS
// gave it.
func (s *simulation) newClient() int32 {
	var i int32
	if k := len(s.free); k > 0 {
		i = s.free[k-1]
		s.free = s.free[:k-1]
	} else {
		i = int32(len(s.clients))
		s.clients = append(s.clients, client{})
	}
	c := &s.clients[i]
	*c = client{number: s.stats.visits, request: 1, connecting: true}
	s.stats.visits++
	c.random.Seed(s.random.arrivals.Uint64(), s.random.arrivals.Uint64())
	s.as(c)
	c.last = int(s.Session)
	if !s.FixedSize {
		c.last = geometric(s.visitors, s.Session)
	}
	if c.last > 1 && s.visitors.Float64() < s.Pinned {
		const meanPinned = 8
		c.pinAt = 2 + s.visitors.IntN(c.last-1)
		c.exitAt = c.pinAt + geometric(s.visitors, meanPinned)
	}
	c.work = s.Law.draw(s.visitors, s.Service.Seconds(), s.Spread)
	resolver := &s.resolvers[s.shares.draw(s.visitors)]
	flash := s.visitors.Float64() < s.Flash
	switch {
	case flash && s.now >= s.FlashAt:
		c.address = 0
	case s.Balance == Split:
		c.address = int32(s.visitors.IntN(len(s.nodes)))
	default:
		c.address = s.resolve(resolver)
	}
	s.stats.visitStarts(s)
	return i
}

// arrives is a request at the node that answers for the client's address.
func (s *simulation) arrives(i int32) {
	c := &s.clients[i]
	if c.began == 0 {
		c.began = max(s.now, 1)
	}
	if s.Balance >= Ideal {
		s.place(i)
		return
	}
	n := s.nodes[s.holder[c.address]]
	if !n.alive {
		c.silent, c.connecting = true, false
		s.at(s.now+retry, event{kind: requestArrives, client: i})
		return
	}
	k := c.connected(n)
	if k == nil && !c.connecting { // the address has moved to another node
		c.connecting = true
		s.at(s.now+s.connectTime(), event{kind: requestArrives, client: i})
		return
	}
	c.connecting = false
	if c.silent {
		c.silent = false
		s.stats.waited(s, s.now-c.began)
	}
	idle := time.Duration(-1)
	c.fresh = k == nil
	if c.fresh {
		k = c.connect(n)
	} else {
		idle = s.now - k.used
	}
	k.used = s.now
	n.advance(s.now)
	if c.arriving {
		c.arriving = false
		s.stats.arrivedByRedirect(s, n.load >= c.hopLoad)
	}
	if s.Balance == Redirects {
		s.decide(n, i, idle)
		return
	}
	s.serve(n, i)
}

// connectTime is how long it takes to open a connection.
func (s *simulation) connectTime() time.Duration {
	if s.H3 {
		return s.RTT
	}
	return 2 * s.RTT
}

// serve lets n work on the client's request, or, at a burst, a peer in its place.
func (s *simulation) serve(n *node, i int32) {
	c := &s.clients[i]
	handshake := 0.0
	if c.fresh {
		handshake = s.Handshake.Seconds()
	}
	if peer := s.relayTo(n, c); peer != nil {
		c.extra = 4 * lan
		s.give(n, job{client: -1, work: handshake + relayWork})
		s.give(peer, job{client: i, work: c.work + peerWork})
		s.stats.relayed(s)
		s.note("relay", c, n, peer)
		return
	}
	s.note("serve", c, n, nil)
	s.give(n, job{client: i, work: handshake + c.work})
}

// answered ends the client's request.
func (s *simulation) answered(i int32) {
	c := &s.clients[i]
	s.stats.answered(s, s.now-c.began+s.RTT+c.extra)
	s.note("answer", c, nil, nil)
	s.goesOn(i)
}

// goesOn lets the client make its next request, or end its visit.
func (s *simulation) goesOn(i int32) {
	c := &s.clients[i]
	if c.request == c.last {
		s.free = append(s.free, i)
		return
	}
	s.as(c)
	c.request++
	c.work = s.Law.draw(s.visitors, s.Service.Seconds(), s.Spread)
	c.began, c.extra, c.hops = 0, 0, 0
	s.at(s.now+s.RTT+pause(s.visitors, s.Think), event{kind: requestArrives, client: i})
}

// note writes a line of the trace.
func (s *simulation) note(what string, c *client, n, peer *node) {
	if s.trace == nil {
		return
	}
	b := s.trace.AvailableBuffer()
	b = strconv.AppendFloat(b, s.now.Seconds(), 'f', 9, 64)
	b = append(append(b, ' '), what...)
	b = strconv.AppendInt(append(b, " client="...), int64(c.number), 10)
	b = strconv.AppendInt(append(b, " request="...), int64(c.request), 10)
	if n != nil {
		b = append(append(b, " node="...), n.view.Self...)
	}
	if peer != nil {
		b = append(append(b, " peer="...), peer.view.Self...)
	}
	s.trace.Write(append(b, '\n'))
}
