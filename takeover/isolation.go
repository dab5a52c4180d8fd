package takeover

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

const (
	// witnessTries are made before the witnesses count as silent. A probe takes 60 ms.
	witnessTries = 3

	// witnessEvery is the pause between two questions to the witnesses, while they matter.
	witnessEvery = time.Second
)

// isolate settles whether this node is cut off, by the rules and the view. That takes a
// moment if the witnesses matter and are silent.
func (k *Keeper) isolate(ctx context.Context) {
	cut := false
	switch v := verdict(k.cfg.View(), &k.rules); {
	case k.rules.Down, v == cutOff:
		cut, k.witnessed = true, time.Time{}
	case v == askWitness:
		if cut = k.cut; time.Since(k.witnessed) >= witnessEvery {
			cut = k.unwitnessed(ctx)
			k.witnessed = time.Now()
		}
	default:
		k.witnessed = time.Time{} // the next doubt is settled at once
	}
	if cut == k.cut {
		return
	}
	k.cut = cut
	if cut {
		why := "too few peers are heard, and no witness answers"
		if k.rules.Down {
			why = "the interface has no carrier"
		}
		k.cfg.Log.Error("cut off", "partition", k.rules.Partition, "reason", why)
	} else {
		k.cfg.Log.Info("no longer cut off")
	}
	if k.cfg.Cut != nil {
		k.cfg.Cut(cut)
	}
}

type connection uint8

const (
	connected connection = iota
	askWitness
	cutOff
)

// verdict says what a view tells of the connection of its owner.
func verdict(v *balancing.View, r *Rules) connection {
	p, heard := r.Partition, 0
	for peer := range v.Peers() {
		if peer.Online {
			heard++
		}
	}
	switch all := len(v.Nodes); {
	case p == Serve, all < 2:
		return connected
	case p == Majority && all > 2 && 2*(heard+1) <= all:
		return cutOff
	case heard == 0, r.Elsewhere:
		return askWitness
	}
	return connected
}

// unwitnessed reports whether there are witnesses, and none answers.
func (k *Keeper) unwitnessed(ctx context.Context) bool {
	witnesses := k.rules.Witness
	if len(witnesses) == 0 {
		limited, cancel := context.WithTimeout(ctx, linkTimeout)
		defer cancel()
		var err error
		if witnesses, err = k.cfg.Link.Gateways(limited); err != nil || len(witnesses) == 0 {
			return false // it cannot be told
		}
	}
	for range witnessTries {
		var silent atomic.Int64
		var probes sync.WaitGroup
		for _, w := range witnesses {
			probes.Go(func() {
				limited, cancel := context.WithTimeout(ctx, linkTimeout)
				defer cancel()
				if answered, err := k.cfg.Link.Probe(limited, w); err == nil && !answered {
					silent.Add(1)
				}
			})
		}
		probes.Wait()
		if silent.Load() < int64(len(witnesses)) {
			return false
		}
	}
	return ctx.Err() == nil
}

// asIfCut changes v to how a node that is cut off must plan: others may hold what it holds.
func asIfCut(v *balancing.View) {
	if me := v.Place(v.Self); me >= 0 {
		v.Nodes[me].State, v.Nodes[me].Held = balancing.Sick, nil
	}
}

// leavers returns the VIPs that go to a peer in order, and lets those stay for a while by
// which clients wait for an answer.
func (k *Keeper) leavers(v *balancing.View) {
	if k.cfg.Leaving == nil {
		return
	}
	now := time.Now()
	var going []netip.Addr
	for _, e := range k.vips {
		if !k.goes(e, v) {
			e.going = time.Time{}
			continue
		}
		if e.going.IsZero() {
			e.going = now
		}
		going = append(going, e.VIP)
	}
	busy := k.cfg.Leaving(going)
	for _, e := range k.vips {
		e.stays = !e.going.IsZero() && now.Sub(e.going) < k.rules.Grace && slices.Contains(busy, e.VIP)
	}
}

// goes reports whether e is here, another node is to have it, and there is no hurry.
func (k *Keeper) goes(e *vip, v *balancing.View) bool {
	me := v.Me()
	fit := me != nil && (me.Serves() || me.Online && me.State == balancing.Draining)
	return fit && k.on[e.VIP] && e.Node != "" && e.Node != k.cfg.Self && rival(v, k.cfg.Self, e.VIP) == ""
}
