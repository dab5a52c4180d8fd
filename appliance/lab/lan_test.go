package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/balancing/nstest"
)

// TestMain lets the test binary be the peerage binary of a lab: what runs on a machine
// begins as its 'lab enter'.
func TestMain(m *testing.M) {
	if enter := []string{"lab", "enter", "--dir"}; len(os.Args) > 5 && slices.Equal(os.Args[1:4], enter) {
		status, err := Enter(os.Args[4], os.Args[5:])
		fmt.Fprintln(os.Stderr, err)
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// TestInNamespace runs the tests of this file on a real LAN, in a child process that may
// make one. It needs no privileges but that to make user namespaces.
func TestInNamespace(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{Nodes: 3, Period: minPeriod, IPv6: true, Dir: t.TempDir(), Binary: self})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("this kernel makes no LAN for us: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			l.Close()
		}
	}()
	t.Run("faults", func(t *testing.T) { testFaults(t, l) })
	t.Run("the carrier", func(t *testing.T) { testCarrier(t, l) })
	t.Run("delay", func(t *testing.T) { testDelay(t, l) })
	t.Run("wrong use", func(t *testing.T) { testWrongUse(t, l) })
	t.Run("who has a VIP", func(t *testing.T) { testStatus(t, l) })
	t.Run("beyond the router", func(t *testing.T) { testRouter(t, l) })
	t.Run("capture", func(t *testing.T) { testCapture(t, l) })
	t.Run("programs", func(t *testing.T) { testExec(t, l) })
	t.Run("the end", func(t *testing.T) {
		closed = true
		testClose(t, l)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ears are what the machines of a network hear.
type ears struct {
	t     *testing.T
	socks map[string]*net.UDPConn
	to    *net.UDPAddr
	round int
}

func listenEverywhere(t *testing.T, l *Lab, network string, broadcast string) *ears {
	e := &ears{t: t, socks: map[string]*net.UDPConn{}, to: &net.UDPAddr{IP: net.ParseIP(broadcast), Port: 4000}}
	for _, m := range l.machines {
		if m.port(network) == nil {
			continue
		}
		must(t, m.Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 4000})
			e.socks[m.Name] = c
			return err
		}))
	}
	return e
}

func (e *ears) close() {
	for _, c := range e.socks {
		c.Close()
	}
}

// expect has each machine call, and fails unless each hears just those whom it should.
func (e *ears) expect(reaches func(from, to string) bool) {
	e.t.Helper()
	e.round++
	for from, c := range e.socks {
		// Nobody may be there to hear it; and it is no error if the cable is pulled.
		c.WriteToUDP(fmt.Appendf(nil, "%d %s", e.round, from), e.to)
	}
	for to, c := range e.socks {
		var want, got []string
		for from := range e.socks {
			if from == to || reaches(from, to) { // a broadcast comes back to its sender
				want = append(want, from)
			}
		}
		slices.Sort(want)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		var b [100]byte
		for !slices.Equal(got, want) {
			n, err := c.Read(b[:])
			if err != nil {
				e.t.Errorf("round %d: %s hears %v, want %v", e.round, to, got, want)
				break
			}
			var round int
			var from string
			if fmt.Sscan(string(b[:n]), &round, &from); round == e.round {
				got = append(got, from)
				slices.Sort(got)
			}
		}
	}
	// Whatever else there is to hear was there before all of that had arrived.
	for to, c := range e.socks {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		var b [100]byte
		if n, err := c.Read(b[:]); err == nil {
			e.t.Errorf("round %d: %s hears %q too", e.round, to, b[:n])
		}
	}
}

func testFaults(t *testing.T, l *Lab) {
	for network, broadcast := range map[string]string{Public: "192.0.2.255", Internal: "10.0.0.255"} {
		e := listenEverywhere(t, l, network, broadcast)
		check := func() {
			t.Helper()
			e.expect(func(from, to string) bool { return shouldReach(&l.faults, network, from, to) })
		}
		check()
		must(t, l.Cut("n1", Both, Switch))
		check()
		must(t, l.Partition([]string{"n1", "n2"}, []string{"n3", router}))
		check()
		must(t, l.Heal("n1"))
		check()
		must(t, l.Cut("n3", Public, Router))
		check()
		must(t, l.Heal(""))
		check()
		must(t, l.Cut("n1", Public, Router))
		must(t, l.Cut("n2", Public, Router))
		check()
		must(t, l.Cut(router, Both, Switch))
		check()
		must(t, l.Heal(""))
		check()
		e.close()
	}
	must(t, l.lan.do(func() error {
		all, err := netlink.LinkList()
		for _, link := range all {
			if name := link.Attrs().Name; link.Type() == "bridge" && name != Public && name != Internal {
				t.Errorf("the switch %s is left", name)
			}
		}
		return err
	}))
}

