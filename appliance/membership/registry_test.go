package membership

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// party is a node with a registry.
type party struct {
	*Registry
	id    *Identity
	table *cluster.Table
}

func newParty(t testing.TB, name balancing.NodeID) *party {
	t.Helper()
	id := newIdentity(t)
	table := openTable(t, openStore(t, ""), name, MembersTable)
	return &party{NewRegistry(table, name, id), id, table}
}

// gossip makes the tables of all parties equal.
func gossip(t testing.TB, all ...*party) {
	t.Helper()
	for range 2 {
		for _, a := range all {
			for _, b := range all {
				exchange(t, a.table, b.table)
			}
		}
	}
}

func memberNames(all []Member) (names []balancing.NodeID) {
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names
}

func TestRegistriesAgree(t *testing.T) {
	a, b, c := newParty(t, "n1"), newParty(t, "n2"), newParty(t, "n3")
	for _, p := range []*party{a, b, c} {
		for range 2 { // the second changes nothing
			if err := p.Register("1.0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	gossip(t, a, b, c)
	for _, p := range []*party{a, b, c} {
		if got := p.Members(); len(got) != 3 || got[0].Name != "n1" || got[2].Name != "n3" || got[0].Version != "1.0" || got[0].By != "n1" {
			t.Errorf("%s sees %v", p.self, got)
		}
		if !p.Known("n2", b.id.Signer().Public()) || p.Known("n1", b.id.Signer().Public()) || p.Known("n4", b.id.Signer().Public()) || p.Known("n2", "a key") {
			t.Errorf("%s knows the wrong keys", p.self)
		}
		msg := []byte("test\x00message")
		if !p.Verify("n2", msg, b.id.Sign(msg)) || p.Verify("n1", msg, b.id.Sign(msg)) || p.Verify("", msg, b.id.Sign(msg)) || p.Verify("-removed", msg, nil) {
			t.Errorf("%s verifies the wrong signatures", p.self)
		}
	}
}

func TestRemovedMemberIsNoMember(t *testing.T) {
	a, b := newParty(t, "n1"), newParty(t, "n2")
	if err := errors.Join(a.Register(""), b.Register("")); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b)
	if err := a.Remove("n2"); err != nil {
		t.Fatal(err)
	}
	wantError(t, a.Remove("n2"), "n2", "no member")
	gossip(t, a, b)
	for _, p := range []*party{a, b} {
		if got := memberNames(p.Members()); len(got) != 1 || got[0] != "n1" {
			t.Errorf("%s sees %v", p.self, got)
		}
		if p.Known("n2", b.id.Signer().Public()) {
			t.Errorf("%s still knows n2", p.self)
		}
		msg := []byte("signed before")
		if !p.Verify("n2", msg, b.id.Sign(msg)) {
			t.Errorf("%s does not take what n2 has signed", p.self)
		}
	}
	err := b.Register("")
	wantError(t, err, "removed", "join anew")
	if !errors.Is(err, ErrRemoved) {
		t.Errorf("%v is not %v", err, ErrRemoved)
	}
	// New hardware under the old name.
	fresh := newParty(t, "n2")
	gossip(t, a, fresh)
	if err := fresh.Register(""); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b, fresh)
	if m, ok := a.Member("n2"); !ok || m.Fingerprint() != fresh.id.Public().Fingerprint() {
		t.Error("the new n2 is not the member")
	}
}

func TestTheEarliestIdentityOfANameCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, one, two := newParty(t, "n1"), newParty(t, "n2"), newParty(t, "n2")
		if err := one.Register(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := two.Register(""); err != nil { // it has not heard of the other
			t.Fatal(err)
		}
		gossip(t, a, one, two)
		for _, p := range []*party{a, one, two} {
			if m, _ := p.Member("n2"); m.Fingerprint() != one.id.Public().Fingerprint() || len(p.Members()) != 1 {
				t.Error("the later one counts")
			}
		}
		if err := one.Register(""); err != nil {
			t.Error(err)
		}
		if err := two.Register(""); !errors.Is(err, ErrOtherIdentity) {
			t.Errorf("the later one registers: %v, want %v", err, ErrOtherIdentity)
		}
		if err := a.Remove("n2"); err != nil {
			t.Fatal(err)
		}
		if got := a.Members(); len(got) != 0 {
			t.Errorf("after the removal there is %v", got)
		}
	})
}

func TestRename(t *testing.T) {
	a, b := newParty(t, "n1"), newParty(t, "n2")
	if err := errors.Join(a.Register(""), b.Register("")); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b)
	wantError(t, a.Rename("n3", "n4"), "n3", "no member")
	wantError(t, a.Rename("n2", "n1"), "n1 already")
	wantError(t, a.Rename("n2", "N 2"), "not that of a node")
	for _, names := range [][2]balancing.NodeID{{"n2", "n5"}, {"n5", "n2"}, {"n2", "n5"}} { // and back
		if err := a.Rename(names[0], names[1]); err != nil {
			t.Fatal(err)
		}
		gossip(t, a, b)
		if _, ok := b.Member(names[0]); ok || !b.Known(names[1], b.id.Signer().Public()) {
			t.Errorf("after %s became %s: %v", names[0], names[1], b.Members())
		}
	}
	renamed := NewRegistry(b.table, "n5", b.id)
	if err := renamed.Register(""); err != nil {
		t.Errorf("under its new name: %v", err)
	}
	msg := []byte("signed as n2")
	if !a.Verify("n2", msg, b.id.Sign(msg)) || !a.Verify("n5", msg, b.id.Sign(msg)) {
		t.Error("what it signed under one of its names does not count")
	}
}

