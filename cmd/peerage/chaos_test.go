package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"peerage/appliance/membership"
	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
)

// chaos is a LAN of nodes to which all kinds of things happen while operators go on
// changing their site.
type chaos struct {
	*lan
	random *rand.Rand
	began  time.Time

	mu       sync.Mutex
	revision []revision.Revision // that were acknowledged
	tokens   []string            // ids of those that were
	settings int                 // changes of the settings that were
	rotated  int                 // times that the site key was replaced
	refused  map[string]int      // why edits were not acknowledged
	secrets  map[string][]byte   // by what they are
}

// fault is something that happens to a node, and is over later.
type fault struct {
	name  string
	begin func(*lanNode) (end func())
}

// TestChaos lets five nodes on a LAN be killed, frozen, cut off and filled up at random
// while their site is changed all the time. Afterwards all must have the same, no change
// that was acknowledged may be missing, and no key may have been seen anywhere.
//
// PEERAGE_CHAOS says how long ('10m'), PEERAGE_SEED with what random numbers.
func TestChaos(t *testing.T) {
	length, seed := 20*time.Second, uint64(time.Now().UnixNano())
	var err error
	if text := os.Getenv("PEERAGE_CHAOS"); text != "" {
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
	c := newChaos(t, 5, seed)
	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	for ctx.Err() == nil {
		c.round(ctx)
	}
	c.search()
}

// round has things happen until ctx ends, or as many changes are acknowledged as the
// history is sure to keep, and then looks what has become of them.
func (c *chaos) round(ctx context.Context) {
	c.t.Helper()
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	c.revision = nil
	var working sync.WaitGroup
	// A source of random numbers is for one goroutine.
	edits, rest := c.source(), c.source()
	working.Go(func() {
		c.edit(ctx, edits)
		enough()
	})
	working.Go(func() { c.operate(ctx, rest) })
	c.harm(ctx)
	working.Wait()
	c.settle()
	c.lastWord()
	c.judge()
}

// lastWord has each node change the document: the site must take that now.
func (c *chaos) lastWord() {
	c.t.Helper()
	for i, n := range c.nodes {
		eventually(c.t, "a change at "+n.name+" is taken", func() bool {
			ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
			defer cancel()
			err := c.change(ctx, n, 50_000+i)
			if err != nil {
				c.logf("after all is well, a change at %s: %v", n.name, err)
			}
			return err == nil
		})
	}
	c.settle()
}

// newChaos is a site where nothing bad has happened yet.
func newChaos(t *testing.T, nodes int, seed uint64) *chaos {
	c := &chaos{
		lan: newLAN(t, nodes), random: rand.New(rand.NewPCG(seed, 1)), began: time.Now(),
		refused: map[string]int{}, secrets: map[string][]byte{},
	}
	for _, name := range []string{public, internal} {
		c.bridge(apart(name))
	}
	for name, tap := range c.taps {
		f, err := os.Create(filepath.Join(t.TempDir(), name+".packets"))
		if err != nil {
			t.Fatal(err)
		}
		tap.mu.Lock()
		tap.record = f
		tap.mu.Unlock()
	}
	c.grow()
	c.awaitHome()
	c.learnSecrets()
	return c
}

// TestSplit has both sides of a partition see that the other is away, and change the
// document, let nodes in, and replace the site key without it. Both go on serving; healed,
// they come together by themselves.
func TestSplit(t *testing.T) {
	c := newChaos(t, 4, 1)
	heal := c.split([]int{2, 3})
	sides := [][]*lanNode{c.nodes[:2], c.nodes[2:]}
	for i, side := range sides {
		for _, n := range side {
			eventually(t, n.name+" has the VIPs of those who are away", func() bool {
				for _, away := range sides[1-i] {
					for _, vip := range away.vips {
						if !slices.ContainsFunc(side, func(n *lanNode) bool { return n.holds(vip) }) {
							return false
						}
					}
				}
				return true
			})
		}
	}
	c.logf("each side has all VIPs")
	var both sync.WaitGroup
	for i, side := range sides {
		both.Go(func() {
			for n := range 3 {
				if err := c.change(t.Context(), side[n%2], 30_000+10*i+n); err != nil {
					t.Errorf("change at %s: %v", side[n%2].name, err)
				}
			}
			client := node.Client(side[0].data())
			if err := c.makeToken(t.Context(), client); err != nil {
				t.Errorf("token at %s: %v", side[0].name, err)
			}
			// Nodes that have just gone might be back in a moment: it waits.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := client.Rotate(ctx, node.Rotate{Force: true}, nil); err != nil {
				t.Errorf("new key at %s: %v", side[0].name, err)
			}
		})
	}
	both.Wait()
	c.learnSecrets()
	if keysOf(readFile(t, filepath.Join(sides[0][0].data(), "site.key"))) == keysOf(readFile(t, filepath.Join(sides[1][0].data(), "site.key"))) {
		t.Error("both sides have the same site key")
	}
	c.logf("each side has a key of its own")
	heal()
	c.settle()
	c.judge()
	c.search()
}

