package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A lab of 'peerage lab up' has two processes of its own. The keeper has the LAN and starts
// the nodes; when it is gone, by whatever means, the kernel kills these. The reaper waits
// for that, and removes the rest. Both hold the lock of the directory: who gets it knows
// that nothing is left.

// Descriptors that a keeper and a reaper are started with.
const (
	keeperReady = 3 // where the keeper says how it went: a line, empty if well
	keeperLock  = 4
	reaperPipe  = 3 // its end is the end of the keeper
	reaperLock  = 4
)

// Keep is the keeper of the lab in dir: it makes the lab, and answers requests until ctx ends
// or one is to take it down.
func Keep(ctx context.Context, dir string) error {
	unix.CloseOnExec(keeperReady) // or nodes would have them, too
	unix.CloseOnExec(keeperLock)
	ready, lock := os.NewFile(keeperReady, "ready"), os.NewFile(keeperLock, lockFile)
	defer ready.Close()
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	// It is never written to: its end is what the reaper waits for.
	life, err := startReaper(r.Config, lock)
	if err == nil {
		defer life.Close()
		err = keep(ctx, r.Config, r.ID, func() {
			fmt.Fprintln(ready)
			ready.Close()
		})
	}
	if err != nil {
		if _, e := fmt.Fprintln(ready, err); e == nil {
			return nil // it is told there
		}
	}
	return err
}

// keep makes the lab, calls ready, and answers requests.
func keep(ctx context.Context, c Config, id string, ready func()) (err error) {
	l, err := newLab(c, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for _, n := range l.nodes {
		if err := l.Start(n.Name); err != nil {
			return err
		}
	}
	if err := l.AwaitReady(ctx); err != nil {
		return err
	}
	socket, err := listenForRequests(c.Dir)
	if err != nil {
		return err
	}
	ready()
	ctx, down := context.WithCancel(ctx)
	defer down()
	return l.listen(ctx, socket, down)
}

// startReaper starts a reaper, which outlives this process. It acts when the file that is
// returned is closed, here and in all children.
func startReaper(c Config, lock *os.File) (*os.File, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(c.Binary, "lab", "reap", "--dir", c.Dir)
	cmd.ExtraFiles = []*os.File{theirs, lock}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the reaper of the lab: %w", err)
	}
	return ours, cmd.Process.Release()
}

// Reap is the reaper of the lab in dir: it waits for the end of the keeper, and removes what
// is left.
func Reap(dir string) error {
	life, lock := os.NewFile(reaperPipe, "keeper"), os.NewFile(reaperLock, filepath.Join(dir, lockFile))
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if _, err := io.Copy(io.Discard, life); err != nil {
		return err
	}
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	if err := Clear(dir); err != nil {
		return err
	}
	return unlock(lock, r.MadeDir)
}
