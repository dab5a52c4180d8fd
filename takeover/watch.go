package takeover

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"peerage/takeover/internal/link"
)

// Sighting is something that was seen on a [Link].
type Sighting = link.Sighting

const (
	maxSightings = 64 // that wait; what does not fit is seen again

	// settling is the time after a claim for which others may still answer: what they sent
	// before may come late, and a peer that claims at the same time must be given the time to
	// report it.
	settling = 50 * time.Millisecond

	// yieldFor is for how long a node claims nothing that it has yielded, and up to once more:
	// of two nodes that have both yielded, one shall be the first to come back.
	yieldFor = 500 * time.Millisecond

	// defendEvery is the least time between two bursts of announcements against another
	// station (RFC 5227 section 2.4), and conflictWord for how long one that was seen counts.
	defendEvery  = 10 * time.Second
	conflictWord = 30 * time.Second
)

// watch is a Keeper's watch over its link. It is renewed when the VIPs change.
type watch struct {
	seen   chan Sighting
	vips   []netip.Addr
	cancel context.CancelFunc // nil before it begins
	task   sync.WaitGroup
}

// end ends the watch, and waits for it.
func (w *watch) end() {
	if w.cancel != nil {
		w.cancel()
		w.task.Wait()
	}
}

// watchFor has the link watched for the present VIPs.
func (k *Keeper) watchFor(ctx context.Context) {
	var vips []netip.Addr
	for _, e := range k.vips {
		vips = append(vips, e.VIP)
	}
	slices.SortFunc(vips, netip.Addr.Compare)
	w := &k.watch
	if w.cancel != nil && slices.Equal(vips, w.vips) {
		return
	}
	w.end()
	ctx, w.cancel = context.WithCancel(ctx)
	w.vips = vips
	w.task.Go(func() {
		if err := k.cfg.Link.Watch(ctx, vips, k.see); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("interface not watched", "err", err)
		}
	})
}

// see takes what a watch has seen.
func (k *Keeper) see(s Sighting) {
	if !s.VIP.IsValid() && k.cfg.Touched != nil {
		k.cfg.Touched()
	}
	select {
	case k.watch.seen <- s:
	default:
	}
}

// sight takes note of what was seen: another station that answers for what this node
// holds. If a peer reports to hold it, the plan settles who stays. Else the station is a
// stranger, or a peer whose reports do not come through. A VIP's home defends it then
// (RFC 5227 section 2.4 (b)); who only stands in gives it up, or two that have claimed it in
// the same moment would both keep it.
func (k *Keeper) sight(s Sighting) {
	i := slices.IndexFunc(k.vips, func(e *vip) bool { return e.VIP == s.VIP })
	if i < 0 {
		return
	}
	e, now := k.vips[i], time.Now()
	if !k.on[e.VIP] || now.Sub(e.claimedAt) < settling {
		return
	}
	if station := s.Station.String(); station != e.station {
		e.station = station
		k.cfg.Log.Warn("address conflict", "vip", e.VIP, "station", station)
	}
	e.sighted = now
	if e.Reason != ReasonHome && rival(k.cfg.View(), k.cfg.Self, e.VIP) == "" {
		e.yields = true
	} else if now.Sub(e.since) >= defendEvery {
		e.proclaim(now)
	}
}

// yield gives up e for a while.
func (k *Keeper) yield(ctx context.Context, e *vip) {
	if k.release(ctx, e); !k.on[e.VIP] {
		e.retry = time.Now().Add(yieldFor + rand.N(yieldFor))
	}
}
