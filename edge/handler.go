package edge

import (
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// HealthPath is answered by every node for itself, over HTTP and HTTPS: 200 while it
// takes new work, 503 while it drains.
const HealthPath = "/.well-known/peerage/health"

// exchange is one request on its way through the node.
type exchange struct {
	start   time.Time
	site    *Site
	view    *balancing.View
	conn    *conn      // nil if it is not the client's own
	name    route.Name // whom the request is for
	path    string     // in canonical form
	rule    *route.Rule
	state   *route.Stateful // nil outside stateful paths
	pin     pin.Pin         // the client's, if its owner is named in request
	request balancing.Request
	relayed balancing.NodeID // the peer that carried the request here, or ""
	proxied bool             // a trusted proxy stands between
	health  bool             // the node is asked about itself

	decision balancing.Decision
	steer    balancing.NodeID // the peer that the answer offers
}

// serve is the handler of all three protocols: the story of a request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) { s.handle(w, r, "") }

func (s *Server) handle(w http.ResponseWriter, r *http.Request, from balancing.NodeID) {
	s.inProgress.Add(1)
	defer s.inProgress.Add(-1)
	var both struct { // one piece of memory a request
		x   exchange
		rec recorder
	}
	x, rec := &both.x, &both.rec
	x.start, x.site, x.view, x.relayed = time.Now(), s.site.Load(), s.c.View(), from
	x.conn = connOf(r.Context())
	r = rec.start(w, r)
	defer rec.finish()
	defer func() { s.logged(rec, r, x) }()
	defer s.survive(rec)

	if err := s.accept(r, x); err != nil {
		rec.refused(err)
		return
	}
	if r.URL.Path == HealthPath {
		x.health = true
		s.serveHealth(rec)
		return
	}
	rule, ok := x.site.Routes.Match(x.name.Host, x.path)
	if !ok {
		rec.refuse(http.StatusNotFound, "nothing is served at this path")
		return
	}
	x.rule = rule
	s.readPin(r, x)
	s.decide(r, x)
	switch x.decision.Action {
	case balancing.Here:
		s.serveHere(rec, r, x)
	case balancing.Redirect:
		s.redirect(rec, r, x)
	case balancing.Relay:
		s.relayTo(rec, r, x)
	case balancing.SendToEntry:
		s.sendToEntry(rec, r, x)
	default:
		rec.Header().Set("Retry-After", "1")
		if x.decision.Pin == balancing.DropPin {
			s.changePin(rec.Header(), http.StatusServiceUnavailable, r, x)
		}
		rec.refuse(http.StatusServiceUnavailable, unavailable(x.decision.Reason))
	}
}

func unavailable(why balancing.Reason) string {
	switch why {
	case balancing.ReasonOverload:
		return "this node has too much to do just now"
	case balancing.ReasonDedicatedDown:
		return "the nodes that serve this path cannot be reached just now"
	}
	return "the node that holds the session cannot be reached just now"
}

// survive makes an error page of a bug: what net/http says of a panic is lost among
// the complaints about clients. The panic by which a handler breaks off an answer goes on.
func (s *Server) survive(rec *recorder) {
	switch v := recover(); {
	case v == nil:
		return
	case v != http.ErrAbortHandler: // compared as net/http does
		s.c.Log.Error("handler panicked", "err", v, "stack", string(debug.Stack()))
		if rec.status == 0 {
			rec.before = nil
			clear(rec.Header()) // of the answer that will not come
			rec.refuse(http.StatusInternalServerError, "internal error")
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// accept checks and settles what the request is for: whose name (RFC 9110 7.2), which
// path in canonical form, and headers that only we may set.
func (s *Server) accept(r *http.Request, x *exchange) error {
	switch r.Method {
	case http.MethodConnect:
		return refuse(http.StatusNotImplemented, "this server is not a tunnel")
	case http.MethodTrace: // it would show scripts what they must not see, such as pins
		return refuse(http.StatusMethodNotAllowed, "this server does not echo requests")
	}
	authority, _, err := route.ParseAuthority(r.Host)
	if err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	target := r.RequestURI
	if r.ProtoMajor == 1 {
		target = originForm(target)
	}
	if target == "*" && r.Method == http.MethodOptions {
		target = "/"
	}
	if len(target) > route.MaxTarget {
		return refuse(http.StatusRequestURITooLong, "request target: too long") // RFC 9112 3
	}
	path, query, err := route.Canonical(target)
	if err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	name, ok := x.site.Names.Lookup(authority)
	if !ok || x.relayed == "" && s.belongsElsewhere(r, x.view, name) {
		return refuse(http.StatusMisdirectedRequest, "this node does not answer for that name")
	}
	x.name, x.path = name, path
	return s.settle(r, x, target, path, query)
}

// settle leaves nothing in the request of how the client spelt host and target.
func (s *Server) settle(r *http.Request, x *exchange, target, path, query string) error {
	*r.URL = url.URL{RawQuery: query}
	if err := setPath(r.URL, path); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	switch rest, ok := strings.CutPrefix(target, path); {
	case query == "":
		r.RequestURI = path
	case ok && rest[1:] == query:
		r.RequestURI = target // as nearly always
	default:
		r.RequestURI = path + "?" + query
	}
	r.Host = s.authority(x.asked())
	delete(r.Header, "Host") // an HTTP/2 request can carry a second, different one
	x.identify(r)
	scrub(r.Header)
	return nil
}

// originForm takes scheme and authority off a target in absolute form, which every
// server must accept (RFC 9112 3.2.2). net/http has moved the authority to r.Host.
func originForm(target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		return target
	}
	i := strings.IndexAny(rest, "/?")
	switch {
	case i < 0:
		return "/"
	case rest[i] == '?':
		return "/" + rest[i:]
	}
	return rest[i:]
}

// belongsElsewhere reports whether name is the node name of an on-line peer none of
// whose VIPs this node holds: a connection that the client reused for another name
// (RFC 9110 7.4). During a takeover this node answers for its peer, and may be asked on the
// peer's VIP a moment before the view says who holds that.
func (s *Server) belongsElsewhere(r *http.Request, v *balancing.View, name route.Name) bool {
	if name.Node == "" || name.Node == s.c.Self {
		return false
	}
	owner, me := v.Node(name.Node), v.Me()
	if owner == nil || me == nil || !owner.Online || slices.ContainsFunc(owner.Home, me.Holds) {
		return false
	}
	asked, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return !slices.Contains(owner.Home, addrOf(asked))
}

// serveHere serves the request from its origin, and sets or ends the client's pin
// when the origin's answer is not an error.
func (s *Server) serveHere(rec *recorder, r *http.Request, x *exchange) {
	s.c.Meter.Begin(x.rule.Index)
	defer s.c.Meter.End(x.rule.Index)
	rec.before = func(status int, h http.Header) {
		pin.StripSetCookie(h)
		s.ownHeaders(h, status, r, x)
		s.changePin(h, status, r, x)
	}
	pin.StripCookie(r.Header)
	if x.decision.PinLost {
		r.Header.Set("X-Pin-Lost", x.state.Name)
	}
	x.site.Origins[x.rule.Index].ServeHTTP(rec, r)
	rec.unanswered(r)
	if rec.status == 0 {
		rec.WriteHeader(http.StatusOK) // as net/http would, but through before
	}
}

// ownHeaders adds what the node itself says in an answer of an origin or a peer.
func (s *Server) ownHeaders(h http.Header, status int, r *http.Request, x *exchange) {
	if x.relayed != "" || status == http.StatusSwitchingProtocols {
		return // the node that faces the client says it; and a tunnel's head is the origin's
	}
	s.altSvc(h, r, x)
	if x.name.Node != "" && r.Method == http.MethodGet {
		h.Add("Link", "<"+inAngles.Replace(s.location(x.name.Host, r))+`>; rel="canonical"`)
	}
	if s.draining() && r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
}

// inAngles keeps a query, which comes as the client sent it, within the angle brackets
// of a Link header (RFC 8288 3).
var inAngles = strings.NewReplacer("<", "%3C", ">", "%3E")

func (s *Server) draining() bool {
	if s.closed.Load() {
		return true
	}
	me := s.c.View().Me()
	return me != nil && (me.State == balancing.Draining || me.State == balancing.Leaving)
}

func (s *Server) serveHealth(rec *recorder) {
	h := rec.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if s.draining() {
		rec.WriteHeader(http.StatusServiceUnavailable)
		rec.Write([]byte("draining\n"))
		return
	}
	rec.Write([]byte("ok\n"))
}
