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

// Bounds of [Config.Period] and [Config.OfflineAfter].
const (
	MinPeriod       = 50 * time.Millisecond
	MaxPeriod       = 10 * time.Second
	MinOfflineAfter = 2
	MaxOfflineAfter = 20
)

// Config is what an Exchange needs.
type Config struct {
	Self        balancing.NodeID
	Address     netip.Addr // host address: reports leave from it and come in on it
	Incarnation uint64     // greater than that of every earlier start of this node
	Nodes       []Peer     // all nodes of the site document, this one among them

	Sealer *keys.Sealer
	Site   string // name of the site, bound into each report

	Period       time.Duration // between two reports, varied by a tenth; whole milliseconds
	OfflineAfter int           // periods of silence after which a peer is off-line
	Port         uint16        // UDP, the same on all nodes

	Exchange  Mode
	Interface string     // that multicast uses
	Group     netip.Addr // of multicast

	Log *slog.Logger
}

// Peer is a node as the site document has it.
type Peer struct {
	ID       balancing.NodeID
	Address  netip.Addr // host address, or the zero Addr if only a report will tell
	Home     []netip.Addr
	Capacity float64
}

// Status is what this node says of itself.
type Status struct {
	State balancing.State
	Load  balancing.Load
	Held  []netip.Addr // VIPs that it answers for, at most [balancing.MaxHeld]
}

// Exchange exchanges reports with the peers.
type Exchange struct {
	c        Config
	site     []byte // additional data of every seal
	mode     Mode
	open     func(*Config, Mode) (transport, error)
	counters counters
	view     atomic.Pointer[balancing.View]
	changed  chan struct{} // capacity 1
	early    chan struct{} // capacity 1: a report is due before its time

	mu      sync.Mutex
	me      balancing.Node
	peers   *peers
	told    Status        // as in the latest report
	stale   bool          // the view lacks loads that have come in
	twins   time.Time     // when another node of our name was last complained of
	clocks  time.Time     // when a clock was last complained of
	elderly time.Duration // how long a word about multicast counts
}

const (
	// earliest is the pause between a report and an early one.
	earliest = 20 * time.Millisecond

	// jump is the change of load that is worth an early report, in points; with a pause of
	// at least jumpPause.
	jump      = 25
	jumpPause = 100 * time.Millisecond

	// viewEvery is how often a view is made for new loads alone. Whatever else changes
	// shows at once.
	viewEvery = 20 * time.Millisecond

	complainEvery = time.Minute
)

// New returns an exchange whose view is what the site document says. It opens nothing.
func New(c Config) (*Exchange, error) {
	i := slices.IndexFunc(c.Nodes, func(p Peer) bool { return p.ID == c.Self })
	switch {
	case i < 0:
		return nil, fmt.Errorf("exchange of reports: node %s is not among the nodes of the site", c.Self)
	case c.Period < MinPeriod || c.Period > MaxPeriod || c.Period%time.Millisecond != 0:
		return nil, fmt.Errorf("exchange of reports: period %v, want whole milliseconds from %v to %v", c.Period, MinPeriod, MaxPeriod)
	case c.OfflineAfter < MinOfflineAfter || c.OfflineAfter > MaxOfflineAfter:
		return nil, fmt.Errorf("exchange of reports: off-line after %d periods, want %d to %d", c.OfflineAfter, MinOfflineAfter, MaxOfflineAfter)
	}
	mode, err := settle(&c)
	if err != nil {
		return nil, err
	}
	x := &Exchange{
		c:       c,
		site:    []byte(c.Site),
		mode:    mode,
		open:    func(c *Config, m Mode) (transport, error) { return openSockets(c, m) },
		changed: make(chan struct{}, 1),
		early:   make(chan struct{}, 1),
		peers:   newPeers(&c),
		elderly: time.Duration(c.OfflineAfter) * c.Period,
		me: balancing.Node{
			ID: c.Self, Address: c.Address, Home: c.Nodes[i].Home, Capacity: c.Nodes[i].Capacity,
			Online: true, Incarnation: c.Incarnation, State: balancing.Joining,
		},
	}
	x.told.State = balancing.Joining
	x.mu.Lock()
	x.publish(time.Now())
	x.mu.Unlock()
	return x, nil
}

