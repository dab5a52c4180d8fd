package dnsserver

import (
	"sync/atomic"

	"github.com/miekg/dns"
)

// Counters are what a server has done since it was made.
type Counters struct {
	UDP       uint64            `json:"udp"`       // datagrams that came in
	TCP       uint64            `json:"tcp"`       // messages that came in over TCP
	Replies   map[string]uint64 `json:"replies"`   // by rcode, those that could not be sent among them
	Truncated uint64            `json:"truncated"` // replies that did not fit a datagram
	Dropped   map[string]uint64 `json:"dropped"`   // by reason
	Conns     int               `json:"conns"`     // TCP connections that are open now
}

// The reasons why something gets no reply.
const (
	dropShort     = iota // less than a header
	dropResponse         // is itself a response
	dropMalformed        // malformed, and too many of the kind
	dropUnsent           // the reply could not be sent
	dropConns            // a connection too many
	drops
)

var dropNames = [drops]string{"short", "response", "malformed", "unsent", "connections"}

type counters struct {
	udp, tcp, truncated atomic.Uint64
	rcodes              [dns.RcodeBadVers + 1]atomic.Uint64
	dropped             [drops]atomic.Uint64
}

func (c *counters) drop(why int) { c.dropped[why].Add(1) }

// Counters returns what was counted so far.
func (s *Server) Counters() Counters {
	c := &s.counters
	out := Counters{
		UDP:       c.udp.Load(),
		TCP:       c.tcp.Load(),
		Truncated: c.truncated.Load(),
		Replies:   map[string]uint64{},
		Dropped:   map[string]uint64{},
		Conns:     s.conns.count(),
	}
	for i := range c.rcodes {
		if n := c.rcodes[i].Load(); n > 0 {
			out.Replies[rcodeName(i)] = n
		}
	}
	for i, name := range dropNames {
		if n := c.dropped[i].Load(); n > 0 {
			out.Dropped[name] = n
		}
	}
	return out
}

func rcodeName(rcode int) string {
	if rcode == dns.RcodeBadVers { // 16 is BADSIG as well, in a TSIG
		return "BADVERS"
	}
	return dns.RcodeToString[rcode]
}
