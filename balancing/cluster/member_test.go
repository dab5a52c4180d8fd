package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// realNode is a member on real sockets with its store on the disk.
type realNode struct {
	*Member
	table *Table
	watch <-chan struct{}
	path  string
	stop  context.CancelFunc
}

// loopback returns an address of 127.0.0.0/8 with a port that is free for TCP and UDP.
func loopback(t *testing.T, host byte) netip.AddrPort {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.77.%d:0", host))
		if err != nil {
			t.Skipf("no loopback: %v", err)
		}
		a := l.Addr().(*net.TCPAddr).AddrPort()
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		l.Close()
		if err == nil {
			u.Close()
			return a
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}

func startReal(t *testing.T, name string, bind netip.AddrPort, path string, change func(*Config), seeds ...netip.AddrPort) *realNode {
	t.Helper()
	store, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	table, err := store.Table(name, TableConfig{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Self: name, Bind: bind, Site: "site", Keys: [][32]byte{testKey}, Version: "1.0",
		Seeds: func() []netip.AddrPort { return seeds },
		Store: store, Documents: []Document{table}, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	n := &realNode{Member: m, table: table, watch: table.Watch(), path: path}
	n.stop = func() {
		cancel()
		if err, ok := <-ended; ok {
			close(ended)
			if err := errors.Join(err, store.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(n.stop)
	return n
}

// await waits until a node has a value.
func (n *realNode) await(t *testing.T, key, value string) {
	t.Helper()
	over := time.After(20 * time.Second)
	for {
		if i, ok := n.table.Get(key); ok && string(i.Value) == value {
			return
		}
		select {
		case <-n.watch:
		case <-over:
			t.Fatalf("%s: no %s=%s within 20 s; members %v, %+v", n.c.Self, key, value, n.Members(), n.Counters())
		}
	}
}

func TestMembersOnRealSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addrs := []netip.AddrPort{loopback(t, 1), loopback(t, 2), loopback(t, 3)}
	var nodes []*realNode
	for i, a := range addrs {
		name := fmt.Sprintf("node%d", i+1)
		nodes = append(nodes, startReal(t, name, a, filepath.Join(dir, name), nil, addrs...))
	}
	put(t, nodes[0].table, "a", "1")
	put(t, nodes[1].table, "b", strings.Repeat("large ", 100_000))
	for _, n := range nodes {
		n.await(t, "a", "1")
		n.await(t, "b", strings.Repeat("large ", 100_000))
		<-n.Synced()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	put(t, nodes[2].table, "c", "1")
	if missing := nodes[2].Push(ctx, "test", nodes[2].table.Encode("c")); missing != nil {
		t.Errorf("push: missing %v", missing)
	}
	t.Logf("put and pushed to two disks in %v", time.Since(start))

	// A restart: what happened meanwhile comes over.
	nodes[1].stop()
	put(t, nodes[0].table, "d", "1")
	again := startReal(t, "node2", addrs[1], nodes[1].path, nil, addrs...)
	if got := live(again.table); !strings.Contains(got, "c=1") {
		t.Errorf("after a restart: got %.50q", got)
	}
	again.await(t, "d", "1")
	if m := again.Members(); len(m) != 2 || m[0].Name != "node1" || m[0].Address != addrs[0] || m[0].Version != "1.0" {
		t.Errorf("members: got %+v", m)
	}
}

// The gossip key is changed on one node after the other, while each of them writes.
func TestKeysChangeUnderTraffic(t *testing.T) {
	t.Parallel()
	addrs := []netip.AddrPort{loopback(t, 4), loopback(t, 5), loopback(t, 6)}
	var nodes []*realNode
	for i, a := range addrs {
		nodes = append(nodes, startReal(t, fmt.Sprintf("node%d", i+1), a, "", nil, addrs...))
	}
	count := 0
	traffic := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for _, n := range nodes {
			count++
			key := fmt.Sprintf("k%d", count)
			put(t, n.table, key, strings.Repeat("v", count%2*2000))
			if missing := n.Push(ctx, "test", n.table.Encode(key)); missing != nil {
				t.Fatalf("missing %v", missing)
			}
		}
	}
	put(t, nodes[0].table, "begin", "1")
	for _, n := range nodes {
		n.await(t, "begin", "1")
	}
	for _, from := range nodes {
		put(t, from.table, "from", from.c.Self)
		for _, n := range nodes {
			n.await(t, "from", from.c.Self)
		}
	}
	traffic()
	next := [32]byte{9, 9, 9}
	for _, ring := range [][][32]byte{{testKey, next}, {next, testKey}, {next}} {
		for _, n := range nodes {
			if err := n.SetKeys(ring); err != nil {
				t.Fatal(err)
			}
			traffic()
		}
	}
	for _, n := range nodes {
		if got := n.ring.GetKeys(); len(got) != 1 || got[0][0] != 9 {
			t.Errorf("%s still has %d keys", n.c.Self, len(got))
		}
		for _, i := range n.Members() {
			if i.State != Alive {
				t.Errorf("%s sees %s %v", n.c.Self, i.Name, i.State)
			}
		}
	}
}

func TestWrongKeyOrSiteNeverMixes(t *testing.T) {
	t.Parallel()
	addrs := []netip.AddrPort{loopback(t, 7), loopback(t, 8), loopback(t, 9), loopback(t, 10), loopback(t, 11)}
	plain := startReal(t, "node1", addrs[0], "", nil, addrs...)
	others := []*realNode{
		startReal(t, "node2", addrs[1], "", func(c *Config) { c.Keys = [][32]byte{{7}} }, addrs...),
		startReal(t, "node3", addrs[2], "", func(c *Config) { c.Site = "other" }, addrs...),
		startReal(t, "node4", addrs[3], "", func(c *Config) { c.Allowed = func(n string) bool { return n == "node2" } }, addrs...),
	}
	for _, n := range others {
		put(t, n.table, "secret", n.c.Self)
	}
	put(t, plain.table, "a", "1")
	// One that belongs to the site is there as a measure of time.
	friend := startReal(t, "node5", addrs[4], "", nil, addrs...)
	friend.await(t, "a", "1")
	put(t, friend.table, "b", "1")
	plain.await(t, "b", "1")
	<-friend.Synced()
	for _, n := range append(others, plain, friend) {
		for _, i := range n.Members() {
			if n.c.Self != "node4" && i.Name != "node1" && i.Name != "node5" && i.Name != "node4" {
				t.Errorf("%s has %s as a member", n.c.Self, i.Name)
			}
		}
	}
	for _, n := range others[:2] {
		if got, want := live(n.table), "secret="+n.c.Self; got != want {
			t.Errorf("%s has %q, want %q", n.c.Self, got, want)
		}
	}
	for _, i := range plain.table.Items("secret") {
		if string(i.Value) != "node4" { // it has the key, and is allowed by us
			t.Errorf("what %s wrote has come", i.Node)
		}
	}
}

func TestNodeComesBackWithAnotherAddress(t *testing.T) {
	t.Parallel()
	addrs := []netip.AddrPort{loopback(t, 12), loopback(t, 13), loopback(t, 14)}
	one := startReal(t, "node1", addrs[0], "", nil, addrs...)
	two := startReal(t, "node2", addrs[1], "", nil, addrs...)
	put(t, one.table, "a", "1")
	two.await(t, "a", "1")
	two.stop()
	two = startReal(t, "node2", addrs[2], "", nil, addrs...)
	two.await(t, "a", "1")
	put(t, two.table, "b", "1")
	one.await(t, "b", "1")
	// Late news of its farewell may make it dead for an instant, until it objects.
	tick, over := time.NewTicker(20*time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for {
		m := one.Members()
		if len(m) == 1 && m[0].Address == addrs[2] && m[0].State == Alive {
			return
		}
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("members: got %+v", m)
		}
	}
}

func TestMemberRefusesWhatCannotBe(t *testing.T) {
	store, err := OpenStore("")
	if err != nil {
		t.Fatal(err)
	}
	table, err := store.Table("node1", TableConfig{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	good := Config{
		Self: "node1", Bind: netip.MustParseAddrPort("127.0.0.1:1"), Site: "site", Keys: [][32]byte{testKey},
		Store: store, Documents: []Document{table}, Log: slog.New(slog.DiscardHandler),
	}
	m, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no name":         func(c *Config) { c.Self = "" },
		"no address":      func(c *Config) { c.Bind = netip.AddrPort{} },
		"no site":         func(c *Config) { c.Site = "" },
		"no key":          func(c *Config) { c.Keys = nil },
		"empty key":       func(c *Config) { c.Keys = [][32]byte{testKey, {}} },
		"key twice":       func(c *Config) { c.Keys = [][32]byte{testKey, testKey} },
		"no store":        func(c *Config) { c.Store = nil },
		"document twice":  func(c *Config) { c.Documents = []Document{table, table} },
		"version too big": func(c *Config) { c.Version = strings.Repeat("v", 65) },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := m.SetKeys(nil); err == nil {
		t.Error("no keys: taken")
	}
	// Keys are taken out of the middle of a ring.
	ring := func(keys ...byte) (all [][32]byte) {
		for _, k := range keys {
			all = append(all, [32]byte{k})
		}
		return all
	}
	for _, keys := range [][]byte{{1, 2, 3, 4}, {4, 1, 3}, {5, 3, 4}, {3}, {6, 7}} {
		if err := m.SetKeys(ring(keys...)); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for _, k := range m.ring.GetKeys() {
			got = append(got, k[0])
		}
		slices.Sort(got[1:])
		slices.Sort(keys[1:])
		if !slices.Equal(got, keys) {
			t.Errorf("ring: got %v, want %v", got, keys)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer busy.Close()
	c := good
	c.Bind = busy.Addr().(*net.TCPAddr).AddrPort()
	if m, err = New(c); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.Bind.String()) {
		t.Errorf("address in use: got %v", err)
	}
}
