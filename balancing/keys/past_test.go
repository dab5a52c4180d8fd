package keys

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var end = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// equal reports whether both rings have the same keys and the same past.
func equal(a, b *Ring) bool {
	return slices.EqualFunc(a.keys, b.keys, Key.Equal) &&
		slices.EqualFunc(a.past, b.past, func(p, q Past) bool { return p.Key.Equal(q.Key) && p.Until.Equal(q.Until) })
}

func TestPastKeysOpenPinsUntilTheirEnd(t *testing.T) {
	k1, k2 := Generate(), Generate()
	pin := newRing(t, k1).Sealer(LabelPin).Seal(nil, plaintext, additional)
	ring := newRing(t, k2).WithPast(Past{k1, end})
	s := ring.PinSealer(end.Add(-time.Hour))
	for _, test := range []struct {
		name  string
		at    time.Time
		opens bool
	}{
		{"well before", end.Add(-time.Hour), true},
		{"a moment before", end.Add(-time.Nanosecond), true},
		{"at its end", end, false},
		{"long after", end.AddDate(1, 0, 0), false},
	} {
		got, err := s.OpenAt(test.at, nil, pin, additional)
		if test.opens != (err == nil) || test.opens && string(got) != string(plaintext) {
			t.Errorf("%s: OpenAt = %q, %v; want that it opens: %t", test.name, got, err, test.opens)
		}
	}
	if n := len(ring.PinSealer(end).keys); n != 1 {
		t.Errorf("a pin sealer that is made at the end of the past key has %d keys, want 1", n)
	}
	if sealed := s.Seal(nil, plaintext, additional); sealed[0] != s.keys[0].id {
		t.Error("the past key seals")
	}
	for _, label := range []Label{LabelReport, LabelCA, LabelPin} {
		old := newRing(t, k1).Sealer(label).Seal(nil, plaintext, additional)
		refused(t, ring.Sealer(label), old, additional, "use %q of a past key", label)
	}
	if all := ring.DeriveAll(LabelGossip, ""); len(all) != 1 || ring.Changing() || len(ring.Keys()) != 1 {
		t.Error("the past key is good for more than pins")
	}
}

// TestPastKeysEndByTheClock: Open by itself looks at the clock.
func TestPastKeysEndByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k1 := Generate()
		pin := newRing(t, k1).Sealer(LabelPin).Seal(nil, plaintext, nil)
		s := newRing(t, Generate()).WithPast(Past{k1, time.Now().Add(time.Hour)}).PinSealer(time.Now())
		time.Sleep(time.Hour - time.Second)
		if _, err := s.Open(nil, pin, nil); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := s.Open(nil, pin, nil); !errors.Is(err, ErrOpen) {
			t.Errorf("at its end: %v, want ErrOpen", err)
		}
	})
}

func TestWithPast(t *testing.T) {
	now, old := Generate(), Generate()
	r := newRing(t, now, old)
	var many []Past
	for i := range MaxPast + 3 {
		many = append(many, Past{numbered(byte(i + 1)), end.Add(time.Duration(i) * time.Hour)})
	}
	got := r.WithPast(many...).Past()
	if len(got) != MaxPast || !got[0].Key.Equal(numbered(MaxPast+3)) || !got[MaxPast-1].Key.Equal(numbered(4)) {
		t.Errorf("of %d past keys %d stay, want the %d that end last, in that order", len(many), len(got), MaxPast)
	}
	twice := r.WithPast(Past{numbered(1), end}, Past{numbered(1), end.Add(time.Hour)}).Past()
	if len(twice) != 1 || !twice[0].Until.Equal(end.Add(time.Hour)) {
		t.Errorf("the same key twice: %d stay, want one with the longer life", len(twice))
	}
	if got := r.WithPast(Past{old, end}, Past{now, end}, Past{Key{}, end}).Past(); len(got) > 0 {
		t.Errorf("keys of the ring and an empty one: %d past keys, want none", len(got))
	}
	if len(r.Past()) > 0 {
		t.Error("the ring itself was altered")
	}
	if len(r.WithPast(many...).WithPast().Past()) > 0 {
		t.Error("the past cannot be taken away")
	}
}

func TestPastAsText(t *testing.T) {
	a, b, c := Generate(), Generate(), Generate()
	for _, r := range []*Ring{
		newRing(t, a).WithPast(Past{b, end}),
		newRing(t, a, b).WithPast(Past{c, end.Add(1500 * time.Millisecond)}, Past{numbered(1), end}),
	} {
		text := r.Reveal()
		back, err := ParseRing(text)
		if err != nil || !equal(back, r) || back.Reveal() != text {
			t.Errorf("a ring with %d past keys comes back otherwise: %v", len(r.Past()), err)
		}
		if !strings.Contains(text, " until 2030-01-02T03:04:0") {
			t.Error("the text form has no RFC 3339 time")
		}
	}
	line := func(k Key) string { return "past " + k.Reveal() + " until 2030-01-02T03:04:05Z\n" }
	var seven strings.Builder
	for i := range byte(MaxPast + 1) {
		seven.WriteString(line(numbered(i + 1)))
	}
	for name, text := range map[string]string{
		"past keys alone":       line(a),
		"a key below":           a.Reveal() + "\n" + line(b) + c.Reveal(),
		"too many":              a.Reveal() + "\n" + seven.String(),
		"without a time":        a.Reveal() + "\npast " + b.Reveal(),
		"another time":          a.Reveal() + "\npast " + b.Reveal() + " until tomorrow",
		"a bad key":             a.Reveal() + "\npast " + b.Reveal()[1:] + " until 2030-01-02T03:04:05Z",
		"a key of the ring":     a.Reveal() + "\n" + line(a),
		"one of the past twice": a.Reveal() + "\n" + line(b) + line(b),
	} {
		if _, err := ParseRing(text); err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), a.Reveal()[:8]) || strings.Contains(err.Error(), b.Reveal()[1:9]) {
			t.Errorf("%s: the error tells a key", name)
		}
	}
}

func FuzzParseRing(f *testing.F) {
	f.Add(counting)
	f.Add(counting + "\n" + numbered(1).Reveal() + "\npast " + numbered(2).Reveal() + " until 2030-01-02T03:04:05Z\n")
	f.Add(counting + "\npast " + numbered(2).Reveal() + " until 2030-01-02T03:04:05.7+14:00")
	f.Add("past \n until ")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRing(text)
		if err != nil {
			return
		}
		back, err := ParseRing(r.Reveal())
		if err != nil || !equal(r, back) {
			t.Errorf("ParseRing(Reveal(ParseRing(%q))) is otherwise: %v", text, err)
		}
	})
}
