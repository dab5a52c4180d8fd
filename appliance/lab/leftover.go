package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"peerage/appliance/state"
)

// Files of a lab that has a keeper.
const (
	lockFile   = "lock"     // locked while anything of the lab is left
	recordFile = "lab.json" // what there is to clear away
)

// record is what has to be known to clear a lab away. It is written before anything is made.
type record struct {
	ID        string `json:"id"`
	Config    Config `json:"config"`
	MadeDir   bool   `json:"made_dir"`   // the directory was not there before
	MadeNames bool   `json:"made_names"` // nor was that of the names
}

// names are the paths of the names that namespaces of the lab have.
func (r *record) names() []string {
	if r.Config.Names == "" {
		return nil
	}
	l := &Lab{c: r.Config}
	l.plan()
	all := []string{l.nameOf(lan)}
	for _, m := range l.machines {
		all = append(all, l.nameOf(m.Name))
	}
	return slices.DeleteFunc(all, func(path string) bool { return !isNameOf(r.ID, path) })
}

func (r *record) write() error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return state.Create(filepath.Join(r.Config.Dir, recordFile), b, 0o600)
}

func readRecord(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	r.Config.Dir = dir
	if r.ID == "" || r.Config.Check() != nil {
		return nil, fmt.Errorf("%s is not that of a lab", filepath.Join(dir, recordFile))
	}
	return r, nil
}

// errLocked says that something of a lab still lives.
var errLocked = errors.New("locked")

// lockDir locks the directory for who makes a lab there or clears one away. It returns
// errLocked if somebody else does.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, path) {
			return f, nil
		}
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Who held it has removed it meanwhile.
	}
}

// isAt reports whether the file is the one at path.
func isAt(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// awaitLock waits until nothing lives any more that has the lock.
func awaitLock(ctx context.Context, dir string) (*os.File, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := lockDir(dir)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// openDir makes the directory of a lab, or finds that it is there, and reports whether it
// made it. Nobody else may be able to write there.
func openDir(dir string) (made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return false, err
	}
	err = os.Mkdir(dir, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err == nil, err
	}
	return false, checkDir(dir)
}

// checkDir returns an error if somebody else could have put something into the directory.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return useErrorf("%s is no directory that is yours alone to write to; name another with --dir", dir)
	}
	return nil
}

// Clear removes what is left of a lab whose lock is held: processes, names, and files.
func Clear(dir string) error {
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != lockFile }) {
			return nil
		}
		return useErrorf("%s is not empty, and what is there is not a lab's; name another directory with --dir", dir)
	}
	if err != nil {
		return err
	}
	names := r.names()
	var namespaces []fs.FileInfo
	for _, n := range names {
		if info, err := os.Stat(n); err == nil {
			namespaces = append(namespaces, info)
		}
	}
	errs := []error{endStrays(r.ID, namespaces)}
	for _, n := range names {
		errs = append(errs, removeName(n))
	}
	if r.MadeNames {
		errs = append(errs, removeNames(r.Config.Names))
	}
	return errors.Join(append(errs, removeFiles(dir))...)
}

// removeNames removes the directory of the names, if nobody else has one there.
func removeNames(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) { // that is no mount
		return nil // it is in use, then
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// removeFiles empties a directory but for the lock, the record last.
func removeFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockFile && e.Name() != recordFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, recordFile))
}

// unlock removes the lock, and the directory if it was made for the lab.
func unlock(f *os.File, madeDir bool) error {
	err := os.Remove(f.Name())
	if madeDir {
		err = errors.Join(err, os.Remove(filepath.Dir(f.Name())))
	}
	return errors.Join(err, f.Close())
}

// straysWithin bounds how long processes may take to end that were killed.
const straysWithin = 10 * time.Second

// endStrays kills the processes that bear the mark of a lab, and those in its namespaces,
// until there are none.
func endStrays(id string, namespaces []fs.FileInfo) error {
	deadline := time.Now().Add(straysWithin)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		pids := strays(id, namespaces)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of the lab do not end", pids)
		}
		for _, pid := range pids {
			kill(pid, id, namespaces)
		}
		<-tick.C
	}
}

// strays returns the processes of a lab that live.
func strays(id string, namespaces []fs.FileInfo) (pids []int) {
	for _, pid := range processIDs() {
		if _, _, lives := stat(pid); lives && pid != os.Getpid() && isStray(pid, id, namespaces) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills a process if it still is the one that was meant.
func kill(pid int, id string, namespaces []fs.FileInfo) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if isStray(pid, id, namespaces) {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

func isStray(pid int, id string, namespaces []fs.FileInfo) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool { return string(e) == mark+id }) {
		return true
	}
	in, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && slices.ContainsFunc(namespaces, func(n fs.FileInfo) bool { return os.SameFile(in, n) })
}
