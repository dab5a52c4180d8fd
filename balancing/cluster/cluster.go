// Package cluster keeps what all nodes of a site must agree on the same on every node,
// without a central server: any node takes a change, and any minority goes on with what it
// knows. After a partition has healed, all come to the same state by themselves.
//
// Start with [Table], a map that is kept in the file of a [Store] and of which the latest
// write of each key counts, by the stamps of a hybrid logical clock. [Member] is this node's
// membership of the site: it tells the peers each change at once, and with one of them a
// second it compares digests and fetches what differs, so that nothing that was lost on the
// way stays lost. Who is there is found out by hashicorp/memberlist (SWIM, Das et al. 2002),
// and all traffic is sealed by it with keys of the site.
//
// Nothing of a key of the site, nor of a key or a value of a table, is ever in a log or an
// error. Nothing from the network can grow a node: tables, queues and messages are bounded.
//
// A node that was away, or restored from a backup, for longer than tombstones last may have
// what the others have deleted and forgotten. It must not teach: it takes over the state of
// a peer first. See [Member.Run].
//
// [Member.Run] owns all goroutines; one of them, which never waits for the network, owns the
// state of the exchange. A [Table] can be used with or without a Member.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// Document is a piece of replicated state. It must be safe for concurrent use.
type Document interface {
	// Name is the same on all nodes.
	Name() string

	// Digest is equal on two nodes if their states are. It must not wait for the disk.
	Digest() [32]byte

	// Snapshot returns the whole state, in parts of at most [MaxPart] octets, but that one
	// item may need more.
	Snapshot() [][]byte

	// Merge takes a part from a peer, and returns what of it was new here, durable by now;
	// nil for nothing. It must be commutative, associative and idempotent.
	Merge(part []byte) (news []byte, err error)
}

// What a [Table] can do beyond a Document.
type (
	follower interface{ follow(func(parts [][]byte)) }
	differ   interface {
		summary() []byte
		since(summary []byte) [][]byte
	}
	resetter interface {
		reset(parts [][]byte, keep time.Time) error
	}
)

// Bounds of a Member.
const (
	MaxDocuments = 32
	MaxKeys      = 8
)

// Config is what a Member needs.
type Config struct {
	Self     string         // name of this node
	Bind     netip.AddrPort // TCP and UDP; the peers must reach it
	Site     string         // two sites never mix, be their keys the same
	Keys     [][32]byte     // the first seals, all open; at most [MaxKeys]
	Distance Distance

	// Seeds tells where peers may be. It is asked at the start, and every few seconds for
	// those that are no members. No seeds means that this is the only node. Nil: none.
	Seeds func() []netip.AddrPort

	// Allowed reports whether a name is that of a node of the site. Nil: all are. It is
	// called while locks are held, must not block, and must not call the Member.
	Allowed func(name string) bool

	// Live are the peers that are on-line by their reports. [Member.Push] waits for them
	// and for those that memberlist finds alive. It must not call the Member. Nil: none.
	Live func() []string

	Version string // of the software, told to the peers; at most 64 octets
	Store   *Store
	// Documents in the order in which they are taken from a peer.
	Documents []Document
	Log       *slog.Logger

	// Transport for tests and simulations; nil: real sockets. The Member shuts it down.
	Transport memberlist.Transport
}

func (c *Config) check() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf("cluster: "+format, args...)) }
	if !validNode(c.Self) {
		problem("name of this node is not 1 to %d octets of printable ASCII without space", MaxNode)
	}
	if !c.Bind.IsValid() {
		problem("no address to bind")
	}
	if len(c.Site) == 0 || len(c.Site) > memberlist.LabelMaxSize {
		problem("name of the site has %d octets, want 1 to %d", len(c.Site), memberlist.LabelMaxSize)
	}
	if len(c.Version) > 64 {
		problem("version has %d octets, at most 64 are allowed", len(c.Version))
	}
	if err := checkRing(c.Keys); err != nil {
		errs = append(errs, err)
	}
	if c.Store == nil || c.Log == nil {
		problem("neither store nor log may be missing")
	}
	if len(c.Documents) > MaxDocuments {
		problem("%d documents, at most %d are allowed", len(c.Documents), MaxDocuments)
	}
	names := map[string]bool{}
	for _, d := range c.Documents {
		if !validNode(d.Name()) || names[d.Name()] {
			problem("name of document %q cannot be, or is there twice", d.Name())
		}
		names[d.Name()] = true
	}
	return errors.Join(errs...)
}

