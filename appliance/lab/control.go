package lab

import (
	"bufio"
	"bytes"
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

// The control socket of a lab, which its owner alone can open. A connection carries one
// request: a line of JSON, and beside its first octet the files that it is about (unix(7),
// SCM_RIGHTS). The keeper answers with one line when it is done. Meanwhile the client may
// send the numbers of signals for the program that runs, a line each; when it goes, what it
// has asked for ends.

const (
	socketName    = "lab.sock"
	maxSocketPath = 107              // octets; unix(7)
	maxRequest    = 4 << 20          // octets: a program's arguments and environment
	maxAnswer     = 1 << 20          // octets
	maxRequests   = 64               // at a time
	maxFiles      = 3                // of a request
	requestWithin = 10 * time.Second // for the request itself to arrive
)

// verb says what is asked for.
type verb string

const (
	doStatus    verb = "status"
	doDown      verb = "down"
	doCut       verb = "cut"
	doHeal      verb = "heal"
	doPartition verb = "partition"
	doDelay     verb = "delay"
	doStart     verb = "start"
	doStop      verb = "stop"
	doKill      verb = "kill"
	doFreeze    verb = "freeze"
	doThaw      verb = "thaw"
	doExec      verb = "exec"
	doCapture   verb = "capture"
)

// request is what a client wants done.
type request struct {
	Do      verb       `json:"do"`
	Where   string     `json:"where,omitempty"` // a machine, or a network
	Network string     `json:"network,omitempty"`
	How     How        `json:"how,omitempty"`
	What    What       `json:"what,omitempty"`
	Groups  [][]string `json:"groups,omitempty"`
	Delay   Delay      `json:"delay,omitzero"`
	Command *Command   `json:"command,omitempty"`
	Limits  Limits     `json:"limits,omitzero"`
}

// outcome is the keeper's answer.
type outcome struct {
	Err    string          `json:"err,omitempty"`
	Use    bool            `json:"use,omitempty"` // a UseError
	Result json.RawMessage `json:"result,omitempty"`
}

// listen answers on the control socket until ctx ends, and then ends what is under way. down
// is called when somebody wants the lab to be taken down.
func (l *Lab) listen(ctx context.Context, socket *net.UnixListener, down func()) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { socket.Close() })()
	free := make(chan struct{}, maxRequests)
	for {
		c, err := socket.AcceptUnix()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen on the control socket: %w", err)
		}
		free <- struct{}{}
		serving.Go(func() {
			defer func() { <-free }()
			defer c.Close()
			l.serve(ctx, c, down)
		})
	}
}

// serve answers one request.
func (l *Lab) serve(ctx context.Context, c *net.UnixConn, down func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q, files, r, err := readRequest(c)
	for _, f := range files {
		defer f.Close()
	}
	if err != nil {
		writeOutcome(c, nil, err)
		return
	}
	signals := make(chan syscall.Signal)
	var hearing sync.WaitGroup
	hearing.Go(func() {
		defer cancel() // nobody waits for it any more
		hear(ctx, r, signals)
	})
	result, err := l.do(ctx, q, files, signals, down)
	cancel()
	c.SetReadDeadline(time.Unix(1, 0))
	hearing.Wait()
	writeOutcome(c, result, err)
}

// readRequest reads a request, and returns where to read on.
func readRequest(c *net.UnixConn) (q *request, files []*os.File, r *bufio.Reader, err error) {
	c.SetReadDeadline(time.Now().Add(requestWithin))
	first, oob := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(first, oob)
	if err != nil {
		return nil, nil, nil, err
	}
	if files, err = filesOf(oob[:oobn]); err != nil {
		return nil, files, nil, err
	}
	limited := &io.LimitedReader{R: io.MultiReader(bytes.NewReader(first[:n]), c), N: maxRequest}
	r = bufio.NewReader(limited)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, files, nil, fmt.Errorf("the request is not complete, or has more than %d octets: %w", maxRequest, err)
	}
	q = new(request)
	if err := json.Unmarshal(line, q); err != nil {
		return nil, files, nil, err
	}
	c.SetReadDeadline(time.Time{})
	limited.N = maxRequest // and as much in signals
	return q, files, r, nil
}

// filesOf returns the files that came beside a request.
func filesOf(oob []byte) (files []*os.File, err error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "file of a request"))
		}
	}
	return files, nil
}

// hear passes signals on until the client goes.
func hear(ctx context.Context, r *bufio.Reader, to chan<- syscall.Signal) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		var number int
		if json.Unmarshal(line, &number) != nil || number < 1 || number > 31 {
			return
		}
		select {
		case to <- syscall.Signal(number):
		case <-ctx.Done():
			return
		}
	}
}

func writeOutcome(c *net.UnixConn, result any, err error) {
	var out outcome
	if err == nil && result != nil {
		out.Result, err = json.Marshal(result)
	}
	if err != nil {
		_, use := errors.AsType[*UseError](err)
		out = outcome{Err: err.Error(), Use: use}
	}
	b, err := json.Marshal(out)
	if err == nil {
		c.SetWriteDeadline(time.Now().Add(requestWithin))
		c.Write(append(b, '\n')) // if the client has gone, nobody wants to know
	}
}

// do does what is asked for.
func (l *Lab) do(ctx context.Context, q *request, files []*os.File, signals <-chan syscall.Signal, down func()) (any, error) {
	switch q.Do {
	case doStatus:
		return l.Status(ctx)
	case doDown:
		down()
		return nil, nil
	case doCut:
		return nil, l.Cut(q.Where, q.Network, q.How)
	case doHeal:
		return nil, l.Heal(q.Where)
	case doPartition:
		return nil, l.Partition(q.Groups...)
	case doDelay:
		return nil, l.Delay(q.Where, q.Delay)
	case doStart:
		return nil, l.Start(q.Where)
	case doStop:
		return nil, l.Stop(ctx, q.Where)
	case doKill:
		return nil, l.Kill(q.Where, q.What)
	case doFreeze:
		return nil, l.Freeze(q.Where, q.What)
	case doThaw:
		return nil, l.Thaw(q.Where)
	case doExec:
		if q.Command == nil || len(files) != len(q.Command.Files) {
			return nil, errors.New("no program, or not its three files")
		}
		copy(q.Command.Files[:], files)
		q.Command.Signals = signals
		return l.Exec(ctx, q.Where, *q.Command)
	case doCapture:
		if len(files) != 1 {
			return nil, errors.New("no file to write to")
		}
		return l.Capture(ctx, q.Where, files[0], q.Limits)
	}
	return nil, fmt.Errorf("the lab does not know what %q is: it was started by another version; 'peerage lab down' and 'up' again", q.Do)
}

// listenForRequests opens the control socket.
func listenForRequests(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, socketName)
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}
