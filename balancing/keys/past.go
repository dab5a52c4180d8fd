package keys

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// Past is a site key that has been replaced. It seals nothing and opens nothing but pins,
// until a time by which no client can have one that it sealed.
type Past struct {
	Key   Key
	Until time.Time // in whole seconds
}

// MaxPast is how many past keys a ring keeps.
const MaxPast = 6

// WithPast returns the ring with these past keys in place of those that it has. Of one
// key the longest life counts; a key of the ring itself is none of the past, and an empty
// one none at all. If there are more than [MaxPast], those that end last are kept.
func (r *Ring) WithPast(past ...Past) *Ring {
	all := slices.Clone(past)
	for i := range all {
		all[i].Until = all[i].Until.UTC().Truncate(time.Second)
	}
	slices.SortStableFunc(all, func(a, b Past) int { return b.Until.Compare(a.Until) })
	next := &Ring{keys: r.keys}
	for _, p := range all {
		same := func(k Key) bool { return k.Equal(p.Key) }
		known := slices.ContainsFunc(next.keys, same) || slices.ContainsFunc(next.past, func(o Past) bool { return same(o.Key) })
		if !known && !p.Key.Empty() && len(next.past) < MaxPast {
			next.past = append(next.past, p)
		}
	}
	return next
}

// Past returns the past keys, the one that ends last first. Some may have ended.
func (r *Ring) Past() []Past { return slices.Clone(r.past) }

// PinSealer is [Ring.Sealer] for [LabelPin], which opens with those past keys too that
// have not ended by now, each until it ends; see [Sealer.OpenAt].
func (r *Ring) PinSealer(now time.Time) *Sealer {
	s := r.Sealer(LabelPin)
	for _, p := range r.past {
		if now.Before(p.Until) {
			s.keys = append(s.keys, newSealingKey(p.Key, LabelPin, p.Until))
		}
	}
	return s
}

// parsePast reads what follows "past ". No error tells any of the text.
func parsePast(text string) (Past, error) {
	key, until, ok := strings.Cut(text, " until ")
	if !ok {
		return Past{}, errors.New("past site key: want 'past <key> until <time>'")
	}
	k, err := Parse(key)
	if err != nil {
		return Past{}, err
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(until))
	if y := t.UTC().Year(); err != nil || y < 0 || y > 9999 { // a year that could not be written again
		return Past{}, errors.New("past site key: its end is not a time as in RFC 3339")
	}
	return Past{Key: k, Until: t}, nil
}

func (p Past) reveal() string {
	return "past " + p.Key.Reveal() + " until " + p.Until.Format(time.RFC3339)
}
