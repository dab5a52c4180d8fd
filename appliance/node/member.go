package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/setup"
	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// dbFile holds, in the data directory, what the nodes of the site agree on.
const dbFile = "cluster.db"

// member is the server's part in what the site agrees on: the replicated tables and those
// who act on them.
type member struct {
	store    *cluster.Store
	cluster  *cluster.Member
	identity *membership.Identity
	registry *membership.Registry
	tokens   *membership.Tokens
	rotation *membership.Rotation
	members  *cluster.Table
	tables   []cluster.Document // all of them
	history  *cluster.Table
	agent    *revision.Agent

	ready chan struct{} // closed when this node knows what its peers know, and serves that

	mu      sync.Mutex
	trouble string                    // why the peers do not take this node for one of theirs, "" if they do
	refused map[balancing.NodeID]bool // peers that have refused it for its identity
}

// newMember opens the tables of the node and makes those who act on them. running is the
// text of the document that the guard goes by.
func (s *server) newMember(running string, ring *keys.Ring) (_ *member, err error) {
	nf := s.nodeFile
	key, err := state.LoadNodeKey(nf.DataDir)
	if err != nil {
		return nil, err
	}
	m := &member{ready: make(chan struct{}), refused: map[balancing.NodeID]bool{}}
	if m.identity, err = membership.NewIdentity(key); err != nil {
		return nil, err
	}
	if m.store, err = cluster.OpenStore(filepath.Join(nf.DataDir, dbFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.store.Close()
		}
	}()
	table := func(c cluster.TableConfig) *cluster.Table {
		if err != nil {
			return nil
		}
		var t *cluster.Table
		t, err = m.store.Table(string(nf.Name), c)
		return t
	}
	members, tokens, siteKeys := table(membership.MembersTable), table(membership.TokensTable), table(membership.KeysTable)
	if err != nil {
		return nil, err
	}
	m.members = members
	m.registry = membership.NewRegistry(members, nf.Name, m.identity)
	if m.history = table(revision.TableConfig(s.document().Site, m.registry.Verify)); err != nil {
		return nil, err
	}
	m.tables = []cluster.Document{members, tokens, siteKeys, m.history}
	m.tokens = membership.NewTokens(membership.TokensConfig{
		Self: nf.Name, Identity: m.identity, Table: tokens,
		Site: s.document().Site, Fingerprint: s.ca.Fingerprint(),
		Addresses: func() []netip.AddrPort {
			return []netip.AddrPort{netip.AddrPortFrom(nf.Address.Internal, nf.Listen.Relay)}
		},
	})
	m.agent = revision.New(revision.Config{
		Self: nf.Name, Name: s.document().Site, Table: m.history, Clock: m.store.Clock(),
		Site: agentSite{s}, Sign: m.identity.Sign, Running: running, Log: s.log,
	})
	m.cluster, err = cluster.New(cluster.Config{
		Self:      string(nf.Name),
		Bind:      netip.AddrPortFrom(nf.Address.Internal, nf.Listen.Gossip),
		Site:      s.document().Site,
		Keys:      gossipKeys(ring),
		Distance:  s.document().Cluster.Distance,
		Seeds:     s.seeds,
		Allowed:   s.belongs,
		Live:      func() []string { return names(s.livePeers()) },
		Version:   shortVersion(),
		Store:     m.store,
		Documents: m.tables,
		Log:       s.log,
	})
	if err != nil {
		return nil, err
	}
	m.rotation = membership.NewRotation(membership.RotationConfig{
		Self: nf.Name, Identity: m.identity, Registry: m.registry, Table: siteKeys, Ring: ring,
		StoreRing: s.storeRing,
		Live:      s.livePeers,
		Nodes:     func() []balancing.NodeID { return s.document().NodeIDs() },
		PinLife:   func() time.Duration { return pinLife(s.document()) },
		Peer:      s.peerClient,
		Refused:   m.setRefused,
		Ready:     m.cluster.Synced(),
		Log:       s.log,
	})
	return m, nil
}

