// Package heartbeat exchanges load reports between the nodes of a site. A report says how
// busy its node is, in what state, and which VIPs it answers for; that it comes at all
// says that the node is alive (patent, summary: one message for both).
//
// Start with [Exchange]. It sends a report every period, and an early one when something
// changed that the peers should know at once. It hears those of the peers, and makes of
// both a [balancing.View], which is replaced whole. A peer that is not heard for
// [Config.OfflineAfter] of its periods is off-line; one that says farewell is at once.
//
// A report is sealed with a key of the site, and accepted only from a node of the site
// document, only if it is newer than the last one of that node, and only if the clocks of
// both differ by less than 30 s (docs/decisions/0002). Everything else is counted and
// forgotten, so that nothing from the network can grow a node.
//
// [Exchange.Run] owns the sockets and all goroutines.
package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
)

// Bounds of [Config.OfflineAfter].
const (
	MinOfflineAfter = 2
	MaxOfflineAfter = 20
)

// Config is what an Exchange needs. What can change while it runs, [Exchange.Reconfigure]
// says.
type Config struct {
	Self        balancing.NodeID
	Address     netip.Addr // host address on the network of the clients
	Internal    netip.Addr // the same on the internal network, where peers relay to
	Incarnation uint64     // greater than that of every earlier start of this node
	Version     string     // of the software
	Nodes       []Peer     // all nodes of the site document, this one among them

	Sealer *keys.Sealer
	Site   string // name of the site, bound into each report

	// Document are the settings of the site document, with the digest of them as Base.
	// Changed are those that were last followed, kept by the caller over a restart; Keep
	// is called whenever there are new ones, and must not block. Reports go out every
	// period of the settings, varied by a tenth.
	Document balancing.Settings
	Changed  balancing.Settings
	Keep     func(balancing.Settings)

	OfflineAfter int    // periods of silence after which a peer is off-line: see [Silence]
	Port         uint16 // UDP, and TCP for word of a peer's death; the same on all nodes

	// Mark is the firewall mark of reports by which the kernel renews this node's right to
	// answer for VIPs, as long as [Exchange.Vouch] says so; 0 for none. It needs
	// CAP_NET_ADMIN.
	Mark uint32

	// How and over which network reports go: the address that they leave from and come in
	// on, and for multicast the interface and the group.
	Exchange  Mode
	Local     netip.Addr // default Address
	Interface string
	Group     netip.Addr

	Log *slog.Logger
}

// Peer is a node as the site document has it.
type Peer struct {
	ID       balancing.NodeID
	Address  netip.Addr // host address, or the zero Addr if only a report will tell
	Internal netip.Addr // the same on the internal network
	Home     []netip.Addr
	Capacity float64
}

// Status is what this node says of itself.
type Status struct {
	State       balancing.State
	Load        balancing.Load
	Debit, Shed balancing.Load      // see [balancing.Books]
	Held        []netip.Addr        // VIPs that it answers for, at most [balancing.MaxHeld]
	Unable      []balancing.RouteID // routes that it cannot serve, at most [balancing.MaxUnable]
}

// says reports whether peers should know of the change from s to t at once: everything but
// loads.
func (s *Status) says(t *Status) bool {
	return s.State != t.State || !slices.Equal(s.Held, t.Held) || !slices.Equal(s.Unable, t.Unable)
}

