package revision

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// network connects the tables of some nodes: what one has is merged by all that it can
// reach, a little later.
type network struct {
	t     *testing.T
	delay time.Duration

	mu    sync.Mutex
	nodes map[balancing.NodeID]*testNode
	side  map[balancing.NodeID]int // of a partition
}

// testNode is a node, and the Site of its agent. What its document says happens:
//
//	sick n2      n2 turns sick 2 s after it serves the document
//	hang n2      n2 does not pass its own check
//	break n2     n2 cannot apply it
//	refuse n2    n2 does not take it
type testNode struct {
	id    balancing.NodeID
	net   *network
	store *cluster.Store
	table *cluster.Table
	agent *Agent
	end   context.CancelFunc
	done  sync.WaitGroup

	// Guarded by net.mu.
	alive   bool
	text    string
	since   time.Time
	applied []string      // texts
	dies    string        // the process ends in Apply of a text that has it
	full    bool          // the disk is
	crammed bool          // the disk has room for a vote, but for no document
	hold    chan struct{} // Check waits until it is closed, if it is there
	unheard map[balancing.NodeID]time.Time
}

// deafFor is how long nothing must be heard of a peer for it to be gone.
const deafFor = 2 * time.Second

const firstText = "site: example\n# first\n"

func keyOf(id string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(id))
	return ed25519.NewKeyFromSeed(seed[:])
}

// verify knows all nodes that are called n1, n2 and so on.
func verify(signer string, msg, sig []byte) bool {
	return strings.HasPrefix(signer, "n") && ed25519.Verify(keyOf(signer).Public().(ed25519.PublicKey), msg, sig)
}

func newNetwork(t *testing.T, nodes int) *network {
	net := &network{t: t, delay: 2 * time.Millisecond, nodes: map[balancing.NodeID]*testNode{}, side: map[balancing.NodeID]int{}}
	for i := range nodes {
		net.start(balancing.NodeID(fmt.Sprintf("n%d", i+1)), nil, firstText)
	}
	t.Cleanup(net.stop)
	return net
}

func (net *network) stop() {
	for _, n := range net.nodes {
		n.kill()
	}
}

func newTable(t testing.TB, id string) (*cluster.Store, *cluster.Table) {
	t.Helper()
	return newTableThat(t, id, func() error { return nil })
}

// newTableThat returns a table that nothing can be written to while broken says so.
func newTableThat(t testing.TB, id string, broken func() error) (*cluster.Store, *cluster.Table) {
	t.Helper()
	store, err := cluster.OpenStore("")
	if err != nil {
		t.Fatal(err)
	}
	c := TableConfig("example", verify)
	vet := c.Check
	c.Check = func(key string, value []byte) error { return errors.Join(broken(), vet(key, value)) }
	table, err := store.Table(id, c)
	if err != nil {
		t.Fatal(err)
	}
	return store, table
}

// start starts a node with what it had stored.
func (net *network) start(id balancing.NodeID, stored [][]byte, text string) *testNode {
	n := &testNode{id: id, net: net, alive: true, text: text, since: time.Now(), unheard: map[balancing.NodeID]time.Time{}}
	n.store, n.table = newTableThat(net.t, string(id), func() error {
		net.mu.Lock()
		defer net.mu.Unlock()
		if n.full {
			return errors.New("no space left on device")
		}
		return nil
	})
	for _, part := range stored {
		if _, err := n.table.Merge(part); err != nil {
			net.t.Fatal(err)
		}
	}
	news := n.table.Watch()
	n.agent = New(Config{
		Self: id, Name: "example", Table: n.table, Clock: n.store.Clock(), Site: n, Running: text, Log: slog.New(slog.DiscardHandler),
		Sign: func(msg []byte) []byte { return ed25519.Sign(keyOf(string(id)), msg) },
	})
	if err := n.agent.Import(text); err != nil {
		net.t.Fatal(err)
	}
	var ctx context.Context
	ctx, n.end = context.WithCancel(context.Background())
	net.mu.Lock()
	net.nodes[id] = n
	net.mu.Unlock()
	n.done.Go(func() { n.agent.Run(ctx) })
	n.done.Go(func() { net.carry(ctx, n, news) })
	net.exchange(n)
	return n
}

// carry has the other nodes merge what n has, after each change.
func (net *network) carry(ctx context.Context, n *testNode, news <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
		time.Sleep(net.delay)
		parts := n.table.Snapshot()
		for _, p := range net.peers(n) {
			p.merge(parts)
		}
	}
}

func (n *testNode) merge(parts [][]byte) {
	for _, part := range parts {
		if _, err := n.table.Merge(part); err != nil && !errors.Is(err, cluster.ErrContent) {
			n.net.t.Error(err)
		}
	}
}

