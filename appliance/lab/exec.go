package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run on a machine.
type Command struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env"`

	// Terminal says that the standard input is a terminal, which becomes the program's own.
	Terminal bool `json:"terminal"`

	Files   [3]*os.File           `json:"-"` // standard input, output and error
	Signals <-chan syscall.Signal `json:"-"` // are passed on to the program; may be nil
}

// What [Enter] and a shell return for a program that cannot be run, and that is not found.
const (
	statusCannotRun = 126
	statusNotFound  = 127
)

// trustVariables are what programs look in for the certificates to trust: those with
// OpenSSL, or in Go, and curl.
var trustVariables = []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE"}

// endWithin is how long a program has that is to end because nobody waits for it any more.
const endWithin = time.Second

// Exec runs a program on a machine, waits for it, and returns its exit status, 128 and the
// number of the signal if one has ended it. The program finds the site by name, and trusts
// its CA if it heeds SSL_CERT_FILE or CURL_CA_BUNDLE. When ctx ends, so does the program.
func (l *Lab) Exec(ctx context.Context, machine string, c Command) (int, error) {
	m, err := l.Machine(machine)
	if err != nil {
		return 0, err
	}
	if len(c.Args) == 0 {
		return 0, useErrorf("name a program to run on %s", machine)
	}
	cmd := exec.Command(l.c.Binary, append([]string{"lab", "enter", "--dir", l.c.Dir}, c.Args...)...)
	cmd.Dir = c.Dir
	cmd.Env = l.environment(c.Env)
	for _, key := range trustVariables { // in place of what the caller trusts, who is elsewhere
		cmd.Env = append(cmd.Env, key+"="+filepath.Join(l.c.Dir, caFile))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Files[0], c.Files[1], c.Files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal, Unshareflags: syscall.CLONE_NEWNS}
	ended := make(chan struct{})
	if err := l.start(m, cmd, func() { close(ended) }); err != nil {
		return 0, err
	}
	group := -cmd.Process.Pid // it leads a session
	done := ctx.Done()
	var limit <-chan time.Time
	for {
		select {
		case s := <-c.Signals:
			unix.Kill(group, s) // it may have ended just now
		case <-done:
			done = nil
			unix.Kill(group, unix.SIGHUP)
			limit = time.After(endWithin)
		case <-limit:
			unix.Kill(group, unix.SIGKILL)
		case <-ended:
			w := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if w.Signaled() {
				return 128 + int(w.Signal()), nil
			}
			return w.ExitStatus(), nil
		}
	}
}

// Enter is what a program on a machine begins as: it has a mount namespace of its own, in
// which it gets the site's name servers, and then becomes the program. It returns the exit
// status and the reason if it cannot.
func Enter(dir string, args []string) (int, error) {
	for _, f := range []struct{ from, to string }{{resolvFile, "/etc/resolv.conf"}, {nsswitch, "/etc/nsswitch.conf"}} {
		// Without one the program can do what needs no names. One that has no such file
		// gets none, for that would show outside.
		err := unix.Mount(filepath.Join(dir, f.from), f.to, "none", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			fmt.Fprintf(os.Stderr, "peerage lab: names of the site will not be found: %s: %v\n", f.to, err)
		}
	}
	path, err := exec.LookPath(args[0])
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	if err == nil {
		err = &fs.PathError{Op: "run", Path: path, Err: syscall.Exec(path, args, os.Environ())}
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return statusNotFound, err
	}
	return statusCannotRun, err
}
