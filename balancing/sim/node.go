package sim

import (
	"math"
	"time"

	"peerage/balancing"
)

// node is one simulated node: a processor with several cores, and the shipped policy's
// view and ledger.
type node struct {
	index int
	cores float64
	speed float64
	fcfs  bool
	alive bool

	// Processor sharing by virtual time: done grows at the rate at which each job in
	// service advances, and a job ends when done has reached its key. So a job that comes
	// or goes changes one number, not all jobs.
	jobs    queue[float64, job]
	waiting []job   // first come, first served only: jobs without a core
	done    float64 // seconds of work that a job in service since the start would have got

	// The load measure, brought up to time at.
	at      time.Duration
	tau     float64 // seconds
	measure Measure
	full    float64 // requests in progress that count as 100 %, for the measure Requests
	load    float64 // per cent, smoothed
	area    float64 // pressure summed over this second

	view   balancing.View
	ledger *balancing.Ledger
	turn   int // of rule Rotate; see balancing.Request
	report report
}

// job is work on a node. client is -1 where nobody waits for its end.
type job struct {
	client int32
	work   float64 // seconds
	passes bool    // through the central proxy on its way to a node
}

// report is what a node last said of itself, and when it must speak again.
type report struct {
	load        balancing.Load
	state       balancing.State
	incarnation uint64
	sent        time.Duration
	due         time.Duration
	silent      []time.Duration // by peer: when that is off-line if nothing is heard of it until then
}

// me returns the node's own line in its view.
func (n *node) me() *balancing.Node { return &n.view.Nodes[n.index] }

// inProgress counts the jobs in service and waiting.
func (n *node) inProgress() int { return n.jobs.len() + len(n.waiting) }

// pressure is the jobs in progress for each core.
func (n *node) pressure() float64 { return float64(n.inProgress()) / n.cores }

// rate is at which a job in service advances.
func (n *node) rate() float64 {
	if k := float64(n.jobs.len()); k > n.cores {
		return n.speed * n.cores / k
	}
	return n.speed
}

// instant is the load before smoothing, in per cent.
func (n *node) instant() float64 {
	switch n.measure {
	case Utilisation:
		return 100 * min(n.pressure(), 1)
	case Requests:
		return 100 * float64(n.inProgress()) / n.full
	}
	return 100 * n.pressure()
}

// advance brings work and load up to now. Between two events neither the number of jobs
// nor the rate changes, so this is exact, where a real meter samples.
func (n *node) advance(now time.Duration) {
	if now <= n.at {
		return
	}
	passed := (now - n.at).Seconds()
	n.at = now
	n.done += passed * n.rate()
	n.area += passed * n.pressure()
	x := n.instant()
	if n.tau > 0 {
		x += (n.load - x) * math.Exp(-passed/n.tau)
	}
	n.load = x
}

// add gives the node a job. The caller has brought it up to date.
func (n *node) add(j job) {
	if n.fcfs && n.jobs.len() >= int(n.cores) {
		n.waiting = append(n.waiting, j)
		return
	}
	n.jobs.push(n.done+j.work, j)
}

// rounding covers that departures are rounded up to whole nanoseconds.
const rounding = 1e-9

// finished takes out a job that has ended, if there is one.
func (n *node) finished() (job, bool) {
	if n.jobs.len() == 0 || n.jobs.items[0].key > n.done+rounding {
		return job{}, false
	}
	j := n.jobs.pop()
	if len(n.waiting) > 0 {
		next := n.waiting[0]
		n.waiting = n.waiting[1:]
		n.jobs.push(n.done+next.work, next)
	}
	return j, true
}

// nextDeparture returns when the next job ends if none comes or goes before.
func (n *node) nextDeparture() time.Duration {
	if n.jobs.len() == 0 {
		return never
	}
	left := (n.jobs.items[0].key - n.done) / n.rate()
	return n.at + time.Duration(math.Ceil(max(left, 0)*1e9))
}
