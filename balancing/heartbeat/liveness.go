package heartbeat

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"peerage/balancing"
)

const (
	// leastSilence bounds [Silence] from below: the kernel's timers count in steps of up to
	// 10 ms, and no machine is always on time.
	leastSilence = 120 * time.Millisecond

	// leastMargin is how much sooner than its peers' verdict a node must be silent, at least.
	leastMargin = 25 * time.Millisecond

	// cutSilence is for how long a peer may be silent whose connection the kernel has closed,
	// and cutAsk how often it is asked meanwhile.
	cutSilence = 75 * time.Millisecond
	cutAsk     = 25 * time.Millisecond
)

// Silence returns after how long without a report of a node its peers take it for off-line,
// if it reports every period and may miss after of them.
func Silence(period time.Duration, after int) time.Duration {
	return max(time.Duration(after)*period, leastSilence)
}

// Lease returns for how long a report lets its sender answer for VIPs. It is over before
// [Silence] is, so that who is claimed from has fallen silent.
func Lease(period time.Duration, after int) time.Duration {
	d := Silence(period, after)
	return d - max(d/10, leastMargin)
}

// lease is this node's right to answer for VIPs, as the kernel sees it: marked reports
// renew it. It belongs to an Exchange, and is guarded by its mu.
type lease struct {
	vouched time.Time     // reports until then are marked
	end     time.Duration // when it runs out, by the clock of the exchange; 0: it is not open
	length  time.Duration // of the latest
	lapsed  bool          // it ran out by itself, and that is not made good yet
	began   bool          // since then this node has said that it does not serve
	renewed chan struct{} // capacity 1: a marked report has left
}

// sinceBoot is a clock that goes on while the machine sleeps.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Duration(time.Now().UnixNano()) // only a kernel before 2.6.39
	}
	return time.Duration(t.Nano())
}

// Vouch says that this node may answer for VIPs: for the time given, its reports are
// marked with [Config.Mark]. It returns when one has left so that the kernel lets the VIPs
// through, or with an error when ctx ends before.
//
// If no marked report leaves for [Lease], because this process or its machine stood still,
// the right is gone: the view and the reports say that the node is joining and holds
// nothing, until [Exchange.Update] has said both. Without a Mark, it does nothing.
func (x *Exchange) Vouch(ctx context.Context, d time.Duration) error {
	if x.c.Mark == 0 {
		return nil
	}
	for {
		x.mu.Lock()
		x.overdue()
		lapsed, open := x.lease.lapsed, x.lease.end != 0
		if !lapsed {
			x.lease.vouched = time.Now().Add(d)
			if now := Lease(x.settings.Period, x.c.OfflineAfter); !open || now != x.lease.length {
				x.lease.length = now
				x.freed = x.freed || !open // until it has left, what this node claims is dark
				x.tell(true)               // or the kernel goes by another length from now on
			}
		}
		x.mu.Unlock()
		switch {
		case lapsed:
			return errors.New("the right to answer has lapsed: this node stood still for longer than its peers wait")
		case open:
			return nil
		}
		select {
		case <-x.lease.renewed:
		case <-ctx.Done():
			return errors.New("no report has left by which the kernel would let VIPs through")
		}
	}
}

// entitled reports whether what is marked may still leave.
func (x *Exchange) entitled() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.overdue()
	return !x.lease.lapsed
}

// vouching reports whether a report that leaves at now is to be marked. x.mu is held.
func (x *Exchange) vouching(now time.Time) bool {
	return x.c.Mark != 0 && !x.lease.lapsed && now.Before(x.lease.vouched)
}

// renew notes that a marked report was sent at start, by the clock of the exchange.
func (x *Exchange) renew(start, period time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.overdue(); !x.lease.lapsed { // else it was too late
		x.lease.end = start + Lease(period, x.c.OfflineAfter)
		signal(x.lease.renewed)
	}
}

// overdue ends the lease if it has run out. For a node that holds nothing that is as it
// should be. x.mu is held.
func (x *Exchange) overdue() {
	if x.lease.end == 0 || x.boot() < x.lease.end {
		return
	}
	x.lease.end = 0
	if len(x.status.Held) == 0 {
		return
	}
	x.lease.lapsed, x.lease.vouched = true, time.Time{}
	x.counters.lapsed.Add(1)
	x.c.Log.Error("lease lapsed", "reason", "this node stood still, or its reports did not leave")
	x.publish(time.Now())
	x.tell(true)
}

// mend makes a lapse good, when s has said that this node does not serve, and that it holds
// nothing.
func (l *lease) mend(s *Status) {
	if !l.lapsed {
		return
	}
	l.began = l.began || s.State != balancing.OK && s.State != balancing.Degraded
	if l.began && len(s.Held) == 0 {
		l.lapsed, l.began = false, false
	}
}

// said is what the reports say of this node. x.mu is held.
func (x *Exchange) said() Status {
	s := x.status
	if x.lease.lapsed {
		s.State, s.Held = balancing.Joining, nil // the kernel lets nothing through
	}
	return s
}
