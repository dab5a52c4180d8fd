package cluster

import (
	"fmt"
	"slices"
)

// Distance says how far apart the nodes of a site are, and so how patient they must be with
// each other.
type Distance uint8

const (
	LAN Distance = iota // in one place
	WAN                 // in several
)

var distanceNames = []string{LAN: "lan", WAN: "wan"}

func (d Distance) String() string {
	if int(d) >= len(distanceNames) {
		return fmt.Sprintf("distance(%d)", uint8(d))
	}
	return distanceNames[d]
}

// MarshalText writes the distance's name.
func (d Distance) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a distance's name.
func (d *Distance) UnmarshalText(b []byte) error {
	i := slices.Index(distanceNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a distance between nodes: lan or wan", b)
	}
	*d = Distance(i)
	return nil
}
