package takeover_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"peerage/balancing"
	"peerage/takeover"
	"peerage/takeover/linktest"
)

var update = flag.Bool("update", false, "rewrite what the stories in testdata lead to")

// reportDelay is how long a node of the test does not know what another has reported.
const reportDelay = 10 * time.Millisecond

// cluster is a site whose nodes have a keeper each. What they report to hold reaches
// the others' views, and the story says everything else.
type cluster struct {
	t     *testing.T
	lan   *linktest.LAN
	hosts map[balancing.NodeID]*host

	mu    sync.Mutex
	nodes []balancing.Node
	rules takeover.Rules
	log   strings.Builder // of all keepers, since the last command
}

type host struct {
	cluster *cluster
	id      balancing.NodeID
	link    *linktest.Fake
	changed chan struct{}
	stop    func() // ends the keeper and waits for it; nil if there is none
	keeper  *takeover.Keeper
	dead    atomic.Bool  // what the keeper says does not count any more
	held    []netip.Addr // what it reports to hold; guarded by cluster.mu
	busy    []netip.Addr // by which clients wait for an answer; guarded by cluster.mu
	lapsed  atomic.Bool  // it has no right to hold anything
}

// Write takes a line of the keeper's log.
func (h *host) Write(line []byte) (int, error) {
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	if !h.dead.Load() {
		h.cluster.log.Write(line)
	}
	return len(line), nil
}

func newCluster(t *testing.T, nodes int) *cluster {
	c := &cluster{t: t, lan: linktest.NewLAN(60 * time.Millisecond), hosts: make(map[balancing.NodeID]*host)}
	for i := range nodes {
		id := balancing.NodeID(fmt.Sprint("n", i+1))
		c.nodes = append(c.nodes, balancing.Node{ID: id, Capacity: 1, Home: []netip.Addr{vipOf(i + 1)}})
		c.hosts[id] = &host{cluster: c, id: id, link: c.lan.Host(string(id)), changed: make(chan struct{}, 1)}
	}
	return c
}

// rule changes the rules that all keepers go by.
func (c *cluster) rule(change func(*takeover.Rules)) {
	c.mu.Lock()
	moved := maps.Clone(c.rules.Moved)
	change(&c.rules)
	if c.rules.Moved == nil {
		c.rules.Moved = moved
	}
	c.mu.Unlock()
	c.set("", nil)
}

// set changes what the site knows of a node.
func (c *cluster) set(id balancing.NodeID, change func(*balancing.Node)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = slices.Clone(c.nodes)
	for i := range c.nodes {
		if c.nodes[i].ID == id {
			change(&c.nodes[i])
		}
	}
	for _, h := range c.hosts {
		select {
		case h.changed <- struct{}{}:
		default:
		}
	}
}

func (c *cluster) view(self balancing.NodeID) *balancing.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &balancing.View{Self: self, Nodes: slices.Clone(c.nodes)}
	v.Me().Online = true
	return v
}

// start runs a keeper on a host whose node is in the given state.
func (c *cluster) start(h *host, state balancing.State) {
	c.set(h.id, func(n *balancing.Node) { n.Online, n.State, n.Held = true, state, nil })
	h.dead.Store(false)
	h.keeper = takeover.New(takeover.Config{
		Self: h.id, Link: h.link, Changed: h.changed,
		View: func() *balancing.View { return c.view(h.id) },
		Held: func(held []netip.Addr) {
			c.mu.Lock()
			h.held = held
			c.mu.Unlock()
			time.AfterFunc(reportDelay, func() {
				c.set(h.id, func(n *balancing.Node) { n.Held = h.held })
			})
		},
		Rules: func() takeover.Rules {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.rules
		},
		Vouch: func(context.Context, time.Duration) error {
			if h.lapsed.Load() {
				return errors.New("lapsed")
			}
			return nil
		},
		Leaving: func(vips []netip.Addr) []netip.Addr {
			c.mu.Lock()
			defer c.mu.Unlock()
			return h.busy
		},
		Log: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.String("node", string(h.id))
			}
			return a
		}})),
	})
	ctx, cancel := context.WithCancel(c.t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := h.keeper.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
	h.stop = func() {
		cancel()
		run.Wait()
		h.stop = nil
	}
}

// crash ends the keeper on the spot: it can do nothing more.
func (c *cluster) crash(h *host) {
	h.dead.Store(true)
	h.link.Crash()
	h.stop()
}

func (c *cluster) silence(h *host) {
	time.Sleep(2 * reportDelay) // so that nothing it said is still on its way
	c.set(h.id, func(n *balancing.Node) { n.Online = false })
}

func (c *cluster) stopAll() {
	for _, h := range c.hosts {
		if h.stop != nil {
			h.stop()
		}
	}
	time.Sleep(2 * reportDelay)
}

