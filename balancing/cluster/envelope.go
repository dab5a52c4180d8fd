package cluster

import (
	"encoding/binary"
	"errors"
	"time"
)

// A message is an envelope: version 1, kind 1, name of the sender, and what the kind says.
// Names are a uvarint length and octets. What follows the end of a kind of known length is
// ignored, so that a later version can add to it; unknown versions and kinds are counted and
// ignored.
const envelopeVersion = 1

type kind byte

const (
	kindChange   kind = iota + 1 // document, part: what is new
	kindPush                     // number 8, document, part: the same, to be answered
	kindAck                      // number 8, octet: 1 if all of it is durable, 0 if not
	kindState                    // flags, level, ms since 1970 8, uvarint count, count of: document, digest 32
	kindWant                     // number 8, document, flags, summary: what the sender has, to be answered with parts and done
	kindPart                     // number 8 of the want, document, part
	kindDone                     // number 8 of the want, document, uvarint count of parts; may come before some of them
	kindFarewell                 // the sender leaves
)

const (
	flagAsk   = 1 << 0 // state: answer with yours
	flagBlank = 1 << 1 // state: has never agreed with a peer

	flagWhole = 1 << 0 // want: all, regardless of the summary
)

// message is what an envelope holds, according to its kind. Body is part of what was parsed.
type message struct {
	kind   kind
	from   string
	doc    string
	number uint64 // of a push or a want, and of the answers to it
	count  uint64 // of the parts in the answer to a want
	flags  byte   // of state and want; 1 in an ack that agrees
	level  level
	sent   time.Time
	states []digest
	body   []byte // a part, or a summary
}

type digest struct {
	doc string
	sum [32]byte
}

var (
	errEnvelope = errors.New("message not understood")
	errVersion  = errors.New("message of an unknown version or kind")
)

// envelope begins a message of this node.
func envelope(k kind, from string) []byte {
	return appendBlock([]byte{envelopeVersion, byte(k)}, from)
}

func changeOf(from, doc string) []byte { return appendBlock(envelope(kindChange, from), doc) }

func numbered(k kind, from string, number uint64, doc string) []byte {
	return appendBlock(binary.BigEndian.AppendUint64(envelope(k, from), number), doc)
}

func pushOf(from string, number uint64, doc string) []byte {
	return numbered(kindPush, from, number, doc)
}

func ackOf(from string, push uint64, durable bool) []byte {
	return append(binary.BigEndian.AppendUint64(envelope(kindAck, from), push), byte(number(durable)))
}

func stateOf(from string, flags byte, l level, sent time.Time, states []digest) []byte {
	b := append(envelope(kindState, from), flags, byte(l))
	b = binary.BigEndian.AppendUint64(b, uint64(sent.UnixMilli()))
	b = binary.AppendUvarint(b, uint64(len(states)))
	for _, d := range states {
		b = append(appendBlock(b, d.doc), d.sum[:]...)
	}
	return b
}

func wantOf(from string, number uint64, doc string, flags byte) []byte {
	return append(numbered(kindWant, from, number, doc), flags)
}

func partOf(from string, number uint64, doc string) []byte {
	return numbered(kindPart, from, number, doc)
}

func doneOf(from string, number uint64, doc string, parts int) []byte {
	return binary.AppendUvarint(numbered(kindDone, from, number, doc), uint64(parts))
}

func farewellTo(from string) []byte { return envelope(kindFarewell, from) }

// parse reads a message.
func parse(b []byte) (m message, err error) {
	if len(b) < 2 {
		return m, errEnvelope
	}
	if b[0] != envelopeVersion || b[1] == 0 || kind(b[1]) > kindFarewell {
		return m, errVersion
	}
	r := reader{b: b[2:]}
	m.kind, m.from = kind(b[1]), r.name()
	switch m.kind {
	case kindChange:
		m.doc, m.body = r.name(), r.rest()
	case kindPush, kindPart:
		m.number, m.doc, m.body = r.uint64(), r.name(), r.rest()
	case kindAck:
		m.number, m.flags = r.uint64(), r.octet()
	case kindState:
		r.state(&m)
	case kindWant:
		m.number, m.doc, m.flags, m.body = r.uint64(), r.name(), r.octet(), r.rest()
	case kindDone:
		m.number, m.doc, m.count = r.uint64(), r.name(), r.uvarint()
	}
	if r.bad {
		return message{}, errEnvelope
	}
	return m, nil
}

// reader takes a message apart. After it has come to a bad end it reads nothing but zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) rest() []byte { return r.take(uint64(len(r.b))) }

func (r *reader) octet() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	n, w := binary.Uvarint(r.b)
	if w <= 0 {
		r.bad = true
		return 0
	}
	r.take(uint64(w))
	return n
}

func (r *reader) name() string {
	s := string(r.take(r.uvarint()))
	r.bad = r.bad || !validNode(s)
	return s
}

func (r *reader) state(m *message) {
	m.flags, m.level = r.octet(), level(r.octet())
	ms := r.uint64()
	r.bad = r.bad || ms > maxMillis
	m.sent = time.UnixMilli(int64(min(ms, maxMillis)))
	n := r.uvarint()
	r.bad = r.bad || n > 4*MaxDocuments
	for range n {
		if r.bad {
			return
		}
		d := digest{doc: r.name()}
		copy(d.sum[:], r.take(32))
		m.states = append(m.states, d)
	}
}