// State is what is known of whether a member is there.
type State uint8

const (
	Alive   State = iota + 1
	Suspect       // alive for memberlist, but the latest message could not be brought to it
	Dead          // does not answer
	Left          // has said that it leaves
)

var stateNames = [...]string{Alive: "alive", Suspect: "suspect", Dead: "dead", Left: "left"}

func (s State) String() string {
	if s < Alive || int(s) >= len(stateNames) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return stateNames[s]
}

// MarshalText writes the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's name.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("%q is not the state of a member", b)
	}
	*s = State(i)
	return nil
}

// Info is what is known of a member.
type Info struct {
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
	Version string         `json:"version"`
	State   State          `json:"state"`
	Skew    time.Duration  `json:"skew"`  // of its clock, positive if ahead of ours; too great by the time that a message takes
	Heard   time.Time      `json:"heard"` // when the latest message came in; zero for none yet
}

// peer is a member other than this node.
type peer struct {
	node  memberlist.Node // a copy
	state State
	since time.Time // of that state

	farewell bool // it has said that it leaves

	heard    time.Time
	skew     time.Duration
	measured bool // skew
	failed   bool // the latest reliable message could not be brought

	jobs    []job // to be sent reliably, in this order
	octets  int   // of them
	sending bool  // a goroutine sends them
}

// Member is this node's membership of its site.
type Member struct {
	c        Config
	docs     map[string]Document
	ring     *memberlist.Keyring
	ringLock sync.Mutex
	list     atomic.Pointer[memberlist.Memberlist] // nil before Run
	queue    *memberlist.TransmitLimitedQueue      // changes, while there are too many peers to tell each
	counters counters

	events chan event
	queued atomic.Int64 // octets in events

	synced chan struct{}
	once   sync.Once // closes it

	level atomic.Uint32 // see level
	blank atomic.Bool   // has never agreed with a peer

	mu        sync.Mutex
	peers     map[string]*peer
	conflicts map[string]Conflict // by name: of members, and of this node
	pushes    map[uint64]*push
	pushID    uint64
	ended     bool           // nothing is sent any more
	sending   sync.WaitGroup // added to under mu, and not when ended

	x exchange // belongs to the goroutine of run
}

// New returns a member that has not joined yet. It opens and starts nothing.
func New(c Config) (*Member, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Seeds == nil {
		c.Seeds = func() []netip.AddrPort { return nil }
	}
	if c.Allowed == nil {
		c.Allowed = func(string) bool { return true }
	}
	if c.Live == nil {
		c.Live = func() []string { return nil }
	}
	m := &Member{
		c: c, docs: map[string]Document{}, ring: newRing(c.Keys),
		events: make(chan event, maxEvents), synced: make(chan struct{}),
		peers: map[string]*peer{}, conflicts: map[string]Conflict{}, pushes: map[uint64]*push{},
		// So that an answer to an earlier start of this node is not taken for one to this.
		pushID: rand.Uint64(),
	}
	m.queue = &memberlist.TransmitLimitedQueue{NumNodes: func() int { return len(m.alive()) + 1 }, RetransmitMult: 4}
	for _, d := range c.Documents {
		m.docs[d.Name()] = d
		if f, ok := d.(follower); ok {
			f.follow(func(parts [][]byte) {
				for _, part := range parts {
					m.post(event{doc: d.Name(), body: part})
				}
			})
		}
	}
	m.x.init()
	return m, nil
}

