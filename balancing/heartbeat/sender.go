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
	wires    *tripwires   // nil if there are none
	sequence uint64
	plain    []byte
	sealed   []byte
}

// string strings the tripwires on local. Without them the site is slower to notice that a
// process has died, and no worse.
func (s *sender) string(local netip.AddrPort) {
	if s.wires != nil {
		s.wires.close()
	}
	var err error
	if s.wires, err = s.x.string(s.x, local); err != nil {
		s.x.c.Log.Warn("no tripwires", "addr", local, "err", err)
	}
}

// close ends all, and waits until nothing more is heard.
func (s *sender) close() {
	if s.wires != nil {
		s.wires.close()
	}
	s.closeTransport()
}

// closeTransport ends the transport, and waits until nothing more is heard by it.
func (s *sender) closeTransport() {
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
	x.overdue()
	if due && mode == Query {
		x.peers.ask()
	}
	r := x.compose(now)
	to := x.peers.addressees(now, mode, x.within(), all)
	if due && x.untold && now.Sub(x.shown) >= tellEvery {
		x.publish(now)
	}
	if all {
		x.told, x.news, x.urgent, x.freed = x.status, false, false, false
		x.light = x.status.Load <= x.settings.Light
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
		r.state, r.held, r.marked = balancing.Leaving, nil, false
		mode := x.mode
		to := x.peers.addressees(now, mode, x.within(), true)
		x.mu.Unlock()
		s.send(r, mode, to, true)
	}
}

// compose writes the report of this node, but for what differs between datagrams. x.mu is
// held.
func (x *Exchange) compose(now time.Time) report {
	s := x.said()
	r := report{
		node: x.me.ID, incarnation: x.me.Incarnation, sent: now, period: x.settings.Period,
		state: s.State, load: s.Load, address: x.me.Address, held: s.Held, internal: x.me.Internal,
		capacity: x.me.Capacity, debit: s.Debit, shed: s.Shed, unable: s.Unable, version: x.me.Version,
	}
	if x.settings.Version > 0 {
		r.settings = x.settings
	}
	r.marked = x.vouching(now)
	return r
}

// within returns how long a word about multicast counts. x.mu is held.
func (x *Exchange) within() time.Duration {
	return time.Duration(x.c.OfflineAfter) * max(x.settings.Period, x.before)
}

// send sends r to the group, if it is for all, and to those that need one of their own.
func (s *sender) send(r report, mode Mode, to []addressed, all bool) {
	start, sent := s.x.boot(), false
	// What is for one peer alone does not leave the machine while that cannot be reached, so
	// the kernel is shown a report for all in every mode. Where that cannot be sent, one to a
	// peer that is heard will do.
	if all && (mode == Auto || mode == Multicast || r.marked) {
		sent = s.datagram(r, addressed{})
	}
	for _, a := range to {
		sent = s.datagram(r, a) && a.heard || sent
	}
	if sent && r.marked {
		s.x.renew(start, r.period)
	}
}

// datagram sends one. Each has a sequence number of its own, so a peer that is reached by
// two ways takes both for news. It reports whether that went well.
func (s *sender) datagram(r report, a addressed) bool {
	s.sequence++
	r.sequence, r.deaf, r.ask = s.sequence, a.deaf, a.ask
	s.plain = r.appendTo(s.plain[:0])
	s.sealed = s.x.sealer.Load().Seal(s.sealed[:0], s.plain, s.x.site)
	if r.marked && !s.x.entitled() { // it stood still since the report was written
		return false
	}
	if err := s.t.send(s.sealed, a.to, r.marked); err != nil {
		s.x.counters.failed.Add(1)
		s.x.c.Log.Debug("report not sent", "to", text(a.to), "err", err)
		return false
	}
	s.x.counters.sent.Add(1)
	return true
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return "group"
	}
	return a.String()
}
