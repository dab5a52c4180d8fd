package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"peerage/appliance/lab"
)

// labUser runs 'peerage lab' as some user.
type labUser struct {
	t    *testing.T
	attr func() *syscall.SysProcAttr
	dir  string // of the lab
}

// newLabUser is root, until it is made somebody else.
func newLabUser(t *testing.T) *labUser {
	if os.Getenv("PEERAGE_TEST_NAMESPACE") == "" {
		t.Skip("a lab needs namespaces, and there are none")
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0") // or each program ends a second late under the race detector
	// Names of namespaces go to /run/netns, which is to be this test's alone.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Skipf("no /run of our own: %v", err)
	}
	t.Cleanup(func() { unix.Unmount("/run", unix.MNT_DETACH) })
	u := &labUser{t: t, attr: func() *syscall.SysProcAttr { return nil }, dir: filepath.Join(t.TempDir(), "lab")}
	t.Cleanup(func() { u.command("down").Run() })
	return u
}

func (u *labUser) command(verb string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"lab", verb, "--dir", u.dir}, args...)...)
	cmd.SysProcAttr = u.attr()
	return cmd
}

// try returns what a command prints, its errors too, and its exit status.
func (u *labUser) try(verb string, args ...string) (string, int) {
	u.t.Helper()
	out, err := u.command(verb, args...).CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		u.t.Fatal(err)
	}
	if ok {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

func (u *labUser) run(verb string, args ...string) string {
	u.t.Helper()
	out, status := u.try(verb, args...)
	if status != 0 {
		u.t.Fatalf("lab %s %v: exit status %d\n%s", verb, args, status, out)
	}
	return out
}

func (u *labUser) status() *lab.Status {
	u.t.Helper()
	st := new(lab.Status)
	if err := json.Unmarshal([]byte(u.run("status", "--json")), st); err != nil {
		u.t.Fatal(err)
	}
	return st
}

// await waits until each VIP of a node is on the interface of one that is wanted, and
// answered by that one alone.
func (u *labUser) await(what, home string, wanted func(holder string) bool) {
	u.t.Helper()
	eventually(u.t, what, func() bool {
		return !slices.ContainsFunc(u.status().VIPs, func(v lab.VIP) bool {
			return v.Home == home && (len(v.Kernel) != 1 || !wanted(v.Kernel[0]) || !slices.Equal(v.Kernel, v.Answers))
		})
	})
}

// awaitNothing waits until nothing of the lab is left but what was there before.
func (u *labUser) awaitNothing() {
	u.t.Helper()
	eventually(u.t, "nothing of the lab is left", func() bool { return u.left() == "" })
}

// left says what is left of the lab.
func (u *labUser) left() string {
	if _, err := os.Lstat(u.dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%s (%v)", u.dir, err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(u.dir)) {
			return string(line)
		}
	}
	names, err := filepath.Glob("/run/netns/*")
	if err != nil || len(names) > 0 {
		return fmt.Sprint(names, err)
	}
	return ""
}

