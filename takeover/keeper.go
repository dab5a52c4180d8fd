package takeover

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

const (
	linkTimeout = time.Second            // for one call of the link
	retryAfter  = 200 * time.Millisecond // a step that failed is tried again

	// announceEvery is how often a held VIP is announced after the burst of its
	// claim: neighbours that lost an announcement, or a switch that forgot the port,
	// learn again.
	announceEvery = 30 * time.Second
)

// RenewEvery is how often a VIP that is held is added to its [Link] again: a quarter of
// the kernel's lease on it.
const RenewEvery = 500 * time.Millisecond

// burst is when a VIP is announced after its claim. One second is the time for which
// a Linux neighbour does not let a fresh ARP entry be changed.
var burst = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second}

// Config is what a [Keeper] works with. All fields but Resync must be set.
type Config struct {
	Self balancing.NodeID
	Link Link

	// View returns the latest view of the site; never nil. Changed gets a value
	// when there is a new one; it is never closed.
	View    func() *balancing.View
	Changed <-chan struct{}

	// Held is called by Run whenever the set of VIPs on the link has changed, with
	// all of them, sorted. It must not block; the slice is its own.
	Held func([]netip.Addr)

	// Resync is the longest time between two comparisons of link and plan; 0 means
	// 3 s.
	Resync time.Duration

	Log *slog.Logger
}

// Keeper makes one link hold the VIPs that this node should hold.
//
// The life of a VIP at one node:
//
//	         planned here, no peer reports it, no host answers for it
//	elsewhere ─────────────────────────────▶ held: announced in a burst, then every 30 s
//	    ▲                                      │
//	    └──────────────────────────────────────┘
//	  planned for another node, or this node is not well
type Keeper struct {
	cfg    Config
	status atomic.Pointer[Status]

	// What follows belongs to Run.

	on       map[netip.Addr]bool // all addresses on the link
	vips     []*vip              // of the site, in the order of the plan; then those dropped from it
	reported []netip.Addr        // what Held was last told
	listErr  string              // why the link could not be listed last, "" if it could
}

// vip is what Run keeps of one VIP.
type vip struct {
	Assignment

	since time.Time        // when the present burst of announcements began
	sent  int              // announcements of it
	renew time.Time        // when the kernel's lease is due to be renewed; zero for at once
	due   time.Time        // when the next one is due; zero if it was not announced since its claim
	rival balancing.NodeID // on-line peer that reports to hold it too
	from  balancing.NodeID // peer that reported to hold it, and was heard of ever since

	err   string    // of the last step, "" if it went well
	retry time.Time // when a failed step may be tried again; zero for at once
}

// Status is what a [Keeper] wants and has.
type Status struct {
	VIPs []VIPStatus `json:"vips"` // in the order of [Plan]
}

// VIPStatus is one VIP as seen by one node.
type VIPStatus struct {
	VIP     netip.Addr       `json:"vip"`
	Planned balancing.NodeID `json:"planned,omitempty"` // who should hold it, "" for nobody
	Reason  Reason           `json:"reason"`            // why
	Held    bool             `json:"held"`              // it is on this node's link
	Err     string           `json:"err,omitempty"`     // of the last step with it here
}

// New returns a keeper that does nothing until Run.
func New(cfg Config) *Keeper {
	if cfg.Resync == 0 {
		cfg.Resync = 3 * time.Second
	}
	k := &Keeper{cfg: cfg, on: make(map[netip.Addr]bool)}
	k.status.Store(&Status{})
	return k
}

// Status returns the state after the latest pass. The caller must not change it.
func (k *Keeper) Status() Status { return *k.status.Load() }

// Run keeps the link in step with the plan until ctx ends. Then it gives up all VIPs
// and returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			k.leave(context.WithoutCancel(ctx))
			return nil
		case <-k.cfg.Changed:
		case <-timer.C:
		}
		timer.Reset(k.pass(ctx))
	}
}

// pass makes the link match the plan, as far as can be at the moment, and returns when
// it should be looked at again at the latest. Every step may be repeated.
func (k *Keeper) pass(ctx context.Context) time.Duration {
	k.list(ctx)
	v := k.look()
	now := time.Now()
	for _, e := range k.vips {
		if !e.retry.After(now) {
			e.retry = time.Time{}
		}
		switch {
		case k.mayHold(e):
		case k.on[e.VIP]:
			k.release(ctx, e)
		default:
			e.err = ""
		}
	}
	k.report() // at once: a peer may be waiting for it
	k.claim(ctx, v)
	k.report()
	for _, e := range k.vips {
		if k.on[e.VIP] && k.mayHold(e) {
			k.keep(ctx, e)
			k.announce(ctx, e, rival(v, k.cfg.Self, e.VIP))
		}
	}
	k.publish()
	return k.rest()
}

