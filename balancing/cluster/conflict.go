package cluster

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// conflictFor is for how long a conflict counts after it was last met: memberlist compares
// its members with those of a peer every 30 s, over a WAN every minute.
const conflictFor = 150 * time.Second

// Conflict is a name that two nodes run under, as when a disk was copied.
type Conflict struct {
	Name  string
	Known netip.AddrPort // of the one that counts
	Other netip.AddrPort
	Seen  time.Time // when the other was last heard of
}

// Conflicts returns the names that two nodes run under, sorted. This node's may be one.
func (m *Member) Conflicts() []Conflict {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.conflicts, func(_ string, c Conflict) bool { return now.Sub(c.Seen) >= conflictFor })
	return slices.SortedFunc(maps.Values(m.conflicts), func(a, b Conflict) int { return cmp.Compare(a.Name, b.Name) })
}

// collide notes that a name comes from a second address. It is no conflict if the node is
// not alive at the first: then it has moved.
func (m *Member) collide(c Conflict) {
	m.mu.Lock()
	p := m.peers[c.Name]
	alive := c.Name == m.c.Self || p != nil && p.state == Alive
	if alive {
		m.conflicts[c.Name] = c
	}
	m.mu.Unlock()
	if alive && m.due(c.Name, "name", c.Seen) {
		m.c.Log.Error("two nodes have one name", "peer", c.Name, "addr", c.Known, "other", c.Other)
	}
}
