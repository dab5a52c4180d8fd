package heartbeat

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"peerage/balancing"
)

// peers is what is known of the other nodes: one place for each node of the site
// document, so its size is that of the site whatever comes in. It reads no clock.
type peers struct {
	after   int  // periods of silence that make a node off-line
	private bool // reports go over the internal network
	list    []*peer
	former  []former
}

// former is a node that was taken out of the site document a moment ago. If it comes back,
// a recorded report of it must not pass for a new one.
type former struct {
	id                    balancing.NodeID
	incarnation, sequence uint64
	gone                  time.Time
}

type peer struct {
	balancing.Node
	sequence uint64        // of its latest report
	period   time.Duration // as that says
	silent   time.Time     // when it is off-line, if nothing is heard of it until then
	left     bool          // it said farewell
	doubted  time.Time     // when it is asked directly, if nothing is heard of it until then
	cut      bool          // the kernel has closed the connection to it since it was heard last

	// How reports have to be sent to it; see [peers.addressees].
	reach     netip.Addr
	multicast time.Time // when its multicast was last heard
	deaf      time.Time // when it last said that it does not hear ours

	asks bool // it has asked for a report
	ask  bool // it is to be asked for one
}

// The errors of a report that is well sealed and well formed, but not accepted.
var (
	errUnknown  = errors.New("from a node that the site document does not have")
	errReplayed = errors.New("not newer than one that was heard already")
	errClock    = fmt.Errorf("sent more than %v before or after it came in", maxSkew)
)

// maxSkew is how far the clocks of two nodes may differ. It bounds for how long a
// recorded report can be replayed to a node that has just started.
const maxSkew = 30 * time.Second

func newPeers(c *Config) *peers {
	p := &peers{after: c.OfflineAfter, private: c.Local != c.Address}
	for _, n := range c.Nodes {
		if n.ID != c.Self {
			x := &peer{Node: balancing.Node{ID: n.ID, Address: n.Address, Internal: n.Internal, Home: n.Home, Capacity: n.Capacity}}
			x.reached(p.private)
			p.list = append(p.list, x)
		}
	}
	slices.SortFunc(p.list, func(a, b *peer) int { return cmp.Compare(a.ID, b.ID) })
	return p
}

// changed returns what is known of the nodes of c, and was known of those of before. What
// a report said of a node's address and capacity counts until the document changes it.
func (p *peers) changed(before, c *Config, now time.Time) *peers {
	next := newPeers(c)
	said := map[balancing.NodeID]Peer{}
	for _, n := range before.Nodes {
		said[n.ID] = n
	}
	for _, x := range next.list {
		old, was := p.find(x.ID), said[x.ID]
		if old == nil {
			for _, f := range p.former {
				if f.id == x.ID {
					x.Incarnation, x.sequence = f.incarnation, f.sequence
				}
			}
			continue
		}
		kept := *old
		kept.Home = x.Home
		if x.Address != was.Address && x.Address.IsValid() {
			kept.Address = x.Address
		}
		if x.Internal != was.Internal && x.Internal.IsValid() {
			kept.Internal = x.Internal
		}
		if x.Capacity != was.Capacity {
			kept.Capacity = x.Capacity
		}
		kept.reached(next.private)
		kept.silent = kept.silent.Add(Silence(kept.period, next.after) - Silence(kept.period, p.after))
		if next.after < p.after && kept.silent.Before(now.Add(jumpPause)) {
			kept.silent = now.Add(jumpPause) // a verdict that is overdue looks like a delay of our own
		}
		*x = kept
	}
	for _, f := range p.former {
		if next.find(f.id) == nil && now.Sub(f.gone) <= 2*maxSkew { // then it would be refused by its time
			next.former = append(next.former, f)
		}
	}
	for _, x := range p.list {
		if next.find(x.ID) == nil {
			next.former = append(next.former, former{x.ID, x.Incarnation, x.sequence, now})
		}
	}
	return next
}

// moved forgets who was heard by multicast, for it was by another way.
func (p *peers) moved() {
	for _, x := range p.list {
		x.multicast, x.ByMulticast = time.Time{}, false
	}
}

func (p *peers) find(id balancing.NodeID) *peer {
	i, ok := slices.BinarySearchFunc(p.list, id, func(x *peer, id balancing.NodeID) int { return cmp.Compare(x.ID, id) })
	if !ok {
		return nil
	}
	return p.list[i]
}

// noise is the change of a load, in points, that nobody would act upon.
const noise = 1

// change says what a report has changed.
type change uint8

const (
	nothing change = iota // but its loads, by less than noise
	loads                 // its loads
	words                 // its state, or what it holds
	joined                // it is on-line now
	parted                // it has left
)