// TestLab is a lab as root has it, from beginning to end.
func TestLab(t *testing.T) {
	u := newLabUser(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	up := u.run("up", "--nodes", "2", "--ipv6")
	for _, want := range []string{"lab exec --dir " + u.dir + " client curl", "192.0.2.21", "2001:db8::22", "pg-client"} {
		if !strings.Contains(up, want) {
			t.Errorf("up does not print %q:\n%s", want, up)
		}
	}
	if out, status := u.try("up"); status != 2 || !strings.Contains(out, "runs in "+u.dir+" already") {
		t.Errorf("a second up: exit status %d, %s", status, out)
	}
	if names, _ := filepath.Glob("/run/netns/pg-*"); len(names) != 7 {
		t.Errorf("the namespaces have the names %v, want those of six machines and the switches", names)
	}

	t.Run("another lab", func(t *testing.T) {
		other := &labUser{t: t, attr: u.attr, dir: u.dir + "2"}
		if out, status := other.try("up", "--nodes", "1"); status != 1 || !strings.Contains(out, "another lab runs") {
			t.Errorf("up with another --dir: exit status %d, %s", status, out)
		}
		if _, err := os.Lstat(other.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it leaves its directory, or %v", err)
		}
		if st := u.status(); len(st.Machines[0].Node.Processes) != 2 || len(st.Machines[1].Node.Processes) != 2 {
			t.Errorf("the nodes of the first are now %+v, %+v", st.Machines[0].Node, st.Machines[1].Node)
		}
		if names, _ := filepath.Glob("/run/netns/pg-*"); len(names) != 7 {
			t.Errorf("of the names of the first there are %v", names)
		}
	})
	t.Run("the site", func(t *testing.T) {
		if got := u.run("exec", "client", "curl", "-sS", "-m", "30", "https://www.peerage.test/whoami"); !strings.Contains(got, "192.0.2.254") && !strings.Contains(got, "2001:db8::254") {
			t.Errorf("the site does not know the client:\n%s", got)
		}
		if got := u.run("exec", "world", "curl", "-sS", "-m", "30", "-4", "https://www.peerage.test/whoami"); !strings.Contains(got, "198.51.100.10") {
			t.Errorf("the site does not know who comes by the router:\n%s", got)
		}
		if got := strings.Fields(u.run("exec", "client", "dig", "+short", "@192.0.2.22", "www.peerage.test")); len(got) != 2 {
			t.Errorf("the DNS knows %v, want both VIPs", got)
		}
	})
	t.Run("programs", func(t *testing.T) { testLabExec(t, u) })
	t.Run("a node dies and returns", func(t *testing.T) {
		u.run("kill", "n1")
		u.await("a peer answers", "n1", func(holder string) bool { return holder == "n2" })
		u.run("exec", "client", "curl", "-sS", "-m", "30", "--resolve", "www.peerage.test:443:192.0.2.21", "https://www.peerage.test/whoami")
		if out, status := u.try("kill", "n1"); status != 2 || !strings.Contains(out, "lab start n1") {
			t.Errorf("it is killed again: exit status %d, %s", status, out)
		}
		u.run("start", "n1")
		u.await("it has its VIPs back", "n1", func(holder string) bool { return holder == "n1" })
	})
	t.Run("faults show", func(t *testing.T) {
		u.run("cut", "n2", "--how", "router")
		u.run("freeze", "n2", "--what", "server")
		st := u.status()
		if len(st.Faults) != 1 || st.Faults[0].Machine != "n2" || st.Faults[0].How != lab.Router {
			t.Errorf("faults: %v, want n2 cut off from the router", st.Faults)
		}
		if text := u.run("status"); !strings.Contains(text, "broken: n2: public network cut (router)") {
			t.Errorf("status does not say what is broken:\n%s", text)
		}
		u.run("thaw", "n2")
		u.run("heal")
		if st := u.status(); len(st.Faults) != 0 {
			t.Errorf("healed, there are the faults %v", st.Faults)
		}
	})
	t.Run("a node stops", func(t *testing.T) {
		u.run("stop", "n2")
		if n := u.status().Machines[1].Node; n.Ended != "exit status 0" || len(n.Processes) != 0 {
			t.Errorf("n2 is %+v, want it to have ended well", n)
		}
	})

	stranger := startByIP(t)
	u.run("down")
	if stranger != nil {
		if err := stranger.Wait(); fmt.Sprint(err) != "signal: killed" {
			t.Errorf("a program that was started by 'ip netns exec' ended with: %v", err)
		}
	}
	if left := u.left(); left != "" {
		t.Errorf("left after down: %s", left)
	}
	if _, err := os.Lstat("/run/netns"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/run/netns is left, or %v", err)
	}
	if now, err := net.Interfaces(); err != nil || len(now) != len(links) {
		t.Errorf("links: %v before, %v now (%v)", links, now, err)
	}
	if out, status := u.try("down"); status != 1 || !strings.Contains(out, "no lab runs in "+u.dir) {
		t.Errorf("a second down: exit status %d, %s", status, out)
	}
}

// startByIP starts a program on n1 without the lab, if this machine has an 'ip'.
func startByIP(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", "pg-n1", "sh", "-c", "echo; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Log(err)
		return nil
	}
	var b [1]byte
	if _, err := out.Read(b[:]); err != nil {
		t.Errorf("ip netns exec pg-n1: %v, %v", err, cmd.Wait())
		return nil
	}
	return cmd
}

