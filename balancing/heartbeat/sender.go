package heartbeat

import (
	"net/netip"
	"time"

	"peerage/balancing"
)

// sender sends the reports of an exchange. It is for one goroutine.
type sender struct {
	x        *Exchange
	t        transport
	received <-chan error // of t; nil if it has been read
	sequence uint64
	plain    []byte
	sealed   []byte
}

// close ends the transport, and waits until nothing more is heard by it.
func (s *sender) close() {
	s.t.close()
	if s.received != nil {
		<-s.received
	}
}

// report tells the peers what this node is now: all of them if the report is due or there
// are news, else only those that have asked.
func (s *sender) report(now time.Time, due bool) {
	x := s.x
	x.mu.Lock()
	all := due || x.news
	mode := x.mode
	if due && mode == Query {
		x.peers.ask()
	}
	r := x.compose(now)
	to := x.peers.addressees(now, mode, x.within(), all)
	if all {
		x.told, x.news, x.urgent, x.light = x.status, false, false, x.status.Load <= x.settings.Light
	}
	x.mu.Unlock()
	s.send(r, mode, to, all)
}

// farewell says that this node leaves, twice: nobody would ask again.
func (s *sender) farewell() {
	x := s.x
	for range 2 {
		now := time.Now()
		x.mu.Lock()
		r := x.compose(now)
		r.state, r.held = balancing.Leaving, nil
		mode := x.mode
		to := x.peers.addressees(now, mode, x.within(), true)
		x.mu.Unlock()
		s.send(r, mode, to, true)
	}
}

// compose writes the report of this node, but for what differs between datagrams. x.mu is
// held.
func (x *Exchange) compose(now time.Time) report {
	s := &x.status
	r := report{
		node: x.me.ID, incarnation: x.me.Incarnation, sent: now, period: x.settings.Period,
		state: s.State, load: s.Load, address: x.me.Address, held: s.Held, internal: x.me.Internal,
		capacity: x.me.Capacity, debit: s.Debit, shed: s.Shed, unable: s.Unable, version: x.me.Version,
	}
	if x.settings.Version > 0 {
		r.settings = x.settings
	}
	return r
}

// within returns how long a word about multicast counts. x.mu is held.
func (x *Exchange) within() time.Duration {
	return time.Duration(x.c.OfflineAfter) * max(x.settings.Period, x.before)
}

// send sends r to the group, if it is for all, and to those that need one of their own.
func (s *sender) send(r report, mode Mode, to []addressed, all bool) {
	if all && (mode == Auto || mode == Multicast) {
		s.datagram(r, addressed{})
	}
	for _, a := range to {
		s.datagram(r, a)
	}
}

// datagram sends one. Each has a sequence number of its own, so a peer that is reached by
// two ways takes both for news.
func (s *sender) datagram(r report, a addressed) {
	s.sequence++
	r.sequence, r.deaf, r.ask = s.sequence, a.deaf, a.ask
	s.plain = r.appendTo(s.plain[:0])
	s.sealed = s.x.sealer.Load().Seal(s.sealed[:0], s.plain, s.x.site)
	if err := s.t.send(s.sealed, a.to); err != nil {
		s.x.counters.failed.Add(1)
		s.x.c.Log.Debug("report not sent", "to", text(a.to), "err", err)
		return
	}
	s.x.counters.sent.Add(1)
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return "group"
	}
	return a.String()
}
