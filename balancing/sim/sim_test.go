package sim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"peerage/balancing"
)

func TestQueueIsStable(t *testing.T) {
	type pair struct{ key, number int }
	var q queue[int, pair]
	rnd := rand.New(rand.NewPCG(1, 2))
	var want, got []pair
	for i := range 1000 {
		p := pair{rnd.IntN(50), i}
		q.push(p.key, p)
		want = append(want, p)
	}
	slices.SortStableFunc(want, func(a, b pair) int { return cmp.Compare(a.key, b.key) })
	for q.len() > 0 {
		got = append(got, q.pop())
	}
	if !slices.Equal(got, want) {
		t.Errorf("came out in another order than that of the keys, and of the pushes for equal ones")
	}
}

func TestDeparturesFindTheFirst(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, nodes := range []int{1, 2, 5, 16, 17} {
		d := newDepartures(nodes)
		at := make([]time.Duration, nodes)
		for i := range at {
			at[i] = never
		}
		for range 500 {
			i := rnd.IntN(nodes)
			at[i] = time.Duration(rnd.IntN(1000))
			if rnd.IntN(5) == 0 {
				at[i] = never
			}
			d.set(i, at[i])
			if node, first := d.first(); first != slices.Min(at) || at[node] != first {
				t.Fatalf("%d nodes: first is node %d at %v, want %v", nodes, node, first, slices.Min(at))
			}
		}
	}
}

func TestQuantiles(t *testing.T) {
	var h histogram
	for i := range 10000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 5 * time.Second}, {0.99, 9900 * time.Millisecond}, {0.999, 9990 * time.Millisecond}} {
		if got := h.quantile(c.q); math.Abs(float64(got-c.want)) > growth*float64(c.want) {
			t.Errorf("quantile %v = %v, want %v within %v %%", c.q, got, c.want, 100*growth)
		}
	}
	if got, want := h.mean(), 5000500*time.Microsecond; got != want {
		t.Errorf("mean = %v, want %v", got, want)
	}
}

// TestLoadMeasure: a node that becomes busy shows 63 % of it after one time constant, and
// its load goes beyond 100.
func TestLoadMeasure(t *testing.T) {
	for _, c := range []struct {
		measure Measure
		want    float64
	}{{Pressure, 300}, {Utilisation, 100}, {Requests, 30}} {
		s := Base()
		s.Cores, s.Measure, s.Full = 2, c.measure, 10
		n := newSimulation(s).nodes[0]
		for range 6 {
			n.add(job{client: -1, work: 1000})
		}
		n.advance(time.Second)
		if got, want := n.load, c.want*(1-1/math.E); math.Abs(got-want) > 0.01 {
			t.Errorf("%v of 6 jobs on 2 cores after one time constant = %.2f, want %.2f", c.measure, got, want)
		}
	}
}

func TestOverloadedNodesAreNotListed(t *testing.T) {
	for _, c := range []struct {
		name  string
		loads []balancing.Load
		off   int // node that is off-line, or -1
		want  []int32
	}{
		{"all light", []balancing.Load{10, 20, 50, 0}, -1, []int32{0, 1, 2, 3}},
		{"above L1 and the mean", []balancing.Load{10, 20, 90, 30}, -1, []int32{0, 1, 3}},
		{"above L1 but not above the mean", []balancing.Load{60, 70, 300, 80}, -1, []int32{0, 1, 3}},
		{"never fewer than two", []balancing.Load{90, 95, 100, 10}, -1, []int32{3, 0}},
		{"off-line", []balancing.Load{10, 20, 30, 30}, 1, []int32{0, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Base()
			s.Nodes, s.DNSHelps = 4, true
			sim := newSimulation(s)
			for _, n := range sim.nodes {
				n.load = float64(c.loads[n.index])
				for i, l := range c.loads {
					n.view.Nodes[i].Load = l
					n.view.Nodes[i].Online = i != c.off
				}
			}
			if c.off >= 0 {
				sim.nodes[c.off].alive = false
			}
			if got := sim.listed(); !slices.Equal(got, c.want) {
				t.Errorf("listed %v, want %v", got, c.want)
			}
		})
	}
}

func TestEarlyReportsDoNotPutOffTheRegularOnes(t *testing.T) {
	c := Base()
	c.SetNodes(2)
	s := newSimulation(c)
	n := s.nodes[0]
	s.scheduleNext(n)
	due := n.report.due
	if due < 9*c.Period/10 || due > 11*c.Period/10 {
		t.Fatalf("the first report is due at %v, want the period within a tenth", due)
	}
	s.now, n.load = 2*between, float64(c.Policy.Light)+1
	s.reportEarly(n)
	if n.report.sent != s.now || n.report.due != due {
		t.Errorf("early report sent at %v, the next due at %v; want %v and still %v", n.report.sent, n.report.due, s.now, due)
	}
	s.now = due
	s.reportIsDue(n)
	if n.report.sent != due || n.report.due <= due {
		t.Errorf("regular report sent at %v, the next due at %v; want it at %v and the next later", n.report.sent, n.report.due, due)
	}
}