// TestARenamingIsCutShort has the members know a node by a new name which its files, or the
// site document, do not have, or not any more.
func TestARenamingIsCutShort(t *testing.T) {
	a, b := newParty(t, "n1"), newParty(t, "n2")
	if err := errors.Join(a.Register(""), b.Register("")); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b)
	for range 2 { // whoever asks for it may do so again
		if err := a.Rename("n2", "n5"); err != nil {
			t.Fatal(err)
		}
		gossip(t, a, b)
	}
	wantError(t, a.Rename("n2", "n6"), "no member")
	renamed := NewRegistry(b.table, "n5", b.id)
	for _, c := range []struct {
		names []balancing.NodeID
		want  balancing.NodeID
	}{
		{[]balancing.NodeID{"n1", "n5"}, "n5"},
		{[]balancing.NodeID{"n1", "n2"}, "n2"}, // the document went back
		{[]balancing.NodeID{"n1", "n3"}, ""},
		{[]balancing.NodeID{"n2", "n5"}, "n5"},
	} {
		if got := renamed.OwnName(c.names); got != c.want {
			t.Errorf("of %v it takes %q, want %q", c.names, got, c.want)
		}
	}
	// It starts under its old name.
	if err := b.Register(""); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b)
	if !a.Known("n2", b.id.Signer().Public()) || a.Renamed("n2") {
		t.Errorf("the members are %v", memberNames(a.Members()))
	}
	if got := b.OwnName([]balancing.NodeID{"n1", "n5"}); got != "n5" {
		t.Errorf("once the document follows, it takes %q", got)
	}
	if err := a.Remove("n2"); err != nil {
		t.Fatal(err)
	}
	gossip(t, a, b)
	if got := b.OwnName([]balancing.NodeID{"n1", "n2", "n5"}); got != "" {
		t.Errorf("removed, it takes %q", got)
	}
	if err := b.Register(""); !errors.Is(err, ErrRemoved) {
		t.Errorf("removed, it registers: %v", err)
	}
}

// TestALaterVersionAddsKinds has entries come by that this version makes nothing of: to
// refuse them would keep its tables from ever agreeing with those of the other.
func TestALaterVersionAddsKinds(t *testing.T) {
	for name, c := range map[string]struct {
		check func(string, []byte) error
		key   string
	}{
		"members": {checkMembers, "-label/n1"},
		"tokens":  {checkTokens, "0123456789abcdef/tried"},
		"keys":    {checkKeys, "sealed/n1"},
	} {
		if err := c.check(c.key, []byte("whatever")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.check(c.key, make([]byte, maxLater+1)); err == nil {
			t.Errorf("%s: taken, however long", name)
		}
	}
	a := newParty(t, "n1")
	if err := errors.Join(a.Register(""), a.table.Put("-label/n1", []byte("{}"), time.Time{})); err != nil {
		t.Fatal(err)
	}
	if got := memberNames(a.Members()); !reflect.DeepEqual(got, []balancing.NodeID{"n1"}) {
		t.Errorf("members %v", got)
	}
}

func TestMembersTableRefusesForgeries(t *testing.T) {
	a, mallory := newParty(t, "n1"), newIdentity(t)
	if err := a.Register(""); err != nil {
		t.Fatal(err)
	}
	key, value := a.id.entry("n1", "n1", "")
	_, other := mallory.entry("n1", "n1", "")
	m := Member{V: 1, Name: "n2", Public: Public{a.id.Public().Sign, []byte("no key")}}
	for name, e := range map[string]struct {
		key   string
		value []byte
	}{
		"another's value":   {key, other},
		"another name":      {memberKey("n2", a.id.Public()), value},
		"no JSON":           {key, []byte("x")},
		"nothing":           {key, nil},
		"a key of its own":  {"n1", value},
		"in the other part": {removedPrefix + key, value},
		"useless box key":   {memberKey("n2", m.Public), a.id.seal(domainMember, m)},
	} {
		if err := a.table.Put(e.key, e.value, time.Time{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for i := 0; i < len(value); i += 5 {
		bad := append(append(append([]byte{}, value[:i]...), value[i]^1), value[i+1:]...)
		// Base64 has a few bits to spare at its end.
		var e, was envelope
		if checkMembers(key, bad) == nil && (errors.Join(json.Unmarshal(bad, &e), json.Unmarshal(value, &was)) != nil || !reflect.DeepEqual(e, was)) {
			t.Fatalf("taken with octet %d changed", i)
		}
	}
	if err := checkMembers(key, value); err != nil {
		t.Error(err)
	}
}

func FuzzMembers(f *testing.F) {
	id := fixedIdentity(f)
	key, value := id.entry("n1", "n1", "1.0")
	f.Add(key, value)
	f.Add(removedKey("n1", id.Public().Fingerprint()), id.seal(domainRemoved, removal{V: 1, Name: "n1", Fingerprint: id.Public().Fingerprint(), By: "n1"}))
	f.Add(leavingKey("n1", id.Public().Fingerprint()), id.seal(domainLeaving, leaving{V: 1, Name: "n1", Fingerprint: id.Public().Fingerprint(), By: "n1"}))
	f.Add("n1/x", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if checkMembers(key, value) == nil && !cluster.ValidKey(key) {
			t.Errorf("%q is no key", key)
		}
	})
}
