package balancing

import (
	"fmt"
	"time"
)

// Settings are what can be changed while a site runs, on all nodes at once (patent,
// summary: the levels and the period can be re-set). They begin as the site document has
// them; a change travels in the reports, and the newest is followed by every node.
type Settings struct {
	// Version is 0 for the settings of the site document, and grows with each change:
	// the milliseconds since 1970 of its making, or more. Base is a digest of the settings
	// of the document that were changed; a node follows a change only if its own document
	// has that digest, for else the document is newer, or this node's is old.
	Version uint64 `json:"version,omitempty"`
	Base    uint32 `json:"base,omitempty"`

	Policy
	Period time.Duration `json:"period"` // between two reports of a node
}

// Bounds of [Settings].
const (
	MinPeriod = 50 * time.Millisecond
	MaxPeriod = 10 * time.Second
	MaxLevel  = 1000 // per cent, of each level
)

// Check returns an error that names what is out of bounds.
func (s Settings) Check() error {
	for _, l := range []struct {
		name  string
		level Load
		least Load
	}{{"light", s.Light, 0}, {"margin", s.Margin, 1}, {"below", s.Below, 0}} {
		if !(l.level >= l.least && l.level <= MaxLevel) {
			return fmt.Errorf("%s: %v, want %v to %v", l.name, l.level, l.least, Load(MaxLevel))
		}
	}
	switch {
	case int(s.Rule) >= len(ruleNames):
		return fmt.Errorf("rule: there is none with the number %d", s.Rule)
	case int(s.Choice) >= len(choiceNames):
		return fmt.Errorf("choice: there is none with the number %d", s.Choice)
	case s.Period < MinPeriod || s.Period > MaxPeriod || s.Period%time.Millisecond != 0:
		return fmt.Errorf("period: %v, want whole milliseconds from %v to %v", s.Period, MinPeriod, MaxPeriod)
	}
	return nil
}
