package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/balancing"
)

// newSwift is a site on loopback of so many nodes that finds out soon what has become of
// one, and has it back soon.
func newSwift(t *testing.T, nodes int) *grown {
	g := newGrown(t)
	g.awaitWhole()
	g.nodes[0].apply(func(text string) string {
		return edited(t, text, "balancing: {light: 50, margin: 20}", "balancing: {light: 1000, margin: 1000, measure: requests, period: 200ms, offline_after: 10}\ntakeover: {hold_down: 100ms}")
	})
	for i := 2; i <= nodes; i++ {
		g.join(fmt.Sprint("n", i))
	}
	g.awaitWhole()
	return g
}

// apply changes the site document at the node.
func (n *grownNode) apply(f func(text string) string) *revision.Revision {
	n.t.Helper()
	head := n.head()
	made, err := n.client().Apply(n.t.Context(), node.Apply{Text: f(head.Text), Base: string(head.ID), User: "op"}, nil)
	if err != nil {
		n.t.Fatalf("a change at %s: %v", n.name, err)
	}
	return &made
}

func (n *grownNode) head() *revision.Revision {
	n.t.Helper()
	head, err := n.client().Revision(n.t.Context(), "")
	if err != nil {
		n.t.Fatal(err)
	}
	return &head
}

// serves reports whether the node is well, with that revision.
func (n *grownNode) serves(id revision.ID) bool {
	st := n.status()
	return st != nil && st.View.Me().State == balancing.OK && st.Agreed.Document.Running == id
}

// awaitSame waits until all nodes serve the same, and have the same of everything that the
// site agrees on.
func (g *grown) awaitSame() {
	g.t.Helper()
	g.awaitWhole()
	eventually(g.t, "all nodes have the same", func() bool {
		var first string
		for _, n := range g.nodes {
			st := n.status()
			if st == nil {
				return false
			}
			has := fmt.Sprint(st.Agreed.Digests)
			if first == "" {
				first = has
			}
			if has != first {
				return false
			}
		}
		return true
	})
	text := g.nodes[0].siteFile()
	for _, n := range g.nodes {
		if n.siteFile() != text {
			g.t.Errorf("%s and n1 have different site documents on their disks", n.name)
		}
	}
}

// siteFile is what the node has on its disk.
func (n *grownNode) siteFile() string { return readFile(n.t, filepath.Join(n.data(), "site.yaml")) }

// TestANodeTurnsSickWithARevision freezes the server of one node while all watch how a
// revision does: the site goes back by itself, says why, and has the node follow when it is
// well.
func TestANodeTurnsSickWithARevision(t *testing.T) {
	g := newSwift(t, 3)
	n1, n2, n3 := g.nodes[0], g.nodes[1], g.nodes[2]
	before := n1.head()
	bad := n1.apply(func(text string) string { return withRequests(text, 77) })
	for _, n := range g.nodes {
		if !n.serves(bad.ID) {
			t.Errorf("%s does not serve %s, which was acknowledged", n.name, bad)
		}
	}

	server := n2.status().ServerPID
	thaw := func() { syscall.Kill(server, syscall.SIGCONT) }
	defer thaw()
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	why := regexp.MustCompile(`(?m)^ *` + fmt.Sprint(bad.Number) + ` .*rolled back.*n2 turned sick, as seen by n[13]`)
	for _, n := range []*grownNode{n1, n3} {
		eventually(t, n.name+" says why it went back", func() bool {
			return why.MatchString(n.must("site", "history", "--dir", n.data()))
		})
		head := n.head()
		if head.Text != before.Text || head.Parent != bad.ID {
			t.Errorf("%s has %s, made from %s, with the text\n%s", n.name, head, head.Parent, head.Text)
		}
		eventually(t, n.name+" serves what it has gone back to", func() bool { return n.serves(head.ID) })
	}
	if st := n1.status(); st.View.Node("n2").State != balancing.Sick {
		t.Errorf("n2 is %s to n1 while its server is frozen", st.View.Node("n2").State)
	}

	thaw()
	g.awaitSame()
	if back := n2.head(); back.ID != n1.head().ID || !n2.serves(back.ID) {
		t.Errorf("n2 has %s, n1 has %s", back, n1.head())
	}
	if st := n2.status(); st.ServerPID != server {
		t.Error("n2 has another server")
	}
	n2.apply(func(text string) string { return withRequests(text, 78) }) // the site takes changes as before
	g.awaitSame()
}

