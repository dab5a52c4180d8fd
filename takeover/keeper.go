package takeover

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

const (
	linkTimeout = time.Second            // for one call of the link
	retryAfter  = 200 * time.Millisecond // a step that failed is tried again
)

// RenewEvery is how often a VIP that is held is added to its [Link] again: a quarter of
// the kernel's lease on it.
const RenewEvery = 500 * time.Millisecond

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

	// Rules returns what else to go by; nil for the zero Rules. It must not block.
	Rules func() Rules

	// Vouch lets the reports of the time given renew the lease by which the kernel lets VIPs
	// through, and returns when one has left. It is called only with a fence, which is
	// there only with a Vouch.
	Vouch func(context.Context, time.Duration) error

	// Leaving is told which VIPs go to a peer in order: no longer to be offered, and their
	// connections to be ended when what is asked by them is answered. It returns those of
	// them that are still busy, and must not block. Nil for no such care.
	Leaving func([]netip.Addr) []netip.Addr

	// Cut is told when this node finds itself cut off, and when that is over; Shown when
	// [Keeper.Status] has changed; Touched when the interface or its addresses were changed
	// by others, by a goroutine of its own. None may block, and each may be nil.
	Cut     func(bool)
	Shown   func()
	Touched func()

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

	rules     Rules // of the present pass
	cut       bool
	witnessed time.Time // when the witnesses were asked last
	fence     fencing
	watch     watch

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

	going time.Time // since when it is to go to a peer in order; zero if it is not
	stays bool      // all the same it stays for now

	let    time.Time // when it was let go in order, until somebody holds it
	regain time.Time // until when this node holds it in place of the one that is to
	tries  int       // that it was regained

	confirm   time.Time // when the gateway is asked about it next; zero if that is not due
	unheard   bool      // the gateway does not answer questions from it
	station   string    // other station that answers for it too, "" for none
	sighted   time.Time // when that was seen last
	warned    time.Time // when an operator was told of one last
	yields    bool      // to that
	claimedAt time.Time

	err   string    // of the last step, "" if it went well
	retry time.Time // when a failed step may be tried again; zero for at once
}

// Status is what a [Keeper] wants and has.
type Status struct {
	VIPs []VIPStatus `json:"vips"` // in the order of [Plan]

	Cut    bool   `json:"cut,omitempty"`    // this node is cut off, and holds nothing
	Fenced bool   `json:"fenced,omitempty"` // the kernel lets VIPs through only while reports leave
	Fence  string `json:"fence,omitempty"`  // why there is no fence although there should be one
}

// VIPStatus is one VIP as seen by one node.
type VIPStatus struct {
	VIP     netip.Addr       `json:"vip"`
	Planned balancing.NodeID `json:"planned,omitempty"` // who should hold it, "" for nobody
	Reason  Reason           `json:"reason"`            // why
	Held    bool             `json:"held"`              // it is on this node's link
	Leaving bool             `json:"leaving,omitempty"` // it goes to a peer as soon as clients have their answers
	Err     string           `json:"err,omitempty"`     // of the last step with it here, or what else is amiss with it
}

// New returns a keeper that does nothing until Run.
func New(cfg Config) *Keeper {
	if cfg.Resync == 0 {
		cfg.Resync = 3 * time.Second
	}
	k := &Keeper{cfg: cfg, on: make(map[netip.Addr]bool)}
	k.watch.seen = make(chan Sighting, maxSightings)
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
	defer k.watch.end()
	for {
		select {
		case <-ctx.Done():
			k.leave(context.WithoutCancel(ctx))
			return nil
		case <-k.cfg.Changed:
		case s := <-k.watch.seen:
			k.sight(s)
		case <-timer.C:
		}
		timer.Reset(k.pass(ctx))
	}
}

