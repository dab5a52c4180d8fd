package node

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/takeover"
)

// Orders are what an operator has decided against the plan: which node is to hold a VIP,
// and which node is to take no work. They are items of a replicated table, one a VIP and
// one a node, so that what is said at two nodes at a time about two things is both done.

// ordersTable holds the orders.
var ordersTable = cluster.TableConfig{Name: "orders", MaxItems: 2048, MaxValue: 4 << 10, MaxBytes: 1 << 20}

const (
	moveKey  = "vip/"  // before the VIP
	drainKey = "node/" // before the node's name
)

// Order is what an operator has decided of one VIP or one node.
type Order struct {
	Node   balancing.NodeID `json:"node"` // where the VIP is to be, or which node is to take no work
	By     string           `json:"by,omitempty"`
	At     time.Time        `json:"at"`
	Reason string           `json:"reason,omitempty"` // in the operator's words
	Until  time.Time        `json:"until,omitzero"`   // zero for until it is taken back
}

// maxReason bounds an operator's words, in octets.
const maxReason = 200

// Orders are all that are in force.
type Orders struct {
	Moved   map[netip.Addr]Order       `json:"moved,omitempty"`
	Drained map[balancing.NodeID]Order `json:"drained,omitempty"`
}

// readOrders returns those of a table. What it does not understand it leaves out.
func readOrders(t *cluster.Table) Orders {
	o := Orders{Moved: map[netip.Addr]Order{}, Drained: map[balancing.NodeID]Order{}}
	for _, i := range t.Items("") {
		var x Order
		if json.Unmarshal(i.Value, &x) != nil {
			continue
		}
		x.Until = i.Expires
		if text, ok := strings.CutPrefix(i.Key, moveKey); ok {
			if vip, err := netip.ParseAddr(text); err == nil && x.Node.Valid() {
				o.Moved[vip] = x
			}
		} else if text, ok := strings.CutPrefix(i.Key, drainKey); ok && balancing.NodeID(text).Valid() {
			o.Drained[balancing.NodeID(text)] = x
		}
	}
	return o
}

// ordered is what the guard needs to know of the orders.
type ordered struct {
	Moved   map[netip.Addr]balancing.NodeID `json:"moved,omitempty"`
	Drained bool                            `json:"drained,omitempty"` // this node
}

func (a *ordered) equal(b *ordered) bool {
	return maps.Equal(a.Moved, b.Moved) && a.Drained == b.Drained
}

// ordered returns what this node's guard needs to know.
func (s *server) ordered() *ordered {
	all := readOrders(s.member.orders)
	o := &ordered{Moved: map[netip.Addr]balancing.NodeID{}}
	for vip, x := range all.Moved {
		o.Moved[vip] = x.Node
	}
	_, o.Drained = all.Drained[s.nodeFile.Name]
	return o
}

// passOrders tells the guard of the orders, whenever they change. It must have told it
// once before the first token, or a node that is to take no work would for a moment.
func (s *server) passOrders(ctx context.Context) error {
	changed := s.member.orders.Watch()
	tick := time.NewTicker(time.Second) // some end by themselves
	defer tick.Stop()
	told := s.ordered()
	if s.guard.send(toGuard{Orders: told}) != nil {
		return errGuardGone
	}
	close(s.obeys)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
		if now := s.ordered(); !now.equal(told) {
			if s.guard.send(toGuard{Orders: now}) != nil {
				return errGuardGone
			}
			told = now
		}
	}
}

// MoveVIP is where an operator wants a VIP to be.
type MoveVIP struct {
	VIP    netip.Addr       `json:"vip"`
	To     balancing.NodeID `json:"to,omitempty"` // "" or its home: where it belongs
	For    time.Duration    `json:"for,omitempty"`
	Reason string           `json:"reason,omitempty"`
	User   string           `json:"user"`
}

// DrainNode has a node take no work, or work again.
type DrainNode struct {
	Name   balancing.NodeID `json:"name"`
	End    bool             `json:"end,omitempty"` // it works again
	For    time.Duration    `json:"for,omitempty"`
	Reason string           `json:"reason,omitempty"`
	User   string           `json:"user"`
}

