package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// DefaultTombstoneLife is how long deleted things are remembered. A node that was away
// for longer must not teach, for it may still have them.
const DefaultTombstoneLife = 90 * 24 * time.Hour

// MaxValue is the most that [TableConfig.MaxValue] can be: a message holds it.
const MaxValue = 16 << 20

var (
	// ErrFull is that an item does not fit into its table.
	ErrFull = errors.New("table is full")

	// ErrContent is that the content of an item from a peer was refused.
	ErrContent = errors.New("content refused")
)

// TableConfig says what a table holds.
type TableConfig struct {
	Name          string        // printable ASCII, at most [MaxNode] octets
	MaxItems      int           // live and dead; default 10,000
	MaxValue      int           // octets of a value; default 1 MiB, at most [MaxValue]
	MaxBytes      int           // of all values; default 64 MiB
	TombstoneLife time.Duration // default [DefaultTombstoneLife]

	// Check vets content, of peers and of this node alike; nil takes all. It must be a
	// function of its arguments and of what never changes: else two nodes would hold
	// different things for good. Its error must tell nothing of the content.
	Check func(key string, value []byte) error
}

// Table is a replicated map, of which the latest write of each key counts. It is a
// [Document], and safe for concurrent use.
type Table struct {
	c      TableConfig
	self   string
	store  *Store
	bucket []byte

	write sync.Mutex // held by who changes the table, over the transaction

	mu       sync.RWMutex // guards what follows; never held over I/O
	items    map[string]*entry
	sum      hash
	bytes    int
	next     time.Time           // when an item changes by itself; zero for never
	gone     map[string]struct{} // keys that are still in the file
	watchers []chan struct{}
	hook     func(parts [][]byte) // told of own changes; must not block

	refused [3]atomic.Uint64 // clock, full, content
}

