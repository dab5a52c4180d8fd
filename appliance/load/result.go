package load

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is what the visitors met in the measured time. Times are in milliseconds, from
// the first octet of a request to the last of its answer, with all redirects and the
// connections that had to be opened.
type Result struct {
	URL         string  `json:"url"`
	Seed        uint64  `json:"seed"`
	HTTP        int     `json:"http"`
	Seconds     float64 `json:"seconds"`     // measured
	Interrupted bool    `json:"interrupted"` // ended before its time

	Visitors   int `json:"visitors"`    // that came
	TurnedAway int `json:"turned_away"` // that found too many others
	Handshakes int `json:"handshakes"`  // of TLS

	Requests int            `json:"requests"` // answered
	PerS     float64        `json:"per_s"`
	Errors   map[string]int `json:"errors"` // requests without an answer, by kind
	Status   map[string]int `json:"status"` // answers, by class: "2xx"

	Redirected float64 `json:"redirected"` // requests that met a 307, in per cent
	Redirects  int     `json:"redirects"`  // answers of status 307

	Nodes []NodeShare `json:"nodes"`

	Mean float64 `json:"mean_ms"`
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	Max  float64 `json:"max_ms"`
}

// NodeShare is what a node has answered at the end of all redirects.
type NodeShare struct {
	Node     string  `json:"node"` // "" if no redirect has told its name
	Address  string  `json:"address"`
	Requests int     `json:"requests"`
	Share    float64 `json:"share"` // of all, in per cent
}

func (r *recorder) result(c Config, lasted time.Duration, interrupted bool) *Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	t := &r.all.times
	out := &Result{
		URL: c.URL.String(), Seed: c.Seed, HTTP: c.HTTP, Interrupted: interrupted,
		Seconds:  min(max(0, lasted-c.Warm), c.For).Seconds(),
		Visitors: r.visitors, TurnedAway: r.noPlace, Handshakes: r.handshakes,
		Requests: r.all.requests, Errors: r.errors, Status: make(map[string]int),
		Redirected: percent(r.all.moved, r.all.requests), Redirects: r.all.redirects,
		Nodes: []NodeShare{},
		Mean:  ms(t.mean()), P50: ms(t.quantile(0.5)), P90: ms(t.quantile(0.9)), P99: ms(t.quantile(0.99)), Max: ms(t.most),
	}
	if out.Seconds > 0 {
		out.PerS = float64(out.Requests) / out.Seconds
	}
	for class, n := range r.classes {
		if n > 0 {
			out.Status[fmt.Sprintf("%dxx", class)] = n
		}
	}
	for a, s := range r.nodes {
		out.Nodes = append(out.Nodes, NodeShare{s.node, a.String(), s.requests, percent(s.requests, out.Requests)})
	}
	slices.SortFunc(out.Nodes, func(a, b NodeShare) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Address, b.Address))
	})
	return out
}

// Failed returns the number of requests without an answer.
func (r *Result) Failed() (n int) {
	for _, k := range r.Errors {
		n += k
	}
	return n
}

// Table writes r for people.
func (r *Result) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(what, format string, a ...any) { fmt.Fprintf(t, "%s\t%s\n", what, fmt.Sprintf(format, a...)) }
	measured := fmt.Sprintf("%.3g s", r.Seconds)
	if r.Interrupted {
		measured += ", then interrupted"
	}
	line("measured", "%s, HTTP/%d, seed %d", measured, r.HTTP, r.Seed)
	visitors := fmt.Sprintf("%d, with %d TLS handshakes", r.Visitors, r.Handshakes)
	if r.TurnedAway > 0 {
		visitors += fmt.Sprintf("; %d more were turned away: see --clients", r.TurnedAway)
	}
	line("visitors", "%s", visitors)
	line("requests", "%d answered, %.1f/s%s", r.Requests, r.PerS, list(r.Status))
	line("errors", "%d%s", r.Failed(), list(r.Errors))
	line("redirected", "%.2f %% of the requests, %d redirects", r.Redirected, r.Redirects)
	for i, n := range r.Nodes {
		what := ""
		if i == 0 {
			what = "served by"
		}
		line(what, "%5.1f %%  %s", n.Share, strings.TrimSpace(n.Node+" "+n.Address))
	}
	line("response", "p50 %.4g ms, p90 %.4g ms, p99 %.4g ms, max %.4g ms, mean %.4g ms", r.P50, r.P90, r.P99, r.Max, r.Mean)
	return t.Flush()
}

// list writes ": 3 this, 2 that".
func list(m map[string]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%d %s", m[k], k))
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}
