// Package balancing holds the words that all parts of a site share, and the
// decision that the site exists for: should this node serve a request, or
// should a lighter peer?
//
// Start with [Policy.Decide]. It is a pure function of a [View] (what this
// node knows of itself and its peers) and a [Request] (what matters of one
// request). Nothing in this package reads a clock, draws a random number,
// opens a socket or starts a goroutine; everything comes in as a value.
//
// The rule is that of US patent 6,128,279: steps S201 to S210 (load), S401 to
// S406 (dedicated paths) and the fifth embodiment (stateful paths). Its first
// and second predetermined level are [Policy.Light] and [Policy.Margin].
package balancing

import (
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// NodeID is the name of a node, unique in its site: one DNS label of lower-case
// letters, digits and inner hyphens, at most [MaxNodeID] octets.
type NodeID string

// Bounds of a site. They keep a report within one datagram and every table
// that is fed from the network within a known size.
const (
	MaxNodeID  = 32  // octets of a node's name
	MaxNodes   = 512 // nodes of a site
	MaxVIPs    = 32  // VIPs that one node can be home to
	MaxHeld    = 48  // VIPs that one node can hold at a time
	MaxUnable  = 32  // routes that one node can say it cannot serve
	MaxVersion = 32  // octets of the name of a software version
)

// Valid reports whether id can name a node.
func (id NodeID) Valid() bool {
	if len(id) == 0 || len(id) > MaxNodeID || id[0] == '-' || id[len(id)-1] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Load says how busy a node is, in per cent of the capacity it has just now
// (patent S202). It is at least 0 and not capped at 100: 250 means that work is
// queueing.
type Load float64

func (l Load) String() string { return fmt.Sprintf("%.1f%%", float64(l)) }

// State is what a node says of itself in its reports.
//
//	           silence heard out,
//	start      nobody holds its VIPs     server fails its own check
//	  ─▶ Joining ───────────────▶ OK ◀──────────────────────▶ Sick
//	                               │ ▲
//	                         drain │ │ undrain
//	                               ▼ │
//	                            Draining ───────▶ Leaving ─▶ end
type State uint8

const (
	Joining  State = iota + 1 // listens to the others before it takes anything
	OK                        // serves
	Degraded                  // serves, with something amiss that an operator should see
	Sick                      // failed its own check: must not be chosen (S207)
	Draining                  // takes no new work
	Leaving                   // says farewell: off-line from now on
)

var stateNames = [...]string{Joining: "joining", OK: "ok", Degraded: "degraded", Sick: "sick", Draining: "draining", Leaving: "leaving"}

// Valid reports whether s is one of the named states.
func (s State) Valid() bool { return s >= Joining && s <= Leaving }

func (s State) String() string {
	if !s.Valid() {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return stateNames[s]
}

// MarshalText writes the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's name.
func (s *State) UnmarshalText(b []byte) error {
	for i, n := range stateNames {
		if n != "" && n == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not a state of a node", b)
}

// Node is one node of the site as this node knows it now.
type Node struct {
	ID       NodeID       `json:"id"`
	Address  netip.Addr   `json:"address"`  // host address, where peers reach it
	Internal netip.Addr   `json:"internal"` // the same on the internal network, for relays
	Home     []netip.Addr `json:"home"`     // VIPs that belong to it (site document)
	Capacity float64      `json:"capacity"` // size relative to the other nodes, > 0 (site document)

	// Online is false from the moment its reports have been missing for too
	// long, or it said that it leaves (S207). Self is always on-line.
	Online bool `json:"online"`

	// What follows is from its latest report. All zero if none was heard yet.

	Incarnation uint64       `json:"incarnation"` // of its software: grows with each start
	State       State        `json:"state,omitempty"`
	Load        Load         `json:"load"`
	Debit       Load         `json:"debit"` // its books: see [Books]
	Shed        Load         `json:"shed"`
	Held        []netip.Addr `json:"held"`             // VIPs that it answers for
	Unable      []RouteID    `json:"unable,omitempty"` // routes that it cannot serve just now
	Version     string       `json:"version,omitempty"`
	ByMulticast bool         `json:"by_multicast"` // its reports come by multicast, not by unicast
	Heard       time.Time    `json:"heard"`        // when the report came in, by the clock of the view's owner
}

// Serves reports whether n may be given work: on-line and well (S207).
func (n *Node) Serves() bool {
	return n.Online && (n.State == OK || n.State == Degraded)
}

// Able reports whether n can serve a route: its back-ends are there.
func (n *Node) Able(route RouteID) bool {
	return len(n.Unable) == 0 || !slices.Contains(n.Unable, route)
}

// RouteID names a route in reports: a hash of its host and path, the same on all nodes.
// Two routes of one ID are taken for one, which costs at worst a detour.
type RouteID uint32

// RouteIDOf returns the ID of the route for a path of host, which is "" for any.
func RouteIDOf(host, path string) RouteID {
	h := fnv.New32a()
	h.Write([]byte(host + path))
	return RouteID(h.Sum32())
}

// Holds reports whether n is on-line and answers for vip.
func (n *Node) Holds(vip netip.Addr) bool {
	return n.Online && slices.Contains(n.Held, vip)
}

// View is what a node knows of its site at one instant, itself included. It is
// immutable: a new one is made on each change, and swapped whole.
type View struct {
	Self     NodeID    `json:"self"`
	Time     time.Time `json:"time"`     // when the view was made
	Nodes    []Node    `json:"nodes"`    // all nodes of the site document, sorted by ID
	Settings Settings  `json:"settings"` // how the site balances now
}

// Node returns the node called id, or nil. The caller must not change it.
func (v *View) Node(id NodeID) *Node {
	if i := v.Place(id); i >= 0 {
		return &v.Nodes[i]
	}
	return nil
}

// Place returns the place in v.Nodes of the node called id, or -1.
func (v *View) Place(id NodeID) int {
	// By hand, for each request comes by here: twice as fast as with a function to compare.
	low, high := 0, len(v.Nodes)
	for low < high {
		if mid := int(uint(low+high) / 2); v.Nodes[mid].ID < id {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(v.Nodes) && v.Nodes[low].ID == id {
		return low
	}
	return -1
}

// Me returns the view's owner, or nil if it is not among the nodes.
func (v *View) Me() *Node { return v.Node(v.Self) }

// Peers walks over all nodes but the view's owner.
func (v *View) Peers() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for i := range v.Nodes {
			if v.Nodes[i].ID != v.Self && !yield(&v.Nodes[i]) {
				return
			}
		}
	}
}

// Burdened returns a function that tells the nodes which new clients should be kept from
// if others are left: their load is above L1, and above the mean of those that serve.
func (v *View) Burdened() func(*Node) bool {
	sum, members := Load(0), 0
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Serves() {
			sum += n.Load
			members++
		}
	}
	level := v.Settings.Light
	if members > 0 {
		level = max(level, sum/Load(members))
	}
	return func(n *Node) bool { return n.Load > level }
}

// Holder returns the on-line node that answers for vip now, or nil. Where two
// claim it, for the instant until one yields, the home node is named, else the
// first by name.
func (v *View) Holder(vip netip.Addr) *Node {
	var holder *Node
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !n.Holds(vip) {
			continue
		}
		if slices.Contains(n.Home, vip) {
			return n
		}
		if holder == nil {
			holder = n
		}
	}
	return holder
}

// Home returns the node that vip belongs to, or nil.
func (v *View) Home(vip netip.Addr) *Node {
	for i := range v.Nodes {
		if slices.Contains(v.Nodes[i].Home, vip) {
			return &v.Nodes[i]
		}
	}
	return nil
}
