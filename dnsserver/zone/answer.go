package zone

import (
	"slices"

	"github.com/miekg/dns"

	"peerage/balancing"
)

// maxChain bounds how many names are looked up for one question. Whoever asks goes on
// by itself from where the chain was left.
const maxChain = 9

// Answer answers q as the site is in v, which it does not change. turn says with which
// record a set of addresses begins: the next question with turn+1 gets the next first.
//
// The Rcode is that of the last name of a chain of CNAMEs (RFC 6604 section 3). ANY is
// answered with one RRset (RFC 8482 section 4.1). A name outside the zone, a class other
// than IN and a transfer are REFUSED.
func (z *Zone) Answer(v *balancing.View, q Question, turn uint32) Reply {
	name := dns.CanonicalName(q.Name)
	switch {
	case q.Class != dns.ClassINET, !z.contains(name), q.Type == dns.TypeAXFR, q.Type == dns.TypeIXFR:
		return Reply{Rcode: dns.RcodeRefused}
	case q.Type >= 128 && q.Type < 255, q.Type == dns.TypeOPT: // not data (RFC 6895 section 3.1)
		return Reply{Rcode: dns.RcodeNotImplemented}
	}
	r := Reply{AA: true}
	owner := q.Name
	var seen [maxChain]string
	for i := range maxChain {
		if !z.contains(name) || slices.Contains(seen[:i], name) {
			return r
		}
		seen[i] = name
		n, how := z.find(name, q.Type)
		switch how {
		case nowhere:
			r.Rcode = dns.RcodeNameError
			r.Authority = z.missing
			return r
		case delegated:
			z.refer(&r, n, v)
			return r
		case renamed:
			var follow bool
			if owner, follow = rename(&r, n, owner, q.Type); !follow {
				return r
			}
		default:
			if cname := n.set(dns.TypeCNAME); cname != nil && q.Type != dns.TypeCNAME && q.Type != dns.TypeANY {
				r.Answer = append(r.Answer, named(cname[:1], owner)...)
				owner = cname[0].(*dns.CNAME).Target
				break
			}
			rrs := z.data(n, q.Type, owner, v, turn)
			if len(rrs) == 0 {
				r.Authority = z.missing
			} else if len(r.Answer) == 0 {
				r.Answer = rrs
			} else {
				r.Answer = append(r.Answer, rrs...)
			}
			return r
		}
		name = dns.CanonicalName(owner)
	}
	return r
}

// data returns the records of type qtype that n has for owner.
func (z *Zone) data(n *node, qtype uint16, owner string, v *balancing.View, turn uint32) []dns.RR {
	if qtype == dns.TypeANY {
		return z.any(n, owner, v, turn)
	}
	if n.own != nil && (qtype == dns.TypeA || qtype == dns.TypeAAAA) {
		return addressRecords(owner, z.ttl, n.own.addresses(z.liveIn(v), qtype), turn)
	}
	rrs := n.set(qtype)
	if len(rrs) > 1 && (qtype == dns.TypeA || qtype == dns.TypeAAAA) {
		first := int(turn % uint32(len(rrs)))
		rrs = slices.Concat(rrs[first:], rrs[:first])
	}
	return named(rrs, owner)
}

// any returns one RRset of n, the addresses if there are some.
func (z *Zone) any(n *node, owner string, v *balancing.View, turn uint32) []dns.RR {
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if rrs := z.data(n, t, owner, v, turn); len(rrs) > 0 {
			return rrs
		}
	}
	if len(n.sets) > 0 {
		return named(n.sets[0].rrs, owner)
	}
	return nil
}

// refer fills in a referral to the zone that begins at cut.
func (z *Zone) refer(r *Reply, cut *node, v *balancing.View) {
	r.AA = len(r.Answer) > 0 // the CNAMEs that led here are ours
	r.Authority = cut.set(dns.TypeNS)
	for _, rr := range r.Authority {
		n := z.nodes[dns.CanonicalName(rr.(*dns.NS).Ns)]
		if n == nil {
			continue
		}
		r.Additional = append(r.Additional, z.data(n, dns.TypeA, n.name, v, 0)...)
		r.Additional = append(r.Additional, z.data(n, dns.TypeAAAA, n.name, v, 0)...)
	}
}

// rename adds the DNAME of n and the CNAME that follows from it for owner (RFC 6672
// section 3.1). It returns the new name, and whether to go on with it.
func rename(r *Reply, n *node, owner string, qtype uint16) (to string, follow bool) {
	if !slices.Contains(r.Answer, dns.RR(n.dname)) {
		r.Answer = append(r.Answer, n.dname)
	}
	to = owner[:len(owner)-len(n.name)] // with the dot; lower-casing does not change lengths
	if n.dname.Target != "." {
		to += n.dname.Target
	}
	if _, err := canonical(to); err != nil {
		r.Rcode = dns.RcodeYXDomain
		return "", false
	}
	r.Answer = append(r.Answer, &dns.CNAME{
		Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: n.dname.Hdr.Ttl},
		Target: to,
	})
	// A target below the DNAME itself would be renamed for ever.
	loop := below(dns.CanonicalName(n.dname.Target), n.name)
	return to, !loop && qtype != dns.TypeCNAME && qtype != dns.TypeANY
}

// named returns rrs with the owner name as it was asked for.
func named(rrs []dns.RR, owner string) []dns.RR {
	if len(rrs) == 0 || rrs[0].Header().Name == owner {
		return rrs
	}
	out := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		out[i] = dns.Copy(rr)
		out[i].Header().Name = owner
	}
	return out
}