// Exchange exchanges reports with the peers.
type Exchange struct {
	c        Config // what Reconfigure changes of it is under mu; the Sealer is not used
	site     []byte // additional data of every seal
	open     opener
	settle   func(*Config) (Mode, error)
	string   func(*Exchange, netip.AddrPort) (*tripwires, error)
	boot     func() time.Duration // a clock that goes on while the machine sleeps
	sealer   atomic.Pointer[keys.Sealer]
	counters counters
	view     atomic.Pointer[balancing.View]
	changed  chan struct{} // capacity 1
	early    chan struct{} // capacity 1: a report is due before its time
	loads    chan struct{} // capacity 1: the view has become stale
	cuts     chan struct{} // capacity 1: a peer may be dead

	changing sync.Mutex     // held by Reconfigure
	reopen   chan reopening // to Run

	mu       sync.Mutex
	ended    chan struct{} // closed by Run at its end; nil before it begins
	mode     Mode
	me       balancing.Node
	status   Status
	lease    lease
	settings balancing.Settings
	peers    *peers
	told     Status    // as in the latest report to all
	news     bool      // there is something that all peers should know early
	urgent   bool      // and it is no load
	freed    bool      // and until they are, nobody answers for a VIP
	shown    time.Time // when Changed was last told of a view
	stale    bool      // the view lacks loads that have come in
	untold   bool      // Changed was not told of loads that it has
	asked    time.Time // when the peers were last asked
	light    bool      // the load was not above L1 when it was last reported
	hasten   int       // reports that are still sent at the period before a change to a longer one
	before   time.Duration
	twins    time.Time // when another node of our name was last complained of
	clocks   time.Time // when a clock was last complained of
}

const (
	// earliest is the pause between a report and an early one, but for one that tells of a
	// VIP that is free now.
	earliest = 20 * time.Millisecond

	// jump is the change of load that is worth an early report, in points; with a pause of
	// at least jumpPause.
	jump      = 25
	jumpPause = 100 * time.Millisecond

	// viewEvery is how often a view is made for new loads of peers alone. Whatever else
	// changes shows at once.
	viewEvery = 20 * time.Millisecond

	// tellEvery is the least time between two views that Changed is told of for nothing but
	// the load of this node.
	tellEvery = time.Second

	// askPause is the least time between two questions to the peers.
	askPause = 100 * time.Millisecond

	complainEvery = time.Minute

	// calling is how many times as often a node reports that calls for those who are missing.
	calling = 10
)

// New returns an exchange whose view is what the site document says. It opens nothing.
func New(c Config) (*Exchange, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	mode, err := settle(&c)
	if err != nil {
		return nil, err
	}
	x := &Exchange{
		c:       c,
		site:    []byte(c.Site),
		mode:    mode,
		open:    openSockets,
		settle:  settle,
		string:  stringTripwires,
		boot:    sinceBoot,
		changed: make(chan struct{}, 1),
		early:   make(chan struct{}, 1),
		loads:   make(chan struct{}, 1),
		cuts:    make(chan struct{}, 1),
		lease:   lease{renewed: make(chan struct{}, 1)},
		reopen:  make(chan reopening),
		peers:   newPeers(&c),
		me:      balancing.Node{ID: c.Self, Online: true, Incarnation: c.Incarnation, Version: c.Version},
		status:  Status{State: balancing.Joining},
		light:   true,
	}
	x.told = x.status
	x.sealer.Store(c.Sealer)
	x.me.Address, x.me.Internal = c.Address, c.Internal
	x.me.Home, x.me.Capacity = c.self().Home, c.self().Capacity
	x.settings = c.settings(balancing.Settings{})
	x.mu.Lock()
	x.publish(time.Now())
	x.mu.Unlock()
	return x, nil
}

// check fills in what may be left out, and says what is wrong.
func (c *Config) check() error {
	if c.self() == nil {
		return fmt.Errorf("exchange of reports: node %s is not among the nodes of the site", c.Self)
	}
	if c.OfflineAfter < MinOfflineAfter || c.OfflineAfter > MaxOfflineAfter {
		return fmt.Errorf("exchange of reports: off-line after %d periods, want %d to %d", c.OfflineAfter, MinOfflineAfter, MaxOfflineAfter)
	}
	if err := c.Document.Check(); err != nil {
		return fmt.Errorf("exchange of reports: %w", err)
	}
	if !c.Local.IsValid() {
		c.Local = c.Address
	}
	return nil
}

