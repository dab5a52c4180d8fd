package zone

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Bounds of what an operator may write, and of what is said about it.
const (
	maxText       = 16 << 20 // octets
	maxRecords    = 100_000
	maxSetRecords = 1000
	maxSet        = 60_000 // octets of an RRset: must fit a message
	maxMistakes   = 20
)

// mistakes collects what is wrong with a zone.
type mistakes struct {
	what, file string
	list       []mistake
}

type mistake struct {
	line int // of the operator's records; 0 for what is not theirs
	text string
}

func (m *mistakes) add(line int, format string, args ...any) {
	m.list = append(m.list, mistake{line, fmt.Sprintf(format, args...)})
}

func (m *mistakes) err() error {
	slices.SortStableFunc(m.list, func(a, b mistake) int { return a.line - b.line })
	var errs []error
	for i, e := range m.list {
		at := m.what
		if e.line > 0 {
			at = fmt.Sprintf("%s, line %d of its records", at, e.line)
			if m.file != "" {
				at = m.file + ": " + at
			}
		}
		if i == maxMistakes {
			errs = append(errs, fmt.Errorf("%s: %d more mistakes", m.what, len(m.list)-i))
			break
		}
		errs = append(errs, fmt.Errorf("%s: %s", at, e.text))
	}
	return errors.Join(errs...)
}

type record struct {
	rr   dns.RR
	line int // where it ends
}

// lines is an io.ByteReader that knows in which line the octet read last is. The
// parser reads octet by octet from one, so that a record can be given its line.
type lines struct {
	*strings.Reader
	last byte
	line int
}

func (l *lines) ReadByte() (byte, error) {
	b, err := l.Reader.ReadByte()
	if err == nil {
		if l.last == '\n' {
			l.line++
		}
		l.last = b
	}
	return b, err
}

// parse reads the operator's records up to the first that it does not understand.
func parse(text, origin string, ttl uint32, m *mistakes) []record {
	if len(text) > maxText {
		m.add(0, "the records are longer than %d octets", maxText)
		return nil
	}
	line := 0
	for l := range strings.Lines(text) {
		line++
		const generate = "$GENERATE" // the parser knows it, but gives its records a TTL of its own
		if len(l) >= len(generate) && strings.EqualFold(l[:len(generate)], generate) {
			m.add(line, "$GENERATE is not part of RFC 1035: write the records out")
			return nil
		}
	}
	in := &lines{Reader: strings.NewReader(text), line: 1}
	p := dns.NewZoneParser(in, origin, "")
	p.SetDefaultTTL(ttl)
	var out []record
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if len(out) == maxRecords {
			m.add(in.line, "more than %d records", maxRecords)
			return nil
		}
		normal, err := normalize(rr, origin)
		if err != nil {
			m.add(in.line, "%s %s: %v", rr.Header().Name, dns.Type(rr.Header().Rrtype), err)
			if len(m.list) > maxMistakes {
				break
			}
			continue
		}
		out = append(out, record{normal, in.line})
	}
	if err := p.Err(); err != nil {
		text := strings.TrimPrefix(err.Error(), "dns: ")
		if i := strings.LastIndex(text, " at line: "); i >= 0 {
			text = text[:i]
		}
		m.add(in.line, "%s", text)
	}
	return out
}

// normalize returns the record as a reader of its wire form would see it, with a
// canonical owner name, or says why it has no place in the zone.
func normalize(rr dns.RR, origin string) (dns.RR, error) {
	wire := make([]byte, dns.Len(rr)+16)
	if _, err := dns.PackRR(rr, wire, 0, nil, false); err != nil {
		return nil, fmt.Errorf("cannot be written as a message: %w", err)
	}
	rr, _, err := dns.UnpackRR(wire, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot be read back from a message: %w", err)
	}
	h := rr.Header()
	h.Name = dns.CanonicalName(h.Name)
	switch {
	case !below(h.Name, origin):
		return nil, errors.New("not in the zone")
	case h.Class != dns.ClassINET:
		return nil, fmt.Errorf("class %s: only IN is served", dns.Class(h.Class))
	case h.Ttl > 1<<31-1: // RFC 2181 section 8
		return nil, fmt.Errorf("TTL %d: more than %d", h.Ttl, 1<<31-1)
	case h.Rdlength == 0 && h.Rrtype != dns.TypeAPL:
		return nil, errors.New("no data")
	}
	switch h.Rrtype {
	case dns.TypeSOA:
		return nil, errors.New("the site writes the SOA by itself")
	case dns.TypeNS:
		if h.Name == origin {
			return nil, errors.New("the site writes the NS records of the zone by itself; yours can delegate names below it")
		}
	case dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM:
		return nil, errors.New("belongs to a signed zone, and this one is not")
	case dns.TypeNone, dns.TypeOPT:
		return nil, errors.New("not a type of data")
	}
	if h.Rrtype >= 128 && h.Rrtype <= 255 { // RFC 6895 section 3.1
		return nil, errors.New("not a type of data")
	}
	return rr, nil
}
