package sim

import (
	"slices"
	"time"

	"peerage/balancing"
)

// resolver is a caching DNS server: its clients get the same answer until it expires.
type resolver struct {
	expires time.Duration
	answer  [maxAddresses]int32
	size    int
}

// fillCaches gives every resolver an answer of an age of its own. Without that, all big
// ones would ask at the start, and be dealt out evenly for a TTL.
func (s *simulation) fillCaches() {
	s.resolvers = make([]resolver, s.Resolvers)
	for i := range s.resolvers {
		r := &s.resolvers[i]
		s.ask(r)
		r.expires = time.Duration(s.random.dns.Float64() * float64(s.TTL))
	}
}

// resolve returns the address that a client of the resolver takes.
func (s *simulation) resolve(r *resolver) int32 {
	if s.now >= r.expires {
		s.ask(r)
	}
	return r.answer[s.visitors.IntN(r.size)]
}

// ask refreshes the cache of r by the answer of a node of the site: addresses in
// rotation.
func (s *simulation) ask(r *resolver) {
	r.expires = s.now + s.TTL
	listed := s.listed()
	r.size = min(s.Addresses, len(listed))
	for i := range r.size {
		r.answer[i] = listed[(s.rotation+i)%len(listed)]
	}
	s.rotation++
}

// listed returns the nodes whose addresses the site's DNS hands out: all, but for those
// off-line and, with DNSHelps, those above L1 and above the mean, as far as the node
// knows that happens to be asked. If there would be
// fewer than two, the lightest of the others are added.
func (s *simulation) listed() []int32 {
	all := s.list[:0]
	if !s.exchanges {
		for i := range s.nodes {
			all = append(all, int32(i))
		}
		s.list = all
		return all
	}
	asked := s.randomNode(s.random.dns)
	v := &asked.view
	asked.advance(s.now)
	asked.me().Load = balancing.Load(asked.load)
	mean, serving := balancing.Load(0), 0
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Serves() {
			mean += n.Load
			serving++
		}
	}
	mean /= balancing.Load(max(serving, 1))
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Serves() && (!s.DNSHelps || n.Load <= max(s.Policy.Light, mean)) {
			all = append(all, int32(i))
		}
	}
	for len(all) < 2 {
		next := int32(-1)
		for i := range v.Nodes {
			n := &v.Nodes[i]
			if n.Serves() && !slices.Contains(all, int32(i)) && (next < 0 || n.Load < v.Nodes[next].Load) {
				next = int32(i)
			}
		}
		if next < 0 {
			break
		}
		all = append(all, next)
	}
	s.list = all
	return all
}
