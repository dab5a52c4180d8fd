package fence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"peerage/balancing/nstest"
)

const mark = 0x70656572

// TestInNamespace runs the tests that need a network of their own in a child process that
// has one.
func TestInNamespace(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, nil)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lan)
	}{
		{"a marked packet opens it", testOpens},
		{"what leaves", testOutgoing},
		{"what comes in", testIncoming},
		{"closes when the lease is over", testLease},
		{"a lease changes while it runs", testLeaseChanges},
		{"revoked, it is closed until the next marked packet", testRevoke},
		{"nobody else opens it, or finds his mark changed", testForeignMarks},
		{"VIPs change while it is open", testVIPsChange},
		{"repairs what was removed", testRepair},
		{"closes when its owner is killed", testOwnerKilled},
		{"there is one in a namespace", testOneOwner},
		{"reports leave by another device", testReportsElsewhere},
		{"says what is wrong", testErrors},
		{"says that it is not permitted", testNotPermitted},
		{"leaves nothing", testClose},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, l) })
	}
}

// config has a lease that does not end by itself.
func (l *lan) config() Config {
	return Config{Device: l.device, Reports: l.device, Mark: mark, VIPs: []netip.Addr{vip4, vip6}, Lease: time.Hour}
}

// fence opens the fence, and sets it.
func (l *lan) fence(t *testing.T, c Config) *Fence {
	t.Helper()
	f, err := Open()
	must(t, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, f.Set(c))
	return f
}

// report sends what opens the fence, if the mark is right.
func (l *lan) report(tb testing.TB, mark int) {
	tb.Helper()
	must(tb, sendMarked(netip.AddrPortFrom(host4, 0), netip.AddrPortFrom(far4, 7947), mark))
}

// sendMarked sends a datagram that has the mark.
func sendMarked(from, to netip.AddrPort, mark int) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}), err)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp", from.String())
	if err != nil {
		return err
	}
	_, err = c.WriteTo([]byte("report"), net.UDPAddrFromAddrPort(to))
	return errors.Join(err, c.Close())
}

// testLease waits for the kernel, whose timer no test can turn on.
func testLease(t *testing.T, l *lan) {
	c := l.config()
	c.Lease = time.Second
	l.fence(t, c)
	for began := time.Now(); time.Since(began) < 2*c.Lease; {
		renewed := time.Now()
		l.report(t, mark)
		if l.silent(t, l.ping(vip4), l.ping(host4)) && time.Since(renewed) < c.Lease/2 {
			t.Fatal("the fence is closed, though just renewed")
		}
	}
	l.expectCloses(t)
}

// expectCloses waits until the fence is closed, without a report.
func (l *lan) expectCloses(t *testing.T) {
	t.Helper()
	for began := time.Now(); !l.silent(t, l.ping(vip4), l.ping(host4)); {
		if time.Since(began) > time.Minute {
			t.Fatal("the fence stays open without a report")
		}
	}
	l.expectClosed(t, l.incoming(vip4, vip6))
}

func testLeaseChanges(t *testing.T, l *lan) {
	c := l.config()
	f := l.fence(t, c)
	all := l.incoming(vip4, vip6)
	l.report(t, mark)
	c.Lease, c.Mark = 300*time.Millisecond, mark+1
	must(t, f.Set(c))
	l.expectOpen(t, all) // the old one runs
	l.report(t, mark+1)
	l.expectCloses(t)
	l.report(t, mark)
	l.expectClosed(t, all)
	c.Lease = time.Hour
	must(t, f.Set(c))
	l.report(t, mark+1)
	l.expectOpen(t, all)
}

func testRevoke(t *testing.T, l *lan) {
	f, err := Open()
	must(t, err)
	defer f.Close()
	must(t, f.Revoke()) // nothing yet
	must(t, f.Set(l.config()))
	all := l.incoming(vip4, vip6)
	for range 3 {
		l.report(t, mark)
		l.expectOpen(t, all)
		must(t, f.Revoke())
		l.expectClosed(t, all)
	}
}

