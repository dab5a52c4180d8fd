package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"peerage/appliance/node"
)

// What follows makes a LAN of network namespaces, as operations.md has it: a client and
// the nodes on a public bridge, the nodes on an internal one too. All of it lies in the
// namespace that TestMain has made, and ends with it.

const (
	lanHost   = "www.example.com"
	public    = "eth0" // of every namespace of the LAN
	internal  = "eth1" // of the nodes
	shopPort  = "9000"
	lanClient = "192.0.2.254"
)

// namespace is a network namespace other than the test's own.
type namespace struct{ file *os.File }

// do runs f on a thread in the namespace. What f opens, and what it starts, stays there.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// onThread runs f on a thread whose namespace f may change.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // a thread that cannot go back ends with its goroutine
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	n := new(namespace)
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return errors.Join(err, loopbackUp())
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		t.Skipf("this kernel makes no further network namespaces for us: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

// lan is the network with everything on it.
type lan struct {
	t      *testing.T
	client *namespace
	nodes  []*lanNode
	taps   map[string]*tap // by bridge

	blocked []string // rules of what the bridges drop
}

// lanNode is a machine, and the node that runs on it.
type lanNode struct {
	*namespace
	t    *testing.T
	name string
	dir  string // with node.yaml, and the data directory
	vips []netip.Addr

	station string // on the public network

	cmd   *exec.Cmd
	ended chan struct{}

	mu  sync.Mutex
	log []logLine
}

type logLine struct {
	Time  time.Time `json:"time"`
	Level string    `json:"level"`
	Msg   string    `json:"msg"`
	VIP   string    `json:"vip"`
	line  string
}

func newLAN(t *testing.T, nodes int) *lan {
	if os.Getenv("PEERAGE_TEST_NAMESPACE") == "" {
		t.Skip("a LAN needs a network namespace, and there is none")
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0") // or each program ends a second late under the race detector
	l := &lan{t: t, client: newNamespace(t), taps: map[string]*tap{}}
	for _, name := range []string{public, internal} {
		l.bridge(name)
	}
	l.plug(l.client, "client", public, lanClient+"/24", "2001:db8::fe/64")
	// The client keeps what it knows of its neighbours until it is told: no timeout of its
	// own shall help a takeover.
	err := l.client.do(func() error {
		ifi, err := netlink.LinkByName(public)
		if err != nil {
			return err
		}
		const hour = "3600000"
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: ifi.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(224, 0, 0, 0), Mask: net.CIDRMask(4, 32)}}),
			os.WriteFile("/proc/sys/net/ipv4/neigh/"+public+"/base_reachable_time_ms", []byte(hour), 0),
			os.WriteFile("/proc/sys/net/ipv6/neigh/"+public+"/base_reachable_time_ms", []byte(hour), 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		k := i + 1
		n := &lanNode{namespace: newNamespace(t), t: t, name: fmt.Sprint("n", k), dir: t.TempDir()}
		l.plug(n.namespace, n.name, public, fmt.Sprintf("192.0.2.%d/24", k), fmt.Sprintf("2001:db8::%d/64", k))
		l.plug(n.namespace, n.name, internal, fmt.Sprintf("10.0.0.%d/24", k))
		n.vips = []netip.Addr{netip.MustParseAddr(fmt.Sprint("192.0.2.1", k)), netip.MustParseAddr(fmt.Sprint("2001:db8::1", k))}
		n.station = l.stationOf(n.namespace)
		l.nodes = append(l.nodes, n)
		n.serveShop()
		t.Cleanup(n.end)
	}
	return l
}

// stationOf returns the address of a machine on the public network.
func (l *lan) stationOf(n *namespace) (station string) {
	l.t.Helper()
	err := n.do(func() error {
		ifi, err := net.InterfaceByName(public)
		if err == nil {
			station = ifi.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return station
}

// bridgeOf is the bridge that the interfaces of the given name are on.
func bridgeOf(name string) string { return "br-" + name }

func (l *lan) bridge(name string) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeOf(name)
	b := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(b); errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		l.t.Skipf("this kernel makes no bridge for us: %v", err)
	} else if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { netlink.LinkDel(b) })
	if err := netlink.LinkSetUp(b); err != nil {
		l.t.Fatal(err)
	}
	l.taps[name] = &tap{seen: map[string]int{}, last: map[string][]byte{}}
}

// plug lays a cable from an interface in n to the bridge of that name, and gives the
// interface its addresses.
func (l *lan) plug(n *namespace, host, name string, addrs ...string) {
	l.t.Helper()
	bridge, err := netlink.LinkByName(bridgeOf(name))
	if err != nil {
		l.t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = host+"-"+name, bridge.Attrs().Index
	port := &netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(n.file.Fd())}
	if err := netlink.LinkAdd(port); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { netlink.LinkDel(port) })
	l.taps[name].listen(l.t, attrs.Name)
	l.cable(host, name, true)
	err = n.do(func() error {
		ifi, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD // usable at once
			}
			if err := netlink.AddrAdd(ifi, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(ifi)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// cable plugs or pulls the cable of a host at its bridge.
func (l *lan) cable(host, name string, plugged bool) {
	l.t.Helper()
	port, err := netlink.LinkByName(host + "-" + name)
	if err != nil {
		l.t.Fatal(err)
	}
	set := netlink.LinkSetDown
	if plugged {
		set = netlink.LinkSetUp
	}
	if err := set(port); err != nil {
		l.t.Fatal(err)
	}
}

// isolate takes the port of a host from its bridge, or puts it back: a switch that passes
// nothing on, while the carrier stays.
func (l *lan) isolate(host, name string, isolated bool) {
	l.t.Helper()
	to := bridgeOf(name)
	if isolated {
		to = ""
	}
	l.move(host, name, to)
}

// move takes the port of a host to a bridge, or "" for none.
func (l *lan) move(host, name, to string) {
	l.t.Helper()
	port, err := netlink.LinkByName(host + "-" + name)
	if err != nil {
		l.t.Fatal(err)
	}
	master := 0
	if to != "" {
		bridge, err := netlink.LinkByName(to)
		if err != nil {
			l.t.Fatal(err)
		}
		master = bridge.Attrs().Index
	}
	if err := netlink.LinkSetMasterByIndex(port, master); err != nil {
		l.t.Fatal(err)
	}
}

// tap counts what passes the ports of a bridge, by protocol and port of destination.
type tap struct {
	mu   sync.Mutex
	seen map[string]int    // "udp 7947"
	last map[string][]byte // the latest report, by the sender's address

	record *os.File // for all that passes; nil for no record
	size   int
}

// maxRecord bounds a record, in octets.
const maxRecord = 512 << 20

func (p *tap) listen(t *testing.T, port string) {
	ifi, err := net.InterfaceByName(port)
	if err != nil {
		t.Fatal(err)
	}
	c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_ALL, nil)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	t.Cleanup(func() {
		c.Close()
		<-over
	})
	go func() {
		defer close(over)
		b := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(b)
			switch {
			case err == nil:
				p.keep(b[:n])
				p.count(b[:n])
			case !errors.Is(err, unix.ENETDOWN): // a cable that is pulled may come back
				return
			}
		}
	}()
}

// keep records a packet.
func (p *tap) keep(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.record != nil && p.size < maxRecord {
		p.record.Write(b)
		p.size += len(b)
	}
}

// count takes one IPv4 or IPv6 packet without extensions.
func (p *tap) count(b []byte) {
	if len(b) < 28 {
		return
	}
	var protocol byte
	from := net.IP(b[12:16]).String() // of IPv4
	switch b[0] >> 4 {
	case 4:
		protocol, b = b[9], b[min(int(b[0]&15)*4, len(b)):]
	case 6:
		protocol, b = b[6], b[min(40, len(b)):]
	}
	name, ok := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[protocol]
	if !ok || len(b) < 8 {
		return
	}
	to := fmt.Sprintf("%s %d", name, int(b[2])<<8|int(b[3]))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[to]++
	if to == "udp 7947" {
		p.last[from] = slices.Clone(b[8:])
	}
}

func (p *tap) of(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[what]
}

// serveShop is a back-end beside the node: who bought there finds it on no other.
func (n *lanNode) serveShop() {
	n.t.Helper()
	var l net.Listener
	err := n.do(func() (err error) {
		l, err = net.Listen("tcp", "10.0.0."+n.name[1:]+":"+shopPort)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Shop", n.name)
		if d, err := time.ParseDuration(r.FormValue("for")); err == nil {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "bought\n")
	})}
	go srv.Serve(l)
	n.t.Cleanup(func() { srv.Close() })
}

