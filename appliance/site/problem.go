package site

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	File   string
	Line   int    // from 1; 0 if it is not known
	Column int    // from 1, in characters
	Path   string // of the value, such as nodes.n1.vips[0]; "" for the file as a whole
	Text   string // what is wrong; what would be right
}

// String returns the problem in one line, in the form that editors understand.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	return b.String() + ": " + p.Text
}

// Problems are all problems of a file, sorted by place.
type Problems []Problem

// Error returns one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds what is said about one file.
const maxProblems = 200

// place is where a value stands in a file.
type place struct{ line, column int }

// report collects what is wrong with a file, and knows where its values are.
type report struct {
	file     string
	places   map[string]place // by path
	failed   map[string]bool  // paths of values that could not be decoded
	problems Problems
}

func newReport(file string) *report {
	return &report{file: file, places: map[string]place{}, failed: map[string]bool{}}
}

// bad notes a problem with the value at path.
func (r *report) bad(path, format string, args ...any) {
	r.badAt(where(r.places, path), path, format, args...)
}

func (r *report) badAt(at place, path, format string, args ...any) {
	text := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) { // a problem is one line, whatever another package repeats of the file
			return utf8.RuneError
		}
		return c
	}, fmt.Sprintf(format, args...))
	r.problems = append(r.problems, Problem{r.file, at.line, at.column, path, text})
}

// badValue notes that the value at path could not be decoded, so that it is not judged
// any further.
func (r *report) badValue(path, format string, args ...any) {
	r.failed[path] = true
	r.bad(path, format, args...)
}

// given reports whether the file has a value at path, good or not.
func (r *report) given(path string) bool {
	_, ok := r.places[path]
	return ok
}

// sound reports whether nothing is wrong at or below any of the paths.
func (r *report) sound(paths ...string) bool {
	return !slices.ContainsFunc(r.problems, func(p Problem) bool {
		return slices.ContainsFunc(paths, func(path string) bool {
			rest, ok := strings.CutPrefix(p.Path, path)
			return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
		})
	})
}

// err returns what was found as an error, nil if all is well.
func (r *report) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	return sorted(r.problems)
}

// sorted brings problems into the order of their places, and bounds them.
func sorted(ps Problems) Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
	})
	if more := len(ps) - maxProblems; more > 0 {
		last := ps[maxProblems]
		last.Path, last.Text = "", fmt.Sprintf("%d more problems; mend the ones above first", more)
		ps = append(ps[:maxProblems:maxProblems], last)
	}
	return ps
}

// where returns the place of the value at path, or of what it is missing from.
func where(places map[string]place, path string) place {
	for {
		if at, ok := places[path]; ok {
			return at
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return places[""]
		}
		path = path[:i]
	}
}

// below returns the path of the value under key of the mapping at path.
func below(path, key string) string {
	if !isWord(key) {
		key = quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// item returns the path of element i of the list at path.
func item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// isWord reports whether s needs no quotes within a path.
func isWord(s string) bool {
	return s != "" && len(s) <= maxQuoted && strings.IndexFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-'
	}) < 0
}

// shown returns what a file says for an error: as it stands there if that is one word.
func shown(s string) string {
	if s == "" || len(s) > maxQuoted || strings.IndexFunc(s, func(c rune) bool { return !isAlphanumeric(c) && !strings.ContainsRune("+-._:", c) }) >= 0 {
		return quote(s)
	}
	return s
}

// maxQuoted is how much of a file is repeated in an error, in octets.
const maxQuoted = 64

// quote returns s for an error: on one line, and not too long.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	cut := maxQuoted
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}
