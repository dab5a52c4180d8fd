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
// order: a line of JSON, and beside its first octet the files that it is about (unix(7),
// SCM_RIGHTS). The keeper answers with one line when it is done. Meanwhile the client may
// send the numbers of signals for the program that runs, a line each; when it goes, what it
// has ordered ends.

const (
	socketName    = "lab.sock"
	maxSocketPath = 107              // octets; unix(7)
	maxOrder      = 4 << 20          // octets: a program's arguments and environment
	maxAnswer     = 1 << 20          // octets
	maxOrders     = 64               // at a time
	maxFiles      = 3                // of an order
	orderWithin   = 10 * time.Second // for the order itself to arrive
)

// verb says what is ordered.
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

// order is what a client wants done.
type order struct {
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

// obey answers on the control socket until ctx ends, and then ends what is under way. down
// is called when somebody orders the lab to be taken down.
func (l *Lab) obey(ctx context.Context, socket *net.UnixListener, down func()) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { socket.Close() })()
	free := make(chan struct{}, maxOrders)
	for {
		c, err := socket.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("take orders: %w", err)
		}
		free <- struct{}{}
		serving.Go(func() {
			defer func() { <-free }()
			defer c.Close()
			l.serve(ctx, c, down)
		})
	}
}

// serve obeys one order.
func (l *Lab) serve(ctx context.Context, c *net.UnixConn, down func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o, files, r, err := readOrder(c)
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
	result, err := l.do(ctx, o, files, signals, down)
	cancel()
	c.SetReadDeadline(time.Unix(1, 0))
	hearing.Wait()
	writeOutcome(c, result, err)
}

// readOrder reads an order, and returns where to read on.
func readOrder(c *net.UnixConn) (o *order, files []*os.File, r *bufio.Reader, err error) {
	c.SetReadDeadline(time.Now().Add(orderWithin))
	first, oob := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(first, oob)
	if err != nil {
		return nil, nil, nil, err
	}
	if files, err = filesOf(oob[:oobn]); err != nil {
		return nil, files, nil, err
	}
	limited := &io.LimitedReader{R: io.MultiReader(bytes.NewReader(first[:n]), c), N: maxOrder}
	r = bufio.NewReader(limited)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, files, nil, fmt.Errorf("the order is not complete, or has more than %d octets: %w", maxOrder, err)
	}
	o = new(order)
	if err := json.Unmarshal(line, o); err != nil {
		return nil, files, nil, err
	}
	c.SetReadDeadline(time.Time{})
	limited.N = maxOrder // and as much in signals
	return o, files, r, nil
}

// filesOf returns the files that came beside an order.
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
			files = append(files, os.NewFile(uintptr(fd), "file of an order"))
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
		c.SetWriteDeadline(time.Now().Add(orderWithin))
		c.Write(append(b, '\n')) // if the client has gone, nobody wants to know
	}
}

// do carries an order out.
func (l *Lab) do(ctx context.Context, o *order, files []*os.File, signals <-chan syscall.Signal, down func()) (any, error) {
	switch o.Do {
	case doStatus:
		return l.Status(ctx)
	case doDown:
		down()
		return nil, nil
	case doCut:
		return nil, l.Cut(o.Where, o.Network, o.How)
	case doHeal:
		return nil, l.Heal(o.Where)
	case doPartition:
		return nil, l.Partition(o.Groups...)
	case doDelay:
		return nil, l.Delay(o.Where, o.Delay)
	case doStart:
		return nil, l.Start(o.Where)
	case doStop:
		return nil, l.Stop(ctx, o.Where)
	case doKill:
		return nil, l.Kill(o.Where, o.What)
	case doFreeze:
		return nil, l.Freeze(o.Where, o.What)
	case doThaw:
		return nil, l.Thaw(o.Where)
	case doExec:
		if o.Command == nil || len(files) != len(o.Command.Files) {
			return nil, errors.New("no program, or not its three files")
		}
		copy(o.Command.Files[:], files)
		o.Command.Signals = signals
		return l.Exec(ctx, o.Where, *o.Command)
	case doCapture:
		if len(files) != 1 {
			return nil, errors.New("no file to write to")
		}
		return l.Capture(ctx, o.Where, files[0], o.Limits)
	}
	return nil, fmt.Errorf("the lab does not know what %q is: it was started by another version; 'peerage lab down' and 'up' again", o.Do)
}

// listenForOrders opens the control socket.
func listenForOrders(dir string) (*net.UnixListener, error) {
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
