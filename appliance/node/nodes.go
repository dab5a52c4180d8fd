package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/tls/certs"
)

// This file takes nodes out of the site and gives them other names; joinHandler lets them
// in.

var errNoHead = faultf(http.StatusServiceUnavailable, "this node has not heard of the site document yet; try again in a moment")

// headDocument returns the revision in force, and what it says.
func (s *server) headDocument() (*revision.Revision, *site.Document, error) {
	head := s.member.agent.Head()
	if head == nil {
		return nil, nil, errNoHead
	}
	doc, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(head.Text))
	return head, doc, err
}

// removeNode takes a node out of the site: out of its document, out of its members, and
// out of those who know the site key. If this node dies meanwhile, the others do the rest:
// see [membership.Rotation].
func (s *server) removeNode(ctx context.Context, c NodeChange, step func(Step)) (any, error) {
	if c.Name == s.nodeFile.Name {
		return nil, faultf(http.StatusBadRequest, "a node does not remove itself: run 'peerage leave' there")
	}
	if err := s.dropNode(ctx, c, step); err != nil {
		return nil, err
	}
	return s.forgetNode(ctx, c.Name, step)
}

// dropNode takes a node out of the site document, if it is there.
func (s *server) dropNode(ctx context.Context, c NodeChange, step func(Step)) error {
	m := s.member
	head, doc, err := s.headDocument()
	if err != nil {
		return err
	}
	if _, ok := doc.Nodes[c.Name]; !ok {
		if _, ok := m.registry.Member(c.Name); !ok {
			return faultf(http.StatusNotFound, "the site has no node %s; 'peerage status' lists its nodes", c.Name)
		}
		return nil
	}
	text, err := site.RemoveNode(head.Text, c.Name)
	if err != nil {
		return mostly(http.StatusConflict, err)
	}
	if err := m.registry.AnnounceRemoval(c.Name); err != nil {
		return err
	}
	_, err = m.agent.Apply(ctx, text, revision.Options{
		Base: head.ID, Author: s.author(c.User), Comment: fmt.Sprintf("%s is removed", c.Name),
	}, revisionSteps(step))
	if err != nil {
		return errors.Join(err, m.registry.RetractRemoval(c.Name))
	}
	if err := s.reorder(c.Name, ""); err != nil {
		s.log.Error("orders about the node are left", "peer", c.Name, "err", err)
	}
	return nil
}

// forgetNode takes a node out of the members, and replaces the site key. It is not left
// half done, whether somebody waits for it or not.
func (s *server) forgetNode(ctx context.Context, name balancing.NodeID, step func(Step)) (any, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	m := s.member
	if _, ok := m.registry.Member(name); ok {
		if err := m.registry.Remove(name); err != nil {
			return nil, err
		}
		s.pushMembers(ctx)
		step(Step{Text: fmt.Sprintf("%s is no member any more", name)})
	}
	st, err := s.rotate(ctx, Rotate{Force: true}, step)
	if err != nil {
		return nil, fmt.Errorf("%s is out of the site, but still knows the site key; the nodes replace it as soon as they can, 'peerage key status' shows it: %w", name, err)
	}
	return st, nil
}

// pushMembers waits until the live peers know of a change among the members.
func (s *server) pushMembers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, part := range s.member.members.Snapshot() {
		if missing := s.member.cluster.Push(ctx, s.member.members.Name(), part); len(missing) > 0 {
			s.log.Warn("members not known everywhere yet", "missing", missing)
		}
	}
}

// renameNode gives a node another name. It leaves for a moment, and comes back with it.
func (s *server) renameNode(ctx context.Context, c NodeChange, step func(Step)) (any, error) {
	m := s.member
	head, doc, err := s.headDocument()
	if err != nil {
		return nil, err
	}
	text, err := site.RenameNode(head.Text, c.Name, c.To)
	if _, ok := doc.Nodes[c.Name]; err != nil && !ok {
		return nil, mostly(http.StatusNotFound, err)
	} else if err != nil {
		return nil, mostly(http.StatusConflict, err)
	}
	if !s.takesPart(c.Name) {
		return nil, faultf(http.StatusServiceUnavailable, "%s is off-line, or has just started; a node can be renamed while it serves", c.Name)
	}
	if err := m.registry.Rename(c.Name, c.To); err != nil {
		return nil, err
	}
	s.pushMembers(ctx) // else the node would think that it was removed
	r, err := m.agent.Apply(ctx, text, revision.Options{
		Base: head.ID, Author: s.author(c.User), Comment: fmt.Sprintf("%s is called %s", c.Name, c.To),
		Canary: s.otherThan(c.Name),
	}, revisionSteps(step))
	if err != nil {
		return nil, errors.Join(err, m.registry.Rename(c.To, c.Name))
	}
	if err := s.reorder(c.Name, c.To); err != nil {
		s.log.Error("orders about the node keep its old name", "peer", c.Name, "err", err)
	}
	return brief(r, nil)
}