func hasCarrier(t *testing.T, m *Machine) (has bool) {
	t.Helper()
	must(t, m.Do(func() error {
		ifi, err := net.InterfaceByName(publicLink)
		has = err == nil && ifi.Flags&net.FlagRunning != 0
		return err
	}))
	return has
}

func testCarrier(t *testing.T, l *Lab) {
	m := l.machines[0]
	await := func(want bool) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for hasCarrier(t, m) != want {
			if time.Now().After(deadline) {
				t.Fatalf("carrier of %s: %v, want %v", m, !want, want)
			}
		}
	}
	await(true)
	must(t, l.Cut("n1", Public, Cable))
	await(false)
	must(t, l.Cut("n1", Public, Switch))
	await(true)
	must(t, l.Heal(""))
	await(true)
}

func testDelay(t *testing.T, l *Lab) {
	d := Delay{Latency: 20 * time.Millisecond, Loss: 0.5}
	err := l.Delay("n1", d)
	want := []Fault{{Kind: "delay", Machine: "n1", Delay: d}}
	if err != nil {
		if !strings.Contains(err.Error(), "no netem") {
			t.Fatal(err)
		}
		t.Log(err)
		want = nil
	}
	if got := l.faults.list(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("faults: %v, want %v", got, want)
	}
	qdiscs := func() (netems int) {
		must(t, l.machines[0].Do(func() error {
			link, err := netlink.LinkByName(publicLink)
			if err != nil {
				return err
			}
			all, err := netlink.QdiscList(link)
			for _, q := range all {
				if q.Type() == "netem" {
					netems++
				}
			}
			return err
		}))
		return netems
	}
	if got := qdiscs(); got != len(want) {
		t.Errorf("%d netems, want %d", got, len(want))
	}
	must(t, l.Delay("n1", Delay{}))
	if got := qdiscs(); got != 0 || len(l.faults.list()) != 0 {
		t.Errorf("healed: %d netems, %v", got, l.faults.list())
	}
}

func testWrongUse(t *testing.T, l *Lab) {
	nan := 0.0
	nan /= nan
	for what, err := range map[string]error{
		"cut nobody":            l.Cut("n9", Both, Switch),
		"cut no network":        l.Cut("n1", "world", Switch),
		"cut with scissors":     l.Cut("n1", Both, "scissors"),
		"a router inside":       l.Cut("n1", Internal, Router),
		"the router from it":    l.Cut(router, Public, Router),
		"the client inside":     l.Cut(client, Internal, Switch),
		"a group of nobody":     l.Partition([]string{"n9"}),
		"no groups":             l.Partition(),
		"in two groups":         l.Partition([]string{"n1"}, []string{"n2", "n1"}),
		"heal nobody":           l.Heal("n9"),
		"delay for ever":        l.Delay("n1", Delay{Latency: time.Hour}),
		"lose more than all":    l.Delay("n1", Delay{Loss: 101}),
		"lose no number":        l.Delay("n1", Delay{Loss: nan}),
		"delay the back-ends":   l.Delay(app, Delay{Loss: 1}),
		"start the client":      l.Start(client),
		"kill what is not":      l.Kill("n1", All),
		"freeze what is not":    l.Freeze("n1", Guard),
		"kill a part of it":     l.Kill("n1", "half"),
		"stop what is not":      l.Stop(t.Context(), "n1"),
		"capture nowhere":       second(l.Capture(t.Context(), "n9", nil, Limits{})),
		"capture for ever":      second(l.Capture(t.Context(), "n1", nil, Limits{For: 48 * time.Hour})),
		"capture all":           second(l.Capture(t.Context(), "n1", nil, Limits{Size: 1 << 60})),
		"run nowhere":           second(l.Exec(t.Context(), "n9", Command{Args: []string{"true"}})),
		"run nothing":           second(l.Exec(t.Context(), "n1", Command{})),
		"no nodes":              second(New(Config{Nodes: 0, Period: minPeriod})),
		"too many nodes":        second(New(Config{Nodes: MaxNodes + 1, Period: minPeriod})),
		"too short a period":    second(New(Config{Nodes: 1, Period: minPeriod - 1})),
		"a directory too deep":  second(New(Config{Nodes: 1, Period: minPeriod, Dir: "/" + strings.Repeat("x", 100)})),
		"a period with a crumb": second(New(Config{Nodes: 1, Period: minPeriod + time.Microsecond})),
	} {
		if _, ok := errors.AsType[*UseError](err); !ok {
			t.Errorf("%s: got %v, want a UseError", what, err)
		}
	}
	if faults := l.faults.list(); len(faults) != 0 {
		t.Errorf("now there are faults: %v", faults)
	}
}

func second[T any](_ T, err error) error { return err }