func (c *chaos) source() *rand.Rand {
	return rand.New(rand.NewPCG(c.random.Uint64(), c.random.Uint64()))
}

// grow sets the site up: the first node by init, the others by tokens.
func (c *chaos) grow() {
	t, n1 := c.t, c.nodes[0]
	t.Helper()
	for _, n := range c.nodes {
		smallDisk(t, n.data())
		t.Cleanup(n.end) // before its disk goes
	}
	n1.run(t, binary, "init", "--host", lanHost, "--address", "192.0.2.1", "--vip", "192.0.2.11", "--vip", "2001:db8::11",
		"--config", n1.config(), "--data-dir", n1.data())
	writeFile(t, n1.config(), edited(t, readFile(t, n1.config()),
		"interfaces: {public: eth0}", "interfaces: {public: eth0, internal: eth1}",
		"address: 192.0.2.1", "address: {public: 192.0.2.1, internal: 10.0.0.1}",
		"# user: peerage", "user: root", // no other can be had in the test's namespace
	), 0o644)
	path := filepath.Join(n1.data(), "site.yaml")
	writeFile(t, path, edited(t, readFile(t, path), "nodes:\n", "takeover: {hold_down: 1s}\nlimits: {requests: 20000}\nnodes:\n",
		"{address: 192.0.2.1,", "{address: 192.0.2.1, internal: 10.0.0.1,"), 0o644)
	// All nodes serve the pages of the first; each looks for them at the same place.
	n1.start()
	for _, n := range c.nodes[1:] {
		var token string
		eventually(t, "n1 makes a token", func() (made bool) {
			var err error
			token, err = node.Client(n1.data()).CreateToken(t.Context(), node.NewToken{Name: balancing.NodeID(n.name), User: "chaos"})
			return err == nil
		})
		k := n.name[1:]
		n.run(t, binary, "join", "--token", token, "--vip", "192.0.2.1"+k, "--vip", "2001:db8::1"+k,
			"--interface", public, "--host-address", "192.0.2."+k, "--internal", internal, "--internal-address", "10.0.0."+k,
			"--config", n.config(), "--data-dir", n.data())
		writeFile(t, n.config(), edited(t, readFile(t, n.config()), "# user: peerage", "user: root"), 0o644)
		n.start()
	}
}

// smallDisk gives a directory a disk of its own that can be filled.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m,mode=0700"); err != nil {
		t.Logf("no small disk for %s, which will never be full: %v", dir, err)
		return
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// edit changes the site document all the time, at nodes taken by chance.
func (c *chaos) edit(ctx context.Context, random *rand.Rand) {
	const most = revision.Kept * 3 / 4 // there are some, too, that nobody has been told of
	for n := 1; ctx.Err() == nil && c.acknowledged() < most; n++ {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := c.change(short, c.nodes[random.IntN(len(c.nodes))], 20_000+n)
		cancel()
		if err != nil {
			c.note(err)
			pause(ctx, 100*time.Millisecond)
		}
		pause(ctx, time.Duration(random.IntN(300))*time.Millisecond)
	}
}

