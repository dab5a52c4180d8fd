// Package state is the directory in which a node keeps what must survive it: its
// incarnation, the local CA, and as a rule the site key and the site document.
//
// Start with [Open], which makes the directory and locks it for one process; [Create]
// and [WriteSiteKey] also write outside it, for who sets a node up.
//
// Every write survives the loss of power at any instant: afterwards there is the old
// file, or the new one, or none if there was none, but never a part of one. A file is
// written under a temporary name and synced, then gets its own name, and the directory
// is synced. Modes are as given, whatever the umask is.
//
// As root, the guard of a node writes here, and its server, an account of its own, owns
// the directory ([Dir.Own]). So no method of Dir follows a link out of the directory, and
// nothing here waits for what is no regular file, or reads more than it must. No error
// tells anything of a key.
//
// Nothing here starts a goroutine. A [Dir] belongs to one; the functions do not mind.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir is the directory of a node, locked.
type Dir struct {
	root *os.Root
	// The lock is on the directory itself: there is no lock file that could be removed
	// under its holder, or be left behind.
	lock *os.File
}

// errLocked says that another process has opened the directory.
var errLocked = errors.New("another process uses it")

// Open makes the directory if it is missing, for its owner alone, locks it, and removes
// what an interrupted write has left. A directory in which others may write is refused.
// The lock ends with [Dir.Close], or with the process.
func Open(path string) (*Dir, error) {
	d, err := open(path)
	switch {
	case errors.Is(err, errLocked):
		return nil, fmt.Errorf("data directory %s: %w: stop the node that runs there, or name another data_dir", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("data directory %s: %w: run as its owner or as root, or name another data_dir", path, err)
	case err != nil:
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	return d, nil
}

func open(path string) (_ *Dir, err error) {
	if err := makeDir(path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{root: root}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.lock, err = root.Open("."); err != nil {
		return nil, err
	}
	if err := checkOwner(d.lock); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return d, d.removePartial()
}

// Close ends the lock.
func (d *Dir) Close() error {
	var unlocked, closed error
	if d.lock != nil {
		// Not by closing alone: a child between fork and exec has the descriptor too.
		unlocked = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
		closed = d.lock.Close()
	}
	return errors.Join(unlocked, closed, d.root.Close())
}

// Own gives the directory and the files in it to a user, whom root is about to start a
// server as. What has a second name, which may be a file elsewhere, stays whose it is,
// and so does what is no regular file.
func (d *Dir) Own(uid, gid int) error {
	names, err := d.files()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := d.ownFile(name, uid, gid); err != nil {
			return err
		}
	}
	return d.lock.Chown(uid, gid)
}

func (d *Dir) ownFile(name string, uid, gid int) error {
	f, info, err := regular(d.root.OpenFile(name, readOnly, 0))
	if err != nil {
		return err
	}
	defer f.Close()
	// Looked at and changed through one descriptor: nothing can take its place between.
	if info.Sys().(*syscall.Stat_t).Nlink > 1 {
		return nil
	}
	return f.Chown(uid, gid)
}

// checkOwner refuses a directory that somebody else may change. Root may use any
// user's: it is the server's.
func checkOwner(dir *os.File) error {
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %#o): take that away with 'chmod go-w %s'", perm, dir.Name())
	}
	owner, me := info.Sys().(*syscall.Stat_t).Uid, uint32(os.Geteuid())
	if me != 0 && owner != 0 && owner != me {
		return fmt.Errorf("it belongs to user %d, and this process is user %d: %w", owner, me, fs.ErrPermission)
	}
	return nil
}

// removePartial removes what interrupted writes have left.
func (d *Dir) removePartial() error {
	names, err := d.files()
	if err != nil {
		return err
	}
	for _, name := range names {
		if isPartial(name) {
			if err := d.root.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// files returns the names of the regular files in the directory.
func (d *Dir) files() (names []string, err error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, err
}
