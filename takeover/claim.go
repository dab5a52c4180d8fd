package takeover

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"peerage/balancing"
)

// mayHold reports whether this node may go on holding e: because it serves, or as a last
// resort.
func (k *Keeper) mayHold(e *vip) bool {
	return e.Node == k.cfg.Self && e.Reason != ReasonWaiting || time.Now().Before(e.regain)
}

// orphanedAfter is how long a VIP that was let go in order may be with nobody. Then the node
// that was to have it does not know that, or cannot.
func (k *Keeper) orphanedAfter() time.Duration {
	return max(time.Second, 2*k.cfg.View().Settings.Period)
}

// regainFor is for how long an orphan is regained the first time; each further time is
// twice as long, up to 2^regainMost times.
const (
	regainFor  = 2 * time.Second
	regainMost = 5
)

// adopt regains what this node has let go and nobody holds.
func (k *Keeper) adopt(v *balancing.View) {
	me, now := v.Me(), time.Now()
	for _, e := range k.vips {
		if e.let.IsZero() || e.Node == "" || e.Node == k.cfg.Self || me == nil || !me.Serves() || now.Sub(e.let) < k.orphanedAfter() {
			continue
		}
		e.let, e.regain = time.Time{}, now.Add(regainFor<<min(e.tries, regainMost))
		e.tries++
		k.cfg.Log.Warn("vip regained", "vip", e.VIP, "peer", e.Node, "reason", "the peer that is to have it has not claimed it")
	}
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
	next := vip{Assignment: e.Assignment, from: e.from}
	if !e.going.IsZero() {
		next.let, next.tries = time.Now(), e.tries
	}
	*e = next
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

	k.isolate(ctx) // the last peer may have fallen silent meanwhile
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
		k.on[e.VIP] = true
		*e = vip{Assignment: e.Assignment, renew: time.Now().Add(RenewEvery), claimedAt: time.Now(), regain: e.regain, tries: e.tries}
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