// damage kills the node and spoils its cluster database; it returns what is on the disk then.
func (n *grownNode) damage(spoil func([]byte) []byte) []byte {
	n.t.Helper()
	n.kill()
	path := filepath.Join(n.data(), "cluster.db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	eventually(n.t, "the server of "+n.name+" has ended", func() bool {
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	})
	b, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	b = spoil(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return b
}

// flipped spoils every page that has something of a revision: the one in use among them.
func flipped(id revision.ID) func([]byte) []byte {
	return func(b []byte) []byte {
		b = bytes.Clone(b)
		mark := []byte("rev/" + string(id))
		for at := 0; ; {
			i := bytes.Index(b[at:], mark)
			if i < 0 {
				return b
			}
			at += i + len(mark)
			b[at] ^= 0x10
		}
	}
}

// putAside looks whether the node has kept the damaged file, and says where in its log.
func (n *grownNode) putAside(damaged []byte) {
	n.t.Helper()
	path := filepath.Join(n.data(), "cluster.db.damaged")
	if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, damaged) {
		n.t.Errorf("%s has not kept the damaged file as it was: %v", n.name, err)
	}
	said := regexp.MustCompile(`(?m)^.*ERROR.*cluster database is damaged.*` + regexp.QuoteMeta(path))
	if !said.MatchString(readFile(n.t, filepath.Join(n.dir, "node.log"))) {
		n.t.Errorf("the log of %s does not say that the cluster database is damaged", n.name)
	}
}

// TestClusterDatabaseIsDamaged has nodes find their cluster database spoilt when they start:
// they get back from their peers what was in it. One that has no peer goes by the site
// document that lies on its disk.
func TestClusterDatabaseIsDamaged(t *testing.T) {
	g := newSwift(t, 3)
	n1, n2, n3 := g.nodes[0], g.nodes[1], g.nodes[2]
	g.token() // so that there is something in each table
	n1.must("key", "rotate", "--dir", n1.data())
	last := n1.apply(func(text string) string { return withRequests(text, 77) })
	g.awaitSame()
	revisions := g.revisions()

	// All but one: a file of garbage, and one that was cut.
	garbage := n2.damage(func(b []byte) []byte { return bytes.Repeat([]byte("garbage "), len(b)/8) })
	cut := n3.damage(func(b []byte) []byte { return b[:len(b)/2] })
	n2.start()
	n3.start()
	g.awaitSame()
	n2.putAside(garbage)
	n3.putAside(cut)

	// A page with a bit that has changed.
	page := n2.damage(flipped(last.ID))
	n2.start()
	g.awaitSame()
	n2.putAside(page)
	if now := g.revisions(); !slices.Equal(now, revisions) {
		t.Errorf("the history was\n%s\nand is now\n%s", strings.Join(revisions, "\n"), strings.Join(now, "\n"))
	}

	// Nobody to ask: with all others off, two of three have lost everything.
	n1.kill()
	n2.damage(func(b []byte) []byte { return b[:5000] })
	n3.damage(func([]byte) []byte { return nil })
	text := n3.siteFile()
	n3.start()
	eventually(t, "n3 serves what it last served", func() bool {
		st := n3.status()
		return st != nil && st.View.Me().State == balancing.OK && len(st.View.Me().Held) == 3 && st.Agreed.Document.Head != nil
	})
	if n3.siteFile() != text || n3.head().Text != text {
		t.Error("n3 does not go by the document that it had on its disk")
	}
	n3.apply(func(text string) string { return withRequests(text, 78) }) // alone, it can be changed
	n2.start()
	n1.start()
	g.awaitSame()
	if head := n3.head(); head.ID != last.ID {
		t.Errorf("all have %s, want %s, which has more revisions behind it", head, last)
	}
	if conflicts := n1.status().Agreed.Document.Conflicts; len(conflicts) != 1 || conflicts[0].Author != "op@n3" {
		t.Errorf("conflicts: %v, want the change that was made at n3 alone", conflicts)
	}
}

// revisions are those of the history of n1, and what became of them.
func (g *grown) revisions() (all []string) {
	g.t.Helper()
	history, err := g.nodes[0].client().History(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, e := range history {
		all = append(all, fmt.Sprint(&e.Revision, e.State))
	}
	return all
}