// run runs a program in the namespace, and returns what it printed.
func (n *namespace) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := n.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s %s\n%v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

func (n *lanNode) config() string { return filepath.Join(n.dir, "node.yaml") }
func (n *lanNode) data() string   { return filepath.Join(n.dir, "data") }

// start runs the node, which must not run.
func (n *lanNode) start() {
	n.t.Helper()
	n.cmd = exec.Command(binary, "run", "--config", n.config(), "--log", "json")
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd.Stderr = w
	err = n.do(n.cmd.Start)
	w.Close()
	if err != nil {
		n.t.Fatal(err)
	}
	n.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			l := logLine{line: lines.Text()}
			json.Unmarshal(lines.Bytes(), &l)
			n.mu.Lock()
			n.log = append(n.log, l)
			n.mu.Unlock()
		}
		r.Close()
		cmd.Wait()
	}(n.cmd, n.ended)
}

// signal sends the guard a signal.
func (n *lanNode) signal(s os.Signal) { n.cmd.Process.Signal(s) }

// end ends the node in order and waits for it.
func (n *lanNode) end() {
	if n.cmd == nil {
		return
	}
	n.signal(syscall.SIGTERM)
	n.awaitEnd()
	if n.t.Failed() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, l := range n.log {
			n.t.Log(l.line)
		}
		n.log = nil
	}
}