// list reads what is on the link. If that fails, the last known goes on to count: what
// this node may not hold must be released all the same.
func (k *Keeper) list(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	addrs, err := k.cfg.Link.Addrs(limited)
	if err != nil {
		if ctx.Err() == nil && err.Error() != k.listErr {
			k.listErr = err.Error()
			k.cfg.Log.Warn("vip list failed", "err", err)
		}
		return
	}
	k.listErr = ""
	clear(k.on)
	for _, a := range addrs {
		k.on[a] = true
	}
}

// look plans anew from the latest view. Of this node, the link knows better than the
// view what it holds.
func (k *Keeper) look() *balancing.View {
	v := *k.cfg.View()
	v.Nodes = slices.Clone(v.Nodes)
	if me := v.Me(); me != nil {
		me.Held = nil
		for addr := range k.on {
			me.Held = append(me.Held, addr)
		}
	}

	known := make(map[netip.Addr]*vip, len(k.vips))
	for _, e := range k.vips {
		known[e.VIP] = e
	}
	k.vips = nil
	for _, a := range Plan(&v) {
		e := known[a.VIP]
		if e == nil {
			e = new(vip)
		}
		delete(known, a.VIP)
		e.Assignment = a
		e.follow(&v)
		k.vips = append(k.vips, e)
	}
	for _, e := range known { // no longer VIPs of the site
		e.Assignment = Assignment{VIP: e.VIP}
		if k.on[e.VIP] {
			k.vips = append(k.vips, e)
		}
	}
	return &v
}

// follow keeps track of the peer that e may come from.
func (e *vip) follow(v *balancing.View) {
	if r := rival(v, v.Self, e.VIP); r != "" {
		e.from = r
	} else if n := v.Node(e.from); n == nil || !n.Online && n.State != balancing.Leaving {
		e.from = "" // it fell silent: who knows what is on its interface
	}
}

// mayHold reports whether this node may go on holding e: because it serves, or as a last
// resort.
func (k *Keeper) mayHold(e *vip) bool {
	return e.Node == k.cfg.Self && e.Reason != ReasonWaiting
}

// mayClaim reports whether this node should claim e now: it is planned here, and no peer
// reports to hold it still. This node serves then, for what it holds as a last resort is
// on the link.
func (k *Keeper) mayClaim(e *vip, v *balancing.View) bool {
	return k.mayHold(e) && !k.on[e.VIP] && e.retry.IsZero() && rival(v, k.cfg.Self, e.VIP) == ""
}

// rival returns an on-line peer that reports to hold vip, or "".
func rival(v *balancing.View, self balancing.NodeID, vip netip.Addr) balancing.NodeID {
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.ID != self && n.Holds(vip) {
			return n.ID
		}
	}
	return ""
}

func (k *Keeper) release(ctx context.Context, e *vip) {
	if err := call(ctx, k.cfg.Link.Remove, e.VIP); err != nil {
		k.fail(ctx, e, "vip release failed", err)
		return
	}
	delete(k.on, e.VIP)
	e.err, e.due, e.rival = "", time.Time{}, ""
	k.cfg.Log.Info("vip released", "vip", e.VIP, "reason", e.Reason, "peer", e.Node)
}

// claim claims what should be claimed. What a peer has just said to have released is not
// probed for: nobody answers for it. The probes take a while, so all are made at the same
// time, and afterwards the plan must still say so.
func (k *Keeper) claim(ctx context.Context, v *balancing.View) {
	var wanted []*vip
	for _, e := range k.vips {
		if k.mayClaim(e, v) {
			wanted = append(wanted, e)
		}
	}
	if len(wanted) == 0 {
		return
	}
	errs := make([]error, len(wanted))
	var probes sync.WaitGroup
	for i, e := range wanted {
		if e.from == "" {
			probes.Go(func() { errs[i] = call(ctx, k.probe, e.VIP) })
		}
	}
	probes.Wait()

	v = k.look()
	for i, e := range wanted {
		if !k.mayClaim(e, v) {
			continue
		}
		err := errs[i]
		if err == nil && len(k.held()) >= balancing.MaxHeld {
			err = fmt.Errorf("claim %s: this node holds %d VIPs already, the most it can", e.VIP, balancing.MaxHeld)
		}
		if err == nil {
			err = call(ctx, k.cfg.Link.Add, e.VIP)
		}
		if err != nil {
			k.fail(ctx, e, "vip claim failed", err)
			continue
		}
		k.on[e.VIP], e.from = true, ""
		e.err, e.due, e.renew = "", time.Time{}, time.Now().Add(RenewEvery)
		k.cfg.Log.Info("vip claimed", "vip", e.VIP, "reason", e.Reason, "peer", v.Home(e.VIP).ID)
	}
}

