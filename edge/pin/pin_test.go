package pin

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"peerage/balancing"
)

// box seals as the site's key ring does: XChaCha20-Poly1305 with a random nonce, the
// newest key first, all keys open.
type box []cipher.AEAD

func newBox(t testing.TB, keys ...byte) box {
	t.Helper()
	var b box
	for _, k := range keys {
		aead, err := chacha20poly1305.NewX(bytes.Repeat([]byte{k}, chacha20poly1305.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, aead)
	}
	return b
}

func (b box) Seal(dst, plaintext, additional []byte) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, chacha20poly1305.NonceSizeX)...)
	rand.Read(dst[n:])
	return b[0].Seal(dst, dst[n:], plaintext, additional)
}

var errSealed = errors.New("does not open")

func (b box) OpenAt(_ time.Time, dst, sealed, additional []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, errSealed
	}
	nonce, sealed := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	for _, aead := range b {
		if plain, err := aead.Open(dst, nonce, sealed, additional); err == nil {
			return plain, nil
		}
	}
	return nil, errSealed
}

func newRing(t testing.TB, keys ...byte) *Ring {
	t.Helper()
	return NewRing(newBox(t, keys...), "example")
}

var (
	start = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	bank  = Rule{Name: "bank", Path: "/banking", MaxLife: 12 * time.Hour, Idle: 30 * time.Minute}
	pinA  = Pin{Owner: "a", Incarnation: 0xfedcba98, Born: start, Seen: start}
)

func (p Pin) equal(q Pin) bool {
	return p.Owner == q.Owner && p.Incarnation == q.Incarnation && p.Born.Equal(q.Born) && p.Seen.Equal(q.Seen)
}

// header returns the request headers that a client sends with these cookies.
func header(cookies ...string) http.Header {
	return http.Header{"Cookie": {strings.Join(cookies, "; ")}}
}

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	r := newRing(t, 1)
	for _, owner := range []balancing.NodeID{"n", "node-17", balancing.NodeID(strings.Repeat("n", balancing.MaxNodeID))} {
		p := pinA
		p.Owner = owner
		value := r.Seal("bank", p)
		if got, err := r.Open(bank, value, start); err != nil || !got.equal(p) {
			t.Errorf("Open(Seal(%+v)) = %+v, %v", p, got, err)
		}
		if strings.ContainsAny(value, " ;,=\"\\") || len(value) > maxValue {
			t.Errorf("Seal(%+v) = %q: not a cookie value of at most %d octets", p, value, maxValue)
		}
	}
}

