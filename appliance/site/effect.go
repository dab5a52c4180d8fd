package site

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
)

// Effect is something that a change of the document does to what runs.
type Effect struct {
	Touches Touched `json:"touches"`
	Text    string  `json:"text"` // one sentence
}

// Touched is the kind of thing that an effect touches.
type Touched string

const (
	Restart     Touched = "restart"     // the node must be started anew
	VIPs        Touched = "vips"        // who answers for a VIP
	Listeners   Touched = "listeners"   // a socket is opened or closed
	Connections Touched = "connections" // open ones end, or are made anew
	Stays       Touched = "stays"       // clients that are pinned to a node
)

// NoEffect is the sentence for a change without an [Effect].
const NoEffect = "no listener and no connection is touched"

// Effects says what a change from old to new touches, beyond how the requests that come
// from then on are served. The order is that of [Touched], then that of the names.
func Effects(old, new *Document) []Effect {
	e := &effects{old: old, new: new}
	e.restarts()
	e.vips()
	e.listeners()
	e.peers()
	e.backends()
	e.stays()
	return e.found
}

type effects struct {
	old, new *Document
	found    []Effect
}

func (e *effects) add(touches Touched, format string, args ...any) {
	e.found = append(e.found, Effect{touches, fmt.Sprintf(format, args...)})
}

func (e *effects) restarts() {
	if e.old.Site != e.new.Site {
		e.add(Restart, "the site is called %s, no longer %s: its nodes no longer hear those with the old document, and all must be set up anew", e.new.Site, e.old.Site)
	}
	if a, b := e.old.Cluster.Distance, e.new.Cluster.Distance; a != b {
		e.add(Restart, "'cluster.distance: %s' counts for a node from its next start on; until then it goes on with '%s'", b, a)
	}
}

func (e *effects) vips() {
	was, is := homes(e.old), homes(e.new)
	for _, vip := range slices.SortedFunc(maps.Keys(both(was, is)), netip.Addr.Compare) {
		from, to := was[vip], is[vip]
		switch {
		case from == to:
		case from == "":
			e.add(VIPs, "%s begins to answer for VIP %s", to, vip)
		case to == "":
			e.add(VIPs, "nobody answers for VIP %s any more: %s gives it up, and connections to it end within %s", vip, from, e.new.Drain.Grace)
		default:
			e.add(VIPs, "VIP %s moves from %s to %s: connections to it end within %s", vip, from, to, e.new.Drain.Grace)
		}
	}
	switch {
	case e.old.Takeover.Enabled && !e.new.Takeover.Enabled:
		e.add(VIPs, "nodes give up the VIPs that they hold for silent peers")
	case !e.old.Takeover.Enabled && e.new.Takeover.Enabled:
		e.add(VIPs, "nodes take over the VIPs of peers that are silent")
	}
}

func homes(d *Document) map[netip.Addr]balancing.NodeID {
	m := map[netip.Addr]balancing.NodeID{}
	for id, n := range d.Nodes {
		for _, vip := range n.VIPs {
			m[vip] = id
		}
	}
	return m
}

// both returns the keys of the two maps.
func both[K comparable, V any](a, b map[K]V) map[K]bool {
	m := map[K]bool{}
	for k := range a {
		m[k] = true
	}
	for k := range b {
		m[k] = true
	}
	return m
}

func (e *effects) listeners() {
	switch {
	case e.old.DNS == nil && e.new.DNS != nil:
		e.add(Listeners, "the nodes begin to answer DNS questions: UDP and TCP sockets are opened")
	case e.old.DNS != nil && e.new.DNS == nil:
		e.add(Listeners, "the nodes no longer answer DNS questions: UDP and TCP sockets are closed")
	case e.old.DNS != nil && e.old.DNS.Zone != e.new.DNS.Zone:
		e.add(Listeners, "the nodes answer DNS questions for %s, no longer for %s", e.new.DNS.Zone, e.old.DNS.Zone)
	}
	a, b := &e.old.Balancing, &e.new.Balancing
	if a.Exchange != b.Exchange || a.Channel != b.Channel {
		e.add(Listeners, "sockets for reports are opened anew: '%s' on the %s network in place of '%s' on the %s one", b.Exchange, b.Channel, a.Exchange, a.Channel)
	}
	if a.Channel != b.Channel && e.parts() {
		e.add(Listeners, "a node that has changed to the %s network and one that has not do not hear each other: if that lasts for %v, each takes the other for off-line", b.Channel, heartbeat.Silence(a.Settings().Period, a.OfflineAfter))
	}
	if p, q := e.old.Proxies, e.new.Proxies; p.Protocol != q.Protocol || q.Protocol && !slices.Equal(p.Trusted, q.Trusted) {
		word := "need no header"
		if q.Protocol {
			word = "must begin with the header"
		}
		e.add(Listeners, "new connections of trusted proxies %s of the PROXY protocol; open ones stay", word)
	}
}

// parts reports whether nodes can part that send their reports over different networks. The
// way of exchange does not matter: who cannot be heard by multicast is sent a report of its
// own, see package heartbeat.
func (e *effects) parts() bool {
	for _, n := range e.new.Nodes {
		if n.Address != n.Internal || !n.Address.IsValid() { // else both are one
			return len(e.new.Nodes) > 1
		}
	}
	return false
}

func (e *effects) peers() {
	for _, id := range slices.Sorted(maps.Keys(both(e.old.Nodes, e.new.Nodes))) {
		was, before := e.old.Nodes[id]
		is, after := e.new.Nodes[id]
		switch {
		case !before:
			e.add(Connections, "%s becomes a node of the site: its peers expect its reports, and open links to it", id)
		case !after:
			e.add(Connections, "%s is no longer a node of the site: its peers close their links to it, and what it serves by then ends within %s", id, e.new.Drain.Grace)
		case was.Address != is.Address || was.Internal != is.Internal:
			e.add(Connections, "peers reach %s at %s, no longer at %s: their links to it are opened anew", id, reach(is), reach(was))
		}
	}
}

// reach says where peers reach n.
func reach(n Node) string {
	var addrs []string
	for _, a := range []netip.Addr{n.Address, n.Internal} {
		if a.IsValid() && !slices.Contains(addrs, a.String()) {
			addrs = append(addrs, a.String())
		}
	}
	return cmp.Or(strings.Join(addrs, " and "), "the address that its reports come from")
}

func (e *effects) backends() {
	for _, name := range slices.Sorted(maps.Keys(e.old.Backends)) {
		was := e.old.Backends[name]
		is, ok := e.new.Backends[name]
		switch {
		case !ok:
			e.add(Connections, "connections to the servers of back-end %s are closed as their requests end", name)
		case !reflect.DeepEqual(was, is):
			e.add(Connections, "connections to the servers of back-end %s are opened anew as their requests end", name)
		}
	}
}

func (e *effects) stays() {
	was, is := stays(e.old), stays(e.new)
	for _, name := range slices.Sorted(maps.Keys(was)) {
		now, ok := is[name]
		switch {
		case !ok:
			e.add(Stays, "clients that stay on a node below %s are no longer bound to it", name)
		case now != was[name]:
			e.add(Stays, "clients that stay on a node below %s begin anew: where a stay binds has changed", name)
		}
	}
}

// stays returns, by the name of its pin, where each stateful rule binds.
func stays(d *Document) map[string]string {
	m := map[string]string{}
	for _, r := range d.Rules() {
		if s := r.Stateful; s != nil {
			m[s.Name] = fmt.Sprint(s.Scope)
		}
	}
	return m
}
