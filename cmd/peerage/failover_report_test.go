package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// figure is one of those that outcomes give, over all outcomes of a fault.
type figure struct{ median, p90, max float64 }

func (f figure) String() string { return fmt.Sprintf("%.0f / %.0f / %.0f", f.median, f.p90, f.max) }

// summary returns the figure that what gives of all outcomes of a contestant with a fault, and
// how many those are.
func summary(outcomes []outcome, contestant, fault string, what func(outcome) float64) (f figure, n int) {
	var all []float64
	for _, t := range outcomes {
		if t.Contestant == contestant && t.Fault == fault {
			all = append(all, what(t))
		}
	}
	if n = len(all); n == 0 {
		return figure{}, 0
	}
	slices.Sort(all)
	return figure{
		median: (all[(n-1)/2] + all[n/2]) / 2,
		p90:    all[int(math.Ceil(0.9*float64(n)))-1], // the nearest rank
		max:    all[n-1],
	}, n
}

// failoverTables writes what is in docs/benchmarks.md.
func failoverTables(w io.Writer, outcomes []outcome) error {
	var b strings.Builder
	row := func(first string, cell func(contestant string) string) {
		fmt.Fprintf(&b, "| %s |", first)
		for _, c := range contestants {
			fmt.Fprintf(&b, " %s |", cell(c.name))
		}
		b.WriteByte('\n')
	}
	for _, table := range []struct {
		title string
		what  func(outcome) float64
	}{
		{"service dark", func(t outcome) float64 { return t.Service }},
		{"address dark", func(t outcome) float64 { return t.Address }},
		{"two answer ARP", func(t outcome) float64 { return t.Double }},
		{"lost in the 8 s after", func(t outcome) float64 { return t.HealLost }},
		{"two answer ARP then", func(t outcome) float64 { return t.HealTwo }},
	} {
		row(table.title, func(c string) string { return c })
		row("---", func(string) string { return "---" })
		for _, f := range failures {
			row(f.name, func(c string) string {
				if figure, n := summary(outcomes, c, f.name, table.what); n > 0 {
					return figure.String()
				}
				return "–"
			})
		}
		b.WriteByte('\n')
	}
	row("CPU of an idle node, % of a core", func(c string) string {
		f, _ := summary(outcomes, c, "", func(t outcome) float64 { return t.CPU })
		return fmt.Sprintf("%.2f", f.median)
	})
	var loads, stalls []float64
	fewest := math.MaxInt
	for _, t := range outcomes {
		loads, stalls = append(loads, t.Load), append(stalls, t.Stall)
	}
	for _, c := range contestants {
		for _, f := range failures {
			_, n := summary(outcomes, c.name, f.name, func(outcome) float64 { return 0 })
			fewest = min(fewest, n)
		}
	}
	if len(outcomes) > 0 {
		slices.Sort(loads)
		slices.Sort(stalls)
		fmt.Fprintf(&b, "\nMilliseconds, median / 90th percentile / largest of %d outcomes or more; load of the machine %.1f to %.1f, median %.1f; the client was late by %.0f ms at most, %.0f ms in 19 of 20 outcomes.\n",
			fewest, loads[0], loads[len(loads)-1], loads[len(loads)/2], stalls[len(stalls)-1], stalls[(len(stalls)-1)*19/20])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// failoverPicture is what the template draws; places and sizes in pixels.
type failoverPicture struct {
	Width, Height, Bottom int
	Legend                []failoverKey
	Panels                []failoverPanel
	Bands                 []failoverBand
}

type failoverKey struct {
	X      int
	Series int // which contestant: the class of what is drawn
	Square bool
	Text   string
}

type failoverPanel struct {
	X, Width int
	Title    string
	Ticks    []failoverTick
}

type failoverTick struct {
	X    float64
	Text string
}

// failoverBand has what befell all after one fault.
type failoverBand struct {
	Y, Middle int
	Odd       bool
	Name      string
	Marks     []failoverMark
}

// failoverMark reaches from the median to the largest.
type failoverMark struct {
	Y, Series     int
	Square        bool
	From, To, End float64 // End is where the text is
	Text          string
}

const (
	bandTop    = 112
	bandHeight = 78
	nameWidth  = 168
	darkWidth  = 420
	twoWidth   = 250
	textWidth  = 96 // beyond the end of a mark
)

// failoverChart draws median and largest of the dark times, and of the times in which two
// stations answered, of each contestant under each fault.
func failoverChart(w io.Writer, outcomes []outcome) error {
	if len(outcomes) == 0 {
		return errors.New("chart of failures: no outcomes")
	}
	p := failoverPicture{Width: nameWidth + darkWidth + twoWidth + 2*textWidth, Bottom: bandTop + bandHeight*len(failures)}
	p.Height = p.Bottom + 44
	for i, c := range contestants {
		p.Legend = append(p.Legend, failoverKey{X: nameWidth + 178*i, Series: i, Square: i%2 == 1, Text: c.name})
	}
	// Dark times lie between nothing and a few seconds: only a logarithmic scale shows both.
	const least, most = 5, 5000
	dark := func(ms float64) float64 {
		return nameWidth + darkWidth*math.Log(min(max(ms, least), most)/least)/math.Log(most/float64(least))
	}
	two := func(ms float64) float64 {
		return nameWidth + darkWidth + textWidth + twoWidth*min(ms/failedFor.Seconds()/1000, 1)
	}
	p.Panels = []failoverPanel{
		{X: nameWidth, Width: darkWidth, Title: "the service does not answer (median, and line to the longest)"},
		{X: nameWidth + darkWidth + textWidth, Width: twoWidth, Title: "two machines answer for the VIP"},
	}
	for _, ms := range []float64{5, 10, 50, 100, 500, 1000, 5000} {
		p.Panels[0].Ticks = append(p.Panels[0].Ticks, failoverTick{dark(ms), durationText(ms)})
	}
	for ms := 0.0; ms <= milliseconds(failedFor); ms += 1000 {
		p.Panels[1].Ticks = append(p.Panels[1].Ticks, failoverTick{two(ms), durationText(ms)})
	}
	for i, f := range failures {
		band := failoverBand{Y: bandTop + bandHeight*i, Odd: i%2 == 1, Name: f.name}
		band.Middle = band.Y + bandHeight/2
		for k, c := range contestants {
			mark := func(what func(outcome) float64, at func(float64) float64) {
				f, n := summary(outcomes, c.name, f.name, what)
				if n == 0 {
					return
				}
				text := fmt.Sprintf("%.0f", f.median)
				if math.Round(f.max) > math.Round(f.median) {
					text += fmt.Sprintf(" – %.0f", f.max)
				}
				band.Marks = append(band.Marks, failoverMark{
					Y: band.Y + 16 + 16*k, Series: k, Square: k%2 == 1,
					From: at(f.median), To: at(f.max), End: at(f.max) + 9, Text: text,
				})
			}
			mark(func(t outcome) float64 { return t.Service }, dark)
			mark(func(t outcome) float64 { return max(t.Double, t.HealTwo) }, two)
		}
		p.Bands = append(p.Bands, band)
	}
	return failoverDrawing.Execute(w, p)
}

// durationText writes milliseconds as a scale has them.
func durationText(ms float64) string {
	if ms >= 1000 {
		return fmt.Sprintf("%g s", ms/1000)
	}
	return fmt.Sprintf("%g ms", ms)
}

// Colours are those of Okabe and Ito, as in the other charts, on light and on dark pages;
// who cannot tell them apart has the shapes, and the order.
var failoverDrawing = template.Must(template.New("failover").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="11">
<style>
.page { fill: #ffffff } .band { fill: #f3f5f8 } .ink { fill: #222222 } .dim { fill: #5a5f66 } .grid { stroke: #d8dce1 }
.s0 { fill: #0072b2; stroke: #0072b2 } .s1 { fill: #d55e00; stroke: #d55e00 } .s2 { fill: #3a9bd9; stroke: #3a9bd9 } .s3 { fill: #e69f00; stroke: #e69f00 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } .band { fill: #161c24 } .ink { fill: #e6edf3 } .dim { fill: #9aa4af } .grid { stroke: #2c333c }
.s0 { fill: #2f9be0; stroke: #2f9be0 } .s1 { fill: #f0763a; stroke: #f0763a } .s2 { fill: #8fd0f5; stroke: #8fd0f5 } .s3 { fill: #f2bd4a; stroke: #f2bd4a }
}
</style>
<title>What clients see when the holder of a VIP fails</title>
<rect class="page" width="100%" height="100%"/>
<text class="ink" x="16" y="28" font-size="16" font-weight="bold">What clients see when the holder of a VIP fails</text>
{{range .Legend}}{{if .Square}}<rect class="s{{.Series}}" x="{{.X}}" y="48" width="8" height="8"/>{{else}}<circle class="s{{.Series}}" cx="{{.X}}" cy="52" r="4.5"/>{{end}}<text class="ink" x="{{.X}}" dx="14" y="56">{{.Text}}</text>
{{end}}{{$w := .Width}}{{range .Bands}}{{if .Odd}}<rect class="band" x="0" y="{{.Y}}" width="{{$w}}" height="78"/>
{{end}}{{end}}{{$bottom := .Bottom}}{{range .Panels}}<text class="ink" x="{{.X}}" y="88" font-weight="bold">{{.Title}}</text>
{{range .Ticks}}<path class="grid" d="M{{.X}} 100V{{$bottom}}"/><text class="dim" x="{{.X}}" y="{{$bottom}}" dy="18" text-anchor="middle">{{.Text}}</text>
{{end}}{{end}}{{range .Bands}}<text class="ink" x="16" y="{{.Middle}}" dy="4" font-size="12">{{.Name}}</text>
{{range .Marks}}<path class="s{{.Series}}" d="M{{.From}} {{.Y}}H{{.To}}" stroke-width="2"/>{{if .Square}}<rect class="s{{.Series}}" x="{{.From}}" y="{{.Y}}" width="8" height="8" transform="translate(-4 -4)"/>{{else}}<circle class="s{{.Series}}" cx="{{.From}}" cy="{{.Y}}" r="4.5"/>{{end}}<text class="dim" x="{{.End}}" y="{{.Y}}" dy="4" font-size="10">{{.Text}}</text>
{{end}}{{end}}<text class="dim" x="16" y="{{.Height}}" dy="-10" font-size="10">Milliseconds; 5 is the pause between two questions. Two machines that answer are counted for 4 s from the failure, and after it was mended.</text>
</svg>
`))

func TestSummary(t *testing.T) {
	var outcomes []outcome
	for _, ms := range []float64{7, 1, 9, 3, 5, 2, 8, 4, 10, 6} {
		outcomes = append(outcomes, outcome{Contestant: "c", Fault: "f", Service: ms}, outcome{Contestant: "c", Fault: "g", Service: 99})
	}
	service := func(t outcome) float64 { return t.Service }
	if got, n := summary(outcomes, "c", "f", service); n != 10 || got != (figure{5.5, 9, 10}) {
		t.Errorf("%d outcomes: %v, want 10: 5.5, 9, 10", n, got)
	}
	if got, n := summary(outcomes[:1], "c", "f", service); n != 1 || got != (figure{7, 7, 7}) {
		t.Errorf("%d outcomes: %v, want 1 of 7", n, got)
	}
	if _, n := summary(outcomes, "d", "f", service); n != 0 {
		t.Errorf("%d outcomes of nobody", n)
	}
}

func TestOverlap(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	runs := []stretch{
		{"a", span{from: at(0), to: at(100)}},
		{"b", span{from: at(60), to: at(300)}},
		{"a", span{from: at(50), to: at(110)}}, // as another watcher saw it
		{"c", span{from: at(290), to: at(310)}},
	}
	for _, test := range []struct{ from, to, want int }{
		{0, 1000, 60}, {0, 80, 20}, {70, 80, 10}, {110, 290, 0}, {295, 400, 5}, {500, 600, 0},
	} {
		if got := overlap(runs, span{from: at(test.from), to: at(test.to)}).Milliseconds(); got != int64(test.want) {
			t.Errorf("from %d to %d: %d ms, want %d", test.from, test.to, got, test.want)
		}
	}
}

func TestFailoverReport(t *testing.T) {
	var outcomes []outcome
	for i, c := range contestants {
		outcomes = append(outcomes, outcome{Contestant: c.name, CPU: 1.25})
		for j, f := range failures[1:] { // the first has not happened yet
			outcomes = append(outcomes, outcome{Contestant: c.name, Fault: f.name, Service: float64(100*i + j), Double: 4000})
		}
	}
	var tables, chart bytes.Buffer
	if err := errors.Join(failoverTables(&tables, outcomes), failoverChart(&chart, outcomes)); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"| service dark | Peerage, 500 ms | keepalived, 1 s | Peerage, 50 ms | keepalived, 0.1 s |",
		"| power loss | – | – | – | – |",
		"| partition | 1 / 1 / 1 | 101 / 101 / 101 | 201 / 201 / 201 | 301 / 301 / 301 |",
		"| CPU of an idle node, % of a core | 1.25 | 1.25 | 1.25 | 1.25 |",
	} {
		if !strings.Contains(tables.String(), row+"\n") {
			t.Errorf("no row %q in\n%s", row, &tables)
		}
	}
	if err := xml.Unmarshal(chart.Bytes(), new(struct{})); err != nil {
		t.Errorf("the chart is no XML: %v", err)
	}
	for _, text := range []string{"stopped in order", "keepalived, 0.1 s", ">301<", ">4000<"} {
		if !strings.Contains(chart.String(), text) {
			t.Errorf("%q is not in the chart", text)
		}
	}
}
