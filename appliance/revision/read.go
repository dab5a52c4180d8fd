package revision

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// reader turns items into a history. It keeps what it has parsed: a change of the table is
// one value of a thousand.
type reader struct {
	name   string
	parsed map[string]parsedItem
	heard  map[ID]time.Time // see entry; nil before the first read
}

type parsedItem struct {
	value []byte
	id    ID     // "" of a key that is not known
	rest  string // of the key
	as    any    // *record, *phase or *word; nil if it is not understood
}

func newReader(name string) *reader { return &reader{name: name, parsed: map[string]parsedItem{}} }

func (r *reader) read(items []cluster.Item) *history {
	h := &history{name: r.name, entries: map[ID]*entry{}, keys: map[ID][]string{}, newest: map[ID]cluster.Stamp{}}
	next := make(map[string]parsedItem, len(items))
	for _, i := range items {
		p, ok := r.parsed[i.Key]
		if !ok || !bytes.Equal(p.value, i.Value) {
			p = parseItem(i.Key, i.Value)
		}
		next[i.Key] = p
		h.newest[p.id] = max(h.newest[p.id], i.Stamp)
		if rec, ok := p.as.(*record); ok {
			h.entries[p.id] = &entry{record: rec, id: p.id, size: len(i.Value), phases: map[string]*phase{}, words: map[balancing.NodeID]*word{}}
		}
	}
	r.parsed = next
	for key, p := range next {
		if p.id == "" {
			continue
		}
		h.keys[p.id] = append(h.keys[p.id], key)
		e := h.entries[p.id]
		if e == nil {
			continue
		}
		switch v := p.as.(type) {
		case *phase:
			e.phases[p.rest] = v
		case *word:
			e.words[balancing.NodeID(p.rest)] = v
		}
	}
	r.hear(h)
	h.link()
	return h
}

// hear notes which revisions have come into force since the last read.
func (r *reader) hear(h *history) {
	heard, now := map[ID]time.Time{}, time.Now()
	for id, e := range h.entries {
		if !e.has(phaseAll) {
			continue
		}
		at, known := r.heard[id]
		if !known && r.heard != nil {
			at = now
		}
		heard[id], e.heard = at, at
	}
	r.heard = heard
}

// link finds out what each revision came from, the first of them first.
func (h *history) link() {
	for _, e := range h.entries {
		e.parent = h.entries[e.Parent]
	}
	for _, e := range slices.SortedFunc(maps.Values(h.entries), func(a, b *entry) int { return cmp.Compare(a.Number, b.Number) }) {
		switch {
		case e.parent == nil:
			e.kept = e.Number
		case e.isRollBack():
			e.kept = e.parent.parent.kept
		default:
			e.kept = e.parent.kept + 1
		}
	}
}

// parseItem reads an item, as far as it is understood.
func parseItem(key string, value []byte) parsedItem {
	kind, id, rest, err := splitKey(key)
	if err != nil {
		return parsedItem{value: value}
	}
	p := parsedItem{value: value, id: id, rest: rest}
	switch kind {
	case revPrefix:
		if r, err := parseRecord(id, value); err == nil {
			r.digest()
			p.as = r
		}
	case phasePrefix:
		if v, err := parse[phase](key, value); err == nil {
			p.as = v
		}
	case nodePrefix:
		if v, err := parse[word](key, value); err == nil {
			p.as = v
		}
	}
	return p
}
