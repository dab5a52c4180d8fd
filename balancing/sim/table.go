package sim

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Row is a line of a [Table]: a method and what it reached.
type Row struct {
	Method string  `json:"method"`
	Ideal  float64 `json:"p99_vs_ideal"` // p99 over that of the ideal at the same site; 0 if that is not known
	*Result
}

// Rows pairs results with their methods, and compares them with the method "ideal" if
// that is among them.
func Rows(methods []string, results []*Result) []Row {
	ideal := 0.0
	if i := slices.Index(methods, "ideal"); i >= 0 {
		ideal = results[i].P99
	}
	rows := make([]Row, len(results))
	for i, r := range results {
		rows[i] = Row{Method: methods[i], Result: r}
		if ideal > 0 {
			rows[i].Ideal = r.P99 / ideal
		}
	}
	return rows
}

// Table writes the rows side by side, in aligned columns.
func Table(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	waits, relays := false, false
	widest := len("method")
	for _, r := range rows {
		widest = max(widest, len(r.Method))
		waits = waits || r.Waited > 0 || r.Lost > 0
		relays = relays || r.Relayed > 0
	}
	fmt.Fprintf(t, "%-*s\t", widest, "method") // words to the left, figures to the right
	fmt.Fprint(t, "p50 ms\tp99 ms\tvs ideal\tp999 ms\tredirected %\tper visit\tregretted %\tbounced %\tpeak/mean\tover %\t")
	if relays {
		fmt.Fprint(t, "relayed %\t")
	}
	if waits {
		fmt.Fprint(t, "lost %\tmedian wait s\tlongest s\t")
	}
	fmt.Fprintln(t)
	for _, r := range rows {
		ideal := "-"
		if r.Ideal > 0 {
			ideal = fmt.Sprintf("%.2f", r.Ideal)
		}
		fmt.Fprintf(t, "%-*s\t%.0f\t%.0f\t%s\t%.0f\t%.1f\t%.2f\t%.0f\t%.0f\t%.2f\t%.1f\t",
			widest, r.Method, r.P50, r.P99, ideal, r.P999, r.Redirected, r.PerSession, r.Regretted, r.Bounced, r.PeakToMean, r.Over)
		if relays {
			fmt.Fprintf(t, "%.1f\t", r.Relayed)
		}
		if waits {
			fmt.Fprintf(t, "%.3f\t%.2f\t%.2f\t", r.Lost, r.MedianWait/1000, r.LongestWait/1000)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
