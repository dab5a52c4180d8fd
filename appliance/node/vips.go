package node

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/takeover"
)

// This file is what the guard tells its keeper of VIPs, and hears from it.

// longestLeave bounds how long a VIP stays that a peer is to have, for answers that
// clients wait for: a download may take hours.
const longestLeave = 30 * time.Second

// keeperConfig returns the configuration of the keeper of VIPs on link.
func (g *guard) keeperConfig(link takeover.Link, changed <-chan struct{}) takeover.Config {
	return takeover.Config{
		Self:    g.nodeFile.Name,
		Link:    link,
		View:    g.planView,
		Changed: changed,
		Rules:   g.rules,
		Vouch:   g.exchange.Vouch,
		Held:    func(held []netip.Addr) { g.exchange.Update(func(s *heartbeat.Status) { s.Held = held }) },
		Leaving: func(vips []netip.Addr) []netip.Addr { return g.departures.going(vips, g.exchange.View().Me()) },
		Cut: func(cut bool) {
			g.mu.Lock()
			g.facts.isolate(time.Now(), cut)
			g.mu.Unlock()
			g.judge(time.Now())
		},
		Shown: func() {
			select {
			case g.shown <- struct{}{}:
			default: // there is a signal waiting
			}
		},
		Touched: g.touched,
		Log:     g.log,
	}
}

// rules are what the keeper goes by besides the view.
func (g *guard) rules() takeover.Rules {
	doc := g.document()
	r := takeover.Rules{Partition: doc.Takeover.Partition, Witness: doc.Takeover.Witness, Grace: min(doc.Drain.Grace, longestLeave)}
	g.mu.Lock()
	r.Down = g.facts.cut
	g.mu.Unlock()
	r.Elsewhere = g.reportDevice() != g.nodeFile.Interfaces.Public
	if o := g.orders.Load(); o != nil {
		r.Moved = o.Moved
	}
	if doc.Takeover.Enabled && g.mark != 0 {
		r.Lease = heartbeat.Lease(g.exchange.View().Settings.Period, doc.Balancing.OfflineAfter)
	}
	if !doc.Takeover.Enabled {
		r.Partition = takeover.Serve // nobody takes over, so nobody holds it twice
	}
	return r
}

// obey takes the orders of the operator.
func (g *guard) obey(o *ordered) {
	g.orders.Store(o)
	g.mu.Lock()
	g.facts.drained = o.Drained
	g.mu.Unlock()
	g.judge(time.Now())
	g.views.signal() // the keeper plans anew
}

// reportDevice returns the interface that reports leave by.
func (g *guard) reportDevice() string { return reportDevice(g.nodeFile, g.document()) }

// planView is the view that the keeper plans from. Where takeover is switched off, each
// node holds its own VIPs, whatever becomes of it, and no others.
func (g *guard) planView() *balancing.View {
	v := g.exchange.View()
	if g.document().Takeover.Enabled {
		return v
	}
	c := *v
	c.Nodes = slices.DeleteFunc(slices.Clone(v.Nodes), func(n balancing.Node) bool { return n.ID != c.Self })
	if me := c.Me(); me != nil {
		me.State = balancing.OK
	}
	return &c
}

// touched looks at the public interface, which somebody has changed.
func (g *guard) touched() {
	g.mu.Lock()
	g.facts.carrier(time.Now(), hasCarrier(g.nodeFile.Interfaces.Public))
	g.mu.Unlock()
	g.judge(time.Now())
}

// leaving tells the server which VIPs go to a peer, in place of those told before. Of those
// that are not named any more some stay after all; the others have gone.
type leaving struct {
	VIPs []netip.Addr `json:"vips"`
	Stay []netip.Addr `json:"stay,omitempty"`
}

// left tells the guard that no client waits for an answer by a VIP that goes.
type left struct {
	VIP netip.Addr `json:"vip"`
}

// departures are the VIPs that go to a peer in order, as the guard and its present server
// know them.
type departures struct {
	mu     sync.Mutex
	server *channel // nil while there is none
	told   []netip.Addr
	done   []netip.Addr // of those, by which no client waits any more
}

// serve begins anew with a server, or with none.
func (d *departures) serve(c *channel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.server, d.told, d.done = c, nil, nil
}

// going says which VIPs go from this node, and returns those of them by which clients wait
// for answers.
func (d *departures) going(vips []netip.Addr, me *balancing.Node) (busy []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server == nil {
		return nil // nobody serves
	}
	if !slices.Equal(vips, d.told) {
		m := &leaving{VIPs: vips}
		for _, vip := range d.told {
			if !slices.Contains(vips, vip) && me != nil && me.Holds(vip) {
				m.Stay = append(m.Stay, vip)
			}
		}
		if d.server.send(toServer{Leaving: m}) != nil {
			return nil
		}
		d.told = slices.Clone(vips)
		d.done = slices.DeleteFunc(d.done, func(vip netip.Addr) bool { return !slices.Contains(vips, vip) })
	}
	return slices.DeleteFunc(slices.Clone(vips), func(vip netip.Addr) bool { return slices.Contains(d.done, vip) })
}

// left takes the server's word.
func (d *departures) left(vip netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Contains(d.told, vip) && !slices.Contains(d.done, vip) {
		d.done = append(d.done, vip)
	}
}
