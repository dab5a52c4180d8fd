package heartbeat

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"peerage/balancing"
)

// peers is what is known of the other nodes: one place for each node of the site
// document, so its size is that of the site whatever comes in. It reads no clock.
type peers struct {
	after int // periods of silence that make a node off-line
	list  []*peer
}

type peer struct {
	balancing.Node
	sequence uint64    // of its latest report
	silent   time.Time // when it is off-line, if nothing is heard of it until then
	left     bool      // it said farewell

	// How reports have to be sent to it; see [Exchange.send].
	multicast time.Time // when its multicast was last heard
	deaf      time.Time // when it last said that it does not hear ours
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
	p := &peers{after: c.OfflineAfter}
	for _, n := range c.Nodes {
		if n.ID != c.Self {
			p.list = append(p.list, &peer{Node: balancing.Node{ID: n.ID, Address: n.Address, Home: n.Home, Capacity: n.Capacity}})
		}
	}
	slices.SortFunc(p.list, func(a, b *peer) int { return cmp.Compare(a.ID, b.ID) })
	return p
}

func (p *peers) find(id balancing.NodeID) *peer {
	i, ok := slices.BinarySearchFunc(p.list, id, func(x *peer, id balancing.NodeID) int { return cmp.Compare(x.ID, id) })
	if !ok {
		return nil
	}
	return p.list[i]
}

// change says what a report has changed.
type change uint8

const (
	nothing change = iota // but the load
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
	case now.Sub(r.sent).Abs() > maxSkew:
		return x, nothing, errClock
	case r.incarnation < x.Incarnation, r.incarnation == x.Incarnation && r.sequence <= x.sequence:
		return x, nothing, errReplayed
	}
	was, wasHeld := x.State, x.Held
	wasOnline := x.Online
	x.Incarnation, x.sequence = r.incarnation, r.sequence
	x.State, x.Load, x.Held, x.Heard = r.state, r.load, r.held, now
	if r.address.IsValid() {
		x.Address = r.address
	}
	if byMulticast {
		x.multicast = now
	}
	if r.deaf {
		x.deaf = now
	}
	x.silent = now.Add(time.Duration(p.after) * r.period)
	x.left = r.state == balancing.Leaving
	x.Online = !x.left
	switch {
	case x.left && wasOnline:
		return x, parted, nil
	case x.Online && !wasOnline:
		return x, joined, nil
	case was != x.State || !slices.Equal(wasHeld, x.Held):
		return x, words, nil
	}
	return x, nothing, nil
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

// forgive gives every peer more time, for this node was late itself: what they sent
// meanwhile lies unread.
func (p *peers) forgive(late time.Duration) {
	for _, x := range p.list {
		x.silent = x.silent.Add(late)
	}
}

// next returns when a peer will have been silent for too long, or the zero time.
func (p *peers) next() (next time.Time) {
	for _, x := range p.list {
		if x.Online && (next.IsZero() || x.silent.Before(next)) {
			next = x.silent
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

// unicast returns the peers that must be sent a datagram of their own at now, and for
// each whether this node is deaf to its multicast. With multicast that is a peer that is
// not heard by it, or says the same of us; within tells how long a word counts.
func (p *peers) unicast(now time.Time, mode Mode, within time.Duration) (to []addressed) {
	for _, x := range p.list {
		if !x.Address.IsValid() {
			continue
		}
		deaf := now.Sub(x.multicast) > within
		if mode == Unicast || mode == Auto && (deaf || now.Sub(x.deaf) <= within) {
			to = append(to, addressed{x.Address, deaf && mode == Auto})
		}
	}
	return to
}

type addressed struct {
	address netip.Addr
	deaf    bool
}
