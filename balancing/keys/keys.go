// Package keys holds the site key, the one secret that all nodes share, and
// everything that is derived from it.
//
// Start with [Ring]: one site key, or two while the key is being replaced. What is
// sealed is sealed with the newest; what any of them sealed still opens. A key that has
// been replaced can stay as a [Past] one, for the pins of clients alone. Nothing uses
// a site key itself, only keys derived from it under a [Label], so that no use of one
// can tell anything about another.
//
// Derivation is HKDF-SHA256 (RFC 5869); sealing is XChaCha20-Poly1305
// (draft-irtf-cfrg-xchacha) with a random nonce. The test vectors fix both: nodes of
// different versions must understand each other.
//
// No key is ever printed, logged or part of an error. All types are immutable and safe
// for concurrent use.
package keys

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// Size of a site key, and of each key derived from it, in octets.
const Size = 32

// Key is a site key. Whatever prints it, as text or as JSON, prints "[site key]"; only
// [Key.Reveal] tells it. Keys are compared with [Key.Equal].
type Key struct {
	// A function, because fmt calls no methods on the unexported fields of a struct, nor
	// for verbs that do not fit: it prints what is there, and looks through pointers. It
	// cannot look into a function. This also forbids ==. Nil is the empty key.
	octets func() [Size]byte
}

// Generate returns a new site key.
func Generate() Key {
	var b [Size]byte
	rand.Read(b[:])
	return hide(b)
}

func hide(b [Size]byte) Key {
	return Key{func() [Size]byte { return b }}
}

// encoding has one spelling for each key.
var encoding = base64.RawURLEncoding.Strict()

// Parse reads the text form of a site key: 43 characters of base64url. White space around
// it is ignored. The error does not tell any of the text.
func Parse(text string) (Key, error) {
	text = strings.TrimSpace(text)
	if len(text) != encoding.EncodedLen(Size) {
		return Key{}, fmt.Errorf("site key: %d characters, want %d of base64url", len(text), encoding.EncodedLen(Size))
	}
	// The count matters: the decoder leaves out line ends within the text.
	b, err := encoding.DecodeString(text)
	if err != nil || len(b) != Size {
		return Key{}, errors.New("site key: not base64url")
	}
	k := hide([Size]byte(b))
	if k.Empty() {
		return Key{}, errors.New("site key: all zero")
	}
	return k, nil
}

// Reveal returns the text form of the key, as [Parse] reads it, without a line end. It
// is for the key file, and for handing the key to a node that joins.
func (k Key) Reveal() string {
	b := k.raw()
	return encoding.EncodeToString(b[:])
}

// Empty reports whether k is the zero Key, or one of zeros only: no key at all.
func (k Key) Empty() bool { return k.Equal(Key{}) }

// Equal reports whether both are the same key, in a time that does not tell where they
// differ.
func (k Key) Equal(o Key) bool {
	a, b := k.raw(), o.raw()
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// ID returns the name of the key for logs and status: 8 hexadecimal digits, which tell
// nothing of the key.
func (k Key) ID() string {
	id := derive(k, labelID, "")
	return hex.EncodeToString(id[:4])
}

func (k Key) raw() [Size]byte {
	if k.octets == nil {
		return [Size]byte{}
	}
	return k.octets()
}

const hidden = "[site key]"

// MarshalText returns "[site key]", for what is encoded may well be logged.
func (Key) MarshalText() ([]byte, error) { return []byte(hidden), nil }

func (Key) String() string              { return hidden }
func (Key) GoString() string            { return hidden }
func (Key) Format(f fmt.State, _ rune)  { io.WriteString(f, hidden) }
func (Key) LogValue() slog.Value        { return slog.StringValue(hidden) }
func (Ring) String() string             { return hidden }
func (Ring) GoString() string           { return hidden }
func (Ring) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }
func (Ring) LogValue() slog.Value       { return slog.StringValue(hidden) }

// Label names one use of the site key. Two uses never share a label.
type Label string

