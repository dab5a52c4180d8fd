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
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
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

// address is one that the node holds, or is ready for. Run owns it.
type address struct {
	s    *Server
	addr netip.Addr
	held bool
	open atomic.Pointer[endpoint] // nil if nothing is; anybody may look
}

// Open opens what the address lacks. Clients are served as soon as the TCP listeners are
// there.
func (a *address) Open() (serves bool, err error) {
	e := a.open.Load()
	if e != nil && e.failed.Load() {
		a.Close()
		return false, errors.New("its listener failed")
	}
	if e == nil {
		if e, err = a.s.open(a.addr); err != nil {
			return false, err
		}
		a.open.Store(e)
	}
	if !a.held {
		e.forgetOldKeys()
	}
	return true, e.openQUIC()
}

// Hold lets clients in for good, or ends their connections.
func (a *address) Hold(held bool) {
	a.held = held
	switch e := a.open.Load(); {
	case e == nil:
	case held:
		e.stay()
	default:
		e.abort()
	}
}

// Close drains the endpoint, if there is one, within the site's grace. The time since its
// clients were told to go counts.
func (a *address) Close() {
	if e := a.open.Swap(nil); e != nil {
		left := a.s.site.Load().Grace - e.going()
		a.s.drain(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, left)
			defer cancel()
			e.drain(ctx)
		})
	}
}

// endpoint is what is open on an address: its TCP and UDP sockets, and the service that
// takes the connections. It can be drained apart from all others, as a VIP that goes back to
// its home needs.
type endpoint struct {
	s        *Server
	addr     netip.Addr
	https    *door
	http     *door
	requests requests    // in progress, in all services
	failed   atomic.Bool // must be opened anew

	mu      sync.Mutex
	quic    *quicEndpoint // nil until its socket could be had
	present *service
	told    <-chan struct{} // of the service whose clients were told to go; nil while they may stay
	since   time.Time       // when they were told
	closed  bool

	// The services before the present one end by themselves, or when life ends.
	life context.Context
	cut  context.CancelFunc
	past sync.WaitGroup
}

// open binds the TCP listeners of a, both or none.
func (s *Server) open(a netip.Addr) (*endpoint, error) {
	https, err := openDoor(netip.AddrPortFrom(a, s.c.Ports.HTTPS))
	if err != nil {
		return nil, err
	}
	plain, err := openDoor(netip.AddrPortFrom(a, s.c.Ports.HTTP))
	if err != nil {
		https.l.Close()
		return nil, err
	}
	e := &endpoint{s: s, addr: a, https: https, http: plain}
	e.life, e.cut = context.WithCancel(context.Background())
	e.serve(true)
	return e, nil
}

// openQUIC binds the UDP socket, unless there is one.
func (e *endpoint) openQUIC() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.quic != nil || e.closed {
		return nil
	}
	if e.quic, err = e.s.openQUIC(e.addr); err == nil {
		e.present.serveQUIC(e.quic)
	}
	return err
}

// forgetOldKeys closes the UDP socket if the keys that it was opened with have been
// replaced. Nobody is connected to an address that is not held.
func (e *endpoint) forgetOldKeys() {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.quic
	if q == nil || e.closed || q.ring == e.s.keys.Load() {
		return
	}
	was := e.present
	was.stop()
	h := was.h3
	was.h3, e.quic = nil, nil
	e.serve(true)
	e.end(was)
	now, cancel := context.WithCancel(context.Background())
	cancel()
	q.drain(now, h)
}

// leave has new connections served by a new service, which keeps none of them for long, and
// tells the clients of the present one to go.
func (e *endpoint) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.told != nil || e.closed {
		return
	}
	was := e.present
	was.stop()
	e.serve(false)
	e.told, e.since = e.end(was), time.Now()
}

// going returns for how long its clients have been told to go.
func (e *endpoint) going() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.told == nil || e.since.IsZero() {
		return 0
	}
	return time.Since(e.since)
}

// stay calls leave off.
func (e *endpoint) stay() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.told != nil && !e.closed {
		e.told, e.since = nil, time.Time{}
		e.present.keepAlive(true)
	}
}

// busy reports whether some client has not had the time to go, or has asked something.
func (e *endpoint) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.told == nil || e.closed {
		return false
	}
	select {
	case <-e.told:
		return e.requests.n.Load() > 0
	default:
		return true
	}
}

// stays reports whether clients are not told to go.
func (e *endpoint) stays() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told == nil && !e.closed
}

