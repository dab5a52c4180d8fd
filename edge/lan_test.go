package edge

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/balancing"
	"peerage/balancing/nstest"
)

// What a VIP does on a real network, where it is an address of one machine at a time: two
// nodes in network namespaces of their own, and a client, on a bridge.

var lanVIPs = []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}

// TestVIPOnALAN runs the tests of this file in a child process that has a namespace.
func TestVIPOnALAN(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	layBridge(t)
	t.Run("is served in the instant in which it is claimed", testClaimedAtOnce)
	t.Run("that is lost takes its connections along", testLostAtOnce)
	t.Run("leaves in order", testLeavesInOrder)
	t.Run("of a dead node is reset by its stand-in", testStandInResets)
}

const bridge = "br0"

// layBridge is the network, and the client on it.
func layBridge(t *testing.T) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel makes no bridge for us: %v", err)
	}
	must(t, err)
	must(t, linkUp("lo"))
	must(t, addAddr(bridge, "192.0.2.254/24"))
	must(t, addAddr(bridge, "2001:db8::fe/64"))
	must(t, linkUp(bridge))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func addAddr(name, prefix string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	return netlink.AddrAdd(l, a)
}

// machine is a namespace with a node.
type machine struct {
	*node
	t    *testing.T
	ns   *os.File
	port string // of the bridge
}

// do runs f in the namespace. Sockets that f opens stay there.
func (m *machine) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := unix.Setns(int(m.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- os.NewSyscallError("setns", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// newMachine starts a node of c that is ready for the VIPs.
func newMachine(t *testing.T, c *cluster, id balancing.NodeID, host string) *machine {
	t.Helper()
	m := &machine{node: c.nodes[id], t: t, port: "port-" + string(id)}
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			m.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("this kernel makes no further network namespaces for us: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.ns.Close() })
	br, err := netlink.LinkByName(bridge)
	must(t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = m.port, br.Attrs().Index
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.ns.Fd())}
	must(t, netlink.LinkAdd(cable))
	t.Cleanup(func() { netlink.LinkDel(cable) })
	must(t, m.do(func() error {
		return errors.Join(linkUp("lo"), addAddr("eth0", "192.0.2."+host+"/24"), addAddr("eth0", "2001:db8::"+host+"/64"), linkUp("eth0"))
	}))
	must(t, linkUp(m.port))

	m.Listen([]netip.Addr{m.addr}, lanVIPs)
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(t.Context())
	go func() { m.done <- m.do(func() error { return m.Run(ctx) }) }()
	m.await(t, m.addr) // the standby is opened in the same breath
	return m
}

// claim gives the VIPs to the machine, as its guard does: the server hears of it later.
func (m *machine) claim() {
	m.t.Helper()
	for _, vip := range lanVIPs {
		must(m.t, m.do(func() error { return addAddr("eth0", netip.PrefixFrom(vip, vip.BitLen()).String()) }))
	}
	m.forgetNeighbours()
}

// release takes the VIPs away.
func (m *machine) release() {
	m.t.Helper()
	must(m.t, m.do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, vip := range lanVIPs {
			a, err := netlink.ParseAddr(netip.PrefixFrom(vip, vip.BitLen()).String())
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(l, a); err != nil {
				return err
			}
		}
		return nil
	}))
}

// held tells the server that the VIPs are there.
func (m *machine) held() {
	m.t.Helper()
	all := append(slices.Clone(lanVIPs), m.addr)
	m.Listen(all, lanVIPs)
	m.await(m.t, all...)
}

// lost tells the server that they are gone.
func (m *machine) lost() {
	m.t.Helper()
	m.Listen([]netip.Addr{m.addr}, lanVIPs)
	m.await(m.t, m.addr)
}

// forgetNeighbours is what announcements do.
func (m *machine) forgetNeighbours() {
	m.t.Helper()
	br, err := netlink.LinkByName(bridge)
	must(m.t, err)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		known, err := netlink.NeighList(br.Attrs().Index, family)
		must(m.t, err)
		for _, n := range known {
			if a, ok := netip.AddrFromSlice(n.IP); ok && slices.Contains(lanVIPs, a.Unmap()) {
				if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					m.t.Fatal(err)
				}
			}
		}
	}
}

// eachClient runs f for each VIP and protocol.
func eachClient(f func(vip netip.Addr, proto string)) {
	for _, vip := range lanVIPs {
		for _, proto := range protocols {
			f(vip, proto)
		}
	}
}

