package membership

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"peerage/balancing"
)

// tokenMark begins the text of a token, so that a leaked one can be searched for.
const tokenMark = "pgj1."

// Bounds of a token, in octets and in number.
const (
	maxTokenText      = 2048
	maxTokenString    = 64
	maxTokenAddresses = 16

	tokenID     = 8
	tokenSecret = 16
	tokenSum    = 4
)

// Token lets one node join. Whatever prints it prints "[join token]"; only [Token.Text]
// tells it.
type Token struct {
	ID          string // 16 hexadecimal digits, no secret
	Site        string
	Issuer      balancing.NodeID // the node that made it, and alone redeems it
	Name        balancing.NodeID // of the node that may join; "" for any
	Addresses   []netip.AddrPort // of the issuer
	Fingerprint string           // of the local CA
	Expires     time.Time        // in whole seconds

	secret func() [tokenSecret]byte // a function for the reason that keys.Key has one
}

var tokenEncoding = base64.RawURLEncoding.Strict()

func newSecret() func() [tokenSecret]byte {
	var b [tokenSecret]byte
	rand.Read(b[:])
	return func() [tokenSecret]byte { return b }
}

// The body of a token:
//
//	id 8, secret 16, fingerprint 32, expires 8 (s since 1970),
//	site, issuer, name (1 octet of length each), number of addresses 1,
//	address (1 octet of length: 4 or 16, address, port 2)..., checksum 4
//
// The checksum tells a token that was not copied whole from one that is forged.
func (t *Token) body() []byte {
	id, _ := hex.DecodeString(t.ID)
	fingerprint, _ := hex.DecodeString(t.Fingerprint)
	secret := t.secret()
	b := append(append(id, secret[:]...), fingerprint...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	for _, s := range []string{t.Site, string(t.Issuer), string(t.Name)} {
		b = append(append(b, byte(len(s))), s...)
	}
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		ip := a.Addr().AsSlice()
		b = append(append(b, byte(len(ip))), ip...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	return b
}

// Text returns the token as the operator carries it to the node that joins.
func (t *Token) Text() string {
	b := t.body()
	return tokenMark + tokenEncoding.EncodeToString(append(b, checksum(b)...))
}

func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("peerage join token sum\x00"), b...))
	return sum[:tokenSum]
}

// hash is what the site keeps of a token.
func (t *Token) hash() []byte {
	sum := sha256.Sum256(append([]byte("peerage join token\x00"), t.body()...))
	return sum[:]
}

var (
	errNoToken      = errors.New("this is no join token: it begins with " + tokenMark + "; 'peerage token create' on a node of the site makes one")
	errTokenDamaged = errors.New("the join token is damaged: copy the whole of it, from " + tokenMark + " to the end")
)

// ParseToken reads the text of a token. White space around it is ignored. No error tells any
// of it.
func ParseToken(text string) (*Token, error) {
	coded, ok := strings.CutPrefix(strings.TrimSpace(text), tokenMark)
	if !ok {
		return nil, errNoToken
	}
	if len(coded) > maxTokenText || strings.ContainsAny(coded, "\r\n") {
		return nil, errTokenDamaged
	}
	b, err := tokenEncoding.DecodeString(coded)
	if err != nil || len(b) < tokenSum {
		return nil, errTokenDamaged
	}
	body, sum := b[:len(b)-tokenSum], b[len(b)-tokenSum:]
	if string(checksum(body)) != string(sum) {
		return nil, errTokenDamaged
	}
	c := cutter{b: body}
	t := new(Token)
	t.ID = hex.EncodeToString(c.take(tokenID))
	var secret [tokenSecret]byte
	copy(secret[:], c.take(tokenSecret))
	t.secret = func() [tokenSecret]byte { return secret }
	t.Fingerprint = hex.EncodeToString(c.take(sha256.Size))
	expires := c.number(8)
	t.Expires = time.Unix(int64(min(expires, maxExpiry)), 0)
	t.Site = string(c.block(maxTokenString))
	t.Issuer, t.Name = balancing.NodeID(c.block(maxTokenString)), balancing.NodeID(c.block(maxTokenString))
	n := c.number(1)
	for range min(n, maxTokenAddresses) {
		ip, _ := netip.AddrFromSlice(c.block(16))
		t.Addresses = append(t.Addresses, netip.AddrPortFrom(ip, uint16(c.number(2))))
		c.bad = c.bad || !ip.IsValid()
	}
	if c.bad || len(c.b) > 0 || n > maxTokenAddresses || expires > maxExpiry || t.Site == "" || !t.Issuer.Valid() || t.Name != "" && !t.Name.Valid() {
		return nil, errTokenDamaged
	}
	return t, nil
}

// maxExpiry is the year 9999, the last that can be printed.
const maxExpiry = 253402300799

// cutter takes a body apart. Once it lacks something it is bad, and gives zeros.
type cutter struct {
	b   []byte
	bad bool
}

func (c *cutter) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return make([]byte, n)
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cutter) number(octets int) uint64 {
	var b [8]byte
	copy(b[8-octets:], c.take(octets))
	return binary.BigEndian.Uint64(b[:])
}

func (c *cutter) block(most int) []byte {
	n := int(c.number(1))
	if n > most {
		c.bad = true
		return nil
	}
	return c.take(n)
}

const hiddenToken = "[join token]"

// MarshalText returns "[join token]", for what is encoded may well be logged.
func (Token) MarshalText() ([]byte, error) { return []byte(hiddenToken), nil }

func (Token) String() string             { return hiddenToken }
func (Token) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenToken) }
func (Token) LogValue() slog.Value       { return slog.StringValue(hiddenToken) }
