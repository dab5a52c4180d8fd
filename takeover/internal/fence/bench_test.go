package fence

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside makes a namespace for the calling goroutine alone. It needs root; tests that do
// with less use nstest.
func outside(tb testing.TB) {
	tb.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Skipf("no network namespace without root: %v", err)
	}
}

func benchmarkFence(b *testing.B, c Config) *Fence {
	b.Helper()
	f, err := Open()
	must(b, err)
	b.Cleanup(func() { must(b, f.Close()) })
	must(b, f.Set(c))
	return f
}

// many returns n addresses, of either family in turn.
func many(n int) []netip.Addr {
	vips := make([]netip.Addr, n)
	for i := range vips {
		if i%2 == 0 {
			vips[i] = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+uint32(i))))
		} else {
			a := netip.MustParseAddr("2001:db8:1::").As16()
			binary.BigEndian.PutUint32(a[12:], uint32(i))
			vips[i] = netip.AddrFrom16(a)
		}
	}
	return vips
}

func BenchmarkSet(b *testing.B) {
	for _, n := range []int{8, maxVIPs} {
		b.Run(fmt.Sprintf("unchanged/vips=%d", n), func(b *testing.B) {
			outside(b)
			c := newLAN(b, nil).config()
			c.VIPs = many(n)
			f := benchmarkFence(b, c)
			b.ReportAllocs()
			for b.Loop() {
				must(b, f.Set(c))
			}
		})
		b.Run(fmt.Sprintf("others change/vips=%d", n), func(b *testing.B) {
			outside(b)
			c := newLAN(b, nil).config()
			c.VIPs = many(n)
			f := benchmarkFence(b, c)
			for b.Loop() {
				f.generation = 0
				must(b, f.Set(c))
			}
		})
		b.Run(fmt.Sprintf("first/vips=%d", n), func(b *testing.B) {
			outside(b)
			c := newLAN(b, nil).config()
			c.VIPs = many(n)
			for b.Loop() {
				f, err := Open()
				must(b, err)
				must(b, f.Set(c))
				must(b, f.Close())
			}
		})
	}
}

// BenchmarkRoundTrip is a datagram to a VIP and back, in namespaces joined by a veth pair.
func BenchmarkRoundTrip(b *testing.B) {
	for _, fenced := range []bool{false, true} {
		for _, vip := range []netip.Addr{vip4, vip6, host4} {
			b.Run(fmt.Sprintf("fenced=%v/to=%s", fenced, vip), func(b *testing.B) {
				outside(b)
				l := newLAN(b, nil)
				server, client := l.datagrams(b, vip)
				if fenced {
					c := l.config()
					c.VIPs = append(c.VIPs, many(64)...)
					benchmarkFence(b, c)
					l.report(b, mark)
				}
				go func() {
					for buf := make([]byte, 64); ; {
						n, from, err := server.ReadFrom(buf)
						if err != nil {
							return // closed
						}
						_, _ = server.WriteTo(buf[:n], from)
					}
				}()
				buf := make([]byte, 64)
				exchange := func(wait time.Duration) error {
					_, err := client.Write(buf)
					must(b, err)
					must(b, client.SetReadDeadline(time.Now().Add(wait)))
					_, err = client.Read(buf)
					return err
				}
				for tries := 0; exchange(200*time.Millisecond) != nil; tries++ { // the first while the devices come up
					if tries == 50 {
						b.Fatalf("no answer of %s", vip)
					}
				}
				for b.Loop() {
					must(b, exchange(time.Minute))
				}
			})
		}
	}
}

// datagrams returns a socket of the node that has a VIP, and one of the neighbour that is
// connected to it.
func (l *lan) datagrams(b *testing.B, vip netip.Addr) (server net.PacketConn, client net.Conn) {
	b.Helper()
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(vip, 0).String())
	must(b, err)
	b.Cleanup(func() { server.Close() })
	far, length := far4, net.CIDRMask(24, 32)
	if vip.Is6() {
		far, length = far6, net.CIDRMask(64, 128)
	}
	must(b, l.inNeighbour(func() error {
		wire, err := netlink.LinkByName(neighbourWire)
		if err != nil {
			return err
		}
		err = netlink.AddrAdd(wire, &netlink.Addr{IPNet: &net.IPNet{IP: far.AsSlice(), Mask: length}, Flags: unix.IFA_F_NODAD})
		if err != nil {
			return err
		}
		err = netlink.NeighSet(&netlink.Neigh{
			LinkIndex: wire.Attrs().Index, State: netlink.NUD_PERMANENT, IP: vip.AsSlice(), HardwareAddr: nodeMAC,
		})
		if err != nil {
			return err
		}
		client, err = net.Dial("udp", server.LocalAddr().String())
		return err
	}))
	b.Cleanup(func() { client.Close() })
	return server, client
}

// BenchmarkLease says how long after the last report the last probe is answered, with a
// probe about every 0.2 ms.
func BenchmarkLease(b *testing.B) {
	for _, lease := range []time.Duration{95 * time.Millisecond, 900 * time.Millisecond} {
		b.Run(fmt.Sprint(lease), func(b *testing.B) {
			outside(b)
			l := newLAN(b, nil)
			c := l.config()
			c.Lease = lease
			benchmarkFence(b, c)
			var open []time.Duration
			for b.Loop() {
				l.report(b, mark)
				began := time.Now()
				open = append(open, l.lastAnswer(b).Sub(began))
			}
			metrics(b, open)
		})
	}
}

// BenchmarkOwnerDies says how long after the end of the lease's owner, as its parent sees
// it, the last probe is answered. 0 is that none was.
func BenchmarkOwnerDies(b *testing.B) {
	outside(b)
	l := newLAN(b, nil)
	var open []time.Duration
	for b.Loop() {
		owner := l.startOwner(b)
		l.expect(b, l.ping(vip4))
		l.reads(b, 200*time.Millisecond, func(string) bool { return false }) // its last transaction is done with
		must(b, owner.Kill())
		killed := time.Now()
		open = append(open, l.lastAnswer(b).Sub(killed))
		_, err := owner.Wait()
		must(b, err)
	}
	metrics(b, open)
}

func metrics(b *testing.B, open []time.Duration) {
	slices.Sort(open)
	for unit, d := range map[string]time.Duration{
		"ms-min": open[0], "ms-median": open[len(open)/2], "ms-max": open[len(open)-1],
	} {
		b.ReportMetric(float64(d.Microseconds())/1000, unit)
	}
}

// lastAnswer pings the VIP until it has no answer for 50 ms, and returns when the last
// one that had an answer was sent.
func (l *lan) lastAnswer(b *testing.B) (last time.Time) {
	b.Helper()
	q := l.ping(vip4)
	last = time.Now()
	for time.Since(last) < 50*time.Millisecond {
		sent := time.Now()
		must(b, q.send())
		l.reads(b, 200*time.Microsecond, func(frame string) bool {
			if frame == q.answer {
				last = sent
			}
			return false
		})
	}
	return last
}
