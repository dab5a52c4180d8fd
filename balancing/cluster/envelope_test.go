package cluster

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func envelopes() map[string]struct {
	b    []byte
	want message
} {
	sent := time.UnixMilli(1_700_000_000_123)
	type test = struct {
		b    []byte
		want message
	}
	states := []digest{{"site", [32]byte{1}}, {"keys", [32]byte{2}}}
	return map[string]test{
		"change":   {append(changeOf("n", "doc"), "part"...), message{kind: kindChange, from: "n", doc: "doc", body: []byte("part")}},
		"push":     {append(pushOf("n", 7, "doc"), "part"...), message{kind: kindPush, from: "n", number: 7, doc: "doc", body: []byte("part")}},
		"ack":      {ackOf("n", 7, true), message{kind: kindAck, from: "n", number: 7, flags: 1}},
		"state":    {stateOf("n", flagAsk, down, sent, states), message{kind: kindState, from: "n", flags: flagAsk, level: down, sent: sent, states: states}},
		"want":     {append(wantOf("n", 8, "doc", flagWhole), "sum"...), message{kind: kindWant, from: "n", number: 8, doc: "doc", flags: flagWhole, body: []byte("sum")}},
		"part":     {append(partOf("n", 8, "doc"), "part"...), message{kind: kindPart, from: "n", number: 8, doc: "doc", body: []byte("part")}},
		"done":     {doneOf("n", 8, "doc", 300), message{kind: kindDone, from: "n", number: 8, doc: "doc", count: 300}},
		"farewell": {farewellTo("n"), message{kind: kindFarewell, from: "n"}},
	}
}

var compareMessages = cmp.AllowUnexported(message{}, digest{})

// The octets are those of version 1: nodes of different versions must understand each other.
func TestEnvelopeIsVersion1(t *testing.T) {
	for name, want := range map[string]string{
		"change": "\x01\x01\x01n\x03docpart",
		"ack":    "\x01\x03\x01n\x00\x00\x00\x00\x00\x00\x00\x07\x01",
		"want":   "\x01\x05\x01n\x00\x00\x00\x00\x00\x00\x00\x08\x03doc\x01sum",
		"done":   "\x01\x07\x01n\x00\x00\x00\x00\x00\x00\x00\x08\x03doc\xac\x02",
	} {
		if got := envelopes()[name].b; string(got) != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	item := Item{Key: "k", Stamp: 0x0102030405060708, Node: "n", Value: []byte("v"), Expires: time.UnixMilli(256)}
	if got, want := string(item.append([]byte{partVersion})), "\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x00\x01\x00\x01k\x01n\x01v"; got != want {
		t.Errorf("item: got %q, want %q", got, want)
	}
}

func TestEnvelopeIsReadAsItWasWritten(t *testing.T) {
	for name, test := range envelopes() {
		got, err := parse(test.b)
		if err != nil || !cmp.Equal(got, test.want, compareMessages) {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(test.want, got, compareMessages))
		}
		if test.want.body != nil {
			continue
		}
		for n := range test.b {
			if _, err := parse(test.b[:n]); err == nil {
				t.Errorf("%s: %d of %d octets are understood", name, n, len(test.b))
			}
		}
		// A later version may add to it.
		if got, err := parse(append(test.b, "more"...)); err != nil || !cmp.Equal(got, test.want, compareMessages) {
			t.Errorf("%s with more behind: %v", name, err)
		}
	}
	for _, b := range []string{"\x02\x01\x01n", "\x01\x00\x01n", "\x01\x63\x01n"} {
		if _, err := parse([]byte(b)); !errors.Is(err, errVersion) {
			t.Errorf("%q: got %v", b, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	for _, test := range envelopes() {
		f.Add(test.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(bytes.Clone(b))
		if err != nil {
			return
		}
		var again []byte
		switch m.kind {
		case kindChange:
			again = append(changeOf(m.from, m.doc), m.body...)
		case kindPush, kindPart:
			again = append(numbered(m.kind, m.from, m.number, m.doc), m.body...)
		case kindAck:
			again = ackOf(m.from, m.number, m.flags == 1)
			m.flags &= 1
		case kindState:
			again = stateOf(m.from, m.flags, m.level, m.sent, m.states)
		case kindWant:
			again = append(wantOf(m.from, m.number, m.doc, m.flags), m.body...)
		case kindDone:
			again = doneOf(m.from, m.number, m.doc, int(m.count))
		case kindFarewell:
			again = farewellTo(m.from)
		}
		got, err := parse(again)
		if err != nil || m.kind != kindAck && !cmp.Equal(got, m, compareMessages) {
			t.Fatalf("printed and parsed again: %v\n%s", err, cmp.Diff(m, got, compareMessages))
		}
	})
}
