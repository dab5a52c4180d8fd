package balancing

import "slices"

// Policy is the site's rule for [Policy.Decide].
type Policy struct {
	Light  Load   `json:"light"`  // first predetermined level L1 (S203): up to and including it a node keeps everything
	Margin Load   `json:"margin"` // second predetermined level L2 (S206): a peer must be lighter by at least this
	Below  Load   `json:"below"`  // of rule [Below]: up to and including it a peer is given work
	Rule   Rule   `json:"rule"`
	Choice Choice `json:"choice"`
}

// DefaultPolicy has the patent's own levels, 50 and 20 per cent.
var DefaultPolicy = Policy{Light: 50, Margin: 20, Below: 50}

// Position says where on a stateful path a request is (fifth embodiment).
type Position uint8

const (
	Outside  Position = iota // on no stateful path
	Entry                    // the entry path: re-routing is still allowed, up to and including it
	Interior                 // below the entry: the client stays on its node
	Exit                     // an exit rule matches: served on the client's node, then the pin ends
)

// OwnerLoss says what becomes of a pinned request whose node is lost.
type OwnerLoss uint8

const (
	Repin   OwnerLoss = iota // serve here and pin here; the back-end is told
	Restart                  // send the client back to the entry path
	Fail                     // refuse until the node is back; if it lost what it knew, refuse once and begin anew
)

var ownerLossNames = []string{Repin: "repin", Restart: "restart", Fail: "fail"}

func (o OwnerLoss) String() string { return name(ownerLossNames, o, "on_owner_loss") }

// UnmarshalText reads the name.
func (o *OwnerLoss) UnmarshalText(b []byte) (err error) {
	*o, err = parse[OwnerLoss](ownerLossNames, b, "on_owner_loss")
	return
}

// MarshalText writes the name.
func (o OwnerLoss) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Move says how load may move the clients of a path to a lighter peer. Pins and
// dedications are not asked.
type Move uint8

const (
	MoveRedirect Move = iota // by a redirect where the client can follow it, else quietly
	MoveQuiet                // quietly: under the same URL, by an offer that the client may take (RFC 7838)
	MoveNone                 // not at all
)

var moveNames = []string{MoveRedirect: "redirect", MoveQuiet: "quiet", MoveNone: "none"}

func (m Move) String() string { return name(moveNames, m, "move") }

// UnmarshalText reads the name.
func (m *Move) UnmarshalText(b []byte) (err error) {
	*m, err = parse[Move](moveNames, b, "move")
	return
}

// MarshalText writes the name.
func (m Move) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Request is what the decision needs to know of one request. There is nothing
// of HTTP in it: the zero value is a request for a plain path that cannot be
// moved.
type Request struct {
	Housekeeping bool // ACME, health: always served where it lands

	// Position on a stateful path, and how that path is ruled.
	Position       Position
	OnOwnerLoss    OwnerLoss
	EntryLeavesPin bool // the letter of the patent: a pinned client may be re-routed at the entry again

	// Owner is the node that the client is pinned to by a valid pin, "" for
	// none; Incarnation the low half of that node's incarnation at the time.
	Owner       NodeID
	Incarnation uint32

	Route     RouteID  // of the path; nodes say in their reports which ones they cannot serve
	Dedicated []NodeID // nodes that serve this path; nil for all (S402)
	Refuse    bool     // none of Dedicated can: refuse, rather than serve as if it were not dedicated

	Movable bool // the client can follow a redirect (GET or HEAD by navigation)
	Move    Move // what load may do to a client of this path
	Hopped  bool // was redirected a moment ago (S210): not again by load
	Relayed bool // a peer carried it here: neither redirected nor relayed again
	First   bool // the first request of its connection

	// Draw1 and Draw2 are independent random numbers in [0, 1): whether to shed,
	// and to whom.
	Draw1, Draw2 float64

	// Turn is where the hand-off stands under rule [Rotate]: one more than the place
	// in View.Nodes of the peer that was sent to last.
	Turn int

	Books Books // what this node has sent away lately; see [Ledger]
}

// Decision is the outcome for one request.
type Decision struct {
	Action  Action
	Peer    NodeID // of Redirect and Relay
	Reason  Reason
	Pin     PinChange
	PinLost bool   // served here in place of a lost owner: the back-end is told
	Steer   NodeID // of Here: the peer to which the client's later requests may go quietly
}

