// Package zone answers DNS questions from the data of one zone and a view of the site.
//
// Start with [Zone.Answer]: it is a pure function of the zone, a [balancing.View] and a
// question. The zone's records come from two sides. The operator's are RFC 1035 text.
// The site adds by itself what it knows best: SOA and NS, the addresses of its hosts
// (all VIPs that are answered now) and of its node names. A name belongs to one side
// only; [New] refuses a zone in which both give it addresses.
//
// A zone is immutable. The look-up walks a tree in which empty non-terminals are nodes
// like any other (RFC 4592), follows CNAME and DNAME within the zone (RFC 6672), and
// refers to delegations. It opens no socket and reads no clock.
package zone

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"peerage/balancing"
)

// Config describes a zone of the site.
type Config struct {
	Origin string             // the apex: a domain name, with or without the final dot
	Nodes  []balancing.NodeID // all nodes of the site: each is a name server, {node}.{origin}
	Serial uint32             // of the SOA: the same on all nodes, greater after each change

	// TTL is for the records that the site adds, for negative answers, and for the
	// operator's records where their text names none. Whole seconds up to a day; zero
	// stands for 20 s.
	TTL time.Duration

	Hosts     []string // the site's host names; those outside the zone are left out
	NodeNames []NodeName

	Records string // the operator's records, RFC 1035 section 5 without $INCLUDE, relative to Origin
	File    string // where they were written down, for errors
}

// NodeName is a name under which one node alone is reached.
type NodeName struct {
	Name string
	Node balancing.NodeID
}

// defaultTTL is how long a cache keeps the addresses: take-over keeps them right, so
// the TTL is for planned changes only.
const defaultTTL = 20 * time.Second

// serverTTL is the TTL of SOA and NS, which change with the site document only.
const serverTTL = 3600

// Zone is the data of a zone, ready to answer from.
type Zone struct {
	origin  string
	ttl     uint32
	apex    *node
	labels  int              // of the origin
	nodes   map[string]*node // by canonical name; every ancestor up to the apex is there too
	missing []dns.RR         // the SOA of negative answers
	outside []string
	living  atomic.Pointer[living] // what the latest view means for the zone; see liveIn
}

// Question is what is asked.
type Question struct {
	Name  string // absolute, in the letter case of the asker, escaped as miekg/dns does
	Type  uint16
	Class uint16
}

// Reply is what a zone says to a question. The records may be shared with other
// replies: they must not be changed.
type Reply struct {
	Rcode      int
	AA         bool
	Answer     []dns.RR // owner names in the letter case of the question
	Authority  []dns.RR
	Additional []dns.RR // glue of a referral, all of it (RFC 9471)
}

// New builds a zone. The error names every mistake that was found, up to 20, the
// operator's with their line.
func New(c Config) (*Zone, error) {
	origin, err := canonical(c.Origin)
	if err != nil || origin == "." {
		return nil, fmt.Errorf("zone %q: not a domain name", c.Origin)
	}
	if c.TTL == 0 {
		c.TTL = defaultTTL
	}
	if c.TTL%time.Second != 0 || c.TTL < time.Second || c.TTL > 24*time.Hour {
		return nil, fmt.Errorf("zone %s: TTL %s: not a number of whole seconds between 1s and 24h", origin, c.TTL)
	}
	if len(c.Nodes) == 0 {
		return nil, fmt.Errorf("zone %s: no nodes, so no name servers", origin)
	}
	ttl := uint32(c.TTL / time.Second)
	m := &mistakes{what: "zone " + origin, file: c.File}
	records := parse(c.Records, origin, ttl, m)

	z := newTree(origin, ttl)
	lines := map[dns.RR]int{}
	for _, r := range records {
		if !z.add(r.rr) {
			m.add(r.line, "%s %s: more than %d records", r.rr.Header().Name, dns.Type(r.rr.Header().Rrtype), maxSetRecords)
			break
		}
		lines[r.rr] = r.line
	}
	z.addSite(c, m)
	z.seal()
	z.check(lines, m)
	if err := m.err(); err != nil {
		return nil, err
	}
	return z, nil
}

// addSite adds what the site knows of itself: SOA, NS, hosts and node names.
func (z *Zone) addSite(c Config, m *mistakes) {
	server := func(id balancing.NodeID) string { return string(id) + "." + z.origin }
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: z.origin, Rrtype: t, Class: dns.ClassINET, Ttl: serverTTL}
	}
	z.add(&dns.SOA{
		Hdr: header(dns.TypeSOA), Ns: server(c.Nodes[0]), Mbox: "hostmaster." + z.origin,
		Serial: c.Serial, Refresh: 3600, Retry: 600, Expire: 14 * 24 * 3600, Minttl: z.ttl,
	})
	for _, id := range c.Nodes {
		z.add(&dns.NS{Hdr: header(dns.TypeNS), Ns: server(id)})
		z.own(server(id), owned{what: "name server", node: id, server: true}, m)
	}
	for _, n := range c.NodeNames {
		if !slices.Contains(c.Nodes, n.Node) {
			m.add(0, "node name %q: no node %q", n.Name, n.Node)
			continue
		}
		z.own(n.Name, owned{what: "node name", node: n.Node}, m)
	}
	for _, h := range c.Hosts {
		z.own(h, owned{what: "host"}, m)
	}
}

// own makes the addresses of name the site's business.
func (z *Zone) own(name string, o owned, m *mistakes) {
	key, err := canonical(name)
	switch {
	case err != nil:
		m.add(0, "%s %q: not a domain name", o.what, name)
		return
	case !z.contains(key):
		z.outside = append(z.outside, name)
		return
	}
	n := z.node(key)
	switch was := n.own; {
	case was == nil:
		n.own = &o
	case was.node != o.node:
		m.add(0, "%s is a %s and a %s: only one of them can have its addresses", key, was.what, o.what)
	}
}

// Origin returns the apex of the zone: lower-case, with the final dot.
func (z *Zone) Origin() string { return z.origin }

// Outside returns the hosts and node names that do not lie in the zone, so that some
// other name server must answer for them.
func (z *Zone) Outside() []string { return z.outside }

// contains reports whether name, canonical as Origin is, is the apex or below it.
func (z *Zone) contains(name string) bool { return below(name, z.origin) }

// below reports whether name is origin or lies below it, both canonical.
func below(name, origin string) bool {
	rest, ok := strings.CutSuffix(name, origin)
	if !ok || rest == "" || origin == "." {
		return ok
	}
	front := strings.TrimSuffix(rest, ".")
	escapes := len(front) - len(strings.TrimRight(front, `\`))
	return front != rest && escapes%2 == 0 // else the dot is within a label
}

var errName = errors.New("not a domain name")

// canonical returns the form of a name by which it is found: absolute, lower-case and
// escaped in one way.
func canonical(name string) (string, error) {
	if name == "" {
		return "", errName
	}
	var wire [255]byte // RFC 1035 section 2.3.4
	if _, err := dns.PackDomainName(dns.Fqdn(name), wire[:], 0, nil, false); err != nil {
		return "", errName
	}
	s, _, err := dns.UnpackDomainName(wire[:], 0)
	if err != nil {
		return "", errName
	}
	return dns.CanonicalName(s), nil
}
