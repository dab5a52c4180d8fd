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
	sequence uint64
	plain    []byte
	sealed   []byte
}

// report tells all peers what this node is now.
func (s *sender) report(now time.Time) {
	s.x.mu.Lock()
	me := s.x.me
	to := s.x.peers.unicast(now, s.x.mode, s.x.elderly)
	s.x.told = Status{State: me.State, Load: me.Load, Held: me.Held}
	s.x.mu.Unlock()
	s.send(me, to, now)
}

// farewell says that this node leaves, twice: nobody would ask again.
func (s *sender) farewell() {
	now := time.Now()
	s.x.mu.Lock()
	me := s.x.me
	me.State, me.Held = balancing.Leaving, nil
	to := s.x.peers.unicast(now, s.x.mode, s.x.elderly)
	s.x.mu.Unlock()
	s.send(me, to, now)
	s.send(me, to, now)
}

func (s *sender) send(me balancing.Node, to []addressed, now time.Time) {
	if s.x.mode != Unicast {
		s.datagram(me, addressed{}, now)
	}
	for _, a := range to {
		s.datagram(me, a, now)
	}
}

// datagram sends one. Each has a sequence number of its own, so a peer that is reached by
// two ways takes both for news.
func (s *sender) datagram(me balancing.Node, to addressed, now time.Time) {
	s.sequence++
	r := report{
		node: me.ID, incarnation: me.Incarnation, sequence: s.sequence, sent: now, period: s.x.c.Period,
		state: me.State, load: me.Load, address: me.Address, held: me.Held, deaf: to.deaf,
	}
	s.plain = r.appendTo(s.plain[:0])
	s.sealed = s.x.c.Sealer.Seal(s.sealed[:0], s.plain, s.x.site)
	if err := s.t.send(s.sealed, to.address); err != nil {
		s.x.counters.failed.Add(1)
		s.x.c.Log.Debug("report not sent", "to", text(to.address), "err", err)
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