func (c *chaos) acknowledged() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.revision)
}

// change sets limits.requests at a node.
func (c *chaos) change(ctx context.Context, at *lanNode, requests int) error {
	client := node.Client(at.data())
	head, err := client.Revision(ctx, "")
	if err != nil {
		return err
	}
	made, err := client.Apply(ctx, node.Apply{
		Text: requestsLine.ReplaceAllString(head.Text, fmt.Sprintf("requests: %d", requests)),
		Base: string(head.ID), User: "chaos", Comment: fmt.Sprintf("%d requests", requests),
	}, nil)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision = append(c.revision, made)
	return nil
}

var requestsLine = regexp.MustCompile(`requests: \d+`)

// note counts why something was not acknowledged, without what differs each time.
func (c *chaos) note(err error) {
	why := regexp.MustCompile(`/\S+|[0-9a-f]{8}|\d+`).ReplaceAllString(err.Error(), "…")
	if before, _, ok := strings.Cut(why, "\n--- "); ok { // what others have changed
		why = before
	}
	why = strings.Join(strings.Fields(why), " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[why]++
}

// operate makes tokens, and now and then changes the settings or replaces the site key.
func (c *chaos) operate(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		at := c.nodes[random.IntN(len(c.nodes))]
		client := node.Client(at.data())
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		var err error
		switch random.IntN(6) {
		case 0:
			if _, err = client.Rotate(short, node.Rotate{Force: random.IntN(4) == 0}, nil); err == nil {
				c.mu.Lock()
				c.rotated++
				c.mu.Unlock()
			}
			c.learnSecrets()
		case 1:
			if _, err = client.ChangeSettings(short, map[string]any{"margin": 20 + random.IntN(50)}); err == nil {
				c.mu.Lock()
				c.settings++
				c.mu.Unlock()
			}
		default:
			err = c.makeToken(short, client)
		}
		cancel()
		if err != nil {
			c.note(err)
		}
		pause(ctx, time.Duration(500+random.IntN(1000))*time.Millisecond)
	}
}

