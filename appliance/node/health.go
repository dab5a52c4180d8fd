package node

import (
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
	load    balancing.Load
	well    time.Time // since when the tokens have come without a gap
	leaving bool
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
	fresh := !f.token.IsZero() && now.Sub(f.token) <= f.stale
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
	case f.current == balancing.OK:
		return balancing.OK
	case !fresh, now.Sub(f.started) < f.listen:
		return balancing.Joining
	case held && now.Sub(f.well) < f.holdDown:
		return balancing.Joining
	}
	return balancing.OK
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
