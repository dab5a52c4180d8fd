package dnsserver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// verdict says what to do with a message before its question is looked at.
type verdict int

const (
	ask       verdict = iota // answer the question
	malformed                // FORMERR, header only
	unknown                  // NOTIMP, header only
	ignore                   // no reply: the counter says why
)

// query is what a server needs to know of a question.
type query struct {
	name    string // absolute, escaped, in the asker's letter case
	qtype   uint16
	class   uint16
	edns    bool
	version uint8
	size    uint16 // that the asker can take over UDP, by EDNS
	do      bool
}

const headerSize = 12

// The flags of a header's third and fourth octet (RFC 1035 section 4.1.1).
const (
	flagResponse  = 1 << 15
	maskOpcode    = 15 << 11
	flagRecursion = 1 << 8 // desired
)

// read checks msg from its first octet to its last, and takes the question out of it.
// All that leads to an error is decided here, before any look-up.
func (q *query) read(msg []byte) verdict {
	if len(msg) < headerSize {
		return ignore
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagResponse != 0 { // or two servers could answer each other for ever
		return ignore
	}
	if flags&maskOpcode != 0 {
		return unknown
	}
	questions := binary.BigEndian.Uint16(msg[4:])
	answers := binary.BigEndian.Uint16(msg[6:])
	authority := binary.BigEndian.Uint16(msg[8:])
	additional := binary.BigEndian.Uint16(msg[10:])
	at := headerSize
	if questions != 1 || !skipName(msg, &at, false) || len(msg) < at+4 { // RFC 9619
		return malformed
	}
	name, _, err := dns.UnpackDomainName(msg, headerSize)
	if err != nil {
		return malformed
	}
	q.name = name
	q.qtype = binary.BigEndian.Uint16(msg[at:])
	q.class = binary.BigEndian.Uint16(msg[at+2:])
	at += 4
	if answers != 0 || authority > 1 || authority == 1 && q.qtype != dns.TypeIXFR { // RFC 1995 section 3
		return malformed
	}
	for i := range int(authority) + int(additional) {
		owner := at
		if !skipName(msg, &at, true) || len(msg) < at+10 {
			return malformed
		}
		fixed := msg[at : at+10] // type, class, TTL, length of the data
		data := at + 10
		at = data + int(binary.BigEndian.Uint16(fixed[8:]))
		if len(msg) < at {
			return malformed
		}
		if binary.BigEndian.Uint16(fixed) != dns.TypeOPT {
			continue
		}
		if q.edns || i < int(authority) || msg[owner] != 0 || !wholeOptions(msg[data:at]) { // RFC 6891 section 6.1
			return malformed
		}
		q.edns = true
		q.size = binary.BigEndian.Uint16(fixed[2:])
		q.version = fixed[5]
		q.do = fixed[6]&0x80 != 0
	}
	if at != len(msg) {
		return malformed
	}
	return ask
}

// skipName moves at behind the name that begins there. A pointer ends a name, where one
// may stand: the name of a question has nothing before it to point to.
func skipName(msg []byte, at *int, pointers bool) bool {
	for *at < len(msg) {
		n := int(msg[*at])
		switch {
		case n == 0:
			*at++
			return true
		case n < 64:
			*at += 1 + n
		case n >= 192 && pointers && *at+2 <= len(msg):
			*at += 2
			return true
		default:
			return false
		}
	}
	return false
}

// wholeOptions reports whether b is a list of EDNS options (RFC 6891 section 6.1.2).
func wholeOptions(b []byte) bool {
	for len(b) >= 4 {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}