const (
	LabelReport    Label = "report"     // seals the reports between the nodes
	LabelPin       Label = "pin"        // seals pins and hop markers
	LabelCA        Label = "ca"         // seals the private key of the local CA at rest
	LabelQUICToken Label = "quic token" // seals QUIC address validation tokens
	LabelQUICReset Label = "quic reset" // QUIC stateless reset keys; the info is the VIP
	LabelGossip    Label = "gossip"     // seals what the nodes replicate, on its way
	LabelState     Label = "state"      // seals secrets at rest

	labelID Label = "id" // the name of a key: no secret
)

// Ring is the site key, and the one before it while the site changes over.
type Ring struct {
	keys []Key  // newest first
	past []Past // see past.go
}

// NewRing returns a ring of one site key, or of two while the older is being replaced.
// More than two, an empty key and the same key twice are errors.
func NewRing(newest Key, older ...Key) (*Ring, error) {
	r := &Ring{keys: append([]Key{newest}, older...)}
	switch {
	case len(r.keys) > 2:
		return nil, fmt.Errorf("site key ring: %d keys, want 1 or 2", len(r.keys))
	case newest.Empty(), len(older) == 1 && older[0].Empty():
		return nil, errors.New("site key ring: empty key")
	case len(older) == 1 && newest.Equal(older[0]):
		return nil, errors.New("site key ring: the same key twice")
	}
	return r, nil
}

// ParseRing reads the text form of a ring: its keys as [Parse] reads them, one a line, the
// newest first; then a line for each past key, "past <key> until <RFC 3339 time>".
func ParseRing(text string) (*Ring, error) {
	var (
		all  []Key
		past []Past
		n    int
	)
	for line := range strings.Lines(strings.TrimSpace(text)) {
		n++
		rest, isPast := strings.CutPrefix(strings.TrimSpace(line), "past ")
		if !isPast {
			k, err := Parse(line)
			if err == nil && len(past) > 0 {
				err = errors.New("site key: below one of the past")
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			if all = append(all, k); len(all) > 2 {
				break // NewRing says so
			}
			continue
		}
		p, err := parsePast(rest)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if past = append(past, p); len(past) > MaxPast {
			return nil, fmt.Errorf("site key ring: more than %d keys of the past", MaxPast)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("site key: there is none")
	}
	r, err := NewRing(all[0], all[1:]...)
	if err != nil {
		return nil, err
	}
	if r = r.WithPast(past...); len(r.past) != len(past) {
		return nil, errors.New("site key ring: the same key twice")
	}
	return r, nil
}

// Reveal returns the text form of the ring, as [ParseRing] reads it.
func (r *Ring) Reveal() string {
	var b strings.Builder
	for _, k := range r.keys {
		b.WriteString(k.Reveal() + "\n")
	}
	for _, p := range r.past {
		b.WriteString(p.reveal() + "\n")
	}
	return b.String()
}

// Keys returns the keys that are good for everything, newest first.
func (r *Ring) Keys() []Key { return slices.Clone(r.keys) }

// Changing reports whether the ring holds an older key too.
func (r *Ring) Changing() bool { return len(r.keys) > 1 }

// Derive returns the key for one use, from the newest site key. The info tells several
// keys of the same use apart.
func (r *Ring) Derive(label Label, info string) [Size]byte {
	return derive(r.keys[0], label, info)
}

// DeriveAll is [Ring.Derive] from each site key, newest first.
func (r *Ring) DeriveAll(label Label, info string) [][Size]byte {
	all := make([][Size]byte, len(r.keys))
	for i, k := range r.keys {
		all[i] = derive(k, label, info)
	}
	return all
}

func derive(k Key, label Label, info string) (derived [Size]byte) {
	// The zero octet, which no label has, keeps (label, info) pairs apart.
	secret := k.raw()
	b, err := hkdf.Key(sha256.New, secret[:], []byte("peerage"), string(label)+"\x00"+info, Size)
	if err != nil {
		panic("derive key: " + err.Error()) // only for lengths that HKDF cannot give
	}
	copy(derived[:], b)
	return derived
}
