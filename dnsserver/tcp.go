package dnsserver

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// The limits of TCP (RFC 7766 section 6, RFC 9210 section 4).
const (
	idleTimeout    = 10 * time.Second // between questions
	messageTimeout = time.Second      // from the first octet of a question to its last
	writeTimeout   = 2 * time.Second
	maxConns       = 256
	maxConnsPerNet = 32 // from one /24 or /56
	acceptPause    = 100 * time.Millisecond
)

// conn is a TCP connection.
type conn struct {
	net.Conn
	at   *endpoint
	from netip.Prefix
	idle time.Time // since when it waits for a question; zero while it does not
}

// conns are the open connections of a server, on all its addresses.
type conns struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

// add takes c in. At a limit, the connection that has been idle for longest makes room;
// if all are at work, c is not taken.
func (t *conns) add(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var oldest, oldestOfNet *conn // idle ones
	ofNet := 0
	for o := range t.open {
		older := func(than *conn) bool { return !o.idle.IsZero() && (than == nil || o.idle.Before(than.idle)) }
		if older(oldest) {
			oldest = o
		}
		if o.from == c.from {
			ofNet++
			if older(oldestOfNet) {
				oldestOfNet = o
			}
		}
	}
	yields := oldest
	if ofNet >= maxConnsPerNet {
		yields = oldestOfNet
	}
	if ofNet >= maxConnsPerNet || len(t.open) >= maxConns {
		if yields == nil {
			return false
		}
		delete(t.open, yields)
		yields.Close()
	}
	t.open[c] = struct{}{}
	return true
}

// remove closes c and forgets it.
func (t *conns) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
	c.Close()
}

// setIdle notes that c waits since the given time, or, at zero, that it does not.
func (t *conns) setIdle(c *conn, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.idle = since
}

// closeOf closes the connections that came in at e.
func (t *conns) closeOf(e *endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.open {
		if c.at == e {
			c.Close()
		}
	}
}

func (t *conns) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// accept takes connections in until the listener is closed.
func (e *endpoint) accept() {
	for {
		tc, err := e.tcp.AcceptTCP()
		if err != nil {
			select {
			case <-e.closed:
				return
			case <-time.After(acceptPause): // out of descriptors, or a client that is gone already
				continue
			}
		}
		from := tc.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		bits := 24
		if from.Is6() {
			bits = 56
		}
		prefix, _ := from.Prefix(bits)
		c := &conn{Conn: tc, at: e, from: prefix}
		if !e.s.conns.add(c) {
			e.s.counters.drop(dropConns)
			c.Close()
			continue
		}
		e.serves.Go(func() { e.s.serveConn(c) })
	}
}

// serveConn answers the questions of a connection in their order, until it ends, is
// idle for too long, or breaks the rules.
func (s *Server) serveConn(c *conn) {
	defer s.conns.remove(c)
	var (
		in    = bufio.NewReaderSize(c, 512)
		query bytes.Buffer // grows with what has come, not with what was announced
		out   []byte
		size  [2]byte
	)
	for {
		now := time.Now()
		if in.Buffered() == 0 {
			s.conns.setIdle(c, now)
			c.SetReadDeadline(now.Add(idleTimeout))
			if _, err := in.Peek(1); err != nil {
				return
			}
			s.conns.setIdle(c, time.Time{})
			now = time.Now()
		}
		c.SetReadDeadline(now.Add(messageTimeout))
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return
		}
		query.Reset()
		if _, err := io.CopyN(&query, in, int64(binary.BigEndian.Uint16(size[:]))); err != nil {
			return
		}
		if out == nil {
			out = make([]byte, 4096)
		}
		s.counters.tcp.Add(1)
		reply, rcode := s.reply(out, query.Bytes(), true)
		if reply == nil {
			return
		}
		s.counters.rcodes[rcode].Add(1)
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		both := net.Buffers{size[:], reply}
		if _, err := both.WriteTo(c.Conn); err != nil {
			s.counters.drop(dropUnsent)
			return
		}
	}
}
