package edge

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/quic-go/quic-go"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// The bounds of one address.
const (
	maxHeader      = 16 << 10 // octets of a request's head
	maxStreams     = 100      // requests at a time on one HTTP/2 or HTTP/3 connection
	maxConns       = 16 << 10 // connections, each of HTTP, HTTPS and QUIC
	headerTimeout  = 10 * time.Second
	idleTimeout    = 90 * time.Second
	quicIdle       = 30 * time.Second
	quicHandshake  = 5 * time.Second
	streamWindow   = 1 << 20
	connWindow     = 4 << 20
	retryHandshake = 200 // QUIC handshakes in progress from which on clients must prove their address
)

// endpoint is one address: its TCP and UDP listeners and the servers behind them.
// It can be drained apart from all others, as a VIP that goes back to its home needs.
type endpoint struct {
	addr   netip.Addr
	log    *slog.Logger
	https  *drainable
	http   *drainable
	quic   *quicEndpoint // nil until its socket could be had
	serves sync.WaitGroup
}

// open binds the TCP listeners of a, both or none.
func (s *Server) open(a netip.Addr) (*endpoint, error) {
	lc := net.ListenConfig{Control: freebind}
	https, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(a, s.c.Ports.HTTPS).String())
	if err != nil {
		return nil, err
	}
	plain, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(a, s.c.Ports.HTTP).String())
	if err != nil {
		https.Close()
		return nil, err
	}
	e := &endpoint{addr: a, log: s.c.Log, https: newDrainable(s.httpsServer()), http: newDrainable(s.plainServer())}
	e.serves.Go(func() { e.ended(e.https.ServeTLS(s.acceptor(https), "", "")) })
	e.serves.Go(func() { e.ended(e.http.Serve(s.acceptor(plain))) })
	return e, nil
}

// acceptor bounds the connections of l, and reads of those that come from a trusted proxy
// for whom they are.
func (s *Server) acceptor(l net.Listener) net.Listener {
	return &proxyproto.Listener{
		Listener:          netutil.LimitListener(l, maxConns),
		ReadHeaderTimeout: headerTimeout,
		ConnPolicy: func(c proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			// The header is never guessed: a proxy that sends none would pass the one
			// that its client has written.
			if site := s.site.Load(); site.ProxyProtocol && site.trusts(addrOf(c.Upstream)) {
				return proxyproto.REQUIRE, nil
			}
			return proxyproto.SKIP, nil
		},
	}
}

func (s *Server) httpsServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:   http.HandlerFunc(s.serve),
		TLSConfig: s.c.TLS.Clone(), // net/http writes to it
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			WriteByteTimeout:     patience, // a stream can be cut off only if its connection moves
		},
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return withConn(ctx, proxyOf(c)) },
		ErrorLog:          s.errorLog(),
		// "OPTIONS *" is a request without a URI as well.
		DisableGeneralOptionsHandler: true,
	}
}

func (s *Server) plainServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(s.servePlain),
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          s.errorLog(),
	}
}

// errorLog takes what net/http says of clients that are not worth more.
func (s *Server) errorLog() *log.Logger {
	return slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug)
}

func (e *endpoint) ended(err error) {
	if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, quic.ErrServerClosed) {
		e.log.Error("listener failed", "addr", e.addr, "err", err)
	}
}

// drain stops listening at once, lets requests in progress end until ctx ends, and
// closes what is left.
func (e *endpoint) drain(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { e.https.drain(ctx) })
	wg.Go(func() { e.http.drain(ctx) })
	if e.quic != nil {
		wg.Go(func() { e.quic.drain(ctx) })
	}
	wg.Wait()
	e.serves.Wait()
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
