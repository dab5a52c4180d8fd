package keys

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// sealed is "load 42", sealed for reports of "site example" under the key of [counting]
// with the nonce 40 41 … 57. An implementation of its own made it, which also agreed
// with draft-irtf-cfrg-xchacha-03, appendix A.3.1.
const sealed = "8f" +
	"404142434445464748494a4b4c4d4e4f5051525354555657" +
	"65a7ea9ec4273cee428988df1e90f6e5f63388567af0cb"

var (
	plaintext  = []byte("load 42")
	additional = []byte("site example")
)

func TestOpenReadsTheFixedVector(t *testing.T) {
	s := newRing(t, parse(t, counting)).Sealer(LabelReport)
	got, err := s.Open(nil, unhex(t, sealed), additional)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("Open = %q, %v, want %q", got, err, plaintext)
	}
}

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	s := newRing(t, Generate()).Sealer(LabelPin)
	for _, n := range []int{0, 1, 15, 16, 17, 512, 4096} {
		for _, with := range [][]byte{nil, additional} {
			for _, dst := range [][]byte{nil, []byte("before"), append(make([]byte, 0, 8192), "before"...)} {
				t.Run(fmt.Sprintf("%d octets, %d additional, behind %d of %d", n, len(with), len(dst), cap(dst)), func(t *testing.T) {
					text := bytes.Repeat([]byte{'x'}, n)
					sealed := s.Seal(slices.Clone(dst), text, with)
					if !bytes.HasPrefix(sealed, dst) || len(sealed) != len(dst)+Overhead+n {
						t.Fatalf("Seal: %d octets, want %d behind %q", len(sealed), Overhead+n, dst)
					}
					opened, err := s.Open(slices.Clone(dst), sealed[len(dst):], with)
					if err != nil || !bytes.Equal(opened, append(slices.Clone(dst), text...)) {
						t.Errorf("Open = %d octets, %v, want the text behind %q", len(opened), err, dst)
					}
				})
			}
		}
	}
}

func TestSealNeverRepeatsANonce(t *testing.T) {
	s := newRing(t, Generate()).Sealer(LabelReport)
	seen := map[string]bool{}
	for range 1000 {
		nonce := string(s.Seal(nil, plaintext, nil)[1:head])
		if seen[nonce] {
			t.Fatalf("nonce %x twice", nonce)
		}
		seen[nonce] = true
	}
}

// refused tells what Open did wrong with something that it must refuse.
func refused(t *testing.T, s *Sealer, sealed, additional []byte, format string, args ...any) {
	t.Helper()
	if got, err := s.Open(nil, sealed, additional); !errors.Is(err, ErrOpen) || got != nil {
		t.Errorf("%s: Open = %x, %v, want ErrOpen", fmt.Sprintf(format, args...), got, err)
	}
}

func TestOpenRefusesWhatIsNotAsItWasSealed(t *testing.T) {
	key, other := Generate(), Generate()
	for name, s := range map[string]*Sealer{
		"one key":          newRing(t, key).Sealer(LabelReport),
		"two keys":         newRing(t, key, other).Sealer(LabelReport),
		"two keys, turned": newRing(t, other, key).Sealer(LabelReport),
	} {
		t.Run(name, func(t *testing.T) {
			good := newRing(t, key).Sealer(LabelReport).Seal(nil, plaintext, additional)
			if _, err := s.Open(nil, good, additional); err != nil {
				t.Fatal(err)
			}
			for i := range good {
				refused(t, s, good[:i], additional, "cut to %d octets", i)
				for bit := range 8 {
					bad := slices.Clone(good)
					bad[i] ^= 1 << bit
					refused(t, s, bad, additional, "octet %d, bit %d turned", i, bit)
				}
			}
			for id := range 256 {
				if byte(id) != good[0] {
					refused(t, s, append([]byte{byte(id)}, good[1:]...), additional, "key id %#x for %#x", id, good[0])
				}
			}
			refused(t, s, append(slices.Clone(good), 0), additional, "one octet more")
			refused(t, s, nil, additional, "nothing")
			refused(t, s, good, nil, "without the additional data")
			refused(t, s, good, []byte("site exampla"), "with other additional data")
			refused(t, s, good, append(slices.Clone(additional), 0), "with more additional data")
			refused(t, newRing(t, Generate()).Sealer(LabelReport), good, additional, "another site")
			refused(t, newRing(t, key).Sealer(LabelPin), good, additional, "another use")
		})
	}
}

