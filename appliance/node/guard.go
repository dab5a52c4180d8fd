package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/balancing/keys"
	"peerage/takeover"
)

// guard is the small parent process of a node: it owns the reports and the VIPs, and
// keeps the server, its child, alive. It speaks no TLS and no HTTP; all it takes from
// outside are sealed reports.
type guard struct {
	path     string // of the node file
	nodeFile *site.NodeFile
	following
	command func() *exec.Cmd // starts the server
	log     *slog.Logger

	dir *state.Dir

	incarnation uint64
	exchange    *heartbeat.Exchange
	keeper      *takeover.Keeper
	started     time.Time
	keep        chan balancing.Settings // capacity 1: the newest to be kept
	changes     chan asked              // that the server wants, one after another
	ends        chan error              // capacity 1: why the node is to leave by itself
	changing    sync.Mutex              // held while one is made, and while a server begins

	mark       uint32 // of reports by which the kernel lets VIPs through; 0: it always does
	unmarked   string // why it is 0 although there are VIPs to fence
	departures departures
	orders     atomic.Pointer[ordered] // nil: none were told yet
	views      *fanout
	shown      chan struct{} // capacity 1: the keeper's status has changed
	watchdog   *watchdog     // nil if there is none; watch tells it

	look *time.Timer // at the node itself

	mu     sync.Mutex
	facts  facts
	due    time.Time // when look fires
	server *channel  // nil while there is none
}

const (
	healthEvery = 100 * time.Millisecond // between two health tokens of a server at work

	// minStale and maxStale bound the age at which a health token says that the server is
	// sick: tokens come late on a busy machine, and a server that hangs must be noticed.
	minStale = 500 * time.Millisecond
	maxStale = 3 * time.Second

	// restartFirst and restartMost are the pauses before a server that died is started
	// again; they double from the first to the most while it keeps dying.
	restartFirst = 100 * time.Millisecond
	restartMost  = 5 * time.Second
)

func newGuard(path string, nf *site.NodeFile, text string, doc *site.Document, dir *state.Dir, ring *keys.Ring, command func() *exec.Cmd, log *slog.Logger) (*guard, error) {
	now := time.Now()
	incarnation, err := dir.NextIncarnation(now)
	if err != nil {
		return nil, err
	}
	changed, err := dir.Settings()
	if err != nil {
		return nil, err
	}
	g := &guard{
		path: path, nodeFile: nf, command: command, log: log, dir: dir, started: now,
		keep: make(chan balancing.Settings, 1), changes: make(chan asked, maxChanges), ends: make(chan error, 1), shown: make(chan struct{}, 1),
	}
	g.goBy(text, doc, ring)
	g.incarnation = incarnation
	g.mark, g.unmarked = reportMark(nf, doc)
	c := g.reports(doc, ring)
	c.Changed = changed
	if g.exchange, err = heartbeat.New(c); err != nil {
		return nil, err
	}
	g.facts = facts{started: now, holdDown: doc.Takeover.HoldDown}
	g.look, g.due = time.NewTimer(healthEvery), now.Add(healthEvery)
	return g, nil
}

// reports says how reports are exchanged under a document and a ring of site keys.
func (g *guard) reports(doc *site.Document, ring *keys.Ring) heartbeat.Config {
	c := heartbeatConfig(g.nodeFile, doc, ring, g.log)
	c.Incarnation, c.Keep, c.Mark = g.incarnation, g.toKeep, g.mark
	return c
}

// toKeep has settings written down, the newest in place of those that still wait.
func (g *guard) toKeep(s balancing.Settings) {
	select {
	case <-g.keep:
	default:
	}
	g.keep <- s // never full: only the exchange sends, one at a time
}