func TestOpenSaysWhyNot(t *testing.T) {
	r := newRing(t, 1)
	value := r.Seal("bank", pinA)
	unsealed := encoding.EncodeToString([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00a"))
	odd := func(plain string) string {
		s := &scratch{cookie: []byte(r.Name("bank")), plain: []byte(plain)}
		return r.seal(s)
	}
	head := strings.Repeat("\xff", pinHead-1)
	tests := []struct {
		name  string
		ring  *Ring
		rule  Rule
		value string
		at    time.Duration
		want  error
	}{
		{"young", r, bank, value, time.Minute, nil},
		{"as idle as may be", r, bank, value, bank.Idle, nil},
		{"idle", r, bank, value, bank.Idle + time.Second, Idle},
		{"old", r, Rule{Name: "bank", MaxLife: time.Hour}, value, time.Hour + time.Second, Expired},
		{"old and idle", r, bank, value, 13 * time.Hour, Expired},
		{"neither ends", r, Rule{Name: "bank"}, value, 1e6 * time.Hour, nil},
		{"from the future", r, bank, value, -time.Hour, nil},
		{"empty", r, bank, "", 0, Garbled},
		{"not base64", r, bank, value[:20] + "!" + value[21:], 0, Garbled},
		{"padded", r, bank, value + "=", 0, Garbled},
		{"line end within", r, bank, value[:8] + "\n" + value[8:], 0, Garbled},
		{"too long", r, bank, strings.Repeat("A", 2000), 0, Garbled},
		{"too short", r, bank, "AAAA", 0, Foreign},
		{"not sealed", r, bank, unsealed, 0, Foreign},
		{"other key", newRing(t, 2), bank, value, 0, Foreign},
		{"other site", NewRing(newBox(t, 1), "other"), bank, value, 0, Foreign},
		{"row 41 other rule", r, Rule{Name: "shop"}, value, 0, Foreign},
		{"key rotated", newRing(t, 3, 2, 1), bank, value, 0, nil},
		{"row 42 key rotated out", newRing(t, 4, 3, 2), bank, value, 0, Foreign},
		{"hop marker", r, bank, r.sealHop(Hop{Target: "a", At: start}), 0, Foreign},
		{"sealed, but empty", r, bank, odd(""), 0, Garbled},
		{"sealed, other version", r, bank, odd("\x02" + head + "a"), 0, Garbled},
		{"sealed, no owner", r, bank, odd("\x01" + head), 0, Garbled},
		{"sealed, owner not a node", r, bank, odd("\x01" + head + "A/"), 0, Garbled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tt.ring.Open(tt.rule, tt.value, start.Add(tt.at))
			if err != tt.want {
				t.Errorf("Open(%q) = %+v, %v; want error %v", tt.value, p, err, tt.want)
			}
		})
	}
}

func TestOpenRefusesAnyFlippedBit(t *testing.T) {
	r := newRing(t, 1)
	value := r.Seal("bank", pinA)
	t.Run("row 40 each bit", func(t *testing.T) {
		for i := range len(value) {
			for bit := range 8 {
				b := []byte(value)
				b[i] ^= 1 << bit
				if p, err := r.Open(bank, string(b), start); err == nil {
					t.Errorf("Open with bit %d of octet %d flipped = %+v", bit, i, p)
				}
			}
		}
	})
}

func TestName(t *testing.T) {
	r, site := newRing(t, 1), NewRing(newBox(t, 1), "other")
	name := r.Name("bank")
	if len(name) != len(prefix)+nameDigits || !strings.HasPrefix(name, prefix) {
		t.Errorf("Name(bank) = %q, want %d characters after %s", name, nameDigits, prefix)
	}
	if name != r.Name("bank") || name == r.Name("shop") || name == site.Name("bank") {
		t.Errorf("Name: bank %q, shop %q, bank of another site %q", name, r.Name("shop"), site.Name("bank"))
	}
	if long := r.Name(strings.Repeat("x", 1000)); len(long) != len(name) {
		t.Errorf("Name of a long rule = %q", long)
	}
	// All versions must give the same, or pins would be lost.
	if want := prefix + "ecvVlZ"; name != want {
		t.Errorf("Name(bank) = %q, want %q", name, want)
	}
}

func TestCookie(t *testing.T) {
	r := newRing(t, 1)
	for _, path := range []string{"/banking", "/"} {
		rule := Rule{Name: "bank", Path: path}
		for _, text := range []string{r.Cookie(rule, "www.example.com", pinA), r.Clear(rule, "www.example.com")} {
			c, err := http.ParseSetCookie(text)
			if err != nil {
				t.Fatal(err)
			}
			if c.Path != path || c.Domain != "www.example.com" || !c.Secure || !c.HttpOnly ||
				c.SameSite != http.SameSiteLaxMode || !c.Expires.IsZero() || len(c.Unparsed) > 0 || c.Name != r.Name("bank") {
				t.Errorf("%q: want path %q", text, path)
			}
			if deleted := c.MaxAge < 0; deleted != (c.Value == "") || c.MaxAge > 0 {
				t.Errorf("%q: value %q, Max-Age %d", text, c.Value, c.MaxAge)
			}
			if p, err := r.Open(rule, c.Value, start); c.Value != "" && (err != nil || !p.equal(pinA)) {
				t.Errorf("%q opens to %+v, %v", text, p, err)
			}
		}
	}
}

func TestFind(t *testing.T) {
	r := newRing(t, 1)
	name := r.Name("bank")
	older, younger := pinA, pinA
	younger.Owner, younger.Born = "b", start.Add(time.Minute)
	a, b := name+"="+r.Seal("bank", older), name+"="+r.Seal("bank", younger)
	many := func(n int) []string { // pin-like
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("%sx%05d=x", prefix, i)
		}
		return out
	}
	tests := []struct {
		name   string
		header http.Header
		want   balancing.NodeID
		err    error
	}{
		{"no header", http.Header{}, "", Absent},
		{"other cookies", header("a=b", "c", "", "="), "", Absent},
		{"one", header("x=y", a, "z=1"), "a", nil},
		{"two header lines", http.Header{"Cookie": {"x=y", a}}, "a", nil},
		{"no space", http.Header{"Cookie": {"x=y;" + a}}, "a", nil},
		{"forged", header(name + "=x"), "", Garbled},
		{"forged one before", header(name+"=AAAA", a), "a", nil},
		{"forged one after", header(a, name+"=AAAA"), "a", nil},
		{"younger after", header(a, b), "b", nil},
		{"younger before", header(b, a), "b", nil},
		{"row 41 renamed from another rule", header(name + "=" + r.Seal("shop", pinA)), "", Foreign},
		{"after 7 pin-like names", header(append(many(7), a)...), "a", nil},
		{"row 43 after 8 pin-like names", header(append(many(8), a)...), "", Absent},
		{"row 43 before 50 pin-like names", header(append([]string{a}, many(50)...)...), "a", nil},
		{"after 50 other names", header(append(strings.Split(strings.Repeat("y=z ", 50), " "), a)...), "a", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := r.Find(tt.header, bank, start)
			if p.Owner != tt.want || err != tt.err {
				t.Errorf("Find(%.200q) = %+v, %v; want owner %q, error %v", tt.header, p, err, tt.want, tt.err)
			}
		})
	}
}