// probe returns an error unless it is certain that nobody answers for vip.
func (k *Keeper) probe(ctx context.Context, vip netip.Addr) error {
	answered, err := k.cfg.Link.Probe(ctx, vip)
	if err == nil && answered {
		err = fmt.Errorf("claim %s: another host answers for it", vip)
	}
	return err
}

// keep renews the kernel's lease on e when that is due.
func (k *Keeper) keep(ctx context.Context, e *vip) {
	now := time.Now()
	if e.renew.After(now) {
		return
	}
	e.renew = now.Add(RenewEvery)
	if err := call(ctx, k.cfg.Link.Add, e.VIP); err != nil {
		k.fail(ctx, e, "vip not renewed", err)
	}
}

// announce sends the announcement of e that is due, if one is. The burst begins when e
// is new here, when a peer is found to hold it too, and when that peer has given in:
// its own announcements may have been the last that the neighbours heard.
func (k *Keeper) announce(ctx context.Context, e *vip, rival balancing.NodeID) {
	now := time.Now()
	if rival != "" && rival != e.rival {
		k.cfg.Log.Warn("address conflict", "vip", e.VIP, "peer", rival)
	}
	if e.due.IsZero() || rival != e.rival {
		e.since, e.sent, e.due, e.rival = now, 0, now, rival
	}
	if e.due.After(now) {
		return
	}
	if err := call(ctx, k.cfg.Link.Announce, e.VIP); err != nil {
		e.due = now.Add(retryAfter)
		k.fail(ctx, e, "vip announcement failed", err)
		return
	}
	e.err = ""
	if e.sent++; e.sent < len(burst) {
		e.due = e.since.Add(burst[e.sent])
	} else {
		e.due = now.Add(announceEvery)
	}
}

// fail notes that a step with e failed. An error that stays the same is logged once.
func (k *Keeper) fail(ctx context.Context, e *vip, message string, err error) {
	if ctx.Err() != nil {
		return // interrupted, not failed
	}
	e.retry = time.Now().Add(retryAfter)
	if text := err.Error(); text != e.err {
		e.err = text
		k.cfg.Log.Warn(message, "vip", e.VIP, "err", err)
	}
}

// held returns the VIPs on the link, sorted.
func (k *Keeper) held() []netip.Addr {
	var held []netip.Addr
	for _, e := range k.vips {
		if k.on[e.VIP] {
			held = append(held, e.VIP)
		}
	}
	slices.SortFunc(held, netip.Addr.Compare)
	return held
}

// report tells Held what is on the link, if that has changed.
func (k *Keeper) report() {
	if held := k.held(); !slices.Equal(held, k.reported) {
		k.reported = held
		k.cfg.Held(slices.Clone(held))
	}
}

func (k *Keeper) publish() {
	s := &Status{VIPs: make([]VIPStatus, len(k.vips))}
	for i, e := range k.vips {
		s.VIPs[i] = VIPStatus{VIP: e.VIP, Planned: e.Node, Reason: e.Reason, Held: k.on[e.VIP], Err: e.err}
	}
	k.status.Store(s)
}

// rest returns how long there is nothing to do, unless the view changes.
func (k *Keeper) rest() time.Duration {
	now := time.Now()
	next := now.Add(k.cfg.Resync)
	for _, e := range k.vips {
		if !e.retry.IsZero() && e.retry.Before(next) {
			next = e.retry
		}
		if k.on[e.VIP] && k.mayHold(e) {
			for _, due := range []time.Time{e.due, e.renew} {
				if due.Before(next) {
					next = due
				}
			}
		}
	}
	return next.Sub(now)
}

// leave gives up all VIPs.
func (k *Keeper) leave(ctx context.Context) {
	for _, e := range k.vips {
		if k.on[e.VIP] {
			e.Assignment = Assignment{VIP: e.VIP}
			k.release(ctx, e)
		}
	}
	k.cfg.Held(nil)
	k.publish()
}

// call bounds the time of one call of the link.
func call(ctx context.Context, f func(context.Context, netip.Addr) error, vip netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	return f(ctx, vip)
}