// keepSettings writes down settings that have changed: the disk may be slow, the exchange
// must not be.
func (g *guard) keepSettings(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			select {
			case s := <-g.keep:
				return g.dir.SaveSettings(s)
			default:
				return nil
			}
		case s := <-g.keep:
			if err := g.dir.SaveSettings(s); err != nil {
				g.log.Error("settings not kept", "err", err)
			}
		}
	}
}

// run keeps the node going until ctx ends, then leaves the site in order: draining in
// the reports, VIPs to the peers, work in progress to its end, farewell.
func (g *guard) run(ctx context.Context) error {
	link, closeLink, err := openLink(g.nodeFile, g.reportDevice, g.log)
	if err != nil {
		return err
	}
	defer closeLink()
	if path := g.nodeFile.Watchdog; path != "" {
		if g.watchdog, err = openWatchdog(path, g.log); err != nil {
			return err
		}
		defer g.watchdog.close()
	}
	var command *takeover.CommandLink
	if path := g.nodeFile.VIPCommand; path != "" {
		command = takeover.WithCommand(link, path, g.log)
		link = command
	}

	// Each of the three outlives the one before it in the order of leaving.
	exchangeCtx, endExchange := context.WithCancel(context.Background())
	keeperCtx, endKeeper := context.WithCancel(context.Background())
	serverCtx, endServer := context.WithCancel(context.Background())
	defer endExchange()
	defer endKeeper()
	defer endServer()

	views := newFanout(g.exchange)
	g.views = views
	g.keeper = takeover.New(g.keeperConfig(link, views.subscribe()))
	g.judge(time.Now())

	failed := make(chan error, 8)
	var exchange, keeper, server, watch sync.WaitGroup
	run := func(wg *sync.WaitGroup, ctx context.Context, what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	toServer := views.subscribe()
	run(&exchange, exchangeCtx, "exchange of reports", g.exchange.Run)
	run(&exchange, exchangeCtx, "views", views.run)
	run(&exchange, exchangeCtx, "settings", g.keepSettings)
	run(&exchange, exchangeCtx, "changes", g.takeChanges)
	if command != nil {
		run(&exchange, exchangeCtx, "VIP command", func(ctx context.Context) error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			return ordinarily(func() error { return command.Run(ctx) })
		})
	}
	run(&keeper, keeperCtx, "takeover", g.keeper.Run)
	run(&server, serverCtx, "server", g.supervise)
	run(&watch, exchangeCtx, "watch", func(ctx context.Context) error { return g.watch(ctx, toServer) })

	var ended error
	select {
	case <-ctx.Done():
	case ended = <-g.ends:
	case err = <-failed:
	}
	g.log.Info("node leaving")
	if err != nil {
		g.departures.serve(nil) // no time for the clients
	}
	g.mu.Lock()
	g.facts.leaving = true
	g.mu.Unlock()
	g.judge(time.Now())
	g.awaitHandOver()
	endServer()
	server.Wait()
	endKeeper()
	keeper.Wait()
	endExchange()
	exchange.Wait()
	watch.Wait()
	return cmp.Or(err, ended)
}

// awaitHandOver returns when the VIPs are with the peers, when the time of the document and
// a little more are over, and when there is nobody to hand them to: as at the last node of
// a site.
func (g *guard) awaitHandOver() {
	deadline := time.NewTimer(g.rules().Grace + time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		v := g.exchange.View()
		others := slices.ContainsFunc(v.Nodes, func(n balancing.Node) bool { return n.ID != v.Self && n.Serves() })
		if me := v.Me(); !others || me == nil || len(me.Held) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// watch passes each new view to the server, and judges the node's own state whenever
// something may have changed it.
func (g *guard) watch(ctx context.Context, changed <-chan struct{}) error {
	defer g.look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			g.judge(time.Now())
			g.tell()
		case <-g.shown:
			g.judge(time.Now())
			g.tell()
		case <-g.look.C:
			now := time.Now()
			g.mu.Lock()
			g.facts.forgive(now.Sub(g.due))
			g.lookAfter(now, healthEvery)
			g.mu.Unlock()
			g.touched()
		case <-g.watchdog.due():
		}
		g.watchdog.pat(time.Now())
	}
}

