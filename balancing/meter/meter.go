// Package meter measures how busy this node is (patent S202): the pressure on its CPUs,
// the requests in progress by number and by complexity, and whatever else may run short.
//
// Start with [Meter]. Begin and End are called around each request and cost one atomic
// addition each; [Meter.Load] is one atomic read; [Meter.Run] owns all measuring and
// smoothing. It looks often while there is something to see, and seldom while the node is
// at rest: rest.go. docs/decisions/0008 says why load is what it is.
package meter

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

// Measure says what the load of a node is made of. The guards against what may run short
// count in each.
type Measure uint8

const (
	// CPU is the pressure on the CPUs, or the requests in progress if they are more.
	CPU Measure = iota
	// Requests is the number of requests in progress against a set number.
	Requests
	// Weighted is the same with each request counted by the cost of its route.
	Weighted
)

var measureNames = []string{CPU: "cpu", Requests: "requests", Weighted: "weighted"}

func (m Measure) String() string {
	if int(m) >= len(measureNames) {
		return fmt.Sprintf("measure(%d)", uint8(m))
	}
	return measureNames[m]
}

// MarshalText writes the measure's name.
func (m Measure) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a measure's name.
func (m *Measure) UnmarshalText(b []byte) error {
	i := slices.Index(measureNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a measure of load: cpu, requests or weighted", b)
	}
	*m = Measure(i)
	return nil
}

const (
	// Tau is the time constant of the smoothing. Decisions taken on a raw load
	// herd: the load must be slower than the clients that it moves.
	Tau = time.Second

	// MaxRoutes is how many routes are told apart. The rest share the last place.
	MaxRoutes = 256

	sample     = 5 * time.Millisecond
	tellEvery  = 20 * time.Millisecond
	costEvery  = 100 * time.Millisecond
	guardEvery = time.Second
)

// Config says what to measure.
type Config struct {
	Measure Measure

	// Full is how many requests in progress are 100 %; 0 leaves their number out.
	Full float64

	// Elsewhere names the routes, by number, whose requests only wait for a back-end
	// that all nodes share. Measure CPU does not count them: to move such a client would
	// help nobody, and would drive all nodes over L1 together.
	Elsewhere []int

	// Interface is the network interface whose bandwidth is watched; "" for none.
	Interface string
}

// Meter measures the load of one node.
type Meter struct {
	// Changed is called by Run when the load has changed, at most every 20 ms. It must not
	// block, and is to be set before Run; nil for nobody.
	Changed func()

	wanted  atomic.Pointer[wanted] // replaced whole
	resting atomic.Bool            // the first request is to rouse Run
	roused  chan struct{}          // capacity 1: it has

	routes [MaxRoutes]route
	costs  *costs
	smooth atomic.Uint64 // math.Float64bits of the load in per cent
	parts  atomic.Pointer[Parts]

	// Replaced in tests.
	pressure func() float64 // of the CPUs at this instant, 1 = all are busy and none waits
	instant  func() float64 // the same, for any goroutine to call
	guards   func() Guards
	cpuTime  func() time.Duration // used by this process so far
}

// wanted is what to measure.
type wanted struct {
	Config
	elsewhere [MaxRoutes]bool
}

// route is what is counted of one route, in a cache line of its own.
type route struct {
	inFlight atomic.Int64
	ended    atomic.Uint64
	_        [48]byte
}

// Parts are what the load was made of when it was last looked at in full, in per cent.
type Parts struct {
	CPU      float64 `json:"cpu"`
	Requests float64 `json:"requests"`
	Lag      float64 `json:"lag"` // of this process's own timers
	Guards
}

// New returns a meter. It measures nothing until [Meter.Run].
func New(c Config) *Meter {
	m := &Meter{
		roused: make(chan struct{}, 1), costs: newCosts(),
		pressure: newPressure(), guards: newGuards(c.Interface), cpuTime: cpuTime,
	}
	m.Set(c)
	pool := sync.Pool{New: func() any { return newPressure() }}
	m.instant = func() float64 {
		p := pool.Get().(func() float64)
		defer pool.Put(p)
		return p()
	}
	m.parts.Store(&Parts{})
	return m
}

// Set changes what is measured, at once. Requests in progress stay counted, and the costs
// that were learned of routes stay: if the routes have other numbers now, what is learned
// from here on corrects them.
func (m *Meter) Set(c Config) {
	w := &wanted{Config: c}
	for _, r := range c.Elsewhere {
		w.elsewhere[place(r)] = true
	}
	m.wanted.Store(w)
}

func place(route int) int { return min(max(route, 0), MaxRoutes-1) }

// Begin counts a request of a route in.
func (m *Meter) Begin(route int) {
	m.routes[place(route)].inFlight.Add(1)
	if m.resting.Load() {
		m.rouse()
	}
}

// End counts a request of a route out.
func (m *Meter) End(route int) {
	r := &m.routes[place(route)]
	r.inFlight.Add(-1)
	r.ended.Add(1)
}

// InFlight returns the number of requests in progress.
func (m *Meter) InFlight() (n int64) {
	for i := range m.routes {
		n += m.routes[i].inFlight.Load()
	}
	return n
}

