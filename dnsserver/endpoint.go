package dnsserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// endpoint is one address: its UDP socket, its TCP listener and its connections.
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
	lc := net.ListenConfig{Control: freebind}
	udp, err := lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, s.c.Port).String())
	if err != nil {
		return nil, err
	}
	addr := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	tcp, err := lc.Listen(context.Background(), "tcp", addr.String())
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
	select {
	case e.s.failed <- struct{}{}:
	default:
	}
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

// freebind lets a socket bind an address that the kernel does not have yet: a VIP is
// listened on the moment it is claimed.
func freebind(network, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		if network[len(network)-1] == '6' {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	}); e != nil {
		return e
	}
	return err
}