func TestFindOpensNoMoreThanEight(t *testing.T) {
	counter := &countingBox{box: newBox(t, 1)}
	r := NewRing(counter, "example")
	one := r.Name("bank") + "=" + strings.Repeat("A", 100)
	if _, err := r.Find(header(strings.Split(strings.Repeat(one+" ", 50), " ")...), bank, start); err != Foreign {
		t.Errorf("Find = %v, want %v", err, Foreign)
	}
	if counter.opened != maxTried {
		t.Errorf("%d cookies opened, want %d", counter.opened, maxTried)
	}
}

type countingBox struct {
	box
	opened int
}

func (c *countingBox) OpenAt(now time.Time, dst, sealed, additional []byte) ([]byte, error) {
	c.opened++
	return c.box.OpenAt(now, dst, sealed, additional)
}

func TestRefresh(t *testing.T) {
	tests := []struct {
		name    string
		idle    time.Duration
		silence time.Duration
		want    bool
	}{
		{"just seen", time.Hour, time.Second, false},
		{"just under a minute", time.Hour, time.Minute - time.Second, false},
		{"a minute", time.Hour, time.Minute, true},
		{"may be idle for ever", 0, time.Hour, false},
		{"short idle, early", 20 * time.Second, 9 * time.Second, false},
		{"short idle, half of it", 20 * time.Second, 10 * time.Second, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := start.Add(tt.silence)
			p, ok := Rule{Idle: tt.idle}.Refresh(pinA, now)
			if ok != tt.want || ok && !p.Seen.Equal(now) || !p.Born.Equal(start) || p.Owner != "a" {
				t.Errorf("Refresh = %+v, %t; want %t", p, ok, tt.want)
			}
		})
	}
}

func TestHop(t *testing.T) {
	r := newRing(t, 1)
	hop := Hop{Target: "b", At: start, Load: 93.25}
	c, err := http.ParseSetCookie(r.HopCookie("www.example.com", hop))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "__Secure-pg-hop" || c.Path != "/" || c.Domain != "www.example.com" || c.MaxAge != 10 ||
		!c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("HopCookie = %v", c)
	}
	sent := c.Name + "=" + c.Value
	tests := []struct {
		name   string
		header http.Header
		at     time.Duration
		want   error
	}{
		{"at once", header("a=b", sent), 0, nil},
		{"after 10 s", header(sent), 10 * time.Second, nil},
		{"after 12 s", header(sent), 12 * time.Second, Expired},
		{"sender's clock ahead", header(sent), -30 * time.Second, nil},
		{"sender's clock far ahead", header(sent), -31 * time.Second, Expired},
		{"none", header("a=b"), 0, Absent},
		{"garbled", header("__Secure-pg-hop=?"), 0, Garbled},
		{"garbled one before", header("__Secure-pg-hop=?", sent), 0, nil},
		{"a pin", header("__Secure-pg-hop=" + r.Seal("bank", pinA)), 0, Foreign},
		{"behind nine pins", header(append(strings.Split(strings.Repeat(r.Name("bank")+"=x ", 9), " "), sent)...), 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.FindHop(tt.header, start.Add(tt.at))
			if err != tt.want || err == nil && (got.Target != hop.Target || !got.At.Equal(hop.At) || got.Load != hop.Load) {
				t.Errorf("FindHop(%q) = %+v, %v; want error %v", tt.header, got, err, tt.want)
			}
		})
	}
}