// settle returns the mode that c's interface allows.
func settle(c *Config) (Mode, error) {
	if c.Exchange == Unicast {
		return Unicast, nil
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
	case c.Group.Is4() != c.Address.Is4():
		why = fmt.Sprintf("the group %v and the host address %v are of different families", c.Group, c.Address)
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

// Changed gets a value when there is a new view. It is never closed, and is for one
// reader.
func (x *Exchange) Changed() <-chan struct{} { return x.changed }

// Update changes what this node says of itself. The view shows it at once. The peers are
// told early if state or VIPs have changed, or the load has by much. f must not block.
func (x *Exchange) Update(f func(*Status)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := Status{State: x.me.State, Load: x.me.Load, Held: slices.Clone(x.me.Held)}
	f(&s)
	same := s.State == x.me.State && slices.Equal(s.Held, x.me.Held)
	if same && s.Load == x.me.Load {
		return
	}
	x.me.State, x.me.Load, x.me.Held = s.State, s.Load, s.Held
	if same {
		x.stale = true
	} else {
		x.publish(time.Now())
	}
	if !same || math.Abs(float64(s.Load-x.told.Load)) > jump {
		signal(x.early)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // there is one waiting
	}
}

// publish makes a new view. x.mu is held.
func (x *Exchange) publish(now time.Time) {
	x.stale = false
	x.view.Store(x.peers.view(x.me, now))
	signal(x.changed)
}

// Run exchanges reports until ctx ends, and then says farewell.
func (x *Exchange) Run(ctx context.Context) error {
	t, err := x.open(&x.c, x.mode)
	if err != nil {
		return err
	}
	var receiving sync.WaitGroup
	received := make(chan error, 1)
	receiving.Go(func() { received <- t.receive(x.hear) })
	defer receiving.Wait()
	defer t.close()
	s := &sender{x: x, t: t}
	if err := x.run(ctx, s, received); err != nil {
		return err
	}
	s.farewell()
	return nil
}

// run sends what is due and watches for silence.
func (x *Exchange) run(ctx context.Context, s *sender, received <-chan error) error {
	var (
		report = time.Now() // when the next one is due
		last   time.Time    // when the latest was sent
		views  = time.NewTicker(viewEvery)
		timer  = time.NewTimer(0)
		due    = report
	)
	defer views.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-received:
			return errors.Join(errors.New("the sockets of the reports were closed"), err)
		case <-views.C:
			x.refresh()
			continue
		case <-x.early:
			if at := last.Add(x.pause()); at.Before(report) {
				report = at
			}
		case <-timer.C:
			x.silence(due)
		}
		now := time.Now()
		if !now.Before(report) {
			s.report(now)
			last, report = now, now.Add(jitter(x.c.Period))
		}
		due = x.due(report)
		timer.Reset(time.Until(due))
	}
}

// pause returns how long after a report an early one may follow.
func (x *Exchange) pause() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.told.State == x.me.State && slices.Equal(x.told.Held, x.me.Held) {
		return jumpPause
	}
	return earliest
}

// jitter varies d by a tenth, so that the nodes do not fall into step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// due returns when there is something to do: a report, or a verdict on a silent peer.
func (x *Exchange) due(report time.Time) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	if next := x.peers.next(); !next.IsZero() && next.Before(report) {
		return next
	}
	return report
}

// silence looks for peers that have been silent for too long. This wake-up was due at
// due: if it comes late, so may have the reports, through no fault of the peers.
func (x *Exchange) silence(due time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if late := now.Sub(due); late > max(10*time.Millisecond, x.c.Period/10) {
		x.counters.late.Add(1)
		x.peers.forgive(late)
		return
	}
	silent := x.peers.expire(now)
	for _, p := range silent {
		x.c.Log.Warn("peer silent", "peer", p.ID, "heard", p.Heard)
	}
	if len(silent) > 0 {
		x.publish(now)
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
	switch what {
	case nothing:
		x.stale = true
		return
	case joined:
		x.c.Log.Info("peer online", "peer", p.ID, "addr", p.Address, "state", p.State)
		signal(x.early) // it may know nothing of us
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
	text, err := x.c.Sealer.Open(plain[:0], b, x.site)
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
