package dnsserver

import (
	"encoding/binary"
	"hash/maphash"
	"math"

	"github.com/miekg/dns"

	"peerage/dnsserver/zone"
)

const (
	minUDP = 512  // RFC 1035 section 4.2.1
	maxUDP = 1232 // fits an IPv6 packet of 1280 octets: never fragmented
)

// reply answers msg, in buf where it fits. It returns nil where silence is the answer.
func (s *Server) reply(buf, msg []byte, tcp bool) (reply []byte, rcode int) {
	var q query
	switch q.read(msg) {
	case ignore:
		if len(msg) < headerSize {
			s.counters.drop(dropShort)
		} else {
			s.counters.drop(dropResponse)
		}
		return nil, 0
	case malformed:
		return header(buf, msg, dns.RcodeFormatError), dns.RcodeFormatError
	case unknown:
		return header(buf, msg, dns.RcodeNotImplemented), dns.RcodeNotImplemented
	}
	m := dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id:               binary.BigEndian.Uint16(msg),
			Response:         true,
			RecursionDesired: binary.BigEndian.Uint16(msg[2:])&flagRecursion != 0,
		},
		Compress: true,
		Question: []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}},
	}
	var opt *dns.OPT
	if q.edns {
		opt = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(maxUDP)
		opt.SetDo(q.do)
	}
	if q.version > 0 {
		m.Rcode = dns.RcodeBadVers
	} else {
		s.answer(&m, &q, opt)
	}
	if opt != nil {
		m.Extra = append(m.Extra, opt)
	}
	limit := math.MaxUint16
	if !tcp {
		limit = max(minUDP, min(int(q.size), maxUDP))
	}
	out, err := m.PackBuffer(buf)
	if err == nil && len(out) > limit {
		// Part of an answer is of no use: whoever gets TC asks again over TCP.
		m.Answer, m.Ns, m.Extra = nil, nil, nil
		if opt != nil {
			m.Extra = []dns.RR{opt}
		}
		m.Truncated = true
		s.counters.truncated.Add(1)
		out, err = m.PackBuffer(buf)
	}
	if err != nil {
		return header(buf, msg, dns.RcodeServerFailure), dns.RcodeServerFailure
	}
	return out, m.Rcode
}

// answer fills in what the zone of the name says.
func (s *Server) answer(m *dns.Msg, q *query, opt *dns.OPT) {
	name := dns.CanonicalName(q.name)
	z := s.zoneOf(name)
	if z == nil {
		m.Rcode = dns.RcodeRefused
		if opt != nil {
			opt.Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNotAuthoritative}} // RFC 8914 section 4.21
		}
		return
	}
	turn := s.turns[(maphash.String(s.seed, name)+uint64(q.qtype))%uint64(len(s.turns))].Add(1)
	r := z.Answer(s.c.View(), zone.Question{Name: q.name, Type: q.qtype, Class: q.class}, turn)
	m.Rcode, m.Authoritative = r.Rcode, r.AA
	m.Answer, m.Ns = r.Answer, r.Authority
	m.Extra = r.Additional[:len(r.Additional):len(r.Additional)] // the OPT goes to a copy
}

// zoneOf returns the closest zone that a canonical name lies in, or nil.
func (s *Server) zoneOf(name string) *zone.Zone {
	zones := *s.zones.Load()
	for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
		if z := zones[name[at:]]; z != nil {
			return z
		}
	}
	return nil
}

// header returns a reply to msg that is a header alone.
func header(buf, msg []byte, rcode uint16) []byte {
	flags := binary.BigEndian.Uint16(msg[2:])
	buf = append(buf[:0], msg[:2]...)
	buf = binary.BigEndian.AppendUint16(buf, flagResponse|flags&(maskOpcode|flagRecursion)|rcode)
	return append(buf, 0, 0, 0, 0, 0, 0, 0, 0)
}
