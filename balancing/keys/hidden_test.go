package keys

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// tells reports whether text shows the octets of k in one of the forms that fmt, slog
// and encoding/json have for octets.
func tells(k [Size]byte, text string) bool {
	decimal := strings.Trim(fmt.Sprint(k[:8]), "[]")
	for _, form := range []string{
		string(k[:8]),
		hex.EncodeToString(k[:8]),
		strings.ToUpper(hex.EncodeToString(k[:8])),
		fmt.Sprintf("% x", k[:8]),
		encoding.EncodeToString(k[:])[:10],
		decimal,
		strings.ReplaceAll(decimal, " ", ","),
		strings.ReplaceAll(decimal, " ", ", "),
		strings.Trim(fmt.Sprintf("%#v", k[:8]), "[]byte{}"),
	} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// TestTellsFindsAKey holds the test below to its purpose.
func TestTellsFindsAKey(t *testing.T) {
	k := Generate().raw()
	j, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%#v %d", k, 1), fmt.Sprintf("%x", k), fmt.Sprintf("% x", k), fmt.Sprintf("%X", k), string(k[:]), string(j), encoding.EncodeToString(k[:])} {
		if !tells(k, text) {
			t.Errorf("not found in %q", text)
		}
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	key := Generate()
	past := Past{Generate(), time.Now().Add(time.Hour)}
	ring := newRing(t, key, Generate()).WithPast(past)
	sealer := ring.Sealer(LabelReport)
	pins := ring.PinSealer(time.Now())
	secrets := [][Size]byte{key.raw(), past.Key.raw(), ring.Derive(LabelReport, "seal"), derive(past.Key, LabelPin, "seal")}

	type exported struct {
		Key    Key
		Ring   *Ring
		Value  Ring
		Sealer *Sealer
	}
	type hiding struct {
		key    Key
		ring   *Ring
		value  Ring
		sealer Sealer
	}
	for _, v := range []any{
		key, &key,
		[]Key{key},
		map[string]Key{"k": key},
		ring, *ring, sealer, *sealer, pins, *pins,
		past, &past, ring.Past(), ring.Keys(),
		exported{key, ring, *ring, sealer},
		&exported{key, ring, *ring, sealer},
		hiding{key, ring, *ring, *sealer},
		&hiding{key, ring, *ring, *sealer},
	} {
		var out strings.Builder
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %X %d %b %o %c %U %t %p %w %y %T %10v %-3.2s %!") {
			fmt.Fprintf(&out, verb+"\n", v)
			fmt.Fprintln(&out, fmt.Errorf("with "+verb, v)) // wrong verbs too
		}
		fmt.Fprintln(&out, v, errors.Join(fmt.Errorf("%v", v)))
		b, err := json.Marshal(v)
		if err != nil {
			t.Errorf("%T as JSON: %v", v, err)
		}
		out.Write(b)
		every := &slog.HandlerOptions{Level: slog.LevelDebug}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, every), slog.NewJSONHandler(&out, every)} {
			slog.New(h).With("with", v).Info("message", "arg", v, slog.Group("group", "in", v), "list", []any{v})
		}
		for line := range strings.Lines(out.String()) {
			if slices.ContainsFunc(secrets, func(s [Size]byte) bool { return tells(s, line) }) {
				t.Errorf("%T shows a key: %s", v, line)
			}
		}
	}
	for _, v := range []any{key, ring, *ring} {
		if got := fmt.Sprintf("%v %+v %#v %s %x", v, v, v, v, v); got != strings.TrimSpace(strings.Repeat(hidden+" ", 5)) {
			t.Errorf("%T prints as %q", v, got)
		}
	}
}

func TestAKeyAsJSON(t *testing.T) {
	b, err := json.Marshal(struct{ Key Key }{Generate()})
	if want := `{"Key":"` + hidden + `"}`; err != nil || string(b) != want {
		t.Errorf("as JSON: %s, %v, want %s", b, err, want)
	}
}
