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
	ReasonLastResort               // its home node does not serve but holds it, and nobody else could
)

var reasonNames = [...]string{
	ReasonNobody: "nobody", ReasonHome: "home", ReasonHolder: "holder",
	ReasonWaiting: "waiting for home", ReasonStandIn: "stand-in", ReasonLastResort: "last resort",
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

// Plan assigns each VIP of the site, in the order of v.Nodes and their Home, which
// name no VIP twice. It does not look at v.Self: nodes that know the same of the
// site come to the same plan.
func Plan(v *balancing.View) []Assignment {
	var plan []Assignment
	for i := range v.Nodes {
		home := &v.Nodes[i]
		for _, vip := range home.Home {
			node, reason := assign(v, home, vip)
			plan = append(plan, Assignment{VIP: vip, Node: node, Reason: reason})
		}
	}
	return plan
}

func assign(v *balancing.View, home *balancing.Node, vip netip.Addr) (balancing.NodeID, Reason) {
	if home.Serves() {
		return home.ID, ReasonHome
	}
	holds := func(n *balancing.Node) bool { return n.Serves() && n.Holds(vip) }
	if id := first(v, vip, holds); id != "" {
		return id, ReasonHolder
	}
	if home.Online && home.State == balancing.Joining {
		return home.ID, ReasonWaiting // else each start of a site would shuffle all VIPs
	}
	if id := first(v, vip, (*balancing.Node).Serves); id != "" {
		return id, ReasonStandIn
	}
	if home.Holds(vip) {
		return home.ID, ReasonLastResort // better than dark
	}
	return "", ReasonNobody
}

// first returns the node with the highest score for vip among those that are fit,
// or "" if none is (rendezvous hashing: a node that goes or comes moves no VIPs but
// its own).
func first(v *balancing.View, vip netip.Addr, fit func(*balancing.Node) bool) balancing.NodeID {
	var best balancing.NodeID
	var highest float64
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !fit(n) {
			continue
		}
		if s := score(n, vip); best == "" || s > highest {
			best, highest = n.ID, s
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