// self returns this node as the site document has it; nil if it has not.
func (c *Config) self() *Peer {
	i := slices.IndexFunc(c.Nodes, func(p Peer) bool { return p.ID == c.Self })
	if i < 0 {
		return nil
	}
	return &c.Nodes[i]
}

// settings returns those to follow: of those in force and those kept by the caller the
// newer, as far as they are changes of what the document says now; else the document's.
func (c *Config) settings(inForce balancing.Settings) balancing.Settings {
	best := c.Document
	for _, s := range []balancing.Settings{inForce, c.Changed} {
		if s.Version > 0 && s.Base == c.Document.Base && s.Check() == nil && newer(&s, &best) {
			best = s
		}
	}
	return best
}

// settle returns the mode that c's interface allows.
func settle(c *Config) (Mode, error) {
	if c.Exchange == Unicast || c.Exchange == Query {
		return c.Exchange, nil
	}
	why := ""
	ifi, err := net.InterfaceByName(c.Interface)
	switch {
	case err != nil:
		why = err.Error()
	case ifi.Flags&net.FlagMulticast == 0:
		why = "the interface carries no multicast"
	case !c.Group.IsMulticast():
		why = fmt.Sprintf("%v is no multicast group", c.Group)
	case c.Group.Is4() != c.Local.Is4():
		why = fmt.Sprintf("the group %v and the address %v are of different families", c.Group, c.Local)
	default:
		return c.Exchange, nil
	}
	if c.Exchange == Multicast {
		return 0, fmt.Errorf("reports by multicast on %s: %s; mend that, or set 'exchange: unicast'", c.Interface, why)
	}
	c.Log.Info("reports go by unicast", "link", c.Interface, "reason", why)
	return Unicast, nil
}

// View returns the latest view; never nil.
func (x *Exchange) View() *balancing.View { return x.view.Load() }

// Changed gets a value when there is a new view. It is never closed, and is for one reader.
//
// Its readers would be most of what an idle node does, so it may wait: for a second and a
// period if nothing differs but the load of this node, for who cares has told it; and for a
// period while this node is not above L1 if the loads of the peers differ by less than
// anybody would act upon.
func (x *Exchange) Changed() <-chan struct{} { return x.changed }

// Update changes what this node says of itself. The view shows it at once. The peers are
// told early of all that is not a load, of a load that has changed by much, and of one that
// has crossed L1. f must not block.
func (x *Exchange) Update(f func(*Status)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.overdue()
	was := x.status
	s := was
	s.Held, s.Unable = slices.Clone(was.Held), slices.Clone(was.Unable)
	f(&s)
	x.status = s
	x.lease.mend(&s)
	switch {
	case was.says(&s):
		x.publish(time.Now())
		x.freed = x.freed || slices.ContainsFunc(was.Held, func(vip netip.Addr) bool { return !slices.Contains(s.Held, vip) })
		x.tell(true)
		return
	case s.Load == was.Load && s.Debit == was.Debit && s.Shed == was.Shed:
		return
	}
	x.untold = true
	x.picture(time.Now())
	crossed := x.light != (s.Load <= x.settings.Light)
	if crossed || math.Abs(float64(s.Load-x.told.Load)) > jump {
		x.tell(false)
	}
}

// tell has a report sent to all before its time, the sooner if it is urgent. x.mu is held.
func (x *Exchange) tell(urgent bool) {
	x.news = true
	x.urgent = x.urgent || urgent
	signal(x.early)
}

// Ask asks the peers for a report, because what is known of them is too old to act upon.
// It is the answer to an event such as a request, and may be called for each: more than one
// question in 100 ms is not sent.
func (x *Exchange) Ask() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := time.Now(); now.Sub(x.asked) >= askPause {
		x.asked = now
		x.peers.ask()
		signal(x.early)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // there is one waiting
	}
}

// publish makes a new view, and tells of it. x.mu is held.
func (x *Exchange) publish(now time.Time) {
	x.shown, x.stale, x.untold = now, false, false
	x.picture(now)
	signal(x.changed)
}