func (s *server) takesPart(name balancing.NodeID) bool {
	n := s.view.Load().Node(name)
	return n != nil && n.Serves()
}

// otherThan returns a live node that is not called name, this one if it is not, or "".
func (s *server) otherThan(name balancing.NodeID) balancing.NodeID {
	if s.nodeFile.Name != name {
		return s.nodeFile.Name
	}
	for _, p := range s.livePeers() {
		return p
	}
	return ""
}

const (
	// leavingPath is where a node asks a peer to take it out of the site.
	leavingPath = "/.peerage/leave"

	// leaveWithin is how long a node waits for that: a change of the document takes less.
	leaveWithin = time.Minute

	// leaveLook is the pause between two looks at whether it is done.
	leaveLook = 50 * time.Millisecond
)

// leave takes this node out of the site, and returns when the site document does not have
// it any more. A peer does it, for this node must not know the site key that comes next.
func (s *server) leave(ctx context.Context, _ NodeChange, step func(Step)) (any, error) {
	peers := s.livePeers()
	if len(peers) == 0 {
		return nil, faultf(http.StatusServiceUnavailable, "no peer is on-line that could take this node out of the site; the last node of a site is simply stopped")
	}
	peer, self := peers[0], s.nodeFile.Name
	ctx, cancel := context.WithTimeout(ctx, leaveWithin)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	step(Step{Text: fmt.Sprintf("asking %s to take %s out of the site", peer, self)})
	answers := make(chan answered, 1)
	asking.Go(func() { answers <- s.askToLeave(ctx, peer) })
	isNamed := s.ownNameWatch()
	tick := time.NewTicker(leaveLook)
	defer tick.Stop()
	for ctx.Err() == nil && isNamed() {
		select {
		case <-ctx.Done():
		case <-tick.C:
		case a := <-answers:
			switch {
			case a.done:
				return struct{}{}, nil
			case a.err == nil:
				step(Step{Text: fmt.Sprintf("%s is at it", peer)})
			case isNamed():
				return nil, fmt.Errorf("%s is still a node of the site: %w", self, a.err)
			}
		}
	}
	if isNamed() {
		return nil, faultf(http.StatusServiceUnavailable, "%s is still a node of the site, and %s has not said why; its log does. Try again", self, peer)
	}
	return struct{}{}, nil
}

// ownNameWatch returns a function that reports whether the site document has this node, as
// far as it has heard. It reads each document once.
func (s *server) ownNameWatch() func() bool {
	var seen revision.ID
	named := true
	return func() bool {
		if head := s.member.agent.Head(); head != nil && head.ID != seen {
			seen = head.ID
			if doc, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(head.Text)); err == nil {
				_, named = doc.Nodes[s.nodeFile.Name]
			}
		}
		return named
	}
}

// answered is what a peer has said to the wish to leave: that it is done, that it is not
// done yet, or why it cannot be.
type answered struct {
	done bool
	err  error
}

func (s *server) askToLeave(ctx context.Context, peer balancing.NodeID) answered {
	client, url := s.peerClient(peer)
	if client == nil {
		return answered{err: faultf(http.StatusServiceUnavailable, "the address of %s is not known yet; try again in a moment", peer)}
	}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+leavingPath, http.NoBody)
	if err != nil {
		return answered{err: err}
	}
	resp, err := client.Do(r)
	if err != nil {
		return answered{err: faultf(http.StatusServiceUnavailable, "ask %s: %w", peer, err)}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return answered{done: true}
	case http.StatusAccepted:
		return answered{}
	}
	why, _ := io.ReadAll(io.LimitReader(resp.Body, maxChange))
	return answered{err: faultf(resp.StatusCode, "%s: %s", peer, bytes.TrimSpace(why))}
}

// letLeave answers a peer that wants to leave, once the site document does not have it any
// more; or before, if that takes long. The rest is done after the answer.
func (s *server) letLeave(w http.ResponseWriter, r *http.Request) {
	name, ok := certs.PeerOf(r.TLS)
	dropped := make(chan error, 1)
	if !ok || !s.later(func(ctx context.Context) { s.seeOff(ctx, name, dropped) }) {
		http.Error(w, "too much to do; try again in a moment", http.StatusServiceUnavailable)
		return
	}
	select {
	case err := <-dropped:
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
		}
	case <-r.Context().Done():
		w.WriteHeader(http.StatusAccepted)
	}
}

// seeOff takes a node out of the site that has asked for it.
func (s *server) seeOff(ctx context.Context, name balancing.NodeID, dropped chan<- error) {
	err := s.dropNode(ctx, NodeChange{Name: name, User: string(name)}, func(Step) {})
	dropped <- err
	if err == nil {
		_, err = s.forgetNode(ctx, name, func(Step) {})
	}
	if err != nil {
		s.log.Error("node not taken out of the site", "peer", name, "err", err)
		return
	}
	s.log.Info("node taken out of the site", "peer", name)
}