// testForeignMarks sends from a VIP and from the host with marks that others may use, and
// looks at what is left of them behind the fence.
func testForeignMarks(t *testing.T, l *lan) {
	l.fence(t, l.config())
	conn, err := dial()
	must(t, err)
	defer conn.close()
	const foreign = 0x1234
	watch := table{
		name: "watch", sets: []set{{name: "marks", flags: setLease.flags, kind: 19, octets: 4}},
		chains: []chain{{name: "watch", place: out(l.device, stepRenew), rules: []rule{
			newRule(isIPv4, network(ipv4Source, 4), within(vips4), meta(unix.NFT_META_MARK), renew("marks", time.Hour)),
		}}},
	}
	watch.sets = append(watch.sets, set4)
	must(t, conn.transact(append(watch.ruleChanges(state{}, true),
		watch.elements(unix.NFT_MSG_NEWSETELEM, vips4, []string{string(vip4.AsSlice()), string(host4.AsSlice())})...)))
	defer func() { must(t, conn.transact([]message{watch.delete()})) }()

	if !l.silent(t, datagram(vip4, passBit|foreign), datagram(host4, passBit|foreign+1)) {
		t.Error("a mark of somebody else's opens the fence")
	}
	l.report(t, mark)
	l.expect(t, datagram(vip4, foreign+2), datagram(vip4, passBit|foreign+3))
	keys := make(map[string]bool)
	must(t, conn.request(message{
		kind: unix.NFT_MSG_GETSETELEM, flags: unix.NLM_F_DUMP,
		body: attrs(nil).text(unix.NFTA_SET_ELEM_LIST_TABLE, "watch").text(unix.NFTA_SET_ELEM_LIST_SET, "marks"),
	},
		func(body []byte) error { return parseElements(body, keys) }))
	for _, want := range []uint32{passBit | foreign + 1, mark, foreign + 2, foreign + 3} {
		if !keys[string(native(want))] {
			t.Errorf("behind the fence nothing has the mark %#x", want)
		}
		delete(keys, string(native(want)))
	}
	delete(keys, string(native(0))) // whatever the host says of itself
	for k := range keys {
		t.Errorf("behind the fence something has the mark %x", k)
	}
}

func testVIPsChange(t *testing.T, l *lan) {
	c := l.config()
	f := l.fence(t, c)
	l.report(t, mark)
	for range 3 {
		c.VIPs = []netip.Addr{vip4, vip6, spare4, spare6, spare4} // twice does not matter
		must(t, f.Set(c))
		l.expectOpen(t, l.incoming(c.VIPs...))
		must(t, f.Revoke())
		l.expectClosed(t, l.incoming(c.VIPs...))
		l.report(t, mark)
		c.VIPs = []netip.Addr{vip6, vip4}
		must(t, f.Set(c))
		l.expectOpen(t, l.incoming(vip4, vip6))
		must(t, f.Revoke())
		l.expectOpen(t, l.incoming(spare4, spare6))
		l.report(t, mark)
	}
	c.VIPs = nil
	must(t, f.Set(c))
	must(t, f.Revoke())
	l.expectOpen(t, l.incoming(vip4, vip6))
}

func testRepair(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	other, err := dial()
	must(t, err)
	defer other.close()
	must(t, f.Set(l.config()))
	whole := tables(t, other)
	all := slices.Concat(l.incoming(vip4, vip6), l.outgoing(t))
	for name, damage := range map[string][]message{
		"all":     {{kind: unix.NFT_MSG_DELTABLE}}, // nft flush ruleset
		"a table": {table{name: standing}.delete()},
		"rules":   {table{name: standing}.flush()},
		"a chain": {table{name: standing}.flush(), table{name: standing}.chainMessage(unix.NFT_MSG_DELCHAIN, 0, "pass-in", nil)},
		"a VIP":   {table{name: standing}.emptied(vips4)},
	} {
		l.report(t, mark)
		must(t, other.transact(damage))
		if tables(t, other) == whole {
			t.Fatalf("%s: nothing was removed", name)
		}
		must(t, f.Revoke())
		l.expectClosed(t, all) // the other table is the process's own
		l.expectStopped(t)
		must(t, f.Set(l.config()))
		if got := tables(t, other); got != whole {
			t.Errorf("%s was removed, and is not there again: got\n%s\nwant\n%s", name, got, whole)
		}
		l.report(t, mark)
		l.expectOpen(t, all)
	}
	if err := other.transact([]message{table{name: owned}.delete()}); !errors.Is(err, unix.EPERM) {
		t.Errorf("another process removes the lease: got %v, want %v", err, unix.EPERM)
	}
}

