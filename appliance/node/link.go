package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/setup"
	"peerage/appliance/site"
)

// joinHandler lets nodes in.
func (s *server) joinHandler() http.Handler {
	return membership.JoinHandler(membership.JoinConfig{
		Tokens: s.member.tokens, Registry: s.member.registry, CA: s.ca,
		Ring: s.member.rotation.RingForJoin, Admit: s.admit, Ready: s.member.cluster.Synced(), Log: s.log,
		Common: setup.Common{Listen: s.nodeFile.Listen, Group: s.nodeFile.Multicast.Group},
	})
}

// admit adds a node to the site document, and returns the document with it.
func (s *server) admit(ctx context.Context, n membership.NewNode) (string, error) {
	agent := s.member.agent
	head, doc, err := s.headDocument()
	if err != nil {
		return "", err
	}
	if was, ok := doc.Nodes[n.Name]; ok {
		if was.Address.IsValid() && was.Address != n.Address || len(n.VIPs) > 0 && !slices.Equal(was.VIPs, n.VIPs) {
			return "", fmt.Errorf("the site document has node %s with other addresses; remove it there, or join with those", n.Name)
		}
		return head.Text, nil
	}
	added := site.Node{Address: n.Address, Internal: n.Internal, VIPs: n.VIPs, Capacity: n.Capacity}
	if added.Capacity == 0 {
		added.Capacity = 1
	}
	text, err := site.AddNode(head.Text, n.Name, added)
	if err != nil {
		return "", fmt.Errorf("%w; or add the node, and what it needs, to the document by 'peerage site apply', and then let it join", err)
	}
	r, err := agent.Apply(ctx, text, revision.Options{
		Base: head.ID, Author: "join@" + string(s.nodeFile.Name), Comment: fmt.Sprintf("%s joins", n.Name),
	}, func(revision.Event) {})
	if err != nil {
		return "", err
	}
	return r.Text, nil
}

// peersHandler answers nodes over the link between them.
func (s *server) peersHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(membership.KeysPath, s.member.rotation.Handler())
	mux.HandleFunc("POST "+leavingPath, s.letLeave)
	return mux
}

// followMembers drops the links to nodes whose identity is another, until ctx ends.
func (s *server) followMembers(ctx context.Context) error {
	changed := s.member.registry.Watch()
	for {
		s.edge.SetPeers(s.document().NodeIDs())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
