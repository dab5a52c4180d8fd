package heartbeat

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
)

func TestSilenceAndLease(t *testing.T) {
	for _, c := range []struct {
		period         time.Duration
		after          int
		silence, lease time.Duration
	}{
		{500 * time.Millisecond, 2, time.Second, 900 * time.Millisecond},
		{500 * time.Millisecond, 3, 1500 * time.Millisecond, 1350 * time.Millisecond},
		{50 * time.Millisecond, 2, 120 * time.Millisecond, 95 * time.Millisecond},
		{50 * time.Millisecond, 4, 200 * time.Millisecond, 175 * time.Millisecond},
		{10 * time.Second, 20, 200 * time.Second, 180 * time.Second},
	} {
		if d, l := Silence(c.period, c.after), Lease(c.period, c.after); d != c.silence || l != c.lease {
			t.Errorf("%d periods of %v: off-line after %v, lease of %v, want %v and %v", c.after, c.period, d, l, c.silence, c.lease)
		}
	}
}

// TestAsksBeforeItAccuses: a peer whose reports are lost on their way to all, but which
// answers when it is asked, is alive.
func TestAsksBeforeItAccuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Multicast)
		l.edit = func(c *Config) { c.OfflineAfter = 2 }
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		settled(3 * period)
		l.bus.lose(func(from, _ netip.Addr, byMulticast bool) bool { return from == hostOf(2) && byMulticast })
		for range 100 {
			settled(period / 10)
			if !n1.hears("n2") {
				t.Fatal("a peer that answers was taken for off-line")
			}
		}
		n2.kill()
		killed := time.Now()
		for n1.hears("n2") {
			settled(time.Millisecond)
		}
		if took := time.Since(killed); took > Silence(period, 2) {
			t.Errorf("off-line %v after its end, want %v at most", took, Silence(period, 2))
		}
	})
}

// TestCutConnection: when the kernel closes the connection to a peer, that is asked; it is
// off-line soon if it does not answer, and is none the worse if it does.
func TestCutConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		settled(period)
		asked := n2.Counters().Asked
		for range 10 {
			n1.cut("n2")
			for range 100 {
				settled(time.Millisecond)
				if !n1.hears("n2") {
					t.Fatal("a peer that answers was taken for off-line")
				}
			}
		}
		if got := n2.Counters().Asked - asked; got < 10 || got > 40 {
			t.Errorf("asked %d times for ten connections", got)
		}
		n2.kill()
		n1.cut("n2")
		n1.cut("n3") // there is none
		settled(cutSilence - time.Millisecond)
		if !n1.hears("n2") {
			t.Error("accused before it could answer")
		}
		settled(2 * time.Millisecond)
		if n1.hears("n2") {
			t.Error("on-line although its process has gone")
		}
	})
}

// TestLeaseLapses stops the clock of one node as a freeze does: it must not go on from
// where it was.
func TestLeaseLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		l.edit = func(c *Config) { c.Mark = 7 }
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n2.end()
		defer n1.end()
		held := addrs("192.0.2.11")
		vouch := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return n1.Vouch(ctx, 4*period)
		}
		if err := vouch(); err != nil {
			t.Fatal(err)
		}
		n1.Update(func(s *Status) { s.Held = held })
		for range 100 {
			settled(period / 10)
			if err := vouch(); err != nil {
				t.Fatal(err)
			}
		}
		if got := n2.View().Node("n1"); !got.Holds(held[0]) || got.State != balancing.OK || n1.Counters().Lapsed != 0 {
			t.Fatalf("n2 sees %+v, lapsed %d times", got, n1.Counters().Lapsed)
		}

		n1.asleep.Store(int64(Lease(period, 3) + time.Millisecond))
		n1.Update(func(s *Status) { s.Load = 99 })
		if me := n1.View().Me(); me.State != balancing.Joining || len(me.Held) != 0 || n1.Counters().Lapsed != 1 {
			t.Errorf("it sees itself as %+v, lapsed %d times", me, n1.Counters().Lapsed)
		}
		settled(earliest + time.Millisecond)
		if got := n2.View().Node("n1"); got.State != balancing.Joining || len(got.Held) != 0 {
			t.Errorf("n2 sees %+v", got)
		}
		if vouch() == nil {
			t.Error("vouched for a node that has not given in yet")
		}
		// The guard may say what it thought before for a while.
		n1.Update(func(s *Status) { s.State = balancing.OK })
		if me := n1.View().Me(); me.State != balancing.Joining {
			t.Errorf("it is %v again without having given in", me.State)
		}
		n1.Update(func(s *Status) { s.State = balancing.Joining })
		n1.Update(func(s *Status) { s.State = balancing.OK })
		if vouch() == nil || n1.View().Me().State != balancing.Joining {
			t.Error("it serves, and what it held it holds")
		}
		n1.Update(func(s *Status) { s.Held = nil })
		if err := vouch(); err != nil {
			t.Error(err)
		}
		if me := n1.View().Me(); me.State != balancing.OK {
			t.Errorf("it is %v although it has given in", me.State)
		}

		// Without a holder behind it, a lease that ends is no news.
		settled(10 * period)
		if got := n1.Counters().Lapsed; got != 1 {
			t.Errorf("lapsed %d times, want once", got)
		}
	})
}

// TestAFreeVIPIsReportedAtOnce: nobody answers for it until a peer knows.
func TestAFreeVIPIsReportedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Multicast)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		held := addrs("192.0.2.12")
		n2.Update(func(s *Status) { s.Held = held })
		settled(3 * period)
		n2.Update(func(s *Status) { s.State = balancing.Sick }) // its report has just left
		settled(0)
		n2.Update(func(s *Status) { s.Held = nil })
		settled(0)
		if got := n1.View().Node("n2"); len(got.Held) > 0 {
			t.Errorf("n1 is not told at once that %v is free", got.Held)
		}
		n2.Update(func(s *Status) { s.Held = held })
		settled(0)
		if got := n1.View().Node("n2"); len(got.Held) > 0 {
			t.Error("what is not urgent was told without a pause")
		}
	})
}

// TestMissingPeersAreCalledFor: after a partition, each side hears of the other soon; and
// one node a side calls, not all.
func TestMissingPeersAreCalledFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 5, Multicast)
		var all []*running
		for i := range 5 {
			all = append(all, l.start(i+1, 1))
			defer all[i].end()
		}
		side := func(a netip.Addr) bool { return a.Less(hostOf(3)) } // n1 and n2
		for range 20 {
			settled(3 * period)
			l.bus.lose(func(from, to netip.Addr, _ bool) bool { return side(from) != side(to) })
			settled(6 * period)
			before := make([]uint64, len(all))
			for i, n := range all {
				before[i] = n.Counters().Sent
			}
			settled(4 * period)
			for i, n := range all {
				if sent, calls := n.Counters().Sent-before[i], i == 0 || i == 2; (sent > 30) != calls || sent > 50 {
					t.Errorf("n%d sent %d reports in four periods", i+1, sent)
				}
			}
			l.bus.lose(nil)
			settled(period/calling*11/10 + 2*earliest)
			for i, n := range all {
				for j := range all {
					if id := l.list[j].ID; i != j && !n.hears(id) {
						t.Errorf("n%d does not hear %s", i+1, id)
					}
				}
			}
		}
	})
}
