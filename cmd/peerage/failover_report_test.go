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

// counted returns the outcomes that count of a contestant with a fault, "" for none.
func counted(outcomes []outcome, contestant, fault string) (all []outcome) {
	for _, o := range outcomes {
		if o.Contestant == contestant && o.Fault == fault && !o.Discarded {
			all = append(all, o)
		}
	}
	return all
}

// summary returns the figure that what gives of all of the outcomes, at least one.
func summary(outcomes []outcome, what func(outcome) float64) figure {
	var all []float64
	for _, o := range outcomes {
		all = append(all, what(o))
	}
	slices.Sort(all)
	n := len(all)
	return figure{
		median: (all[(n-1)/2] + all[n/2]) / 2,
		p90:    all[int(math.Ceil(0.9*float64(n)))-1], // the nearest rank
		max:    all[n-1],
	}
}

// endless reports whether two answered to the end in most of the outcomes.
func endless(outcomes []outcome) bool {
	n := 0
	for _, o := range outcomes {
		if o.Endless {
			n++
		}
	}
	return 2*n > len(outcomes)
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
		marks func([]outcome) bool
	}{
		{"service dark", func(o outcome) float64 { return o.Service }, nil},
		{"address dark", func(o outcome) float64 { return o.Address }, nil},
		{"two answer ARP", func(o outcome) float64 { return o.Double }, endless},
		{"lost in the 8 s after", func(o outcome) float64 { return o.HealLost }, nil},
		{"two answer ARP then", func(o outcome) float64 { return o.HealTwo }, nil},
	} {
		row(table.title, func(c string) string { return c })
		row("---", func(string) string { return "---" })
		for _, f := range failures {
			row(f.name, func(c string) string {
				all := counted(outcomes, c, f.name)
				if len(all) == 0 {
					return "–"
				}
				text := summary(all, table.what).String()
				if table.marks != nil && table.marks(all) {
					text += " …"
				}
				return text
			})
		}
		b.WriteByte('\n')
	}
	row("CPU of an idle node, % of a core", func(c string) string {
		if all := counted(outcomes, c, ""); len(all) > 0 {
			return fmt.Sprintf("%.2f", summary(all, func(o outcome) float64 { return o.CPU }).median)
		}
		return "–"
	})
	b.WriteString(failoverNotes(outcomes))
	_, err := io.WriteString(w, b.String())
	return err
}

// failoverNotes says how far the tables can be trusted.
func failoverNotes(outcomes []outcome) string {
	all := slices.DeleteFunc(slices.Clone(outcomes), func(o outcome) bool { return o.Discarded })
	if len(all) == 0 {
		return ""
	}
	fewest, most := math.MaxInt, 0
	for _, c := range contestants {
		for _, f := range failures {
			n := len(counted(all, c.name, f.name))
			fewest, most = min(fewest, n), max(most, n)
		}
	}
	late := summary(all, func(o outcome) float64 { return o.Late })
	waited := summary(all, func(o outcome) float64 { return o.Waited })
	load := summary(all, func(o outcome) float64 { return o.Load })
	return fmt.Sprintf(`
Milliseconds: median / 90th percentile / largest of %d to %d failures. … : two still answered when
the failure was mended, 4 s after it began. The client was late by %s ms, a process waited for
a CPU in %s %% of the time; %d failures in which it was more than %d ms or %d %% do not count.
Load of the machine %.1f / %.1f / %.1f.
`, fewest, most, late, waited, len(outcomes)-len(all), tooLate.Milliseconds(), tooBusy, load.median, load.p90, load.max)
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

// failoverMark is a faint stem from nothing to the median, From, and a line to the largest.
type failoverMark struct {
	Y, Series     int
	Square        bool
	Nothing       float64
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
		{X: nameWidth, Width: darkWidth, Title: "the service does not answer: median, and line to the longest"},
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
			mark := func(what func(outcome) float64, at func(float64) float64, marks func([]outcome) bool) {
				all := counted(outcomes, c.name, f.name)
				if len(all) == 0 {
					return
				}
				f := summary(all, what)
				text := fmt.Sprintf("%.0f", f.median)
				if math.Round(f.max) > math.Round(f.median) {
					text += fmt.Sprintf(" – %.0f", f.max)
				}
				if marks != nil && marks(all) {
					text += " …"
				}
				band.Marks = append(band.Marks, failoverMark{
					Y: band.Y + 16 + 16*k, Series: k, Square: k%2 == 1,
					Nothing: at(0), From: at(f.median), To: at(f.max), End: at(f.max) + 9, Text: text,
				})
			}
			mark(func(o outcome) float64 { return o.Service }, dark, nil)
			mark(func(o outcome) float64 { return o.Double }, two, endless)
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
{{range .Marks}}<path class="s{{.Series}}" d="M{{.Nothing}} {{.Y}}H{{.From}}" stroke-width="6" stroke-opacity="0.25"/><path class="s{{.Series}}" d="M{{.From}} {{.Y}}H{{.To}}" stroke-width="2"/>{{if .Square}}<rect class="s{{.Series}}" x="{{.From}}" y="{{.Y}}" width="8" height="8" transform="translate(-4 -4)"/>{{else}}<circle class="s{{.Series}}" cx="{{.From}}" cy="{{.Y}}" r="4.5"/>{{end}}<text class="dim" x="{{.End}}" y="{{.Y}}" dy="4" font-size="10">{{.Text}}</text>
{{end}}{{end}}<text class="dim" x="16" y="{{.Height}}" dy="-10" font-size="10">Milliseconds; 5 is the pause between two questions. Failures last for 4 s. … : two machines answer until the failure is mended.</text>
</svg>
`))

func TestSummary(t *testing.T) {
	outcomes := []outcome{{Contestant: "c", Fault: "f", Service: 99, Discarded: true}}
	for _, ms := range []float64{7, 1, 9, 3, 5, 2, 8, 4, 10, 6} {
		outcomes = append(outcomes, outcome{Contestant: "c", Fault: "f", Service: ms}, outcome{Contestant: "c", Fault: "g", Service: 99})
	}
	service := func(o outcome) float64 { return o.Service }
	if got := summary(counted(outcomes, "c", "f"), service); got != (figure{5.5, 9, 10}) {
		t.Errorf("got %v, want 5.5, 9, 10", got)
	}
	if got := summary(outcomes[1:2], service); got != (figure{7, 7, 7}) {
		t.Errorf("got %v, want thrice 7", got)
	}
	if got := counted(outcomes, "d", "f"); got != nil {
		t.Errorf("outcomes of nobody: %v", got)
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
			outcomes = append(outcomes, outcome{Contestant: c.name, Fault: f.name, Service: float64(100*i + j), Double: 900, Endless: true})
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
		"| partition | 900 / 900 / 900 … | 900 / 900 / 900 … | 900 / 900 / 900 … | 900 / 900 / 900 … |",
		"| CPU of an idle node, % of a core | 1.25 | 1.25 | 1.25 | 1.25 |",
	} {
		if !strings.Contains(tables.String(), row+"\n") {
			t.Errorf("no row %q in\n%s", row, &tables)
		}
	}
	if err := xml.Unmarshal(chart.Bytes(), new(struct{})); err != nil {
		t.Errorf("the chart is no XML: %v", err)
	}
	for _, text := range []string{"stopped in order", "keepalived, 0.1 s", ">301<", ">900 …<"} {
		if !strings.Contains(chart.String(), text) {
			t.Errorf("%q is not in the chart", text)
		}
	}
}
