package takeover

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"

	"peerage/balancing"
)

// Assignment says which node should hold a VIP.
type Assignment struct {
	VIP    netip.Addr
	Node   balancing.NodeID // "" for nobody
	Reason Reason
}

// Reason says why a VIP is assigned as it is.
type Reason uint8

const (
	ReasonNobody     Reason = iota // no node can hold it
	ReasonHome                     // its home node serves
	ReasonHolder                   // a peer of the silent home node holds it already
	ReasonWaiting                  // its home node is about to serve: nobody claims it until then
	ReasonStandIn                  // the next in order for the silent home node
	ReasonLastResort               // no node serves, and this one holds it
	ReasonMoved                    // an operator wants it there
)

var reasonNames = [...]string{
	ReasonNobody: "nobody", ReasonHome: "home", ReasonHolder: "holder",
	ReasonWaiting: "waiting for home", ReasonStandIn: "stand-in", ReasonLastResort: "last resort", ReasonMoved: "moved",
}

func (r Reason) String() string {
	if int(r) >= len(reasonNames) {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasonNames[r]
}

// MarshalText writes the reason's words.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the reason's words.
func (r *Reason) UnmarshalText(b []byte) error {
	for i, name := range reasonNames {
		if name == string(b) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not a reason for an assignment", b)
}

// Plan assigns each VIP of the site, in the order of v.Nodes and their Home, which name no
// VIP twice. Moved names the nodes that an operator wants some VIPs to be at; it counts
// while they serve. Plan does not look at v.Self: nodes that know the same of the site come
// to the same plan.
//
// What a node must take over goes to the first in order that has not more than its share
// of all VIPs by capacity, so that the end of one node does not weigh upon one other.
func Plan(v *balancing.View, moved map[netip.Addr]balancing.NodeID) []Assignment {
	var plan []Assignment
	shares := make([]int, len(v.Nodes)) // how many VIPs each node has by the plan so far
	settled := func(a Assignment, node int, reason Reason) {
		a.Node, a.Reason = v.Nodes[node].ID, reason
		shares[node]++
		plan = append(plan, a)
	}
	for i := range v.Nodes {
		for _, vip := range v.Nodes[i].Home {
			a := Assignment{VIP: vip}
			if node, reason := settle(v, i, vip, moved[vip]); node >= 0 {
				settled(a, node, reason)
			} else {
				plan = append(plan, a)
			}
		}
	}
	most := bounds(v, len(plan))
	at := 0
	for i := range v.Nodes {
		for _, vip := range v.Nodes[i].Home {
			a := &plan[at]
			at++
			if a.Node != "" {
				continue
			}
			standIn := first(v, vip, func(k int, n *balancing.Node) bool { return n.Serves() && shares[k] < most[k] })
			switch {
			case standIn >= 0:
				a.Node, a.Reason = v.Nodes[standIn].ID, ReasonStandIn
				shares[standIn]++
			default:
				if k := lastResort(v, i, vip); k >= 0 {
					a.Node, a.Reason = v.Nodes[k].ID, ReasonLastResort // better than dark
				}
			}
		}
	}
	return plan
}

// settle returns the place of the node that holds vip, or will in a moment, with nobody's
// taking over; -1 if somebody must.
func settle(v *balancing.View, home int, vip netip.Addr, moved balancing.NodeID) (int, Reason) {
	h := &v.Nodes[home]
	// Where both hold it, as after a partition in which one heard of the order, home wins
	// first, for it may not know of the order yet.
	if i := v.Place(moved); i >= 0 && v.Nodes[i].Serves() && (i == home || !h.Serves() || !h.Holds(vip) || !v.Nodes[i].Holds(vip)) {
		return i, ReasonMoved
	}
	if h.Serves() {
		return home, ReasonHome
	}
	if i := first(v, vip, func(_ int, n *balancing.Node) bool { return n.Serves() && n.Holds(vip) }); i >= 0 {
		return i, ReasonHolder
	}
	if h.Online && h.State == balancing.Joining {
		return home, ReasonWaiting // else each start of a site would shuffle all VIPs
	}
	return -1, ReasonNobody
}

// lastResort returns the place of the node that keeps vip although nobody serves: its home if
// that holds it, else the first of its holders; -1 if there is none. A node that is joining
// keeps nothing: it may have stood still, and begins anew.
func lastResort(v *balancing.View, home int, vip netip.Addr) int {
	keeps := func(_ int, n *balancing.Node) bool { return n.Holds(vip) && n.State != balancing.Joining }
	if keeps(home, &v.Nodes[home]) {
		return home
	}
	return first(v, vip, keeps)
}

// bounds returns the share of each node in all VIPs, by the capacities of those that serve.
func bounds(v *balancing.View, vips int) []int {
	total := 0.
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Serves() {
			total += n.Capacity
		}
	}
	most := make([]int, len(v.Nodes))
	for i := range v.Nodes {
		most[i] = int(math.Ceil(float64(vips) * v.Nodes[i].Capacity / total))
	}
	return most
}

// first returns the place of the node with the highest score for vip among those that are
// fit, or -1 if none is (rendezvous hashing).
func first(v *balancing.View, vip netip.Addr, fit func(int, *balancing.Node) bool) int {
	best, highest := -1, 0.
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !fit(i, n) {
			continue
		}
		if s := score(n, vip); best < 0 || s > highest {
			best, highest = i, s
		}
	}
	return best
}

// score is the weight of n for vip. Among nodes of scores -capacity/ln(u), u drawn
// evenly from (0, 1), each has the highest with a chance in proportion to its
// capacity.
func score(n *balancing.Node, vip netip.Addr) float64 {
	b := append([]byte(n.ID), 0)
	b = append(b, vip.AsSlice()...)
	sum := sha256.Sum256(b)
	const steps = 1 << 53 // as many as a float64 can tell apart
	u := (float64(binary.BigEndian.Uint64(sum[:])>>11) + 0.5) / steps
	return -n.Capacity / math.Log(u)
}