// Run takes part in the site until ctx ends, and then leaves in order, within about 3 s.
//
// If this node has not agreed with a peer for nearly as long as tombstones last, it is
// stale: it sends nothing of its state until it has replaced it by that of a peer that is
// not, except for what it has written itself since it last agreed with one. If no such peer
// is found, it takes part as it is.
func (m *Member) Run(ctx context.Context) error {
	dials, hang := context.WithCancel(ctx)
	defer hang()
	if aside := m.c.Store.aside; aside != "" {
		m.c.Log.Error("cluster database is damaged and was put aside: the peers give back what it held", "file", aside)
	}
	conf, err := m.settings(dials)
	if err != nil {
		return fmt.Errorf("cluster on %v: %w", m.c.Bind, err)
	}
	m.begin(time.Now())
	list, err := memberlist.Create(conf)
	if err != nil {
		return fmt.Errorf("cluster on %v: %w", m.c.Bind, errors.Join(err, conf.Transport.Shutdown()))
	}
	m.list.Store(list)
	m.c.Log.Info("cluster joined", "addr", m.c.Bind, "site", m.c.Site)

	var running sync.WaitGroup
	running.Go(func() { m.join(ctx, list) })
	m.run(ctx)
	hang()
	m.broadcast(m.alive(), farewellTo(m.c.Self))
	// A peer that is not told sees a silent node die instead of one that left.
	if err := list.Leave(leaveWithin[m.c.Distance]); err != nil {
		m.c.Log.Debug("peers may not know that this node leaves", "err", err)
	}
	m.mu.Lock()
	m.ended = true
	for _, p := range m.peers {
		p.jobs, p.octets = nil, 0
	}
	m.mu.Unlock()
	err = list.Shutdown()
	m.sending.Wait()
	running.Wait()
	return err
}

// leaveWithin is for four rounds of gossip.
var leaveWithin = [...]time.Duration{LAN: time.Second, WAN: 2500 * time.Millisecond}

// Synced is closed after the first agreement with any peer, or if there are no seeds, or 3 s
// after the start.
func (m *Member) Synced() <-chan struct{} { return m.synced }

func (m *Member) setSynced() { m.once.Do(func() { close(m.synced) }) }

// Stale reports whether this node waits to replace its state by that of a peer.
func (m *Member) Stale() bool { return m.stage() != fresh }

func (m *Member) stage() level { return level(m.level.Load()) }

// Members returns what is known of the peers, sorted by name, without this node.
func (m *Member) Members() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Info, 0, len(m.peers))
	for name, p := range m.peers {
		if !m.c.Allowed(name) {
			continue
		}
		i := Info{Name: name, Address: addressOf(&p.node), Version: versionOf(p.node.Meta), State: p.state, Skew: p.skew, Heard: p.heard}
		if p.state == Alive && p.failed {
			i.State = Suspect
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// alive returns the names of the peers that are, in no order.
func (m *Member) alive() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(m.peers))
	for name, p := range m.peers {
		if p.state == Alive && m.c.Allowed(name) {
			names = append(names, name)
		}
	}
	return names
}

// some returns at most n peers that are alive, by chance.
func (m *Member) some(n int) []string {
	names := m.alive()
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names[:min(n, len(names))]
}

// join looks for peers that are no members yet, or no longer.
func (m *Member) join(ctx context.Context, list *memberlist.Memberlist) {
	const every = 3 * time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	for most := 8; ; most = 3 {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		var joining sync.WaitGroup
		for _, seed := range m.missing(most) {
			joining.Go(func() {
				if _, err := list.Join([]string{seed.String()}); err != nil {
					m.counters.unreached.Add(1)
				}
			})
		}
		joining.Wait()
		timer.Reset(every/2 + rand.N(every))
	}
}

// missing returns at most n seeds that are no members, by chance.
func (m *Member) missing(n int) []netip.AddrPort {
	seeds := m.seeds()
	m.mu.Lock()
	defer m.mu.Unlock()
	seeds = slices.DeleteFunc(seeds, func(a netip.AddrPort) bool {
		for _, p := range m.peers {
			if p.state == Alive && addressOf(&p.node) == a {
				return true
			}
		}
		return false
	})
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	return seeds[:min(n, len(seeds))]
}

// seeds without this node.
func (m *Member) seeds() []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(m.c.Seeds()), func(a netip.AddrPort) bool { return !a.IsValid() || a == m.c.Bind })
}
