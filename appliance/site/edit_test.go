package site

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"peerage/balancing"
)

// TestEditsKeepTheRestOfTheText does what the name of each file in testdata/edit/*.txtar
// says to the file 'before' of its archive.
func TestEditsKeepTheRestOfTheText(t *testing.T) {
	archives, err := filepath.Glob("testdata/edit/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal(archives, err)
	}
	for _, file := range archives {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		before := string(a.Files[0].Data)
		for i, f := range a.Files[1:] {
			t.Run(filepath.Base(file)+"/"+f.Name, func(t *testing.T) {
				got, err := doEdit(before, f.Name)
				if err != nil {
					got = "refused: " + err.Error() + "\n"
				} else {
					got = Diff(before, got, "before", "after")
				}
				if !*update && got != string(f.Data) {
					t.Errorf("-want +got (-update writes it):\n%s", cmp.Diff(string(f.Data), got))
				}
				a.Files[i+1].Data = []byte(got)
			})
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var newNode = Node{
	Address: netip.MustParseAddr("192.0.2.9"), Internal: netip.MustParseAddr("10.0.0.9"), Capacity: 2,
	VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.19"), netip.MustParseAddr("2001:db8::19")},
}

func doEdit(text, what string) (string, error) {
	switch words := strings.Fields(what); words[0] {
	case "add":
		return AddNode(text, balancing.NodeID(words[1]), newNode)
	case "remove":
		return RemoveNode(text, balancing.NodeID(words[1]))
	default:
		return RenameNode(text, balancing.NodeID(words[1]), balancing.NodeID(words[3]))
	}
}

func TestEditsRefuseWhatIsNoDocument(t *testing.T) {
	for _, what := range []string{"add n9", "remove n1", "rename n1 to n2"} {
		if got, err := doEdit("site: [", what); err == nil || !strings.Contains(err.Error(), "not YAML") {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
	}
	if _, err := AddNode("", "N9", Node{}); err == nil {
		t.Error("N9 is no name")
	}
}

// FuzzEdits checks that an edit of any document gives the document that was wanted, or an
// error; that is what edit itself sees to. What the fuzzer looks for are texts that make
// it panic, and edits that do not come back.
func FuzzEdits(f *testing.F) {
	archives, err := filepath.Glob("testdata/edit/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range archives {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(a.Files[0].Data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		doc, err := ParseDocument("site.yaml", []byte(text))
		if err != nil {
			return
		}
		const fresh = "fuzzed-node"
		if added, err := AddNode(text, fresh, Node{}); err == nil {
			back, err := RemoveNode(added, fresh)
			if err != nil {
				return // the text can make a comma before the end that is not ours to find
			}
			if got, err := ParseDocument("site.yaml", []byte(back)); err != nil || got.String() != doc.String() {
				t.Errorf("added and removed:\n%s\n%v", back, err)
			}
		}
		for _, id := range doc.NodeIDs() {
			if renamed, err := RenameNode(text, id, fresh); err == nil {
				if got, err := RenameNode(renamed, fresh, id); err == nil {
					if d, err := ParseDocument("site.yaml", []byte(got)); err != nil || d.String() != doc.String() {
						t.Errorf("renamed forth and back:\n%s\n%v", got, err)
					}
				}
			}
		}
	})
}

func TestDiff(t *testing.T) {
	if got := Diff("a\nb\n", "a\nb\n", "x", "y"); got != "" {
		t.Errorf("equal texts: got %q", got)
	}
	if got, want := Diff("a\nb\n", "a\nc\n", "revision 1", "revision 2"), "--- revision 1\n+++ revision 2\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
