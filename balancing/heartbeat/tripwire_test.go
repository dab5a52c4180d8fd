package heartbeat

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/nstest"
)

const victim = "PEERAGE_TEST_VICTIM" // the site key of a process that is to be killed

// slow is the configuration of node i of two that would not miss each other for minutes.
func slow(t *testing.T, i int, key string) Config {
	ring, err := keys.ParseRing(key)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Incarnation: uint64(time.Now().UnixNano()), Sealer: ring.Sealer(keys.LabelReport), Site: "test", Document: document, OfflineAfter: 20,
		Port: 7947, Exchange: Auto, Interface: "wire0", Group: netip.MustParseAddr("239.255.79.47"), Log: slog.New(slog.DiscardHandler),
	}
	c.Document.Period = balancing.MaxPeriod
	for i, host := range []string{"198.51.100.1", "198.51.100.2"} {
		c.Nodes = append(c.Nodes, Peer{ID: balancing.NodeID([]string{"n1", "n2"}[i]), Address: netip.MustParseAddr(host), Capacity: 1})
	}
	c.Self, c.Address = c.Nodes[i].ID, c.Nodes[i].Address
	return c
}

// eventually waits until the condition holds, and fails with what is missing.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(what)
		}
	}
}

// TestKernelTellsOfDeath kills a peer's process: this node knows long before the reports of
// the peer are missed.
func TestKernelTellsOfDeath(t *testing.T) {
	if key := os.Getenv(victim); key != "" {
		x, err := New(slow(t, 1, key))
		if err != nil {
			t.Fatal(err)
		}
		t.Fatal(x.Run(t.Context()))
	}
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	setUpNetwork(t)
	key := keys.Generate().Reveal()
	x, err := New(slow(t, 0, key))
	if err != nil {
		t.Fatal(err)
	}
	run(t, x)
	for range 2 {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), victim+"="+key)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the peer does not come on-line", func() bool { return x.View().Node("n2").Online })
		since := time.Time{}
		eventually(t, "there is no connection to the peer", func() bool {
			if !established(t, "198.51.100.2") {
				since = time.Time{}
			} else if since.IsZero() {
				since = time.Now()
			}
			return !since.IsZero() && time.Since(since) > 2*wireSound
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		eventually(t, "the peer is on-line although its process is dead", func() bool { return !x.View().Node("n2").Online })
	}
}

// established reports whether this network has a TCP connection to the report port of an
// address.
func established(t *testing.T, to string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr(to).As4()
	return strings.Contains(string(table), fmt.Sprintf(" %02X%02X%02X%02X:%04X 01 ", a[3], a[2], a[1], a[0], 7947))
}

// TestMark vouches for a node: its reports are marked then, and not before and after.
func TestMark(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	setUpNetwork(t)
	for _, mode := range []Mode{Auto, Unicast} {
		c := slow(t, 0, keys.Generate().Reveal())
		c.Exchange, c.Mark, c.Document.Period = mode, 0x5045, balancing.MinPeriod
		x, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		var s *sockets
		x.open = func(c *Config, mode Mode, old transport) (transport, error) {
			t, err := openSockets(c, mode, old)
			s, _ = t.(*sockets)
			return t, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- x.Run(ctx) }()
		end := func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		eventually(t, "nothing is sent", func() bool { return x.Counters().Sent+x.Counters().Failed > 2 })
		limited, stop := context.WithTimeout(t.Context(), 20*time.Second)
		if err := x.Vouch(limited, 100*time.Millisecond); err != nil {
			t.Error(err)
		}
		stop()
		mark := func() int {
			mark := -1
			raw, err := s.host.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) { mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
			if err != nil {
				t.Fatal(err)
			}
			return mark
		}
		eventually(t, mode.String()+": reports stay marked", func() bool { return mark() == 0 })
		end()
		if n := x.Counters(); n.Failed > 0 {
			t.Errorf("%v: counted %+v", mode, n)
		}
	}
}
