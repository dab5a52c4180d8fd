package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/cluster"
)

// agentSite is the server as the agent of the site document changes it.
type agentSite struct{ s *server }

// Check looks at a document as this node would serve it. One that the node is not in is
// fine: it leaves then.
func (a agentSite) Check(text string) error {
	s := a.s
	// Not the name of the file: that still has what the site had before.
	doc, err := site.ParseDocument("site document", []byte(text))
	if err != nil {
		return err
	}
	if doc.Site != s.document().Site {
		return fmt.Errorf("the name of the site is %s and cannot be changed to %s: set up a new site", s.document().Site, doc.Site)
	}
	if _, ok := doc.Nodes[s.nodeFile.Name]; !ok {
		return nil
	}
	if err := suits(s.nodeFile, doc); err != nil {
		return err
	}
	s.turning.Lock()
	defer s.turning.Unlock()
	was := s.current.Load()
	g, err := newGeneration(s.nodeFile, doc, s.ring, was, s.log)
	if err != nil {
		return err
	}
	g.origins.closeAllBut(was.origins)
	return nil
}

// Room writes as much into the data directory as a document and what is said of it need, and
// takes it away again.
func (a agentSite) Room(text string) error {
	nf := a.s.nodeFile
	doc, err := site.ParseDocument("site document", []byte(text))
	if err != nil {
		return err
	}
	if _, ok := doc.Nodes[nf.Name]; !ok {
		return nil
	}
	// site.yaml has the document once more while it is replaced, and the database copies the
	// pages that it changes.
	if err := tryRoom(nf.DataDir, 2*len(text)+256<<10); err != nil {
		return fmt.Errorf("%s cannot store the document: %w\nmake room there; or stop that node, for while it is off-line the others can be changed, and it catches up when it is back", nf.Name, err)
	}
	return nil
}

// tryRoom says why a file of so many octets cannot be written to a directory.
func tryRoom(dir string, octets int) error {
	// A name that the next start removes, should the process die here (state.Open).
	f, err := os.CreateTemp(dir, ".room.partial-*")
	if err == nil {
		b := make([]byte, octets)
		rand.Read(b) // zeros would fit onto a disk that compresses
		_, err = f.Write(b)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok { // without the name
		return fmt.Errorf("write %d KiB to %s: %w", octets>>10, dir, e.Err)
	}
	return err
}

// Apply serves a document. A node that is not in it any more leaves, or comes back under
// the name that it was given.
func (a agentSite) Apply(ctx context.Context, r *revision.Revision) error {
	s := a.s
	doc, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(r.Text))
	if err != nil {
		return err
	}
	if _, ok := doc.Nodes[s.nodeFile.Name]; ok {
		return s.turnTo(ctx, r.Text, doc)
	}
	if name := s.member.registry.OwnName(doc.NodeIDs()); name != "" {
		return s.wish(ctx, change{Document: r.Text, Name: name})
	}
	return s.wish(ctx, change{Leave: fmt.Sprintf("%s by %s has no node %s", r, r.Author, s.nodeFile.Name)})
}

// Live leaves out who comes and who goes, but not who is sick: a change may be the reason.
func (a agentSite) Live() []balancing.NodeID {
	var all []balancing.NodeID
	for p := range a.s.view.Load().Peers() {
		if p.Serves() || p.Online && p.State == balancing.Sick {
			all = append(all, p.ID)
		}
	}
	return all
}

// Gone is a node whose guard is silent, and one whose server is: the guard says that it does
// not answer itself, and the gossip does not hear it either.
func (a agentSite) Gone(id balancing.NodeID) bool {
	n := a.s.view.Load().Node(id)
	if n == nil || !n.Online {
		return true
	}
	return !n.Serves() && !slices.ContainsFunc(a.s.member.cluster.Members(), func(i cluster.Info) bool {
		return i.Name == string(id) && (i.State == cluster.Alive || i.State == cluster.Suspect)
	})
}

func (a agentSite) Well(id balancing.NodeID) bool {
	n := a.s.view.Load().Node(id)
	return n != nil && n.Online && (n.State == balancing.OK || n.State == balancing.Degraded)
}

func (a agentSite) Settled() bool { return a.s.passed.Load() >= settledAfter }

// settledAfter self-checks say that a generation serves.
const settledAfter = 2