func TestOneAddressMoves(t *testing.T) {
	s := site("death")
	s.Cold, s.Measured = false, 35*time.Second
	sim := newSimulation(s)
	if err := sim.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, h := range sim.holder {
		if int(h) != i {
			t.Errorf("long after the node's return, address %d is at node %d", i, h)
		}
	}
	r := sim.result()
	if r.Lost == 0 || r.Waited == 0 || r.LongestWait < 1000 {
		t.Errorf("lost %v %%, %d waited, the longest %v ms: the death was not felt", r.Lost, r.Waited, r.LongestWait)
	}
}

// TestUtilisationIsNoMeasure: with the utilisation as measure, which saturates, even the
// damped rule cannot tell a busy node from a lost one.
func TestUtilisationIsNoMeasure(t *testing.T) {
	s := site("busy")
	s.Measured = 15 * time.Second
	good := results.of(t, s, "damped")
	s.Measure = Utilisation
	if bad := results.of(t, s, "damped"); bad.P99 < 2*good.P99 {
		t.Errorf("p99 is %.0f ms by utilisation and %.0f by pressure: want at least twice as much", bad.P99, good.P99)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Base(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want that of the context", err)
	}
}

func TestMethods(t *testing.T) {
	for _, c := range []struct {
		method string
		want   func(*Scenario)
	}{
		{"damped", func(*Scenario) {}},
		{"ideal", func(s *Scenario) { s.Balance = Ideal }},
		{"proxy-two", func(s *Scenario) { s.Balance = ProxyChoice }},
		{"rotate+dns", func(s *Scenario) { s.Policy.Rule, s.Addresses, s.DNSHelps = balancing.Rotate, 4, true }},
		{"dns+relay+h3", func(s *Scenario) { s.Balance, s.Relay, s.H3 = DNS, true, true }},
	} {
		got, want := Base(), Base()
		c.want(&want)
		if err := got.SetMethod(c.method); err != nil || got != want {
			t.Errorf("SetMethod(%q) = %v: %+v, want %+v", c.method, err, got, want)
		}
	}
	for _, bad := range []string{"", "redirects", "fair", "damped+luck", "+dns"} {
		s := Base()
		if err := s.SetMethod(bad); err == nil {
			t.Errorf("SetMethod(%q): no error", bad)
		}
	}
}

func TestValidateReportsAll(t *testing.T) {
	for _, name := range ScenarioNames() {
		s, err := Named(name)
		if err == nil {
			err = s.Validate()
		}
		if err != nil {
			t.Errorf("scenario %s: %v", name, err)
		}
	}
	if _, err := Named("nowhere"); err == nil {
		t.Error("no error for a scenario that there is not")
	}
	s := Base()
	s.Nodes, s.Load, s.Addresses, s.Pinned = 0, -1, 9, 2
	err := s.Validate()
	for _, word := range []string{"nodes 0", "load -1", "addresses 9", "pinned 2"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Validate = %v, want it to name %q", err, word)
		}
	}
}

// TestShow looks at what people see: the table is aligned, the charts are XML, and every
// method is in them.
func TestShow(t *testing.T) {
	s := site("death")
	s.Nodes, s.WarmUp, s.Measured, s.Dies, s.Returns = 3, time.Second, 12*time.Second, 4*time.Second, 8*time.Second
	methods := []string{"dns", "ideal", "damped+relay"}
	var sweeps []Sweep
	for _, load := range []float64{40, 70} {
		s.Load = load
		var all []*Result
		for _, m := range methods {
			all = append(all, results.of(t, s, m))
		}
		sweeps = append(sweeps, Sweep{load, Rows(methods, all)})
	}
	var table, loads, sweep bytes.Buffer
	rows := sweeps[1].Rows
	if err := errors.Join(Table(&table, rows), LoadChart(&loads, rows), SweepChart(&sweep, sweeps)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(table.String(), "\n"), "\n")
	if len(lines) != 4 || !strings.HasPrefix(strings.TrimSpace(lines[2]), "ideal") || !strings.Contains(lines[2], " 1.00 ") {
		t.Errorf("table:\n%s", &table)
	}
	for _, l := range lines {
		if len(l) != len(lines[0]) {
			t.Errorf("the lines of the table differ in length:\n%s", &table)
			break
		}
	}
	for _, chart := range []*bytes.Buffer{&loads, &sweep} {
		text := chart.String()
		for _, m := range methods {
			if !strings.Contains(text, m) && !strings.Contains(text, strings.ReplaceAll(m, "+", "&#43;")) {
				t.Errorf("chart without %s", m)
			}
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "ZgotmplZ") {
			t.Errorf("chart with a number or an attribute that is none")
		}
		d := xml.NewDecoder(chart)
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("chart is no XML: %v", err)
			}
		}
	}
	if err := LoadChart(io.Discard, nil); err == nil {
		t.Error("no error for a chart of nothing")
	}
	text, err := json.Marshal(rows)
	if err != nil || !strings.Contains(string(text), `"p99_vs_ideal":1,`) {
		t.Errorf("as JSON: %v, %s", err, text)
	}
}

func BenchmarkRun(b *testing.B) {
	for _, method := range []string{"ideal", "damped", "patent"} {
		b.Run(method, func(b *testing.B) {
			s := Base()
			if err := s.SetMethod(method); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			requests := 0
			for b.Loop() {
				r, err := Run(b.Context(), s, nil)
				if err != nil {
					b.Fatal(err)
				}
				requests += r.Requests
			}
			b.ReportMetric(float64(requests)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
