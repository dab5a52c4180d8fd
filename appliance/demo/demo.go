// Package demo runs a whole site on loopback: real node processes, a sample bank
// behind them, and the means to watch what happens when one of them is killed.
//
// Start with [Run]. It needs no privileges and no configuration. It owns the processes
// that it starts and ends them; it writes to one directory only.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"peerage/appliance/demo/bank"
	"peerage/appliance/node"
	"peerage/balancing"
)

// MaxNodes is how many nodes a demo can have: one digit of an address each.
const MaxNodes = 9

// The names and ports of every demo.
const (
	Host = "www.peerage.test"
	Zone = "peerage.test"

	portHTTPS   = 8443
	portHTTP    = 8080
	portDNS     = 8053
	portReports = 7947
	portRelay   = 7948
	portBank    = 8090
)

// Config says what to run.
type Config struct {
	Nodes  int           // 1 to MaxNodes
	Dir    string        // kept at the end; "" for a temporary one that is removed
	For    time.Duration // how long; 0 until ctx ends
	Binary string        // the peerage binary that the nodes run
	Show   func(Event)   // called for one event at a time
}

// Demo is a running site.
type Demo struct {
	c     Config
	dir   string
	nodes []*process
	began time.Time
	show  chan Event
}

// process is one node of the demo.
type process struct {
	id      balancing.NodeID
	address netip.Addr
	vip     netip.Addr
	bank    netip.AddrPort
	dir     string
	pid     atomic.Int64
}

func (p *process) nodeFile() string { return filepath.Join(p.dir, "node.yaml") }

// Run brings the site up, shows its events, and takes it down when ctx ends or its time
// is over.
func Run(ctx context.Context, c Config) (err error) {
	if c.Nodes < 1 || c.Nodes > MaxNodes {
		return fmt.Errorf("a demo has 1 to %d nodes, not %d", MaxNodes, c.Nodes)
	}
	d := &Demo{c: c, dir: c.Dir, began: time.Now(), show: make(chan Event, 256)}
	for i := 1; i <= c.Nodes; i++ {
		d.nodes = append(d.nodes, &process{
			id:      balancing.NodeID(fmt.Sprintf("n%d", i)),
			address: netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}),
			vip:     netip.AddrFrom4([4]byte{127, 0, 0, byte(20 + i)}),
			bank:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(30 + i)}), portBank),
		})
	}
	if err := d.checkPorts(); err != nil {
		return err
	}
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "peerage-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	} else if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return fmt.Errorf("prepare the demo in %s: %w", d.dir, err)
	}
	unpublish, err := publish(d.dir)
	if err != nil {
		return err
	}
	defer unpublish()
	return d.run(ctx)
}

// run starts bank and nodes and stays until the end.
func (d *Demo) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var showing sync.WaitGroup
	showing.Go(func() {
		for e := range d.show {
			d.c.Show(e)
		}
	})
	defer showing.Wait()
	defer close(d.show)

	stopBanks, err := d.startBanks()
	if err != nil {
		return err
	}
	defer stopBanks()

	var running sync.WaitGroup
	for _, p := range d.nodes {
		started := make(chan error, 1)
		running.Go(func() { d.runNode(ctx, p, started) })
		if err := <-started; err != nil {
			stop(err)
			running.Wait()
			return err
		}
	}
	err = d.awaitReady(ctx)
	if err == nil {
		d.show <- d.ready()
		var over <-chan time.Time
		if d.c.For > 0 {
			t := time.NewTimer(d.c.For)
			defer t.Stop()
			over = t.C
		}
		select {
		case <-ctx.Done():
		case <-over:
		}
	} else if ctx.Err() != nil {
		err = nil // told to end before it was ready
	}
	d.show <- Event{Time: time.Now(), Event: "ending", Text: "ending"}
	d.endStrangers()
	stop(nil)
	running.Wait()
	return err
}

// checkPorts tells before anything is started what another program holds.
func (d *Demo) checkPorts() error {
	for _, p := range d.nodes {
		for _, a := range []netip.Addr{p.address, p.vip} {
			for _, port := range []uint16{portHTTPS, portHTTP, portDNS} {
				l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
				if err != nil {
					return busy(err)
				}
				l.Close()
			}
		}
		u, err := net.ListenPacket("udp", netip.AddrPortFrom(p.address, portReports).String())
		if err != nil {
			return busy(err)
		}
		u.Close()
		l, err := net.Listen("tcp", p.bank.String())
		if err != nil {
			return busy(err)
		}
		l.Close()
	}
	return nil
}

func busy(err error) error {
	return fmt.Errorf("%w\nis another demo running? 'peerage status' would show it; end it, or the program that holds the port", err)
}

// startBanks runs one sample back-end for each node, in this process: when a node is
// killed its bank lives on, but nobody asks it any more.
func (d *Demo) startBanks() (stop func(), err error) {
	var servers []*http.Server
	var wg sync.WaitGroup
	stop = func() {
		for _, s := range servers {
			s.Close()
		}
		wg.Wait()
	}
	for _, p := range d.nodes {
		l, err := net.Listen("tcp", p.bank.String())
		if err != nil {
			stop()
			return nil, err
		}
		s := &http.Server{
			Handler:           bank.New(bank.Config{Name: string(p.id), Domain: Host}),
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		}
		servers = append(servers, s)
		wg.Go(func() { s.Serve(l) })
	}
	return stop, nil
}

// awaitReady returns when every VIP is answered for by its home node.
func (d *Demo) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting := ""
		for _, p := range d.nodes {
			st, err := node.Client(p.dir).Status(ctx)
			if err != nil || !slices.Contains(st.Listening, p.vip) {
				waiting = string(p.id)
				break
			}
		}
		if waiting == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s does not answer on its VIP after 30 s; its log is %s", waiting, filepath.Join(d.dir, waiting, "node.log"))
			}
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// endStrangers ends nodes of this demo that were started again by hand, and so are not
// children of this process.
func (d *Demo) endStrangers() {
	for _, p := range d.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		st, err := node.Client(p.dir).Status(ctx)
		cancel()
		if err == nil && st.Guard != nil && parentOf(st.Guard.PID) != os.Getpid() {
			syscall.Kill(st.Guard.PID, syscall.SIGTERM)
		}
	}
}

// parentOf returns the parent of the process pid, or 0.
func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in brackets, may hold anything; the parent is the second field behind it.
	_, after, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	var state string
	var parent int
	fmt.Sscan(after, &state, &parent)
	return parent
}

// writeFiles copies what is in f to dir.
func writeFiles(dir string, f fs.FS) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.CopyFS(dir, f)
}

// ownedByUs reports whether a directory is this user's and closed to others.
func ownedByUs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.IsDir() && int(st.Uid) == os.Getuid() && info.Mode().Perm()&0o022 == 0
}

// Interrupted returns a context that ends with ctx, or on the first SIGINT or SIGTERM.
func Interrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
}
