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
	"slices"

	"peerage/balancing"
)

// Rule says how the requests for a part of the site are served.
type Rule struct {
	Host string // one of the site's hosts, or "" for any

	// Path is a canonical path. One that ends in "/" or "/*" is for all paths that begin
	// with it and for itself without that slash, one that ends in "*" for all paths that
	// begin with what comes before the star, any other for itself only.
	Path string

	// NoURI makes the rule one for requests without a URI (S402: "or the lack of one"):
	// the path "/" alone, which an empty path and "*" come to. Path is then "" or "/".
	NoURI bool

	ID balancing.RouteID // set by [NewTable]: how nodes name the rule in their reports

	Nodes    []balancing.NodeID // nodes dedicated to the path; empty for all (S402)
	Spill    bool               // while all of Nodes are off-line, any node may serve
	Move     balancing.Move     // what load may do to the clients of the path
	Stateful *Stateful          // nil: requests can be moved one by one
	Index    int                // for the caller: which of its handlers serves the path
}

// Table is the URI table of a site.
type Table struct {
	rules tree[*Rule]
	exits tree[*Stateful]
	wide  map[string][]*Stateful // of the whole site, by host; "" for hosts without an entry
	quiet bool
}

// Quiet reports whether load moves the clients of some path quietly.
func (t *Table) Quiet() bool { return t.quiet }

// NewTable builds a table of rules. The error names every rule that contradicts itself
// or another one.
func NewTable(rules []Rule) (*Table, error) {
	t := &Table{wide: map[string][]*Stateful{}}
	states := map[string]stated{}
	var errs []error
	for _, rule := range rules {
		r := &rule
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("route %s: %w", r, fmt.Errorf(format, args...)))
		}
		if err := checkHost(r.Host); r.Host != "" && err != nil {
			bad("%w", err)
		}
		if err := r.checkPath(); err != nil {
			bad("%w", err)
			continue
		}
		r.ID = balancing.RouteIDOf(r.Host, r.Path)
		if r.NoURI {
			r.ID = balancing.RouteIDOf(r.Host, "")
		}
		if old, ok := t.rules.add(r.Host, r.pattern(), r); !ok {
			bad("the path is taken by the route with index %d, this one has index %d", old.Index, r.Index)
		}
		t.quiet = t.quiet || r.Move == balancing.MoveQuiet
		if r.Stateful != nil {
			t.addStateful(r, states, bad)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for host, own := range t.wide {
		if host != "" {
			t.wide[host] = append(own, t.wide[""]...)
		}
	}
	return t, nil
}

// stated is a stateful rule as the caller of [NewTable] has it, and as the table keeps it.
type stated struct{ from, own *Stateful }

// addStateful takes the stateful rule of r into the table, with a copy of it in its place.
func (t *Table) addStateful(r *Rule, states map[string]stated, bad func(string, ...any)) {
	s := stated{r.Stateful, r.Stateful.settled(r)}
	if err := s.own.check(r); err != nil {
		bad("%w", err)
	}
	if old, ok := states[s.own.Name]; !ok {
		states[s.own.Name] = s
	} else if old.from == s.from {
		s = old
	} else {
		bad("stateful rule %q: the name is taken by the one with entry %s, this one has entry %s", s.own.Name, old.own.Entry, s.own.Entry)
	}
	r.Stateful = s.own
	for i, exit := range s.own.exits {
		if old, ok := t.exits.add(r.Host, exit, s.own); !ok && old != s.own {
			bad("exit %s of stateful rule %q is an exit of %q too", s.own.Exit[i], s.own.Name, old.Name)
		}
	}
	if s.own.Scope == ScopeSite && !slices.Contains(t.wide[r.Host], s.own) {
		t.wide[r.Host] = append(t.wide[r.Host], s.own)
	}
}

func (r *Rule) String() string {
	if r.NoURI {
		return r.Host + r.Path + " (no URI)"
	}
	return r.Host + r.Path
}

func (r *Rule) pattern() pattern {
	if r.NoURI {
		return pattern{exact, "/"}
	}
	return newPattern(r.Path)
}

func (r *Rule) checkPath() error {
	switch {
	case !r.NoURI:
		return checkPath(r.Path)
	case r.Path != "" && r.Path != "/":
		return fmt.Errorf("path %q: the lack of a URI has no path but /", r.Path)
	case r.Stateful != nil:
		return errors.New("the lack of a URI cannot be stateful: there is nothing below it")
	}
	return nil
}

// Match returns the rule for a canonical path of host, a name as in [Name.Host]. The
// longest matching path wins, and one that matches exactly before all others; of two
// rules for the same path, the one for that very host. The caller must not change the
// rule.
func (t *Table) Match(host, path string) (*Rule, bool) { return t.rules.find(host, path) }