// TestKeysWithOneID: one pair of keys in 256 has the same id. Both must open then, and
// the id is still no means to alter anything.
func TestKeysWithOneID(t *testing.T) {
	a, b := numbered(20), numbered(22)
	s := newRing(t, a, b).Sealer(LabelReport)
	if s.keys[0].id != s.keys[1].id {
		t.Fatalf("ids %#x and %#x, want the same: pick other keys", s.keys[0].id, s.keys[1].id)
	}
	for name, from := range map[string]Key{"newest": a, "older": b} {
		good := newRing(t, from).Sealer(LabelReport).Seal(nil, plaintext, additional)
		if got, err := s.Open([]byte("before "), good, additional); err != nil || string(got) != "before load 42" {
			t.Errorf("sealed by the %s: Open = %q, %v", name, got, err)
		}
		good[len(good)-1] ^= 1
		refused(t, s, good, additional, "sealed by the %s, then altered", name)
	}
}

func TestRotation(t *testing.T) {
	first, second := Generate(), Generate()
	use := func(newest Key, older ...Key) *Sealer { return newRing(t, newest, older...).Sealer(LabelReport) }
	before, learns, turns, after := use(first), use(first, second), use(second, first), use(second)
	for _, test := range []struct {
		name     string
		from, to *Sealer
		opens    bool
	}{
		// Each node takes these steps in its own time, so neighbouring ones must
		// understand each other both ways.
		{"old to one that knows both", before, learns, true},
		{"one that knows both to old", learns, before, true},
		{"both, old newest, to new newest", learns, turns, true},
		{"both, new newest, to old newest", turns, learns, true},
		{"both to new alone", turns, after, true},
		{"new alone to both", after, turns, true},

		// The newest key seals.
		{"both, new newest, to old alone", turns, before, false},
		{"both, old newest, to new alone", learns, after, false},
		{"old alone to new alone", before, after, false},
	} {
		got, err := test.to.Open(nil, test.from.Seal(nil, plaintext, additional), additional)
		if test.opens && (err != nil || !bytes.Equal(got, plaintext)) {
			t.Errorf("%s: Open = %q, %v", test.name, got, err)
		}
		if !test.opens && !errors.Is(err, ErrOpen) {
			t.Errorf("%s: Open = %q, %v, want ErrOpen", test.name, got, err)
		}
	}
}

func TestSealAndOpenAllocateNothing(t *testing.T) {
	s := newRing(t, Generate(), Generate()).Sealer(LabelReport)
	text := make([]byte, 512)
	box, plain := make([]byte, 0, Overhead+len(text)), make([]byte, 0, len(text))
	if n := testing.AllocsPerRun(100, func() { box = s.Seal(box[:0], text, additional) }); n != 0 {
		t.Errorf("Seal: %v allocations, want none", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Open(plain, box, additional); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Open: %v allocations, want none", n)
	}
	box[head] ^= 1
	if n := testing.AllocsPerRun(100, func() { s.Open(plain, box, additional) }); n != 0 {
		t.Errorf("Open of a forgery: %v allocations, want none", n)
	}
}

func FuzzOpen(f *testing.F) {
	s := newRing(f, parse(f, counting), numbered(1)).Sealer(LabelReport)
	vector := unhex(f, sealed)
	f.Add(vector, additional)
	f.Add(s.Seal(nil, nil, nil), []byte(nil))
	f.Add(vector[:Overhead-1], additional)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, sealed, additional []byte) {
		before := slices.Clone(sealed)
		plain, err := s.Open(nil, sealed, additional)
		if !bytes.Equal(sealed, before) {
			t.Error("Open altered its input")
		}
		// Nobody without the key can make anything but the seeds.
		if known := bytes.Equal(plain, plaintext) || len(plain) == 0; err == nil && !known || err != nil && !errors.Is(err, ErrOpen) {
			t.Errorf("Open(%s) = %x, %v", hex.EncodeToString(sealed), plain, err)
		}
		// What was sealed opens, whatever it is.
		again, err := s.Open(nil, s.Seal(nil, before, additional), additional)
		if err != nil || !bytes.Equal(again, before) {
			t.Errorf("Open after Seal of %x: %x, %v", before, again, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s := newRing(b, Generate()).Sealer(LabelReport)
	text := make([]byte, 512)
	box := make([]byte, 0, Overhead+len(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		box = s.Seal(box[:0], text, additional)
	}
}

func BenchmarkOpen(b *testing.B) {
	s := newRing(b, Generate()).Sealer(LabelReport)
	text := make([]byte, 512)
	box, plain := s.Seal(nil, text, additional), make([]byte, 0, len(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Open(plain, box, additional); err != nil {
			b.Fatal(err)
		}
	}
}
