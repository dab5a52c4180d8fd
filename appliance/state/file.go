package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Create writes a new file with that very mode, and the directories above it that are
// missing. If there is something at path already, it stays as it is, and the error is
// [fs.ErrExist].
func Create(path string, data []byte, mode fs.FileMode) error {
	if err := makeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return create(dir, filepath.Base(path), data, mode)
}

// Replace puts a file with that very mode in the place of the one at path, or of none. As
// root it keeps the file's owner. It follows no link: one at path gives way to the file,
// for who may write in the directory need not have the right to write where it leads.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return Put(path, mode, octets(data))
}

// Put is [Replace] for what need not be in memory at once. It makes the directories above
// the file that are missing. If content fails, what was there stays.
func Put(path string, mode fs.FileMode, content func(io.Writer) error) error {
	if err := makeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return put(dir, filepath.Base(path), content, mode)
}

func octets(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// owner is a user and a group.
type owner struct{ uid, gid int }

// write is one file on its way into a directory. Between any two of its steps, and
// during one, the power may fail.
type write struct {
	dir  *os.Root
	name string
	mode fs.FileMode

	content func(io.Writer) error

	owner   *owner // nil: who writes
	partial string // the name until it is complete
	file    *os.File
}

type step func(*write) error

var (
	// replacing puts a file in the place of another, or of none.
	replacing = []step{(*write).begin, (*write).fill, (*write).rename, (*write).settle}

	// creating puts a file where there is none: a link, unlike a rename, never takes a
	// name away from another file.
	creating = []step{(*write).begin, (*write).fill, (*write).link, (*write).unlink, (*write).settle}
)

func replace(dir *os.Root, name string, data []byte, mode fs.FileMode) error {
	return put(dir, name, octets(data), mode)
}

func put(dir *os.Root, name string, content func(io.Writer) error, mode fs.FileMode) error {
	w := newWrite(dir, name, nil, mode)
	w.content = content
	switch info, err := dir.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("write %s: %w", filepath.Join(dir.Name(), name), cause(err))
	case info.Mode().IsRegular():
		if stat := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
			w.owner = &owner{int(stat.Uid), int(stat.Gid)}
		}
	case info.Mode().Type() != fs.ModeSymlink:
		return fmt.Errorf("write %s: %w", filepath.Join(dir.Name(), name), errNotRegular)
	}
	return w.take(replacing)
}

func create(dir *os.Root, name string, data []byte, mode fs.FileMode) error {
	return newWrite(dir, name, data, mode).take(creating)
}

const partialMark = ".partial-"

// isPartial reports whether name is one under which a write begins.
func isPartial(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, partialMark)
}

func newWrite(dir *os.Root, name string, data []byte, mode fs.FileMode) *write {
	return &write{dir: dir, name: name, content: octets(data), mode: mode, partial: "." + name + partialMark + rand.Text()}
}

// take takes the steps. If one fails, no partial file stays.
func (w *write) take(steps []step) error {
	for _, s := range steps {
		if err := s(w); err != nil {
			if w.file != nil {
				w.file.Close()
			}
			w.dir.Remove(w.partial) // it may be gone already
			return fmt.Errorf("write %s: %w", filepath.Join(w.dir.Name(), w.name), err)
		}
	}
	return nil
}

func (w *write) begin() (err error) {
	w.file, err = w.dir.OpenFile(w.partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	return err
}

func (w *write) fill() error {
	written := w.content(w.file)
	var owned error
	if w.owner != nil {
		owned = w.file.Chown(w.owner.uid, w.owner.gid)
	}
	return errors.Join(written, owned, w.file.Chmod(w.mode), w.file.Sync(), w.file.Close())
}

func (w *write) rename() error { return w.dir.Rename(w.partial, w.name) }

func (w *write) link() error {
	err := w.dir.Link(w.partial, w.name)
	if errors.Is(err, fs.ErrExist) {
		return fs.ErrExist // without the partial name
	}
	return err
}

func (w *write) unlink() error { return w.dir.Remove(w.partial) }

// settle makes the new name last.
func (w *write) settle() error { return syncDir(w.dir.Open(".")) }

// makeDir makes the directory at path with that very mode if there is none, and those
// above it with mode 0755, and makes them last.
func makeDir(path string, mode fs.FileMode) error {
	switch info, err := os.Stat(path); {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: errors.New("not a directory")}
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	above := filepath.Dir(path)
	if err := makeDir(above, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil // another process was faster
		}
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	return syncDir(os.Open(above))
}

// syncDir syncs and closes a directory that was just opened.
func syncDir(dir *os.File, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
