package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
	"peerage/edge/route"
)

// The port of the relay link has two doors. Under its usual names it is for nodes, which
// show a certificate; what a node carries here for a client bears the client's address, and
// what it wants itself does not. Under [Config.JoinName] it is for who would become a node,
// and nothing is behind that door but the joining. Which door a connection came by is
// settled in its handshake and is true for all that comes over it.
const (
	// PeersPath is where all paths of [Config.Peers] begin.
	PeersPath = "/.peerage/"

	// JoinPath is the one path of [Config.Join].
	JoinPath = "/join"

	apiBody = 64 << 10         // octets of what is asked
	apiTime = 10 * time.Second // for a request and its answer
	apiLast = time.Second      // of that, for the answer alone: one that is made must arrive
	apiBusy = 8                // requests at a time, of each of both

	joinConns = 32               // connections at a time of those that show nothing
	joinLife  = 30 * time.Second // of such a connection
)

// peerAPI is what nodes, and those that would be, ask for themselves.
type peerAPI struct{ peers, join http.Handler }

func newPeerAPI(c Config) *peerAPI {
	return &peerAPI{peers: bounded(c.Peers), join: bounded(c.Join)}
}

// bounded puts the limits around h, or refuses if there is none.
func bounded(h http.Handler) http.Handler {
	if h == nil {
		return http.NotFoundHandler()
	}
	busy := make(chan struct{}, apiBusy)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many ask at this moment", http.StatusServiceUnavailable)
			return
		}
		if r.ContentLength > apiBody {
			http.Error(w, "more than may be asked at once", http.StatusRequestEntityTooLarge)
			return
		}
		end := time.Now().Add(apiTime)
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetReadDeadline(end), c.SetWriteDeadline(end)); err != nil {
			http.Error(w, "this connection has no bounds", http.StatusInternalServerError)
			return
		}
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close") // the deadlines are the connection's
		}
		ctx, cancel := context.WithDeadline(r.Context(), end.Add(-apiLast))
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, apiBody)
		h.ServeHTTP(w, r)
	})
}

// serveLink serves a request on the relay link.
func (s *Server) serveLink(w http.ResponseWriter, r *http.Request) {
	if len(r.TLS.VerifiedChains) == 0 {
		s.serveStranger(w, r)
		return
	}
	from, ok := s.relay.peer(r.TLS)
	switch _, carried := r.Header[relayClient]; {
	case !ok:
		h, status := w.Header(), http.StatusForbidden
		h.Set("Connection", "close")
		h.Set("Cache-Control", "no-store")
		if carried { // the client asks again, and perhaps another node
			h.Set("Retry-After", "1")
			status = http.StatusServiceUnavailable
		}
		http.Error(w, "the node that asks is not one of this site", status)
	case carried: // whatever its path: it is a client's
		s.serveRelayed(w, r, from)
	case r.URL.Path == busyPath:
		s.serveBusy(w)
	case strings.HasPrefix(r.URL.Path, PeersPath):
		s.peers.peers.ServeHTTP(w, r)
	default:
		http.Error(w, "not a relayed request", http.StatusBadRequest)
	}
}

// serveStranger serves who has shown no certificate.
func (s *Server) serveStranger(w http.ResponseWriter, r *http.Request) {
	authority, _, err := route.ParseAuthority(r.Host)
	switch {
	case err != nil, s.c.JoinName == "", r.TLS.ServerName != s.c.JoinName, authority != s.c.JoinName:
		w.Header().Set("Connection", "close")
		http.Error(w, "this is not answered for here", http.StatusMisdirectedRequest)
	case r.URL.Path != JoinPath:
		w.Header().Set("Connection", "close")
		http.Error(w, "nothing but "+JoinPath+" is served here", http.StatusNotFound)
	default:
		s.peers.join.ServeHTTP(w, r)
	}
}

// peer returns the node at the other end of a connection, if it would still be taken.
func (rl *relay) peer(cs *tls.ConnectionState) (balancing.NodeID, bool) {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].DNSNames) != 1 {
		return "", false
	}
	// The name of a node's own certificate begins with the node.
	name, _, _ := strings.Cut(cs.PeerCertificates[0].DNSNames[0], ".")
	id := balancing.NodeID(name)
	if verify := rl.c.RelayServer.VerifyConnection; verify != nil && verify(*cs) != nil {
		return "", false
	}
	return id, rl.isPeer(id)
}

// linkTLS is the server side of both doors.
func (rl *relay) linkTLS() *tls.Config {
	nodes := rl.c.RelayServer.Clone() // net/http writes to it
	// A ticket of one door must not open the other.
	nodes.SessionTicketsDisabled = true
	if rl.c.Join == nil || rl.c.JoinTLS == nil || rl.c.JoinName == "" {
		return nodes
	}
	strangers := rl.c.JoinTLS.Clone()
	strangers.ClientAuth = tls.NoClientCert
	strangers.SessionTicketsDisabled = true
	strangers.NextProtos = []string{"h2", "http/1.1"}
	nodes.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName != rl.c.JoinName {
			return nil, nil // as a node
		}
		c, ok := hello.Conn.(*linkConn)
		if !ok || !c.stranger() {
			return nil, errTooManyConns
		}
		return strangers, nil
	}
	return nodes
}

// linkListener knows how many of its connections are of strangers.
type linkListener struct {
	net.Listener
	strangers atomic.Int64
}

func (l *linkListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &linkConn{Conn: c, of: l}, nil
}

type linkConn struct {
	net.Conn
	of *linkListener

	mu     sync.Mutex
	life   *time.Timer // of a stranger's; nil of a node's
	closed bool
}

// stranger notes that the connection is one of a stranger, and reports whether there is
// room for it. It will not last long.
func (c *linkConn) stranger() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.life != nil {
		return false
	}
	if c.of.strangers.Add(1) > joinConns {
		c.of.strangers.Add(-1)
		return false
	}
	c.life = time.AfterFunc(joinLife, func() { c.Close() })
	return true
}

func (c *linkConn) Close() error {
	c.mu.Lock()
	if c.life != nil && !c.closed {
		c.life.Stop()
		c.of.strangers.Add(-1)
	}
	c.closed = true
	c.mu.Unlock()
	return c.Conn.Close()
}
