package heartbeat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"peerage/balancing"
)

// report is what a node says of itself, as it travels, sealed, in one datagram.
type report struct {
	node        balancing.NodeID
	incarnation uint64        // grows with each start of the node
	sequence    uint64        // grows with each datagram of an incarnation
	sent        time.Time     // by the sender's clock, to the millisecond
	period      time.Duration // to the next one, nominally; whole milliseconds
	state       balancing.State
	load        balancing.Load // to the hundredth of a per cent
	address     netip.Addr     // host address; the zero Addr if the sender does not tell
	held        []netip.Addr
	deaf        bool // the sender does not hear the receiver's multicast
}

// The plain text of a report is a version and then fields, in ascending order of their
// tags:
//
//	version (1) | { tag (1) | length (2) | value }...
//
// A reader skips the tags that it does not know, so that a field can be added without a
// new version. Numbers are big-endian.
const (
	wireVersion = 1

	tagNode        = 1
	tagIncarnation = 2
	tagSequence    = 3
	tagSent        = 4 // milliseconds since 1970
	tagPeriod      = 5 // milliseconds
	tagState       = 6
	tagLoad        = 7 // hundredths of a per cent
	tagAddress     = 8
	tagHeld4       = 9 // 4 octets an address
	tagHeld6       = 10
	tagDeaf        = 11 // no value

	fieldHead = 3
	needed    = 1<<tagNode | 1<<tagIncarnation | 1<<tagSequence | 1<<tagSent | 1<<tagPeriod | 1<<tagState | 1<<tagLoad
)

// maxPlain bounds the plain text: with the overhead of the seal it fits the smallest
// datagram that IPv6 carries in one piece (1280 octets less the heads).
const maxPlain = 1184

// appendTo appends the plain text of r.
func (r *report) appendTo(b []byte) []byte {
	b = append(b, wireVersion)
	b = append(field(b, tagNode, len(r.node)), r.node...)
	b = binary.BigEndian.AppendUint64(field(b, tagIncarnation, 8), r.incarnation)
	b = binary.BigEndian.AppendUint64(field(b, tagSequence, 8), r.sequence)
	b = binary.BigEndian.AppendUint64(field(b, tagSent, 8), uint64(r.sent.UnixMilli()))
	b = binary.BigEndian.AppendUint32(field(b, tagPeriod, 4), uint32(r.period.Milliseconds()))
	b = append(field(b, tagState, 1), byte(r.state))
	b = binary.BigEndian.AppendUint32(field(b, tagLoad, 4), hundredths(r.load))
	if r.address.IsValid() {
		b = append(field(b, tagAddress, r.address.BitLen()/8), r.address.AsSlice()...)
	}
	b = appendHeld(b, tagHeld4, r.held, netip.Addr.Is4)
	b = appendHeld(b, tagHeld6, r.held, netip.Addr.Is6)
	if r.deaf {
		b = field(b, tagDeaf, 0)
	}
	return b
}

func field(b []byte, tag byte, length int) []byte {
	return binary.BigEndian.AppendUint16(append(b, tag), uint16(length))
}

func appendHeld(b []byte, tag byte, held []netip.Addr, family func(netip.Addr) bool) []byte {
	at := len(b)
	b = field(b, tag, 0)
	for _, a := range held {
		if family(a) {
			b = append(b, a.AsSlice()...)
		}
	}
	length := len(b) - at - fieldHead
	if length == 0 {
		return b[:at]
	}
	binary.BigEndian.PutUint16(b[at+1:], uint16(length))
	return b
}

// hundredths is the form in which a load travels. What cannot be is taken for no load,
// what is too much for the most.
func hundredths(l balancing.Load) uint32 {
	h := math.Round(float64(l) * 100)
	if !(h > 0) { // NaN as well
		return 0
	}
	return uint32(min(h, math.MaxUint32))
}

var (
	errCut     = errors.New("report: cut short")
	errOrder   = errors.New("report: fields out of order")
	errMissing = errors.New("report: field missing")
)

// parseReport reads a plain text. It keeps nothing of b.
func parseReport(b []byte) (*report, error) {
	switch {
	case len(b) == 0:
		return nil, errCut
	case b[0] != wireVersion:
		return nil, fmt.Errorf("report: version %d, want %d", b[0], wireVersion)
	}
	r := new(report)
	seen := uint64(0)
	last := byte(0)
	for b = b[1:]; len(b) > 0; {
		if len(b) < fieldHead {
			return nil, errCut
		}
		tag, length := b[0], int(binary.BigEndian.Uint16(b[1:]))
		b = b[fieldHead:]
		switch {
		case len(b) < length:
			return nil, errCut
		case tag <= last:
			return nil, errOrder
		}
		if err := r.set(tag, b[:length]); err != nil {
			return nil, err
		}
		if tag < 64 {
			seen |= 1 << tag
		}
		last, b = tag, b[length:]
	}
	if seen&needed != needed {
		return nil, errMissing
	}
	if len(r.held) > balancing.MaxHeld {
		return nil, fmt.Errorf("report: %d VIPs held, at most %d", len(r.held), balancing.MaxHeld)
	}
	return r, nil
}

// set takes the value of one field.
func (r *report) set(tag byte, v []byte) error {
	if want, fixed := fixedLength[tag]; fixed && len(v) != want {
		return fmt.Errorf("report: field %d has %d octets, want %d", tag, len(v), want)
	}
	switch tag {
	case tagNode:
		r.node = balancing.NodeID(v)
		if !r.node.Valid() {
			return errors.New("report: not a node's name")
		}
	case tagIncarnation:
		r.incarnation = binary.BigEndian.Uint64(v)
	case tagSequence:
		r.sequence = binary.BigEndian.Uint64(v)
	case tagSent:
		r.sent = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
	case tagPeriod:
		r.period = time.Duration(binary.BigEndian.Uint32(v)) * time.Millisecond
		if r.period < MinPeriod || r.period > MaxPeriod {
			return fmt.Errorf("report: period %v, want %v to %v", r.period, MinPeriod, MaxPeriod)
		}
	case tagState:
		r.state = balancing.State(v[0])
		if !r.state.Valid() {
			return fmt.Errorf("report: %v", r.state)
		}
	case tagLoad:
		r.load = balancing.Load(binary.BigEndian.Uint32(v)) / 100
	case tagAddress:
		a, ok := netip.AddrFromSlice(v)
		if !ok || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			return errors.New("report: not a host address")
		}
		r.address = a
	case tagHeld4:
		return r.hold(v, 4)
	case tagHeld6:
		return r.hold(v, 16)
	case tagDeaf:
		r.deaf = true
	}
	return nil
}

var fixedLength = map[byte]int{tagIncarnation: 8, tagSequence: 8, tagSent: 8, tagPeriod: 4, tagState: 1, tagLoad: 4, tagDeaf: 0}

func (r *report) hold(v []byte, size int) error {
	if len(v) == 0 || len(v)%size != 0 || len(v)/size > balancing.MaxHeld {
		return errors.New("report: not a list of VIPs")
	}
	for ; len(v) > 0; v = v[size:] {
		a, _ := netip.AddrFromSlice(v[:size])
		if a.Is4In6() {
			return errors.New("report: a VIP of one family in the list of the other")
		}
		r.held = append(r.held, a)
	}
	return nil
}