// lookAfter has the node looked at d from now. With each health token it is looked at
// anyway: until the last one is stale, an idle guard need not wake up for that. g.mu is held.
func (g *guard) lookAfter(now time.Time, d time.Duration) {
	g.due = now.Add(d)
	g.look.Reset(d)
}

// hasCarrier reports whether the interface can reach its network: no cable is pulled. One
// that cannot be asked is taken to be well.
func hasCarrier(name string) bool {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return true
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(s)
	// Not net.InterfaceByName: that has the kernel list all interfaces, ten times a second.
	err = unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr)
	return err != nil || ifr.Uint16()&unix.IFF_RUNNING != 0
}

// judge says in the reports what state the node is in.
func (g *guard) judge(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := &g.facts
	v := g.exchange.View()
	f.listen = v.Settings.Period * 3 / 2
	f.stale = staleAfter(g.document(), v.Settings.Period)
	c := g.exchange.Counters()
	f.clocks.count(now, c.Clock)
	f.twins.count(now, c.Twins)
	f.unfenced = cmp.Or(g.keeper.Status().Fence, g.unmarked)
	was := f.current
	f.lapse(now, c.Lapsed)
	next := f.judge(now, homeHeldByOthers(v))
	if next != was {
		if was == balancing.Joining && atWork(v) {
			f.serves = now
		}
		attrs := []any{"state", next}
		if amiss := f.amiss(now); len(amiss) > 0 {
			attrs = append(attrs, "amiss", amiss)
		}
		g.log.Info("state", attrs...)
	}
	t, load := f.told, f.load(now, v.Settings.Light-v.Settings.Margin)
	g.exchange.Update(func(s *heartbeat.Status) {
		s.State, s.Load, s.Debit, s.Shed, s.Unable = next, load, t.Debit, t.Shed, t.Unable
	})
}

// staleAfter returns the age at which a health token says that the server is sick.
func staleAfter(doc *site.Document, period time.Duration) time.Duration {
	return min(max(time.Duration(doc.Balancing.OfflineAfter)*period, minStale), maxStale)
}

// tell sends the present view to the server.
func (g *guard) tell() {
	g.mu.Lock()
	server, amiss := g.server, g.facts.amiss(time.Now())
	g.mu.Unlock()
	if server == nil {
		return
	}
	m := toServer{View: g.exchange.View(), Guard: &GuardStatus{
		PID: os.Getpid(), Started: g.started, Reports: g.exchange.Counters(), Takeover: g.keeper.Status(), Amiss: amiss,
	}}
	if err := server.send(m); err != nil {
		g.log.Warn("server does not listen", "err", err)
		server.close() // it ends when it sees that, and is started anew
	}
}

// supervise keeps one server running until ctx ends. It stays on one thread, for the kernel
// ties the child's life to the one that started it (PDEATHSIG).
func (g *guard) supervise(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := restartFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := g.serveOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		g.log.Error("server ended", "err", err)
		if time.Since(began) > restartMost {
			pause = restartFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMost)
	}
	return nil
}

