package meter

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// still returns a meter whose surroundings say nothing: no CPU is used, nothing is short.
func still(c Config) *Meter {
	m := New(c)
	m.pressure = func() float64 { return 0 }
	m.instant = m.pressure
	m.guards = func() Guards { return Guards{} }
	m.cpuTime = func() time.Duration { return 0 }
	return m
}

// run runs m in the bubble of a test, until the returned function is called.
func run(t *testing.T, m *Meter) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
}

func within(t *testing.T, what string, m *Meter, low, high float64) {
	t.Helper()
	if got := float64(m.Load()); got < low || got > high {
		t.Errorf("%s: load = %.1f, want %.1f to %.1f", what, got, low, high)
	}
}

// TestSetCountsAtOnce: requests in progress go on being counted, by what is wanted now.
func TestSetCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := still(Config{Measure: Requests, Full: 20})
		var looked atomic.Int64
		m.guards = func() Guards {
			looked.Add(1)
			return Guards{}
		}
		defer run(t, m)()
		for i := range 10 {
			m.Begin(i % 2)
		}
		time.Sleep(10 * Tau)
		within(t, "10 of 20", m, 49, 51)
		for _, step := range []struct {
			name string
			c    Config
			want float64
		}{
			{"10 of 10", Config{Measure: Requests, Full: 10}, 100},
			{"no bound", Config{Measure: Requests}, 0},
			{"half of them elsewhere", Config{Measure: CPU, Full: 10, Elsewhere: []int{1}}, 50},
			{"none elsewhere", Config{Measure: CPU, Full: 10}, 100},
		} {
			m.Set(step.c)
			if got := 100 * m.Now(); math.Abs(got-step.want) > 1 {
				t.Errorf("%s: at this instant %.1f, want %.1f", step.name, got, step.want)
			}
			time.Sleep(10 * Tau)
			within(t, step.name, m, step.want-1, step.want+1)
		}
		for i := range 10 {
			m.End(i % 2)
		}
		if n := m.InFlight(); n != 0 {
			t.Errorf("in flight: %d, want 0", n)
		}
		before := looked.Load()
		m.Set(Config{Measure: Requests, Full: 10, Interface: "nosuch0"})
		time.Sleep(3 * guardEvery)
		if n := looked.Load(); before == 0 || n != before {
			t.Errorf("the guards of the interface before were asked %d times, and then %d times more", before, n-before)
		}
	})
}

// TestLoadFollowsRequestsInProgress is the number of requests of S202.
func TestLoadFollowsRequestsInProgress(t *testing.T) {
	for _, measure := range []Measure{CPU, Requests, Weighted} {
		t.Run(measure.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := still(Config{Measure: measure, Full: 10})
				defer run(t, m)()
				within(t, "idle", m, 0, 0)
				for i := range 20 {
					m.Begin(i)
				}
				if n := m.InFlight(); n != 20 {
					t.Errorf("in flight: %d, want 20", n)
				}
				time.Sleep(50 * time.Millisecond)
				within(t, "20 of 10 in progress for 50 ms", m, 8, 11)
				time.Sleep(Tau - 50*time.Millisecond)
				within(t, "20 of 10 in progress for one time constant", m, 124, 128)
				time.Sleep(9 * Tau)
				within(t, "20 of 10 in progress for long: not capped", m, 199, 200)
				for i := range 20 {
					m.End(i)
				}
				time.Sleep(Tau)
				within(t, "all ended one time constant ago", m, 71, 76)
				time.Sleep(20 * Tau)
				within(t, "all ended long ago", m, 0, 0.1)
			})
		})
	}
}

// TestCapacity: of two nodes of different size, the same work fills the smaller one more
// (S202, the capacity left).
func TestCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small, large := still(Config{Full: 10}), still(Config{Full: 40})
		defer run(t, small)()
		defer run(t, large)()
		for range 10 {
			small.Begin(0)
			large.Begin(0)
		}
		time.Sleep(10 * Tau)
		within(t, "small", small, 99, 101)
		within(t, "large", large, 24, 26)
	})
}

func TestCPUPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Config{Full: 100}
		m := still(c)
		m.pressure = func() float64 { return 2.5 }
		defer run(t, m)()
		c.Measure = Requests
		r := still(c)
		r.pressure = m.pressure
		defer run(t, r)()
		time.Sleep(10 * Tau)
		within(t, "two and a half goroutines for each CPU", m, 249, 250)
		within(t, "the same under measure requests", r, 0, 0)
		if p := m.Parts(); math.Round(p.CPU) != 250 || p.Requests != 0 {
			t.Errorf("parts are %+v", p)
		}
	})
}

// TestElsewhere: requests that wait for a back-end of all nodes say nothing about this
// node, unless it is their number that is asked for.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Config{Full: 10, Elsewhere: []int{1, 2, MaxRoutes + 50}}
		m := still(c)
		defer run(t, m)()
		c.Measure = Requests
		r := still(c)
		defer run(t, r)()
		for _, m := range []*Meter{m, r} {
			for route := range 3 {
				for range 5 {
					m.Begin(route)
				}
			}
		}
		time.Sleep(10 * Tau)
		within(t, "5 here and 10 elsewhere", m, 49, 51)
		within(t, "all 15, by number", r, 149, 151)
	})
}

