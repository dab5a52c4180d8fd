package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"peerage/appliance/node"
	"peerage/balancing"
)

// vipChaos is a site to whose nodes and network all kinds of things happen.
type vipChaos struct {
	*guarded
	random *rand.Rand
	drops  bool // the switch can drop packets of a kind
	harms  []harm

	mu      sync.Mutex
	under   []*trouble
	changed time.Time // when something began or ended last
	whole   []span    // when all nodes were on one network
}

// harm is something that can befall a node.
type harm struct {
	what   string
	begin  func(*lanNode) (end func())
	apart  bool // the network is not whole then
	frozen bool // the guard is
}

// trouble is a node's harm that is not over.
type trouble struct {
	harm
	node *lanNode
	end  func()
	over time.Time // when it is to be
}

const (
	// rested is how long all is left alone before the site must have settled.
	rested = 3 * time.Second

	// lease is that of a guard (balancing.period of 500 ms).
	lease = 900 * time.Millisecond

	// maxDark is how many questions in a row may have no answer when it has.
	maxDark = 50

	// stalled is by how much a look at the site is late on a machine that stood still.
	stalled = 150 * time.Millisecond
)

// TestVIPChaos lets nodes of a site on a LAN be killed, frozen, cut off and drained at
// random, several at a time. On a LAN that is whole no two nodes may answer for one VIP;
// when it has been left alone for a while, and a node serves, one must; and at the end all
// is as at the beginning.
//
// PEERAGE_VIPCHAOS says how long ('10m'), PEERAGE_SEED with what random numbers.
func TestVIPChaos(t *testing.T) {
	length, seed := 15*time.Second, uint64(1)
	var err error
	if text := os.Getenv("PEERAGE_VIPCHAOS"); text != "" {
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("PEERAGE_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("for %v, PEERAGE_SEED=%d", length, seed)
	c := &vipChaos{guarded: newGuarded(t, 3), random: rand.New(rand.NewPCG(seed, 2))}
	if _, err := exec.LookPath("nft"); err == nil {
		c.drops = true
	}
	c.harms = c.everything()
	c.changed, c.whole = time.Now(), []span{{from: time.Now()}}
	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	var looking sync.WaitGroup
	looking.Go(func() { c.look(ctx) })
	c.hurt(ctx)
	looking.Wait()
	c.mend(func(*trouble) bool { return true })
	eventually(t, "all orders are taken back", c.recall)
	c.awaitHome()
	for _, s := range c.whole {
		if s.to.IsZero() {
			s.to = time.Now()
		}
		for _, d := range c.near.doubles(s) {
			t.Error(d)
		}
	}
	c.leave()
}

// everything lists what can happen.
func (c *vipChaos) everything() []harm {
	signal := func(guard, server bool, s, over syscall.Signal) func(*lanNode) func() {
		return func(n *lanNode) func() {
			pid := 0
			if st := n.status(); st != nil {
				pid = st.ServerPID
			}
			send := func(s syscall.Signal) {
				if guard {
					n.signal(s)
				}
				if server && pid != 0 {
					syscall.Kill(pid, s)
				}
			}
			send(s)
			if guard && (s == syscall.SIGKILL || s == syscall.SIGTERM) {
				n.awaitEnd()
				return n.start
			}
			return func() {
				if over != 0 {
					send(over)
				}
			}
		}
	}
	move := func(to string) func(*lanNode) func() {
		return func(n *lanNode) func() {
			c.move(n.name, public, to)
			return func() { c.move(n.name, public, bridgeOf(public)) }
		}
	}
	drop := func(rule string) func(*lanNode) func() {
		return func(n *lanNode) func() { return c.block(c.t, fmt.Sprintf(rule, n.name+"-"+public)) }
	}
	all := []harm{
		{what: "guard killed", begin: signal(true, false, syscall.SIGKILL, 0)},
		{what: "server killed", begin: signal(false, true, syscall.SIGKILL, 0)},
		{what: "guard and server killed", begin: signal(true, true, syscall.SIGKILL, 0)},
		{what: "stopped in order", begin: signal(true, false, syscall.SIGTERM, 0)},
		{what: "guard frozen", begin: signal(true, false, syscall.SIGSTOP, syscall.SIGCONT), frozen: true},
		{what: "server frozen", begin: signal(false, true, syscall.SIGSTOP, syscall.SIGCONT)},
		{what: "guard and server frozen", begin: signal(true, true, syscall.SIGSTOP, syscall.SIGCONT), frozen: true},
		{what: "cable pulled", apart: true, begin: func(n *lanNode) func() {
			c.cable(n.name, public, false)
			return func() { c.cable(n.name, public, true) }
		}},
		{what: "cut off", apart: true, begin: move("")},
		{what: "on a network apart", apart: true, begin: move(bridgeOf(apart(public)))},
		{what: "drained", begin: func(n *lanNode) func() {
			c.order(n, "drain", func(ctx context.Context, at node.Client) error {
				return at.DrainNode(ctx, node.DrainNode{Name: balancing.NodeID(n.name), User: "chaos"}, func(node.Step) {})
			})
			return func() { c.recall() }
		}},
		{what: "its VIP moved", begin: func(n *lanNode) func() {
			to := c.nodes[c.random.IntN(len(c.nodes))].name
			c.order(n, "move to "+to, func(ctx context.Context, at node.Client) error {
				return at.MoveVIP(ctx, node.MoveVIP{VIP: n.vips[0], To: balancing.NodeID(to), User: "chaos"}, func(node.Step) {})
			})
			return func() { c.recall() }
		}},
	}
	if c.drops {
		all = append(all,
			harm{what: "mute", begin: drop("iifname %q udp dport 7947 drop")},
			harm{what: "deaf", begin: drop("oifname %q udp dport 7947 drop")},
			harm{what: "without multicast", begin: drop("iifname %q ip daddr 239.255.79.47 drop")},
		)
	}
	return all
}

// order has an operator give an order at any node that takes it.
func (c *vipChaos) order(n *lanNode, what string, give func(context.Context, node.Client) error) {
	for _, i := range c.random.Perm(len(c.nodes)) {
		if at := c.nodes[i]; c.free(at) {
			ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
			err := give(ctx, node.Client(at.data()))
			cancel()
			c.logf("%s: %s, ordered at %s: %v", n.name, what, at.name, err)
			return
		}
	}
}

// recall takes all orders back that a node knows of, and reports whether all nodes answer and
// there was none.
func (c *vipChaos) recall() (none bool) {
	none = true
	for _, n := range c.nodes {
		st := n.status()
		if st == nil {
			none = false
			continue
		}
		at := node.Client(n.data())
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		for id := range st.Drained {
			none = false
			at.DrainNode(ctx, node.DrainNode{Name: id, End: true, User: "chaos"}, func(node.Step) {})
		}
		for _, v := range st.VIPs {
			if v.Moved != nil {
				none = false
				at.MoveVIP(ctx, node.MoveVIP{VIP: v.Address, User: "chaos"}, func(node.Step) {})
			}
		}
		cancel()
	}
	return none
}

// free reports whether a node has no trouble.
func (c *vipChaos) free(n *lanNode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.ContainsFunc(c.under, func(x *trouble) bool { return x.node == n })
}

// hurt lets things happen until ctx ends: a few in a short time, and now and then nothing.
func (c *vipChaos) hurt(ctx context.Context) {
	for ctx.Err() == nil {
		for range 1 + c.random.IntN(4) {
			n, h := c.nodes[c.random.IntN(len(c.nodes))], c.harms[c.random.IntN(len(c.harms))]
			if c.free(n) {
				c.begin(n, h)
			}
			pause(ctx, time.Duration(c.random.IntN(1000))*time.Millisecond)
			c.mend(func(x *trouble) bool { return time.Now().After(x.over) })
		}
		if c.random.IntN(2) == 0 {
			c.mend(func(*trouble) bool { return true })
		}
		if c.random.IntN(2) == 0 {
			pause(ctx, rested+time.Duration(1000+c.random.IntN(1500))*time.Millisecond)
		}
	}
}

// begin lets something happen to a node.
func (c *vipChaos) begin(n *lanNode, h harm) {
	c.logf("%s: %s", n.name, h.what)
	x := &trouble{harm: h, node: n, over: time.Now().Add(time.Duration(200+c.random.IntN(4000)) * time.Millisecond)}
	c.note(func() { c.under = append(c.under, x) })
	x.end = h.begin(n)
	c.note(func() {
		// In the moment in which its network becomes whole a node that does not run cannot
		// give in: its lease has to run out.
		if last := &c.whole[len(c.whole)-1]; h.frozen && time.Since(last.from) < lease {
			last.from = time.Now().Add(lease)
		}
	})
}

// mend ends those troubles that are to end.
func (c *vipChaos) mend(which func(*trouble) bool) {
	for _, x := range slices.Clone(c.under) {
		if which(x) {
			c.logf("%s: no longer %s", x.node.name, x.what)
			c.note(func() {})
			x.end()
			c.note(func() { c.under = slices.DeleteFunc(c.under, func(y *trouble) bool { return x == y }) })
		}
	}
}

// note writes down that something has changed.
func (c *vipChaos) note(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.changed = time.Now()
	last := &c.whole[len(c.whole)-1]
	switch apart := slices.ContainsFunc(c.under, func(x *trouble) bool { return x.apart }); {
	case apart && last.to.IsZero():
		last.to = c.changed
	case !apart && !last.to.IsZero():
		c.whole = append(c.whole, span{from: c.changed})
	}
}

// look says until ctx ends when a VIP is not answered that should be.
func (c *vipChaos) look(ctx context.Context) {
	const every = 100 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	var serving time.Time // since when a node did, whenever it was asked
	dark := map[string]bool{}
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if late := now.Sub(last) - every; late > stalled {
			c.logf("this machine stood still for %d ms", late.Milliseconds())
			c.note(func() {})
		}
		if !c.anyServes() {
			serving = time.Time{}
		} else if serving.IsZero() {
			serving = now
		}
		last = time.Now()
		c.mu.Lock()
		settled := !serving.IsZero() && time.Since(later(serving, c.changed)) > rested && c.whole[len(c.whole)-1].to.IsZero()
		c.mu.Unlock()
		for _, vip := range c.all {
			was := dark[vip.String()]
			is := settled && c.near.unanswered(vip) > maxDark
			if is && !was {
				c.t.Errorf("%s: nobody answers for %s, and all was left alone for %v", now.Format(stamp), vip, rested)
			}
			dark[vip.String()] = is
		}
	}
}

// anyServes reports whether a node without trouble says that it serves.
func (c *vipChaos) anyServes() bool {
	for _, n := range c.nodes {
		if !c.free(n) {
			continue
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		st, err := node.Client(n.data()).Status(ctx)
		cancel()
		if err == nil && st.View.Me().Serves() {
			return true
		}
	}
	return false
}

// leave ends all nodes in order, and looks whether they have left anything behind.
func (c *vipChaos) leave() {
	for _, n := range c.nodes {
		n.signal(syscall.SIGTERM)
	}
	for _, n := range c.nodes {
		n.awaitEnd()
	}
	ended := time.Now()
	for _, vip := range c.all {
		if names := c.holders(vip); len(names) > 0 {
			c.t.Errorf("%v still have %s when all have ended", names, vip)
		}
		eventually(c.t, "the watcher has asked", func() bool { return c.near.unanswered(vip) > 2 })
		if names := c.near.answering(vip, ended.Add(watchGap)); len(names) > 0 {
			c.t.Errorf("%v answered for %s when all had ended", names, vip)
		}
	}
	if !c.drops {
		return
	}
	for _, n := range c.nodes {
		if tables := n.run(c.t, "nft", "list", "tables"); strings.Contains(tables, "peerage") {
			c.t.Errorf("%s has left behind\n%s", n.name, tables)
		}
	}
}

func (c *vipChaos) logf(format string, args ...any) {
	c.t.Helper()
	c.t.Logf(time.Now().Format(stamp)+"  "+format, args...)
}
