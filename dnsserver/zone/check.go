package zone

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// check looks for what no record shows by itself. lines holds the operator's records.
func (z *Zone) check(lines map[dns.RR]int, m *mistakes) {
	for _, name := range slices.Sorted(maps.Keys(z.nodes)) {
		n := z.nodes[name]
		for _, s := range n.sets {
			z.checkSet(n, s, lines, m)
		}
		if n.own != nil {
			z.checkOwned(n, lines, m)
		}
	}
	z.checkLoops(lines, m)
}

func (z *Zone) checkSet(n *node, s rrset, lines map[dns.RR]int, m *mistakes) {
	last := lines[s.rrs[len(s.rrs)-1]]
	bad := func(format string, args ...any) {
		m.add(last, "%s %s: "+format, append([]any{n.name, dns.Type(s.rtype)}, args...)...)
	}
	size := 0
	for _, rr := range s.rrs {
		size += dns.Len(rr)
	}
	first := s.rrs[0]
	if i := slices.IndexFunc(s.rrs, func(rr dns.RR) bool { return rr.Header().Ttl != first.Header().Ttl }); i > 0 { // RFC 2181 section 5.2
		m.add(lines[s.rrs[i]], "%s %s: TTL %d, but line %d gives the same set %d",
			n.name, dns.Type(s.rtype), s.rrs[i].Header().Ttl, lines[first], first.Header().Ttl)
	}
	if size > maxSet {
		bad("%d octets: the set does not fit a message", size)
	}
	switch s.rtype {
	case dns.TypeCNAME, dns.TypeDNAME:
		if len(s.rrs) > 1 {
			bad("a name can have only one")
		}
	case dns.TypeDS:
		if !n.cut {
			bad("there is no delegation (NS) here")
		}
	}
	if s.rtype == dns.TypeCNAME && len(n.sets) > 1 { // RFC 1034 section 3.6.2
		other := n.sets[0]
		if other.rtype == dns.TypeCNAME {
			other = n.sets[1]
		}
		whose := "the site's"
		if line := lines[other.rrs[0]]; line > 0 {
			whose = fmt.Sprintf("line %d's", line)
		}
		bad("stands beside %s %s; a CNAME must be alone", whose, dns.Type(other.rtype))
	}
	if strings.HasPrefix(n.name, "*.") && (s.rtype == dns.TypeNS || s.rtype == dns.TypeDNAME) { // RFC 4592 section 4.2
		bad("not at a wildcard")
	}
	if n.dname != nil && s.rtype == dns.TypeDNAME && below(dns.CanonicalName(n.dname.Target), n.name) {
		bad("loop: its target %s is renamed again", n.dname.Target)
	}
	glue := s.rtype == dns.TypeA || s.rtype == dns.TypeAAAA
	switch above := z.occluder(n); {
	case above == nil && n.cut && !glue && s.rtype != dns.TypeNS && s.rtype != dns.TypeDS:
		bad("the name is delegated (NS): its data lie in the other zone")
	case above != nil && above.cut && !glue:
		bad("lies below the delegation %s: only addresses of its name servers belong here", above.name)
	case above != nil && !above.cut:
		bad("lies below the DNAME %s, which renames it", above.name)
	}
	if s.rtype == dns.TypeNS && n.cut {
		for _, rr := range s.rrs {
			server, _ := canonical(rr.(*dns.NS).Ns)
			if t := z.nodes[server]; below(server, n.name) && (t == nil || t.set(dns.TypeA) == nil && t.set(dns.TypeAAAA) == nil) {
				m.add(lines[rr], "%s NS: %s has no address here, and cannot be found without", n.name, server)
			}
		}
	}
}

// occluder returns the delegation or DNAME that hides n, the highest, or nil.
func (z *Zone) occluder(n *node) (above *node) {
	for name := n.name; name != z.origin; {
		name = name[parentAt(name):]
		if up := z.nodes[name]; up.cut || up.dname != nil {
			above = up
		}
	}
	return above
}

// checkOwned holds the site's own name n against the operator's records.
func (z *Zone) checkOwned(n *node, lines map[dns.RR]int, m *mistakes) {
	for _, s := range n.sets {
		switch s.rtype {
		case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
			m.add(lines[s.rrs[0]], "%s %s: the name is a %s of the site, which writes its addresses by itself",
				n.name, dns.Type(s.rtype), n.own.what)
		}
	}
	hides := z.occluder(n)
	if hides == nil && n.cut {
		hides = n
	}
	if hides != nil {
		t := uint16(dns.TypeDNAME)
		if hides.cut {
			t = dns.TypeNS
		}
		m.add(lines[hides.set(t)[0]], "%s %s: hides the %s %s of the site", hides.name, dns.Type(t), n.own.what, n.name)
	}
}

// checkLoops follows every CNAME, wildcards included, and reports each circle once.
func (z *Zone) checkLoops(lines map[dns.RR]int, m *mistakes) {
	walk := map[*node]int{} // the number of the walk that came by first
	for i, name := range slices.Sorted(maps.Keys(z.nodes)) {
		for n := z.nodes[name]; n != nil; {
			cname := n.set(dns.TypeCNAME)
			if cname == nil {
				break
			}
			if first, ok := walk[n]; ok {
				if first == i {
					m.add(lines[cname[0]], "%s CNAME: the chain from here comes back", n.name)
				}
				break
			}
			walk[n] = i
			target := dns.CanonicalName(cname[0].(*dns.CNAME).Target)
			if !z.contains(target) {
				break
			}
			next, how := z.find(target, dns.TypeCNAME)
			if how != exact && how != wildcard {
				break
			}
			n = next
		}
	}
}