// picture makes a new view. x.mu is held.
func (x *Exchange) picture(now time.Time) {
	me, s := x.me, x.said()
	me.State, me.Load, me.Debit, me.Shed, me.Held, me.Unable = s.State, s.Load, s.Debit, s.Shed, s.Held, s.Unable
	v := x.peers.view(me, now)
	v.Settings = x.settings
	x.view.Store(v)
}

// Run exchanges reports until ctx ends, and then says farewell. It runs once.
func (x *Exchange) Run(ctx context.Context) error {
	ended := make(chan struct{})
	defer close(ended)
	x.mu.Lock()
	x.ended = ended // from here on, a change of the network comes to run
	c, mode := x.c, x.mode
	x.mu.Unlock()
	t, err := x.open(&c, mode, nil)
	if err != nil {
		return err
	}
	s := &sender{x: x, t: t, received: x.receive(t)}
	defer s.close()
	s.string(netip.AddrPortFrom(c.Local, c.Port))
	if err := x.run(ctx, s); err != nil {
		return err
	}
	s.farewell()
	return nil
}

// receive hears what comes in by t until it is closed.
func (x *Exchange) receive(t transport) <-chan error {
	received := make(chan error, 1)
	go func() { received <- t.receive(x.hear) }()
	return received
}

// run sends what is due and watches for silence.
func (x *Exchange) run(ctx context.Context, s *sender) error {
	var (
		due   = time.Now() // of the next regular report
		early time.Time    // when one should go out before, or the zero time
		last  time.Time    // when the latest was sent
		wake  = due        // what timer is set to
		views = time.NewTimer(viewEvery)
		timer = time.NewTimer(0)
	)
	defer views.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.received:
			s.received = nil // close must not wait for it
			return errors.Join(errors.New("the sockets of the reports were closed"), err)
		case r := <-x.reopen:
			r.done <- s.reopen(r)
			continue
		case <-x.loads:
			views.Reset(viewEvery)
			continue
		case <-views.C:
			x.refresh()
			continue
		case <-x.early:
			early = last.Add(x.pause())
		case <-x.cuts:
			x.silence(time.Now())
		case <-timer.C:
			x.silence(wake)
		}
		now := time.Now()
		regular := !now.Before(due)
		if regular || !early.IsZero() && !now.Before(early) {
			s.report(now, regular)
			last, early = now, time.Time{}
			due = x.next(now, due, regular)
		}
		wake = x.wake(due, early)
		timer.Reset(time.Until(wake))
	}
}

// next returns when the regular report after one at now is due. An early report does not
// put it off, but the period may have become shorter.
func (x *Exchange) next(now, due time.Time, regular bool) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	period := x.settings.Period
	if x.hasten > 0 {
		period = min(period, x.before)
	}
	if x.peers.calls(x.c.Self) {
		period = max(period/calling, earliest) // two that were apart must soon know that they no longer are
	}
	next := now.Add(jitter(period))
	if !regular {
		return earlier(due, next)
	}
	x.hasten = max(0, x.hasten-1)
	return next
}

// wake returns when there is something to do: a report, or a verdict on a silent peer.
func (x *Exchange) wake(due, early time.Time) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return earlier(earlier(due, early), x.peers.next())
}

// earlier returns the earlier of two times, of which b may be zero for never.
func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// pause returns how long after a report an early one may follow.
func (x *Exchange) pause() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.freed:
		return 0 // until a peer knows, nobody answers for it
	case x.urgent || x.peers.waiting():
		return earliest
	}
	return jumpPause
}

