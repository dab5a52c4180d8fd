package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// counting is the text of the key 00 01 02 … 1f, under which the vectors are made.
const counting = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

func parse(t testing.TB, text string) Key {
	t.Helper()
	k, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// numbered returns a key that has nothing but n in it.
func numbered(n byte) Key {
	return hide([Size]byte{n})
}

func newRing(t testing.TB, newest Key, older ...Key) *Ring {
	t.Helper()
	r, err := NewRing(newest, older...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// derivations fix what every version of Peerage derives from one site key.
var derivations = []struct {
	label Label
	info  string
	want  string
}{
	{LabelReport, "", "44a86d03f0899fdd77d0edf28c4b04e485795eda6d751a20e05bb754d32fdf80"},
	{LabelPin, "", "d115a908f0fe9878d0c7d2733747e6e0043e6631b550edc7783828373ee6d3b6"},
	{LabelCA, "", "1a288f2e630dbddf080ac3a4ddc115f89c1fa7dcd7fa19a1ac1165607676a09f"},
	{LabelQUICToken, "", "c75d6fd71abd54f198191aea9659f17e40c5651f8ce25ca96a6b00722086ef0f"},
	{LabelQUICReset, "192.0.2.7", "df8b5805667fcc8051ec2f564fd72f54c867dd4fbb3d3dbadaa293eefc3b5617"},
	{LabelQUICReset, "2001:db8::7", "aabf99dbec3ffbb512617892f407c8cb9bf4c738acb19a4ec3015b08f9dab932"},
	{LabelGossip, "", "f1f79a004653a736619a481944e549fabcef75e3e3b1ad5c2220eecae778b711"},
	{LabelState, "", "909b49075b945bacc68231211d16893063275dbd1ec87128999731095a50e7c7"},
	{labelID, "", "aa1fc037d60fbc31b5a2b8f4b2e8627d91b06ef1431a80e045e4f93b4b0580ce"},
}

func TestDeriveGivesTheFixedVectors(t *testing.T) {
	r := newRing(t, parse(t, counting))
	for _, v := range derivations {
		if got := r.Derive(v.label, v.info); hex.EncodeToString(got[:]) != v.want {
			t.Errorf("Derive(%q, %q) = %x, want %s", v.label, v.info, got, v.want)
		}
	}
}

// TestDeriveIsRFC5869 computes the same in the RFC's own steps (sections 2.2 and 2.3),
// of which one round of expansion is enough for 32 octets.
func TestDeriveIsRFC5869(t *testing.T) {
	mac := func(key []byte, parts ...string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(strings.Join(parts, "")))
		return m.Sum(nil)
	}
	site := parse(t, counting).raw()
	extracted := mac([]byte("peerage"), string(site[:]))
	for _, v := range derivations {
		want := mac(extracted, string(v.label), "\x00", v.info, "\x01")
		if hex.EncodeToString(want) != v.want {
			t.Errorf("HKDF of %q, %q is %x, and the vector says %s", v.label, v.info, want, v.want)
		}
	}
}

func TestDeriveAllIsNewestFirst(t *testing.T) {
	a, b := parse(t, counting), Generate()
	all := newRing(t, a, b).DeriveAll(LabelPin, "x")
	if len(all) != 2 || all[0] != newRing(t, a).Derive(LabelPin, "x") || all[1] != newRing(t, b).Derive(LabelPin, "x") {
		t.Error("DeriveAll is not what each key derives by itself, newest first")
	}
	if newRing(t, b, a).Derive(LabelPin, "x") != all[1] {
		t.Error("Derive is not from the newest key")
	}
}

// TestLabelsAreDistinct reads the labels from the source, lest a new one is forgotten
// here.
func TestLabelsAreDistinct(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "keys.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || fmt.Sprint(spec.Type) != "Label" {
			return true
		}
		name := spec.Names[0].Name
		label, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		switch {
		case err != nil:
			t.Fatal(err)
		case label == "" || strings.Contains(label, "\x00"):
			t.Errorf("%s is %q: empty, or with the octet that separates it from the info", name, label)
		case seen[label] != "":
			t.Errorf("%s and %s are both %q", seen[label], name, label)
		}
		seen[label] = name
		return true
	})
	for _, v := range derivations {
		delete(seen, string(v.label))
	}
	for label, name := range seen {
		t.Errorf("%s (%q) has no test vector", name, label)
	}
}

