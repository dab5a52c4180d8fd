package edge

import (
	"fmt"
	"net/http"
	"time"

	"peerage/balancing"
	"peerage/edge/route"
)

// Quiet steering moves a client without a redirect: the answer names a peer as an
// alternative for the host (RFC 7838), and the browser sends what follows there, under
// the same URL. docs/decisions/0009-moving-clients.md says to whom an offer is made, and
// why two nodes do not send a client back and forth.
const (
	// steerLife is how long a client may keep to the offer: it must not outlive the
	// picture of the loads by much.
	steerLife = time.Minute
	// arrival is how long a client that may have come by an offer is left in peace, as
	// long as a hop marker lasts.
	arrival = 10 * time.Second
)

// altSvc offers HTTP/3 (RFC 7838): at the peer that the client is steered to, or at this
// node to clients that came by TCP. It takes the offer back while the node drains.
func (s *Server) altSvc(h http.Header, r *http.Request, x *exchange) {
	switch {
	case x.behindProxy(): // its clients must not go around it
	case s.draining():
		h.Set("Alt-Svc", "clear")
	case x.steer != "":
		h.Set("Alt-Svc", fmt.Sprintf(`h3="%s:%d"; ma=%d`,
			x.site.Names.NodeName(x.steer, x.name.Host), s.c.Ports.HTTPS, int(steerLife.Seconds())))
		s.counters.steers.Add(1)
	case x.conn.offered(x.view, x.start) != "": // our own would take the earlier one back
	case x.site.Routes.Quiet(): // Firefox takes no offer that ends before one it has
		h["Alt-Svc"] = s.offerNow
	case r.ProtoMajor < 3:
		h["Alt-Svc"] = s.offerH3
	}
}

// steerable reports whether the client may be offered a peer. Peers answer for the host
// and not for each other's names. An offer is for all of the host: a client with a pin
// would come back by redirects and relays. One that came by HTTP/3 a moment ago may have
// come by the offer of a peer, for not all browsers say so. A tunnel's head is the origin's.
func (x *exchange) steerable(r *http.Request) bool {
	return x.conn != nil && x.name.Node == "" && !x.name.Literal && !x.conn.pinned.Load() &&
		!(r.ProtoMajor == 3 && x.conn.young(x.start)) && r.Header.Get("Upgrade") == ""
}

// steer settles which peer the answer offers to the client. It is the same one for as
// long as the offer lasts, and enters the books once: only browsers follow an offer.
func (s *Server) steer(r *http.Request, x *exchange) {
	to := x.decision.Steer
	if to == "" || !x.steerable(r) {
		return
	}
	last := x.conn.steer.Load()
	if earlier := x.conn.offered(x.view, x.start); earlier != "" {
		to = earlier
	}
	x.steer = to
	if !x.conn.steer.CompareAndSwap(last, &steer{to, x.start}) {
		return // a request beside this one has settled it
	}
	if (last == nil || last.to != to) && r.Header.Get("Sec-Fetch-Mode") != "" {
		s.moved(x, to, false)
	}
}

// moved books a client that load sends to a peer; first says that no earlier request of
// it shows in the load.
func (s *Server) moved(x *exchange, to balancing.NodeID, first bool) {
	s.turn.Store(int64(x.view.Place(to) + 1))
	s.ledger.Redirected(x.start, x.view.Settings.Policy, x.view, to, first)
}

// sentQuietly reports whether the client has just come here by the offer of a peer: it
// names the alternative that it uses (RFC 7838 5). An offer of this node's own bears the
// name of the host.
func (s *Server) sentQuietly(r *http.Request, x *exchange) bool {
	used := r.Header.Get("Alt-Used")
	if used == "" || x.conn == nil || !x.conn.young(x.start) {
		return false
	}
	name, _, err := route.ParseAuthority(used)
	if err != nil {
		return false
	}
	known, ok := x.site.Names.Lookup(name)
	return ok && known.Node == s.c.Self
}
