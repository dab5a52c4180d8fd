package fence

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The node is in the namespace of the test, its neighbour in another, a wire between them.
const (
	nodeWire      = "near0"
	neighbourWire = "far0"
)

var (
	vip4, vip6     = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	spare4, spare6 = netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("2001:db8::12")
	host4, host6   = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	far4, far6     = netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")

	// The stations are given, so that nobody has to ask for one.
	nodeMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	neighbourMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// lan is what the neighbour has of it: a socket that sends and receives whole frames.
type lan struct {
	device      string // the node's
	wire        *packet.Conn
	inNeighbour func(func() error) error
}

// newLAN lays the wire; on makes the device on top of an end of it that carries the
// addresses, and is nil if that is the wire itself. The node has its host addresses and
// the VIPs all the time: only the fence says which of them are answered for.
func newLAN(tb testing.TB, on func(wire string) (device string, err error)) *lan {
	tb.Helper()
	there, inNeighbour := namespace(tb)
	l := &lan{inNeighbour: inNeighbour}
	near := netlink.NewLinkAttrs()
	near.Name, near.HardwareAddr = nodeWire, nodeMAC
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: near, PeerName: neighbourWire, PeerHardwareAddr: neighbourMAC})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		tb.Skipf("this kernel makes no veth pair for us: %v", err)
	}
	must(tb, err)
	must(tb, netlink.LinkSetNsFd(byName(tb, neighbourWire), there))

	if l.device, err = deviceOn(nodeWire, on); errors.Is(err, unix.EOPNOTSUPP) {
		tb.Skipf("this kernel has no such device: %v", err)
	}
	must(tb, err)
	must(tb, configureNode(l.device))
	must(tb, inNeighbour(func() error {
		device, err := deviceOn(neighbourWire, on)
		if err != nil {
			return err
		}
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		l.wire, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	}))
	tb.Cleanup(func() { l.wire.Close() })
	return l
}

// deviceOn makes the device on top of the wire, and sets all up.
func deviceOn(wire string, on func(string) (string, error)) (string, error) {
	device := wire
	if on != nil {
		var err error
		if device, err = on(wire); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"lo", wire, device} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return "", err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return "", err
		}
	}
	return device, nil
}

// configureNode gives the device of the node its addresses, and the neighbour's station,
// so that the node need not ask for it.
func configureNode(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range []netip.Addr{host4, host6, vip4, vip6, spare4, spare6} {
		length := net.CIDRMask(24, 32)
		if a.Is6() {
			length = net.CIDRMask(64, 128)
		}
		err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: length}, Flags: unix.IFA_F_NODAD})
		if err != nil {
			return err
		}
	}
	for _, a := range []netip.Addr{far4, far6} {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: neighbourMAC,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// namespace makes one, and returns it and what runs a function there.
func namespace(tb testing.TB) (there int, in func(func() error) error) {
	tb.Helper()
	open := func() (int, error) {
		return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	onThread := func(flags func() error, f func() error) error {
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			err := flags()
			if err == nil {
				err = f()
			}
			result <- err
		}()
		return <-result
	}
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		there, err = open()
		return err
	})
	if err != nil {
		tb.Skipf("this kernel makes no network namespace for us: %v", err)
	}
	tb.Cleanup(func() { unix.Close(there) })
	return there, func(f func() error) error {
		return onThread(func() error { return unix.Setns(there, unix.CLONE_NEWNET) }, f)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// question is what one side sends, and the frame by which the neighbour knows that it got
// through.
type question struct {
	send   func() error
	answer string // as of describe
}

// expect asks until there is an answer to each.
func (l *lan) expect(tb testing.TB, questions ...question) {
	tb.Helper()
	for _, q := range questions {
		l.ask(tb, q, func(string) {})
	}
}

// silent reports whether q has no answer while the host has. The neighbour gets answers in
// the order in which it asked.
func (l *lan) silent(tb testing.TB, q, host question) bool {
	tb.Helper()
	must(tb, q.send())
	answered := false
	l.ask(tb, host, func(frame string) { answered = answered || frame == q.answer })
	return !answered
}

// ask asks q until there is an answer, and shows each frame that comes before it.
func (l *lan) ask(tb testing.TB, q question, other func(frame string)) {
	tb.Helper()
	for range 50 {
		must(tb, q.send())
		answered := false
		l.reads(tb, 200*time.Millisecond, func(frame string) bool {
			answered = frame == q.answer
			if !answered {
				other(frame)
			}
			return answered
		})
		if answered {
			return
		}
	}
	tb.Fatalf("the neighbour never got: %s", q.answer)
}

// reads shows each frame that the neighbour gets, for so long or until stop.
func (l *lan) reads(tb testing.TB, wait time.Duration, stop func(frame string) bool) {
	tb.Helper()
	must(tb, l.wire.SetReadDeadline(time.Now().Add(wait)))
	var buf [2048]byte
	for {
		n, _, err := l.wire.ReadFrom(buf[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		must(tb, err)
		if stop(describe(buf[:n])) {
			return
		}
	}
}

// sends has the neighbour send a frame to the node.
func (l *lan) sends(to net.HardwareAddr, etherType uint16, data []byte) error {
	frame := slices.Concat(to, neighbourMAC, binary.BigEndian.AppendUint16(nil, etherType), data)
	_, err := l.wire.WriteTo(frame, &packet.Addr{HardwareAddr: to})
	return err
}

func byName(tb testing.TB, name string) netlink.Link {
	tb.Helper()
	l, err := netlink.LinkByName(name)
	must(tb, err)
	return l
}
