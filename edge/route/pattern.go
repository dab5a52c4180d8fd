package route

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// pattern is a path as in [Rule.Path], taken apart.
type pattern struct {
	kind kind
	path string
}

type kind uint8

const (
	exact  kind = iota // path alone
	below              // "/a/" and "/a/*": path, which lacks the slash, and what lies below it
	begins             // "/a*": whatever begins with path
)

func newPattern(text string) pattern {
	path, star := strings.CutSuffix(text, "*")
	if dir, isDir := strings.CutSuffix(path, "/"); isDir {
		return pattern{below, dir}
	}
	if star {
		return pattern{begins, path}
	}
	return pattern{exact, path}
}

// covers reports whether path is one that p is for.
func (p pattern) covers(path string) bool {
	rest, ok := strings.CutPrefix(path, p.path)
	return ok && (rest == "" || p.kind == begins || p.kind == below && rest[0] == '/')
}

// checkPath reports whether text is a canonical path, as all paths of rules must be, with
// a star at its end or without.
func checkPath(text string) error {
	path, _ := strings.CutSuffix(text, "*")
	canonical, query, err := Canonical(path)
	switch {
	case err != nil:
		return fmt.Errorf("path %q: %w", text, err)
	case query != "" || strings.HasSuffix(path, "?"):
		return fmt.Errorf("path %q: a path has no query", text)
	case canonical != path:
		return fmt.Errorf("path %q: write it as %q", text, canonical+text[len(path):])
	}
	return nil
}

// tree finds values by host and longest pattern. The zero value is empty.
type tree[T any] struct {
	hosts   map[string]paths[T] // "" for any host
	longest int                 // octets of the longest key of paths.below
}

type paths[T any] struct {
	exact  map[string]T
	below  map[string]T    // "" is "/"
	begins *[]beginning[T] // longest first; nil with the maps
}

// beginning is a value whose pattern is of kind begins.
type beginning[T any] struct {
	path string
	v    T
}

// add puts v in its place. If that is taken it stays so, and ok is false.
func (t *tree[T]) add(host string, p pattern, v T) (old T, ok bool) {
	at, found := t.hosts[host]
	if !found {
		at = paths[T]{exact: map[string]T{}, below: map[string]T{}, begins: new([]beginning[T])}
		if t.hosts == nil {
			t.hosts = map[string]paths[T]{}
		}
		t.hosts[host] = at
	}
	if p.kind == begins {
		return at.addBeginning(p.path, v)
	}
	in := at.exact
	if p.kind == below {
		in = at.below
		t.longest = max(t.longest, len(p.path))
	}
	if old, taken := in[p.path]; taken {
		return old, false
	}
	in[p.path] = v
	return v, true
}

func (p paths[T]) addBeginning(path string, v T) (old T, ok bool) {
	for _, b := range *p.begins {
		if b.path == path {
			return b.v, false
		}
	}
	*p.begins = append(*p.begins, beginning[T]{path, v})
	slices.SortFunc(*p.begins, func(a, b beginning[T]) int { return cmp.Compare(len(b.path), len(a.path)) })
	return v, true
}

// beginning returns the longest that path begins with; the zero value for none.
func (p paths[T]) beginning(path string) (longest beginning[T]) {
	if p.begins == nil {
		return longest
	}
	for _, b := range *p.begins {
		if strings.HasPrefix(path, b.path) {
			return b
		}
	}
	return longest
}

func (t *tree[T]) find(host, path string) (v T, ok bool) {
	own, other := t.hosts[host], t.hosts[""]
	if v, ok = own.exact[path]; ok {
		return v, true
	}
	if v, ok = other.exact[path]; ok {
		return v, true
	}
	begun := own.beginning(path)
	if b := other.beginning(path); len(b.path) > len(begun.path) {
		begun = b
	}
	dir := strings.TrimSuffix(path, "/")
	if len(dir) > t.longest { // what is longer than every key need not be looked up, and may be very long
		dir = parent(dir[:t.longest+1])
	}
	for {
		if len(dir) < len(begun.path) { // the slash counts
			return begun.v, true
		}
		if v, ok = own.below[dir]; ok {
			return v, true
		}
		if v, ok = other.below[dir]; ok || dir == "" {
			return v, ok
		}
		dir = parent(dir)
	}
}

// parent cuts the last segment off dir, slash included.
func parent(dir string) string { return dir[:max(0, strings.LastIndexByte(dir, '/'))] }
