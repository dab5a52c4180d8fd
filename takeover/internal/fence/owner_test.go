package fence

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is the owner of a fence as well, in a process that can be killed.
func TestMain(m *testing.M) {
	if os.Getenv(ownerVariable) != "" {
		ownFence()
		return
	}
	os.Exit(m.Run())
}

const ownerVariable = "PEERAGE_TEST_OWN_FENCE"

// ownFence is the process that is killed.
func ownFence() {
	device := os.Getenv(ownerVariable)
	f, err := Open()
	if err == nil {
		l := lan{device: device}
		err = errors.Join(f.Set(l.config()), sendMarked(netip.AddrPortFrom(host4, 0), netip.AddrPortFrom(far4, 7947), mark))
	}
	fmt.Println(err)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the end of the test, if nobody kills it
}

// startOwner starts it, and returns when it has opened the fence.
func (l *lan) startOwner(tb testing.TB) *os.Process {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerVariable+"="+l.device)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(tb, err)
	tb.Cleanup(func() { in.Close() })
	out, err := cmd.StdoutPipe()
	must(tb, err)
	must(tb, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		tb.Fatalf("the owner of the fence says %q, %v", line, err)
	}
	return cmd.Process
}

func testOwnerKilled(t *testing.T, l *lan) {
	all := slices.Concat(l.incoming(vip4, vip6), l.outgoing(t))
	for range 2 { // the second finds what the first left
		owner := l.startOwner(t)
		l.expectOpen(t, all)
		must(t, owner.Kill())
		if s, err := owner.Wait(); err != nil || s.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the owner ended otherwise: %v, %v", s, err)
		}
		l.expectClosed(t, all)
		l.report(t, mark)
		l.expectClosed(t, append(all, asked{datagram(vip4, passBit), datagram(host4, passBit)}))
		l.expectStopped(t)
	}
	f, err := Open()
	must(t, err)
	defer f.Close()
	l.report(t, mark)
	l.expectClosed(t, all)
	must(t, f.Set(l.config()))
	l.expectClosed(t, all)
	l.report(t, mark)
	l.expectOpen(t, all)
}

func testOneOwner(t *testing.T, l *lan) {
	f := l.fence(t, l.config())
	l.report(t, mark)
	if _, err := Open(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second fence: got %v, want that another process has it", err)
	}
	must(t, f.Set(l.config()))
	l.expectOpen(t, l.incoming(vip4, vip6))
}

func testNotPermitted(t *testing.T, _ *lan) {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the capabilities are the thread's
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			_, err = Open()
		}
		result <- err
	}()
	if err := <-result; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want that it needs CAP_NET_ADMIN", err)
	}
}
