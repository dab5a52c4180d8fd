package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"peerage/balancing/keys"
)

// quicEndpoint is the UDP side of an address: HTTP/3. It comes after the TCP side, when
// the socket can be had: while an earlier one of the same address drains, here or in
// another process of the machine, clients are served over TCP.
type quicEndpoint struct {
	server   *http3.Server
	listener *quic.Listener
	tr       *quic.Transport
	udp      net.PacketConn
	requests requests
	load     quicLoad
}

// openQUIC binds the UDP side of e.
func (s *Server) openQUIC(e *endpoint) error {
	lc := net.ListenConfig{Control: freebind}
	udp, err := lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(e.addr, s.c.Ports.HTTPS).String())
	if err != nil {
		return err
	}
	q := &quicEndpoint{udp: udp}
	ring := s.keys.Load()
	token := quic.TokenGeneratorKey(ring.Derive(keys.LabelQUICToken, ""))
	// One key an address: a node that holds the key of a peer's address could be asked for
	// the tokens that kill its connections (RFC 9000 21.11).
	reset := quic.StatelessResetKey(ring.Derive(keys.LabelQUICReset, e.addr.String()))
	q.tr = &quic.Transport{
		Conn:                udp, // bare, or quic-go loses GSO and batched reads
		ConnectionIDLength:  8,
		StatelessResetKey:   &reset,
		TokenGeneratorKey:   &token,
		ConnContext:         q.load.begin,
		VerifySourceAddress: func(net.Addr) bool { return q.load.handshakes.Load() >= retryHandshake },
	}
	// Connections come out of the listener when their handshake is done. There is
	// nothing to do earlier: 0-RTT is off.
	q.listener, err = q.tr.Listen(http3.ConfigureTLSConfig(s.c.TLS), quicConfig())
	if err != nil {
		q.tr.Close()
		udp.Close()
		return fmt.Errorf("listen for QUIC on %s: %w", e.addr, err)
	}
	q.server = &http3.Server{
		Handler:        q.requests.counted(http.HandlerFunc(s.serve)),
		MaxHeaderBytes: maxHeader,
		IdleTimeout:    idleTimeout,
		ConnContext: func(ctx context.Context, _ *quic.Conn) context.Context {
			handshakeDone(ctx)
			return withConn(ctx, netip.Addr{})
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	e.quic = q
	e.serves.Go(func() { e.ended(q.server.ServeListener(q.listener)) })
	return nil
}

func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           quicHandshake,
		MaxIdleTimeout:                 quicIdle,
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          8,
		MaxStreamReceiveWindow:         streamWindow,
		MaxConnectionReceiveWindow:     connWindow,
		InitialStreamReceiveWindow:     streamWindow / 4,
		InitialConnectionReceiveWindow: connWindow / 4,
	}
}

// goAwayTime is what a client gets to hear of the GOAWAY, and to get the rest of its last
// answer, before silence counts as the end; net/http takes the same time for HTTP/2.
const goAwayTime = time.Second

// drain stops listening at once and lets requests in progress end until ctx ends. It
// does not wait for clients to close their connections, as Shutdown does: a silent one
// would keep the socket for as long as ctx lasts.
func (q *quicEndpoint) drain(ctx context.Context) {
	var ending sync.WaitGroup
	ending.Go(func() { q.listener.Close() })
	some, gone := context.WithCancel(ctx)
	ending.Go(func() {
		q.server.Shutdown(ctx)
		gone() // all clients have closed their connections
	})
	// To close a connection throws away what is on its way, or not read yet.
	q.requests.waitQuiet(some, goAwayTime)
	gone()
	ended := make(chan struct{})
	ending.Go(func() { q.server.Close() }) // waits for the handlers
	go func() {
		ending.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(lastMoment):
	}
	q.tr.Close()
	q.udp.Close()
}

// quicLoad bounds the connections of one UDP socket.
type quicLoad struct {
	conns      atomic.Int64
	handshakes atomic.Int64 // of conns, those in progress
}

var errTooManyConns = errors.New("too many connections")

// begin is called for each new connection.
func (l *quicLoad) begin(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	if l.conns.Add(1) > maxConns {
		l.conns.Add(-1)
		return nil, errTooManyConns
	}
	l.handshakes.Add(1)
	h := &handshake{load: l}
	context.AfterFunc(ctx, func() {
		h.end()
		l.conns.Add(-1)
	})
	return context.WithValue(ctx, handshakeKey{}, h), nil
}

type handshakeKey struct{}

// handshake is one in progress. It ends once: with success or with its connection.
type handshake struct {
	load  *quicLoad
	ended atomic.Bool
}

func (h *handshake) end() {
	if !h.ended.Swap(true) {
		h.load.handshakes.Add(-1)
	}
}

// handshakeDone takes the connection of ctx from those that still shake hands.
func handshakeDone(ctx context.Context) {
	if h, ok := ctx.Value(handshakeKey{}).(*handshake); ok {
		h.end()
	}
}