// abort closes all connections at once: the address is gone, and no answer leaves it.
func (e *endpoint) abort() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	was := e.present
	was.stop()
	e.https.abort()
	e.http.abort()
	e.serve(true)
	e.told = e.end(was)
	e.cut()
	e.life, e.cut = context.WithCancel(context.Background())
}

// drain stops listening at once, lets requests in progress end until ctx ends, and
// closes what is left.
func (e *endpoint) drain(ctx context.Context) {
	e.mu.Lock()
	e.closed = true
	v, q := e.present, e.quic
	v.stop()
	e.https.l.Close()
	e.http.l.Close()
	e.mu.Unlock()
	defer e.cut()
	defer context.AfterFunc(ctx, e.cut)()
	var wg sync.WaitGroup
	wg.Go(func() { v.drain(ctx) })
	if q != nil {
		wg.Go(func() { q.drain(ctx, v.h3) })
	}
	wg.Wait()
	e.past.Wait()
}

// service serves the connections that come to an address, until the next service takes its
// place. That is how the clients of a VIP are told to go: the servers of net/http and quic-go
// tell all their clients, and only at their own end.
type service struct {
	e      *endpoint
	https  *drainable
	http   *drainable
	h3     *h3Server // nil until there is a UDP socket
	taking context.Context
	leave  context.CancelFunc // of taking
	takes  sync.WaitGroup     // one a listener
}

// serve makes a new service the present one. Without keepAlive it lets clients go when
// their first requests are done.
func (e *endpoint) serve(keepAlive bool) {
	v := &service{
		e:     e,
		https: newDrainable(e.requests.of(e.s.httpsServer())),
		http:  newDrainable(e.requests.of(e.s.plainServer())),
	}
	v.taking, v.leave = context.WithCancel(context.Background())
	v.keepAlive(keepAlive)
	https, plain := e.s.acceptor(e.https.doorway(v.taking)), e.s.acceptor(e.http.doorway(v.taking))
	v.take(func() error { return v.https.ServeTLS(https, "", "") })
	v.take(func() error { return v.http.Serve(plain) })
	e.present = v
	if e.quic != nil {
		v.serveQUIC(e.quic)
	}
}

func (v *service) serveQUIC(q *quicEndpoint) {
	v.h3 = v.e.s.newH3Server(&v.e.requests)
	v.take(func() error { return v.h3.ServeListener(untilLeft{q.listener, v.taking}) })
}

// take runs serve. If that ends by itself, all is opened anew.
func (v *service) take(serve func() error) {
	v.takes.Go(func() {
		err := serve()
		if v.taking.Err() != nil {
			return
		}
		v.e.s.c.Log.Error("listener failed", "addr", v.e.addr, "err", err)
		v.e.failed.Store(true)
		v.e.s.listeners.Look()
	})
}

func (v *service) keepAlive(on bool) {
	v.https.SetKeepAlivesEnabled(on)
	v.http.SetKeepAlivesEnabled(on)
}

// stop returns when v takes no new connections any more.
func (v *service) stop() {
	v.leave()
	v.e.https.leave()
	v.e.http.leave()
	v.takes.Wait()
}

// drain lets the requests that came by TCP end until ctx ends, and closes what is left.
func (v *service) drain(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { v.https.drain(ctx) })
	wg.Go(func() { v.http.drain(ctx) })
	wg.Wait()
}

func (v *service) inProgress() int64 {
	n := v.https.requests.n.Load() + v.http.requests.n.Load()
	if v.h3 != nil {
		n += v.h3.requests.n.Load()
	}
	return n
}

// end tells the clients of v, which takes no more, to go. The channel is closed when they
// have gone, or have asked nothing for as long as it may take them.
func (e *endpoint) end(v *service) <-chan struct{} {
	told := make(chan struct{})
	life, q := e.life, e.quic
	some, gone := context.WithCancel(life)
	var clients sync.WaitGroup
	clients.Go(func() { v.drain(life) })
	if v.h3 != nil {
		q.past.Add(1)
		clients.Go(func() {
			defer q.past.Done()
			v.h3.drain(life)
		})
	}
	e.past.Go(func() {
		clients.Wait()
		gone()
	})
	e.past.Go(func() {
		defer close(told)
		waitQuiet(some, goAwayTime, v.inProgress)
	})
	return told
}

// acceptor reads of connections that come from a trusted proxy for whom they are.
func (s *Server) acceptor(l net.Listener) net.Listener {
	return &proxyproto.Listener{
		Listener:          l,
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
