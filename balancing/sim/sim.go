// Package sim simulates a site of many nodes, its visitors, their DNS caches and the
// exchange of reports, in virtual time. It drives the shipped decision: each simulated
// node has the [balancing.Policy] and a [balancing.Ledger] of its own, and sees its peers
// through a [balancing.View] that is as old, and as incomplete, as the reports make it.
//
// Start with [Base] or [Named], and [Run]. [Table] and [Chart] show results side by side.
//
// A run is one goroutine, reads no clock, and repeats exactly with the same seed. Clients
// are the same whatever the rule, so that rules can be compared on short runs. What is
// left out: parallel requests of a browser, bandwidth, back-ends, and a network whose
// delays vary. BenchmarkRealSite in cmd/peerage compares a run with a site of real nodes.
//
// The response time of a request is what its client sees: a round trip, the service, and
// all that a redirect costs. Connections that every visit opens anyway are not counted.
package sim

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"peerage/balancing"
)

// lan is the time of one trip between two nodes.
const lan = 100 * time.Microsecond

// simulation is the state of a run.
type simulation struct {
	Scenario
	now    time.Duration
	end    time.Duration
	events queue[time.Duration, event]
	ends   *departures
	trace  *bufio.Writer

	nodes     []*node // of the site
	proxy     *node   // the central proxy, if there is one: comes after the nodes in ends
	holder    []int32 // by address: the node that answers for it
	exchanges bool    // the nodes send reports

	resolvers []resolver
	shares    shares
	rotation  int
	list      []int32 // scratch of listed

	clients  []client
	free     []int32    // places in clients
	visitors *rand.Rand // draws from the stream of the client that it was last set to
	streams  *stream    // under visitors
	gap      float64    // nanoseconds between two visits, on average

	random struct{ arrivals, dns, decision, exchange, relay *rand.Rand }
	stats  stats
}

// Run simulates s. If trace is not nil, it gets a line for each request that was placed,
// answered or lost.
func Run(ctx context.Context, s Scenario, trace io.Writer) (*Result, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("scenario %s: %w", s.Name, err)
	}
	sim := newSimulation(s)
	if trace != nil {
		sim.trace = bufio.NewWriter(trace)
	}
	if err := sim.run(ctx); err != nil {
		return nil, fmt.Errorf("simulate %s: %w", s.Name, err)
	}
	if sim.trace != nil {
		if err := sim.trace.Flush(); err != nil {
			return nil, fmt.Errorf("trace %s: %w", s.Name, err)
		}
	}
	return sim.result(), nil
}

func newSimulation(c Scenario) *simulation {
	s := &simulation{
		Scenario:  c,
		end:       c.WarmUp + c.Measured,
		shares:    zipf(c.Resolvers, c.Zipf),
		exchanges: c.Balance == Redirects || c.DNSHelps || c.Dies > 0,
		streams:   new(stream),
	}
	s.visitors = rand.New(s.streams)
	for i, r := range []**rand.Rand{&s.random.arrivals, &s.random.dns, &s.random.decision, &s.random.exchange, &s.random.relay} {
		*r = newRand(c.Seed, uint64(i))
	}
	slow := int(c.SlowShare*float64(c.Nodes) + 0.5)
	for i := range c.Nodes {
		n := s.newNode(i)
		if i >= c.Nodes-slow {
			n.speed = c.SlowSpeed
		}
		s.nodes = append(s.nodes, n)
		s.holder = append(s.holder, int32(i))
	}
	for _, n := range s.nodes {
		s.newView(n)
	}
	s.ends = newDepartures(c.Nodes + 1)
	if c.Balance == ProxyLeast || c.Balance == ProxyChoice {
		s.proxy = s.newNode(c.Nodes)
		s.proxy.cores = proxyCores
	}
	return s
}

func (s *simulation) newNode(i int) *node {
	return &node{
		index: i, cores: float64(s.Cores), speed: 1, fcfs: s.FCFS, alive: true,
		tau: s.Tau.Seconds(), measure: s.Measure, full: s.Full * float64(s.Cores),
		ledger: balancing.NewLedger(s.Fade),
		report: report{state: balancing.OK, incarnation: 1, silent: make([]time.Duration, s.Nodes)},
	}
}

// newView gives n a view in which everybody is well and idle.
func (s *simulation) newView(n *node) {
	n.view = balancing.View{Self: nodeID(n.index), Nodes: make([]balancing.Node, s.Nodes)}
	for i, peer := range s.nodes {
		n.view.Nodes[i] = balancing.Node{
			ID: nodeID(i), Capacity: peer.cores * peer.speed,
			Online: true, State: balancing.OK, Incarnation: 1,
		}
	}
}

// nodeID is such that the nodes are sorted by their numbers.
func nodeID(i int) balancing.NodeID { return balancing.NodeID(fmt.Sprintf("n%03d", i)) }

func (s *simulation) run(ctx context.Context) error {
	s.at(time.Second, event{kind: secondEnds})
	s.fillCaches()
	s.startExchange()
	s.startVisits()
	if s.Dies > 0 {
		s.at(s.Dies, event{kind: nodeDies, node: int32(s.Nodes - 1)})
	}
	if s.Returns > 0 {
		s.at(s.Returns, event{kind: nodeReturns, node: int32(s.Nodes - 1)})
	}
	for {
		next := s.events.items[0].key // there is always a second that ends
		if i, at := s.ends.first(); at <= next {
			next = at
			if next > s.end {
				return nil
			}
			s.now = next
			s.jobEnds(s.node(i))
			continue
		}
		if next > s.end {
			return nil
		}
		s.now = next
		e := s.events.pop()
		if e.kind == secondEnds {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		s.happens(e)
	}
}

func (s *simulation) at(t time.Duration, e event) { s.events.push(t, e) }

func (s *simulation) happens(e event) {
	switch e.kind {
	case visitStarts:
		s.visitStarts()
	case requestArrives:
		s.arrives(e.client)
	case reportDue:
		s.reportIsDue(s.nodes[e.node])
	case reportArrives:
		s.deliver(s.nodes[e.node])
	case silenceJudged:
		s.judge(s.nodes[e.peer], s.nodes[e.node])
	case nodeDies:
		s.dies(s.nodes[e.node])
	case nodeReturns:
		s.returns(s.nodes[e.node])
	case nodeReady:
		s.ready(s.nodes[e.node])
	case secondEnds:
		s.secondEnds()
		s.at(s.now+time.Second, e)
	}
}

func (s *simulation) node(i int) *node {
	if i == len(s.nodes) {
		return s.proxy
	}
	return s.nodes[i]
}

// give puts a job on n.
func (s *simulation) give(n *node, j job) {
	n.advance(s.now)
	n.add(j)
	s.changed(n)
}

// jobEnds takes from n what has ended by now.
func (s *simulation) jobEnds(n *node) {
	n.advance(s.now)
	for {
		j, ok := n.finished()
		if !ok {
			break
		}
		switch {
		case j.client < 0:
		case j.passes:
			s.passes(j)
		default:
			s.answered(j.client)
		}
	}
	s.changed(n)
}

// changed notes that jobs came to n or went.
func (s *simulation) changed(n *node) {
	s.ends.set(n.index, n.nextDeparture())
	if s.exchanges && n.alive {
		s.reportEarly(n)
	}
}

// randomNode returns a node that lives.
func (s *simulation) randomNode(r *rand.Rand) *node {
	for {
		if n := s.nodes[r.IntN(len(s.nodes))]; n.alive {
			return n
		}
	}
}
