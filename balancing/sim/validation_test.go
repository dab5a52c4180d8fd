package sim

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// queueing returns a site that is one queue of the textbooks: requests come one by one
// from everywhere, and nothing but service takes time.
func queueing(cores int, load float64, law Law) Scenario {
	s := Base()
	s.Balance = Split
	s.Nodes, s.Cores, s.Load, s.Law = 1, cores, load, law
	s.Session, s.Think, s.RTT, s.Handshake = 1, 0, 0, 0
	s.WarmUp, s.Measured = 20*time.Second, 600*time.Second/time.Duration(cores)
	return s
}

// waitProbability is Erlang's C formula for c servers and a offered erlangs.
func waitProbability(c int, a float64) float64 {
	term, sum := 1.0, 1.0 // a^k/k!
	for k := 1; k < c; k++ {
		term *= a / float64(k)
		sum += term
	}
	last := term * a / float64(c) * float64(c) / (float64(c) - a)
	return last / (sum + last)
}

// TestQueuesOfTheTextbooks compares mean response times with theory. Each is the mean of
// ten runs with their own seeds. The scatter of these gives the standard error, and the
// bound is four of them: a right simulator misses it once in a hundred thousand choices of
// seeds, not counting that ten runs say little of the scatter. For the test to mean
// something, the error itself must be a few per cent at most.
func TestQueuesOfTheTextbooks(t *testing.T) {
	const mean = 10.0 // ms
	erlang := func(c int, rho float64) float64 {
		a := rho * float64(c)
		return mean + waitProbability(c, a)*mean/(float64(c)-a)
	}
	for _, c := range []struct {
		name string
		s    Scenario
		want float64
	}{
		{"M/M/1-PS 50%", queueing(1, 50, Exponential), mean / (1 - 0.5)},
		{"M/M/1-PS 80%", queueing(1, 80, Exponential), mean / (1 - 0.8)},
		{"M/D/1-PS 70%, insensitive", queueing(1, 70, Constant), mean / (1 - 0.7)},
		{"M/G/1-PS 50%, insensitive", spread(queueing(1, 50, Lognormal), 1), mean / (1 - 0.5)},
		{"M/G/8-PS 70%, insensitive", spread(queueing(8, 70, Lognormal), 1), erlang(8, 0.7)},
		{"M/M/1-FCFS 70%", fcfs(queueing(1, 70, Exponential)), mean / (1 - 0.7)},
		{"M/D/1-FCFS 70%, Pollaczek-Khinchine", fcfs(queueing(1, 70, Constant)), mean * (1 + 0.7/(2*(1-0.7)))},
		{"M/M/8-FCFS 80%, Erlang C", fcfs(queueing(8, 80, Exponential)), erlang(8, 0.8)},
		{"M/M/2-FCFS 60%, Erlang C", fcfs(queueing(2, 60, Exponential)), erlang(2, 0.6)},
	} {
		t.Run(c.name, func(t *testing.T) {
			const runs = 10
			var sum, squares float64
			for seed := range runs {
				c.s.Seed = uint64(seed + 1)
				r, err := Run(t.Context(), c.s, nil)
				if err != nil {
					t.Fatal(err)
				}
				sum += r.Mean
				squares += r.Mean * r.Mean
			}
			got := sum / runs
			deviation := math.Sqrt((squares - sum*sum/runs) / (runs - 1) / runs)
			t.Logf("mean %.3f ± %.3f ms, theory %.3f", got, deviation, c.want)
			if math.Abs(got-c.want) > 4*deviation {
				t.Errorf("mean response time %.3f ± %.3f ms, want %.3f", got, deviation, c.want)
			}
			if deviation > 0.03*c.want {
				t.Errorf("standard error %.3f ms of %.3f: the test says nothing", deviation, got)
			}
		})
	}
}

func fcfs(s Scenario) Scenario { s.FCFS = true; return s }

func spread(s Scenario, sigma float64) Scenario { s.Spread = sigma; return s }

// TestOfferedLoad: what the nodes do is what the scenario offers, whatever the visits, the
// law and the speed of the nodes.
func TestOfferedLoad(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Scenario)
	}{
		{"visits of random length", func(*Scenario) {}},
		{"visits of fixed length", func(s *Scenario) { s.FixedSize = true }},
		{"one request each", func(s *Scenario) { s.Session = 1 }},
		{"constant service", func(s *Scenario) { s.Law = Constant }},
		{"slow nodes", func(s *Scenario) { s.SlowShare, s.SlowSpeed = 0.5, 0.5 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Base()
			s.Balance = Ideal
			s.Handshake = 0
			s.Load, s.Measured = 60, 20*time.Second
			c.change(&s)
			r, err := Run(t.Context(), s, nil)
			if err != nil {
				t.Fatal(err)
			}
			speed := 1 - s.SlowShare*(1-s.SlowSpeed)
			want := s.Load / 100 * float64(s.Nodes*s.Cores) * speed / s.Service.Seconds() * s.Measured.Seconds()
			// A visit of ten requests brings ten times the variance of single ones; for
			// lengths at random, twice that.
			deviation := math.Sqrt(want * 2 * s.Session)
			if got := float64(r.Requests); math.Abs(got-want) > 4*deviation {
				t.Errorf("%.0f requests in %v, want %.0f ± %.0f", got, s.Measured, want, deviation)
			}
		})
	}
}

// TestNothingIsForgotten follows each request through the trace of a run with pins, relays,
// lost reports and a death: it is answered or lost once, and only the last ones are under
// way at the end.
func TestNothingIsForgotten(t *testing.T) {
	s := site("death")
	s.Cold, s.Loss, s.Pinned = false, 0.1, 0.5
	s.Dies, s.Returns, s.WarmUp, s.Measured = 5*time.Second, 9*time.Second, time.Second, 14*time.Second
	if err := s.SetMethod("damped+relay"); err != nil {
		t.Fatal(err)
	}
	var trace bytes.Buffer
	r, err := Run(context.Background(), s, &trace)
	if err != nil {
		t.Fatal(err)
	}
	const dead = "n015"
	open, lost, answered := map[string]float64{}, 0, 0
	served := map[string]int{}
	for line := range strings.Lines(trace.String()) {
		f := strings.Fields(line)
		var at float64
		if _, err := fmt.Sscan(f[0], &at); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		id := f[2] + f[3]
		switch f[1] {
		case "redirect":
			open[id] = at
			if strings.HasSuffix(line, "peer="+dead+"\n") && at > 6.8 && at < 9 {
				t.Fatalf("redirected to a node that is off-line: %s", line)
			}
		case "serve", "relay":
			open[id] = at
			node := strings.TrimPrefix(f[4], "node=")
			if served[node]++; node == dead && at > 5 && at < 10.4 {
				t.Fatalf("served by a dead or joining node: %s", line)
			}
		case "answer", "lost":
			if _, ok := open[id]; !ok {
				t.Fatalf("came to an end without a beginning, or twice: %s", line)
			}
			delete(open, id)
			if f[1] == "lost" {
				lost++
			} else if answered++; at < 1 {
				answered--
			}
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	for id, at := range open {
		if at < 12 {
			t.Errorf("%s was placed at %.3f s and never came to an end", id, at)
		}
	}
	if lost == 0 || answered != r.Requests {
		t.Errorf("%d lost and %d answered in the trace; the result has %d answered", lost, answered, r.Requests)
	}
	if len(served) != s.Nodes {
		t.Errorf("%d of %d nodes served", len(served), s.Nodes)
	}
}
