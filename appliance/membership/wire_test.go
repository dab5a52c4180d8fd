package membership

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

// What is in testdata was written by version 1 of each format, with [fixedIdentity] as n1
// and n2 and the site keys 00 01 02 …, 20 21 22 … and 40 41 42 …, on the first day of 2000.
// It is never written anew: what nodes of that version send and keep must be understood.

func recorded(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func recordedBase64(t *testing.T, name string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(recorded(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tables are the three of a node.
type tables map[string]*cluster.Table

func newTables(t *testing.T, self balancing.NodeID) tables {
	t.Helper()
	store, all := openStore(t, ""), tables{}
	for _, c := range []cluster.TableConfig{MembersTable, TokensTable, KeysTable} {
		all[c.Name] = openTable(t, store, self, c)
	}
	return all
}

// recordedEntries are those of entries-v1.txt: table, key and value.
func recordedEntries(t *testing.T) (all [][3]string) {
	t.Helper()
	for line := range strings.Lines(recorded(t, "entries-v1.txt")) {
		table, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		key, value, _ := strings.Cut(rest, " ")
		all = append(all, [3]string{table, key, value})
	}
	return all
}

// understands checks what a node makes of the entries of entries-v1.txt.
func understands(t *testing.T, all tables) {
	t.Helper()
	id := fixedIdentity(t)
	registry := NewRegistry(all["members"], "n1", id)
	m, ok := registry.Member("n1")
	if !ok || m.Fingerprint() != id.Public().Fingerprint() || m.By != "n1" || m.Version != "0.3.0" || len(registry.Members()) != 1 {
		t.Errorf("members: %+v", registry.Members())
	}
	if !registry.Renamed("n9") || registry.Renamed("n8") {
		t.Error("it is not understood that n1 was called n9")
	}
	end := time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	tokens := map[string]TokenInfo{}
	for _, i := range NewTokens(TokensConfig{Self: "n1", Table: all["tokens"], Site: "test"}).List() {
		tokens[i.ID] = i
	}
	for _, want := range []TokenInfo{
		{ID: "0011223344556677", Name: "n2", State: TokenOpen},
		{ID: "0000000000000001", State: TokenUsed, Node: "n3"},
		{ID: "0000000000000002", State: TokenRevoked},
	} {
		if got := tokens[want.ID]; got.Name != want.Name || got.State != want.State || got.Node != want.Node || got.Issuer != "n1" || got.User != "alice" || !got.Expires.Equal(end) {
			t.Errorf("token: got %+v, want %+v", got, want)
		}
	}
	l := readLedger(parseRecords(all["keys"]), registry, id.Public(), func(string) bool { return false })
	if len(l.gens) != 2 || !l.gens[0].used || l.gens[0].force || !l.gens[1].force || l.gens[1].used || !reflect.DeepEqual(l.gens[1].After, []string{"8897e264"}) {
		t.Fatalf("generations: %+v", l.gens)
	}
	for _, g := range l.gens {
		if k, err := openKey(id, g.name, g.boxes[0]); err != nil || k.ID() != g.ID {
			t.Errorf("generation %d: the box has %s, %v, want key %s", g.Number, k.ID(), err, g.ID)
		}
	}
	if _, ok := l.retired["aa1fc037"]; !ok || !reflect.DeepEqual(l.rings["n1"].Opens, []string{"8897e264", "ba7be936"}) {
		t.Errorf("retired: %v, rings: %+v", l.retired, l.rings)
	}
}

func TestEntriesOfVersion1(t *testing.T) {
	all := newTables(t, "n2")
	for _, e := range recordedEntries(t) {
		if err := all[e[0]].Put(e[1], []byte(e[2]), time.Time{}); err != nil {
			t.Errorf("%s: %v", e[1], err)
		}
	}
	understands(t, all)
}

// The next minor version adds fields to what it signs, and beside it. A node of this version
// understands the rest, and passes all of it on as it was.
func TestEntriesOfTheNextMinorVersion(t *testing.T) {
	first, second := newTables(t, "n2"), newTables(t, "n3")
	entries := recordedEntries(t)
	for n, e := range entries {
		entries[n][2] = later(t, e[1], e[2])
		if err := first[e[0]].Put(e[1], []byte(entries[n][2]), time.Time{}); err != nil {
			t.Errorf("%s: %v", e[1], err)
		}
	}
	understands(t, first)
	for name, table := range second {
		exchange(t, first[name], table)
	}
	understands(t, second)
	for _, e := range entries {
		if i, ok := second[e[0]].Get(e[1]); !ok || string(i.Value) != e[2] {
			t.Errorf("%s is passed on as %s, want %s", e[1], i.Value, e[2])
		}
	}
}

// later returns an entry as the next minor version would write it.
func later(t *testing.T, key, value string) string {
	t.Helper()
	domains := []domain{
		domainMember, domainRemoved, domainToken, domainUsed, domainRevoked,
		domainGeneration, domainBox, domainUse, domainRetired, domainForce, domainRing,
	}
	var was envelope
	if err := json.Unmarshal([]byte(value), &was); err != nil {
		t.Fatal(err)
	}
	for _, d := range domains {
		if _, err := open(d, []byte(value), new(any)); err != nil {
			continue
		}
		signed := `{"later":{"a":[1,2]},` + string(was.Signed[1:])
		id := fixedIdentity(t)
		b, err := json.Marshal(map[string]any{
			"signed": json.RawMessage(signed), "key": id.Public().Sign, "sig": id.Sign(d.message([]byte(signed))), "seen": "x",
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	t.Fatalf("%s: nobody has signed it", key)
	return ""
}

// TestKeysAnswerOfVersion1 reads what a node of version 1 answers at [KeysPath], and with a
// table that only a later version has.
func TestKeysAnswerOfVersion1(t *testing.T) {
	answer := recordedBase64(t, "keys-v1.txt")
	more := append([]byte{answer[0], 5, 'l', 'a', 't', 'e', 'r', 0, 0, 0, 2, 'h', 'i'}, answer[1:]...)
	for name, b := range map[string][]byte{"as it was": answer, "with a table more": more} {
		all := newTables(t, "n2")
		err := readParts(bytes.NewReader(b), func(table string, part []byte) {
			if table == "later" {
				return
			}
			if _, err := all[table].Merge(part); err != nil {
				t.Errorf("%s: %s: %v", name, table, err)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, e := range recordedEntries(t) { // tokens are not asked for
			if i, ok := all[e[0]].Get(e[1]); e[0] != "tokens" && (!ok || string(i.Value) != e[2]) {
				t.Errorf("%s: %s is %s", name, e[1], i.Value)
			}
		}
	}
}

// recordedToken is that of token-v1.txt. Its format has no room for more: a token with more in
// it needs another mark than "pgj1.".
func recordedToken(t *testing.T) *Token {
	t.Helper()
	token, err := ParseToken(recorded(t, "token-v1.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenOfVersion1(t *testing.T) {
	token := recordedToken(t)
	if token.ID != "0011223344556677" || token.Site != "test" || token.Issuer != "n1" || token.Name != "n2" ||
		len(token.Addresses) != 2 || token.Addresses[1].String() != "[2001:db8::1]:7948" || token.Expires.Year() != 2100 ||
		token.secret() != [tokenSecret]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
		t.Errorf("got %+v", *token)
	}
	if token.Text() != recorded(t, "token-v1.txt") {
		t.Error("the token is written in another way")
	}
}

// The request of a node of version 1, and of one of the next minor version, lets it in; what
// it says of itself is kept as it is.
func TestJoinRequestOfVersion1(t *testing.T) {
	request := recorded(t, "join-request-v1.json")
	var q joinRequest
	if err := json.Unmarshal([]byte(request), &q); err != nil {
		t.Fatal(err)
	}
	member := later(t, "n2", string(q.Member))
	next := strings.Replace(`{"later":[],`+request[1:], string(q.Member), member, 1)
	for name, c := range map[string]struct{ request, member string }{
		"version 1": {request, string(q.Member)}, "next": {next, member},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, "n1", "")
			for _, e := range recordedEntries(t) {
				if e[1] == "0011223344556677" {
					if err := h.tokens.c.Table.Put(e[1], []byte(e[2]), time.Time{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if status, answer := h.ask(t, []byte(c.request)); status != http.StatusOK {
				t.Fatalf("%s: status %d, %s", name, status, answer)
			}
			i, ok := h.registry.table.Get(memberKey("n2", fixedIdentity(t).Public()))
			if !ok || string(i.Value) != c.member {
				t.Errorf("%s: kept as %s, want %s", name, i.Value, c.member)
			}
			if n := h.admitted[0]; n.Name != "n2" || n.Address.String() != "192.0.2.2" || n.Internal.String() != "10.0.0.2" || len(n.VIPs) != 2 || n.Capacity != 1.5 {
				t.Errorf("%s: admitted as %+v", name, n)
			}
		})
	}
}

func TestJoinAnswerOfVersion1(t *testing.T) {
	id, token := fixedIdentity(t), recordedToken(t)
	box := recordedBase64(t, "join-answer-v1.txt")
	plain, err := id.Open(joinInfo(token, "n2"), box)
	if err != nil {
		t.Fatal(err)
	}
	next, err := id.Public().Seal(joinInfo(token, "n2"), append([]byte(`{"later":{"v":7},`), plain[1:]...))
	if err != nil {
		t.Fatal(err)
	}
	for name, box := range map[string][]byte{"version 1": box, "next": next} {
		a, err := openAnswer(id, token, "n2", box)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ids := func(all []keys.Key) (s []string) {
			for _, k := range all {
				s = append(s, k.ID())
			}
			return s
		}
		if a.Document != "site: test\n" || string(a.Common) != `{"listen":{"https":443}}` || a.CA.Fingerprint() != token.Fingerprint ||
			!reflect.DeepEqual(ids(a.Ring.Keys()), []string{"ba7be936", "8897e264"}) || len(a.Ring.Past()) != 1 || a.Ring.Past()[0].Key.ID() != "aa1fc037" {
			t.Errorf("%s: got %+v", name, a)
		}
	}
}