func (c *chaos) makeToken(ctx context.Context, client node.Client) error {
	text, err := client.CreateToken(ctx, node.NewToken{User: "chaos"})
	if err != nil {
		return err
	}
	token, err := membership.ParseToken(text)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens = append(c.tokens, token.ID)
	c.secrets["the token "+token.ID] = []byte(strings.TrimPrefix(text, "pgj1."))
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// harm does one or two things at a time to nodes, and mends them.
func (c *chaos) harm(ctx context.Context) {
	faults := []fault{
		{"guard killed", func(n *lanNode) func() {
			n.signal(syscall.SIGKILL)
			n.awaitEnd()
			return n.start
		}},
		{"server killed", func(n *lanNode) func() {
			if st := n.status(); st != nil {
				syscall.Kill(st.ServerPID, syscall.SIGKILL)
			}
			return func() {}
		}},
		{"server frozen", func(n *lanNode) func() {
			st := n.status()
			if st == nil {
				return func() {}
			}
			syscall.Kill(st.ServerPID, syscall.SIGSTOP)
			return func() { syscall.Kill(st.ServerPID, syscall.SIGCONT) }
		}},
		{"guard frozen", func(n *lanNode) func() {
			n.signal(syscall.SIGSTOP)
			return func() { n.signal(syscall.SIGCONT) }
		}},
		{"stopped in order", func(n *lanNode) func() {
			n.signal(syscall.SIGTERM)
			n.awaitEnd()
			return n.start
		}},
		{"cut off", func(n *lanNode) func() { return c.cut(n, public, internal) }},
		{"cut off from the internal network", func(n *lanNode) func() { return c.cut(n, internal) }},
		{"cut off from the public network", func(n *lanNode) func() { return c.cut(n, public) }},
		{"disk full", fill},
	}
	for ctx.Err() == nil {
		var ends []func()
		most := 3000
		nodes := c.random.Perm(len(c.nodes))[:1+c.random.IntN(2)]
		if c.random.IntN(6) == 0 {
			most = 15_000 // both sides come to see that the other is away
			ends = append(ends, c.split(nodes))
		} else {
			for _, i := range nodes {
				n, f := c.nodes[i], faults[c.random.IntN(len(faults))]
				c.logf("%s: %s", n.name, f.name)
				ends = append(ends, f.begin(n))
			}
		}
		pause(ctx, time.Duration(300+c.random.IntN(most))*time.Millisecond)
		for _, end := range ends {
			end()
		}
		pause(ctx, time.Duration(c.random.IntN(2500))*time.Millisecond)
	}
}

func (c *chaos) logf(format string, args ...any) {
	c.t.Helper()
	c.t.Logf("%6.1f s  "+format, append([]any{time.Since(c.began).Seconds()}, args...)...)
}

// apart is the name of a second network.
func apart(name string) string { return "apart-" + name }

// split puts some of the nodes on networks of their own, where they hear each other.
func (c *chaos) split(nodes []int) func() {
	var names []string
	for _, i := range nodes {
		names = append(names, c.nodes[i].name)
	}
	c.logf("%v: apart from the others", names)
	move := func(to func(string) string) {
		for _, host := range names {
			for _, name := range []string{public, internal} {
				c.move(host, name, bridgeOf(to(name)))
			}
		}
	}
	move(apart)
	return func() { move(func(name string) string { return name }) }
}

func (c *chaos) cut(n *lanNode, networks ...string) func() {
	for _, name := range networks {
		c.isolate(n.name, name, true)
	}
	return func() {
		for _, name := range networks {
			c.isolate(n.name, name, false)
		}
	}
}

// fill leaves no room on the disk of a node.
func fill(n *lanNode) func() {
	path := filepath.Join(n.data(), "ballast")
	f, err := os.Create(path)
	if err != nil {
		return func() {}
	}
	defer f.Close()
	var fs unix.Statfs_t
	if unix.Statfs(n.data(), &fs) != nil || fs.Blocks*uint64(fs.Bsize) > 64<<20 {
		return func() { os.Remove(path) } // not a disk of its own
	}
	block := make([]byte, 64<<10)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			break
		}
	}
	return func() { os.Remove(path) }
}

// settle waits until all is well again.
func (c *chaos) settle() {
	c.t.Helper()
	what := ""
	deadline, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		was := what
		if what = c.amiss(); what == "" {
			c.logf("all is well")
			return
		}
		if what != was {
			c.logf("%s", what)
		}
		select {
		case <-deadline.Done():
			c.t.Fatalf("three minutes after the last fault: %s", what)
		case <-tick.C:
		}
	}
}

// amiss says in what the nodes differ, or what is not well; "" if all is.
func (c *chaos) amiss() string {
	var first *node.Status
	for _, n := range c.nodes {
		st := n.status()
		if st == nil {
			return n.name + " does not answer"
		}
		a := st.Agreed
		if first == nil {
			first = st
		}
		switch me := st.View.Me(); {
		case a.Document.Head == nil || a.Document.Running != a.Document.Head.ID:
			return fmt.Sprintf("%s serves %s: %s", n.name, a.Document.Running, a.Document.Trouble)
		case a.Key.Phase != membership.PhaseSteady:
			return fmt.Sprintf("%s: site key %s, waiting for %v", n.name, a.Key.Phase, a.Key.Waiting)
		case fmt.Sprint(a.Digests) != fmt.Sprint(first.Agreed.Digests):
			return fmt.Sprintf("%s has %v, %s has %v", n.name, a.Digests, c.nodes[0].name, first.Agreed.Digests)
		case st.View.Settings != first.View.Settings:
			return fmt.Sprintf("%s has the settings %+v, %s has %+v", n.name, st.View.Settings, c.nodes[0].name, first.View.Settings)
		case me.State != balancing.OK:
			return fmt.Sprintf("%s is %s", n.name, me.State)
		case len(me.Held) != 2 || !me.Holds(n.vips[0]) || !me.Holds(n.vips[1]):
			return fmt.Sprintf("%s holds %v", n.name, me.Held)
		}
	}
	return ""
}

