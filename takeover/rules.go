package takeover

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"peerage/balancing"
)

// Rules are what a [Keeper] goes by besides the view. They may change at any time.
type Rules struct {
	// Moved names the nodes that an operator wants some VIPs to be at: see [Plan].
	Moved map[netip.Addr]balancing.NodeID

	// Lease is for how long a report lets this node answer, 0 for no fence: see [Link].
	Lease time.Duration

	// Partition says when a node that hears too few peers gives up all VIPs, and Witness
	// which hosts of the LAN tell whether it is cut off; none for the default gateways.
	Partition Partition
	Witness   []netip.Addr

	// Down says that the interface has no carrier: nobody can be reached by it. Elsewhere
	// says that reports go by another one: that peers are heard tells nothing of it.
	Down, Elsewhere bool

	// Grace is how long a VIP that another node is to have stays here at most, so that
	// what clients have asked by it is answered.
	Grace time.Duration
}

// Partition is what a node does that cannot tell whether its peers are dead or it is cut
// off from them.
type Partition uint8

const (
	// Gateway: a node that hears no peer and no witness is cut off, and holds nothing. Where
	// there is no witness, it cannot tell, and serves. The default.
	Gateway Partition = iota
	// Majority: so is one that is on-line with no more than half of the nodes; of two nodes,
	// the witness tells. For sites that would rather be dark than served twice.
	Majority
	// Serve: each part of the site serves.
	Serve
)

var partitionNames = []string{Gateway: "gateway", Majority: "majority", Serve: "serve"}

func (p Partition) String() string {
	if int(p) >= len(partitionNames) {
		return fmt.Sprintf("partition(%d)", uint8(p))
	}
	return partitionNames[p]
}

// MarshalText writes the name.
func (p Partition) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the name.
func (p *Partition) UnmarshalText(b []byte) error {
	i := slices.Index(partitionNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not what a node can do that is apart: gateway, majority or serve", b)
	}
	*p = Partition(i)
	return nil
}