// accept takes a report that came in at now. What it refuses changes nothing.
func (p *peers) accept(r *report, now time.Time, byMulticast bool) (*peer, change, error) {
	x := p.find(r.node)
	switch {
	case x == nil:
		return nil, nothing, errUnknown
	case r.incarnation < x.Incarnation, r.incarnation == x.Incarnation && r.sequence <= x.sequence:
		return x, nothing, errReplayed // first, or anybody's recording would look like a wrong clock
	case now.Sub(r.sent).Abs() > maxSkew:
		return x, nothing, errClock
	}
	was := Status{State: x.State, Held: x.Held, Unable: x.Unable, Load: x.Load, Debit: x.Debit, Shed: x.Shed}
	wasOnline := x.Online
	x.Incarnation, x.sequence = r.incarnation, r.sequence
	x.State, x.Load, x.Debit, x.Shed, x.Heard = r.state, r.load, r.debit, r.shed, now
	x.Held, x.Unable, x.Version = r.held, r.unable, r.version
	if r.address.IsValid() {
		x.Address = r.address
	}
	if r.internal.IsValid() {
		x.Internal = r.internal
	}
	if r.capacity > 0 {
		x.Capacity = r.capacity
	}
	x.reached(p.private)
	x.asks = x.asks || r.ask
	if byMulticast {
		x.multicast = now
	}
	x.ByMulticast = now.Sub(x.multicast) <= time.Duration(p.after)*r.period
	if r.deaf {
		x.deaf = now
	}
	x.period = r.period
	x.silent = now.Add(Silence(r.period, p.after))
	x.doubted, x.cut = now.Add(r.period*5/4), false
	x.left = r.state == balancing.Leaving
	x.Online = !x.left
	switch {
	case x.left && wasOnline:
		return x, parted, nil
	case x.Online && !wasOnline:
		return x, joined, nil
	case was.says(&Status{State: x.State, Held: x.Held, Unable: x.Unable}):
		return x, words, nil
	case max(distance(was.Load, x.Load), distance(was.Debit, x.Debit), distance(was.Shed, x.Shed)) >= noise:
		return x, loads, nil
	}
	return x, nothing, nil
}

func distance(a, b balancing.Load) float64 { return math.Abs(float64(a - b)) }

// reached settles where reports to x go.
func (x *peer) reached(private bool) {
	x.reach = x.Address
	if private {
		x.reach = x.Internal
	}
}

// expire marks those off-line that have been silent for too long at now, and returns
// them.
func (p *peers) expire(now time.Time) (silent []*peer) {
	for _, x := range p.list {
		if x.Online && !now.Before(x.silent) {
			x.Online = false
			silent = append(silent, x)
		}
	}
	return silent
}

// calls reports whether self is the one that calls for missing peers, so that one side of a
// network that was parted hears of the other soon: of those that hear each other it is the
// first by name. A peer that said farewell is not missing.
func (p *peers) calls(self balancing.NodeID) bool {
	missing := false
	for _, x := range p.list {
		if x.Online && x.ID < self {
			return false
		}
		missing = missing || !x.Online && !x.left
	}
	return missing
}

// doubt has those asked directly that should have been heard of by now, and reports whether
// there are any: a report may have been lost, or multicast may not pass.
func (p *peers) doubt(now time.Time) (any bool) {
	for _, x := range p.list {
		if !x.Online || now.Before(x.doubted) {
			continue
		}
		pause := x.period / 4
		if x.cut {
			pause = cutAsk
		}
		x.ask, x.doubted, any = true, now.Add(pause), true
	}
	return any
}

// close notes that the kernel has closed the connection to a peer: its process is gone, or
// had a reason to. It is asked, and has little time to answer.
func (p *peers) close(id balancing.NodeID, now time.Time) {
	if x := p.find(id); x != nil && x.Online && !x.cut {
		x.cut, x.doubted = true, now
		x.silent = earlier(x.silent, now.Add(cutSilence))
	}
}

// forgive gives every peer more time, for this node was late itself: what they sent
// meanwhile lies unread.
func (p *peers) forgive(late time.Duration) {
	for _, x := range p.list {
		x.silent, x.doubted = x.silent.Add(late), x.doubted.Add(late)
	}
}

// next returns when a peer will have been silent for so long that it is to be asked, or is
// off-line; or the zero time.
func (p *peers) next() (next time.Time) {
	for _, x := range p.list {
		if x.Online {
			next = earlier(earlier(x.silent, x.doubted), next)
		}
	}
	return next
}

// view returns the picture of the site: me and all peers.
func (p *peers) view(me balancing.Node, now time.Time) *balancing.View {
	v := &balancing.View{Self: me.ID, Time: now, Nodes: make([]balancing.Node, 0, len(p.list)+1)}
	for _, x := range p.list {
		v.Nodes = append(v.Nodes, x.Node)
	}
	i, _ := slices.BinarySearchFunc(v.Nodes, me.ID, func(n balancing.Node, id balancing.NodeID) int { return cmp.Compare(n.ID, id) })
	v.Nodes = slices.Insert(v.Nodes, i, me)
	return v
}

// ask notes that each peer is to be asked for a report.
func (p *peers) ask() {
	for _, x := range p.list {
		x.ask = true
	}
}

// waiting reports whether a peer waits for a report that it has asked for, or is to be
// asked.
func (p *peers) waiting() bool {
	return slices.ContainsFunc(p.list, func(x *peer) bool { return x.asks || x.ask })
}

// addressed is a datagram to one peer.
type addressed struct {
	to    netip.Addr
	deaf  bool // this node does not hear its multicast
	heard bool // it is on-line
	ask   bool // it is asked for a report
}

// addressees returns the peers that must be sent a datagram of their own at now: those
// that have asked, and those that are to be asked; and of a report for all those that
// multicast does not reach, which is who is not heard by it, or says the same of us. How
// long a word about that counts, within tells.
func (p *peers) addressees(now time.Time, mode Mode, within time.Duration, all bool) (list []addressed) {
	for _, x := range p.list {
		a := addressed{to: x.reach, ask: x.ask, deaf: x.unheard(now, mode, within), heard: x.Online}
		apart := a.deaf || now.Sub(x.deaf) <= within
		if a.to.IsValid() && (x.ask || x.asks || all && apart) {
			list = append(list, a)
		}
		x.ask, x.asks = false, false
	}
	return list
}

// unheard reports whether x is not heard by multicast. It must be told, and be sent a
// report of its own: while the site changes from one way of exchange to another, some
// nodes listen where others do not send yet.
func (x *peer) unheard(now time.Time, mode Mode, within time.Duration) bool {
	switch mode {
	case Auto:
		return now.Sub(x.multicast) > within
	case Multicast:
		return x.Online && x.multicast.IsZero() // it has been heard some other way only
	}
	return true
}