// give puts an address on the public interface of a machine, as a VIP.
func give(t *testing.T, m *Machine, vip netip.Addr) (take func()) {
	t.Helper()
	change := func(f func(netlink.Link, *netlink.Addr) error) {
		t.Helper()
		must(t, m.Do(func() error {
			link, err := netlink.LinkByName(publicLink)
			if err != nil {
				return err
			}
			a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
			if vip.Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			return f(link, a)
		}))
	}
	change(netlink.AddrAdd)
	return func() {
		t.Helper()
		change(netlink.AddrDel)
	}
}

func testStatus(t *testing.T, l *Lab) {
	n1, n2 := l.nodes[0], l.nodes[1]
	expect := func(kernel, answers []string) {
		t.Helper()
		st, err := l.Status(t.Context())
		must(t, err)
		for _, v := range st.VIPs {
			wantKernel, wantAnswers := []string{}, []string{}
			if v.Home == "n1" {
				wantKernel, wantAnswers = kernel, answers
			}
			if !slices.Equal(v.Kernel, wantKernel) || !slices.Equal(v.Answers, wantAnswers) {
				t.Errorf("%s is on the interface of %v, answered by %v; want %v, %v", v.Address, v.Kernel, v.Answers, wantKernel, wantAnswers)
			}
		}
	}
	none := []string{}
	expect(none, none)
	for _, vip := range n1.VIPs {
		defer give(t, n1.Machine, vip)()
	}
	expect([]string{"n1"}, []string{"n1"})
	for _, vip := range n1.VIPs {
		defer give(t, n2.Machine, vip)()
	}
	expect([]string{"n1", "n2"}, []string{"n1", "n2"})
	must(t, l.Cut("n1", Public, Switch))
	expect([]string{"n1", "n2"}, []string{"n2"})
	must(t, l.Heal(""))
	must(t, l.Cut(client, Public, Cable))
	expect([]string{"n1", "n2"}, none)
	must(t, l.Heal(""))
	testNothingLearned(t, l, n1.VIPs[0])
	st, err := l.Status(t.Context())
	must(t, err)
	if n := st.Machines[0].Node; n == nil || n.Ended != "not started" || len(n.Processes) > 0 {
		t.Errorf("n1 is %+v, want one that was not started", n)
	}
}

// testNothingLearned asks while the client takes another station for the one with the VIP,
// and heeds all that it is told.
func testNothingLearned(t *testing.T, l *Lab, vip netip.Addr) {
	c, err := l.Machine(client)
	must(t, err)
	known := net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	must(t, c.Do(func() error {
		link, err := netlink.LinkByName(publicLink)
		if err != nil {
			return err
		}
		entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_REACHABLE, IP: vip.AsSlice(), HardwareAddr: known}
		return errors.Join(setSysctl("net/ipv4/neigh/"+publicLink+"/locktime", "0"), netlink.NeighSet(entry))
	}))
	_, err = l.Status(t.Context())
	must(t, err)
	must(t, c.Do(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_V4)
		i := slices.IndexFunc(all, func(e netlink.Neigh) bool { return e.IP.Equal(vip.AsSlice()) })
		if i < 0 || !slices.Equal(all[i].HardwareAddr, known) {
			t.Errorf("the client has learned of %s by what the lab has asked: %v", vip, all)
		}
		return err
	}))
}

