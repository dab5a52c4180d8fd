package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keeperLog = "keeper.log"
	// downWithin is how long a keeper has to take its lab down before it is killed.
	downWithin = 20 * time.Second
)

// DefaultDir is the directory of the lab of this user.
func DefaultDir() string {
	if os.Geteuid() == 0 {
		return "/run/peerage-lab"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "peerage-lab")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("peerage-lab-%d", os.Geteuid()))
}

// Running is the keeper of a lab that was started.
type Running struct {
	cmd *exec.Cmd
	dir string
}

// Up starts a lab, and returns when it is ready. In the background it outlives this
// process, else it ends with it. Without root it has a user namespace of its own.
func Up(ctx context.Context, c Config, background bool) (*Running, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	lock, err := prepare(c)
	if err != nil {
		return nil, err
	}
	r, err := startKeeper(ctx, c, lock, background)
	if err != nil {
		return nil, errors.Join(err, downIfAny(ctx, c.Dir))
	}
	return r, nil
}

// prepare makes the directory, clears away what an earlier lab has left there, and writes the
// record of this one. It returns the lock.
func prepare(c Config) (*os.File, error) {
	made, err := openDir(c.Dir)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(c.Dir)
	if errors.Is(err, errLocked) {
		return nil, useErrorf("a lab runs in %s already; 'peerage lab status' shows it, 'peerage lab down' removes it", c.Dir)
	}
	if err != nil {
		return nil, err
	}
	r := record{ID: rand.Text(), Config: c, MadeDir: made}
	if err = Clear(c.Dir); err == nil {
		if c.Names != "" {
			_, err := os.Lstat(c.Names)
			r.MadeNames = errors.Is(err, fs.ErrNotExist)
		}
		err = r.write()
	}
	if err != nil {
		return nil, errors.Join(err, unlock(lock, made))
	}
	return lock, nil
}

// startKeeper starts a keeper, and waits until it says that its lab is ready. The lock is
// the keeper's from then on.
func startKeeper(ctx context.Context, c Config, lock *os.File, background bool) (*Running, error) {
	defer lock.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command(c.Binary, "lab", "keep", "--dir", c.Dir)
	cmd.ExtraFiles = []*os.File{theirs, lock}
	cmd.SysProcAttr = keeperAttributes(background)
	cmd.Stderr = os.Stderr
	if background {
		log, err := os.OpenFile(filepath.Join(c.Dir, keeperLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			theirs.Close()
			return nil, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	} else {
		// The kernel ends the keeper with the thread that has started it.
		runtime.LockOSThread()
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start the keeper of the lab: %w%s", err, hint(err))
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })()
	if err := awaitKeeper(ready); err != nil {
		cmd.Wait()
		if ctx.Err() != nil {
			err = errors.New("interrupted; the lab was taken down")
		}
		return nil, err
	}
	return &Running{cmd, c.Dir}, nil
}

// awaitKeeper waits until the keeper has said how it went.
func awaitKeeper(ready io.Reader) error {
	said, err := io.ReadAll(io.LimitReader(ready, maxAnswer))
	switch why := strings.TrimSpace(string(said)); {
	case err != nil:
		return err
	case why != "":
		return errors.New(why)
	case len(said) == 0:
		return errors.New("the keeper of the lab has ended without a word")
	}
	return nil
}

// keeperAttributes is how a keeper is started: in namespaces of its own, so that nothing
// that it does by mistake happens on the machine's network.
func keeperAttributes(background bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Setsid: background}
	if !background {
		// A group of its own, so that Ctrl-C reaches who waits for it alone.
		a.Setpgid, a.Pdeathsig = true, syscall.SIGTERM
	}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// Wait waits for the end of the lab, until nothing is left of it; when ctx ends, it is taken
// down.
func (r *Running) Wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { r.cmd.Process.Signal(syscall.SIGTERM) })()
	err := r.cmd.Wait()
	return errors.Join(err, downIfAny(ctx, r.dir))
}

// downIfAny is [Down] for whoever wants nothing to be left.
func downIfAny(ctx context.Context, dir string) error {
	err := Down(context.WithoutCancel(ctx), dir)
	if errors.Is(err, ErrNone) {
		return nil
	}
	return err
}

// Down takes a lab down, or clears away what is left of one, and returns when nothing is
// left. The error is [ErrNone] if there was none.
func Down(ctx context.Context, dir string) error {
	err := checkDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNone, dir)
	}
	if err != nil {
		return err
	}
	f, err := lockDir(dir)
	ran := errors.Is(err, errLocked)
	if ran {
		f, err = takeDown(ctx, dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else has cleared it away
	}
	if err != nil {
		return fmt.Errorf("take the lab in %s down: %w", dir, err)
	}
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = nil; !ran {
			err = fmt.Errorf("%w in %s", ErrNone, dir)
		}
		return errors.Join(err, unlock(f, false))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := Clear(dir); err != nil {
		return errors.Join(err, f.Close())
	}
	return unlock(f, r.MadeDir)
}

// takeDown has a keeper end, and returns the lock.
func takeDown(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, downWithin)
	defer cancel()
	asked := Client(dir).call(ctx, &request{Do: doDown}, nil, nil, nil)
	f, err := awaitLock(ctx, dir)
	if !errors.Is(err, context.DeadlineExceeded) {
		return f, err
	}
	// It hangs, or is frozen. Its reaper does the rest.
	if err := killKeeper(dir); err != nil {
		return nil, errors.Join(err, asked)
	}
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), downWithin)
	defer cancel()
	return awaitLock(again, dir)
}

// killKeeper kills who listens on the control socket.
func killKeeper(dir string) error {
	conn, err := Client(dir).dial(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if e := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	return unix.Kill(int(peer.Pid), unix.SIGKILL)
}