// Load returns the load smoothed over [Tau]. It is not capped at 100.
func (m *Meter) Load() balancing.Load {
	return balancing.Load(math.Float64frombits(m.smooth.Load()))
}

// Now returns the load at this instant, not smoothed, as a part of capacity: 1 is full. It
// is for what must be decided about a single request, and takes about half a microsecond.
func (m *Meter) Now() float64 {
	w := m.wanted.Load()
	now := m.inProgress(w)
	if w.Measure == CPU {
		now = max(now, m.instant())
	}
	return now
}

// Parts returns what the load is made of, as of a second ago at the most.
func (m *Meter) Parts() Parts { return *m.parts.Load() }

// Cost returns the weight of a route: the CPU time that one of its requests takes, as far
// as could be learned, relative to the mean of all. 1 if nothing is known.
func (m *Meter) Cost(route int) float64 { return m.costs.weight(place(route)) }

// averages are the smoothed values of [Meter.Run].
type averages struct {
	cpu, requests, lag float64
	guards             Guards
}

// Run measures until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	timer := time.NewTimer(sample)
	defer timer.Stop()
	now := time.Now()
	w := watch{m: m, last: now, learned: now, guarded: now, told: now, busy: now, of: m.wanted.Load().Interface}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.roused:
			w.look(time.Now(), true)
		case <-timer.C:
			w.look(time.Now(), false)
		}
		timer.Reset(w.pause())
	}
}

// watch is what Run knows.
type watch struct {
	averages
	m     *Meter
	rests bool
	busy  time.Time // when there was something to see last
	used  float64   // CPU time, as a part of capacity, when costs were learned last

	last    time.Time // look
	learned time.Time
	guarded time.Time
	of      string // interface that is guarded
	told    time.Time
	load    balancing.Load // as told
}

// look measures at now. The true interval counts, not that of the timer: on a busy machine
// it comes late.
func (w *watch) look(now time.Time, roused bool) {
	m, passed := w.m, now.Sub(w.last)
	w.last = now
	if w.rests {
		w.learn(now)
		m.rest(&w.averages, passed, w.used)
	} else {
		m.step(&w.averages, passed)
		if now.Sub(w.learned) >= costEvery {
			w.learn(now)
		}
	}
	if now.Sub(w.guarded) >= guardEvery {
		w.guard(now)
	}
	if load := m.Load(); load != w.load && now.Sub(w.told) >= tellEvery && m.Changed != nil {
		w.load, w.told = load, now
		m.Changed()
	}
	w.settle(now, roused)
}

func (w *watch) guard(now time.Time) {
	m := w.m
	w.guarded = now
	if name := m.wanted.Load().Interface; name != w.of {
		w.of, m.guards = name, newGuards(name)
	}
	w.guards = m.guards()
	m.parts.Store(&Parts{CPU: 100 * w.cpu, Requests: 100 * w.requests, Lag: 100 * w.lag, Guards: w.guards})
}

// lagFull is the lateness of this process's own timers that counts as a load of 100 %:
// work waits for that long before anything is done about it.
const lagFull = 200 * time.Millisecond

// lag returns the lateness of a look, passed after the one before, that was to come after
// every.
func lag(passed, every time.Duration) float64 {
	return max(0, (passed-every-sample).Seconds()/lagFull.Seconds())
}

// step takes one sample, passed after the one before.
func (m *Meter) step(a *averages, passed time.Duration) {
	m.mix(a, passed, averages{cpu: m.pressure(), requests: m.inProgress(m.wanted.Load()), lag: lag(passed, sample)})
}

// mix lets the averages follow what was measured over the time that has passed.
func (m *Meter) mix(a *averages, passed time.Duration, now averages) {
	keep := math.Exp(-passed.Seconds() / Tau.Seconds())
	a.cpu = now.cpu + (a.cpu-now.cpu)*keep
	a.requests = now.requests + (a.requests-now.requests)*keep
	a.lag = now.lag + (a.lag-now.lag)*keep
	load := a.requests
	if m.wanted.Load().Measure == CPU {
		load = max(load, a.cpu, a.guards.Machine/100)
	}
	load = max(load, a.lag, a.guards.worst()/100)
	m.smooth.Store(math.Float64bits(100 * load))
}

// inProgress returns the requests in progress as a part of the full number.
func (m *Meter) inProgress(w *wanted) float64 {
	if w.Full <= 0 {
		return 0
	}
	sum := 0.0
	for i := range m.routes {
		n := m.routes[i].inFlight.Load()
		switch {
		case n == 0, w.Measure == CPU && w.elsewhere[i]:
		case w.Measure == Requests:
			sum += float64(n)
		default:
			sum += float64(n) * m.costs.weight(i)
		}
	}
	return sum / w.Full
}

// learn lets the costs of the routes follow what was used since the last time.
func (m *Meter) learn() {
	var ended [MaxRoutes]uint64
	for i := range m.routes {
		ended[i] = m.routes[i].ended.Load()
	}
	m.costs.learn(&ended, m.cpuTime())
}
