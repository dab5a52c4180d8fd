package zone

import (
	"slices"

	"github.com/miekg/dns"
)

// node is a name that exists: because it has data, or because a name below it has
// (an empty non-terminal, RFC 4592 section 2.2.2).
type node struct {
	name  string
	sets  []rrset // sorted by type
	own   *owned  // set if the site writes its A and AAAA
	wild  *node   // its child "*"
	cut   bool    // the zone is delegated from here on
	dname *dns.DNAME
}

type rrset struct {
	rtype uint16
	rrs   []dns.RR
}

func (n *node) set(rtype uint16) []dns.RR {
	for _, s := range n.sets { // a handful: faster than a search
		if s.rtype == rtype {
			return s.rrs
		}
	}
	return nil
}

func newTree(origin string, ttl uint32) *Zone {
	z := &Zone{origin: origin, ttl: ttl, labels: dns.CountLabel(origin), nodes: map[string]*node{}}
	z.apex = &node{name: origin}
	z.nodes[origin] = z.apex
	return z
}

// node returns the node of a name in the zone. It makes it, and all above it, where
// there is none.
func (z *Zone) node(name string) *node {
	if n := z.nodes[name]; n != nil {
		return n
	}
	n := &node{name: name}
	z.nodes[name] = n
	parent := z.node(name[parentAt(name):])
	if name[:parentAt(name)] == "*." {
		parent.wild = n
	}
	return n
}

// parentAt is the offset of the parent's name within name.
func parentAt(name string) int {
	i, _ := dns.NextLabel(name, 0)
	return i
}

// add adds a record whose owner is canonical and in the zone, unless the zone has it
// already (RFC 2181 section 5). It reports false if the set is full.
func (z *Zone) add(rr dns.RR) bool {
	n := z.node(rr.Header().Name)
	t := rr.Header().Rrtype
	i := slices.IndexFunc(n.sets, func(s rrset) bool { return s.rtype >= t })
	switch {
	case i < 0:
		i = len(n.sets)
		n.sets = append(n.sets, rrset{rtype: t})
	case n.sets[i].rtype != t:
		n.sets = slices.Insert(n.sets, i, rrset{rtype: t})
	case slices.ContainsFunc(n.sets[i].rrs, func(have dns.RR) bool { return dns.IsDuplicate(have, rr) }):
		return true
	case len(n.sets[i].rrs) == maxSetRecords:
		return false
	}
	n.sets[i].rrs = append(n.sets[i].rrs, rr)
	return true
}

// seal prepares a tree that has its SOA, and grows no more, for look-ups.
func (z *Zone) seal() {
	soa := dns.Copy(z.apex.set(dns.TypeSOA)[0]).(*dns.SOA)
	soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl) // RFC 2308 section 3
	z.missing = []dns.RR{soa}
	for _, n := range z.nodes {
		n.cut = n != z.apex && n.set(dns.TypeNS) != nil
		if d := n.set(dns.TypeDNAME); d != nil {
			n.dname = d[0].(*dns.DNAME)
		}
	}
}

// match says where a look-up of a name ended.
type match int

const (
	nowhere   match = iota // the name does not exist
	exact                  // at the node
	wildcard               // at the node "*" that stands for the name
	delegated              // at the node where another zone begins
	renamed                // at the DNAME above the name
)

// find looks up a canonical name in the zone, for a question of type qtype.
func (z *Zone) find(name string, qtype uint16) (*node, match) {
	var offsets [128]int // of the labels; a name has at most 127
	count := 0
	for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
		offsets[count] = at
		count++
	}
	n := z.apex
	for i := count - z.labels - 1; ; i-- {
		switch {
		case n.cut && (i >= 0 || qtype != dns.TypeDS): // the DS is the parent's (RFC 4035 section 3.1.4.1)
			return n, delegated
		case i < 0:
			return n, exact
		case n.dname != nil:
			return n, renamed
		}
		next := z.nodes[name[offsets[i]:]]
		if next == nil {
			if n.wild != nil {
				return n.wild, wildcard
			}
			return nil, nowhere
		}
		n = next
	}
}
