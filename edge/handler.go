package edge

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync/atomic"
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
	site    *Site
	view    *balancing.View
	name    route.Name // whom the request is for
	path    string     // in canonical form
	rule    *route.Rule
	state   *route.Stateful // nil outside stateful paths
	pin     pin.Pin         // the client's, if its owner is named in request
	request balancing.Request
	relayed balancing.NodeID // the peer that carried the request here, or ""
	health  bool             // the node is asked about itself
	// What was decided, for the log.
	decision balancing.Decision
}

// serve is the handler of all three protocols: the story of a request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) { s.handle(w, r, "") }

func (s *Server) handle(w http.ResponseWriter, r *http.Request, from balancing.NodeID) {
	start := time.Now()
	var both struct { // one piece of memory a request
		x   exchange
		rec recorder
	}
	x, rec := &both.x, &both.rec
	x.site, x.view, x.relayed = s.site.Load(), s.c.View(), from
	r = rec.start(w, r)
	defer rec.finish()
	defer func() { s.logged(rec, r, x, start) }()
	defer s.survive(rec)

	if err := s.accept(r, x); err != nil {
		status, why := refusal(err)
		rec.refuse(status, why)
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
	s.readPin(r, x, start)
	s.decide(r, x, start)
	switch x.decision.Action {
	case balancing.Here:
		s.serveHere(rec, r, x)
	case balancing.Redirect:
		s.redirect(rec, r, x, start)
	case balancing.Relay:
		s.relayTo(rec, r, x)
	case balancing.SendToEntry:
		s.sendToEntry(rec, r, x)
	default:
		rec.Header().Set("Retry-After", "1")
		rec.refuse(http.StatusServiceUnavailable, "the node that holds this session cannot be reached just now")
	}
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
	if r.Method == http.MethodConnect {
		return refuse(http.StatusNotImplemented, "this server is not a tunnel")
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
	if !ok || x.relayed == "" && s.belongsElsewhere(x.view, name) {
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
// (RFC 9110 7.4). During a takeover this node answers for its peer.
func (s *Server) belongsElsewhere(v *balancing.View, name route.Name) bool {
	if name.Node == "" || name.Node == s.c.Self {
		return false
	}
	owner, me := v.Node(name.Node), v.Me()
	if owner == nil || me == nil || !owner.Online {
		return false
	}
	for _, vip := range owner.Home {
		if me.Holds(vip) {
			return false
		}
	}
	return true
}

// readPin finds the stateful rule of the path and the client's valid pin for it.
func (s *Server) readPin(r *http.Request, x *exchange, now time.Time) {
	x.state, x.request.Position = x.site.Routes.Stateful(x.name.Host, x.path)
	if x.state == nil {
		return
	}
	x.request.OnOwnerLoss = x.state.OnOwnerLoss
	x.request.EntryLeavesPin = !x.state.EntryKeepsPin
	p, err := x.site.Pins.Find(r.Header, pinRule(x.state), now)
	switch {
	case err == pin.Absent:
		return
	case err != nil:
		s.counters.badPins.Add(1)
		return
	}
	x.pin = p
	x.request.Owner, x.request.Incarnation = p.Owner, p.Incarnation
}

// decide gathers the facts of the request and asks the policy.
func (s *Server) decide(r *http.Request, x *exchange, now time.Time) {
	q := &x.request
	q.Dedicated, q.Refuse = x.rule.Nodes, !x.rule.Spill
	q.Movable = movable(r)
	q.Relayed = x.relayed != ""
	q.Hopped = s.hopped(r, x, now)
	idle := idleOf(r.Context(), now)
	q.First = idle < 0
	q.Draw1, q.Draw2 = rand.Float64(), rand.Float64()
	q.Books = s.ledger.Books(now, x.view)
	x.decision = x.site.Policy.Decide(x.view, q)
	switch x.decision.Action {
	case balancing.Here:
		s.ledger.Served(now, idle)
	case balancing.Redirect:
		if x.decision.Reason == balancing.ReasonLighter {
			s.ledger.Redirected(now, x.site.Policy, x.view, x.decision.Peer, q.First)
		}
	}
}

// serveHere serves the request from its origin, and sets or ends the client's pin
// when the origin's answer is not an error.
func (s *Server) serveHere(rec *recorder, r *http.Request, x *exchange) {
	s.c.Meter.Begin(x.rule.Index)
	defer s.c.Meter.End(x.rule.Index)
	rec.before = func(status int, h http.Header) {
		s.ownHeaders(h, status, r, x)
		s.changePin(h, status, r, x)
	}
	if x.decision.PinLost {
		r.Header.Set("X-Pin-Lost", x.state.Name)
	}
	x.site.Origins[x.rule.Index].ServeHTTP(rec, r)
	if rec.status == 0 && r.Context().Err() == nil {
		rec.WriteHeader(http.StatusOK) // as net/http would, but through before
	}
}

// ownHeaders adds what the node itself says in an answer of an origin or a peer.
func (s *Server) ownHeaders(h http.Header, status int, r *http.Request, x *exchange) {
	if x.relayed != "" || status == http.StatusSwitchingProtocols {
		return // the node that faces the client says it; and a tunnel's head is the origin's
	}
	s.altSvc(h, r)
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

// altSvc offers HTTP/3 to clients that came by TCP, and takes the offer back while the
// node drains (RFC 7838).
func (s *Server) altSvc(h http.Header, r *http.Request) {
	switch {
	case s.draining():
		h.Set("Alt-Svc", "clear")
	case r.ProtoMajor < 3:
		h["Alt-Svc"] = s.offerH3
	}
}

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

// movable reports whether the client can follow a redirect to another host without
// harm: a navigation, or a plain GET or HEAD of a client that is not a browser.
// docs/decisions/0004 has the table.
func movable(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	h := r.Header
	mode := h.Get("Sec-Fetch-Mode")
	switch {
	case mode != "" && mode != "navigate",
		hasBody(r),
		h.Get("Upgrade") != "", h.Get("Expect") != "", h.Get("Range") != "",
		h.Get("Authorization") != "", // dropped by clients when the host changes
		strings.HasPrefix(h.Get("Content-Type"), "application/grpc"),
		strings.HasPrefix(h.Get("Accept"), "text/event-stream"):
		return false
	}
	return true
}

// hasBody reports whether a body comes with the request, as far as its head can tell.
// One of unknown length has -1; but in quic-go's HTTP/3 so has one without a body.
func hasBody(r *http.Request) bool {
	return r.ContentLength > 0 || r.ContentLength < 0 && r.ProtoMajor < 3
}

// scrub takes from a request what only this node may say, and the names that a
// back-end may take for the same header (CGI folds "_" and "." into "-").
func scrub(h http.Header) {
	for k := range h {
		if strings.ContainsAny(k, "_.") || strings.HasPrefix(k, "X-Forwarded-") || strings.HasPrefix(k, relayPrefix) {
			delete(h, k)
		}
	}
	for _, k := range []string{"Forwarded", "X-Real-Ip", "X-Pin-Lost", "Proxy"} {
		delete(h, k)
	}
}

// connKey is the context key of a connection's *conn.
type connKey struct{}

// conn is what is remembered of one client connection.
type conn struct{ last atomic.Int64 } // unix nanoseconds of its latest request; 0 before the first

func withConn(ctx context.Context) context.Context {
	return context.WithValue(ctx, connKey{}, new(conn))
}

// idleOf returns the time since the latest request of the connection, and notes this
// one; negative for the first.
func idleOf(ctx context.Context, now time.Time) time.Duration {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return -1
	}
	last := c.last.Swap(now.UnixNano())
	if last == 0 {
		return -1
	}
	return cmp.Or(max(0, time.Duration(now.UnixNano()-last)), 1)
}
