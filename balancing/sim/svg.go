package sim

import (
	"html/template"
	"math"
	"strconv"
)

// picture is what the template draws.
type picture struct {
	Width, Height int
	Title         string
	Lines         []string // below it
	Panels        []panel
	Legend        []key
}

type panel struct {
	X, Y, Width, Height int
	Title               string
	XTicks, YTicks      []tick
	XLabel, YLabel      string
	Lines               []line
	Marks               []mark // vertical lines with a word
}

type tick struct {
	At   float64 // in the panel
	Text string
}

type line struct {
	Path, Colour, Dash string
	Thickness, Opacity float64
	Dots               []dot
}

type dot struct{ X, Y float64 }

type mark struct {
	X    float64
	Text string
}

type key struct {
	X, Y         int
	Text         string
	Colour, Dash string
}

// axis maps values to places in a panel.
type axis struct {
	from, to float64
	size     float64 // negative for one that grows upwards, to size 0
	log      bool
}

func (a axis) at(x float64) float64 {
	from, to := a.from, a.to
	x = min(max(x, from), to)
	if a.log {
		x, from, to = math.Log(x), math.Log(from), math.Log(to)
	}
	part := (x - from) / (to - from)
	if a.size < 0 {
		return -a.size * (1 - part)
	}
	return a.size * part
}

// ticks are at the powers of ten of a logarithmic axis, and between them if it is short.
func (a axis) ticks(text func(float64) string) (all []tick) {
	steps := []float64{1, 2, 5}
	if a.to/a.from > 100 {
		steps = steps[:1]
	}
	for y := a.from; y <= a.to; y *= 10 {
		for _, k := range steps {
			if k*y <= a.to*1.001 {
				all = append(all, tick{a.at(k * y), text(k * y)})
			}
		}
	}
	return all
}

// path draws a line through the points, in the panel.
func path(x, y axis, xs, ys []float64) string {
	var b []byte
	for i := range xs {
		op := byte('L')
		if i == 0 {
			op = 'M'
		}
		b = append(b, op)
		b = strconv.AppendFloat(b, x.at(xs[i]), 'f', 1, 64)
		b = append(b, ' ')
		b = strconv.AppendFloat(b, y.at(ys[i]), 'f', 1, 64)
	}
	return string(b)
}

// decade returns the power of ten, or its double or quintuple, that is not below x.
func decade(x float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(x)))
	for _, k := range []float64{1, 2, 5} {
		if k*base >= x {
			return k * base
		}
	}
	return 10 * base
}

var drawing = template.Must(template.New("chart").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="11" fill="#222">
<title>{{.Title}}</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="26" font-size="15" font-weight="bold">{{.Title}}</text>
<text y="30" fill="#555">{{range .Lines}}<tspan x="16" dy="1.5em">{{.}}</tspan>{{end}}</text>
{{range .Panels}}<g transform="translate({{.X}} {{.Y}})">
{{$w := .Width}}{{$h := .Height}}<text x="0" y="-9" font-weight="bold">{{.Title}}</text>
{{range .YTicks}}<path d="M0 {{.At}}H{{$w}}" stroke="#dddddd"/><text x="-7" y="{{.At}}" dy="4" text-anchor="end">{{.Text}}</text>
{{end}}{{range .XTicks}}<path d="M{{.At}} {{$h}}v5" stroke="#888888"/><text x="{{.At}}" y="{{$h}}" dy="18" text-anchor="middle">{{.Text}}</text>
{{end}}{{range .Marks}}<path d="M{{.X}} 0V{{$h}}" stroke="#999999" stroke-dasharray="3 3"/><text x="{{.X}}" y="10" dx="4" fill="#666">{{.Text}}</text>
{{end}}{{range .Lines}}<path d="{{.Path}}" fill="none" stroke="{{.Colour}}" stroke-width="{{.Thickness}}" stroke-opacity="{{.Opacity}}"{{if .Dash}} stroke-dasharray="{{.Dash}}"{{end}} stroke-linejoin="round"/>
{{$c := .Colour}}{{range .Dots}}<circle cx="{{.X}}" cy="{{.Y}}" r="3" fill="{{$c}}"/>
{{end}}{{end}}<path d="M0 0V{{.Height}}H{{.Width}}" fill="none" stroke="#444444"/>
<text x="{{.Width}}" y="{{.Height}}" dy="34" text-anchor="end" fill="#555">{{.XLabel}}</text>
<text transform="translate(-50 0) rotate(-90)" text-anchor="end" fill="#555">{{.YLabel}}</text>
</g>
{{end}}{{range .Legend}}<path d="M{{.X}} {{.Y}}h30" stroke="{{.Colour}}" stroke-width="2"{{if .Dash}} stroke-dasharray="{{.Dash}}"{{end}}/><text x="{{.X}}" y="{{.Y}}" dx="38" dy="4">{{.Text}}</text>
{{end}}</svg>
`))
