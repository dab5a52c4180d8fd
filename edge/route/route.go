// Package route says what a request is for: whose name it was sent to, which path in
// the one canonical form, and which rule of the site's URI table serves that path.
//
// Start with [Canonical] and [ParseAuthority], which take what the client sent, and
// [Table], which takes what they return. Whatever matches, forwards, caches or
// redirects a path must use the canonical form and no other, or a rule can be dodged
// by spelling.
//
// The package is pure: it reads no clock, opens nothing and keeps nothing of a
// request. Names and tables are immutable once built, and safe for concurrent use.
//
// Sources: RFC 3986 (3.2.2, 6.2.2), RFC 9110 (4.2.3, 7.2), RFC 5891; dedicated paths are
// those of the patent's second embodiment, stateful ones those of the fifth.
package route

import (
	"errors"
	"fmt"
	"strings"

	"peerage/balancing"
)

// Rule says how the requests for a part of the site are served.
type Rule struct {
	Host string // one of the site's hosts, or "" for any

	// Path is a canonical path. One that ends in "/" is for all paths that begin with
	// it and for itself without that slash, any other is for itself only.
	Path string

	Nodes    []balancing.NodeID // nodes dedicated to the path; empty for all (S402)
	Spill    bool               // while all of Nodes are off-line, any node may serve
	Stateful *Stateful          // nil: requests can be moved one by one
	Index    int                // for the caller: which of its handlers serves the path
}

// Table is the URI table of a site.
type Table struct {
	rules tree[*Rule]
	exits tree[*Stateful]
}

// NewTable builds a table of rules. The error names every rule that contradicts itself
// or another one.
func NewTable(rules []Rule) (*Table, error) {
	t := new(Table)
	states := map[string]*Stateful{}
	var errs []error
	for _, rule := range rules {
		r := &rule
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("route %s: %w", r, fmt.Errorf(format, args...)))
		}
		if err := checkHost(r.Host); r.Host != "" && err != nil {
			bad("%w", err)
		}
		if err := checkPath(r.Path); err != nil {
			bad("%w", err)
			continue
		}
		if old, ok := t.rules.add(r.Host, r.Path, r); !ok {
			bad("the path is taken by the route with index %d, this one has index %d", old.Index, r.Index)
		}
		s := r.Stateful
		if s == nil {
			continue
		}
		if err := s.check(r.Path); err != nil {
			bad("%w", err)
		}
		if old, ok := states[s.Name]; ok && old != s {
			bad("stateful rule %q: the name is taken by the one with entry %s, this one has entry %s", s.Name, old.Entry, s.Entry)
		}
		states[s.Name] = s
		for _, exit := range s.Exit {
			if old, ok := t.exits.add(r.Host, exit, s); !ok && old != s {
				bad("exit %s of stateful rule %q is an exit of %q too", exit, s.Name, old.Name)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t, nil
}

func (r *Rule) String() string { return r.Host + r.Path }

// Match returns the rule for a canonical path of host, a name as in [Name.Host]. The
// longest matching path wins; of two rules for the same path, the one for that very
// host. The caller must not change the rule.
func (t *Table) Match(host, path string) (*Rule, bool) { return t.rules.find(host, path) }

// tree finds values by host and longest path. The zero value is empty.
type tree[T any] struct {
	hosts   map[string]paths[T] // "" for any host
	longest int                 // octets of the longest key of paths.below
}

type paths[T any] struct {
	exact map[string]T
	below map[string]T // keys without the final slash: "" is "/"
}

// add puts v in its place. If that is taken it stays so, and ok is false.
func (t *tree[T]) add(host, path string, v T) (old T, ok bool) {
	p, found := t.hosts[host]
	if !found {
		p = paths[T]{exact: map[string]T{}, below: map[string]T{}}
		if t.hosts == nil {
			t.hosts = map[string]paths[T]{}
		}
		t.hosts[host] = p
	}
	in := p.exact
	if dir, isDir := strings.CutSuffix(path, "/"); isDir {
		in, path = p.below, dir
		t.longest = max(t.longest, len(dir))
	}
	if old, taken := in[path]; taken {
		return old, false
	}
	in[path] = v
	return v, true
}

func (t *tree[T]) find(host, path string) (v T, ok bool) {
	own, other := t.hosts[host], t.hosts[""]
	if v, ok = own.exact[path]; ok {
		return v, true
	}
	if v, ok = other.exact[path]; ok {
		return v, true
	}
	dir := strings.TrimSuffix(path, "/")
	if len(dir) > t.longest { // what is longer than every key need not be looked up, and may be very long
		dir = parent(dir[:t.longest+1])
	}
	for {
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

// covers reports whether path is one that pattern, a path as in [Rule.Path], is for.
func covers(pattern, path string) bool {
	dir, isDir := strings.CutSuffix(pattern, "/")
	if !isDir {
		return path == pattern
	}
	return path == dir || strings.HasPrefix(path, pattern)
}

// checkPath reports whether path is canonical, as all paths of rules must be.
func checkPath(path string) error {
	canonical, query, err := Canonical(path)
	switch {
	case err != nil:
		return fmt.Errorf("path %q: %w", path, err)
	case query != "" || strings.HasSuffix(path, "?"):
		return fmt.Errorf("path %q: a path has no query", path)
	case canonical != path:
		return fmt.Errorf("path %q: write it as %q", path, canonical)
	}
	return nil
}
