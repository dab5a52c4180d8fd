package node

import (
	"fmt"
	"slices"
	"time"

	"peerage/balancing"
)

// facts are what the guard knows of its own node when it judges its state.
type facts struct {
	started  time.Time
	listen   time.Duration // how long a new node listens before it takes anything
	holdDown time.Duration // how long it must have been well before a stand-in gives its VIPs back
	stale    time.Duration // age at which a health token says that the server is sick

	current balancing.State // 0 before the first judgement
	token   time.Time       // when the server last served itself; zero: never, or it ended
	told    token           // what it said then
	clocks  counted         // reports of peers that were refused for their clock
	twins   counted         // reports of another node under this one's name
	well    time.Time       // since when the tokens have come without a gap
	serves  time.Time       // when it began to serve after its peers did; zero if they began together
	cut     bool            // the public interface has no carrier
	mended  time.Time       // when it last got it back
	leaving bool
	drained bool // an operator wants it to take no work

	isolated bool   // no peer and no witness answers
	stopped  bool   // the server's process does not run
	lapsed   uint64 // times that the right to answer for VIPs was lost
	unfenced string // why the kernel would let VIPs through although this node is frozen
}

// counted is something that is counted, and should not be there.
type counted struct {
	n     uint64
	first time.Time // of those that came without a pause of recently
	last  time.Time
}

// recently is for how long after the last one it is there.
const recently = 10 * time.Second

// count takes how many there were by now.
func (c *counted) count(now time.Time, n uint64) {
	if n == c.n {
		return
	}
	if !c.isThere(now) {
		c.first = now
	}
	c.n, c.last = n, now
}

func (c *counted) isThere(now time.Time) bool {
	return !c.last.IsZero() && now.Sub(c.last) < recently
}

// twinAfter is how long another node must have been heard under this one's name: what an
// earlier start of this node has sent may still be on its way.
const twinAfter = 3 * time.Second

// tell takes a health token that came at now.
func (f *facts) tell(now time.Time, t token) {
	f.token, f.told = now, t
}

// carrier takes whether the public interface has a carrier at now.
func (f *facts) carrier(now time.Time, has bool) {
	if f.cut && has {
		f.mended = now
	}
	f.cut = !has
}

// isolate takes whether the node is cut off, at now.
func (f *facts) isolate(now time.Time, cut bool) {
	if f.isolated && !cut {
		f.mended = now
	}
	f.isolated = cut
}

// lapse takes how often the right to answer for VIPs was lost by now. Whoever stood still
// for so long begins as one that starts: its peers hold its VIPs by now.
func (f *facts) lapse(now time.Time, times uint64) {
	if times == f.lapsed {
		return
	}
	f.lapsed, f.mended, f.well = times, now, time.Time{}
	if f.current != 0 {
		f.current = balancing.Joining
	}
}

// judge settles the node's state at now; held says that a peer holds a VIP of this
// node.
//
// A node that starts, or was sick, is Joining until it has listened long enough to
// know who is there. If a stand-in holds its VIPs meanwhile, it stays Joining for the
// hold-down, so that a node that comes and goes does not take its clients along.
func (f *facts) judge(now time.Time, held bool) balancing.State {
	f.current = f.next(now, held)
	return f.current
}

func (f *facts) next(now time.Time, held bool) balancing.State {
	// Behind a cable that is pulled a server is well, and of no use.
	fresh := !f.token.IsZero() && now.Sub(f.token) <= f.stale && !f.cut && !f.isolated && !f.stopped
	switch {
	case !fresh:
		f.well = time.Time{}
	case f.well.IsZero():
		f.well = now
	}
	switch {
	case f.leaving:
		return balancing.Draining
	case !fresh && f.current != balancing.Joining && f.current != 0:
		return balancing.Sick
	case !fresh && now.Sub(f.started) > max(startTime, f.stale):
		return balancing.Sick // peers wait for a node that joins, but not for ever
	case f.drained && fresh:
		return balancing.Draining
	case f.current == balancing.OK, f.current == balancing.Degraded:
		return f.serving(now)
	case !fresh, now.Sub(f.started) < f.listen, now.Sub(f.mended) < f.listen:
		return balancing.Joining
	case held && now.Sub(f.well) < f.holdDown:
		return balancing.Joining
	}
	f.current = balancing.OK // whatever was amiss with a sick node is over
	return f.serving(now)
}

// startTime is how long a server may take to answer itself for the first time. Until then
// its VIPs wait for it.
const startTime = 5 * time.Second

// serving returns the state of a node that serves.
func (f *facts) serving(now time.Time) balancing.State {
	if len(f.amiss(now)) > 0 {
		return balancing.Degraded
	}
	return balancing.OK
}

// amiss lists what an operator should see to, although the node serves.
func (f *facts) amiss(now time.Time) []string {
	all := slices.Clone(f.told.Amiss)
	if f.cut {
		all = append(all, "the public interface has no carrier")
	}
	if f.isolated && !f.cut {
		all = append(all, "neither a peer nor a witness answers: this node is cut off, and holds no VIPs")
	}
	if f.stopped {
		all = append(all, "the server's process has been stopped: 'kill -CONT' lets it go on")
	}
	if f.unfenced != "" {
		all = append(all, "no fence around the VIPs: "+f.unfenced)
	}
	if f.current == balancing.Sick && !f.cut && !f.isolated && !f.stopped {
		all = append(all, fmt.Sprintf("the server has not answered itself for %v", f.stale))
	}
	if f.clocks.isThere(now) {
		all = append(all, "the clock differs from that of a peer by more than 30 s: run NTP on both; the log says which")
	}
	if f.twins.isThere(now) && f.twins.last.Sub(f.twins.first) >= twinAfter {
		all = append(all, "another node runs under this node's name: stop one of them; of a disk that was copied only one may run, and the other machine must join as a node of its own")
	}
	return all
}

// forgive makes the last token younger by the time that the guard itself was late: newer
// ones may lie unread.
func (f *facts) forgive(late time.Duration) {
	if late > healthEvery/2 && !f.token.IsZero() {
		f.token = f.token.Add(late)
	}
}

// slowStart is how long a node that returns to a site at work seems busier than it is, so
// that its peers do not send it all their excess at once.
const slowStart = 10 * time.Second

// load returns the load to report at now. A node that returns reports no less than what
// falls from first to nothing over [slowStart].
func (f *facts) load(now time.Time, first balancing.Load) balancing.Load {
	since := now.Sub(f.serves)
	if f.serves.IsZero() || since >= slowStart {
		return f.told.Load
	}
	return max(f.told.Load, first*balancing.Load(1-since.Seconds()/slowStart.Seconds()))
}

// atWork reports whether a peer serves already.
func atWork(v *balancing.View) bool {
	for p := range v.Peers() {
		if p.Serves() {
			return true
		}
	}
	return false
}

// homeHeldByOthers reports whether a peer holds a VIP that belongs to the view's owner.
func homeHeldByOthers(v *balancing.View) bool {
	me := v.Me()
	if me == nil {
		return false
	}
	for p := range v.Peers() {
		if slices.ContainsFunc(me.Home, p.Holds) {
			return true
		}
	}
	return false
}
