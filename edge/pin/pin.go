// Package pin keeps clients on their node: who a client is pinned to stands in a sealed
// cookie, and nowhere else. Nothing is stored on the nodes, and every node of the site
// can open what another has sealed.
//
// Start with [Ring.Find]. A pin gives no authority: it steers the requests of whoever
// has it, and says nothing about them. One that does not open is never an error for the
// client; the request counts as one without a pin.
//
// The package is pure: it reads no clock and starts nothing. A [Ring] is immutable and
// safe for concurrent use.
//
// Sources: the patent's fifth embodiment; RFC 6265 for cookies, with the prefix
// __Secure- of its revision (rfc6265bis 4.1.3.1).
package pin

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"peerage/balancing"
)

// Pin says which node a client is pinned to. Times are kept in whole seconds.
type Pin struct {
	Owner       balancing.NodeID
	Incarnation uint32    // low half of the owner's incarnation when it sealed the pin
	Born        time.Time // when the client came to the owner
	Seen        time.Time // when it was last noted that the client is active; see [Rule.Refresh]
}

// Reason says why there is no pin, or no hop marker. It is an error, the label of a
// counter and the oracle of the tests.
type Reason uint8

const (
	Absent  Reason = iota + 1 // no such cookie
	Garbled                   // not a value that a node of any site has made
	Foreign                   // altered, or sealed for another rule, site or key
	Expired                   // older than it may be
	Idle                      // not seen for too long
)

var reasonNames = [...]string{Absent: "absent", Garbled: "garbled", Foreign: "foreign", Expired: "expired", Idle: "idle"}

func (r Reason) String() string {
	if r < Absent || r > Idle {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasonNames[r]
}

func (r Reason) Error() string { return "open pin: " + r.String() }

// sealer seals with the site's newest key, and opens with all that are good at now; see
// [keys.Ring.PinSealer].
type sealer interface {
	Seal(dst, plaintext, additional []byte) []byte
	OpenAt(now time.Time, dst, sealed, additional []byte) ([]byte, error)
}

// Ring seals and opens the pins and hop markers of one site.
type Ring struct {
	sealer sealer
	site   string
}

// NewRing returns a ring for the site of that name.
func NewRing(s sealer, site string) *Ring {
	return &Ring{sealer: s, site: site}
}

const (
	prefix     = "__Secure-pg-"
	nameDigits = 6 // of the hash of site and rule, after prefix

	version  = 1   // first octet under the seal
	pinHead  = 13  // octets of a pin before the owner: version, incarnation, born, seen
	hopHead  = 9   // octets of a hop marker before the target: version, time, load
	maxValue = 256 // octets of a cookie; a sealed pin has about 120
)

// encoding has one spelling for each value, so that nobody can vary a cookie.
var encoding = base64.RawURLEncoding.Strict()

// Name returns the name of the cookie for the rule of that name. No key has a part in it:
// a site that changes its key must find the cookies that it has set.
func (r *Ring) Name(rule string) string { return string(r.appendName(nil, rule)) }

func (r *Ring) appendName(dst []byte, rule string) []byte {
	var buf [128]byte
	b := append(append(buf[:0], r.site...), 0) // which no site has in its name
	sum := sha256.Sum256(append(b, rule...))
	var text [8]byte
	encoding.Encode(text[:], sum[:6])
	return append(append(dst, prefix...), text[:nameDigits]...)
}

// Seal returns the value of the cookie that holds p for the rule of that name.
func (r *Ring) Seal(rule string, p Pin) string {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.cookie = r.appendName(s.cookie[:0], rule)
	s.plain = append(s.plain[:0], version)
	s.plain = binary.BigEndian.AppendUint32(s.plain, p.Incarnation)
	s.plain = appendSeconds(s.plain, p.Born)
	s.plain = appendSeconds(s.plain, p.Seen)
	s.plain = append(s.plain, p.Owner...)
	return r.seal(s)
}

// Open returns the pin for rule in the value of a cookie, or a [Reason] why there is
// none. A pin from the future is taken as new: the clocks of nodes differ.
func (r *Ring) Open(rule Rule, value string, now time.Time) (Pin, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.cookie = r.appendName(s.cookie[:0], rule.Name)
	if err := r.open(s, value, pinHead, now); err != nil {
		return Pin{}, err
	}
	p := Pin{
		Owner:       balancing.NodeID(s.plain[pinHead:]),
		Incarnation: binary.BigEndian.Uint32(s.plain[1:]),
		Born:        seconds(s.plain[5:]),
		Seen:        seconds(s.plain[9:]),
	}
	switch {
	case !p.Owner.Valid():
		return Pin{}, Garbled
	case rule.MaxLife > 0 && now.Sub(p.Born) > rule.MaxLife:
		return Pin{}, Expired
	case rule.Idle > 0 && now.Sub(p.Seen) > rule.Idle:
		return Pin{}, Idle
	}
	return p, nil
}

// scratch is the working memory for one cookie. What goes through an interface is on
// the heap, so it is used again.
type scratch struct{ cookie, additional, plain, sealed, text []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// seal returns s.plain as the value of the cookie named s.cookie.
func (r *Ring) seal(s *scratch) string {
	s.sealed = r.sealer.Seal(s.sealed[:0], s.plain, r.additional(s))
	s.text = encoding.AppendEncode(s.text[:0], s.sealed)
	return string(s.text)
}

// open leaves in s.plain what value, of the cookie named s.cookie, holds: at least head
// octets, the first of which is the version.
func (r *Ring) open(s *scratch, value string, head int, now time.Time) error {
	// The decoder would skip line ends.
	if value == "" || len(value) > maxValue || strings.ContainsAny(value, "\r\n") {
		return Garbled
	}
	s.text = append(s.text[:0], value...)
	var err error
	if s.sealed, err = encoding.AppendDecode(s.sealed[:0], s.text); err != nil {
		return Garbled
	}
	plain, err := r.sealer.OpenAt(now, s.plain[:0], s.sealed, r.additional(s))
	if err != nil {
		return Foreign
	}
	s.plain = plain
	if len(plain) < head || plain[0] != version {
		return Garbled
	}
	return nil
}

// additional is what a seal is bound to: the site and the name of the cookie, so that
// no cookie can be moved to another of either.
func (r *Ring) additional(s *scratch) []byte {
	s.additional = append(s.additional[:0], r.site...)
	s.additional = append(s.additional, 0)
	s.additional = append(s.additional, s.cookie...)
	return s.additional
}

// appendSeconds writes t in seconds since 1970, which lasts until 2106.
func appendSeconds(dst []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint32(dst, uint32(min(max(t.Unix(), 0), math.MaxUint32)))
}

func seconds(b []byte) time.Time { return time.Unix(int64(binary.BigEndian.Uint32(b)), 0) }