// pass makes the link match the plan, as far as can be at the moment, and returns when
// it should be looked at again at the latest. Every step may be repeated.
func (k *Keeper) pass(ctx context.Context) time.Duration {
	if k.cfg.Rules != nil {
		k.rules = k.cfg.Rules()
	}
	k.list(ctx)
	k.isolate(ctx)
	v := k.look()
	k.fenceIn(ctx, v)
	k.watchFor(ctx)
	k.leavers(v)
	now := time.Now()
	for _, e := range k.vips {
		if !e.retry.After(now) {
			e.retry = time.Time{}
		}
		switch {
		case k.on[e.VIP] && e.yields:
			k.yield(ctx, e)
		case k.mayHold(e), e.stays:
		case k.on[e.VIP]:
			k.release(ctx, e)
		default:
			e.err = ""
		}
	}
	k.report() // at once: a peer may be waiting for it
	k.adopt(v)
	entitled := k.entitle(ctx, v)
	if entitled {
		k.claim(ctx, v)
		k.report()
	}
	for _, e := range k.vips {
		if k.on[e.VIP] && (k.mayHold(e) || e.stays) {
			k.keep(ctx, e)
			k.announce(ctx, e, rival(v, k.cfg.Self, e.VIP))
		}
	}
	k.confirm(ctx)
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

	if k.cut {
		asIfCut(&v)
	}

	known := make(map[netip.Addr]*vip, len(k.vips))
	for _, e := range k.vips {
		known[e.VIP] = e
	}
	k.vips = nil
	for _, a := range Plan(&v, k.rules.Moved) {
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
		e.let, e.regain, e.tries = time.Time{}, time.Time{}, 0
	} else if n := v.Node(e.from); n == nil || !n.Online && n.State != balancing.Leaving {
		e.from = "" // it fell silent: who knows what is on its interface
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
	s := &Status{
		VIPs: make([]VIPStatus, len(k.vips)), Cut: k.cut,
		Fenced: len(k.fence.vips) > 0 && k.fence.err == "", Fence: k.fence.err,
	}
	for i, e := range k.vips {
		s.VIPs[i] = VIPStatus{VIP: e.VIP, Planned: e.Node, Reason: e.Reason, Held: k.on[e.VIP], Leaving: !e.going.IsZero(), Err: e.amiss()}
	}
	was := k.status.Swap(s)
	if k.cfg.Shown != nil && (!slices.Equal(s.VIPs, was.VIPs) || s.Cut != was.Cut || s.Fenced != was.Fenced || s.Fence != was.Fence) {
		k.cfg.Shown()
	}
}

// amiss returns what an operator should know of e, "" for nothing.
func (e *vip) amiss() string {
	switch {
	case e.err != "":
		return e.err
	case e.station != "":
		return fmt.Sprintf("%s answers for it too: another host has this address", e.station)
	case e.unheard:
		return unheardReason
	}
	return ""
}

// rest returns how long there is nothing to do, unless the view changes.
func (k *Keeper) rest() time.Duration {
	now := time.Now()
	next := now.Add(k.cfg.Resync)
	sooner := func(at time.Time) {
		if at.Before(next) {
			next = at
		}
	}
	if k.cut && !k.witnessed.IsZero() {
		sooner(k.witnessed.Add(witnessEvery))
	}
	for _, e := range k.vips {
		if e.station != "" && now.Sub(e.sighted) >= conflictWord {
			e.station = ""
		}
		if orphaned := e.let.Add(k.orphanedAfter()); orphaned.After(now) {
			sooner(orphaned)
		}
		switch {
		case !e.retry.IsZero():
			sooner(e.retry)
		case k.on[e.VIP] && !k.mayHold(e) && !e.stays:
			sooner(now) // the plan has changed while others were claimed
		}
		if !k.on[e.VIP] || !k.mayHold(e) && !e.stays {
			continue
		}
		sooner(e.due)
		sooner(e.renew)
		if !e.confirm.IsZero() {
			sooner(e.confirm)
		}
		if e.stays {
			sooner(now.Add(leaveCheck))
		}
	}
	return next.Sub(now)
}

// leaveCheck is the pause between two looks at a VIP that stays only until clients have
// their answers.
const leaveCheck = 20 * time.Millisecond

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