// Decide says who should serve r, as seen from v.Self. The order of the tests is
// housekeeping, pin, dedication, hop, load: a pin beats a dedication, a dedication
// beats load, and load never moves a pinned client.
func (p Policy) Decide(v *View, r *Request) Decision {
	if r.Housekeeping {
		return Decision{Action: Here, Reason: ReasonHousekeeping}
	}
	me := v.Me()
	if me == nil {
		return Decision{Action: Here, Reason: ReasonNoLighter}
	}
	if me.Load <= p.Light && r.plain() && me.Able(r.Route) && !me.goes() {
		return Decision{Action: Here, Reason: ReasonLight} // as below, for most requests of most days
	}
	if r.Owner != "" && r.pinCounts() {
		return decidePinned(v, me, r)
	}
	d := p.decideUnpinned(v, me, r)
	switch {
	case d.Action != Here:
	case r.Position == Entry || r.Position == Interior:
		d.Pin = SetPin
	case r.Position == Exit && r.Owner != "":
		d.Pin = ClearPin
	}
	return d
}

// plain reports whether nothing but load can have a say in r.
func (r *Request) plain() bool {
	return r.Position == Outside && len(r.Dedicated) == 0 && !r.Hopped && !r.Relayed
}

// pinCounts reports whether the client's pin binds at this position.
func (r *Request) pinCounts() bool {
	return r.Position == Interior || r.Position == Exit || r.Position == Entry && !r.EntryLeavesPin
}

// decidePinned hands a pinned request to its owner, or follows the rule for a
// lost one.
func decidePinned(v *View, me *Node, r *Request) Decision {
	change := KeepPin
	if r.Position == Exit {
		change = ClearPin
	}
	if r.Owner == me.ID && r.Incarnation == uint32(me.Incarnation) {
		return Decision{Action: Here, Reason: ReasonPinned, Pin: change}
	}
	owner := v.Node(r.Owner)
	if r.Owner != me.ID && owner != nil && owner.Online && uint32(owner.Incarnation) == r.Incarnation {
		switch {
		case r.Relayed: // views differ for an instant; a request goes one hop only
			return Decision{Action: Unavailable, Reason: ReasonPinElsewhere}
		case r.Movable:
			return Decision{Action: Redirect, Peer: r.Owner, Reason: ReasonPinElsewhere}
		}
		return Decision{Action: Relay, Peer: r.Owner, Reason: ReasonPinElsewhere}
	}
	switch {
	case r.OnOwnerLoss == Restart && r.Position != Entry: // else it is there already
		return Decision{Action: SendToEntry, Reason: ReasonPinLost, Pin: DropPin}
	case r.OnOwnerLoss == Fail && owner != nil && owner.Online: // it is back, and knows nothing
		return Decision{Action: Unavailable, Reason: ReasonPinLost, Pin: DropPin}
	case r.OnOwnerLoss == Fail:
		return Decision{Action: Unavailable, Reason: ReasonPinLost}
	}
	if change == KeepPin {
		change = SetPin
	}
	return Decision{Action: Here, Reason: ReasonPinLost, Pin: change, PinLost: true}
}

func (p Policy) decideUnpinned(v *View, me *Node, r *Request) Decision {
	if r.Relayed {
		return Decision{Action: Here, Reason: ReasonRelayed}
	}
	dedicatedHere := slices.Contains(r.Dedicated, me.ID)
	if !dedicatedHere && len(r.Dedicated) > 0 || !me.Able(r.Route) {
		if d := p.toDedicated(v, me, r); d.Action != 0 {
			return d
		}
	}
	if r.Position == Interior && !me.goes() {
		return Decision{Action: Here, Reason: ReasonInterior}
	}
	if r.Hopped {
		return Decision{Action: Here, Reason: ReasonHopped}
	}
	d := p.byLoad(v, me, r)
	if dedicatedHere && d.Reason == ReasonLight {
		d.Reason = ReasonDedicatedHere
	}
	return d
}

// toDedicated sends r to a node that its path is dedicated to (S405), or that can serve
// it while this node cannot: the lightest that is on-line. The zero Decision says that
// there is none, and that this node has to do what it can.
func (p Policy) toDedicated(v *View, me *Node, r *Request) Decision {
	var best *Node
	for i := range v.around(v.start(r)) {
		n := &v.Nodes[i]
		if n != me && n.Serves() && n.Able(r.Route) && (len(r.Dedicated) == 0 || slices.Contains(r.Dedicated, n.ID)) &&
			(best == nil || n.Load < best.Load) {
			best = n
		}
	}
	reason := ReasonDedicated
	if len(r.Dedicated) == 0 || slices.Contains(r.Dedicated, me.ID) {
		reason = ReasonUnable
	}
	switch {
	case best == nil && reason == ReasonDedicated && r.Refuse:
		return Decision{Action: Unavailable, Reason: ReasonDedicatedDown}
	case best == nil:
		return Decision{}
	case r.Movable && !r.Hopped: // nodes that disagree must not toss a client between them
		return Decision{Action: Redirect, Peer: best.ID, Reason: reason}
	}
	return Decision{Action: Relay, Peer: best.ID, Reason: reason}
}
