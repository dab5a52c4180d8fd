package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/DeRuina/timberjack"
	"golang.org/x/sys/unix"
)

// Node is a machine that a node of the site runs on.
type Node struct {
	*Machine
	Address  netip.Addr // host address on the public network
	Internal netip.Addr // on the internal one
	VIPs     []netip.Addr
	Dir      string // data directory, with the node file and the log

	l *Lab

	mu   sync.Mutex
	run  *run   // the last one; nil before the first
	last string // how it ended
}

// run is a 'peerage run' that was started.
type run struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (n *Node) file() string { return filepath.Join(n.Dir, nodeFile) }

// Log is the path of what the node writes on standard error, in JSON.
func (n *Node) Log() string { return filepath.Join(n.Dir, nodeLog) }

// What of a node is killed or frozen: the guard is its parent process, the server the
// child.
type What string

const (
	All    What = "all"
	Guard  What = "guard"
	Server What = "server"
)

func (w What) check() error {
	if w != All && w != Guard && w != Server {
		return useErrorf("%q is no part of a node; there are %s, %s and %s", w, Guard, Server, All)
	}
	return nil
}

const (
	// maxLog bounds each of the two files that a node's log is kept in, in MB.
	maxLog = 16
	// stopWithin bounds an orderly end: the document's grace is one second.
	stopWithin = 15 * time.Second
	// closeWithin is how long nodes have to end by themselves when the lab does.
	closeWithin = 3 * time.Second
)

// mark, with an id, names the lab: in the environment of its processes and of all that these
// start, and in its namespaces.
const mark = "PEERAGE_LAB="

// environment is env with the mark of this lab.
func (l *Lab) environment(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, mark) })
	return append(env, mark+l.id)
}

// Start runs a node that does not run.
func (l *Lab) Start(name string) error {
	n, err := l.Node(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running() {
		return useErrorf("%s runs already", name)
	}
	log := &timberjack.Logger{Filename: n.Log(), MaxSize: maxLog, MaxBackups: 1, FileMode: 0o600}
	cmd := exec.Command(l.c.Binary, "run", "--config", n.file(), "--log", "json")
	cmd.Env = l.environment(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = time.Second // for what a server that outlives its guard may still print
	// A group of its own, so that Ctrl-C at a terminal reaches the lab alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r := &run{cmd: cmd, ended: make(chan struct{})}
	err = l.start(n.Machine, cmd, func() {
		log.Close()
		n.mu.Lock()
		n.last = cmd.ProcessState.String()
		n.mu.Unlock()
		close(r.ended)
	})
	if err != nil {
		log.Close()
		return err
	}
	n.run = r
	return nil
}

// running reports whether the guard lives. n.mu is held.
func (n *Node) running() bool {
	if n.run == nil {
		return false
	}
	select {
	case <-n.run.ended:
		return false
	default:
		return true
	}
}

// current returns what runs, or an error if nothing does.
func (n *Node) current() (*run, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return nil, useErrorf("%s does not run; 'peerage lab start %s' starts it", n.Name, n.Name)
	}
	return n.run, nil
}

// Stop has a node leave its site in order, and returns when it has ended.
func (l *Lab) Stop(ctx context.Context, name string) error {
	n, err := l.Node(name)
	if err != nil {
		return err
	}
	r, err := n.current()
	if err != nil {
		return err
	}
	for _, p := range r.processes() {
		if p.Frozen {
			return useErrorf("the %s of %s is frozen and cannot stop; 'peerage lab thaw %s' first, or 'peerage lab kill %s'", p.Role, name, name, name)
		}
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	limit := time.NewTimer(stopWithin)
	defer limit.Stop()
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-limit.C:
		return fmt.Errorf("%s has not ended %v after SIGTERM; %s says what it does", name, stopWithin, n.Log())
	}
}

// Kill kills a node, or a part of it, by SIGKILL, and returns when that is gone. Without its
// guard a server does not live on; without its server a guard starts another.
func (l *Lab) Kill(name string, what What) error {
	r, err := l.signal(name, what, syscall.SIGKILL)
	if err == nil && what != Server {
		<-r.ended
	}
	return err
}

// Freeze stops the processes of a node, or one of them, by SIGSTOP: the kernel of the
// machine lives on.
func (l *Lab) Freeze(name string, what What) error {
	_, err := l.signal(name, what, syscall.SIGSTOP)
	return err
}

// Thaw lets go on what was frozen.
func (l *Lab) Thaw(name string) error {
	_, err := l.signal(name, All, syscall.SIGCONT)
	return err
}

func (l *Lab) signal(name string, what What, s syscall.Signal) (*run, error) {
	if err := what.check(); err != nil {
		return nil, err
	}
	n, err := l.Node(name)
	if err != nil {
		return nil, err
	}
	r, err := n.current()
	if err != nil {
		return nil, err
	}
	servers := childrenOf(r.cmd.Process.Pid) // before their parent is gone
	if what == Server && len(servers) == 0 {
		return nil, fmt.Errorf("%s has no server just now; its guard is about to start one", name)
	}
	if what != Server {
		if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return nil, fmt.Errorf("signal the guard of %s: %w", name, err)
		}
	}
	if what != Guard {
		for _, pid := range servers {
			if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
				return nil, fmt.Errorf("signal the server of %s: %w", name, err)
			}
		}
	}
	return r, nil
}

// endNodes ends all nodes, in order if they can.
func (l *Lab) endNodes() {
	var ending sync.WaitGroup
	for _, n := range l.nodes {
		r, err := n.current()
		if err != nil {
			continue
		}
		ending.Go(func() {
			if !slices.ContainsFunc(r.processes(), func(p Process) bool { return p.Frozen }) {
				r.cmd.Process.Signal(syscall.SIGTERM)
				select {
				case <-r.ended:
					return
				case <-time.After(closeWithin):
				}
			}
			r.cmd.Process.Kill()
			<-r.ended
		})
	}
	ending.Wait()
}

// Process is a process of a node.
type Process struct {
	Role   What `json:"role"` // Guard or Server
	PID    int  `json:"pid"`
	Frozen bool `json:"frozen,omitempty"`
}

// processes returns the processes of the node that live, as the kernel has them.
func (r *run) processes() (all []Process) {
	add := func(role What, pid int) {
		if s, _, ok := stat(pid); ok {
			all = append(all, Process{role, pid, s == 'T'})
		}
	}
	add(Guard, r.cmd.Process.Pid)
	for _, pid := range childrenOf(r.cmd.Process.Pid) {
		add(Server, pid)
	}
	return all
}

// childrenOf returns the children of a process that live.
func childrenOf(parent int) (all []int) {
	for _, pid := range processIDs() {
		if _, p, ok := stat(pid); ok && p == parent {
			all = append(all, pid)
		}
	}
	return all
}

// processIDs returns the processes that /proc shows.
func processIDs() (all []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// stat returns the state and the parent of a process; not ok if it does not live.
func stat(pid int) (state byte, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name, in brackets, may hold anything. Behind it are the state and the parent.
	if i := bytes.LastIndexByte(b, ')'); err == nil && i >= 0 {
		n, _ := fmt.Sscanf(string(b[i+1:]), " %c %d", &state, &parent)
		ok = n == 2 && state != 'Z' && state != 'X'
	}
	return state, parent, ok
}