// testLabExec runs programs on machines: with files, and at a terminal.
func testLabExec(t *testing.T, u *labUser) {
	for _, test := range []struct {
		args []string
		want int
		text string
	}{
		{[]string{"n1", "sh", "-c", "echo out; echo err >&2; exit 7"}, 7, "out\nerr\n"},
		{[]string{"n1", "--", "no-such-program"}, 127, "no-such-program"},
		{[]string{"n9", "true"}, 2, "no machine of the lab"},
	} {
		if out, status := u.try("exec", test.args...); status != test.want || !strings.Contains(out, test.text) {
			t.Errorf("exec %q: exit status %d, %q; want %d, with %q", test.args, status, out, test.want, test.text)
		}
	}
	cmd := u.command("exec", "n1", "cat")
	cmd.Stdin = strings.NewReader("through a pipe")
	if out, err := cmd.Output(); err != nil || string(out) != "through a pipe" {
		t.Errorf("cat: %q, %v", out, err)
	}

	// Somebody types at a terminal.
	master, slave, err := lab.OpenTerminal()
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	cmd = u.command("exec", "n2", "sh")
	cmd.Env = append(os.Environ(), "PS1=ready> ", "ENV=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	screen := ""
	awaitScreen := func(text string) {
		t.Helper()
		var b [4096]byte
		master.SetReadDeadline(time.Now().Add(time.Minute))
		for !strings.Contains(screen, text) {
			n, err := master.Read(b[:])
			if err != nil {
				t.Fatalf("the terminal shows no %q: %v\n%s", text, err, screen)
			}
			screen += string(b[:n])
		}
		_, screen, _ = strings.Cut(screen, text)
	}
	awaitScreen("ready> ")
	fmt.Fprint(master, "tty\r")
	awaitScreen("/dev/pts/")
	// What is typed shows too, so the words come out of pieces.
	fmt.Fprint(master, `sh -c 'trap "echo ca''ught; exit" INT; echo wa""iting; while :; do sleep 0.1; done'`+"\r")
	awaitScreen("waiting")
	fmt.Fprint(master, "\x03") // Ctrl-C is for the program, and not for the shell
	awaitScreen("caught")
	awaitScreen("ready> ")
	fmt.Fprint(master, "exit 5\r")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("the shell: %v, want exit status 5", err)
	}
}

// TestLabIsClearedAway kills those who would clear a lab away: first the keeper alone, then
// the reaper too.
func TestLabIsClearedAway(t *testing.T) {
	u := newLabUser(t)
	u.run("up", "--nodes", "1", "--period", "100ms")
	if err := syscall.Kill(u.status().Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	u.awaitNothing()

	u.run("up", "--nodes", "1", "--period", "100ms")
	keeper := u.status().Keeper
	for _, pid := range append(u.reapers(), keeper) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the keeper is gone", func() bool { _, status := u.try("status"); return status == 1 })
	u.run("down")
	u.awaitNothing()
}

// reapers returns the processes that would clear the lab away.
func (u *labUser) reapers() (pids []int) {
	u.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil || string(line) != strings.Join([]string{binary, "lab", "reap", "--dir", u.dir, ""}, "\x00") {
			continue
		}
		var pid int
		fmt.Sscanf(path, "/proc/%d/", &pid)
		pids = append(pids, pid)
	}
	if len(pids) != 1 {
		u.t.Fatalf("the reapers of the lab are %v, want one", pids)
	}
	return pids
}

// TestLabWithoutPrivileges is a lab of a user who is nobody: each command comes from a user
// namespace in which it has no capabilities.
func TestLabWithoutPrivileges(t *testing.T) {
	u := newLabUser(t)
	u.attr = func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
		}
	}
	up := u.run("up", "--nodes", "2")
	if strings.Contains(up, "pg-n1") {
		t.Errorf("a namespace has a name:\n%s", up)
	}
	if got := u.run("exec", "client", "curl", "-sS", "-m", "30", "https://www.peerage.test/whoami"); !strings.Contains(got, "192.0.2.254") {
		t.Errorf("the site does not know the client:\n%s", got)
	}
	path := filepath.Join(t.TempDir(), "n2.pcapng")
	if out := u.run("capture", "n2", path, "--for", "300ms"); strings.HasPrefix(out, "0 frames") {
		t.Errorf("nothing passes n2: %s", out)
	}
	u.run("freeze", "n1")
	u.await("a peer answers", "n1", func(holder string) bool { return holder == "n2" })
	u.run("down")
	if left := u.left(); left != "" {
		t.Errorf("left after down: %s", left)
	}
}
