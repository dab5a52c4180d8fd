package heartbeat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
	"unicode/utf8"

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
	deaf        bool // the sender does not hear the receiver's multicast, or any

	internal    netip.Addr // address on the internal network; the zero Addr if it is not told
	capacity    float64    // to the thousandth; 0 if it is not told
	debit, shed balancing.Load
	unable      []balancing.RouteID
	version     string
	settings    balancing.Settings // Version 0: none but those of the site document
	ask         bool               // the receiver is asked for its own report, at once

	marked bool // how it leaves, not what it says: see [Config.Mark]
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
	tagInternal    = 12
	tagCapacity    = 13 // thousandths
	tagDebit       = 14 // hundredths of a per cent
	tagShed        = 15
	tagUnable      = 16 // 4 octets a route
	tagVersion     = 17
	tagSettings    = 18 // see appendSettings
	tagAsk         = 19 // no value

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
	if r.internal.IsValid() {
		b = append(field(b, tagInternal, r.internal.BitLen()/8), r.internal.AsSlice()...)
	}
	b = appendNumber(b, tagCapacity, scaled(r.capacity, 1000))
	b = appendNumber(b, tagDebit, scaled(float64(r.debit), 100))
	b = appendNumber(b, tagShed, scaled(float64(r.shed), 100))
	if len(r.unable) > 0 {
		b = field(b, tagUnable, 4*len(r.unable))
		for _, id := range r.unable {
			b = binary.BigEndian.AppendUint32(b, uint32(id))
		}
	}
	if r.version != "" {
		b = append(field(b, tagVersion, len(r.version)), r.version...)
	}
	if r.settings.Version > 0 {
		b = appendSettings(field(b, tagSettings, settingsLength), &r.settings)
	}
	if r.ask {
		b = field(b, tagAsk, 0)
	}
	return b
}

// appendNumber appends a number that need not be told if it is 0.
func appendNumber(b []byte, tag byte, n uint32) []byte {
	if n == 0 {
		return b
	}
	return binary.BigEndian.AppendUint32(field(b, tag, 4), n)
}

// Settings travel as version (8) | base (4) | light, margin, below (4 each, hundredths of
// a per cent) | rule (1) | choice (1) | period (4, milliseconds).
const settingsLength = 30

func appendSettings(b []byte, s *balancing.Settings) []byte {
	b = binary.BigEndian.AppendUint64(b, s.Version)
	b = binary.BigEndian.AppendUint32(b, s.Base)
	for _, l := range []balancing.Load{s.Light, s.Margin, s.Below} {
		b = binary.BigEndian.AppendUint32(b, hundredths(l))
	}
	b = append(b, byte(s.Rule), byte(s.Choice))
	return binary.BigEndian.AppendUint32(b, uint32(s.Period.Milliseconds()))
}

func parseSettings(v []byte) (s balancing.Settings, err error) {
	load := func(at int) balancing.Load { return balancing.Load(binary.BigEndian.Uint32(v[at:])) / 100 }
	s.Version, s.Base = binary.BigEndian.Uint64(v), binary.BigEndian.Uint32(v[8:])
	s.Light, s.Margin, s.Below = load(12), load(16), load(20)
	s.Rule, s.Choice = balancing.Rule(v[24]), balancing.Choice(v[25])
	s.Period = time.Duration(binary.BigEndian.Uint32(v[26:])) * time.Millisecond
	if s.Version == 0 {
		return s, errors.New("report: settings without a version")
	}
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("report: settings: %w", err)
	}
	return s, nil
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

// hundredths is the form in which a load travels.
func hundredths(l balancing.Load) uint32 { return scaled(float64(l), 100) }

// scaled returns x times scale. What cannot be is taken for nothing, what is too much for
// the most.
func scaled(x, scale float64) uint32 {
	n := math.Round(x * scale)
	if !(n > 0) { // NaN as well
		return 0
	}
	return uint32(min(n, math.MaxUint32))
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
		if r.period < balancing.MinPeriod || r.period > balancing.MaxPeriod {
			return fmt.Errorf("report: period %v, want %v to %v", r.period, balancing.MinPeriod, balancing.MaxPeriod)
		}
	case tagState:
		r.state = balancing.State(v[0])
		if !r.state.Valid() {
			return fmt.Errorf("report: %v", r.state)
		}
	case tagLoad:
		r.load = balancing.Load(binary.BigEndian.Uint32(v)) / 100
	case tagAddress:
		return hostAddress(&r.address, v)
	case tagInternal:
		return hostAddress(&r.internal, v)
	case tagCapacity:
		r.capacity = float64(binary.BigEndian.Uint32(v)) / 1000
	case tagDebit:
		r.debit = balancing.Load(binary.BigEndian.Uint32(v)) / 100
	case tagShed:
		r.shed = balancing.Load(binary.BigEndian.Uint32(v)) / 100
	case tagUnable:
		if len(v) == 0 || len(v)%4 != 0 || len(v)/4 > balancing.MaxUnable {
			return errors.New("report: not a list of routes")
		}
		for ; len(v) > 0; v = v[4:] {
			r.unable = append(r.unable, balancing.RouteID(binary.BigEndian.Uint32(v)))
		}
	case tagVersion:
		if len(v) == 0 || len(v) > balancing.MaxVersion || !utf8.Valid(v) {
			return errors.New("report: not the name of a version")
		}
		r.version = string(v)
	case tagSettings:
		s, err := parseSettings(v)
		r.settings = s
		return err
	case tagAsk:
		r.ask = true
	case tagHeld4:
		return r.hold(v, 4)
	case tagHeld6:
		return r.hold(v, 16)
	case tagDeaf:
		r.deaf = true
	}
	return nil
}

var fixedLength = map[byte]int{
	tagIncarnation: 8, tagSequence: 8, tagSent: 8, tagPeriod: 4, tagState: 1, tagLoad: 4, tagDeaf: 0,
	tagCapacity: 4, tagDebit: 4, tagShed: 4, tagSettings: settingsLength, tagAsk: 0,
}

func hostAddress(to *netip.Addr, v []byte) error {
	a, ok := netip.AddrFromSlice(v)
	if !ok || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
		return errors.New("report: not a host address")
	}
	*to = a
	return nil
}

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
