package sim

import (
	"slices"
	"time"
)

// Result is what a run has measured. Times are in milliseconds, for they are read by
// people and by spreadsheets.
type Result struct {
	Scenario Scenario `json:"scenario"`

	Requests int     `json:"requests"` // answered in the measured time
	Mean     float64 `json:"mean_ms"`  // response time of the client
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	P999     float64 `json:"p999_ms"`

	Redirected float64 `json:"redirected"`  // redirects, in per cent of the requests
	PerSession float64 `json:"per_session"` // redirects for each visit
	Regretted  float64 `json:"regretted"`   // per cent of redirects whose target was as loaded as the sender, when the client came
	Bounced    float64 `json:"bounced"`     // per cent of redirects back to a node that had sent the client away
	Relayed    float64 `json:"relayed"`     // per cent of requests

	PeakToMean float64 `json:"peak_to_mean"` // pressure of the busiest node over the mean, averaged over the seconds
	Over       float64 `json:"over"`         // per cent of all seconds of all nodes with more than two requests per core

	Lost        float64 `json:"lost"`           // per cent of requests that died with their node
	Waited      int     `json:"waited"`         // requests that met the silence of a dead node
	MedianWait  float64 `json:"median_wait_ms"` // of those
	LongestWait float64 `json:"longest_wait_ms"`

	// Pressure is the mean number of requests per core: by second of the whole run, then
	// by node.
	Pressure [][]float64 `json:"-"`
}

// stats are the counts of a run.
type stats struct {
	visits int // in the whole run, for numbering

	// What follows counts in the measured time only.

	times     histogram
	began     int // visits
	redirects int
	arrived   int // redirects that have arrived
	regretted int
	bounced   int
	relays    int
	losses    int
	waits     []time.Duration

	pressure [][]float64
}

func (s *simulation) measuring() bool { return s.now >= s.WarmUp }

func (t *stats) visitStarts(s *simulation) {
	if s.measuring() {
		t.began++
	}
}

func (t *stats) answered(s *simulation, d time.Duration) {
	if s.measuring() {
		t.times.add(d)
	}
}

func (t *stats) redirected(s *simulation, back bool) {
	if !s.measuring() {
		return
	}
	t.redirects++
	if back {
		t.bounced++
	}
}

func (t *stats) arrivedByRedirect(s *simulation, regretted bool) {
	if !s.measuring() {
		return
	}
	t.arrived++
	if regretted {
		t.regretted++
	}
}

func (t *stats) relayed(s *simulation) {
	if s.measuring() {
		t.relays++
	}
}

func (t *stats) lost(s *simulation) {
	if s.measuring() {
		t.losses++
	}
}

func (t *stats) waited(s *simulation, d time.Duration) {
	if s.measuring() {
		t.waits = append(t.waits, d)
	}
}

// secondEnds notes how busy the nodes were during the second.
func (s *simulation) secondEnds() {
	row := make([]float64, len(s.nodes))
	for i, n := range s.nodes {
		n.advance(s.now)
		row[i] = n.area
		n.area = 0
	}
	s.stats.pressure = append(s.stats.pressure, row)
}

func (s *simulation) result() *Result {
	t := &s.stats
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	r := &Result{
		Scenario: s.Scenario,
		Requests: t.times.total,
		Mean:     ms(t.times.mean()),
		P50:      ms(t.times.quantile(0.50)),
		P99:      ms(t.times.quantile(0.99)),
		P999:     ms(t.times.quantile(0.999)),

		Redirected: percent(t.redirects, t.times.total),
		PerSession: percent(t.redirects, t.began) / 100,
		Regretted:  percent(t.regretted, t.arrived),
		Bounced:    percent(t.bounced, t.redirects),
		Relayed:    percent(t.relays, t.times.total),

		Lost:     percent(t.losses, t.times.total+t.losses),
		Waited:   len(t.waits),
		Pressure: t.pressure,
	}
	if len(t.waits) > 0 {
		slices.Sort(t.waits)
		r.MedianWait = ms(t.waits[len(t.waits)/2])
		r.LongestWait = ms(t.waits[len(t.waits)-1])
	}
	measured := t.pressure[min(int(s.WarmUp/time.Second), len(t.pressure)):]
	over, all, ratios := 0, 0, 0.0
	for _, row := range measured {
		sum, peak := 0.0, 0.0
		for _, x := range row {
			sum += x
			peak = max(peak, x)
			all++
			if x > 2 {
				over++
			}
		}
		if sum > 0 {
			ratios += peak * float64(len(row)) / sum
		}
	}
	r.PeakToMean = ratios / float64(max(len(measured), 1))
	r.Over = percent(over, all)
	return r
}

func percent(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}