// belongs reports whether a node is of the site: by the document, or still by its identity,
// so that a node that goes hears that it goes.
func (s *server) belongs(name string) bool {
	id := balancing.NodeID(name)
	if _, ok := s.document().Nodes[id]; ok {
		return true
	}
	_, ok := s.member.registry.Member(id)
	return ok || s.member.registry.Renamed(id)
}

func gossipKeys(ring *keys.Ring) [][32]byte { return ring.DeriveAll(keys.LabelGossip, "") }

func names(ids []balancing.NodeID) []string {
	var all []string
	for _, id := range ids {
		all = append(all, string(id))
	}
	return all
}

// maxPinLife bounds the life of pins that have none: of those who come back later than
// that after a rotation of the site key, the node is chosen anew.
const maxPinLife = 30 * 24 * time.Hour

// pinLife is how long a pin of the site can be good for.
func pinLife(doc *site.Document) time.Duration {
	var most time.Duration
	for _, r := range doc.Rules() {
		if st := r.Stateful; st != nil && (st.MaxLife == 0 || st.MaxLife > maxPinLife) {
			return maxPinLife
		} else if st != nil {
			most = max(most, st.MaxLife)
		}
	}
	return most
}

// seeds are where peers may be found: where they were heard, or where the document says.
func (s *server) seeds() []netip.AddrPort {
	var all []netip.AddrPort
	v := s.view.Load()
	for p := range v.Peers() {
		a := p.Internal
		if !a.IsValid() {
			a = p.Address
		}
		if a.IsValid() {
			all = append(all, netip.AddrPortFrom(a, s.nodeFile.Listen.Gossip))
		}
	}
	return all
}

// livePeers are the peers whose servers answer, by their reports.
func (s *server) livePeers() []balancing.NodeID {
	var all []balancing.NodeID
	for p := range s.view.Load().Peers() {
		if p.Serves() {
			all = append(all, p.ID)
		}
	}
	return all
}

// peerClient returns how to ask a peer over the link between nodes.
func (s *server) peerClient(peer balancing.NodeID) (*http.Client, string) {
	n := s.view.Load().Node(peer)
	if n == nil {
		return nil, ""
	}
	a := n.Internal
	if !a.IsValid() {
		a = n.Address
	}
	if !a.IsValid() {
		return nil, ""
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: s.relayClient(peer), DisableKeepAlives: true,
	}}, "https://" + netip.AddrPortFrom(a, s.nodeFile.Listen.Relay).String()
}

// storeRing has the whole node go by a ring of site keys; see [membership.RotationConfig].
func (s *server) storeRing(ctx context.Context, ring *keys.Ring) error {
	if err := s.turnToRing(ctx, ring); err != nil {
		return err
	}
	return s.member.cluster.SetKeys(gossipKeys(ring))
}

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

func (m *member) setRefused(by balancing.NodeID, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if refused {
		m.refused[by] = true
	} else {
		delete(m.refused, by)
	}
}

// isOut reports whether this node seems to have been removed from its site while it was
// away: no peer can be understood, and one that was reached has refused it. It must not take
// the VIPs of a site that goes on without it.
func (m *member) isOut() bool {
	m.mu.Lock()
	refused := len(m.refused) > 0
	m.mu.Unlock()
	return refused && !slices.ContainsFunc(m.cluster.Members(), func(i cluster.Info) bool { return i.State == cluster.Alive })
}

// isReady reports whether the node serves what its site does, as far as it can know.
func (m *member) isReady() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

func (m *member) setTrouble(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trouble = ""
	if err != nil {
		m.trouble = err.Error()
	}
}

// amiss says what an operator should see to.
func (m *member) amiss() []string {
	var all []string
	m.mu.Lock()
	if m.trouble != "" {
		all = append(all, "cluster: "+m.trouble)
	}
	m.mu.Unlock()
	if why := m.agent.Trouble(); why != "" {
		all = append(all, "site document: "+why)
	}
	return all
}

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
	head := agent.Head()
	if head == nil {
		return "", errNoHead
	}
	doc, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(head.Text))
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
	mux.HandleFunc("POST "+leavingPath, func(w http.ResponseWriter, r *http.Request) {
		name, ok := certs.PeerOf(r.TLS)
		if !ok || !s.letLeave(name) {
			http.Error(w, "too much to do", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
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
