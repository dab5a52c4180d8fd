package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
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
	orders   *cluster.Table
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
	if m.orders = table(ordersTable); err != nil {
		return nil, err
	}
	m.tables = []cluster.Document{members, tokens, siteKeys, m.history, m.orders}
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
	for _, c := range m.cluster.Conflicts() {
		all = append(all, fmt.Sprintf("two nodes run as %s, at %v and %v: stop one of them; of a disk that was copied only one may run, and the other machine must join as a node of its own", c.Name, c.Known.Addr(), c.Other.Addr()))
	}
	return all
}
