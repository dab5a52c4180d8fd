package heartbeat

import (
	"bytes"
	"time"

	"peerage/balancing"
)

// Set changes the settings of the whole site: those of this node at once, those of the
// others with the next report. What f makes of those in force counts, unless it returns an
// error; no other change comes in between. Set returns them with their version, or an error
// that says what is out of bounds.
func (x *Exchange) Set(f func(*balancing.Settings) error) (balancing.Settings, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.settings
	if err := f(&s); err != nil {
		return balancing.Settings{}, err
	}
	s.Version = max(uint64(time.Now().UnixMilli()), x.settings.Version+1)
	s.Base = x.c.Document.Base
	if err := s.Check(); err != nil {
		return balancing.Settings{}, err
	}
	x.follow(s)
	return s, nil
}

// newer reports whether a is to be followed in place of b. Of two changes of one version,
// made where neither was known, all nodes take the same.
func newer(a, b *balancing.Settings) bool {
	if a.Version != b.Version {
		return a.Version > b.Version
	}
	return bytes.Compare(appendSettings(nil, a), appendSettings(nil, b)) > 0
}

// Reset is [Exchange.Set] to what the site document says.
func (x *Exchange) Reset() (balancing.Settings, error) {
	return x.Set(func(s *balancing.Settings) error {
		*s = x.c.Document
		return nil
	})
}

// follow makes s the settings, and tells everybody. x.mu is held.
func (x *Exchange) follow(s balancing.Settings) {
	x.adopt(s)
	if x.c.Keep != nil {
		x.c.Keep(s)
	}
	x.publish(time.Now())
	x.tell(true)
}

// adopt makes s the settings. x.mu is held.
func (x *Exchange) adopt(s balancing.Settings) {
	if s.Period > x.settings.Period {
		// A peer that misses the news must not take the longer pause for silence.
		x.hasten, x.before = x.c.OfflineAfter, x.settings.Period
	}
	x.settings = s
	x.c.Log.Info("settings changed", "version", s.Version, "light", s.Light, "margin", s.Margin, "below", s.Below,
		"rule", s.Rule, "choice", s.Choice, "period", s.Period)
}