// testRouter connects from the world to a VIP, in both families.
func testRouter(t *testing.T, l *Lab) {
	w, err := l.Machine(world)
	must(t, err)
	n1 := l.nodes[0]
	for _, vip := range n1.VIPs {
		defer give(t, n1.Machine, vip)()
		at := netip.AddrPortFrom(vip, 4001).String()
		var server net.Listener
		must(t, n1.Do(func() (err error) {
			server, err = net.Listen("tcp", at)
			return err
		}))
		must(t, w.Do(func() error {
			c, err := net.DialTimeout("tcp", at, 10*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}))
		server.Close()
	}
}

func testCapture(t *testing.T, l *Lab) {
	e := listenEverywhere(t, l, Public, "192.0.2.255")
	defer e.close()
	for where, want := range map[string][]string{
		Public: {"client sends client", "n1 sends n1", "n2 sends n2", "n3 sends n3", "router sends router"},
		"n2":   {"public receives client", "public receives n1", "public receives n3", "public receives router", "public sends n2"},
	} {
		path := filepath.Join(t.TempDir(), "capture.pcapng")
		f, err := os.Create(path)
		must(t, err)
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var got Captured
		go func() {
			var err error
			got, err = l.Capture(ctx, where, f, Limits{})
			done <- err
		}()
		// Its head is in the file when it listens.
		for info, err := f.Stat(); err == nil && info.Size() == 0; info, err = f.Stat() {
		}
		began := time.Now()
		e.expect(func(string, string) bool { return true })
		end()
		must(t, <-done)
		f.Close()
		b, err := os.ReadFile(path)
		must(t, err)
		frames, names := readPcapng(t, b)
		var calls []string
		for _, f := range frames {
			// Ethernet, IPv4 and UDP headers, and then "round name".
			round, from, ok := strings.Cut(string(f.data[min(42, len(f.data)):]), " ")
			if !ok || round != fmt.Sprint(e.round) {
				continue
			}
			if f.at.Before(began.Add(-time.Second)) || f.at.After(time.Now().Add(time.Second)) {
				t.Errorf("a frame of %v at %v", began, f.at)
			}
			verb := "receives"
			if f.outgoing || where == Public {
				verb = "sends"
			}
			calls = append(calls, names[f.number]+" "+verb+" "+strings.Trim(from, "\x00"))
		}
		slices.Sort(calls)
		if !slices.Equal(calls, want) {
			t.Errorf("capture at %s: %q, want %q", where, calls, want)
		}
		if got.Frames != uint64(len(frames)) || got.Octets != int64(len(b)) || got.Full || got.Dropped > 0 {
			t.Errorf("capture at %s says %+v, and has %d frames, %d octets", where, got, len(frames), len(b))
		}
	}
	var b strings.Builder
	ctx, end := context.WithCancel(t.Context())
	defer end()
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		for ctx.Err() == nil {
			e.socks["n1"].WriteToUDP(make([]byte, 1000), e.to)
		}
	}()
	got, err := l.Capture(ctx, Public, &b, Limits{Size: 20_000})
	end()
	<-sending
	if err != nil || !got.Full || b.Len() > 20_000 || got.Frames == 0 {
		t.Errorf("a capture with a limit: %+v, %d octets, %v", got, b.Len(), err)
	}
}

func testExec(t *testing.T, l *Lab) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	run := func(signals <-chan syscall.Signal, args ...string) (int, string) {
		t.Helper()
		r, w, err := os.Pipe()
		must(t, err)
		defer r.Close()
		c := Command{Args: args, Dir: "/", Env: os.Environ(), Files: [3]*os.File{null, w, w}, Signals: signals}
		status, err := l.Exec(t.Context(), "n2", c)
		must(t, err)
		w.Close()
		var b [4096]byte
		n, _ := r.Read(b[:])
		return status, string(b[:n])
	}
	for _, test := range []struct {
		args []string
		want int
		text string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 128 + 9, ""},
		{[]string{"no-such-program"}, statusNotFound, "no-such-program"},
		{[]string{"/etc/passwd"}, statusCannotRun, "permission denied"},
		{[]string{"sh", "-c", "cat /etc/resolv.conf; echo $SSL_CERT_FILE"}, 0, "nameserver 192.0.2.21"},
		{[]string{"cat", "/proc/net/fib_trie"}, 0, "10.0.0.12"},
	} {
		if got, text := run(nil, test.args...); got != test.want || !strings.Contains(text, test.text) {
			t.Errorf("%v: status %d, %q; want %d, with %q", test.args, got, text, test.want, test.text)
		}
	}
	signals := make(chan syscall.Signal, 1)
	signals <- syscall.SIGTERM
	if got, _ := run(signals, "sleep", "1000"); got != 128+int(syscall.SIGTERM) {
		t.Errorf("a program that SIGTERM ended: status %d", got)
	}
	// One that does not heed the hangup: it says when it is so far.
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	ctx, end := context.WithCancel(t.Context())
	go func() {
		var b [1]byte
		r.Read(b[:])
		end()
	}()
	args := []string{"sh", "-c", "trap '' HUP; echo; sleep 1000"}
	got, err := l.Exec(ctx, "n2", Command{Args: args, Dir: "/", Env: os.Environ(), Files: [3]*os.File{null, w, null}})
	if err != nil || got != 128+int(syscall.SIGKILL) {
		t.Errorf("a program that nobody waits for any more: status %d, %v", got, err)
	}
}

func testClose(t *testing.T, l *Lab) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	ended := make(chan int, 1)
	go func() {
		status, _ := l.Exec(t.Context(), "n1", Command{
			Args: []string{"sh", "-c", "setsid sleep 1000 & sleep 1000"}, Dir: "/", Env: os.Environ(), Files: [3]*os.File{null, null, null},
		})
		ended <- status
	}()
	for len(strays(l.id, nil)) < 3 {
		select {
		case status := <-ended:
			t.Fatalf("it has ended with status %d", status)
		case <-t.Context().Done():
			t.Fatal("the programs do not start")
		default:
		}
	}
	must(t, l.Close())
	<-ended
	if left := strays(l.id, nil); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if err := l.Start("n1"); err == nil {
		t.Error("a lab that is closed starts a node")
	}
	if err := l.Heal(""); !errors.Is(err, errClosing) {
		t.Errorf("a lab that is closed heals: %v", err)
	}
}
