package node

import (
	"context"
	"fmt"

	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
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

func (a agentSite) Well(id balancing.NodeID) bool {
	n := a.s.view.Load().Node(id)
	return n != nil && n.Online && (n.State == balancing.OK || n.State == balancing.Degraded)
}

func (a agentSite) Settled() bool { return a.s.passed.Load() >= settledAfter }

// settledAfter self-checks say that a generation serves.
const settledAfter = 2
