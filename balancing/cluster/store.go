package cluster

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Store keeps tables in a file, or in memory only. It is safe for concurrent use.
//
// Whatever a method has returned without an error for is on the disk: the process may be
// killed, or the power fail, at any instant.
type Store struct {
	db    *bbolt.DB // nil: memory only
	clock *Clock
	aside string // where the damaged file is that this one has replaced; "" for none

	mu     sync.Mutex
	tables map[string]*Table
	seen   time.Time // when this node last agreed with a peer; zero for never
	ran    time.Time // when it was last known to run
}

var (
	metaBucket = []byte("meta")
	clockKey   = []byte("clock")
	seenKey    = []byte("seen")
	ranKey     = []byte("ran")
)

// tablePrefix before the name of a table is its bucket.
const tablePrefix = "table/"

// damagedSuffix is added to the name of a file that is put aside.
const damagedSuffix = ".damaged"

// OpenStore opens the file at path (mode 0600), which it makes if there is none, or a
// store in memory if path is "". A file that is damaged, truncated, or none of ours is put
// aside, in the place of one that was before, and an empty one made: the peers have what it
// held. [Member.Run] says so in the log. A file that another process has open is an error,
// and so is one of a later version.
func OpenStore(path string) (*Store, error) {
	if path == "" {
		return newStore(), nil
	}
	s := newStore()
	err := s.open(path)
	if errors.Is(err, errDamaged) {
		s = newStore() // it may have read half of it
		if err = putAside(path); err == nil {
			err = s.open(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func newStore() *Store { return &Store{clock: NewClock(0), tables: map[string]*Table{}} }

// putAside does nothing if that was done already.
func putAside(path string) error {
	if err := os.Rename(path, path+damagedSuffix); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Store) open(path string) error {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(path + damagedSuffix); err == nil {
			s.aside = path + damagedSuffix
		}
		err = create(path)
	}
	if err != nil {
		return err
	}
	if err := checkFile(path); err != nil {
		return err
	}
	var file *os.File
	err = guarded(func() error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoStatistics: true,
			OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
				file, err = os.OpenFile(name, flag, mode)
				return file, err
			},
		})
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return errors.New("another process has it open")
		}
		if err != nil {
			return err
		}
		err = db.View(func(tx *bbolt.Tx) error {
			meta := tx.Bucket(metaBucket)
			if meta == nil {
				return errDamaged
			}
			read := func(key []byte) uint64 {
				if b := meta.Get(key); len(b) == 8 {
					return binary.BigEndian.Uint64(b)
				}
				return 0
			}
			s.clock = NewClock(Stamp(read(clockKey)))
			s.seen, s.ran = fromMillis(read(seenKey)), fromMillis(read(ranKey))
			return checkRecords(tx)
		})
		if err != nil {
			return errors.Join(err, db.Close())
		}
		s.db = db
		return nil
	})
	if err != nil && file != nil {
		// After a panic bbolt has not, and its mapping, which stays, holds on to the lock.
		_ = errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
	}
	return err
}

func fromMillis(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

// create makes an empty file that is there as a whole or not at all. So a file that is
// too short was cut, and was not just being made when the power failed.
func create(path string) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(temp, 0o600, &bbolt.Options{Timeout: time.Second, NoStatistics: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(metaBucket)
		return err
	})
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

var (
	errDamaged = errors.New("damaged: when the node starts anew it puts the file aside, and fetches everything from its peers")
	errLater   = errors.New("written by a later version of Peerage: update this node")
)

// checkRecords reads all tables, so that damage is found before any is in use.
func checkRecords(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if !bytes.HasPrefix(name, []byte(tablePrefix)) {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			i, err := parseRecord(v)
			if err == nil && i.Key != string(k) {
				err = errDamaged
			}
			if errors.Is(err, errLater) {
				return nil // for who uses that table
			}
			return err
		})
	})
}

// checkFile looks whether the file is as long as it says. bbolt maps it into memory, and a
// process that reads beyond the end of a mapped file is killed.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	valid := false
	// The second page of meta data is where the page size of the machine that made the file
	// puts it.
	for _, at := range []int64{0, 4 << 10, 8 << 10, 16 << 10, 64 << 10} {
		pages, pageSize, ok := readMeta(f, at)
		if !ok {
			continue
		}
		valid = true
		if pages > uint64(info.Size())/pageSize {
			return errDamaged
		}
	}
	if !valid {
		return errDamaged
	}
	return nil
}