// awaitEnd waits for a node that has been told to end. One that does not tells what it
// does, and is killed.
func (n *lanNode) awaitEnd() {
	n.t.Helper()
	for _, s := range []os.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		select {
		case <-n.ended:
			return
		case <-time.After(time.Minute):
			n.t.Errorf("%s does not end", n.name)
			n.signal(s)
		}
	}
	<-n.ended
}

// lines returns the log so far of all starts.
func (n *lanNode) lines() []logLine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log)
}

// status asks the node; nil if it does not answer.
func (n *lanNode) status() *node.Status {
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Second)
	defer cancel()
	st, err := node.Client(n.data()).Status(ctx)
	if err != nil {
		return nil
	}
	return st
}

// holds reports whether the machine's kernel has the address.
func (n *lanNode) holds(vip netip.Addr) (has bool) {
	n.t.Helper()
	err := n.do(func() error {
		ifi, err := netlink.LinkByName(public)
		if err != nil {
			return err
		}
		all, err := netlink.AddrList(ifi, netlink.FAMILY_ALL)
		for _, a := range all {
			has = has || a.IP.Equal(vip.AsSlice())
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return has
}

// holders returns the names of the machines whose kernels have the address.
func (l *lan) holders(vip netip.Addr) (names []string) {
	l.t.Helper()
	for _, n := range l.nodes {
		if n.holds(vip) {
			names = append(names, n.name)
		}
	}
	return names
}

// neighbour returns the station that the client takes for the one with the address.
func (l *lan) neighbour(vip netip.Addr) (mac string) {
	l.t.Helper()
	err := l.client.do(func() error {
		ifi, err := netlink.LinkByName(public)
		if err != nil {
			return err
		}
		family := netlink.FAMILY_V4
		if vip.Is6() {
			family = netlink.FAMILY_V6
		}
		all, err := netlink.NeighList(ifi.Attrs().Index, family)
		for _, e := range all {
			if e.IP.Equal(vip.AsSlice()) {
				mac = e.HardwareAddr.String()
			}
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return mac
}

// dial connects from the client.
func (l *lan) dial(ctx context.Context, network, to string) (c net.Conn, err error) {
	return c, l.client.do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, to)
		return err
	})
}

// http returns a client of the site, on the client machine, that finds the host at the
// address and speaks the wanted version.
func (l *lan) http(tc *tls.Config, vip netip.Addr, version int) *http.Client {
	at := netip.AddrPortFrom(vip, 443)
	c := &http.Client{Timeout: 10 * time.Second, CheckRedirect: noRedirect}
	if version == 3 {
		tr := &http3.Transport{TLSClientConfig: tc, Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
			var udp net.PacketConn
			err := l.client.do(func() (err error) {
				udp, err = net.ListenPacket("udp", ":0")
				return err
			})
			if err != nil {
				return nil, err
			}
			l.t.Cleanup(func() { udp.Close() })
			return quic.Dial(ctx, udp, net.UDPAddrFromAddrPort(at), tc, qc)
		}}
		l.t.Cleanup(func() { tr.Close() })
		c.Transport = tr
		return c
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetHTTP2(version == 2)
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return l.dial(ctx, network, at.String())
		},
		TLSClientConfig: tc.Clone(), // net/http writes to it
		Protocols:       protocols,
	}
	l.t.Cleanup(tr.CloseIdleConnections)
	c.Transport = tr
	return c
}

// polled is what a client saw that asked again and again.
type polled struct {
	count, failed int
	errs          map[string]int
	slowest       time.Duration // of those that were answered
	outage        time.Duration // longest time between two questions that were answered
}

func (p polled) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d asked, %d failed, longest outage %d ms, slowest answer %d ms",
		p.count, p.failed, p.outage.Milliseconds(), p.slowest.Milliseconds())
	for e, n := range p.errs {
		fmt.Fprintf(&b, "\n%6d times %s", n, e)
	}
	return b.String()
}