// testClaimedAtOnce: the first connection to a VIP is served, though the server has not
// heard that the VIP is there.
func testClaimedAtOnce(t *testing.T) {
	c := build(t, nil)
	defer c.stop()
	a, b := newMachine(t, c, "a", "1"), newMachine(t, c, "b", "2")
	for range 2 {
		for _, m := range []*machine{a, b} {
			m.claim()
			eachClient(func(vip netip.Addr, proto string) {
				fresh := newClient(proto, vip, c.ca.pool)
				defer closeClient(fresh)
				got, err := c.tryWith(fresh, question{path: "/"})
				if err != nil {
					t.Errorf("%s at %s, just claimed: %v", proto, vip, err)
					return
				}
				got.want(t, 200, m.id, "")
			})
			if got := m.Listening(); !slices.Equal(got, []netip.Addr{m.addr}) {
				t.Errorf("node %s says that it answers on %v", m.id, got)
			}
			m.held()
			m.release()
			m.lost()
		}
	}
}

// testLostAtOnce: nothing is left of a VIP's connections when the address is gone, idle or
// not, while those of other addresses go on.
func testLostAtOnce(t *testing.T) {
	var inOrigin atomic.Int64
	entered := make(chan struct{}, 20)
	c := build(t, func(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/idle" {
			return
		}
		inOrigin.Add(1)
		defer inOrigin.Add(-1)
		if r.Header.Get("Upgrade") != "" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			entered <- struct{}{}
			io.Copy(io.Discard, conn)
			return
		}
		entered <- struct{}{}
		w.Write(make([]byte, 8<<20)) // more than anything buffers: this client does not read
		<-r.Context().Done()
	})
	defer c.stop()
	a := newMachine(t, c, "a", "1")
	a.claim()
	a.held()
	eachClient(func(vip netip.Addr, proto string) {
		idle := newClient(proto, vip, c.ca.pool)
		t.Cleanup(func() { closeClient(idle) })
		if _, err := c.tryWith(idle, question{path: "/idle"}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		resp, err := c.open(ctx, question{addr: vip, proto: proto, path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		receive(t, entered, "the request to reach the origin")
	})
	c.at(t, lanVIPs[0], upgrade("/ws", ""))
	receive(t, entered, "the tunnel to reach the origin")
	var here, silent net.Conn
	must(t, a.do(func() (err error) {
		here, err = tls.Dial("tcp", netip.AddrPortFrom(a.addr, testPorts.HTTPS).String(), &tls.Config{RootCAs: c.ca.pool, ServerName: host})
		return err
	}))
	defer here.Close()
	silent, err := net.Dial("tcp", netip.AddrPortFrom(lanVIPs[0], testPorts.HTTP).String()) // says nothing at all
	must(t, err)
	defer silent.Close()
	if n := inOrigin.Load(); n != 7 {
		t.Fatalf("%d requests are in progress, want 7", n)
	}
	var open []*endpoint
	for _, vip := range lanVIPs {
		open = append(open, a.endpoints([]netip.Addr{vip})...)
	}
	conns := func() (n int) {
		for _, e := range open {
			for _, d := range []*door{e.https, e.http} {
				d.mu.Lock()
				n += len(d.open)
				d.mu.Unlock()
			}
			e.mu.Lock()
			n += int(e.quic.load.conns.Load())
			e.mu.Unlock()
		}
		return n
	}
	const tcp, all = 10, 14
	eventually(t, func() bool { return conns() == all && len(a.inKernel()) == tcp }, func() string {
		return fmt.Sprintf("%d connections, and TCP in the kernel: %v; want %d and %d", conns(), a.inKernel(), all, tcp)
	})

	a.release()
	a.lost()
	eventually(t, func() bool { return conns() == 0 && inOrigin.Load() == 0 }, func() string {
		return "connections to an address that is gone are left"
	})
	for _, e := range open {
		eventually(t, func() bool { return e.requests.n.Load() == 0 }, func() string { return "a request is in progress for ever" })
	}
	if left := a.inKernel(); len(left) > 0 {
		t.Errorf("the kernel has connections of the addresses still: %v", left)
	}
	here.SetDeadline(time.Now().Add(20 * time.Second))
	if resp := readAnswer(t, here, "GET /idle HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); resp.StatusCode != 200 {
		t.Errorf("at an address that stays: status %d", resp.StatusCode)
	}

	// The same sockets serve when the address is back.
	a.claim()
	eachClient(func(vip netip.Addr, proto string) {
		fresh := newClient(proto, vip, c.ca.pool)
		defer closeClient(fresh)
		if got, err := c.tryWith(fresh, question{path: "/idle"}); err != nil || got.StatusCode != 200 {
			t.Errorf("%s at %s, claimed again: %v", proto, vip, err)
		}
	})
	for i, vip := range lanVIPs {
		a.held()
		if now := a.endpoints([]netip.Addr{vip}); len(now) != 1 || now[0] != open[i] {
			t.Errorf("the sockets of %s are others", vip)
		}
	}
}

// inKernel returns the TCP connections of the VIPs that the kernel of the machine has, as
// proc_net(5) writes them.
func (m *machine) inKernel() (conns []string) {
	m.t.Helper()
	const listens = "0A"
	for _, table := range []string{"tcp", "tcp6"} {
		var text string
		must(m.t, m.do(func() error {
			b, err := os.ReadFile("/proc/thread-self/net/" + table)
			text = string(b)
			return err
		}))
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			addr, _, _ := strings.Cut(f[1], ":")
			if f[3] != listens && slices.ContainsFunc(lanVIPs, func(a netip.Addr) bool { return addr == procAddr(a) }) {
				conns = append(conns, strings.Join(f[1:4], " "))
			}
		}
	}
	return conns
}

// procAddr is a as in /proc/net: words of four octets, the last octet first.
func procAddr(a netip.Addr) (text string) {
	for word := range slices.Chunk(a.AsSlice(), 4) {
		text += fmt.Sprintf("%08X", binary.LittleEndian.Uint32(word))
	}
	return text
}

// testLeavesInOrder: clients that keep asking notice nothing of a VIP that goes from one
// node to another.
func testLeavesInOrder(t *testing.T) {
	c := build(t, nil)
	defer c.stop()
	a, b := newMachine(t, c, "a", "1"), newMachine(t, c, "b", "2")
	a.claim()
	a.held()
	eachClient(func(vip netip.Addr, proto string) {
		c.ask(t, question{addr: vip, proto: proto, path: "/"}).want(t, 200, "a", "")
	})
	if err := receive(t, leaving(t.Context(), a.node, lanVIPs...), "the end of Leave"); err != nil {
		t.Errorf("Leave = %v", err)
	}
	a.release()
	b.claim()
	a.lost()
	b.held()
	eachClient(func(vip netip.Addr, proto string) {
		// A POST is not sent again by a client that does not know what became of it.
		c.ask(t, question{addr: vip, proto: proto, path: "/", method: http.MethodPost, body: "once"}).want(t, 200, "b", "")
	})
}

// testStandInResets: a client whose node has died hears of it when it asks again, from the
// kernel of the stand-in (RFC 9293 3.5.2) or from its QUIC socket (RFC 9000 10.3), and is
// served at its next attempt.
func testStandInResets(t *testing.T) {
	c := build(t, nil)
	defer c.stop()
	a, b := newMachine(t, c, "a", "1"), newMachine(t, c, "b", "2")
	a.claim()
	a.held()
	eachClient(func(vip netip.Addr, proto string) {
		c.ask(t, question{addr: vip, proto: proto, path: "/"}).want(t, 200, "a", "")
	})
	var raw []net.Conn
	for _, vip := range lanVIPs {
		_, conn, _ := c.at(t, vip, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		raw = append(raw, conn)
	}
	port, err := netlink.LinkByName(a.port)
	must(t, err)
	must(t, netlink.LinkSetDown(port)) // its cable is pulled
	b.claim()

	for i, conn := range raw {
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		for err = nil; err == nil; {
			_, err = conn.Read(make([]byte, 1<<10)) // the rest of the first answer
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a connection to %s of the dead node ends with %v, want a reset", lanVIPs[i], err)
		}
	}
	eachClient(func(vip netip.Addr, proto string) {
		// An attempt takes a tenth of the time after which QUIC would give up by itself.
		ctx, cancel := context.WithTimeout(t.Context(), quicIdle/10)
		defer cancel()
		ask := question{addr: vip, proto: proto, path: "/", method: http.MethodPost, body: "once"}
		_, err := c.try(ctx, ask)
		reset := errors.Is(err, unix.ECONNRESET)
		if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
			reset = true
		}
		if err != nil && !reset {
			t.Errorf("%s at %s: %v, want a reset", proto, vip, err)
			return
		}
		t.Logf("%s at %s: %v", proto, vip, err)
		c.ask(t, ask).want(t, 200, "b", "")
	})
}
