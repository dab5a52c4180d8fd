package cluster

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is in testdata was written by version 1 of each format, on the first day of 2000. It
// is never written anew: what nodes of that version send and keep must be understood.

// recorded are the lines of wire-v1.txt: a name, and octets in hexadecimal.
func recorded(t *testing.T) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "wire-v1.txt"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, octets, _ := strings.Cut(strings.TrimSpace(line), " ")
		if all[name], err = hex.DecodeString(octets); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestEnvelopesOfVersion1(t *testing.T) {
	octets := recorded(t)
	for name, e := range envelopes() {
		if got, err := parse(octets[name]); err != nil || !cmp.Equal(got, e.want, compareMessages) {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(e.want, got, compareMessages))
		}
	}
	if got := versionOf([]byte("\x011.2.3")); got != "1.2.3" {
		t.Errorf("the version of a member is %q", got)
	}
}

// holdsRecorded checks that a table has the items that were recorded.
func holdsRecorded(t *testing.T, table *Table) {
	t.Helper()
	octets := recorded(t)
	if got := live(table); got != "buries=for long ends=\x00\xff live=value" {
		t.Errorf("the table has %q", got)
	}
	at, end := StampOf(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	for key, want := range map[string]Item{
		"live":   {Stamp: at},
		"gone":   {Stamp: at + 2, Deleted: true},
		"ends":   {Stamp: at + 3, Expires: end},
		"buries": {Stamp: at + 5, Expires: end, buried: true},
	} {
		e := table.items[key]
		if e == nil || e.Stamp != want.Stamp || e.Node != "n1" || e.Deleted != want.Deleted || !e.Expires.Equal(want.Expires) || e.buried != want.buried {
			t.Errorf("%s: got %+v, want %+v", key, e, want)
		}
	}
	// Nodes of two versions would else never find that they agree.
	if d := table.Digest(); !bytes.Equal(d[:], octets["digest"]) {
		t.Errorf("the digest is %x, and was %x", d, octets["digest"])
	}
	hashes := func(summary []byte) []string {
		var all []string
		for h := range slices.Chunk(summary, summaryItem) {
			all = append(all, string(h))
		}
		slices.Sort(all)
		return all
	}
	if got, want := hashes(table.summary()), hashes(octets["summary"]); !slices.Equal(got, want) {
		t.Errorf("the summary is %x, and was %x", got, want)
	}
}

func TestPartOfVersion1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		part := recorded(t)["items"]
		table := newTable(t, "n2", TableConfig{})
		if _, err := table.Merge(part); err != nil {
			t.Fatal(err)
		}
		holdsRecorded(t, table)
		if again := table.Snapshot(); len(again) != 1 || !bytes.Equal(again[0], part) {
			t.Errorf("it is passed on as %x", again)
		}
	})
}

func TestStoreOfVersion1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := os.Open(filepath.Join("testdata", "store-v1.db.gz"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "cluster.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, table := openDisk(t, path)
		if s.aside != "" {
			t.Fatal("it is taken for damaged")
		}
		holdsRecorded(t, table)
		if now := time.Now(); s.Clock().mark() != StampOf(now)+5 || !s.seen.Equal(now) || !s.ran.Equal(now.Add(time.Second)) {
			t.Errorf("the clock is %x, it was seen at %v and ran until %v", s.Clock().mark(), s.seen, s.ran)
		}
		put(t, table, "more", "1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, table = openDisk(t, path); len(table.Items("")) != 4 {
			t.Errorf("after a write it has %q", live(table))
		}
	})
}

// The next minor version tells of more documents, flags and fields. Two nodes that have the
// same of what both know agree.
func TestStateOfTheNextMinorVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJoiner(t)
		put(t, j.table, "k", "v")
		now := time.Now()
		states := []digest{{"later", [32]byte{1}}, {"test", j.table.Digest()}}
		b := append(stateOf("node2", 1<<7, fresh, now, states), "more"...)
		j.hear(&event{message: true, at: now, body: b})
		if got := j.Counters(); got.Agreed != 1 || got.Wants != 0 {
			t.Errorf("agreed %d times, asked %d times", got.Agreed, got.Wants)
		}
		part := (&Item{Key: "k", Stamp: j.store.Clock().Now(), Node: "node2"}).append([]byte{partVersion})
		j.hear(&event{message: true, at: now, body: append(changeOf("node2", "later"), part...)})
		if got := j.Counters(); got.Unknown != 1 || got.Malformed != 0 || live(j.table) != "k=v" {
			t.Errorf("a change of a document that it does not know: %+v, %q", got, live(j.table))
		}
	})
}
