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
	"peerage/balancing/listen"
)

// quicEndpoint is the UDP side of an address. It comes after the TCP side, when the socket
// can be had: while an earlier one of the same address drains, here or in another process of
// the machine, clients are served over TCP.
type quicEndpoint struct {
	ring     *keys.Ring // that its keys are of
	listener *quic.Listener
	tr       *quic.Transport
	udp      net.PacketConn
	load     quicLoad
	past     sync.WaitGroup // servers that take no more connections
}

// openQUIC binds the UDP side of a.
func (s *Server) openQUIC(a netip.Addr) (*quicEndpoint, error) {
	udp, err := listen.Freebind.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, s.c.Ports.HTTPS).String())
	if err != nil {
		return nil, err
	}
	q := &quicEndpoint{ring: s.keys.Load(), udp: udp}
	token := quic.TokenGeneratorKey(q.ring.Derive(keys.LabelQUICToken, ""))
	// One key an address: a node that holds the key of a peer's address could be asked for
	// the tokens that kill its connections (RFC 9000 21.11).
	reset := quic.StatelessResetKey(q.ring.Derive(keys.LabelQUICReset, a.String()))
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
		return nil, fmt.Errorf("listen for QUIC on %s: %w", a, err)
	}
	return q, nil
}

// drain stops listening at once, lets the requests of last and of the servers before it end
// until ctx ends, and closes the socket.
func (q *quicEndpoint) drain(ctx context.Context, last *h3Server) {
	var closing sync.WaitGroup
	closing.Go(func() { q.listener.Close() }) // waits for handshakes
	last.drain(ctx)
	q.past.Wait()
	q.tr.Close() // and ends them
	q.udp.Close()
	closing.Wait()
}

// h3Server serves HTTP/3 on the connections that it takes from a listener.
type h3Server struct {
	*http3.Server
	requests requests
}

func (s *Server) newH3Server(count *requests) *h3Server {
	h := new(h3Server)
	h.Server = &http3.Server{
		Handler:        h.requests.counted(count.counted(http.HandlerFunc(s.serve))),
		MaxHeaderBytes: maxHeader,
		IdleTimeout:    idleTimeout,
		ConnContext: func(ctx context.Context, _ *quic.Conn) context.Context {
			handshakeDone(ctx)
			return withConn(ctx, netip.Addr{})
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	return h
}

// untilLeft is a listener that gives no connection after its context has ended. A server
// that is shut down in the middle of Accept would forget the connection.
type untilLeft struct {
	*quic.Listener
	taking context.Context
}

func (l untilLeft) Accept(context.Context) (*quic.Conn, error) { return l.Listener.Accept(l.taking) }

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

// drain lets requests in progress end until ctx ends. The server must have left its
// listener. drain does not wait for clients to close their connections, as Shutdown does: a
// silent one would keep the socket for as long as ctx lasts.
func (h *h3Server) drain(ctx context.Context) {
	var ending sync.WaitGroup
	some, gone := context.WithCancel(ctx)
	ending.Go(func() {
		h.Shutdown(ctx)
		gone() // all clients have closed their connections
	})
	// To close a connection throws away what is on its way, or not read yet.
	waitQuiet(some, goAwayTime, h.requests.n.Load)
	gone()
	ended := make(chan struct{})
	ending.Go(func() { h.Close() }) // waits for the handlers
	go func() {
		ending.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(lastMoment):
	}
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
