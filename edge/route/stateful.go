package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
)

// Stateful rules a stateful path: a client that has passed the entry stays on its node
// until an exit (patent, fifth embodiment).
type Stateful struct {
	Name string // unique in its table

	// Entry is the path up to and including which a client may be moved; "" for that of
	// the route. With or without a final slash it means both spellings; what lies below
	// is pinned. The entry of a route "/a*" is "/a", and all else that begins so is pinned.
	Entry string

	Exit          []string // paths as in [Rule.Path] that end the stay; they may lie anywhere on the site
	Scope         Scope
	OnOwnerLoss   balancing.OwnerLoss
	EntryKeepsPin bool          // a pinned client stays on its node at the entry too
	Idle          time.Duration // how long a client may be silent; 0 for ever
	MaxLife       time.Duration // how long it may stay; 0 for ever

	// Of the copy that a table keeps.
	entry      pattern
	exits      []pattern
	cookiePath string
}

// Scope says where on its host a pin binds.
type Scope uint8

const (
	ScopePath Scope = iota // below the entry
	ScopeSite              // everywhere
)

var scopeNames = []string{ScopePath: "path", ScopeSite: "site"}

func (s Scope) String() string {
	if int(s) >= len(scopeNames) {
		return fmt.Sprintf("scope(%d)", uint8(s))
	}
	return scopeNames[s]
}

// UnmarshalText reads the name.
func (s *Scope) UnmarshalText(b []byte) error {
	i := slices.Index(scopeNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a value of scope: path or site", b)
	}
	*s = Scope(i)
	return nil
}

// MarshalText writes the name.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// settled returns s as a table keeps it for the route r.
func (s *Stateful) settled(r *Rule) *Stateful {
	own := *s
	if own.Entry == "" || own.Entry+"*" == r.Path {
		own.Entry = r.Path
	}
	own.entry = newPattern(own.Entry)
	own.Entry = strings.TrimSuffix(own.Entry, "*")
	for _, exit := range s.Exit {
		own.exits = append(own.exits, newPattern(exit))
	}
	own.cookiePath = own.pathOfCookie()
	return &own
}

// pathOfCookie is the part of the site for which a browser must send the pin: from the
// entry on, or all of it if that is the scope, or an exit lies elsewhere.
func (s *Stateful) pathOfCookie() string {
	dir := s.entry.path
	if s.entry.kind == begins {
		dir = parent(dir) // a browser compares whole segments (RFC 6265 5.1.4)
	}
	if s.Scope == ScopeSite || dir == "" || strings.Contains(dir, ";") { // which would end the attribute
		return "/"
	}
	for _, exit := range s.exits {
		if exit.path != dir && !strings.HasPrefix(exit.path, dir+"/") {
			return "/"
		}
	}
	return dir
}

// CookiePath returns the path that the cookies of the rule are for. s must come from a
// table.
func (s *Stateful) CookiePath() string { return s.cookiePath }

// position says where on the stateful path the canonical path lies. An exit is an exit
// wherever it lies.
func (s *Stateful) position(path string) balancing.Position {
	for _, exit := range s.exits {
		if exit.covers(path) {
			return balancing.Exit
		}
	}
	rest, ok := strings.CutPrefix(path, s.entry.path)
	switch {
	case !ok:
		return balancing.Outside
	case rest == "" || rest == "/":
		return balancing.Entry
	case rest[0] == '/' || s.entry.kind == begins:
		return balancing.Interior
	}
	return balancing.Outside
}

// Stateful returns the stateful rule that a canonical path of host falls under, and
// where on it; nil and Outside for none. It is the one of the matching route, or else
// one whose exit lies outside its own route.
func (t *Table) Stateful(host, path string) (*Stateful, balancing.Position) {
	if r, ok := t.Match(host, path); ok && r.Stateful != nil {
		if p := r.Stateful.position(path); p != balancing.Outside {
			return r.Stateful, p
		}
	}
	if s, ok := t.exits.find(host, path); ok {
		return s, balancing.Exit
	}
	return nil, balancing.Outside
}

// SiteWide returns the stateful rules of host whose pins bind on every path.
func (t *Table) SiteWide(host string) []*Stateful {
	if own, ok := t.wide[host]; ok {
		return own
	}
	return t.wide[""]
}

// check reports all that is wrong with s, as settled for the route r.
func (s *Stateful) check(r *Rule) error {
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
	} else if !r.pattern().covers(s.Entry) {
		bad("entry %s lies outside the route", s.Entry)
	}
	for i, exit := range s.exits {
		if err := checkPath(s.Exit[i]); err != nil {
			bad("exit: %w", err)
		} else if exit.covers(s.Entry) {
			bad("exit %s takes in the entry %s", s.Exit[i], s.Entry)
		}
	}
	return errors.Join(errs...)
}