// judge compares what the nodes have with what was acknowledged, and looks for keys.
func (c *chaos) judge() {
	t := c.t
	c.learnSecrets()
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("acknowledged: %d edits, %d tokens, %d changes of settings, %d new site keys; not acknowledged:\n%s",
		len(c.revision), len(c.tokens), c.settings, c.rotated, c.refusals())
	text := readFile(t, filepath.Join(c.nodes[0].data(), "site.yaml"))
	became := map[revision.State]int{}
	for _, n := range c.nodes {
		if readFile(t, filepath.Join(n.data(), "site.yaml")) != text {
			t.Errorf("the site document of %s is not that of n1", n.name)
		}
		if ring, want := readFile(t, filepath.Join(n.data(), "site.key")), readFile(t, filepath.Join(c.nodes[0].data(), "site.key")); keysOf(ring) != keysOf(want) {
			t.Errorf("the site key of %s is not that of n1", n.name)
		}
		client := node.Client(n.data())
		history, err := client.History(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		states := map[revision.ID]revision.State{}
		for _, e := range history {
			states[e.ID] = e.State
		}
		for _, r := range c.revision {
			switch state, ok := states[r.ID]; {
			case !ok:
				t.Errorf("%s lacks %s (%s), which was acknowledged", n.name, &r, r.Comment)
			case !slices.Contains([]revision.State{revision.InForce, revision.Past, revision.WasRolledBack, revision.Apart, revision.Settled}, state):
				t.Errorf("%s has %s (%s), which was acknowledged, as %s", n.name, &r, r.Comment, state)
			}
			if n == c.nodes[0] {
				became[states[r.ID]]++
			}
		}
		tokens, err := client.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range c.tokens {
			if !slices.ContainsFunc(tokens, func(k membership.TokenInfo) bool { return k.ID == id }) {
				t.Errorf("%s lacks the token %s, which was acknowledged", n.name, id)
			}
		}
	}
	t.Logf("what became of the edits: %v", became)
}

func (c *chaos) refusals() string {
	var b strings.Builder
	for _, why := range slices.Sorted(maps.Keys(c.refused)) {
		fmt.Fprintf(&b, "%6d times %s\n", c.refused[why], why)
	}
	return b.String()
}

// keysOf returns the keys of a ring that seal and open.
func keysOf(ring string) string {
	var all []string
	for line := range strings.Lines(ring) {
		if !strings.HasPrefix(line, "past") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return strings.Join(all, " ")
}

// learnSecrets collects what nobody may see: all keys that the nodes have just now.
func (c *chaos) learnSecrets() {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := base64.RawURLEncoding.Strict()
	add := func(what string, path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		for word := range strings.FieldsSeq(string(b)) {
			if raw, err := text.DecodeString(word); err == nil && len(raw) == 32 {
				c.secrets[what+" "+hex.EncodeToString(raw[:2])] = raw
			}
		}
	}
	for _, n := range c.nodes {
		add("a site key", filepath.Join(n.data(), "site.key"))
		add("the node key of "+n.name, filepath.Join(n.data(), state.NodeKeyFile))
	}
	nf, err := site.LoadNode(c.nodes[0].config())
	if err != nil {
		return
	}
	if ring, err := state.ReadSiteKey(nf.SiteKeyFile); err == nil {
		if ca, err := state.LoadCA(nf.DataDir, ring); err == nil {
			c.secrets["the key of the CA"] = ca.MarshalKey()
		}
	}
}

// search looks for secrets in all that was written, logged and sent.
func (c *chaos) search() {
	t := c.t
	if len(c.secrets) < 1+len(c.nodes)+1 {
		t.Fatalf("only %d secrets are known", len(c.secrets))
	}
	wanted := newNeedles()
	for what, secret := range c.secrets {
		for _, form := range formsOf(secret) {
			wanted.add(what, form)
		}
	}
	look := func(where string, b []byte) {
		for _, what := range wanted.in(b) {
			t.Errorf("%s shows %s", where, what)
		}
	}
	octets := 0
	for name, tap := range c.taps {
		tap.mu.Lock()
		path := tap.record.Name()
		tap.record.Close()
		tap.record = nil
		tap.mu.Unlock()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		octets += len(b)
		look("what passed "+name, b)
	}
	for _, n := range c.nodes {
		spoilt := false
		for _, l := range n.lines() {
			look("the log of "+n.name, []byte(l.line))
			if !spoilt && !strings.HasPrefix(l.line, "{") && !strings.HasPrefix(l.line, "peerage: ") { // a panic, or a data race
				spoilt = true
				t.Errorf("%s printed %q", n.name, l.line)
			}
		}
		err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name() == "site.key" || d.Name() == state.NodeKeyFile {
				return err
			}
			b, err := os.ReadFile(path)
			octets += len(b)
			look(path, b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d secrets looked for in %.1f MB of packets and files, and in the logs", len(c.secrets), float64(octets)/1e6)
}

// needles are looked for all at once, for there are thousands.
type needles struct {
	first [1 << 16]bool // the first two octets of one
	all   map[[needleHead]byte][]needle
}

const needleHead = 8

type needle struct {
	what string
	text []byte
}

func newNeedles() *needles { return &needles{all: map[[needleHead]byte][]needle{}} }

func (s *needles) add(what string, text []byte) {
	head := [needleHead]byte(text)
	s.first[int(head[0])<<8|int(head[1])] = true
	s.all[head] = append(s.all[head], needle{what, text})
}

// in returns what is found in b.
func (s *needles) in(b []byte) (found []string) {
	for ; len(b) >= needleHead; b = b[1:] {
		if !s.first[int(b[0])<<8|int(b[1])] {
			continue
		}
		for _, n := range s.all[[needleHead]byte(b)] {
			if bytes.HasPrefix(b, n.text) && !slices.Contains(found, n.what) {
				found = append(found, n.what)
			}
		}
	}
	return found
}

// formsOf returns how a secret may be written: as it is, in hexadecimal, and in base64 with
// anything before and after it.
func formsOf(secret []byte) [][]byte {
	all := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
	for _, e := range []*base64.Encoding{base64.RawURLEncoding, base64.RawStdEncoding} {
		for shift := range 3 {
			text := e.AppendEncode(nil, append(make([]byte, shift), secret...))
			// The first digits may hold bits of what is before, the last one of what is after.
			all = append(all, text[(shift*8+5)/6:len(text)-1])
		}
	}
	return all
}

// TestNeedles looks whether secrets would be found at all.
func TestNeedles(t *testing.T) {
	secret := []byte("0123456789abcdef\xff\xfe\x00ghijklmnopqr")
	wanted := newNeedles()
	for _, form := range formsOf(secret) {
		wanted.add("it", form)
	}
	wanted.add("another", []byte("01234567 and not that"))
	for n := range 7 {
		text := slices.Concat(bytes.Repeat([]byte{'x'}, n), secret, []byte("afterwards"))
		for what, b := range map[string][]byte{
			"raw": text, "hex": hex.AppendEncode(nil, text),
			"base64": base64.StdEncoding.AppendEncode([]byte("012345670"), text), "base64url": base64.RawURLEncoding.AppendEncode(nil, text),
		} {
			if found := wanted.in(b); !slices.Equal(found, []string{"it"}) {
				t.Errorf("%s after %d octets: found %q", what, n, found)
			}
		}
	}
	if found := wanted.in(secret[:len(secret)-1]); found != nil {
		t.Errorf("found %q where there is none", found)
	}
}