func TestParseReadsWhatRevealWrote(t *testing.T) {
	k := Generate()
	if k.Equal(Generate()) {
		t.Fatal("two new keys are the same")
	}
	for _, around := range []string{"", "\n", " \t\r\n"} {
		if got := parse(t, around+k.Reveal()+around); !got.Equal(k) {
			t.Errorf("between %q: another key", around)
		}
	}
}

func TestID(t *testing.T) {
	if got := parse(t, counting).ID(); got != "aa1fc037" { // as the vector begins
		t.Errorf("ID = %q, want aa1fc037", got)
	}
	if numbered(1).ID() == numbered(2).ID() {
		t.Error("two keys have one ID")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ name, text string }{
		{"nothing", ""},
		{"all zero", strings.Repeat("A", 43)},
		{"one short", counting[:42]},
		{"one more", counting + "A"},
		{"padded", counting + "="},
		{"other alphabet", strings.Replace(counting, "A", "+", 1)},
		{"second spelling of the same octets", counting[:42] + "9"},
		{"line end within", counting[:20] + "\n" + counting[21:]},
		{"line end within, and zero bits last", strings.Repeat("B", 21) + "\n" + strings.Repeat("B", 20) + "A"},
		{"hex", strings.Repeat("0f", 32)},
	} {
		k, err := Parse(test.text)
		if err == nil || !k.Empty() {
			t.Errorf("%s: Parse = %v, want an error and no key", test.name, err)
			continue
		}
		if len(test.text) > 8 && strings.Contains(err.Error(), test.text[:8]) {
			t.Errorf("%s: the error tells the text: %v", test.name, err)
		}
	}
}

func TestNewRingRefuses(t *testing.T) {
	a, b, zeros := Generate(), Generate(), numbered(0)
	same := parse(t, a.Reveal())
	for _, test := range []struct {
		name string
		keys []Key
		want string
	}{
		{"no key", []Key{{}}, "empty key"},
		{"zeros", []Key{zeros}, "empty key"},
		{"no older key", []Key{a, {}}, "empty key"},
		{"older zeros", []Key{a, zeros}, "empty key"},
		{"the same twice", []Key{a, same}, "the same key twice"},
		{"three", []Key{a, b, Generate()}, "3 keys, want 1 or 2"},
	} {
		r, err := NewRing(test.keys[0], test.keys[1:]...)
		if r != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		}
	}
	for _, ok := range [][]Key{{a}, {a, b}, {b, a}} {
		if _, err := NewRing(ok[0], ok[1:]...); err != nil {
			t.Errorf("%d keys: %v", len(ok), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", counting, counting + "\n", counting[:42] + "9", strings.Repeat("A", 43), counting[:42] + "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := Parse(text)
		if err != nil {
			return
		}
		if k.Empty() {
			t.Error("accepted an empty key")
		}
		if got := k.Reveal(); got != strings.TrimSpace(text) {
			t.Errorf("%q is a second spelling of a key", text)
		}
	})
}

func TestRingAsText(t *testing.T) {
	a, b, c := Generate(), Generate(), Generate()
	for _, all := range [][]Key{{a}, {a, b}} {
		r, err := NewRing(all[0], all[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseRing(r.Reveal())
		if err != nil || back.Changing() != (len(all) == 2) || back.Derive(LabelPin, "") != r.Derive(LabelPin, "") {
			t.Errorf("a ring of %d keys comes back otherwise: %v", len(all), err)
		}
	}
	for name, text := range map[string]string{
		"nothing":        " \n",
		"three keys":     a.Reveal() + "\n" + b.Reveal() + "\n" + c.Reveal(),
		"the same twice": a.Reveal() + "\n" + a.Reveal(),
		"a line of text": a.Reveal() + "\nhello",
		"an empty line":  a.Reveal() + "\n\n" + b.Reveal(),
	} {
		if _, err := ParseRing(text); err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), a.Reveal()) {
			t.Errorf("%s: the error tells the key", name)
		}
	}
}
