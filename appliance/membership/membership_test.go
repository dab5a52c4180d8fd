package membership

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/cluster"
)

func newIdentity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity(state.NewNodeKey())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// fixedIdentity is that of the node key 00 01 02 … 1f.
func fixedIdentity(t testing.TB) *Identity {
	t.Helper()
	k, err := state.ParseNodeKey("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// openTable returns a table in a store at path; in memory if that is "".
func openTable(t testing.TB, s *cluster.Store, self balancing.NodeID, c cluster.TableConfig) *cluster.Table {
	t.Helper()
	table, err := s.Table(string(self), c)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func openStore(t testing.TB, path string) *cluster.Store {
	t.Helper()
	s, err := cluster.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// exchange makes two tables equal.
func exchange(t testing.TB, a, b *cluster.Table) {
	t.Helper()
	for _, pair := range [][2]*cluster.Table{{a, b}, {b, a}} {
		for _, part := range pair[0].Snapshot() {
			if _, err := pair[1].Merge(part); err != nil {
				t.Fatal(err)
			}
		}
	}
	if a.Digest() != b.Digest() {
		t.Fatal("the tables differ after an exchange")
	}
}

// wantError wants one line of text that has all of the words.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one line with %q", err, w)
		}
	}
}

// journal collects what a test logs, and errors, to search it for secrets.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) log() *slog.Logger {
	return slog.New(slog.NewJSONHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// silent fails the test if a secret is in the journal, in one of its usual forms.
func (j *journal) silent(t testing.TB, secrets ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	text := j.b.String()
	for _, s := range secrets {
		for _, form := range []string{s, hex.EncodeToString([]byte(s)), strings.Trim(fmt.Sprint([]byte(s)), "[]")} {
			if len(form) < 16 {
				t.Fatalf("%d characters are no secret", len(form))
			}
			if strings.Contains(text, form) {
				t.Errorf("a secret is in the log: %s", text)
			}
		}
	}
}