// VIP is one VIP of the site: whose it is, and who answers for it.
type VIP struct {
	Address netip.Addr       `json:"address"`
	Home    balancing.NodeID `json:"home"`
	Holder  balancing.NodeID `json:"holder,omitempty"`  // "" while nobody does
	Plan    balancing.NodeID `json:"plan,omitempty"`    // who should, "" for nobody
	Reason  takeover.Reason  `json:"reason"`            // of the plan
	Moved   *Order           `json:"moved,omitempty"`   // an operator's wish
	Leaving bool             `json:"leaving,omitempty"` // this node holds it until its clients have their answers
	Amiss   string           `json:"amiss,omitempty"`   // with it at this node
}

// vips lists the VIPs of the site.
func (s *server) vips() []VIP {
	v, orders := s.view.Load(), readOrders(s.member.orders)
	here := map[netip.Addr]takeover.VIPStatus{}
	if g := s.told.Load(); g != nil {
		for _, x := range g.Takeover.VIPs {
			here[x.VIP] = x
		}
	}
	all := []VIP{}
	for _, n := range v.Nodes {
		for _, vip := range n.Home {
			st := here[vip]
			x := VIP{Address: vip, Home: n.ID, Plan: st.Planned, Reason: st.Reason, Leaving: st.Leaving, Amiss: st.Err}
			if h := v.Holder(vip); h != nil {
				x.Holder = h.ID
			}
			if o, ok := orders.Moved[vip]; ok {
				x.Moved = &o
			}
			all = append(all, x)
		}
	}
	return all
}

// orderFor bounds for how long an order can be given.
const orderFor = 365 * 24 * time.Hour

// give writes an order down, on this node's disk and then at its peers.
func (s *server) give(key string, o Order, lasts time.Duration) error {
	switch {
	case len(o.Reason) > maxReason:
		return faultf(400, "the reason has %d octets, at most %d are kept", len(o.Reason), maxReason)
	case lasts < 0 || lasts > orderFor:
		return faultf(400, "an order for %v: want up to %v, or none for until it is taken back", lasts, orderFor)
	}
	o.At = time.Now().Round(time.Second)
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var expires time.Time
	if lasts > 0 {
		expires = time.Now().Add(lasts)
	}
	return s.member.orders.Put(key, b, expires)
}

// obeyFor is how long a command waits until an order is carried out: as long as a VIP waits
// for its clients, and a little longer.
const obeyFor = longestLeave + 5*time.Second

// moveVIP gives the order that a VIP is to be at a node, and waits until it is.
func (s *server) moveVIP(ctx context.Context, m MoveVIP, step func(Step)) (any, error) {
	home := s.homeOf(m.VIP)
	if home == "" {
		return nil, faultf(404, "%v is no VIP of the site; 'peerage vip list' names them", m.VIP)
	}
	if m.To == "" {
		m.To = home
	}
	if _, ok := s.document().Nodes[m.To]; !ok {
		return nil, faultf(404, "the site has no node %s; its nodes are %s", m.To, strings.Join(names(s.document().NodeIDs()), ", "))
	}
	key := moveKey + m.VIP.String()
	var err error
	if m.To == home {
		err = s.member.orders.Delete(key)
	} else {
		err = s.give(key, Order{Node: m.To, By: s.author(m.User), Reason: m.Reason}, m.For)
	}
	if err != nil {
		return nil, err
	}
	s.log.Info("vip ordered to a node", "vip", m.VIP, "to", m.To, "by", s.author(m.User), "reason", m.Reason)
	there := func(v *balancing.View) bool {
		h := v.Holder(m.VIP)
		return h != nil && h.ID == m.To
	}
	if there(s.view.Load()) {
		return struct{}{}, nil
	}
	if n := s.view.Load().Node(m.To); n == nil || !n.Serves() {
		step(Step{Text: string(m.To) + " does not serve just now: it gets the VIP when it does"})
		return struct{}{}, nil
	}
	step(Step{Text: "ordered; the holder gives it up when its clients have their answers"})
	return struct{}{}, s.await(ctx, there, "%s is not at %s yet: the order stands, and is carried out as soon as it can be; 'peerage vip list' shows what is in the way", m.VIP, m.To)
}