// readMeta reads the meta data of bbolt (its internal/common/meta.go) at an offset: how
// many pages there are, and of what size.
func readMeta(f *os.File, at int64) (pages, pageSize uint64, ok bool) {
	const header, length = 16, 64
	var b [header + length]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return 0, 0, false
	}
	m := b[header:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	e := binary.NativeEndian
	if e.Uint32(m) != 0xED0CDAED || e.Uint64(m[56:]) != sum.Sum64() {
		return 0, 0, false
	}
	pageSize = uint64(e.Uint32(m[8:]))
	return e.Uint64(m[40:]), pageSize, pageSize > 0
}

// guarded calls f, and makes an error of the panic that reading a damaged file can end in.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errDamaged
		}
	}()
	return f()
}

// Close closes the file. What is written from then on is an error.
func (s *Store) Close() error {
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

// Clock returns the clock that all tables share. What it has given to them it never gives
// again, over restarts too.
func (s *Store) Clock() *Clock { return s.clock }

// update writes what f puts, and the clock, in one transaction. It returns when that is on
// the disk, or with an error when nothing has changed.
func (s *Store) update(f func(tx *bbolt.Tx) error) error {
	if s.db == nil {
		return nil
	}
	err := guarded(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			if err := tx.Bucket(metaBucket).Put(clockKey, eight(uint64(s.clock.mark()))); err != nil {
				return err
			}
			return f(tx)
		})
	})
	if errors.Is(err, errDamaged) {
		// Some damage only a write finds: the next start must not go on with the file.
		err = errors.Join(err, putAside(s.db.Path()))
	}
	return err
}

func eight(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// times returns when this node last agreed with a peer, and when it last ran.
func (s *Store) times() (seen, ran time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen, s.ran
}

// mark keeps that this node runs, and when it last agreed with a peer.
func (s *Store) mark(seen, ran time.Time) error {
	s.mu.Lock()
	s.seen, s.ran = seen, ran
	s.mu.Unlock()
	return s.update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if !seen.IsZero() {
			if err := meta.Put(seenKey, eight(uint64(seen.UnixMilli()))); err != nil {
				return err
			}
		}
		return meta.Put(ranKey, eight(uint64(ran.UnixMilli())))
	})
}

// rebase gives new stamps, in their order, to all items that are stamped ahead of the wall
// clock, and sets the clock back. They were written while this node's clock was ahead, and
// no peer whose clock is right has taken any of them. Without this, the peers would refuse
// whatever this node writes until that time has come. It must be sure that the wall clock
// is right now.
func (s *Store) rebase() (items int, err error) {
	s.mu.Lock()
	tables := slices.SortedFunc(maps.Values(s.tables), func(a, b *Table) int { return strings.Compare(a.c.Name, b.c.Name) })
	s.mu.Unlock()
	type ahead struct {
		table *Table
		entry *entry
	}
	var all []ahead
	last, horizon := StampOf(time.Now()), horizon()
	for _, t := range tables {
		t.write.Lock()
		defer t.write.Unlock()
		t.read(func(time.Time) {
			for _, e := range t.items {
				if e.Stamp > horizon {
					all = append(all, ahead{t, e})
				} else {
					last = max(last, e.Stamp)
				}
			}
		})
	}
	slices.SortFunc(all, func(a, b ahead) int { return cmp.Compare(a.entry.Stamp, b.entry.Stamp) })
	before := s.clock.mark()
	s.clock.set(last)
	for n := range all {
		i := all[n].entry.Item
		i.Stamp = s.clock.Now()
		all[n].entry = newEntry(i)
	}
	err = s.update(func(tx *bbolt.Tx) error {
		for _, a := range all {
			b := tx.Bucket(a.table.bucket)
			if b == nil {
				return errDamaged // it came from there
			}
			if err := b.Put([]byte(a.entry.Key), record(&a.entry.Item)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.clock.set(before) // else what is written next would lose against what is there
		return 0, err
	}
	for _, a := range all {
		a.table.mu.Lock()
		a.table.set(a.entry)
		a.table.mu.Unlock()
		a.table.signal()
	}
	return len(all), nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A record in the file is the encoding of an item, and its CRC-32C: bbolt checks its meta
// data only.
func record(i *Item) []byte {
	b := i.append(make([]byte, 0, 64+len(i.Key)+len(i.Value)))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseRecord(b []byte) (Item, error) {
	if len(b) < 4 {
		return Item{}, errDamaged
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return Item{}, errDamaged
	}
	i, rest, err := cutItem(body)
	if err != nil || len(rest) > 0 {
		return Item{}, errLater
	}
	return i, nil
}
