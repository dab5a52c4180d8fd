package revision

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"peerage/balancing/cluster"
)

// recorded are the entries of testdata/entries-v1.txt, keys and values of the table as
// version 1 wrote them. They are never written anew: what nodes of that version send and
// keep must be understood.
func recorded(t *testing.T) []cluster.Item {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "entries-v1.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var all []cluster.Item
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		all = append(all, cluster.Item{Key: key, Value: []byte(value)})
	}
	return all
}

// understands checks what a node makes of the entries.
func understands(t *testing.T, items []cluster.Item) {
	t.Helper()
	for _, i := range items {
		if err := check("example", verify, i.Key, i.Value); err != nil {
			t.Errorf("%s: %v", i.Key, err)
		}
	}
	h, now := newReader("example").read(items), time.Unix(946684900, 0)
	var got []string
	for _, e := range h.list(now) {
		got = append(got, fmt.Sprintf("%d %s %s by %s, %s: %s", e.Number, e.ID.Short(), e.Made.UTC().Format("5"), e.Author, e.State, e.Reason))
	}
	want := []string{
		"5 ed1c71f0 40 by alice@n1, in force: ",
		"4 28dd6d2e 30 by site, past: ",
		"3 d492331d 30 by bob@n2, rolled back: n2 turned sick, as seen by n1",
		"3 51fe5d3c 20 by bob@n2, withdrawn: n1 refused it: no",
		"2 5b867617 10 by alice@n1, past: ",
		"2 f2c7fedf 9 by eve@n2, conflict: ",
		"2 037aa0b1 8 by eve@n2, settled: ",
		"1 3e376c6d 0 by site, past: ",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the history is\n%s", d)
	}
	two, sick, back := h.entries["5b867617468ae9c2b4c51db4890e4275"], h.entries["d492331de332ded648761bb0b1154c10"], h.head(now).parent
	if r := two.revision(); r.Text != "site: example\n# first\n"+strings.Repeat("# line\n", 100) || r.Comment != "longer" || r.ConfirmWithin != time.Minute {
		t.Errorf("revision 2 is %+v", r)
	}
	if c := two.phases[phaseCanary]; c == nil || c.Canary != "n2" || c.Who != "n1" || c.Deadline.Time().Unix() != 946684840 || two.phases[phaseConfirmed].Who != "bob@n2" {
		t.Errorf("phases of revision 2: %+v", two.phases)
	}
	if w := two.word("n1"); w.Vote != yes || w.Applying == 0 || w.Settled.Time().Unix() != 946684814 {
		t.Errorf("n1 says of revision 2: %+v", w)
	}
	if w := sick.word("n2"); w.Failed.Time().Unix() != 946684832 || w.Why != "it has not passed its own check within 5s" {
		t.Errorf("n2 says of revision 3: %+v", w)
	}
	// The same on every node that makes it, of whatever version.
	if r := h.rollBack(sick); r == nil || r.id != back.id || back.revision().Text != two.revision().Text {
		t.Errorf("revision 3 is rolled back by %+v", r)
	}
	delete(h.entries, back.id)
	if r := h.rollBack(sick); r == nil || r.id != back.id {
		t.Errorf("made here, what rolls revision 3 back is %+v, want %s", r, back.id)
	}
}

func TestEntriesOfVersion1(t *testing.T) { understands(t, recorded(t)) }

// The next minor version adds fields. A node of this version understands the rest, and
// passes all of it on as it was.
func TestEntriesOfTheNextMinorVersion(t *testing.T) {
	items := recorded(t)
	_, first := newTable(t, "n1")
	_, second := newTable(t, "n2")
	for n, i := range items {
		items[n].Value = []byte(`{"later":{"a":[1,2]},` + string(i.Value[1:]))
		if err := first.Put(i.Key, items[n].Value, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range first.Snapshot() {
		if _, err := second.Merge(part); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range items {
		if got, ok := second.Get(i.Key); !ok || string(got.Value) != string(i.Value) {
			t.Errorf("%s is passed on as %s, want %s", i.Key, got.Value, i.Value)
		}
	}
	understands(t, second.Items(""))
}
