package takeover

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/takeover/internal/link"
)

// Sighting is something that was seen on a [Link].
type Sighting = link.Sighting

const (
	maxSightings = 64 // that wait; what does not fit is seen again

	sightEvery = 100 * time.Millisecond // for one VIP
	rewatch    = time.Second            // before a watch that has ended begins anew

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

	mu     sync.Mutex
	latest map[netip.Addr]time.Time // when each VIP was seen elsewhere last, and that was news
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
		for said := ""; ctx.Err() == nil; {
			err := k.cfg.Link.Watch(ctx, vips, k.see)
			if err != nil && ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				k.cfg.Log.Warn("interface not watched", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(rewatch):
			}
		}
	})
}

// see takes what a watch has seen.
func (k *Keeper) see(s Sighting) {
	if !s.VIP.IsValid() && k.cfg.Touched != nil {
		k.cfg.Touched()
	}
	if s.VIP.IsValid() && !k.watch.news(s.VIP, time.Now()) {
		return
	}
	select {
	case k.watch.seen <- s:
	default:
	}
}

// news reports whether a VIP was not seen elsewhere a moment ago: who floods the LAN must
// not keep the keeper from its work.
func (w *watch) news(vip netip.Addr, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.latest[vip]) < sightEvery {
		return false
	}
	if w.latest == nil || len(w.latest) > balancing.MaxNodes*balancing.MaxVIPs {
		w.latest = map[netip.Addr]time.Time{}
	}
	w.latest[vip] = now
	return true
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
	station := s.Station.String()
	if station != e.station && now.Sub(e.warned) >= defendEvery {
		e.warned = now
		k.cfg.Log.Warn("address conflict", "vip", e.VIP, "station", station)
	}
	e.station, e.sighted = station, now
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