// do runs one line of a story.
func (c *cluster) do(line string) {
	f := strings.Fields(line)
	arg := func(i int) string {
		if i >= len(f) {
			c.t.Fatalf("%s: too few words", line)
		}
		return f[i]
	}
	switch arg(0) {
	case "wait":
		time.Sleep(c.duration(arg(1)))
		return
	case "gateway": // deaf|learns ADDR...: there are these
		c.lan.Gateway(arg(1) == "learns", c.addrs(f[2:])...)
		return
	case "partition": // POLICY
		c.rule(func(r *takeover.Rules) { c.check(r.Partition.UnmarshalText([]byte(arg(1)))) })
		synctest.Wait()
		return
	case "fence": // LEASE
		c.rule(func(r *takeover.Rules) { r.Lease = c.duration(arg(1)) })
		synctest.Wait()
		return
	case "grace": // TIME
		c.rule(func(r *takeover.Rules) { r.Grace = c.duration(arg(1)) })
		return
	case "move": // VIP [NODE]: an operator wants it there, or where it belongs
		c.rule(func(r *takeover.Rules) {
			r.Moved = map[netip.Addr]balancing.NodeID{}
			if len(f) > 2 {
				r.Moved[c.addrs(f[1:2])[0]] = balancing.NodeID(f[2])
			}
		})
		synctest.Wait()
		return
	}
	h := c.hosts[balancing.NodeID(arg(1))]
	if h == nil {
		c.t.Fatalf("%s: no such node", line)
	}
	switch f[0] {
	case "start": // NODE STATE: the keeper starts
		c.start(h, c.state(arg(2)))
	case "state": // NODE STATE: so the node says in its reports
		c.set(h.id, func(n *balancing.Node) { n.State = c.state(arg(2)) })
	case "stop": // NODE: the keeper is told to end
		h.stop()
	case "crash": // NODE: power loss
		c.crash(h)
	case "kill": // NODE: only the process dies, its addresses stay
		c.crash(h)
		h.link.Boot(c.vips()...)
	case "boot": // NODE: power is back
		h.link.Boot()
	case "silent": // NODE: its reports are missing
		c.silence(h)
	case "heard": // NODE: its reports are back
		c.set(h.id, func(n *balancing.Node) { n.Online = true })
	case "believe": // NODE VIP...: it reports to hold these, whatever it does
		c.set(h.id, func(n *balancing.Node) { n.Held = c.addrs(f[2:]) })
	case "put": // NODE VIP: somebody adds it by hand
		c.check(h.link.Add(context.Background(), c.addrs(f[2:])[0]))
	case "take": // NODE VIP: somebody removes it by hand
		c.check(h.link.Remove(context.Background(), c.addrs(f[2:])[0]))
	case "drop": // NODE: the site document gives it no VIPs any more
		c.set(h.id, func(n *balancing.Node) { n.Home = nil })
	case "unplug": // NODE: its interface is gone
		h.link.Crash()
	case "plug": // NODE: its interface is back, as it was
		h.link.Boot(c.vips()...)
	case "fail": // NODE [WHY]: what is done with an address fails
		if len(f) == 2 {
			h.link.Fail(nil)
		} else {
			h.link.Fail(errors.New(strings.Join(f[2:], " ")))
		}
	case "lapse": // NODE: it has no right to hold anything any more
		h.lapsed.Store(true)
	case "restore": // NODE: it has again
		h.lapsed.Store(false)
	case "busy": // NODE [VIP...]: clients wait for answers by these
		c.mu.Lock()
		h.busy = c.addrs(f[2:])
		c.mu.Unlock()
	case "see": // NODE VIP STATION: another station answers for it
		station, err := net.ParseMAC(arg(3))
		c.check(err)
		h.link.See(c.addrs(f[2:3])[0], station)
	case "status": // NODE: what the keeper shows
		for _, s := range h.keeper.Status().VIPs {
			fmt.Fprintf(h, "node=%s vip=%s planned=%s reason=%q held=%v err=%q\n", h.id, s.VIP, s.Planned, s.Reason, s.Held, s.Err)
		}
	default:
		c.t.Fatalf("%s: no such command", line)
	}
	synctest.Wait()
}

func (c *cluster) check(err error) {
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	c.check(err)
	return d
}

func (c *cluster) state(name string) (s balancing.State) {
	c.check(s.UnmarshalText([]byte(name)))
	return s
}

func (c *cluster) addrs(words []string) (addrs []netip.Addr) {
	for _, w := range words {
		addrs = append(addrs, netip.MustParseAddr(w))
	}
	return addrs
}

func (c *cluster) vips() (vips []netip.Addr) {
	for i := range len(c.hosts) {
		vips = append(vips, vipOf(i+1))
	}
	return vips
}