func TestNow(t *testing.T) {
	m := still(Config{Full: 10})
	for range 5 {
		m.Begin(0)
	}
	if got := m.Now(); got != 0.5 {
		t.Errorf("5 of 10 in progress: %v, want 0.5 at once", got)
	}
	m.instant = func() float64 { return 1.5 }
	if got := m.Now(); got != 1.5 {
		t.Errorf("three goroutines for two CPUs: %v, want 1.5", got)
	}
	if got := New(Config{}).Now(); got < 0 || got > 1000 {
		t.Errorf("of this process: %v", got)
	}
}

func TestGuardsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := still(Config{Measure: Requests, Full: 10})
		m.guards = func() Guards { return Guards{Machine: 95, Files: 80, Memory: 30} }
		defer run(t, m)()
		time.Sleep(3 * Tau)
		within(t, "most of the file descriptors are used", m, 80, 80)
	})
}

// TestLag: a process whose own timers are late is loaded, whatever else is measured.
func TestLag(t *testing.T) {
	m := still(Config{Measure: Requests})
	var a averages
	for range 100 {
		m.step(&a, 2*sample+lagFull)
	}
	within(t, "timers late by the full", m, 99, 100)
	for range 1000 {
		m.step(&a, sample)
	}
	within(t, "timers in time again", m, 0, 1)
}

// TestComplexity is the complexity of requests of S202: a costly route weighs more than
// a cheap one, and is told from it by nothing but the CPU time of the whole process.
func TestComplexity(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	m := still(Config{Measure: Weighted, Full: 10})
	cost := []time.Duration{100 * time.Microsecond, 2 * time.Millisecond, 500 * time.Microsecond}
	var used time.Duration
	m.cpuTime = func() time.Duration { return used }
	for range 3000 {
		for route, c := range cost {
			for range rnd.IntN(20) {
				m.Begin(route)
				m.End(route)
				used += time.Duration(float64(c) * (0.5 + rnd.Float64()))
			}
		}
		m.learn()
	}
	const mean = 2600.0 / 3 // µs
	for route, want := range []float64{100 / mean, 2000 / mean, 500 / mean} {
		if got := m.Cost(route); got < want*0.75-0.03 || got > want*1.25+0.03 {
			t.Errorf("route %d weighs %.2f, want about %.2f", route, got, want)
		}
	}
	if got := m.Cost(77); got != 1 {
		t.Errorf("a route without requests weighs %v, want 1", got)
	}
	var cheap, dear averages
	for range 5 {
		m.Begin(0)
	}
	for range 2000 {
		m.step(&cheap, sample)
	}
	low := m.Load()
	for range 5 {
		m.End(0)
		m.Begin(1)
	}
	for range 2000 {
		m.step(&dear, sample)
	}
	if m.Load() < 5*low {
		t.Errorf("five requests of the costly route: load %v, of the cheap one %v: want far more", m.Load(), low)
	}
}

// TestPressureOfThisProcess asks the real scheduler: with more busy goroutines than CPUs,
// some wait.
func TestPressureOfThisProcess(t *testing.T) {
	pressure := newPressure()
	procs := runtime.GOMAXPROCS(0)
	var stop sync.WaitGroup
	var end atomic.Bool
	for range 4 * procs {
		stop.Go(func() {
			for !end.Load() {
			}
		})
	}
	most := 0.0
	for range 10 {
		most = max(most, pressure())
		runtime.Gosched()
	}
	end.Store(true)
	stop.Wait()
	if most < 2 {
		t.Errorf("four busy goroutines for each CPU read as %.2f at the most, want above 2", most)
	}
}

func TestParse(t *testing.T) {
	const stat = "cpu  27475 1 7171 280775 250 2 62 29 5 0\ncpu0 1 1 1 1\n"
	if busy, total := parseStat(stat); busy != 27475+1+7171+2+62+29 || total != busy+280775+250 {
		t.Errorf("parseStat = %d of %d", busy, total)
	}
	for _, text := range []string{"", "cpu", "cpu 1 2 3", "cpu a b c d e", "intr 1 2 3 4 5"} {
		if busy, total := parseStat(text); busy != 0 || total != 0 {
			t.Errorf("parseStat(%q) = %d of %d, want nothing", text, busy, total)
		}
	}
	if got := parsePressure("some avg10=3.25 avg60=0.03 avg300=0.06 total=2357043\nfull avg10=9.00\n"); got != 3.25 {
		t.Errorf("parsePressure = %v, want 3.25", got)
	}
	for _, text := range []string{"", "some", "some avg10=x", "full avg10=1.0", "some avg10=NaN", "some avg10=-1"} {
		if got := parsePressure(text); got != 0 {
			t.Errorf("parsePressure(%q) = %v, want 0", text, got)
		}
	}
}

func BenchmarkBeginEnd(b *testing.B) {
	m := New(Config{Full: 64})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Begin(3)
			m.End(3)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	m := New(Config{Full: 64})
	b.ReportAllocs()
	for b.Loop() {
		m.Load()
	}
}

func BenchmarkSample(b *testing.B) {
	m := New(Config{Full: 64})
	var a averages
	b.ReportAllocs()
	for b.Loop() {
		m.step(&a, sample)
	}
}

func BenchmarkNow(b *testing.B) {
	m := New(Config{Full: 64})
	b.ReportAllocs()
	for b.Loop() {
		m.Now()
	}
}
