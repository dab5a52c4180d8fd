package keys

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// Overhead is by how many octets a sealed text is longer than the plain one.
const Overhead = head + chacha20poly1305.Overhead

// head precedes the encrypted text: which key, and the nonce.
const head = 1 + chacha20poly1305.NonceSizeX

// ErrOpen says that something was not sealed by this site for this use, or has been
// altered since. There is no telling which.
var ErrOpen = errors.New("not sealed with a key of this site")

// Sealer encrypts and authenticates for one use of the site key. The sealed form is:
//
//	key id (1) | nonce (24) | XChaCha20-Poly1305 of the plain text
//
// The key id is derived from the key. It is no secret, it only saves trying all keys.
type Sealer struct {
	keys []sealingKey // newest first; the first seals
}

type sealingKey struct {
	id    byte
	aead  func() cipher.AEAD // hidden as in [Key]
	until time.Time          // zero: it does not end
}

// Sealer returns the sealer for one use.
func (r *Ring) Sealer(label Label) *Sealer {
	s := new(Sealer)
	for _, k := range r.keys {
		s.keys = append(s.keys, newSealingKey(k, label, time.Time{}))
	}
	return s
}

func newSealingKey(k Key, label Label, until time.Time) sealingKey {
	id, key := derive(k, label, "key id"), derive(k, label, "seal")
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic("make sealer: " + err.Error()) // only for wrong key sizes, and where FIPS 140 is enforced
	}
	return sealingKey{id[0], func() cipher.AEAD { return aead }, until}
}

func (Sealer) String() string             { return "[sealer]" }
func (Sealer) GoString() string           { return "[sealer]" }
func (Sealer) Format(f fmt.State, _ rune) { io.WriteString(f, "[sealer]") }
func (Sealer) LogValue() slog.Value       { return slog.StringValue("[sealer]") }

// Seal appends the sealed form of plaintext to dst and returns it. The additional data
// is authenticated, not carried: Open must be given the same. The room behind dst must
// not overlap plaintext. Nothing is allocated if that room is [Overhead] and the length
// of plaintext.
func (s *Sealer) Seal(dst, plaintext, additional []byte) []byte {
	n := len(dst)
	dst = slices.Grow(dst, Overhead+len(plaintext))[:n+head]
	dst[n] = s.keys[0].id
	nonce := dst[n+1:]
	rand.Read(nonce)
	return s.keys[0].aead().Seal(dst, nonce, plaintext, additional)
}

// Open appends the plain text of sealed to dst and returns it. The error is [ErrOpen].
// The room behind dst must not overlap sealed. Nothing is allocated if the plain text
// fits in that room.
func (s *Sealer) Open(dst, sealed, additional []byte) ([]byte, error) {
	return s.OpenAt(time.Now(), dst, sealed, additional)
}

// OpenAt is [Sealer.Open] at a time of the caller's. Only a sealer with past keys looks at
// it.
func (s *Sealer) OpenAt(now time.Time, dst, sealed, additional []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrOpen
	}
	for i := range s.keys {
		k := &s.keys[i]
		// Only keys of that id: with any other, the id could be altered unnoticed.
		if k.id != sealed[0] || !k.until.IsZero() && !now.Before(k.until) {
			continue
		}
		if plain, err := k.aead().Open(dst, sealed[1:head], sealed[head:], additional); err == nil {
			return plain, nil
		}
	}
	return nil, ErrOpen
}
