package takeover

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"peerage/balancing"
)

// fencing is what a Keeper knows of that of its link.
type fencing struct {
	vips  []netip.Addr  // that it is about, sorted; none: there is no fence
	lease time.Duration // of it
	set   time.Time     // when it was last set
	err   string        // why it could not be, "" if it was
	stood bool          // it was set once, and may stand although it cannot be set now
}

// vouchFor is for how long a pass lets reports renew the lease: if passes end, so does it.
const vouchFor = 4 * RenewEvery

// fenceIn makes the kernel let through what concerns the site's VIPs only while reports
// leave. A node alone has nobody who could claim what it holds, and may have nobody to
// send reports to: then, what an earlier start may have left is taken away.
func (k *Keeper) fenceIn(ctx context.Context, v *balancing.View) {
	var vips []netip.Addr
	if k.rules.Lease > 0 && k.cfg.Vouch != nil && len(v.Nodes) > 1 {
		for _, e := range k.vips {
			vips = append(vips, e.VIP)
		}
		slices.SortFunc(vips, netip.Addr.Compare)
	}
	f := &k.fence
	same := slices.Equal(vips, f.vips) && k.rules.Lease == f.lease && !f.set.IsZero()
	if same && (len(vips) == 0 && f.err == "" || time.Since(f.set) < RenewEvery) {
		return
	}
	limited, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	f.vips, f.lease, f.set = vips, k.rules.Lease, time.Now()
	text := ""
	if err := k.cfg.Link.Fence(limited, vips, f.lease); err != nil {
		if ctx.Err() != nil {
			return
		}
		text = err.Error()
	} else if len(vips) > 0 {
		f.stood = true
	}
	if text != f.err {
		if f.err = text; text != "" {
			k.cfg.Log.Warn("no fence", "err", text, "reason", "if this node freezes, its VIPs are dark for up to 2 s before a peer claims them")
		} else {
			k.cfg.Log.Info("fence is up again")
		}
	}
}

// entitle opens the fence for what this node holds or should, and keeps it open. It
// reports whether VIPs may be claimed.
func (k *Keeper) entitle(ctx context.Context, v *balancing.View) bool {
	if len(k.fence.vips) == 0 || !slices.ContainsFunc(k.vips, func(e *vip) bool { return k.on[e.VIP] || k.mayClaim(e, v) }) {
		return true
	}
	limited, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	err := k.cfg.Vouch(limited, vouchFor)
	if err == nil || !k.fence.stood {
		return true
	}
	for _, e := range k.vips {
		if k.mayClaim(e, v) {
			k.fail(ctx, e, "vip claim failed", err)
		}
	}
	return false
}