// jitter varies d by a tenth, so that the nodes do not fall into step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// silence looks for peers that have been silent for too long. This wake-up was due at
// due: if it comes late, so may have the reports, through no fault of the peers.
func (x *Exchange) silence(due time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if late := now.Sub(due); late > max(10*time.Millisecond, x.settings.Period/10) {
		x.counters.late.Add(1)
		x.peers.forgive(late)
		return
	}
	if x.peers.doubt(now) {
		signal(x.early)
	}
	silent := x.peers.expire(now)
	for _, p := range silent {
		x.c.Log.Warn("peer silent", "peer", p.ID, "heard", p.Heard)
	}
	if len(silent) > 0 {
		x.publish(now)
	}
}

// outdate has a view made of a load that has come in. x.mu is held.
func (x *Exchange) outdate(now time.Time) {
	if now.Sub(x.shown) >= viewEvery {
		x.publish(now)
	} else if !x.stale {
		x.stale = true
		signal(x.loads)
	}
}

// refresh makes a view of loads that have come in since the last.
func (x *Exchange) refresh() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.stale {
		x.publish(time.Now())
	}
}

// hear takes one datagram from the network.
func (x *Exchange) hear(b []byte, byMulticast bool) {
	r, err := x.unseal(b)
	if err != nil {
		return
	}
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if r.node == x.c.Self {
		x.twin(r, now)
		return
	}
	p, what, err := x.peers.accept(r, now, byMulticast)
	if err != nil {
		x.refuse(r, err, now)
		return
	}
	x.counters.accepted.Add(1)
	if s := r.settings; s.Base == x.c.Document.Base && newer(&s, &x.settings) {
		x.follow(s)
	}
	if r.ask {
		x.counters.asked.Add(1)
		signal(x.early)
	}
	if slices.ContainsFunc(r.held, func(vip netip.Addr) bool { return slices.Contains(x.status.Held, vip) }) {
		x.tell(true) // both hold it: the other must know as soon as this node does
	}
	switch what {
	case nothing:
		if x.status.Load <= x.settings.Light && now.Sub(x.shown) < x.settings.Period/2 {
			x.untold = true
			x.picture(now)
			return
		}
		fallthrough
	case loads:
		x.outdate(now)
		return
	case joined:
		x.c.Log.Info("peer online", "peer", p.ID, "addr", p.Address, "state", p.State)
		x.tell(true) // it may know nothing of us
	case parted:
		x.c.Log.Info("peer left", "peer", p.ID)
	}
	x.publish(now)
}

// plains are for the plain texts of reports: a flood of forged ones must not make garbage.
var plains = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

func (x *Exchange) unseal(b []byte) (*report, error) {
	plain := plains.Get().(*[maxDatagram]byte)
	defer plains.Put(plain)
	text, err := x.sealer.Load().Open(plain[:0], b, x.site)
	if err != nil {
		x.counters.forged.Add(1)
		return nil, err
	}
	r, err := parseReport(text)
	if err != nil {
		x.counters.malformed.Add(1)
		x.c.Log.Debug("report not understood", "err", err)
	}
	return r, err
}

// refuse counts a report that was not accepted.
func (x *Exchange) refuse(r *report, err error, now time.Time) {
	switch err {
	case errUnknown:
		x.counters.unknown.Add(1)
	case errReplayed:
		x.counters.replayed.Add(1)
	case errClock:
		x.counters.clock.Add(1)
		if now.Sub(x.clocks) > complainEvery {
			x.clocks = now
			x.c.Log.Error("clock differs", "peer", r.node, "by", now.Sub(r.sent).Round(time.Millisecond), "most", maxSkew)
		}
	}
}

// twin deals with a report under this node's own name. By multicast its own come back.
func (x *Exchange) twin(r *report, now time.Time) {
	if r.incarnation == x.c.Incarnation {
		x.counters.own.Add(1)
		return
	}
	x.counters.twins.Add(1)
	// A report of an earlier start of this very node may still be on its way.
	if now.Sub(r.sent) < time.Second && r.incarnation > x.c.Incarnation && now.Sub(x.twins) > complainEvery {
		x.twins = now
		x.c.Log.Error("another node has this name", "name", x.c.Self, "addr", r.address)
	}
}