// Table returns the table of that name, as it is in the file. Self is this node's name,
// which goes into what it writes. A table can be had once.
func (s *Store) Table(self string, c TableConfig) (*Table, error) {
	c.MaxItems = or(c.MaxItems, 10_000)
	c.MaxValue = or(c.MaxValue, 1<<20)
	c.MaxBytes = or(c.MaxBytes, 64<<20)
	c.TombstoneLife = or(c.TombstoneLife, DefaultTombstoneLife)
	switch {
	case !validNode(c.Name):
		return nil, fmt.Errorf("table: name is not 1 to %d octets of printable ASCII without space", MaxNode)
	case !validNode(self):
		return nil, fmt.Errorf("table %s: the node's name is not 1 to %d octets of printable ASCII without space", c.Name, MaxNode)
	case c.MaxItems < 0, c.MaxBytes < 0, c.TombstoneLife < 0, c.MaxValue < 0, c.MaxValue > MaxValue:
		return nil, fmt.Errorf("table %s: bounds out of range", c.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tables[c.Name] != nil {
		return nil, fmt.Errorf("table %s: opened twice", c.Name)
	}
	t := &Table{c: c, self: self, store: s, bucket: []byte(tablePrefix + c.Name), items: map[string]*entry{}, gone: map[string]struct{}{}}
	if err := guarded(t.load); err != nil {
		return nil, fmt.Errorf("table %s: %w", c.Name, err)
	}
	s.tables[c.Name] = t
	return t, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (t *Table) load() error {
	if t.store.db == nil {
		return nil
	}
	now := time.Now()
	return t.store.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(t.bucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(_, v []byte) error {
			i, err := parseRecord(v)
			if err != nil {
				return err
			}
			// Check is for what is new: what it refuses since an update stays until it is dropped.
			if i, ok := i.at(now, t.c.TombstoneLife); ok {
				i.Value = bytes.Clone(i.Value)
				t.set(newEntry(i))
			} else {
				t.gone[i.Key] = struct{}{}
			}
			return nil
		})
	})
}

// Name of the table.
func (t *Table) Name() string { return t.c.Name }

// set puts an entry in the place of the one of its key. t.mu is held.
func (t *Table) set(e *entry) {
	t.unset(e.Key)
	delete(t.gone, e.Key)
	t.items[e.Key] = e
	t.sum.add(e.hash)
	t.bytes += e.size()
	if due := e.due(t.c.TombstoneLife); !due.IsZero() && (t.next.IsZero() || due.Before(t.next)) {
		t.next = due
	}
}

// unset forgets a key. t.mu is held.
func (t *Table) unset(key string) {
	if e := t.items[key]; e != nil {
		delete(t.items, key)
		t.sum.remove(e.hash)
		t.bytes -= e.size()
	}
}

// sweep lets expire what is over. t.mu is held.
func (t *Table) sweep(now time.Time) {
	if t.next.IsZero() || now.Before(t.next) {
		return
	}
	old := t.items
	t.items, t.sum, t.bytes, t.next = make(map[string]*entry, len(old)), hash{}, 0, time.Time{}
	for key, e := range old {
		i, ok := e.at(now, t.c.TombstoneLife)
		switch {
		case !ok:
			t.gone[key] = struct{}{}
			continue
		case i.Deleted != e.Deleted:
			e = newEntry(i)
		}
		t.set(e)
	}
}

// read calls f with a table that is as of now, and at least read-locked.
func (t *Table) read(f func(now time.Time)) {
	now := time.Now()
	t.mu.RLock()
	if t.next.IsZero() || now.Before(t.next) {
		defer t.mu.RUnlock()
		f(now)
		return
	}
	t.mu.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	f(now)
}

// Get returns the item of a key if it is there and live. The value must not be changed.
func (t *Table) Get(key string) (i Item, ok bool) {
	t.read(func(time.Time) {
		if e := t.items[key]; e != nil && !e.Deleted {
			i, ok = e.Item, true
		}
	})
	return i, ok
}

// Items returns the live items whose keys begin with prefix, sorted by key. The values
// must not be changed.
func (t *Table) Items(prefix string) []Item {
	var all []Item
	t.read(func(time.Time) {
		for key, e := range t.items {
			if !e.Deleted && strings.HasPrefix(key, prefix) {
				all = append(all, e.Item)
			}
		}
	})
	slices.SortFunc(all, func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// Put sets the value of a key, until it expires, or for good if expires is zero. It is on
// the disk when Put returns, and then told to the peers. An error tells nothing of key or
// value, and means that nothing has changed.
func (t *Table) Put(key string, value []byte, expires time.Time) error {
	return t.change([]Item{{Key: key, Value: value, Expires: expires}})
}

// PutAll is [Table.Put] of several items without expiry, all or none.
func (t *Table) PutAll(items map[string][]byte) error {
	all := make([]Item, 0, len(items))
	for _, key := range slices.Sorted(maps.Keys(items)) {
		all = append(all, Item{Key: key, Value: items[key]})
	}
	return t.change(all)
}

// Delete deletes a key, and remembers for [TableConfig.TombstoneLife] that it did. What is
// not there can be deleted too: a peer may have it.
func (t *Table) Delete(key string) error {
	return t.change([]Item{{Key: key, Deleted: true}})
}

// change stamps items of this node, makes them durable, and tells them.
func (t *Table) change(items []Item) error {
	for n := range items {
		i := &items[n]
		switch err := checkKeys(t.c.Name, i.Key); {
		case err != nil:
			return err
		case len(i.Value) > t.c.MaxValue:
			return fmt.Errorf("table %s: value of %d octets, at most %d are allowed", t.c.Name, len(i.Value), t.c.MaxValue)
		case !i.Expires.IsZero() && uint64(i.Expires.UnixMilli()) > maxMillis:
			return fmt.Errorf("table %s: expiry out of range", t.c.Name)
		}
		if !i.Deleted && t.c.Check != nil {
			if err := t.c.Check(i.Key, i.Value); err != nil {
				return fmt.Errorf("table %s: %w", t.c.Name, err)
			}
		}
		i.Node, i.Value = t.self, bytes.Clone(i.Value)
		if !i.Expires.IsZero() {
			i.Expires = time.UnixMilli(i.Expires.UnixMilli())
		}
	}
	t.write.Lock()
	defer t.write.Unlock()
	// While the lock is held, so that stamps come in the order of the writes.
	if err := t.store.clock.check(); err != nil {
		return fmt.Errorf("table %s: %w", t.c.Name, err)
	}
	news := make([]*entry, 0, len(items))
	var err error
	t.read(func(time.Time) {
		room := t.room()
		for _, i := range items {
			old := t.items[i.Key]
			if old != nil {
				// A peer's stamp may be ahead of our wall clock, but never of our clock.
				i.buried = !i.Expires.IsZero() && (old.Deleted || old.buried || old.Expires.IsZero() || old.Expires.After(i.Expires))
			}
			i.Stamp = t.store.clock.Now()
			e := newEntry(i)
			if !room.take(e, old) {
				err = fmt.Errorf("table %s: %w (%d items of %d, %d octets of %d)", t.c.Name, ErrFull, len(t.items), t.c.MaxItems, t.bytes, t.c.MaxBytes)
				return
			}
			news = append(news, e)
		}
	})
	if err != nil || len(news) == 0 {
		return err
	}
	if err := t.commit(news); err != nil {
		return err
	}
	t.mu.RLock()
	hook := t.hook
	t.mu.RUnlock()
	if hook != nil {
		hook(partsOf(news))
	}
	return nil
}

// room is what still fits into a table.
type room struct{ items, octets int }

func (t *Table) room() room { return room{t.c.MaxItems - len(t.items), t.c.MaxBytes - t.bytes} }

func (r *room) take(e, old *entry) bool {
	items, octets := 1, e.size()
	if old != nil {
		items, octets = 0, octets-old.size()
	}
	if items > max(0, r.items) || octets > max(0, r.octets) {
		return false
	}
	r.items -= items
	r.octets -= octets
	return true
}

// commit makes entries durable and then visible. t.write is held.
func (t *Table) commit(news []*entry) error {
	t.mu.RLock()
	gone := slices.Collect(maps.Keys(t.gone))
	t.mu.RUnlock()
	err := t.store.update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(t.bucket)
		if err != nil {
			return err
		}
		for _, key := range gone {
			if err := b.Delete([]byte(key)); err != nil {
				return err
			}
		}
		for _, e := range news {
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
	for _, key := range gone {
		if t.items[key] == nil {
			delete(t.gone, key)
		}
	}
	for _, e := range news {
		t.set(e)
	}
	t.mu.Unlock()
	t.signal()
	return nil
}

// Drop forgets keys on this node only, without a tombstone: a peer brings them back unless
// Check refuses them from then on.
func (t *Table) Drop(keys ...string) error {
	t.write.Lock()
	defer t.write.Unlock()
	t.mu.RLock()
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return t.items[key] == nil })
	t.mu.RUnlock()
	if len(keys) == 0 {
		return nil
	}
	err := t.store.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(t.bucket)
		for _, key := range keys {
			if b == nil {
				break
			}
			if err := b.Delete([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write table %s: %w", t.c.Name, err)
	}
	t.mu.Lock()
	for _, key := range keys {
		t.unset(key)
	}
	t.mu.Unlock()
	t.signal()
	return nil
}

// Watch returns a new channel that gets a value after each change, of this node or of a
// peer. Several changes may be told by one value. It is for one reader, and is never closed.
func (t *Table) Watch() <-chan struct{} {
	w := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers = append(t.watchers, w)
	return w
}

func (t *Table) signal() {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, w := range t.watchers {
		signal(w)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // there is one waiting
	}
}

// follow has f told of this node's own changes from now on.
func (t *Table) follow(f func(parts [][]byte)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hook = f
}

// Encode returns a part with the items of the keys, live or dead, for [Member.Push].
func (t *Table) Encode(keys ...string) []byte {
	part := []byte{partVersion}
	t.read(func(time.Time) {
		for _, key := range keys {
			if e := t.items[key]; e != nil {
				part = e.append(part)
			}
		}
	})
	return part
}

// Digest is equal on two nodes if, and but for a chance of 2^-128 only if, their tables are
// equal: live items and tombstones.
func (t *Table) Digest() (d [32]byte) {
	t.read(func(time.Time) {
		for i, lane := range t.sum {
			binary.BigEndian.PutUint64(d[8*i:], lane)
		}
	})
	return d
}

// Snapshot returns all items, live and dead, in parts of at most [MaxPart] or of one item.
func (t *Table) Snapshot() [][]byte { return t.since(nil) }