// drainNode gives the order that a node is to take no work, or may again, and waits until
// it has none.
func (s *server) drainNode(ctx context.Context, d DrainNode, step func(Step)) (any, error) {
	if _, ok := s.document().Nodes[d.Name]; !ok {
		return nil, faultf(404, "the site has no node %s; its nodes are %s", d.Name, strings.Join(names(s.document().NodeIDs()), ", "))
	}
	key, err := drainKey+string(d.Name), error(nil)
	if d.End {
		err = s.member.orders.Delete(key)
	} else {
		err = s.give(key, Order{Node: d.Name, By: s.author(d.User), Reason: d.Reason}, d.For)
	}
	if err != nil {
		return nil, err
	}
	s.log.Info("node ordered to drain", "peer", d.Name, "ended", d.End, "by", s.author(d.User), "reason", d.Reason)
	n := s.view.Load().Node(d.Name)
	if n == nil || !n.Online {
		step(Step{Text: string(d.Name) + " is off-line: the order counts when it is back"})
		return struct{}{}, nil
	}
	if d.End {
		return struct{}{}, s.await(ctx, func(v *balancing.View) bool {
			n := v.Node(d.Name)
			return n != nil && n.Serves()
		}, "%s does not serve yet: 'peerage status' says why", d.Name)
	}
	others := slices.ContainsFunc(s.view.Load().Nodes, func(n balancing.Node) bool { return n.ID != d.Name && n.Serves() })
	if !others {
		step(Step{Text: "no other node serves: " + string(d.Name) + " keeps its VIPs until one does"})
		return struct{}{}, nil
	}
	step(Step{Text: "ordered; it gives up its VIPs when its clients have their answers"})
	return struct{}{}, s.await(ctx, func(v *balancing.View) bool {
		n := v.Node(d.Name)
		return n == nil || !n.Online || n.State == balancing.Draining && len(n.Held) == 0
	}, "%s still holds VIPs: the order stands, and is carried out as soon as it can be; 'peerage vip list' shows what is in the way", d.Name)
}

// reorder has the orders about a node be about another name of it, or about nobody for "".
func (s *server) reorder(from, to balancing.NodeID) error {
	all := readOrders(s.member.orders)
	var errs []error
	for vip, o := range all.Moved {
		if o.Node == from {
			errs = append(errs, s.rewrite(moveKey+vip.String(), moveKey+vip.String(), o, to))
		}
	}
	if o, ok := all.Drained[from]; ok {
		errs = append(errs, s.rewrite(drainKey+string(from), drainKey+string(to), o, to))
	}
	return errors.Join(errs...)
}

func (s *server) rewrite(key, next string, o Order, to balancing.NodeID) error {
	if to == "" || next != key {
		if err := s.member.orders.Delete(key); err != nil || to == "" {
			return err
		}
	}
	o.Node = to
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return s.member.orders.Put(next, b, o.Until)
}

// homeOf returns the node that a VIP belongs to, "" if the site has no such VIP.
func (s *server) homeOf(vip netip.Addr) balancing.NodeID {
	for id, n := range s.document().Nodes {
		if slices.Contains(n.VIPs, vip) {
			return id
		}
	}
	return ""
}

// await waits until the view is as wanted, or returns an error with the words given.
func (s *server) await(ctx context.Context, wanted func(*balancing.View) bool, format string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, obeyFor)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !wanted(s.view.Load()) {
		select {
		case <-ctx.Done():
			return faultf(503, format, args...)
		case <-tick.C:
		}
	}
	return nil
}

// VIPs lists the VIPs of the site.
func (c Client) VIPs(ctx context.Context) (all []VIP, err error) {
	return all, c.call(ctx, "GET", vipsPath, nil, &all)
}

// MoveVIP has a VIP be at a node, and tells each step.
func (c Client) MoveVIP(ctx context.Context, m MoveVIP, step func(Step)) error {
	return c.follow(ctx, movePath, m, step, new(struct{}))
}

// DrainNode has a node take no work, or work again, and tells each step.
func (c Client) DrainNode(ctx context.Context, d DrainNode, step func(Step)) error {
	return c.follow(ctx, drainPath, d, step, new(struct{}))
}

const (
	vipsPath  = "/v1/vips"
	movePath  = vipsPath + "/move"
	drainPath = "/v1/nodes/drain"
)
