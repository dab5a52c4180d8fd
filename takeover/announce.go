package takeover

import (
	"context"
	"sync"
	"time"

	"peerage/balancing"
)

// announceEvery is how often a held VIP is announced after the burst of its claim:
// neighbours that lost an announcement, or a switch that forgot the port, learn again.
const announceEvery = 30 * time.Second

// burst is when a VIP is announced after its claim. One second is the time for which
// a Linux neighbour does not let a fresh ARP entry be changed.
var burst = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second}

// announce sends the announcement of e that is due, if one is. The burst begins when e
// is new here, when a peer is found to hold it too, and when that peer has given in:
// its own announcements may have been the last that the neighbours heard.
func (k *Keeper) announce(ctx context.Context, e *vip, rival balancing.NodeID) {
	now := time.Now()
	if rival != "" && rival != e.rival {
		k.cfg.Log.Warn("address conflict", "vip", e.VIP, "peer", rival)
	}
	if e.due.IsZero() || rival != e.rival {
		e.rival = rival
		e.proclaim(now)
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

// proclaim begins a burst of announcements of e at now.
func (e *vip) proclaim(now time.Time) {
	e.since, e.sent, e.due, e.confirm = now, 0, now, now.Add(confirmAfter)
}

const (
	// confirmAfter the beginning of a burst, the gateway is asked whether it has learned of
	// it, every confirmEvery until it has. If not after confirmAlarm, an operator is told.
	confirmAfter = 300 * time.Millisecond
	confirmEvery = time.Second
	confirmAlarm = 3 * time.Second
	confirmLast  = time.Minute // after the beginning it is asked with each announcement only
)

// confirm asks the gateway from those VIPs that are due, all at the same time.
func (k *Keeper) confirm(ctx context.Context) {
	now := time.Now()
	var due []*vip
	for _, e := range k.vips {
		if k.on[e.VIP] && !e.confirm.IsZero() && !e.confirm.After(now) {
			due = append(due, e)
		}
	}
	confirmed := make([]bool, len(due))
	var questions sync.WaitGroup
	for i, e := range due {
		questions.Go(func() {
			limited, cancel := context.WithTimeout(ctx, linkTimeout)
			defer cancel()
			ok, err := k.cfg.Link.Confirm(limited, e.VIP)
			confirmed[i] = ok || err != nil // what cannot be asked is no fault of the network
		})
	}
	questions.Wait()
	for i, e := range due {
		if confirmed[i] {
			if e.unheard {
				k.cfg.Log.Info("gateway has learned of vip", "vip", e.VIP)
			}
			e.unheard, e.confirm = false, time.Time{}
			continue
		}
		e.confirm = now.Add(confirmEvery)
		if now.Sub(e.since) > confirmLast {
			e.confirm = now.Add(announceEvery)
		}
		if !e.unheard && now.Sub(e.since) >= confirmAlarm {
			e.unheard = true
			k.cfg.Log.Warn("gateway does not learn of vip", "vip", e.VIP, "reason", unheardReason)
		}
	}
}

const unheardReason = "the default gateway does not answer questions from this address: does the network filter ARP and neighbour discovery, as clouds do, or is the gateway down"
