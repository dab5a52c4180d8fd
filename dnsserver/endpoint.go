package dnsserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"peerage/balancing/listen"
)

// address is one that the node holds, or is ready for. Run owns it.
type address struct {
	s    *Server
	addr netip.Addr
	open atomic.Pointer[endpoint] // nil if nothing is; anybody may look
}

// Open opens the endpoint, unless there is one that has not failed.
func (a *address) Open() (serves bool, err error) {
	if e := a.open.Load(); e != nil && !e.failed.Load() {
		return true, nil
	}
	a.Close()
	e, err := a.s.open(a.addr)
	if err != nil {
		return false, err
	}
	a.open.Store(e)
	return true, nil
}

// Hold closes the connections when the address is no longer held.
func (a *address) Hold(held bool) {
	if e := a.open.Load(); e != nil && !held {
		a.s.conns.closeOf(e)
	}
}

// Close closes the endpoint, if there is one.
func (a *address) Close() {
	if e := a.open.Swap(nil); e != nil {
		e.close()
	}
}

// endpoint is what is open on an address: its UDP socket, its TCP listener and its
// connections.
type endpoint struct {
	s      *Server
	addr   netip.AddrPort
	udp    *net.UDPConn
	tcp    *net.TCPListener
	failed atomic.Bool // must be opened anew
	closed chan struct{}
	loops  sync.WaitGroup // one a socket
	serves sync.WaitGroup // one a connection
}

// receiveBuffer holds the datagrams of a burst; the kernel's default holds some 200.
const receiveBuffer = 1 << 20

// open binds UDP and TCP on a, or neither, and begins to answer.
func (s *Server) open(a netip.Addr) (*endpoint, error) {
	udp, err := listen.Freebind.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, s.c.Port).String())
	if err != nil {
		return nil, err
	}
	addr := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	tcp, err := listen.Freebind.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		udp.Close()
		return nil, err
	}
	e := &endpoint{s: s, addr: addr, udp: udp.(*net.UDPConn), tcp: tcp.(*net.TCPListener), closed: make(chan struct{})}
	e.udp.SetReadBuffer(receiveBuffer) // as far as the kernel allows
	e.loops.Go(e.serveUDP)
	e.loops.Go(e.accept)
	return e, nil
}

// close ends all that the endpoint does, and waits for it.
func (e *endpoint) close() {
	close(e.closed)
	e.udp.Close()
	e.tcp.Close()
	e.loops.Wait() // from here on no connection is added
	e.s.conns.closeOf(e)
	e.serves.Wait()
}

// fail has Run open the endpoint anew, unless it is being closed.
func (e *endpoint) fail(err error) {
	if errors.Is(err, net.ErrClosed) {
		return
	}
	e.s.c.Log.Error("DNS socket failed", "addr", e.addr.Addr(), "err", err)
	e.failed.Store(true)
	e.s.listeners.Look()
}

// maxQuery bounds a question over UDP. A longer one is cut short, and so malformed.
const maxQuery = 2048

// maxErrors bounds the replies to datagrams that no resolver sends, a socket and
// second: their senders may be forged.
const maxErrors = 100

// serveUDP answers datagrams, one by one, until the socket fails or is closed.
func (e *endpoint) serveUDP() {
	var (
		s      = e.s
		in     = make([]byte, maxQuery)
		out    = make([]byte, 4096)
		second int64
		errs   int
	)
	for {
		n, from, err := e.udp.ReadFromUDPAddrPort(in)
		if err != nil {
			e.fail(err)
			return
		}
		s.counters.udp.Add(1)
		reply, rcode := s.reply(out, in[:n], false)
		if reply == nil {
			continue
		}
		if rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented {
			if now := time.Now().Unix(); now != second {
				second, errs = now, 0
			}
			if errs++; errs > maxErrors {
				s.counters.drop(dropMalformed)
				continue
			}
		}
		s.counters.rcodes[rcode].Add(1)
		if _, err := e.udp.WriteToUDPAddrPort(reply, from); err != nil {
			s.counters.drop(dropUnsent) // a full buffer or a senseless address: this reply only
		}
	}
}
