package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// siteOf returns a site document with those nodes, on loopback.
func siteOf(names ...string) string {
	var b strings.Builder
	b.WriteString("site: example\nhosts: [www.example.com]\nnodes:\n")
	for i, name := range names {
		fmt.Fprintf(&b, "  %s: {address: 127.0.0.%d, vips: [127.0.0.%d]}\n", name, 11+i, 21+i)
	}
	b.WriteString("routes:\n  - {path: /, backend: app}\nbackends:\n  app: {servers: ['http://127.0.0.1:1']}\n")
	return b.String()
}

// newTestGuard returns a guard of node n1 with its files, that nothing runs for.
func newTestGuard(t *testing.T, document string) *guard {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "node.yaml")
	text := "# mine\nname: n1 # so far\ndata_dir: " + filepath.Join(dir, "data") + "\ninterfaces: {public: lo}\naddress: 127.0.0.11\n"
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	nf, err := site.LoadNode(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := state.Open(nf.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := state.Replace(nf.SiteFile, []byte(document), 0o644); err != nil {
		t.Fatal(err)
	}
	doc, err := parseDocument(nf, document)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGuard(path, nf, document, doc, d, ring, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// named returns the name that the node file has, and whether the site document on the disk
// has a node of that name.
func named(t *testing.T, g *guard) (name balancing.NodeID, starts bool) {
	t.Helper()
	nf, err := site.LoadNode(g.path)
	if err != nil {
		t.Fatal(err)
	}
	if nf, err = finishRenaming(g.path, nf, g.dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(nf.SiteFile)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseDocument(nf, string(text))
	if left, _ := g.dir.Renaming(); left != "" {
		t.Errorf("that it takes the name %s is noted still", left)
	}
	return nf.Name, err == nil
}

// TestPowerFailsWhileANodeIsRenamed cuts the renaming short after each step: node file and
// site document must fit each other at the next start, or the node would not come back.
func TestPowerFailsWhileANodeIsRenamed(t *testing.T) {
	for done, want := range []balancing.NodeID{"n1", "n1", "n9", "n9"} {
		g := newTestGuard(t, siteOf("n1", "n2"))
		for _, step := range g.renameSteps("n9", siteOf("n9", "n2"))[:done] {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if name, starts := named(t, g); name != want || !starts {
			t.Errorf("after %d steps the node is %s, want %s; it starts: %v", done, name, want, starts)
		}
	}
}

func TestANodeIsRenamedOrNothingHasChanged(t *testing.T) {
	g := newTestGuard(t, siteOf("n1", "n2"))
	if err := g.rename("n9", siteOf("n1", "n2")); err == nil {
		t.Error("renamed to what the document does not have")
	}
	// The name cannot be found in the node file.
	text, err := os.ReadFile(g.path)
	if err != nil {
		t.Fatal(err)
	}
	odd := strings.Replace(string(text), "name: n1 #", "'name': n1 #", 1)
	if err := os.WriteFile(g.path, []byte(odd), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := g.rename("n9", siteOf("n9", "n2")); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("error %v", err)
	}
	if name, starts := named(t, g); name != "n1" || !starts {
		t.Errorf("the node is %s; it starts: %v", name, starts)
	}
	if err := os.WriteFile(g.path, text, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := g.rename("n9", siteOf("n9", "n2")); err != nil {
		t.Fatal(err)
	}
	if name, starts := named(t, g); name != "n9" || !starts {
		t.Errorf("the node is %s; it starts: %v", name, starts)
	}
	b, err := os.ReadFile(g.path)
	info, err2 := os.Stat(g.path)
	if err := errors.Join(err, err2); err != nil || !strings.HasPrefix(string(b), "# mine\nname: n9 # so far\n") || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, mode %v:\n%s", err, info.Mode(), b)
	}
}

// TestAChangeOfAServerThatIsGone has a server die before the guard comes to what it wanted.
// The next one begins with the old document: were the change made all the same, the two
// would go by different ones.
func TestAChangeOfAServerThatIsGone(t *testing.T) {
	was, next := siteOf("n1", "n2"), siteOf("n1", "n2", "n3")
	g := newTestGuard(t, was)
	gone, _ := newChannels(t)
	ours, theirs := newChannels(t)
	g.server = ours
	g.makeChange(asked{change{ID: 1, Document: next}, gone})
	if text, _, _ := g.both(); text != was {
		t.Error("changed for a server that is gone")
	}
	g.makeChange(asked{change{ID: 2, Document: next}, ours})
	var m toServer
	if err := theirs.receive(&m); err != nil || m.Took == nil || m.Took.ID != 2 || m.Took.Err != "" {
		t.Errorf("answer %+v, %v", m.Took, err)
	}
	if text, doc, _ := g.both(); text != next || len(doc.Nodes) != 3 {
		t.Error("not changed for the server that is there")
	}
	if b, err := os.ReadFile(g.nodeFile.SiteFile); err != nil || string(b) != next {
		t.Errorf("on the disk: %s, %v", b, err)
	}
}

// TestALateChangeIsTakenBack has the disk be done only when the server waits no longer, and
// has said that nothing was changed.
func TestALateChangeIsTakenBack(t *testing.T) {
	was, next := siteOf("n1", "n2"), siteOf("n1", "n2", "n3")
	g := newTestGuard(t, was)
	_, _, ring := g.both()
	more, err := keys.NewRing(ring.Keys()[0], keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	unchanged := func(what string) {
		t.Helper()
		text, doc, now := g.both()
		if text != was || len(doc.Nodes) != 2 || now != ring {
			t.Errorf("%s: the guard goes by it", what)
		}
		if b, err := os.ReadFile(g.nodeFile.SiteFile); err != nil || string(b) != was {
			t.Errorf("%s: on the disk: %s, %v", what, b, err)
		}
		if r, err := state.ReadSiteKey(g.nodeFile.SiteKeyFile); err != nil || r.Reveal() != ring.Reveal() {
			t.Errorf("%s: another site key is on the disk; %v", what, err)
		}
	}
	ca, err := certs.NewCA("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.dir.SaveCA(ca, ring), state.WriteSiteKey(g.nodeFile.SiteKeyFile, ring)); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]change{"document": {Document: next}, "site key": {SiteKey: more.Reveal()}} {
		for looks := range 2 { // at the first look, and at that after the disk
			n := 0
			err := g.take(c, func() bool { n++; return n > looks })
			if !errors.Is(err, errLate) || n != looks+1 {
				t.Errorf("%s: got %v at look %d, want it late at look %d", what, err, n, looks+1)
			}
			unchanged(what)
		}
	}
	// By the clock, as the server has said.
	ours, theirs := newChannels(t)
	g.server = ours
	g.makeChange(asked{change{ID: 1, Document: next, Until: time.Now().Add(-time.Second)}, ours})
	var m toServer
	if err := theirs.receive(&m); err != nil || m.Took == nil || m.Took.ID != 1 || m.Took.Err != errLate.Error() {
		t.Errorf("answer %+v, %v", m.Took, err)
	}
	unchanged("over before it was begun")
	g.makeChange(asked{change{ID: 2, Document: next, Until: time.Now().Add(time.Hour)}, ours})
	if text, _, _ := g.both(); text != next {
		t.Error("a change in time is not made")
	}
}

// TestAServerThatCannotHearTheAnswerIsEnded has the answer to a change be lost: the server
// would not know what the guard goes by.
func TestAServerThatCannotHearTheAnswerIsEnded(t *testing.T) {
	g := newTestGuard(t, siteOf("n1", "n2"))
	ours, theirs := newChannels(t)
	theirs.close()
	g.server = ours
	g.makeChange(asked{change{ID: 1, Document: siteOf("n1", "n2", "n3")}, ours})
	if err := ours.conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the channel is open still: %v", err)
	}
}

func TestAChannelCarriesTheLongestDocument(t *testing.T) {
	guard, server := newChannels(t)
	long := strings.Repeat("<\n", 1<<19)
	sent := make(chan error, 1)
	go func() { sent <- server.send(toGuard{Change: &change{ID: 1, Document: long}}) }()
	var m toGuard
	if err := guard.receive(&m); err != nil || m.Change == nil || m.Change.Document != long {
		t.Errorf("not carried: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
