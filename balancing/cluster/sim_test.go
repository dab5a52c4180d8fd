package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// network carries packets and streams between members in memory. It never blocks for a peer
// that does not listen.
type network struct {
	mu    sync.Mutex
	ends  map[string]*end
	group map[string]int // members of different groups do not hear each other
	loss  atomic.Int32   // per cent of the packets
	seen  func([]byte)   // each packet
}

// end is a member's transport.
type end struct {
	net     *network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
}

const latency = time.Millisecond

var errNoRoute = errors.New("no route to host")

func (n *network) open(addr netip.AddrPort) *end {
	e := &end{n, addr, make(chan *memberlist.Packet, 1024), make(chan net.Conn, 256), make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[addr.String()] = e
	return e
}

// reach returns the end at an address if e can reach it.
func (e *end) reach(addr string) *end {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	to := e.net.ends[addr]
	if to == nil || e.net.ends[e.addr.String()] != e || e.net.group[addr] != e.net.group[e.addr.String()] {
		return nil
	}
	return to
}

func (e *end) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return e.addr.Addr().AsSlice(), int(e.addr.Port()), nil
}

func (e *end) WriteTo(b []byte, addr string) (time.Time, error) {
	b = slices.Clone(b)
	if e.net.seen != nil {
		e.net.seen(b)
	}
	if to := e.reach(addr); to != nil && rand.Int32N(100) >= e.net.loss.Load() {
		time.AfterFunc(latency, func() {
			select {
			case to.packets <- &memberlist.Packet{Buf: b, From: net.UDPAddrFromAddrPort(e.addr), Timestamp: time.Now()}:
			default:
			}
		})
	}
	return time.Now(), nil
}

func (e *end) PacketCh() <-chan *memberlist.Packet { return e.packets }
func (e *end) StreamCh() <-chan net.Conn           { return e.streams }

func (e *end) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to := e.reach(addr)
	if to == nil {
		select {
		case <-time.After(timeout):
		case <-e.done:
		}
		return nil, errNoRoute
	}
	here, there := net.Pipe()
	select {
	case to.streams <- address{there, e.addr}:
		return address{here, to.addr}, nil
	default:
		return nil, errNoRoute
	}
}

// address is a connection with the address of its other end.
type address struct {
	net.Conn
	remote netip.AddrPort
}

func (a address) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(a.remote) }

func (e *end) Shutdown() error {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	if e.net.ends[e.addr.String()] == e {
		delete(e.net.ends, e.addr.String())
	}
	close(e.done)
	for {
		select {
		case c := <-e.streams:
			c.Close()
		default:
			return nil
		}
	}
}

// cluster is members on one network, in a bubble.
type cluster struct {
	t     *testing.T
	net   *network
	nodes map[string]*simNode
	seeds []netip.AddrPort
	log   *slog.Logger
	life  time.Duration
	check func(node, key string) error
}

type simNode struct {
	name   string
	store  *Store
	table  *Table
	member *Member
	addr   netip.AddrPort
	stop   func()
}

var testKey = [32]byte{1, 2, 3}

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{
		t: t, net: &network{ends: map[string]*end{}, group: map[string]int{}}, nodes: map[string]*simNode{},
		log: slog.New(slog.DiscardHandler), life: time.Hour,
		check: func(string, string) error { return nil },
	}
	for i := range n {
		c.seeds = append(c.seeds, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 7946))
	}
	return c
}

// start starts node i with a store; nil for a new one.
func (c *cluster) start(i int, store *Store, change ...func(*Config)) *simNode {
	c.t.Helper()
	seeds := c.seeds
	if store == nil {
		store, _ = OpenStore("")
	}
	n := &simNode{name: fmt.Sprintf("node%d", i+1), store: store, addr: c.seeds[i]}
	if n.table = store.tables["test"]; n.table == nil {
		var err error
		if n.table, err = store.Table(n.name, TableConfig{
			Name: "test", TombstoneLife: c.life,
			Check: func(key string, _ []byte) error { return c.check(n.name, key) },
		}); err != nil {
			c.t.Fatal(err)
		}
	}
	conf := Config{
		Self: n.name, Bind: n.addr, Site: "site", Keys: [][32]byte{testKey}, Version: "1.2.3",
		Seeds: func() []netip.AddrPort { return seeds },
		Store: store, Documents: []Document{n.table}, Log: c.log, Transport: c.net.open(n.addr),
	}
	for _, f := range change {
		f(&conf)
	}
	var err error
	if n.member, err = New(conf); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.member.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("%s: %v", n.name, err)
		}
	})
	c.nodes[n.name] = n
	return n
}