// serveOnce starts a server and returns when it has ended.
func (g *guard) serveOnce(ctx context.Context) error {
	ours, theirs, err := newPair()
	if err != nil {
		return err
	}
	defer ours.close()
	cmd := g.command()
	cmd.ExtraFiles = []*os.File{theirs}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err = ordinarily(cmd.Start)
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	g.log.Info("server started", "pid", cmd.Process.Pid)
	g.changing.Lock() // else it could begin with what is being changed
	// If this fails the server is gone, and listen will see it.
	ours.send(toServer{Begin: g.beginning()})
	g.mu.Lock()
	g.server = ours
	g.mu.Unlock()
	g.departures.serve(ours)
	g.changing.Unlock()
	g.tell()

	// Told to end, the server lets work in progress finish; it has the grace of the
	// document and a little for itself.
	var stopping sync.WaitGroup
	gone := make(chan struct{})
	stopping.Go(func() { watchStops(cmd.Process.Pid, gone, g.serverStopped) })
	stopping.Go(func() {
		select {
		case <-gone:
			return
		case <-ctx.Done():
		}
		if ours.send(toServer{Stop: true}) != nil {
			ours.close()
		}
		select {
		case <-gone:
		case <-time.After(g.document().Drain.Grace + 2*time.Second):
			cmd.Process.Kill()
		}
	})
	var listening sync.WaitGroup // not on this thread: to wake a certain one takes two
	listening.Go(func() { g.listen(ours) })
	listening.Wait()

	// The channel is closed: whatever the server is up to, it serves nobody's VIP now.
	g.departures.serve(nil)
	g.mu.Lock()
	g.server = nil
	g.facts.token, g.facts.told, g.facts.stopped = time.Time{}, token{}, false
	g.mu.Unlock()
	g.judge(time.Now())
	if ctx.Err() == nil {
		// It may be about to say what has ended it.
		defer time.AfterFunc(lastWords, func() { cmd.Process.Kill() }).Stop()
	}
	err = cmd.Wait()
	close(gone)
	stopping.Wait()
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return err
}

// lastWords is how long a server may live that has closed its channel.
const lastWords = 300 * time.Millisecond

// listen takes the server's health tokens until the channel closes.
func (g *guard) listen(c *channel) {
	for {
		var m toGuard
		err := c.receive(&m)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				g.log.Warn("server not understood", "err", err)
			}
			return
		}
		switch {
		case m.Token != nil:
			g.wellAt(time.Now(), *m.Token)
		case m.Ask:
			g.exchange.Ask()
		case m.Change != nil:
			g.ask(c, *m.Change)
		case m.Left != nil:
			g.departures.left(m.Left.VIP)
			g.views.signal() // at once: the next request may come any moment
		case m.Orders != nil:
			g.obey(m.Orders)
		case m.Set != nil:
			c.send(toServer{Took: g.set(*m.Set)}) // if it is gone, nobody waits any more
		}
	}
}

// serverStopped takes the kernel's word that the server has been stopped, or goes on.
func (g *guard) serverStopped(stopped bool) {
	if stopped {
		g.log.Error("server stopped", "reason", "somebody has sent it SIGSTOP, or a debugger holds it")
	} else {
		g.log.Info("server goes on")
	}
	g.mu.Lock()
	g.facts.stopped = stopped
	g.mu.Unlock()
	g.judge(time.Now())
}

// set changes settings of the whole site.
func (g *guard) set(m set) *took {
	change := g.exchange.Reset
	if !m.Reset {
		change = func() (balancing.Settings, error) {
			return g.exchange.Set(func(s *balancing.Settings) error { return patch(s, m.Patch) })
		}
	}
	now, err := change()
	if err != nil {
		return &took{ID: m.ID, Err: err.Error()}
	}
	return &took{ID: m.ID, Version: now.Version}
}

// patch puts in s what text, in JSON, names.
func patch(s *balancing.Settings, text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(s)
}

// wellAt takes a health token that came at now.
func (g *guard) wellAt(now time.Time, t token) {
	if len(t.Unable) > balancing.MaxUnable {
		t.Unable = t.Unable[:balancing.MaxUnable]
	}
	g.mu.Lock()
	g.facts.tell(now, t)
	g.lookAfter(now, g.facts.stale+time.Millisecond)
	g.mu.Unlock()
	g.touched()
}

// credentials returns the attributes under which the server runs: as root it becomes
// the named user, with no more than the right to bind low ports.
func credentials(u *account) *syscall.SysProcAttr {
	if u == nil {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: u.uid, Gid: u.gid},
		AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
	}
}
