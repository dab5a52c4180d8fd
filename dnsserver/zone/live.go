package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"peerage/balancing"
)

// owned marks a name whose A and AAAA records the site writes.
type owned struct {
	what   string           // for errors: host, node name, name server
	node   balancing.NodeID // the node it stands for; a host stands for all
	server bool             // a name server: needs an address in each family
}

// addresses are sets of one family each.
type addresses struct{ v4, v6 []netip.Addr }

func (a *addresses) add(ip netip.Addr) {
	if ip.Is4() {
		a.v4 = append(a.v4, ip)
	} else {
		a.v6 = append(a.v6, ip)
	}
}

func (a addresses) empty() bool { return len(a.v4)+len(a.v6) == 0 }

// living is what one view means for a zone: the addresses to answer with.
type living struct {
	view    *balancing.View
	hosts   addresses
	names   map[balancing.NodeID]addresses // of node names
	servers map[balancing.NodeID]addresses // of name servers
}

// liveIn returns the addresses of v. Views are immutable, so what was worked out for
// the latest one is kept: the same view gives the same addresses.
func (z *Zone) liveIn(v *balancing.View) *living {
	l := z.living.Load()
	if l == nil || l.view != v {
		l = liveIn(v)
		z.living.Store(l)
	}
	return l
}

func liveIn(v *balancing.View) *living {
	l := &living{
		view:    v,
		names:   make(map[balancing.NodeID]addresses, len(v.Nodes)),
		servers: make(map[balancing.NodeID]addresses, len(v.Nodes)),
	}
	burdened := v.Burdened()
	held := map[netip.Addr]fitness{}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !n.Online {
			continue
		}
		for _, vip := range n.Held {
			held[vip] = max(held[vip], fitnessOf(n, burdened))
		}
	}
	var all, answered, well, light addresses
	for i := range v.Nodes {
		n := &v.Nodes[i]
		var home, homeHeld addresses
		for _, vip := range n.Home {
			home.add(vip)
			all.add(vip)
			switch held[vip] {
			case fresh:
				light.add(vip)
				fallthrough
			case taken:
				well.add(vip)
				fallthrough
			case kept:
				homeHeld.add(vip)
				answered.add(vip)
			}
		}
		// No address at all would help nobody, in either family.
		if len(homeHeld.v4) == 0 {
			homeHeld.v4 = home.v4
		}
		if len(homeHeld.v6) == 0 {
			homeHeld.v6 = home.v6
		}
		server := homeHeld
		if n.Address.IsValid() {
			if n.Address.Is4() && len(home.v4) == 0 || !n.Address.Is4() && len(home.v6) == 0 {
				server.add(n.Address)
			}
		}
		if home.empty() {
			homeHeld = server
		}
		l.names[n.ID], l.servers[n.ID] = homeHeld, server
	}
	// A node that drains or is sick is left out while another is left, and one that is
	// overloaded while two others are, in each family by itself: a client of one family has
	// no use for an address of the other.
	l.hosts.v4 = choose(light.v4, well.v4, answered.v4, all.v4)
	l.hosts.v6 = choose(light.v6, well.v6, answered.v6, all.v6)
	return l
}

// fitness says how far the holder of a VIP is fit for new clients.
type fitness uint8

const (
	unheld fitness = iota
	kept           // the holder takes no new work: it drains, or is sick
	taken          // it does, but is overloaded
	fresh
)

func fitnessOf(n *balancing.Node, burdened func(*balancing.Node) bool) fitness {
	switch {
	case !n.Serves():
		return kept
	case burdened(n):
		return taken
	}
	return fresh
}

// choose returns the best set of addresses of one family that is large enough: two of
// nodes that are not overloaded, so that caches do not all send to one. At start-up, or
// when all are down, it is all that there are: never an empty answer.
func choose(light, well, answered, all []netip.Addr) []netip.Addr {
	switch {
	case len(light) >= min(2, len(well)) && len(light) > 0:
		return light
	case len(well) > 0:
		return well
	case len(answered) > 0:
		return answered
	}
	return all
}

// addresses returns what o resolves to.
func (o *owned) addresses(l *living, qtype uint16) []netip.Addr {
	a := l.hosts
	switch {
	case o.server:
		a = l.servers[o.node]
	case o.node != "":
		a = l.names[o.node]
	}
	if qtype == dns.TypeA {
		return a.v4
	}
	return a.v6
}

// maxAddresses bounds an answer, so that it fits a datagram of 512 octets: from then
// on, each turn shows the next part of the set.
const maxAddresses = 16

// addressRecords returns A or AAAA records for addrs, which are of one family.
func addressRecords(owner string, ttl uint32, addrs []netip.Addr, turn uint32) []dns.RR {
	if len(addrs) == 0 {
		return nil
	}
	h := dns.RR_Header{Name: owner, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}
	if !addrs[0].Is4() {
		h.Rrtype = dns.TypeAAAA
	}
	rrs := make([]dns.RR, min(len(addrs), maxAddresses))
	first := int(turn % uint32(len(addrs)))
	for i := range rrs {
		ip := addrs[(first+i)%len(addrs)].AsSlice()
		if h.Rrtype == dns.TypeA {
			rrs[i] = &dns.A{Hdr: h, A: ip}
		} else {
			rrs[i] = &dns.AAAA{Hdr: h, AAAA: ip}
		}
	}
	return rrs
}
