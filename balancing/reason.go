package balancing

import (
	"fmt"
	"slices"
)

// Action is what becomes of a request.
type Action uint8

const (
	Here        Action = iota + 1 // serve on this node (S204)
	Redirect                      // tell the requester to go to Decision.Peer (S209)
	Relay                         // carry it to Decision.Peer over the internal channel
	SendToEntry                   // tell the requester to start again at the entry path
	Unavailable                   // refuse for now
)

var actionNames = []string{Here: "here", Redirect: "redirect", Relay: "relay", SendToEntry: "entry", Unavailable: "unavailable"}

func (a Action) String() string { return name(actionNames, a, "action") }

// Reason says why. It is the oracle of the tests, a field of the access log, the
// label of a counter.
type Reason uint8

const (
	ReasonHousekeeping  Reason = iota + 1
	ReasonPinned               // pinned to this node
	ReasonPinElsewhere         // pinned to the peer
	ReasonPinLost              // pinned to a node that is off-line or was restarted
	ReasonInterior             // below an entry path without a pin: stays where it is
	ReasonHopped               // came by a redirect a moment ago
	ReasonRelayed              // came by a relay
	ReasonDedicatedHere        // this node is dedicated to the path (S404)
	ReasonDedicated            // the peer is dedicated to the path (S405)
	ReasonDedicatedDown        // no dedicated node is on-line
	ReasonUnable               // the peer can serve the path, and this node cannot just now
	ReasonLight                // load not above L1 (S203)
	ReasonNoLighter            // no peer lighter by L2 (S206)
	ReasonImmovable            // the client could not follow a redirect
	ReasonQuiet                // served here, and a lighter peer is offered for what follows
	ReasonKept                 // above L1, but not part of the excess
	ReasonLighter              // the peer is lighter by L2 (S208)
	ReasonDraining             // this node takes no new work
	ReasonOverload             // this node has too much in progress to serve it as well
	ReasonBurst                // a peer is free just now, and this node is very busy
)

var reasonNames = []string{
	ReasonHousekeeping: "housekeeping", ReasonPinned: "pinned", ReasonPinElsewhere: "pin-elsewhere",
	ReasonPinLost: "pin-lost", ReasonInterior: "interior", ReasonHopped: "hopped", ReasonRelayed: "relayed",
	ReasonDedicatedHere: "dedicated-here", ReasonDedicated: "dedicated", ReasonDedicatedDown: "dedicated-down",
	ReasonUnable: "unable", ReasonLight: "light", ReasonNoLighter: "no-lighter-peer", ReasonImmovable: "immovable",
	ReasonQuiet: "quiet", ReasonKept: "kept",
	ReasonLighter: "lighter-peer", ReasonDraining: "draining",
	ReasonOverload: "overload", ReasonBurst: "burst",
}

func (r Reason) String() string { return name(reasonNames, r, "reason") }

// Reasons are all values of [Reason], for whoever keeps a counter of each.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasonNames))
	for r := range reasonNames {
		if reasonNames[r] != "" {
			all = append(all, Reason(r))
		}
	}
	return all
}

// PinChange says what the answer does to the client's pin.
type PinChange uint8

const (
	KeepPin  PinChange = iota
	SetPin             // pin the client to this node, if the origin's answer is not an error
	ClearPin           // the pin ends, if the origin's answer is not an error
	DropPin            // the pin is void whatever the answer
)

func name[E ~uint8](names []string, e E, kind string) string {
	if int(e) < len(names) && names[e] != "" {
		return names[e]
	}
	return fmt.Sprintf("%s(%d)", kind, uint8(e))
}

func parse[E ~uint8](names []string, b []byte, kind string) (E, error) {
	if i := slices.Index(names, string(b)); i >= 0 && len(b) > 0 {
		return E(i), nil
	}
	return 0, fmt.Errorf("%q is not a value of %s", b, kind)
}
