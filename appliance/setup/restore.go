package setup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"peerage/appliance/site"
	"peerage/appliance/state"
)

// RestoreOptions say how a node is made from a backup.
type RestoreOptions struct {
	NodePath   string // where to write the node file
	Passphrase string
	Force      bool // overwrite the node that is there
}

// Restore makes a node from a backup. It reads and checks the whole of it before it writes
// anything. Without Force it overwrites nothing: the error is [ErrExists] then. A node that
// runs is never overwritten.
func Restore(path string, o RestoreOptions) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	defer f.Close()
	if err := o.restore(f); err != nil {
		return fmt.Errorf("restore from %s: %w", path, err)
	}
	return nil
}

func (o *RestoreOptions) restore(from io.ReadSeeker) error {
	b, err := readBackup(from, o.Passphrase, io.Discard)
	if err != nil {
		return err
	}
	nf, err := checkFiles(o.NodePath, b.files)
	if err != nil {
		return err
	}
	if !o.Force {
		for _, f := range backupFiles {
			if p := pathOf(nf, o.NodePath, f.name); exists(p) {
				return fmt.Errorf("%w: %s exists", ErrExists, p)
			}
		}
	}
	dir, err := state.Open(nf.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return o.put(nf, b, from)
}

// put writes the files, the node file last. What was not there before does not stay if
// something goes wrong.
func (o *RestoreOptions) put(nf *site.NodeFile, b *backup, from io.ReadSeeker) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, p := range made {
				os.Remove(p)
			}
		}
	}()
	for _, f := range slices.Backward(backupFiles) {
		p := pathOf(nf, o.NodePath, f.name)
		data, ok := b.files[f.name]
		if ok = ok || f.name == backupDB && b.db; !ok {
			// A leftover of the node before must not be taken for this one's.
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if !exists(p) {
			made = append(made, p)
		}
		mode := fs.FileMode(0o644)
		if f.private {
			mode = 0o600
		}
		put := func(w io.Writer) error { _, err := w.Write(data); return err }
		if f.name == backupDB {
			put = func(w io.Writer) error {
				if _, err := from.Seek(0, io.SeekStart); err != nil {
					return err
				}
				_, err := readBackup(from, o.Passphrase, w)
				return err
			}
		}
		if err := state.Put(p, mode, put); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// backup is what was read from one.
type backup struct {
	files map[string][]byte
	db    bool
}

// readBackup reads a backup to its end, and writes the database in it to db.
func readBackup(from io.Reader, passphrase string, db io.Writer) (*backup, error) {
	r, err := newOpeningReader(bufio.NewReaderSize(from, backupChunk+chacha20poly1305.Overhead+1), passphrase)
	if err != nil {
		return nil, err
	}
	b := &backup{files: map[string][]byte{}}
	rest := backupFiles
	for {
		name, err := readName(r)
		if err != nil {
			return nil, err
		}
		if name == "" {
			break
		}
		i := slices.IndexFunc(rest, func(f backupFile) bool { return f.name == name })
		if i < 0 {
			return nil, errors.New("it holds a file that this version does not know, or one twice")
		}
		if name == backupDB {
			b.db = true
			err = readEntry(r, rest[i].max, db)
		} else {
			var buf bytes.Buffer
			err = readEntry(r, rest[i].max, &buf)
			b.files[name] = buf.Bytes()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		rest = rest[i+1:]
	}
	// Nothing follows; and only the end shows that nothing is cut off.
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return nil, errDamaged
	}
	return b, nil
}
