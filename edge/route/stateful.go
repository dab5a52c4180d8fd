package route

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"peerage/balancing"
)

// Stateful rules a stateful path: a client that has passed the entry stays on its node
// until an exit (patent, fifth embodiment).
type Stateful struct {
	Name string // unique in its table

	// Entry is the path up to and including which a client may be moved. With or
	// without a final slash it means both spellings; what lies below is pinned.
	Entry string

	Exit          []string // paths as in [Rule.Path] that end the stay; they may lie anywhere on the site
	OnOwnerLoss   balancing.OwnerLoss
	EntryKeepsPin bool          // a pinned client stays on its node at the entry too
	Idle          time.Duration // how long a client may be silent; 0 for ever
	MaxLife       time.Duration // how long it may stay; 0 for ever
}

// Position says where on the stateful path the canonical path lies. An exit is an exit
// wherever it lies.
func (s *Stateful) Position(path string) balancing.Position {
	for _, exit := range s.Exit {
		if covers(exit, path) {
			return balancing.Exit
		}
	}
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(s.Entry, "/"))
	switch {
	case !ok:
		return balancing.Outside
	case rest == "" || rest == "/":
		return balancing.Entry
	case rest[0] == '/':
		return balancing.Interior
	}
	return balancing.Outside
}

// Stateful returns the stateful rule that a canonical path of host falls under, and
// where on it; nil and Outside for none. It is the one of the matching route, or else
// one whose exit lies outside its own route.
func (t *Table) Stateful(host, path string) (*Stateful, balancing.Position) {
	if r, ok := t.Match(host, path); ok && r.Stateful != nil {
		if p := r.Stateful.Position(path); p != balancing.Outside {
			return r.Stateful, p
		}
	}
	if s, ok := t.exits.find(host, path); ok {
		return s, balancing.Exit
	}
	return nil, balancing.Outside
}

// check reports all that is wrong with s as a part of the route for path.
func (s *Stateful) check(path string) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("stateful rule %q: %w", s.Name, fmt.Errorf(format, args...)))
	}
	if s.Name == "" {
		bad("it has no name")
	}
	if s.Idle < 0 || s.MaxLife < 0 {
		bad("idle %s, max_life %s: a time is negative", s.Idle, s.MaxLife)
	}
	if err := checkPath(s.Entry); err != nil {
		bad("entry: %w", err)
	} else if !covers(path, s.Entry) {
		bad("entry %s lies outside the route", s.Entry)
	}
	for _, exit := range s.Exit {
		if err := checkPath(exit); err != nil {
			bad("exit: %w", err)
		} else if covers(exit, s.Entry) {
			bad("exit %s takes in the entry %s", exit, s.Entry)
		}
	}
	return errors.Join(errs...)
}
