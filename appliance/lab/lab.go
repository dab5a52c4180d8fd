// Package lab makes a LAN of network namespaces on one machine, runs the nodes of a site
// on it, and breaks it in the ways in which LANs and machines break.
//
// Start with [New], which lays the LAN, and [Lab.Start], which runs a node on it. A node is
// a real 'peerage run' with real VIPs on a real link. [Keep] is a lab that lives in a
// process of its own, [Client] asks it: 'peerage lab' is made of these two.
//
//	          198.51.100.0/24            192.0.2.0/24, 2001:db8::/64
//	world ───────────────────── router ──────┬──────────┬──────┬─── ...
//	                              .1         │ public   │      │
//	                                       client      n1      n2   host .11 .12, VIP .21 .22
//	                                        .254        │      │
//	                                     app ───────────┴──────┴─── ...
//	                                        internal, 10.0.0.0/24
//
// All of it lies in namespaces of its own: nothing leaves them, and nothing outside them
// is touched but the lab's directory and the names of the namespaces. Whoever makes a lab
// needs CAP_SYS_ADMIN and CAP_NET_ADMIN, if need be those of a user namespace.
//
// A Lab owns the processes and servers that it starts; [Lab.Close] ends them. When the
// process dies that made a lab, the kernel kills the nodes; [Clear] removes the rest.
package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// NetnsDir is where the namespaces are that 'ip netns' knows.
const NetnsDir = "/run/netns"

// MaxNodes is how many nodes a lab can have: one digit of an address each.
const MaxNodes = 9

// The names of every lab.
const (
	Host = "www.peerage.test"
	Zone = "peerage.test"

	Public   = "public"   // network
	Internal = "internal" // network
)

// The machines besides the nodes, which are n1, n2 and so on.
const (
	client = "client" // on the public network
	router = "router" // between the public network and the world
	world  = "world"  // behind the router
	app    = "app"    // the back-ends, on the internal network

	lan = "lan" // not a machine: where the switches are
)

// The bounds of [Config.Period].
const (
	minPeriod = 50 * time.Millisecond
	maxPeriod = 10 * time.Second
)

// Config says what lab to make.
type Config struct {
	Nodes  int           `json:"nodes"`  // 1 to MaxNodes
	Period time.Duration `json:"period"` // of the reports, 50 ms to 10 s
	IPv6   bool          `json:"ipv6"`   // a second address family on the public network, and a second VIP for each node

	// Dir is an absolute path: the directory of the lab's files, which exists, and which
	// nobody else can write to.
	Dir string `json:"-"`
	// Names is the directory where the namespaces get names, such as NetnsDir; "" for none.
	Names string `json:"names"`
	// Binary is the peerage binary that the nodes run.
	Binary string `json:"binary"`
}

// UseError is an error that the caller can mend by asking for something else.
type UseError struct{ text string }

func (e *UseError) Error() string { return e.text }

func useErrorf(format string, args ...any) error {
	return &UseError{fmt.Sprintf(format, args...)}
}

// Check returns a [UseError] if there can be no such lab.
func (c *Config) Check() error {
	switch {
	case c.Nodes < 1 || c.Nodes > MaxNodes:
		return useErrorf("%d nodes: a lab has 1 to %d", c.Nodes, MaxNodes)
	case c.Period < minPeriod || c.Period > maxPeriod || c.Period%time.Millisecond != 0:
		return useErrorf("a period of %v: it is %v to %v, in whole milliseconds", c.Period, minPeriod, maxPeriod)
	case len(filepath.Join(c.Dir, "n1", socketName)) > maxSocketPath:
		return useErrorf("directory %s: its name is too long for the sockets in it; it may have %d letters", c.Dir, maxSocketPath-len("/n1/"+socketName))
	}
	return nil
}

// Lab is a LAN with the nodes on it. Its methods may be called by several goroutines at a
// time.
type Lab struct {
	c     Config
	id    string // is in the environment of every process of the lab
	began time.Time

	lan      *namespace // where the switches are
	machines []*Machine // the nodes first
	nodes    []*Node
	starter  *starter
	servers  servers
	running  sync.WaitGroup // what waits for the end of a process

	mu      sync.Mutex // held while a process is started, and while the LAN is made to match faults
	faults  faults
	closing bool // nothing more is started
}

// New makes a LAN, and writes the files of the nodes. No node runs yet. The caller closes
// the lab.
func New(c Config) (*Lab, error) { return newLab(c, rand.Text()) }

func newLab(c Config, id string) (_ *Lab, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	l := &Lab{c: c, id: id, began: time.Now(), starter: newStarter()}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	l.plan()
	if err := l.build(); err != nil {
		return nil, err
	}
	if err := l.writeFiles(); err != nil {
		return nil, fmt.Errorf("write the files of the lab in %s: %w", c.Dir, err)
	}
	return l, l.serveBackends()
}

// Close ends everything that runs in the lab and takes the LAN down. The files stay.
func (l *Lab) Close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.endNodes()
	all := []*namespace{l.lan}
	for _, m := range l.machines {
		all = append(all, m.ns)
	}
	var made []fs.FileInfo
	for _, n := range all {
		if info, err := n.stat(); err == nil {
			made = append(made, info)
		}
	}
	err := endStrays(l.id, made)
	l.starter.close() // and what it has started
	l.running.Wait()
	l.servers.close()
	for _, n := range all {
		err = errors.Join(err, n.close())
	}
	return err
}

// start starts a process on a machine, and calls ended when it has ended.
func (l *Lab) start(m *Machine, cmd *exec.Cmd, ended func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return errClosing
	}
	if err := l.starter.start(m.ns, cmd); err != nil {
		return fmt.Errorf("start %s on %s: %w", cmd.Args[0], m.Name, err)
	}
	l.running.Go(func() {
		cmd.Wait() // what it says is in ProcessState
		ended()
	})
	return nil
}

var errClosing = errors.New("the lab is being taken down")

// Node returns a node of the lab.
func (l *Lab) Node(name string) (*Node, error) {
	if i := slices.IndexFunc(l.nodes, func(n *Node) bool { return n.Name == name }); i >= 0 {
		return l.nodes[i], nil
	}
	return nil, useErrorf("%q is no node of the lab; its nodes are %s", name, list(l.nodes))
}

// Machine returns a machine of the lab: a node, client, router, world or app.
func (l *Lab) Machine(name string) (*Machine, error) {
	if i := slices.IndexFunc(l.machines, func(m *Machine) bool { return m.Name == name }); i >= 0 {
		return l.machines[i], nil
	}
	return nil, useErrorf("%q is no machine of the lab; there are %s", name, list(l.machines))
}
