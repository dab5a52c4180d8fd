package heartbeat

import (
	"fmt"
	"slices"
)

// Mode says how reports reach the peers.
type Mode uint8

const (
	// Auto is multicast where the interface carries it, with unicast to those peers that
	// multicast does not reach; unicast to all elsewhere. The default.
	Auto      Mode = iota
	Multicast      // multicast alone, but for a peer that is heard some other way only, as while the site changes over
	Unicast        // a datagram to each known peer
	Query          // the same, and each is asked for its report, which it gives at once
)

var modeNames = []string{Auto: "auto", Multicast: "multicast", Unicast: "unicast", Query: "query"}

func (m Mode) String() string {
	if int(m) >= len(modeNames) {
		return fmt.Sprintf("mode(%d)", uint8(m))
	}
	return modeNames[m]
}

// MarshalText writes the mode's name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a mode's name.
func (m *Mode) UnmarshalText(b []byte) error {
	i := slices.Index(modeNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a way of exchange: auto, multicast, unicast or query", b)
	}
	*m = Mode(i)
	return nil
}