// exchange is the anti-entropy of a node that comes back.
func (net *network) exchange(n *testNode) {
	for _, p := range net.peers(n) {
		n.merge(p.table.Snapshot())
		p.merge(n.table.Snapshot())
	}
}

// peers returns the nodes that n can reach.
func (net *network) peers(n *testNode) []*testNode {
	net.mu.Lock()
	defer net.mu.Unlock()
	var ps []*testNode
	for _, p := range net.nodes {
		if p != n && n.alive && p.alive && net.side[p.id] == net.side[n.id] {
			ps = append(ps, p)
		}
	}
	return ps
}

// part cuts the network; the nodes named are on the other side.
func (net *network) part(ids ...balancing.NodeID) {
	net.mu.Lock()
	defer net.mu.Unlock()
	for _, id := range ids {
		net.side[id] = 1
	}
}

func (net *network) heal() {
	net.mu.Lock()
	clear(net.side)
	net.mu.Unlock()
	for _, n := range net.nodes {
		net.exchange(n)
	}
}

// kill ends a node, and returns what it had stored at that moment.
func (n *testNode) kill() [][]byte {
	n.net.mu.Lock()
	n.alive = false
	n.net.mu.Unlock()
	stored := n.table.Snapshot()
	n.end()
	n.done.Wait()
	return stored
}

func (n *testNode) Check(text string) error {
	n.net.mu.Lock()
	hold := n.hold
	n.net.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if strings.Contains(text, "refuse "+string(n.id)) {
		return fmt.Errorf("site.yaml:7:3: nodes.%s: no such interface", n.id)
	}
	return nil
}

func (n *testNode) Room(string) error {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if n.full || n.crammed {
		return errors.New("write /data/room: no space left on device")
	}
	return nil
}

func (n *testNode) Gone(id balancing.NodeID) bool {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	p := n.net.nodes[id]
	if p != nil && p.alive && n.alive && n.net.side[id] == n.net.side[n.id] {
		delete(n.unheard, id)
		return false
	}
	if n.unheard[id].IsZero() {
		n.unheard[id] = time.Now()
	}
	return time.Since(n.unheard[id]) >= deafFor
}

func (n *testNode) Apply(ctx context.Context, r *Revision) error {
	n.net.mu.Lock()
	dies := n.dies != "" && strings.Contains(r.Text, n.dies)
	n.net.mu.Unlock()
	if dies {
		n.net.mu.Lock()
		n.alive = false
		n.net.mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Millisecond):
	}
	if strings.Contains(r.Text, "break "+string(n.id)) {
		return errors.New("open /srv/www: no such directory")
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.text, n.since = r.Text, time.Now()
	n.applied = append(n.applied, r.Text)
	return nil
}

func (n *testNode) Live() []balancing.NodeID {
	var ids []balancing.NodeID
	for _, p := range n.net.peers(n) {
		ids = append(ids, p.id)
	}
	return ids
}

func (n *testNode) Well(id balancing.NodeID) bool {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	p := n.net.nodes[id]
	return p != nil && p.alive && n.net.side[id] == n.net.side[n.id] &&
		!(strings.Contains(p.text, "sick "+string(id)) && time.Since(p.since) > 2*time.Second)
}

func (n *testNode) Settled() bool {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	return time.Since(n.since) > 50*time.Millisecond && !strings.Contains(n.text, "hang "+string(n.id))
}

// serving returns the text that n serves.
func (n *testNode) serving() string {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	return n.text
}

// apply applies a text on a node.
func (net *network) apply(id balancing.NodeID, text string, o Options) (*Revision, error) {
	o.Author = "alice@" + string(id)
	return net.nodes[id].agent.Apply(context.Background(), text, o, nil)
}

// mustApply applies a text that must be taken.
func (net *network) mustApply(id balancing.NodeID, text string, o Options) *Revision {
	net.t.Helper()
	r, err := net.apply(id, text, o)
	if err != nil {
		net.t.Fatalf("apply %q on %s: %v", text, id, err)
	}
	return r
}

// want checks what every node that is alive serves, and that all have the same table and
// head.
func (net *network) want(text string) {
	net.t.Helper()
	synctest.Wait()
	var head *Revision
	var digest [32]byte
	for id, n := range net.nodes {
		if !n.alive {
			continue
		}
		if got := n.serving(); got != text {
			net.t.Errorf("%s serves %q, want %q; %+v", id, got, text, n.agent.Status())
		}
		r := n.agent.Head()
		if head == nil {
			head, digest = r, n.table.Digest()
		}
		if r == nil || r.ID != head.ID || r.Text != text || n.table.Digest() != digest {
			net.t.Errorf("%s has head %v, another has %v; want the text %q", id, r, head, text)
		}
	}
}

// inBubble runs f with a network of some nodes that have started.
func inBubble(t *testing.T, nodes int, f func(t *testing.T, net *network)) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, nodes)
		time.Sleep(time.Second)
		f(t, net)
		net.stop()
	})
}
