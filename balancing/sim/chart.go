package sim

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// The charts are SVG. Colours are those of Okabe and Ito, which people who do not tell
// red from green can tell apart as well; each line has a dash of its own besides.
var (
	colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5c00"}
	dashes  = []string{"", "8 3", "2 3", "10 3 2 3", "5 2", "1 2", "12 4", "6 2 1 2"}
)

// Sizes in pixels.
const (
	panelWidth  = 420
	panelHeight = 190
	leftMargin  = 62
	topMargin   = 26
	panelGap    = 62 // below a panel, for its axis
	titleHeight = 72
)

// LoadChart draws the load of each node over time, a panel for each row, all to the same
// scale.
func LoadChart(w io.Writer, rows []Row) error {
	if len(rows) == 0 {
		return errors.New("chart of loads: no results")
	}
	top := 100.0
	for _, r := range rows {
		for _, second := range r.Pressure {
			top = max(top, 100*slices.Max(second))
		}
	}
	// Loads of interest lie around 100 %; those of a node that is lost go far beyond. On a
	// logarithmic scale both can be read.
	scale := axis{from: 10, to: decade(top), size: -panelHeight, log: true}
	columns := min(2, len(rows))
	lines := (len(rows) + columns - 1) / columns
	s := &rows[0].Scenario
	p := picture{
		Title:  "Load of each node over time, " + s.Name,
		Lines:  []string{s.String(), "Requests in progress per core, in per cent, means of 1 s. Black: mean of all nodes."},
		Width:  columns * (panelWidth + leftMargin + 10),
		Height: titleHeight + lines*(panelHeight+topMargin+panelGap),
	}
	for i := range rows {
		pan := loadPanel(&rows[i], scale)
		pan.X = leftMargin + i%columns*(panelWidth+leftMargin+10)
		pan.Y = titleHeight + topMargin + i/columns*(panelHeight+topMargin+panelGap)
		p.Panels = append(p.Panels, pan)
	}
	return drawing.Execute(w, p)
}

// loadPanel draws the loads of one row.
func loadPanel(r *Row, scale axis) panel {
	s := &r.Scenario
	seconds := float64(len(r.Pressure))
	time := axis{from: 0, to: seconds, size: panelWidth}
	p := panel{
		Width: panelWidth, Height: panelHeight,
		Title:  fmt.Sprintf("%s: p99 %s, %.1f %% redirected", r.Method, millis(r.P99), r.Redirected),
		XLabel: "seconds", YLabel: "load, %",
		YTicks: scale.ticks(func(y float64) string { return fmt.Sprintf("%.0f", y) }),
		Marks:  []mark{{time.at(s.WarmUp.Seconds()), "measured"}},
	}
	for x := 0.0; x <= seconds; x += 10 {
		p.XTicks = append(p.XTicks, tick{time.at(x), fmt.Sprintf("%.0f", x)})
	}
	if s.Dies > 0 {
		p.Marks = append(p.Marks, mark{time.at(s.Dies.Seconds()), "a node dies"})
	}
	if s.Returns > 0 {
		p.Marks = append(p.Marks, mark{time.at(s.Returns.Seconds()), "it returns"})
	}
	if s.Flash > 0 {
		p.Marks = append(p.Marks, mark{time.at(s.FlashAt.Seconds()), "flash crowd"})
	}
	xs := make([]float64, len(r.Pressure))
	ys := make([]float64, len(r.Pressure))
	mean := make([]float64, len(r.Pressure))
	for n := range s.Nodes {
		for t, second := range r.Pressure {
			xs[t] = float64(t) + 0.5
			ys[t] = 100 * second[n]
			mean[t] += ys[t] / float64(s.Nodes)
		}
		p.Lines = append(p.Lines, line{Path: path(time, scale, xs, ys), Colour: colours[n%6], Thickness: 1, Opacity: 0.75})
	}
	p.Lines = append(p.Lines, line{Path: path(time, scale, xs, mean), Colour: "#000000", Thickness: 2, Opacity: 1})
	return p
}

// Sweep are the rows of the same methods at one offered load.
type Sweep struct {
	Load float64 `json:"load"` // per cent
	Rows []Row   `json:"rows"`
}

// SweepChart draws p99 against the offered load, a line for each method.
func SweepChart(w io.Writer, sweeps []Sweep) error {
	if len(sweeps) == 0 || len(sweeps[0].Rows) == 0 {
		return errors.New("chart of a sweep: no results")
	}
	const width, height = 2 * panelWidth, 2 * panelHeight
	low, high := math.Inf(1), 0.0
	for _, sw := range sweeps {
		for _, r := range sw.Rows {
			low, high = min(low, r.P99), max(high, r.P99)
		}
	}
	low = math.Pow(10, math.Floor(math.Log10(max(low, 1))))
	load := axis{from: sweeps[0].Load, to: sweeps[len(sweeps)-1].Load, size: width}
	if load.from == load.to {
		load.from, load.to = load.from-5, load.to+5
	}
	scale := axis{from: low, to: decade(high), size: -height, log: true}
	s := sweeps[0].Rows[0].Scenario
	pan := panel{
		X: leftMargin + 10, Y: titleHeight + topMargin, Width: width, Height: height,
		XLabel: "offered load, % of the site's capacity", YLabel: "p99 of the response time",
	}
	for _, sw := range sweeps {
		pan.XTicks = append(pan.XTicks, tick{load.at(sw.Load), fmt.Sprintf("%g", sw.Load)})
	}
	pan.YTicks = scale.ticks(millis)
	p := picture{
		Title: "Response time against load, " + s.Name,
		Lines: []string{s.title(false), "99th percentile of what clients see, redirects included."},
		Width: leftMargin + 10 + width + 190, Height: titleHeight + topMargin + height + panelGap,
	}
	var order []int // of the methods, as their lines end on the right
	for m := range sweeps[0].Rows {
		l := line{Colour: colours[m%len(colours)], Dash: dashes[m%len(dashes)], Thickness: 2, Opacity: 1}
		var xs, ys []float64
		for _, sw := range sweeps {
			xs, ys = append(xs, sw.Load), append(ys, sw.Rows[m].P99)
			l.Dots = append(l.Dots, dot{load.at(sw.Load), scale.at(sw.Rows[m].P99)})
		}
		l.Path = path(load, scale, xs, ys)
		pan.Lines = append(pan.Lines, l)
		order = append(order, m)
	}
	last := sweeps[len(sweeps)-1].Rows
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(last[b].P99, last[a].P99) })
	for i, m := range order {
		l := &pan.Lines[m]
		p.Legend = append(p.Legend, key{pan.X + width + 20, pan.Y + 12 + 22*i, last[m].Method, l.Colour, l.Dash})
	}
	p.Panels = []panel{pan}
	return drawing.Execute(w, p)
}

func millis(ms float64) string {
	if ms >= 1000 {
		return fmt.Sprintf("%.3g s", ms/1000)
	}
	return fmt.Sprintf("%.3g ms", ms)
}
