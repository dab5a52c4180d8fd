package edge

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// readPin finds the stateful rule that the client is under, and its valid pin: that of
// the path, or else one that binds on the whole site.
func (s *Server) readPin(r *http.Request, x *exchange) {
	q := &x.request
	x.state, q.Position = x.site.Routes.Stateful(x.name.Host, x.path)
	if x.state != nil && s.findPin(r, x, x.state) {
		return
	}
	for _, wide := range x.site.Routes.SiteWide(x.name.Host) {
		if wide != x.state && s.findPin(r, x, wide) {
			x.state, q.Position = wide, balancing.Interior
			return
		}
	}
}

// findPin looks for the client's pin under st, and takes it into the request.
func (s *Server) findPin(r *http.Request, x *exchange, st *route.Stateful) bool {
	p, err := x.site.Pins.Find(r.Header, pinRule(st), x.start)
	if err != nil {
		if err != pin.Absent {
			s.counters.badPins.Add(1)
		}
		return false
	}
	if x.conn != nil {
		x.conn.pinned.Store(true)
	}
	q := &x.request
	x.pin = p
	q.Owner, q.Incarnation = p.Owner, p.Incarnation
	q.OnOwnerLoss, q.EntryLeavesPin = st.OnOwnerLoss, !st.EntryKeepsPin
	return true
}

// decide gathers the facts of the request and asks the policy.
func (s *Server) decide(r *http.Request, x *exchange) {
	policy := &x.view.Settings.Policy
	q := &x.request
	q.Route, q.Move = x.rule.ID, x.rule.Move
	q.Dedicated, q.Refuse = x.rule.Nodes, !x.rule.Spill
	q.Movable = movable(r) && !x.behindProxy()
	q.Relayed = x.relayed != ""
	idle := x.conn.request(x.start)
	q.First = idle < 0
	q.Hopped = s.hopped(r, x)
	q.Draw1, q.Draw2 = rand.Float64(), rand.Float64()
	q.Turn = int(s.turn.Load())
	if me := x.view.Me(); me != nil && me.Load > policy.Light {
		s.askIfStale(x.view, x.start)
		if me.Serves() { // who goes away asks nothing of the books
			q.Books = s.ledger.Books(x.start, x.view)
		}
	}
	x.decision = policy.Decide(x.view, q)
	if s.overloaded(x) {
		x.decision = balancing.Decision{Action: balancing.Unavailable, Reason: balancing.ReasonOverload}
	}
	s.burst(r, x)
	switch x.decision.Action {
	case balancing.Here:
		s.ledger.Served(x.start, idle)
		s.steer(r, x)
	case balancing.Redirect:
		if x.decision.Reason == balancing.ReasonLighter {
			s.moved(x, x.decision.Peer, q.First)
		}
	}
}

// overloaded reports whether the node has too much in progress to serve the request as
// well. Clients with a pin, who have nowhere else to go, come before the others.
func (s *Server) overloaded(x *exchange) bool {
	most, busy := int64(x.site.MaxRequests), s.inProgress.Load()
	if most <= 0 || x.decision.Action != balancing.Here {
		return false
	}
	switch x.decision.Reason {
	case balancing.ReasonPinned, balancing.ReasonPinLost:
		return 4*busy > 5*most
	}
	return busy > most
}

// askIfStale asks for reports if what is known of a peer is too old to act upon (patent,
// summary: the exchange by query and response).
func (s *Server) askIfStale(v *balancing.View, now time.Time) {
	if s.c.Ask == nil {
		return
	}
	period := v.Settings.Period
	for n := range v.Peers() {
		if !n.Online || now.Sub(n.Heard) <= period*3/2 {
			continue
		}
		// The answers take a moment; other requests need not ask again.
		if last := s.asked.Load(); now.UnixNano()-last > int64(period/4) && s.asked.CompareAndSwap(last, now.UnixNano()) {
			s.c.Ask()
		}
		return
	}
}

// hopped reports whether the client was sent here a moment ago (S210), by a redirect or
// quietly. Redirected clients without cookies are known by the name they came under: the
// redirect led to it. A browser always says Sec-Fetch-Mode, so a bookmark of a node name
// is not mistaken.
func (s *Server) hopped(r *http.Request, x *exchange) bool {
	if _, err := x.site.Pins.FindHop(r.Header, x.start); err == nil {
		return true
	}
	return x.name.Node == s.c.Self && r.Header.Get("Cookie") == "" && r.Header.Get("Sec-Fetch-Mode") == "" ||
		s.sentQuietly(r, x)
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