// startAll starts all nodes at once.
func (c *cluster) startAll() []*simNode {
	var all []*simNode
	for i := range c.seeds {
		all = append(all, c.start(i, nil))
	}
	return all
}

func (c *cluster) stopAll() {
	var stopping sync.WaitGroup
	for _, n := range c.nodes {
		stopping.Go(n.stop)
	}
	stopping.Wait()
	// Probes of memberlist that are on their way end with their own time only.
	time.Sleep(time.Minute)
}

// kill cuts a node off at once, and then stops it.
func (c *cluster) kill(n *simNode) {
	c.net.mu.Lock()
	delete(c.net.ends, n.addr.String())
	c.net.mu.Unlock()
	n.stop()
	delete(c.nodes, n.name)
}

// partition puts each node into a group.
func (c *cluster) partition(group func(i int) int) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for i, a := range c.seeds {
		c.net.group[a.String()] = group(i)
	}
}

func whole(int) int { return 0 }

// converge waits until all nodes have the same, and returns how long that took.
func (c *cluster) converge(within time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		same := true
		var first *simNode
		for _, n := range c.nodes {
			if first == nil {
				first = n
			}
			same = same && n.table.Digest() == first.table.Digest()
		}
		took := time.Since(start)
		if same {
			return took
		}
		if took > within {
			for _, n := range c.nodes {
				c.t.Logf("%s has %.200q, sees %d, %+v", n.name, live(n.table), len(n.member.alive()), n.member.Counters())
			}
			c.t.Fatalf("no convergence within %v", within)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// members waits until each node sees n others alive.
func (c *cluster) members(n int, within time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		same := true
		for _, node := range c.nodes {
			same = same && len(node.member.alive()) == n
		}
		took := time.Since(start)
		if same {
			return took
		}
		if took > within {
			c.t.Fatalf("not all see %d others within %v", n, within)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestEightMembersConvergeAndLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8)
		all := c.startAll()
		defer c.stopAll()
		<-all[7].member.Synced()
		t.Logf("all members after %v", c.members(7, 10*time.Second))
		put(t, all[0].table, "small", "v")
		if took := c.converge(time.Second); took > 200*time.Millisecond {
			t.Errorf("a small change took %v", took)
		}
		put(t, all[3].table, "large", strings.Repeat("v", 1<<20))
		if took := c.converge(time.Second); took > 200*time.Millisecond {
			t.Errorf("a large change took %v", took)
		}
		all[2].stop()
		delete(c.nodes, "node3")
		c.kill(all[4])
		t.Logf("two gone after %v", c.members(5, 30*time.Second))
		for _, i := range all[0].member.Members() {
			want := map[string]State{"node3": Left, "node5": Dead}[i.Name]
			if want == 0 {
				want = Alive
			}
			if i.State != want || i.Version != "1.2.3" || !i.Address.IsValid() || i.Heard.IsZero() || i.Skew.Abs() > time.Second {
				t.Errorf("member: %+v, want %v", i, want)
			}
		}
		// One that lost everything comes back.
		c.start(4, nil)
		c.members(6, 20*time.Second)
		t.Logf("one came back empty, and has all %v later", c.converge(10*time.Second))
	})
}

func TestLostPacketsDelayAndDoNotDivide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 6)
		all := c.startAll()
		defer c.stopAll()
		c.members(5, 10*time.Second)
		c.net.loss.Store(40)
		for i := range 50 {
			put(t, all[i%6].table, fmt.Sprintf("k%d", i), "v")
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("converged after %v with 40%% of the packets lost", c.converge(15*time.Second))
	})
}

func TestPushWaitsForAllLivePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		c.check = func(node, key string) error {
			if node == "node3" && key == "bad" {
				return errors.New("node3 does not like it")
			}
			return nil
		}
		all := c.startAll()
		defer c.stopAll()
		c.members(3, 10*time.Second)
		key := "k"
		push := func(value string, within time.Duration) ([]string, time.Duration) {
			put(t, all[0].table, key, value)
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			start := time.Now()
			return all[0].member.Push(ctx, "test", all[0].table.Encode(key)), time.Since(start)
		}
		for _, value := range []string{"small", strings.Repeat("large", 100_000)} {
			missing, took := push(value, 5*time.Second)
			if missing != nil || took > 100*time.Millisecond {
				t.Errorf("missing %v after %v", missing, took)
			}
			for _, n := range all {
				if i, _ := n.table.Get("k"); string(i.Value) != value {
					t.Errorf("%s does not have what it acknowledged", n.name)
				}
			}
		}
		c.net.loss.Store(50)
		if missing, took := push("lossy", 5*time.Second); missing != nil {
			t.Errorf("half of the packets lost: missing %v after %v", missing, took)
		}
		c.net.loss.Store(0)

		// One is cut off: it is waited for until it is found dead, or the time is over.
		c.partition(func(i int) int { return i / 3 })
		if missing, took := push("cut", time.Second); !slices.Equal(missing, []string{"node4"}) || took < time.Second-latency {
			t.Errorf("one cut off: missing %v after %v", missing, took)
		}
		c.partition(whole)
		c.converge(20 * time.Second)

		// One refuses.
		key = "bad"
		if missing, took := push("v", time.Second); !slices.Equal(missing, []string{"node3"}) || took > 100*time.Millisecond {
			t.Errorf("one refuses: missing %v after %v", missing, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if missing := all[0].member.Push(ctx, "unknown", nil); len(missing) != 3 {
			t.Errorf("an unknown document: missing %v", missing)
		}
		if got := all[2].member.Counters(); got.Content == 0 || got.Unknown == 0 {
			t.Errorf("counters: %+v", got)
		}
	})
}

func TestPushAsksThoseThatAreLiveByTheirReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		a := c.start(0, nil, func(c *Config) { c.Live = func() []string { return []string{"node2"} } })
		defer c.stopAll()
		time.Sleep(time.Second)
		put(t, a.table, "k", "v")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if missing := a.member.Push(ctx, "test", a.table.Encode("k")); !slices.Equal(missing, []string{"node2"}) {
			t.Errorf("missing %v, want node2", missing)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		pushed := make(chan []string, 1)
		go func() { pushed <- a.member.Push(ctx, "test", a.table.Encode("k")) }()
		time.Sleep(time.Second)
		c.start(1, nil)
		if missing := <-pushed; missing != nil {
			t.Errorf("it came up meanwhile: missing %v", missing)
		}
	})
}

// A node that comes back after its memory of what was deleted is over takes over the state
// of the others, and keeps only what it wrote itself after they parted.
func TestStaleNodeDoesNotResurrect(t *testing.T) {
	for _, ran := range []bool{false, true} {
		t.Run(fmt.Sprintf("ran meanwhile %v", ran), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				c.life = 10 * time.Minute
				all := c.startAll()
				defer c.stopAll()
				c.members(2, 10*time.Second)
				for _, key := range []string{"keep", "change", "delete"} {
					put(t, all[0].table, key, "old")
				}
				put(t, all[2].table, "mine", "old")
				c.converge(time.Second)
				time.Sleep(10 * time.Second)

				if ran {
					c.partition(func(i int) int { return i / 2 })
				} else {
					c.kill(all[2])
				}
				time.Sleep(time.Second)
				put(t, all[2].table, "own", "written alone")
				put(t, all[0].table, "change", "new")
				if err := errors.Join(all[0].table.Delete("delete"), all[1].table.Delete("mine")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Minute)
				if n := len(all[0].table.Encode("delete")); n != 1 {
					t.Fatal("the tombstone is still there")
				}
				if ran {
					if !all[2].member.Stale() {
						t.Error("a node that was alone for so long is not stale")
					}
					c.partition(whole)
				} else {
					n := c.start(2, all[2].store)
					time.Sleep(100 * time.Millisecond)
					if !n.member.Stale() && n.member.Counters().Resets == 0 {
						t.Error("a node that was away for so long is not stale")
					}
				}
				took := c.converge(40 * time.Second)
				want := "change=new keep=old own=written alone"
				for _, n := range c.nodes {
					if got := live(n.table); got != want {
						t.Errorf("%s has %q after %v, want %q", n.name, got, took, want)
					}
					if n.member.Stale() {
						t.Errorf("%s is still stale", n.name)
					}
				}
			})
		})
	}
}

// The disk of a node is that of an old backup, while its peer was all alone: that one knows
// better.
func TestTheOneThatRanTeachesTheOneThatDidNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.life = 10 * time.Minute
		all := c.startAll()
		defer c.stopAll()
		c.members(1, 10*time.Second)
		put(t, all[0].table, "a", "1")
		put(t, all[0].table, "b", "1")
		time.Sleep(10 * time.Second)
		c.kill(all[1])
		time.Sleep(time.Second)
		if err := all[0].table.Delete("a"); err != nil {
			t.Fatal(err)
		}
		put(t, all[0].table, "c", "1")
		time.Sleep(30 * time.Minute)
		c.start(1, all[1].store)
		c.converge(time.Minute)
		time.Sleep(time.Minute)
		for _, n := range c.nodes {
			if got, want := live(n.table), "b=1 c=1"; got != want || n.member.Stale() {
				t.Errorf("%s has %q, want %q, stale %v", n.name, got, want, n.member.Stale())
			}
		}
	})
}

