package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/state"
)

// belong makes the node one of its site: it waits for what the peers know, makes itself
// known, and follows the site document. It ends with ctx.
func (s *server) belong(ctx context.Context) error {
	m := s.member
	select {
	case <-ctx.Done():
		return nil
	case <-m.cluster.Synced():
	}
	err := s.enter(ctx)
	if errors.Is(err, membership.ErrRemoved) {
		s.log.Error("node is no member of its site", "err", err)
		if err := s.wish(ctx, change{Leave: err.Error()}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	edited, base := s.edited()
	var all sync.WaitGroup
	all.Go(func() { s.awaitHead(ctx) })
	if err != nil {
		all.Go(func() { s.enterLater(ctx) })
	}
	if edited {
		all.Go(func() { s.offerEdited(ctx, base) })
	}
	err = m.agent.Run(ctx)
	all.Wait()
	return err
}

// enter makes this node known to the site, and its document the first of a new one.
func (s *server) enter(ctx context.Context) error {
	m := s.member
	_, had := m.registry.Member(s.nodeFile.Name)
	err := m.registry.Register(shortVersion())
	if err == nil && !had {
		s.pushMembers(ctx) // else the peers would refuse what this node signs next
	}
	if err == nil {
		err = m.agent.Import(s.running)
	}
	m.setTrouble(err)
	if err != nil {
		s.log.Error("node is not taken for one of its site", "err", err)
	}
	return err
}

// enterEvery is the pause before a node that could not make itself known tries again: its
// clock is not set yet, or its disk is full.
const enterEvery = 10 * time.Second

// enterLater enters as soon as that can be.
func (s *server) enterLater(ctx context.Context) {
	tick := time.NewTicker(enterEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.enter(ctx) == nil {
				return
			}
		}
	}
}

// awaitHead lets the node serve once it serves what the site does; if it cannot, with what
// it has.
func (s *server) awaitHead(ctx context.Context) {
	defer close(s.member.ready)
	changed := s.member.agent.Changed()
	limit := time.NewTimer(headWithin)
	defer limit.Stop()
	for {
		if st := s.member.agent.Status(); st.Head != nil && st.Running == st.Head.ID || st.Trouble != "" {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-changed:
		}
	}
}

// headWithin is how long a node that starts waits to serve the newest document.
const headWithin = 3 * time.Second

// editedFile is where a document is put that was edited by hand.
const editedFile = "site.edited.yaml"

// edited reports whether the site has never known the document that the node has started
// with, for somebody has edited the file, and returns the revision that this node served
// before.
func (s *server) edited() (bool, revision.ID) {
	agent := s.member.agent
	for _, e := range agent.History() {
		if r, err := agent.Get(string(e.ID)); err == nil && r.Text == s.running {
			return false, ""
		}
	}
	for _, n := range agent.Status().Nodes {
		if n.Node == s.nodeFile.Name {
			return true, n.ID
		}
	}
	return true, ""
}

// offerEdited applies the document that was edited by hand, as if by 'peerage site apply':
// if nobody has changed it meanwhile. Else it is put aside.
func (s *server) offerEdited(ctx context.Context, base revision.ID) {
	// First of all, for the file will be written over.
	path := filepath.Join(s.nodeFile.DataDir, editedFile)
	if err := state.Replace(path, []byte(s.running), 0o644); err != nil {
		s.log.Error("edited site document not kept", "err", err)
	}
	agent := s.member.agent
	err := s.awaitWell(ctx)
	if head := agent.Head(); err == nil && (head == nil || head.ID != base) {
		err = errors.New("the site has changed it too, since this node has gone")
	}
	if err == nil {
		_, err = agent.Apply(ctx, s.running, revision.Options{Base: base, Author: s.author("file"), Comment: "site.yaml was edited by hand"}, func(revision.Event) {})
	}
	if head := agent.Head(); head != nil && head.Text == s.running {
		err = nil // done, if not here then at another node with the same file
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Warn("site document was edited by hand, and does not count; apply it with 'peerage site apply'", "file", path, "err", err)
	default:
		os.Remove(path)
		s.log.Info("site document that was edited by hand is in force")
	}
}

// awaitWell waits until this node serves.
func (s *server) awaitWell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !(agentSite{s}).Well(s.nodeFile.Name) {
		select {
		case <-ctx.Done():
			return errors.New("this node does not serve yet")
		case <-tick.C:
		}
	}
	return nil
}
