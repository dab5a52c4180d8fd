package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/edge/backend"
)

// A relay carries one request to the peer that must serve it, where a redirect would
// break it: a body, a fetch of a script, a WebSocket. It goes over mutual TLS between
// the nodes, and one hop only; all relays to a peer share an HTTP/2 connection, but each
// upgrade has one of HTTP/1.1 for itself.
//
// The client's address travels in a header that is believed on this link and scrubbed
// from every request that comes in from outside.
const (
	relayPrefix = "Peerage-"
	relayClient = relayPrefix + "Client"

	relayConnect   = 300 * time.Millisecond // the kernel of a peer on the same network answers in much less
	relayHandshake = 2 * time.Second        // and TLS needs a CPU, which may be busy
	relayAnswer    = 70 * time.Second       // longer than a peer waits for its own back-ends
	relaySulk      = 500 * time.Millisecond // that a peer is left alone after it was not reached

	relayStreams = 250       // requests at a time on one connection
	relayWindow  = 256 << 10 // octets that are sent ahead on each of them
)

type relay struct {
	c     Config
	proxy httputil.ReverseProxy

	mu    sync.Mutex
	wire  map[link]*wire // bounded by the nodes of the site
	lost  map[balancing.NodeID]failure
	nodes map[balancing.NodeID]bool // of the site; nil as long as nobody has said
}

// wire are the connections of a link.
type wire struct {
	*http.Transport
	shown *tls.ConnectionState // by the peer when it was last reached; nil: not yet
}

// link is one of the two ways to a peer.
type link struct {
	peer    balancing.NodeID
	upgrade bool // HTTP/1.1, which can turn into a tunnel
}

// failure says why a peer was not reached, for those who would try at the same moment.
type failure struct {
	at  time.Time
	err error
}

func newRelay(c Config) *relay {
	rl := &relay{c: c, wire: map[link]*wire{}, lost: map[balancing.NodeID]failure{}}
	rl.proxy = httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "https", "peer" // each peer has its own transport
			pr.Out.Host = pr.In.Host
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery
			pr.Out.Header.Set(relayClient, pr.In.RemoteAddr)
			backend.Via(pr)
			if _, ok := pr.In.Header["User-Agent"]; !ok {
				pr.Out.Header.Set("User-Agent", "") // or the transport would add its own
			}
		},
		Transport:    rl,
		BufferPool:   &copyBuffers,
		ErrorHandler: rl.failed,
		ErrorLog:     slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return rl
}

// failed answers for a peer. Only one that was not reached has certainly done nothing,
// so that the client may simply ask again.
func (rl *relay) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client is gone
	}
	rl.c.Log.Debug("relay failed", "err", err)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if _, ok := errors.AsType[*errConnect](err); ok {
		h.Set("Retry-After", "1")
		http.Error(w, "the node that must serve this cannot be reached just now", http.StatusServiceUnavailable)
		return
	}
	http.Error(w, "the node that must serve this did not answer", http.StatusBadGateway)
}

// errConnect is the error of a peer that was not reached.
type errConnect struct{ err error }

func (e *errConnect) Error() string { return "connect to peer: " + e.err.Error() }
func (e *errConnect) Unwrap() error { return e.err }

// relayPeer is the context key of the peer, a *balancing.Node, that a relay goes to.
type relayPeer struct{}

// relayTo carries r to the peer of x's decision.
func (s *Server) relayTo(rec *recorder, r *http.Request, x *exchange) {
	peer := x.view.Node(x.decision.Peer)
	if peer == nil || !relayAddr(peer).IsValid() {
		rec.refuse(http.StatusServiceUnavailable, "the peer's address is not known yet")
		return
	}
	rec.before = func(status int, h http.Header) { s.ownHeaders(h, status, r, x) }
	ctx := context.WithValue(r.Context(), relayPeer{}, peer)
	s.relay.proxy.ServeHTTP(rec, r.WithContext(ctx))
	rec.unanswered(r)
}

// RoundTrip sends r over the link to the peer in its context.
func (rl *relay) RoundTrip(r *http.Request) (*http.Response, error) {
	peer, ok := r.Context().Value(relayPeer{}).(*balancing.Node)
	if !ok {
		return nil, errors.New("relay without a peer")
	}
	return rl.transport(link{peer.ID, r.Header.Get("Upgrade") != ""}).RoundTrip(r)
}

// transport returns the connections of a link.
func (rl *relay) transport(to link) *http.Transport {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	w := rl.wire[to]
	if w == nil {
		w = rl.newWire(to)
		rl.wire[to] = w
	}
	return w.Transport
}

// setPeers drops the wires to all that are no peers of this site, or would not be taken
// for who they are. What is under way on them comes to its end.
func (rl *relay) setPeers(nodes []balancing.NodeID) {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	rl.nodes = make(map[balancing.NodeID]bool, len(nodes))
	for _, id := range nodes {
		rl.nodes[id] = true
	}
	for to, w := range rl.wire {
		if !rl.nodes[to.peer] || !rl.stillTaken(to.peer, w.shown) {
			delete(rl.wire, to)
			w.CloseIdleConnections()
		}
	}
	maps.DeleteFunc(rl.lost, func(id balancing.NodeID, _ failure) bool { return !rl.nodes[id] })
}

