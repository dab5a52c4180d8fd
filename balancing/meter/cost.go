package meter

import (
	"math"
	"sync/atomic"
	"time"
)

// costs learns what one request of each route costs in CPU time (patent S202, the
// complexity of requests). Nothing in Go tells the CPU time of one request, but the time
// used in an interval is the sum over the requests that ended in it; as their mix changes
// from one interval to the next, the parts can be told apart. It is the normalised least
// mean squares filter.
type costs struct {
	seconds [MaxRoutes]float64 // of one request; the learner's alone
	ended   [MaxRoutes]uint64  // at the last look
	used    time.Duration
	mean    float64 // cost of a request, over all routes
	weights [MaxRoutes]atomic.Uint64
	begun   bool
}

const (
	rate      = 0.2 // of learning: how much of an error is put right at once
	minWeight = 0.1
	maxWeight = 20
	meanKeeps = 0.98
)

func newCosts() *costs {
	c := new(costs)
	for i := range c.weights {
		c.weights[i].Store(math.Float64bits(1))
	}
	return c
}

// weight returns the cost of a route's request relative to the mean, within bounds.
func (c *costs) weight(i int) float64 { return math.Float64frombits(c.weights[i].Load()) }

// learn takes the number of requests of each route that have ended so far, and the CPU
// time that the process has used so far.
func (c *costs) learn(ended *[MaxRoutes]uint64, used time.Duration) {
	var n [MaxRoutes]float64
	var total, square, expected float64
	for i := range ended {
		n[i] = float64(ended[i] - c.ended[i])
		total += n[i]
		square += n[i] * n[i]
		expected += n[i] * c.seconds[i]
	}
	spent := (used - c.used).Seconds()
	c.ended, c.used = *ended, used
	if !c.begun || total == 0 { // what is used without requests is no request's cost
		c.begun = true
		return
	}
	if c.mean == 0 {
		c.mean = spent / total
	}
	c.mean += (spent/total - c.mean) * (1 - math.Pow(meanKeeps, min(total, 100)))
	e := spent - expected
	for i := range n {
		if n[i] == 0 {
			continue
		}
		c.seconds[i] = max(0, c.seconds[i]+rate*e*n[i]/square)
		w := 1.0
		if c.mean > 0 {
			w = min(max(c.seconds[i]/c.mean, minWeight), maxWeight)
		}
		c.weights[i].Store(math.Float64bits(w))
	}
}
