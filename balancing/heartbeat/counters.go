package heartbeat

import "sync/atomic"

type counters struct {
	sent, failed, accepted, asked, own, twins                 atomic.Uint64
	forged, malformed, unknown, replayed, clock, late, lapsed atomic.Uint64
}

// Counters is a copy of what an exchange has counted since it started, in datagrams.
type Counters struct {
	Sent     uint64 `json:"sent"`
	Failed   uint64 `json:"failed"` // could not be sent
	Accepted uint64 `json:"accepted"`
	Asked    uint64 `json:"asked"` // of the accepted, those that asked for a report
	Own      uint64 `json:"own"`   // this node's own, come back by multicast
	Twins    uint64 `json:"twins"` // of another node, or an earlier start, under this node's name

	Forged    uint64 `json:"forged"`    // not sealed with a key of this site
	Malformed uint64 `json:"malformed"` // well sealed, but not understood
	Unknown   uint64 `json:"unknown"`   // from a node that is not in the site document
	Replayed  uint64 `json:"replayed"`  // not newer than one heard before
	Clock     uint64 `json:"clock"`     // from a node whose clock differs by too much

	Late   uint64 `json:"late"`   // times that this node itself woke too late to judge its peers
	Lapsed uint64 `json:"lapsed"` // times that its right to answer for VIPs lapsed: see [Exchange.Vouch]
}

// Refused counts what came in and was not accepted.
func (c Counters) Refused() uint64 {
	return c.Forged + c.Malformed + c.Unknown + c.Replayed + c.Clock
}

// Counters returns what has been counted so far.
func (x *Exchange) Counters() Counters {
	c := &x.counters
	return Counters{
		Sent: c.sent.Load(), Failed: c.failed.Load(), Accepted: c.accepted.Load(), Asked: c.asked.Load(), Own: c.own.Load(), Twins: c.twins.Load(),
		Forged: c.forged.Load(), Malformed: c.malformed.Load(), Unknown: c.unknown.Load(),
		Replayed: c.replayed.Load(), Clock: c.clock.Load(), Late: c.late.Load(), Lapsed: c.lapsed.Load(),
	}
}
