package meter

import (
	"runtime"
	"time"
)

// A node without requests, whose CPUs have next to nothing to do, is at rest: samples every
// 5 ms would be most of its work. It is looked at ten times a second then, and the CPU time
// that was used in between counts in place of samples: below saturation it is what they
// would find, and it misses nothing. The first request rouses the meter at once.

const (
	// restEvery is the pause between two looks at rest. They fall on multiples of it by the
	// clock, as the self-checks of a server do, so that a process wakes up once for both.
	restEvery = 100 * time.Millisecond

	// A node comes to rest when for restAfter it has had no request that was seen, and has not
	// used restBelow of its CPU time, nor had an average of as much. As samples are taken for
	// so long, it makes no difference to them when the request came that has roused the meter.
	restAfter = Tau
	restBelow = 0.05

	// restPressure bounds the pressure too, but generously: where other programs use the CPUs,
	// the few goroutines that an idle node has wait for one most of the time.
	restPressure = 0.2
)

// Rests reports whether the node is at rest: it has no requests, and next to nothing to do.
func (m *Meter) Rests() bool { return m.resting.Load() }

// rouse has Run look more often, from now on.
func (m *Meter) rouse() {
	if m.resting.CompareAndSwap(true, false) {
		select {
		case m.roused <- struct{}{}:
		default:
		}
	}
}

// rest counts the time that has passed at rest, in which cpu was used as a part of capacity.
func (m *Meter) rest(a *averages, passed time.Duration, cpu float64) {
	m.mix(a, passed, averages{cpu: cpu, lag: lag(passed, restEvery)})
}

// learn learns what the CPU time used since the last time was used for.
func (w *watch) learn(now time.Time) {
	passed, was := now.Sub(w.learned), w.m.costs.used
	if passed <= 0 {
		return
	}
	w.learned = now
	if w.rests {
		w.m.costs.used = w.m.cpuTime() // for no request
	} else {
		w.m.learn()
	}
	w.used = (w.m.costs.used - was).Seconds() / passed.Seconds() / float64(runtime.GOMAXPROCS(0))
}

// settle decides whether the node is at rest.
func (w *watch) settle(now time.Time, roused bool) {
	m := w.m
	switch {
	case roused, max(w.used, w.requests, w.lag) >= restBelow, w.cpu >= restPressure:
		w.busy = now
	case w.rests:
		return // a request would have roused it
	case m.InFlight() > 0:
		w.busy = now
	}
	w.rests = now.Sub(w.busy) >= restAfter
	m.resting.Store(w.rests)
	if w.rests && m.InFlight() > 0 { // it came before it could rouse
		m.rouse()
	}
}

// pause returns how long nobody need look.
func (w *watch) pause() time.Duration {
	if !w.rests {
		return sample
	}
	now := time.Now()
	return now.Truncate(restEvery).Add(restEvery).Sub(now)
}