// poll asks every 10 ms, or as soon as it has an answer, until the returned function is
// called, which waits for the last answer and returns what was seen. It returns when it has
// had three answers.
func poll(t *testing.T, ask func() error) (end func() polled) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan polled)
	going := make(chan struct{})
	go func() {
		p := polled{errs: map[string]int{}}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for {
			began := time.Now()
			err := ask()
			p.count++
			if err != nil {
				p.failed++
				p.errs[err.Error()]++
			} else {
				p.slowest = max(p.slowest, time.Since(began))
				p.outage = max(p.outage, began.Sub(last))
				last = began
				if p.count-p.failed == 3 {
					close(going)
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				p.outage = max(p.outage, time.Since(last))
				result <- p
				return
			}
		}
	}()
	select {
	case <-going:
	case <-time.After(10 * time.Second):
		cancel()
		t.Fatalf("no answers: %s", <-result)
	}
	return func() polled {
		cancel()
		return <-result
	}
}

// pollDNS asks one name server over UDP.
func (l *lan) pollDNS(vip netip.Addr) (end func() polled) {
	l.t.Helper()
	c, err := l.dial(l.t.Context(), "udp", netip.AddrPortFrom(vip, 53).String())
	if err != nil {
		l.t.Fatal(err)
	}
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(lanHost + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	id := uint16(0)
	b := make([]byte, 1500)
	stop := poll(l.t, func() error {
		id++
		m.ID = id
		q, err := m.Pack()
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(30 * time.Millisecond))
		if _, err := c.Write(q); err != nil {
			return errors.New("not sent")
		}
		for {
			n, err := c.Read(b)
			if err != nil {
				return errors.New("no answer")
			}
			if n > 2 && b[0] == q[0] && b[1] == q[1] {
				return nil
			}
		}
	})
	return func() polled {
		defer c.Close()
		return stop()
	}
}

// pollHTTPS fetches a page; over a new connection each time, unless they are kept.
func (l *lan) pollHTTPS(tc *tls.Config, vip netip.Addr, version int, keep bool, target string) (end func() polled) {
	c := l.http(tc, vip, version)
	c.Timeout = 3 * time.Second
	if !keep {
		c.Transport.(*http.Transport).DisableKeepAlives = true
	}
	return poll(l.t, func() error {
		resp, err := c.Get("https://" + lanHost + target)
		if err != nil {
			for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
				err = inner // without addresses and ports
			}
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return fmt.Errorf("body: %w", err)
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusTemporaryRedirect {
			return errors.New(resp.Status)
		}
		return nil
	})
}
