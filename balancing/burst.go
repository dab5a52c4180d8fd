package balancing

import "slices"

// A redirect moves a client, for good; it cannot level the noise of single requests. At a
// burst, a node may have one request done by a peer that is free this very moment, which it
// asks. The reports are too old for that.
const (
	// BurstBusy is how busy a node must be to look for help, and BurstFree how busy the
	// peer may be that gives it: load as a part of capacity, at this instant.
	BurstBusy = 1.25
	BurstFree = 0.75
)

// Helpers draws two peers, by r.Draw1 and r.Draw2, that can do r in place of this node: they
// serve, they can serve its route, and its dedication does not leave them out. There may be
// one, or none; the second is then "".
func (v *View) Helpers(r *Request) (one, two NodeID) {
	me := v.Me()
	if me == nil {
		return "", ""
	}
	fit := func(n *Node) bool {
		return n != me && n.Serves() && n.Able(r.Route) && (len(r.Dedicated) == 0 || slices.Contains(r.Dedicated, n.ID))
	}
	count := 0
	for i := range v.Nodes {
		if fit(&v.Nodes[i]) {
			count++
		}
	}
	if count == 0 {
		return "", ""
	}
	first := int(r.Draw1 * float64(count))
	second := -1
	if count > 1 {
		if second = int(r.Draw2 * float64(count-1)); second >= first {
			second++
		}
	}
	k := 0
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !fit(n) {
			continue
		}
		switch k {
		case first:
			one = n.ID
		case second:
			two = n.ID
		}
		k++
	}
	return one, two
}

// Helps reports whether a request that this decision serves here may be done by a peer at a
// burst: it is here for no reason but load.
func (d Decision) Helps() bool {
	if d.Action != Here || d.Pin != KeepPin {
		return false
	}
	switch d.Reason {
	case ReasonLight, ReasonKept, ReasonNoLighter, ReasonImmovable, ReasonQuiet, ReasonHopped, ReasonDedicatedHere:
		return true
	}
	return false
}
