package cluster

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Bounds of an item.
const (
	MaxKey  = 200 // octets of a key
	MaxNode = 64  // octets of the name of the node that wrote it

	// MaxPart is how large a part of a state is, in octets, unless one item needs more.
	MaxPart = 256 << 10
)

// Item is one entry of a [Table].
type Item struct {
	Key     string // 1 to [MaxKey] octets of printable ASCII without space
	Stamp   Stamp
	Node    string    // that wrote it
	Value   []byte    // opaque; must not be changed
	Deleted bool      // a tombstone, without a value
	Expires time.Time // to the millisecond; zero: never

	// buried means that an earlier item of this key would outlast this one. When it
	// expires it becomes a tombstone, lest a node that was away brings the other back.
	buried bool
}

// compare orders the items of one key. The greatest is the one that counts; the order is
// total, so all nodes agree whatever they hear first.
func (i *Item) compare(o *Item) int {
	if c := cmp.Or(cmp.Compare(i.Stamp, o.Stamp), strings.Compare(i.Node, o.Node)); c != 0 {
		return c
	}
	if i.Deleted != o.Deleted {
		return cmp.Compare(number(i.Deleted), number(o.Deleted))
	}
	return cmp.Or(bytes.Compare(i.Value, o.Value), i.Expires.Compare(o.Expires), cmp.Compare(number(i.buried), number(o.buried)))
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// at returns the item as it is at now, for a table whose tombstones last for life; false
// if it is gone.
func (i Item) at(now time.Time, life time.Duration) (Item, bool) {
	if !i.Deleted && !i.Expires.IsZero() && !now.Before(i.Expires) {
		if !i.buried {
			return i, false
		}
		i = Item{Key: i.Key, Stamp: i.Stamp, Node: i.Node, Deleted: true}
	}
	return i, !i.Deleted || now.Before(i.Stamp.Time().Add(life))
}

// due returns when the item changes by itself; zero for never.
func (i *Item) due(life time.Duration) time.Time {
	if i.Deleted {
		return i.Stamp.Time().Add(life)
	}
	return i.Expires
}

// size is what counts against [TableConfig.MaxBytes].
func (i *Item) size() int { return len(i.Value) }

// A part is a version octet and items. An item is
//
//	flags 1, stamp 8, [expires 8: ms since 1970], key, node, value
//
// with the last three as a uvarint length and octets.
const (
	partVersion = 1

	flagDeleted = 1 << 0
	flagExpires = 1 << 1
	flagBuried  = 1 << 2
	flagsKnown  = flagDeleted | flagExpires | flagBuried
)

func (i *Item) append(b []byte) []byte {
	var flags byte
	if i.Deleted {
		flags |= flagDeleted
	}
	if !i.Expires.IsZero() {
		flags |= flagExpires
	}
	if i.buried {
		flags |= flagBuried
	}
	b = binary.BigEndian.AppendUint64(append(b, flags), uint64(i.Stamp))
	if flags&flagExpires != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(i.Expires.UnixMilli()))
	}
	b = appendBlock(b, i.Key)
	b = appendBlock(b, i.Node)
	return appendBlock(b, i.Value)
}

func appendBlock[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errPart = errors.New("part of a document not understood")

// cutItem reads one item. Its value is part of b.
func cutItem(b []byte) (i Item, rest []byte, err error) {
	if len(b) < 9 {
		return Item{}, nil, errPart
	}
	flags := b[0]
	i.Stamp = Stamp(binary.BigEndian.Uint64(b[1:]))
	i.Deleted, i.buried = flags&flagDeleted != 0, flags&flagBuried != 0
	b = b[9:]
	if flags&flagExpires != 0 {
		if len(b) < 8 {
			return Item{}, nil, errPart
		}
		ms := binary.BigEndian.Uint64(b)
		if ms > maxMillis {
			return Item{}, nil, errPart
		}
		i.Expires = time.UnixMilli(int64(ms))
		b = b[8:]
	}
	var key, node []byte
	for _, to := range []*[]byte{&key, &node, &i.Value} {
		if *to, b, err = cutBlock(b); err != nil {
			return Item{}, nil, err
		}
	}
	i.Key, i.Node = string(key), string(node)
	switch {
	case flags&^flagsKnown != 0, !ValidKey(i.Key), !validNode(i.Node), uint64(i.Stamp>>counterBits) > maxMillis,
		i.Deleted && (len(i.Value) > 0 || flags != flagDeleted), i.buried && i.Expires.IsZero():
		return Item{}, nil, errPart
	}
	return i, b, nil
}

// maxMillis is the year 9999, the last that a time can be printed of.
const maxMillis = 253402300799999

// cutBlock reads what [appendBlock] wrote.
func cutBlock(b []byte) (block, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, errPart
	}
	end := w + int(n)
	return b[w:end:end], b[end:], nil
}

// parsePart reads all items of a part, or none.
func parsePart(part []byte) ([]Item, error) {
	if len(part) == 0 || part[0] != partVersion {
		return nil, errPart
	}
	var items []Item
	for b := part[1:]; len(b) > 0; {
		i, rest, err := cutItem(b)
		if err != nil {
			return nil, err
		}
		items, b = append(items, i), rest
	}
	return items, nil
}

// partsOf encodes items as parts of at most [MaxPart], or of one item.
func partsOf(items []*entry) [][]byte {
	var parts [][]byte
	part := []byte{partVersion}
	for _, e := range items {
		n := len(part)
		part = e.append(part)
		if len(part) > MaxPart && n > 1 {
			next := append([]byte{partVersion}, part[n:]...)
			parts, part = append(parts, part[:n:n]), next
		}
	}
	if len(part) > 1 {
		parts = append(parts, part)
	}
	return parts
}

// ValidKey reports whether key can be that of an item.
func ValidKey(key string) bool { return printable(key, MaxKey) }

func validNode(name string) bool { return printable(name, MaxNode) }

func printable(s string, most int) bool {
	if len(s) == 0 || len(s) > most {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// hash of an item, and the sum of the hashes of a table, which does not depend on their
// order and can be kept up to date item by item. It is no defence against a peer that
// wants to be believed equal: who holds the gossip key can do worse.
type hash [4]uint64

func hashOf(encoded []byte) (h hash) {
	sum := sha256.Sum256(encoded)
	for i := range h {
		h[i] = binary.BigEndian.Uint64(sum[8*i:])
	}
	return h
}

func (h *hash) add(o hash) {
	for i := range h {
		h[i] += o[i]
	}
}

func (h *hash) remove(o hash) {
	for i := range h {
		h[i] -= o[i]
	}
}

// entry is an item in a table, with what was worked out of it. It is immutable.
type entry struct {
	Item
	hash hash
}

func newEntry(i Item) *entry {
	return &entry{i, hashOf(i.append(make([]byte, 0, 64+len(i.Key)+len(i.Value))))}
}

// checkKeys tells of the first key that is none. The key itself is not told.
func checkKeys(table string, keys ...string) error {
	for n, k := range keys {
		if !ValidKey(k) {
			return fmt.Errorf("table %s: key %d of %d is not 1 to %d octets of printable ASCII without space", table, n+1, len(keys), MaxKey)
		}
	}
	return nil
}