// stillTaken reports whether peer would be taken now with what it has shown.
func (rl *relay) stillTaken(peer balancing.NodeID, shown *tls.ConnectionState) bool {
	if shown == nil {
		return false // it may be connecting: to whom, nobody can say yet
	}
	verify := rl.c.RelayClient(peer).VerifyConnection
	return verify == nil || verify(*shown) == nil
}

// isPeer reports whether a node is of the site, as far as anybody has said.
func (rl *relay) isPeer(id balancing.NodeID) bool {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	return rl.nodes == nil || rl.nodes[id]
}

func (rl *relay) newWire(to link) *wire {
	w := new(wire)
	t := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := rl.dial(ctx, to, w)
			if err != nil {
				return nil, &errConnect{err}
			}
			return conn, nil
		},
		Protocols:             new(http.Protocols),
		ResponseHeaderTimeout: relayAnswer,
		IdleConnTimeout:       idleTimeout,
		DisableCompression:    true,
	}
	w.Transport = t
	if to.upgrade {
		t.Protocols.SetHTTP1(true)
		return w
	}
	t.Protocols.SetHTTP2(true)
	t.MaxConnsPerHost = 1 // or a rush of requests would open a connection each; a full one is not counted
	t.HTTP2 = &http.HTTP2Config{
		MaxReceiveBufferPerStream: relayWindow,
		SendPingTimeout:           3 * time.Second, // a peer that vanished must not hold its relays for ever
		PingTimeout:               3 * time.Second,
	}
	return w
}

// dial connects to a peer, at the address that the newest view has.
func (rl *relay) dial(ctx context.Context, to link, w *wire) (net.Conn, error) {
	n := rl.c.View().Node(to.peer)
	if n == nil || !rl.isPeer(to.peer) {
		return nil, errors.New("it is not of this site")
	}
	if err := rl.lately(to.peer); err != nil {
		return nil, err
	}
	conn, err := rl.connect(ctx, to, netip.AddrPortFrom(relayAddr(n), rl.c.Ports.Relay))
	rl.mu.Lock()
	defer rl.mu.Unlock()
	switch {
	case err == nil:
		shown := conn.ConnectionState()
		w.shown = &shown
		return conn, nil
	case ctx.Err() == nil:
		rl.lost[to.peer] = failure{time.Now(), err}
	}
	return nil, err
}

func (rl *relay) connect(ctx context.Context, to link, addr netip.AddrPort) (*tls.Conn, error) {
	d := net.Dialer{Timeout: relayConnect}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	conf := rl.c.RelayClient(to.peer).Clone()
	conf.NextProtos = []string{"h2"}
	if to.upgrade {
		conf.NextProtos = []string{"http/1.1"}
	}
	ctx, cancel := context.WithTimeout(ctx, relayHandshake)
	defer cancel()
	secure := tls.Client(conn, conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// lately returns why peer was not reached a moment ago. Who waited for that attempt would
// otherwise make one of his own, after all others in front of him.
func (rl *relay) lately(peer balancing.NodeID) error {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	if f := rl.lost[peer]; time.Since(f.at) < relaySulk {
		return f.err
	}
	return nil
}

// relayAddr is where n takes relays: on the internal network, if there is one.
func relayAddr(n *balancing.Node) netip.Addr {
	if n.Internal.IsValid() {
		return n.Internal
	}
	return n.Address
}

func (rl *relay) close() {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	for _, w := range rl.wire {
		w.CloseIdleConnections()
	}
}

// serve listens for peers. The returned function drains and closes it.
func (rl *relay) serve(h http.Handler) (stop func(ctx context.Context), err error) {
	addr := netip.AddrPortFrom(rl.c.Relay, rl.c.Ports.Relay)
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	srv := newDrainable(&http.Server{
		Handler:   h,
		TLSConfig: rl.linkTLS(),
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          relayStreams,
			MaxReceiveBufferPerStream:     relayWindow,
			MaxReceiveBufferPerConnection: relayStreams * relayWindow, // no upload can hold up another
			WriteByteTimeout:              patience,
		},
		MaxHeaderBytes:    2 * maxHeader,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(rl.c.Log.Handler(), slog.LevelDebug),
		// "OPTIONS *" comes to the handler like all else, which knows who may ask.
		DisableGeneralOptionsHandler: true,
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.ServeTLS(&linkListener{Listener: l}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			rl.c.Log.Error("listener failed", "addr", addr, "err", err)
		}
	})
	return func(ctx context.Context) {
		srv.drain(ctx)
		wg.Wait()
	}, nil
}

// serveRelayed serves a request that a peer carried here.
func (s *Server) serveRelayed(w http.ResponseWriter, r *http.Request, from balancing.NodeID) {
	client, err := netip.ParseAddrPort(r.Header.Get(relayClient))
	if err != nil {
		http.Error(w, "not a relayed request", http.StatusBadRequest)
		return
	}
	r.RemoteAddr = client.String()
	s.handle(w, r, from)
}
