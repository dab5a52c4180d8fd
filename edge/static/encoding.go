package static

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// coding is a content coding (RFC 9110 8.4.1) and the suffix of files in it.
type coding struct{ name, suffix string }

// codings are those that files are served in, best first.
var codings = [...]coding{{"br", ".br"}, {"zstd", ".zst"}, {"gzip", ".gz"}}

// accepted returns the codings that the values of Accept-Encoding allow and prefer to the
// file as it is, best first (RFC 9110 12.5.3). Of equals, ours comes first.
func accepted(values []string) []coding {
	q := map[string]float64{}
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			name, parameter, _ := strings.Cut(item, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			switch name {
			case "x-gzip": // RFC 9110 8.4.1.3
				name = "gzip"
				fallthrough
			case "br", "zstd", "gzip", "identity", "*":
				q[name] = weight(parameter)
			}
		}
	}
	var out []coding
	for _, c := range codings {
		if _, named := q[c.name]; !named {
			q[c.name] = q["*"]
		}
		if q[c.name] > 0 && q[c.name] >= q["identity"] {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b coding) int { return cmp.Compare(q[b.name], q[a.name]) })
	return out
}

// weight reads the parameter of a coding: 1 if there is none, 0 if it is not a weight of
// RFC 9110 12.4.2.
func weight(parameter string) float64 {
	parameter = strings.TrimSpace(parameter)
	if parameter == "" {
		return 1
	}
	key, value, _ := strings.Cut(parameter, "=")
	q, err := strconv.ParseFloat(value, 64)
	if !strings.EqualFold(key, "q") || err != nil || !(q >= 0 && q <= 1) {
		return 0
	}
	return q
}
