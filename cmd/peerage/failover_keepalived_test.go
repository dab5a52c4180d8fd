package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/net/ipv4"
)

// keepalivedSite is a site of keepalived: an instance of VRRP for each VIP, the home of
// which has the highest priority, and a process beside it that serves.
type keepalivedSite struct {
	*lan
	daemons map[*lanNode]*process
	echoes  map[*lanNode]*process
}

// newKeepalivedSite returns a site that speaks a version of VRRP, and announces itself
// every so many seconds.
func newKeepalivedSite(l *lan, version int, advert string) *keepalivedSite {
	if _, err := exec.LookPath("keepalived"); err != nil {
		l.t.Skip("keepalived is not installed")
	}
	s := &keepalivedSite{l, map[*lanNode]*process{}, map[*lanNode]*process{}}
	for i, n := range l.nodes {
		writeFile(l.t, s.config(n), keepalivedConfig(l.nodes, i, version, advert), 0o644)
	}
	return s
}

// keepalivedConfig is that of the i-th of the nodes.
func keepalivedConfig(nodes []*lanNode, i, version int, advert string) string {
	var b strings.Builder
	// Its priority among the real-time processes is that which Peerage's guard gives itself.
	fmt.Fprintf(&b, "global_defs {\n  router_id %s\n  vrrp_version %d\n  vrrp_rt_priority 10\n}\n", nodes[i].name, version)
	for home, n := range nodes {
		state, priority := "BACKUP", 200-50*((i-home+len(nodes))%len(nodes))
		if i == home {
			state = "MASTER"
		}
		fmt.Fprintf(&b, "vrrp_instance %s {\n  state %s\n  interface %s\n  virtual_router_id %d\n  priority %d\n  advert_int %s\n  virtual_ipaddress {\n    %s/32\n  }\n}\n",
			n.name, state, public, home+1, priority, advert, n.vips[0])
	}
	return b.String()
}

func (s *keepalivedSite) config(n *lanNode) string { return filepath.Join(n.dir, "keepalived.conf") }

func (s *keepalivedSite) start(n *lanNode) {
	s.t.Helper()
	if !s.daemons[n].runs() {
		s.daemons[n] = n.spawn(exec.Command("keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", s.config(n),
			"--pid", filepath.Join(n.dir, "keepalived.pid"), "--vrrp_pid", filepath.Join(n.dir, "vrrp.pid")))
	}
	if !s.echoes[n].runs() {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), echoVariable+"=:"+echoPort)
		s.echoes[n] = n.spawn(cmd)
	}
}

func (s *keepalivedSite) stop(n *lanNode)          { s.daemons[n].cmd.Process.Signal(syscall.SIGTERM) }
func (s *keepalivedSite) awaitEnd(n *lanNode)      { <-s.daemons[n].ended }
func (s *keepalivedSite) service(n *lanNode) []int { return []int{s.echoes[n].cmd.Process.Pid} }
func (s *keepalivedSite) question() question       { return echoQuestion() }

// daemon returns keepalived, and its child that speaks VRRP.
func (s *keepalivedSite) daemon(n *lanNode) []int {
	s.t.Helper()
	pid := s.daemons[n].cmd.Process.Pid
	pids := []int{pid}
	for f := range strings.FieldsSeq(readFile(s.t, fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))) {
		child, err := strconv.Atoi(f)
		if err != nil {
			s.t.Fatal(err)
		}
		pids = append(pids, child)
	}
	return pids
}

func (s *keepalivedSite) atHome() bool {
	for _, n := range s.nodes {
		if !slices.Equal(s.holders(n.vips[0]), []string{n.name}) {
			return false
		}
	}
	return true
}

// process is one that was started on a machine of the LAN.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (p *process) runs() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// spawn starts a program in the namespace, which ends with the test at the latest. Its output
// is shown if the test fails.
func (n *lanNode) spawn(cmd *exec.Cmd) *process {
	n.t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.CreateTemp(n.dir, "log-")
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.do(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	n.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Process.Signal(syscall.SIGCONT) // it may be frozen
		<-p.ended
		if n.t.Failed() {
			n.t.Logf("%s on %s:\n%s", cmd.Path, n.name, readFile(n.t, log.Name()))
		}
	})
	return p
}

const (
	echoPort     = "7" // RFC 862
	echoVariable = "PEERAGE_TEST_ECHO"
)

// A process of this test may be the one that serves beside keepalived.
func init() {
	if at := os.Getenv(echoVariable); at != "" {
		fmt.Fprintln(os.Stderr, serveEcho(at))
		os.Exit(1)
	}
}

// serveEcho sends each datagram back by the address that it came to (RFC 862).
func serveEcho(at string) error {
	u, err := net.ListenPacket("udp4", at)
	if err != nil {
		return err
	}
	c := ipv4.NewPacketConn(u)
	if err := c.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return err
	}
	b := make([]byte, 1500)
	for {
		n, to, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		c.WriteTo(b[:n], &ipv4.ControlMessage{Src: to.Dst}, from) // what does not leave was lost
	}
}