// All were off for longer than tombstones last: nobody knows more, and nothing is lost.
func TestSiteThatWasOffForLongGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.life = 10 * time.Minute
		all := c.startAll()
		defer c.stopAll()
		c.members(2, 10*time.Second)
		put(t, all[0].table, "a", "1")
		c.converge(time.Second)
		for _, n := range all {
			c.kill(n)
		}
		put(t, all[1].table, "b", "1")
		time.Sleep(time.Hour)
		for i, n := range all {
			c.start(i, n.store)
		}
		time.Sleep(time.Minute)
		c.converge(10 * time.Second)
		for _, n := range c.nodes {
			if got, want := live(n.table), "a=1 b=1"; got != want || n.member.Stale() {
				t.Errorf("%s has %q, want %q, stale %v", n.name, got, want, n.member.Stale())
			}
		}
	})
}

// The first node of a site is alone for long, and then the second comes.
func TestNodeThatWasAloneIsNotStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.life = 10 * time.Minute
		var second atomic.Bool
		a := c.start(0, nil, func(conf *Config) {
			conf.Seeds = func() []netip.AddrPort {
				if second.Load() {
					return c.seeds
				}
				return nil
			}
		})
		defer c.stopAll()
		<-a.member.Synced()
		put(t, a.table, "a", "1")
		time.Sleep(time.Hour)
		second.Store(true)
		b := c.start(1, nil)
		<-b.member.Synced()
		c.converge(10 * time.Second)
		if got := live(b.table); got != "a=1" {
			t.Errorf("the second has %q", got)
		}
	})
}

func TestClockThatIsOffPoisonsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		all := c.startAll()
		defer c.stopAll()
		c.members(2, 10*time.Second)
		// The clock of a process cannot be set in a bubble; what comes from one that is off can.
		ahead := Item{Key: "k", Stamp: StampOf(time.Now().Add(time.Hour)), Node: "node2", Value: []byte("secret")}
		all[0].member.post(event{message: true, body: append(changeOf("node2", "test"), ahead.append([]byte{partVersion})...)})
		for _, from := range []string{"node2", "node3"} {
			for range 2 {
				all[0].member.post(event{message: true, body: stateOf(from, 0, fresh, time.Now().Add(time.Hour), nil)})
			}
		}
		all[0].member.post(event{}) // nothing
		synctest.Wait()
		if got := all[0].member.Counters().Clock; got != 1 {
			t.Errorf("%d parts refused, want 1", got)
		}
		if i := all[0].member.Members()[0]; i.Skew.Round(time.Second) != time.Hour {
			t.Errorf("skew: got %v", i.Skew)
		}
		all[0].member.skew(time.Now())
		err := all[0].table.Put("k", nil, time.Time{})
		if !errors.Is(err, ErrOwnClock) || !strings.Contains(err.Error(), "that of node3 is 1h0m0s ahead of it") {
			t.Errorf("own clock off: got %v", err)
		}
		time.Sleep(10 * time.Second) // the true states of the peers come in
		put(t, all[0].table, "k", "v")
	})
}

// A node has written with a clock that was a year ahead. When it is right again, nothing is
// lost, and the peers take what it writes.
func TestClockThatWasAheadIsMended(t *testing.T) {
	for _, peers := range []int{0, 1} {
		t.Run(fmt.Sprintf("peers=%d", peers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1+peers)
				store, table := openDisk(t, filepath.Join(t.TempDir(), "cluster.db"))
				store.Clock().set(StampOf(time.Now().Add(365 * 24 * time.Hour)))
				put(t, table, "a", "old")
				put(t, table, "b", "1")
				put(t, table, "a", "new")
				if err := table.Delete("b"); err != nil {
					t.Fatal(err)
				}
				n := c.start(0, store)
				for i := range peers {
					put(t, c.start(1+i, nil).table, "c", "1")
				}
				defer c.stopAll()
				time.Sleep(10 * time.Second)
				put(t, n.table, "d", "1")
				c.converge(time.Second)
				want := "a=new d=1"
				if peers > 0 {
					want = "a=new c=1 d=1"
				}
				for _, n := range c.nodes {
					if got := live(n.table); got != want {
						t.Errorf("%s has %q, want %q", n.name, got, want)
					}
				}
				if store.Clock().mark() > horizon() {
					t.Error("the clock is still ahead")
				}
			})
		})
	}
}

func TestMessagesThatCannotBeAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		a := c.start(0, nil, func(c *Config) { c.Allowed = func(name string) bool { return name != "node2" } })
		c.start(1, nil)
		defer c.stopAll()
		time.Sleep(10 * time.Second)
		if got := a.member.Members(); len(got) != 0 {
			t.Errorf("a stranger is a member: %v", got)
		}
		before := a.member.Counters()
		for _, b := range [][]byte{
			{},
			{9, 9},
			{envelopeVersion, 99},
			{envelopeVersion, byte(kindAck)},
			partOf("node2", 1, "test"), changeOf("node3", "other"), changeOf("node3", "test"), doneOf("node3", 1, "test", 3), wantOf("node3", 1, "other", 0),
		} {
			a.member.post(event{message: true, body: b})
		}
		synctest.Wait()
		got := a.member.Counters()
		if got.Malformed-before.Malformed != 3 || got.Unknown-before.Unknown != 4 || got.Strangers <= before.Strangers {
			t.Errorf("counters: got %+v, before %+v", got, before)
		}
	})
}

func TestSecondNodeOfANameIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs lockedBuffer
		c := newCluster(t, 3)
		c.log = slog.New(slog.NewTextHandler(&logs, nil))
		c.start(0, nil)
		defer c.stopAll()
		second := c.start(1, nil)
		c.members(1, 10*time.Second)
		twin := c.start(2, nil, func(c *Config) { c.Self = "node2" })
		time.Sleep(10 * time.Second)
		if got := strings.Count(logs.String(), "two nodes have one name"); got == 0 || got > 3 {
			t.Errorf("told %d times:\n%.2000s", got, logs.String())
		}
		if i := c.nodes["node1"].member.Members()[0]; i.Address != second.addr {
			t.Errorf("the twin has taken the place of the first: %v", i)
		}
		for _, n := range []*simNode{c.nodes["node1"], second, twin} {
			got := n.member.Conflicts()
			if len(got) != 1 || got[0].Name != "node2" || got[0].Known == got[0].Other {
				t.Errorf("%s at %v tells of %v", n.member.c.Self, n.addr, got)
			}
		}
		twin.stop()
		time.Sleep(conflictFor)
		if got := c.nodes["node1"].member.Conflicts(); len(got) > 0 {
			t.Errorf("the twin is gone, and it tells of %v", got)
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.String()
}

// An overflow of the queue drops what comes in; comparing digests makes it good.
func TestOverflowIsMadeGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		all := c.startAll()
		defer c.stopAll()
		c.members(1, 10*time.Second)
		for range maxEvents + 10 {
			all[1].member.events <- event{}
			if len(all[1].member.events) == cap(all[1].member.events) {
				break
			}
		}
		all[1].member.queued.Store(maxEventsOctets)
		put(t, all[0].table, "k", "v")
		time.Sleep(500 * time.Millisecond)
		if all[1].member.Counters().Dropped == 0 {
			t.Error("nothing was dropped")
		}
		all[1].member.queued.Store(0)
		c.converge(5 * time.Second)
	})
}

// No key of the site, no key and no value of a table is in the logs, nor readable on the wire.
func TestNothingSecretIsLoggedOrReadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs, wire lockedBuffer
		c := newCluster(t, 3)
		c.log = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.net.seen = func(b []byte) { wire.Write(b) }
		c.check = func(node, key string) error {
			if node == "node2" && key == "sesame-2" {
				return errors.New("sesame")
			}
			return nil
		}
		all := c.startAll()
		c.members(2, 10*time.Second)
		put(t, all[0].table, "sesame-key", "sesame-value")
		c.converge(time.Second)
		put(t, all[0].table, "sesame-2", "sesame-value")
		if err := all[2].member.SetKeys([][32]byte{{9}, testKey}); err != nil { // nobody else has it
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c.stopAll()
		for name, text := range map[string]string{"log": logs.String(), "wire": wire.String()} {
			if strings.Contains(text, "sesame") || strings.Contains(text, string(testKey[:])) || strings.Contains(text, "[1 2 3 ") {
				t.Errorf("the %s tells something secret", name)
			}
		}
		if !strings.Contains(logs.String(), "content of a peer is refused") || !strings.Contains(logs.String(), "msg=memberlist") {
			t.Error("the log lacks what it should have")
		}
	})
}
