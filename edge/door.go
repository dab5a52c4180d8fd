package edge

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing/listen"
)

// door is the TCP listener of one port of an address, and the connections that came
// through it. Servers of net/http can follow each other at a door: each has a doorway of its
// own, and while there is none, connections wait.
type door struct {
	l     *net.TCPListener
	slots chan struct{} // holds one for each connection

	mu   sync.Mutex
	open map[*doorConn]struct{}
}

func openDoor(at netip.AddrPort) (*door, error) {
	l, err := listen.Freebind.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return &door{l: l.(*net.TCPListener), slots: make(chan struct{}, maxConns), open: map[*doorConn]struct{}{}}, nil
}

// abort closes all connections without a farewell, for it would not arrive: a connection
// that has something to send must not live on in the kernel to send it (RFC 9293 3.10.5).
func (d *door) abort() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.open {
		c.SetLinger(0)
		c.TCPConn.Close() // whoever serves it notices, and closes the rest
	}
}

// doorway is the listener of one server. It gives no connection when its context has ended.
type doorway struct {
	*door
	taking context.Context
}

// doorway returns the next doorway. That of the server before must have been left.
func (d *door) doorway(taking context.Context) doorway {
	d.l.SetDeadline(time.Time{})
	return doorway{d, taking}
}

// leave wakes a server whose doorway gives no more connections.
func (d *door) leave() { d.l.SetDeadline(time.Unix(1, 0)) }

// Accept waits for a connection, and for room for it.
func (w doorway) Accept() (net.Conn, error) {
	select {
	case w.slots <- struct{}{}:
	case <-w.taking.Done():
		return nil, net.ErrClosed
	}
	tcp, err := w.l.AcceptTCP()
	if err != nil {
		<-w.slots
		if w.taking.Err() != nil {
			err = net.ErrClosed
		}
		return nil, err
	}
	c := &doorConn{TCPConn: tcp, door: w.door}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[c] = struct{}{}
	return c, nil
}

// Close does nothing: the door is not the server's.
func (w doorway) Close() error { return nil }

// Addr returns the address of the door.
func (w doorway) Addr() net.Addr { return w.l.Addr() }

// doorConn is a connection.
type doorConn struct {
	*net.TCPConn
	door   *door
	closed atomic.Bool
}

func (c *doorConn) Close() error {
	err := c.TCPConn.Close()
	if !c.closed.Swap(true) {
		c.door.mu.Lock()
		defer c.door.mu.Unlock()
		delete(c.door.open, c)
		<-c.door.slots
	}
	return err
}