func TestReasonsHaveNames(t *testing.T) {
	for r := Absent; r <= Idle; r++ {
		if strings.Contains(r.String(), "(") || r.Error() != "open pin: "+r.String() {
			t.Errorf("Reason %d: %q, %q", uint8(r), r.String(), r.Error())
		}
	}
	if got := Reason(99).String(); got != "reason(99)" {
		t.Errorf("Reason(99) = %q", got)
	}
}

// FuzzOpen checks that whatever opens is exactly what was sealed, in its one spelling.
func FuzzOpen(f *testing.F) {
	r := newRing(f, 1)
	good := r.Seal("bank", pinA)
	f.Add(good)
	f.Add(good + "\n")
	f.Add(good[:len(good)-1])
	f.Add(r.sealHop(Hop{Target: "b", At: start}))
	f.Add("")
	f.Fuzz(func(t *testing.T, value string) {
		// Each process of the fuzzer seals anew, so good is not the only one.
		if p, err := r.Open(bank, value, start); err == nil && (p.Owner != pinA.Owner || p.Incarnation != pinA.Incarnation || !p.Born.Equal(pinA.Born)) {
			t.Errorf("Open(%q) = %+v, which nobody sealed", value, p)
		}
		if h, err := r.openHop(value, start); err == nil && len(value) > maxValue {
			t.Errorf("openHop(%q) = %+v", value, h)
		}
	})
}

// FuzzSealed checks that what is under a good seal opens to itself or not at all.
func FuzzSealed(f *testing.F) {
	r := newRing(f, 1)
	f.Add([]byte("\x01\x00\x00\x00\x01\x70\xdb\xd8\x80\x70\xdb\xd8\x80n1"))
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 64 {
			return
		}
		value := r.seal(&scratch{cookie: []byte(r.Name("bank")), plain: plain})
		p, err := r.Open(Rule{Name: "bank"}, value, start)
		if err != nil {
			return
		}
		if again, err := r.Open(Rule{Name: "bank"}, r.Seal("bank", p), start); err != nil || !again.equal(p) {
			t.Errorf("Open(%x) = %+v; sealed and opened again = %+v, %v", plain, p, again, err)
		}
		if binary.BigEndian.Uint32(plain[1:]) != p.Incarnation || string(p.Owner) != string(plain[pinHead:]) {
			t.Errorf("Open(%x) = %+v", plain, p)
		}
	})
}

// FuzzFind checks that no Cookie header breaks the search.
func FuzzFind(f *testing.F) {
	r := newRing(f, 1)
	good := r.Name("bank") + "=" + r.Seal("bank", pinA)
	f.Add("a=b; " + good)
	f.Add(good + ";;=;" + good)
	f.Fuzz(func(t *testing.T, line string) {
		if p, err := r.Find(http.Header{"Cookie": {line}}, bank, start); err == nil && !p.equal(pinA) {
			t.Errorf("Find(%q) = %+v", line, p)
		}
		r.FindHop(http.Header{"Cookie": {line}}, start)
	})
}

func BenchmarkOpen(b *testing.B) {
	r := newRing(b, 1)
	value := r.Seal("bank", pinA)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Open(bank, value, start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	r := newRing(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		r.Seal("bank", pinA)
	}
}

func BenchmarkFind(b *testing.B) {
	r := newRing(b, 1)
	for name, cookies := range map[string][]string{
		"none":    {"session=0123456789abcdef", "theme=dark"},
		"one":     {"session=0123456789abcdef", r.Name("bank") + "=" + r.Seal("bank", pinA)},
		"hostile": strings.Split(strings.Repeat(r.Name("bank")+"="+strings.Repeat("A", 120)+" ", 100), " "),
	} {
		h := header(cookies...)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Find(h, bank, start)
			}
		})
	}
}
