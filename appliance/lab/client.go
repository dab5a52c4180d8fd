package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client asks the lab in a directory.
type Client string

// answerWithin is how long a keeper has to answer when the client does not want to wait.
const answerWithin = 5 * time.Second

// ErrNone says that no lab runs there.
var ErrNone = errors.New("no lab runs")

// dial connects to the keeper.
func (c Client) dial(ctx context.Context) (*net.UnixConn, error) {
	err := checkDir(string(c))
	var conn net.Conn
	if err == nil {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", filepath.Join(string(c), socketName))
	}
	if _, use := errors.AsType[*UseError](err); use {
		return nil, err
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w in %s; 'peerage lab up' starts one", ErrNone, c)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the lab in %s: %w", c, err)
	}
	return conn.(*net.UnixConn), nil
}

// call makes a request, and reads the result into out, which may be nil. When ctx ends, so
// does what was asked for; the result of a capture is waited for all the same.
func (c Client) call(ctx context.Context, q *request, files []*os.File, signals <-chan os.Signal, out any) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := send(conn, q, files); err != nil {
		return fmt.Errorf("ask the lab in %s: %w", c, err)
	}
	defer context.AfterFunc(ctx, func() {
		conn.CloseWrite() // ends what was asked for
		conn.SetReadDeadline(time.Now().Add(answerWithin))
	})()
	var passing sync.WaitGroup
	defer passing.Wait()
	done := make(chan struct{})
	defer close(done)
	passing.Go(func() {
		for {
			select {
			case s := <-signals:
				fmt.Fprintln(conn, int(s.(syscall.Signal))) // if it is gone, the answer says so
			case <-done:
				return
			}
		}
	})
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the lab in %s has ended", c)
	}
	if err != nil {
		return fmt.Errorf("ask the lab in %s: %w", c, err)
	}
	var answer outcome
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("ask the lab in %s: %w", c, err)
	}
	switch {
	case answer.Use:
		return &UseError{answer.Err}
	case answer.Err != "":
		return errors.New(answer.Err)
	case out == nil:
		return nil
	}
	return json.Unmarshal(answer.Result, out)
}

func send(conn *net.UnixConn, q *request, files []*os.File) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = conn.Write(b[n:])
	}
	return err
}

// Status is what there is in the lab, and what has become of it.
func (c Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	return st, c.call(ctx, &request{Do: doStatus}, nil, nil, st)
}

// Cut is [Lab.Cut].
func (c Client) Cut(ctx context.Context, machine, network string, how How) error {
	return c.call(ctx, &request{Do: doCut, Where: machine, Network: network, How: how}, nil, nil, nil)
}

// Heal is [Lab.Heal].
func (c Client) Heal(ctx context.Context, machine string) error {
	return c.call(ctx, &request{Do: doHeal, Where: machine}, nil, nil, nil)
}

// Partition is [Lab.Partition].
func (c Client) Partition(ctx context.Context, groups [][]string) error {
	return c.call(ctx, &request{Do: doPartition, Groups: groups}, nil, nil, nil)
}

// Delay is [Lab.Delay].
func (c Client) Delay(ctx context.Context, machine string, d Delay) error {
	return c.call(ctx, &request{Do: doDelay, Where: machine, Delay: d}, nil, nil, nil)
}

// Start is [Lab.Start].
func (c Client) Start(ctx context.Context, node string) error {
	return c.call(ctx, &request{Do: doStart, Where: node}, nil, nil, nil)
}

// Stop is [Lab.Stop].
func (c Client) Stop(ctx context.Context, node string) error {
	return c.call(ctx, &request{Do: doStop, Where: node}, nil, nil, nil)
}

// Kill is [Lab.Kill].
func (c Client) Kill(ctx context.Context, node string, what What) error {
	return c.call(ctx, &request{Do: doKill, Where: node, What: what}, nil, nil, nil)
}

// Freeze is [Lab.Freeze].
func (c Client) Freeze(ctx context.Context, node string, what What) error {
	return c.call(ctx, &request{Do: doFreeze, Where: node, What: what}, nil, nil, nil)
}

// Thaw is [Lab.Thaw].
func (c Client) Thaw(ctx context.Context, node string) error {
	return c.call(ctx, &request{Do: doThaw, Where: node}, nil, nil, nil)
}

// Capture is [Lab.Capture]. It returns soon after ctx has ended.
func (c Client) Capture(ctx context.Context, where string, w *os.File, limits Limits) (got Captured, err error) {
	return got, c.call(ctx, &request{Do: doCapture, Where: where, Limits: limits}, []*os.File{w}, nil, &got)
}

// Exec is [Lab.Exec] with this process's files. Of a terminal, the program gets one of its
// own, which shows here. Signals are passed on.
func (c Client) Exec(ctx context.Context, machine string, args []string, signals <-chan os.Signal) (status int, err error) {
	q := &request{Do: doExec, Where: machine, Command: &Command{Args: args, Env: os.Environ()}}
	if q.Command.Dir, err = os.Getwd(); err != nil {
		return 0, err
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if q.Command.Terminal = IsTerminal(os.Stdin) && IsTerminal(os.Stdout); !q.Command.Terminal {
		return status, c.call(ctx, q, files, signals, &status)
	}
	s, err := newScreen()
	if err != nil {
		return 0, err
	}
	for i, f := range files {
		if IsTerminal(f) {
			files[i] = s.slave
		}
	}
	return status, s.show(func() error { return c.call(ctx, q, files, signals, &status) })
}