// tell runs a story and returns it with what happened after each line: on the network
// and in the logs of the keepers.
func (c *cluster) tell(story string) string {
	var b strings.Builder
	for line := range strings.Lines(story) {
		if strings.HasPrefix(line, "\t") || strings.TrimSpace(line) == "" {
			continue // of the last run
		}
		b.WriteString(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		c.do(line)
		c.mu.Lock()
		log := c.log.String()
		c.log.Reset()
		c.mu.Unlock()
		b.WriteString(tidy(c.lan.Transcript(), 2) + tidy(log, 1))
	}
	return b.String()
}

// tidy sorts lines by their first words: which of several nodes acts first in the same
// instant is left to chance. Lines that differ in the last word only become one.
func tidy(text string, words int) string {
	lines := slices.Collect(strings.Lines(text))
	slices.SortStableFunc(lines, func(a, b string) int {
		return slices.Compare(strings.Fields(a)[:words], strings.Fields(b)[:words])
	})
	var b strings.Builder
	last := ""
	for _, l := range lines {
		l = strings.TrimSuffix(l, "\n")
		cut := strings.LastIndexByte(l, ' ') + 1
		if l[:cut] == last {
			b.WriteString(" " + l[cut:])
			continue
		}
		if last != "" {
			b.WriteByte('\n')
		}
		b.WriteString("\t" + l)
		last = l[:cut]
	}
	if last != "" {
		b.WriteByte('\n')
	}
	return b.String()
}

func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("stories in testdata: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			story := string(archive.Files[0].Data)
			var got string
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				defer c.stopAll()
				got = c.tell(story)
			})
			if *update {
				archive.Files[0].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if got != story {
				t.Errorf("%s went otherwise (-update rewrites it):\ngot\n%swant\n%s", file, got, story)
			}
		})
	}
}

// Whatever happens to the nodes, they settle so that each VIP is held by the one node
// that the plan names.
func TestKeepersSettle(t *testing.T) {
	states := []balancing.State{balancing.Joining, balancing.OK, balancing.Degraded, balancing.Sick, balancing.Draining}
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			c := newCluster(t, 5)
			defer c.stopAll()
			for range 40 {
				h := c.hosts[balancing.NodeID(fmt.Sprint("n", 1+r.IntN(len(c.hosts))))]
				state := states[r.IntN(len(states))]
				switch {
				case h.stop == nil: // what it held may still be there
					h.link.Boot(c.vips()[:r.IntN(6)]...)
					c.start(h, state)
				case r.IntN(4) == 0:
					c.crash(h)
					c.silence(h)
				case r.IntN(4) == 0:
					h.stop()
					c.silence(h)
				default:
					c.set(h.id, func(n *balancing.Node) { n.State = state })
				}
				time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
				if r.IntN(4) == 0 {
					time.Sleep(time.Second)
					c.checkSettled(seed)
				}
			}
		})
	}
}

func (c *cluster) checkSettled(seed uint64) {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	v := &balancing.View{Nodes: c.nodes}
	c.mu.Unlock()
	for _, a := range takeover.Plan(v, nil) {
		want := []string{string(a.Node)}
		if a.Node == "" || a.Reason == takeover.ReasonWaiting {
			want = nil
		}
		if got := c.lan.Holders(a.VIP); !slices.Equal(got, want) {
			c.t.Fatalf("seed %d: holders of %s: got %v, want %v (%s); hosts:\n%snodes: %+v\n%s", seed, a.VIP, got, want, a.Reason, c.lan, v.Nodes, c.lan.Transcript())
		}
	}
}

func TestKeeperHoldsNoMoreThanAReportCanName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.stopAll()
		for i := range c.nodes {
			c.nodes[i].Home = nil
			for j := range balancing.MaxVIPs {
				c.nodes[i].Home = append(c.nodes[i].Home, netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}))
			}
		}
		h := c.hosts["n2"]
		c.start(h, balancing.OK)
		time.Sleep(time.Second)
		held := 0
		for _, s := range h.keeper.Status().VIPs {
			if s.Held {
				held++
			} else if !strings.Contains(s.Err, fmt.Sprintf("holds %d VIPs already", balancing.MaxHeld)) {
				t.Errorf("error for %s: got %q, want one that names the limit", s.VIP, s.Err)
			}
		}
		if held != balancing.MaxHeld {
			t.Errorf("VIPs held: got %d, want %d", held, balancing.MaxHeld)
		}
	})
}

// Whoever shows the status to others is told when there is something new in it, and else
// left alone.
func TestStatusChangesAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := linktest.NewLAN(60 * time.Millisecond).Host("n1")
		v := &balancing.View{Self: "n1", Nodes: []balancing.Node{{ID: "n1", Online: true, State: balancing.OK, Capacity: 1, Home: []netip.Addr{vipOf(1)}}}}
		var shown atomic.Int64
		k := takeover.New(takeover.Config{
			Self: "n1", Link: link, View: func() *balancing.View { return v }, Held: func([]netip.Addr) {},
			Shown: func() { shown.Add(1) }, Log: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		defer run.Wait()
		defer cancel()
		run.Go(func() { k.Run(ctx) })
		news := func(what string, want bool) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := shown.Swap(0); (n > 0) != want {
				t.Errorf("%s: told %d times", what, n)
			}
		}
		news("claimed", true)
		news("nothing", false)
		link.Fail(errors.New("no"))
		news("an error", true)
		news("the same", false)
	})
}