// tables puts what the kernel has of the fence into words.
func tables(t *testing.T, c *conn) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{standing, owned} {
		s, err := c.read(name)
		must(t, err)
		fmt.Fprintf(&b, "%s %v\n", name, s)
	}
	return b.String()
}

func testErrors(t *testing.T, l *lan) {
	f, err := Open()
	must(t, err)
	for want, change := range map[string]func(*Config){
		`interface "nowhere0"`: func(c *Config) { c.Device = "nowhere0" },
		`interface "nowhere1"`: func(c *Config) { c.Reports = "nowhere1" },
		`interface ""`:         func(c *Config) { c.Device = "" },
		"is not of Ethernet":   func(c *Config) { c.Device = "lo" },
		"mark 0":               func(c *Config) { c.Mark = 0 },
		"lease 9ms":            func(c *Config) { c.Lease = 9 * time.Millisecond },
		"lease 1h0m1s":         func(c *Config) { c.Lease = time.Hour + time.Second },
		"VIP ff02::1":          func(c *Config) { c.VIPs = []netip.Addr{netip.IPv6LinkLocalAllNodes()} },
		"VIP fe80::1%eth0":     func(c *Config) { c.VIPs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"VIP ::ffff:192.0.2.1": func(c *Config) { c.VIPs = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")} },
		"16385 VIPs":           func(c *Config) { c.VIPs = slices.Repeat(c.VIPs[:1], maxVIPs+1) },
		"mark 0: every packet has it; choose another\nlease 0s": func(c *Config) { c.Mark, c.Lease = 0, 0 },
	} {
		c := l.config()
		change(&c)
		if err := f.Set(c); err == nil || !strings.HasPrefix(err.Error(), "fence VIPs on "+c.Device+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	must(t, f.Set(l.config()))
	must(t, f.Close())
	must(t, f.Close())
	if err := f.Set(l.config()); !errors.Is(err, errClosed) {
		t.Errorf("set when closed: got %v", err)
	}
	if err := f.Revoke(); !errors.Is(err, errClosed) {
		t.Errorf("revoke when closed: got %v", err)
	}
}

func testClose(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	l.expectClosed(t, l.incoming(vip4, vip6))
	must(t, f.Close())
	c, err := dial()
	must(t, err)
	defer c.close()
	must(t, c.request(message{kind: unix.NFT_MSG_GETTABLE, flags: unix.NLM_F_DUMP}, func(body []byte) error {
		return walk(body, func(kind uint16, value []byte) error {
			if kind == unix.NFTA_TABLE_NAME {
				t.Errorf("table %s is left", text(value))
			}
			return nil
		})
	}))
	l.expectOpen(t, l.incoming(vip4, vip6))
}

// TestManyVIPs needs a socket buffer beyond the limit of the system, and so root.
func TestManyVIPs(t *testing.T) {
	outside(t)
	c := newLAN(t, nil).config()
	f, err := Open()
	must(t, err)
	defer f.Close()
	all := many(maxVIPs + 1000)
	for _, vips := range [][]netip.Addr{all[:maxVIPs], all[1000:], all[:10]} {
		c.VIPs = vips
		must(t, f.Set(c))
		for _, name := range []string{standing, owned} {
			have, err := f.conn.read(name)
			must(t, err)
			for set, want := range c.keys() {
				if !maps.Equal(have.vips[set], want) {
					t.Errorf("%s %s: %d elements, want %d, or others", name, set, len(have.vips[set]), len(want))
				}
			}
		}
	}
}
