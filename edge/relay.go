package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"peerage/balancing"
)

// A relay carries one request to the peer that must serve it, where a redirect would
// break it: a body, a fetch of a script, a WebSocket. It goes over mutual TLS between
// the nodes, and one hop only.
//
// The client's address travels in a header that is believed on this link and scrubbed
// from every request that comes in from outside.
const (
	relayPrefix = "Peerage-"
	relayClient = relayPrefix + "Client"

	relayConnect = 300 * time.Millisecond // a peer on the same network answers in much less
	relayAnswer  = 70 * time.Second       // longer than a peer waits for its own back-ends
)

type relay struct {
	c     Config
	proxy httputil.ReverseProxy

	mu   sync.Mutex
	wire map[balancing.NodeID]*http.Transport // bounded by the nodes of the site
}

func newRelay(c Config) *relay {
	rl := &relay{c: c, wire: map[balancing.NodeID]*http.Transport{}}
	rl.proxy = httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "https", "peer" // each peer has its own transport
			pr.Out.Host = pr.In.Host
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery
			pr.Out.Header.Set(relayClient, pr.In.RemoteAddr)
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
		http.Error(w, "the node that holds this session cannot be reached just now", http.StatusServiceUnavailable)
		return
	}
	http.Error(w, "the node that holds this session did not answer", http.StatusBadGateway)
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
	if peer == nil || !peer.Address.IsValid() {
		rec.refuse(http.StatusServiceUnavailable, "the peer's address is not known yet")
		return
	}
	rec.before = func(status int, h http.Header) { s.ownHeaders(h, status, r, x) }
	ctx := context.WithValue(r.Context(), relayPeer{}, peer)
	s.relay.proxy.ServeHTTP(rec, r.WithContext(ctx))
}

// RoundTrip sends r over the link to the peer in its context.
func (rl *relay) RoundTrip(r *http.Request) (*http.Response, error) {
	peer, ok := r.Context().Value(relayPeer{}).(*balancing.Node)
	if !ok {
		return nil, errors.New("relay without a peer")
	}
	return rl.transport(peer.ID).RoundTrip(r)
}

// transport returns the connections to peer. HTTP/1.1 carries upgrades as well.
func (rl *relay) transport(peer balancing.NodeID) *http.Transport {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	t := rl.wire[peer]
	if t == nil {
		t = &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := rl.dial(ctx, peer)
				if err != nil {
					return nil, &errConnect{err}
				}
				return conn, nil
			},
			ResponseHeaderTimeout: relayAnswer,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       60 * time.Second,
			DisableCompression:    true,
		}
		rl.wire[peer] = t
	}
	return t
}

// dial connects to peer, at the address that the newest view has.
func (rl *relay) dial(ctx context.Context, peer balancing.NodeID) (net.Conn, error) {
	n := rl.c.View().Node(peer)
	if n == nil {
		return nil, errors.New("it is not of this site")
	}
	ctx, cancel := context.WithTimeout(ctx, relayConnect)
	defer cancel()
	d := tls.Dialer{Config: rl.c.RelayClient(peer)}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(n.Address, rl.c.Ports.Relay).String())
}

func (rl *relay) close() {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	for _, t := range rl.wire {
		t.CloseIdleConnections()
	}
}

// serve listens for peers. The returned function drains and closes it.
func (rl *relay) serve(h http.Handler) (stop func(ctx context.Context), err error) {
	addr := netip.AddrPortFrom(rl.c.Relay, rl.c.Ports.Relay)
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	srv := newDrainable(&http.Server{
		Handler:           h,
		TLSConfig:         rl.c.RelayServer,
		MaxHeaderBytes:    2 * maxHeader,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ConnContext:       func(ctx context.Context, _ net.Conn) context.Context { return withConn(ctx) },
		ErrorLog:          slog.NewLogLogger(rl.c.Log.Handler(), slog.LevelDebug),
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			rl.c.Log.Error("listener failed", "addr", addr, "err", err)
		}
	})
	return func(ctx context.Context) {
		srv.drain(ctx)
		wg.Wait()
	}, nil
}

// serveRelayed serves a request that a peer carried here. The link's TLS has already
// checked that it is a node of the site.
func (s *Server) serveRelayed(w http.ResponseWriter, r *http.Request) {
	client, err := netip.ParseAddrPort(r.Header.Get(relayClient))
	if err != nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.PeerCertificates[0].DNSNames) == 0 {
		http.Error(w, "not a relayed request", http.StatusBadRequest)
		return
	}
	r.RemoteAddr = client.String()
	// The name of a node's own certificate begins with the node.
	from, _, _ := strings.Cut(r.TLS.PeerCertificates[0].DNSNames[0], ".")
	s.handle(w, r, balancing.NodeID(from))
}
