package cluster

import "sync/atomic"

type counters struct {
	sent, failed, dropped, received, malformed, unknown, strangers, unreached atomic.Uint64
	news, changes, wants, agreed, resets                                      atomic.Uint64
	clock, full, content, storing                                             atomic.Uint64
}

// Counters is a copy of what a Member has counted since it was made.
type Counters struct {
	Sent      uint64 `json:"sent"`      // messages; one of many parts counts for each
	Failed    uint64 `json:"failed"`    // messages that could not be sent
	Received  uint64 `json:"received"`  // messages from nodes of the site that were understood
	Dropped   uint64 `json:"dropped"`   // messages, in or out, for which there was no room; made good by comparing digests
	Malformed uint64 `json:"malformed"` // messages and parts that were not understood
	Unknown   uint64 `json:"unknown"`   // messages of a version, kind or document that this node does not know
	Strangers uint64 `json:"strangers"` // messages and members that are of no node of the site
	Unreached uint64 `json:"unreached"` // attempts to join at an address where nobody answered

	Changes uint64 `json:"changes"` // parts that this node changed and told
	News    uint64 `json:"news"`    // parts of peers with something new
	Wants   uint64 `json:"wants"`   // times that something was asked of a peer, because digests differed
	Agreed  uint64 `json:"agreed"`  // times that all digests were those of a peer
	Resets  uint64 `json:"resets"`  // times that this node was stale and took over the state of a peer

	Clock   uint64 `json:"clock"`   // parts with items stamped ahead of this node's clock
	Full    uint64 `json:"full"`    // parts with items that did not fit
	Content uint64 `json:"content"` // parts with items whose content was refused
	Storing uint64 `json:"storing"` // parts that could not be written to the disk
}

// Counters returns what has been counted so far.
func (m *Member) Counters() Counters {
	c := &m.counters
	return Counters{
		Sent: c.sent.Load(), Failed: c.failed.Load(), Received: c.received.Load(), Dropped: c.dropped.Load(),
		Malformed: c.malformed.Load(), Unknown: c.unknown.Load(), Strangers: c.strangers.Load(), Unreached: c.unreached.Load(),
		Changes: c.changes.Load(), News: c.news.Load(), Wants: c.wants.Load(), Agreed: c.agreed.Load(), Resets: c.resets.Load(),
		Clock: c.clock.Load(), Full: c.full.Load(), Content: c.content.Load(), Storing: c.storing.Load(),
	}
}
