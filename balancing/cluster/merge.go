package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// summaryItem is how many octets of an item's hash go into a summary. Two items that share
// them would be taken for the same, until one changes: with 10,000 items once in 10^11.
const summaryItem = 8

// summary tells a peer what this table holds, so that it need not send that.
func (t *Table) summary() []byte {
	var b []byte
	t.read(func(time.Time) {
		b = make([]byte, 0, summaryItem*len(t.items))
		for _, e := range t.items {
			b = binary.BigEndian.AppendUint64(b, e.hash[0])
		}
	})
	return b
}

// since returns the items that a summary lacks, as [Table.Snapshot] does.
func (t *Table) since(summary []byte) [][]byte {
	has := make(map[uint64]struct{}, len(summary)/summaryItem)
	for b := summary; len(b) >= summaryItem; b = b[summaryItem:] {
		has[binary.BigEndian.Uint64(b)] = struct{}{}
	}
	var all []*entry
	t.read(func(time.Time) {
		all = make([]*entry, 0, max(0, len(t.items)-len(has)))
		for _, e := range t.items {
			if _, ok := has[e.hash[0]]; !ok {
				all = append(all, e)
			}
		}
	})
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.Key, b.Key) })
	return partsOf(all)
}

// Merge takes a part from a peer. News is a part with what was new here, durable by now;
// nil for nothing. A part that is not understood changes nothing. Items that are refused
// ([ErrClock], [ErrFull], [ErrContent]) are counted, and do not keep the others out: then
// there are news and an error.
func (t *Table) Merge(part []byte) (news []byte, err error) {
	items, err := parsePart(part)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", t.c.Name, err)
	}
	t.write.Lock()
	defer t.write.Unlock()
	accepted, refused := t.accept(items)
	if len(accepted) == 0 {
		return nil, refused
	}
	if err := t.commit(accepted); err != nil {
		return nil, errors.Join(err, refused)
	}
	news = []byte{partVersion}
	for _, e := range accepted {
		news = e.append(news)
	}
	return news, refused
}

// accept returns what of items is new, and why some were refused. t.write is held.
func (t *Table) accept(items []Item) (accepted []*entry, refused error) {
	ahead := horizon()
	vetted := items[:0]
	var why [3]bool
	refuse := func(reason int) {
		t.refused[reason].Add(1)
		why[reason] = true
	}
	// Before the lock: Check may verify signatures. Whatever is here already was vetted.
	for _, i := range items {
		switch {
		case !t.wants(&i):
		case i.Stamp > ahead:
			refuse(0)
		case len(i.Value) > t.c.MaxValue:
			refuse(1)
		case !i.Deleted && t.c.Check != nil && t.c.Check(i.Key, i.Value) != nil:
			refuse(2)
		default:
			vetted = append(vetted, i)
		}
	}
	t.read(func(now time.Time) {
		room := t.room()
		within := map[string]int{} // places in accepted
		for _, i := range vetted {
			i, ok := i.at(now, t.c.TombstoneLife)
			if !ok {
				continue
			}
			old := t.items[i.Key]
			place, again := within[i.Key]
			if again {
				old = accepted[place]
			}
			if old != nil && i.compare(&old.Item) <= 0 {
				continue
			}
			i.Value = bytes.Clone(i.Value)
			e := newEntry(i)
			switch {
			case !room.take(e, old):
				refuse(1)
				continue
			case again:
				accepted[place] = e
			default:
				within[i.Key] = len(accepted)
				accepted = append(accepted, e)
			}
			_ = t.store.clock.Observe(i.Stamp) // it is not ahead
		}
	})
	var errs []error
	for reason, err := range []error{ErrClock, ErrFull, ErrContent} {
		if why[reason] {
			errs = append(errs, fmt.Errorf("table %s: %w", t.c.Name, err))
		}
	}
	return accepted, errors.Join(errs...)
}

// wants reports whether an item would be new here.
func (t *Table) wants(i *Item) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	old := t.items[i.Key]
	return old == nil || i.compare(&old.Item) > 0
}

// reset puts the state of a peer in the place of what is here, in one transaction. What
// this node has written itself after keep stays, for it may be known to nobody else.
func (t *Table) reset(parts [][]byte, keep time.Time) error {
	t.write.Lock()
	defer t.write.Unlock()
	fresh := &Table{c: t.c, self: t.self, store: t.store, items: map[string]*entry{}, gone: map[string]struct{}{}}
	for _, part := range parts {
		items, err := parsePart(part)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.c.Name, err)
		}
		// What is refused stays out, as in Merge.
		accepted, _ := fresh.accept(items)
		for _, e := range accepted {
			fresh.set(e)
		}
	}
	t.read(func(time.Time) {
		for _, e := range t.items {
			if old := fresh.items[e.Key]; e.Node == t.self && e.Stamp > StampOf(keep) && (old == nil || e.compare(&old.Item) > 0) {
				fresh.set(e)
			}
		}
	})
	err := t.store.update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(t.bucket); err != nil && !errors.Is(err, bbolterrors.ErrBucketNotFound) {
			return err
		}
		b, err := tx.CreateBucket(t.bucket)
		if err != nil {
			return err
		}
		for _, e := range fresh.items {
			if err := b.Put([]byte(e.Key), record(&e.Item)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write table %s: %w", t.c.Name, err)
	}
	t.mu.Lock()
	t.items, t.sum, t.bytes, t.next, t.gone = fresh.items, fresh.sum, fresh.bytes, fresh.next, fresh.gone
	t.mu.Unlock()
	t.signal()
	return nil
}
