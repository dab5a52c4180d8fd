package edge

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// redirect tells the requester to go to the peer's own name (patent S209): 307, so
// that method and path stay, and never stored, for it is about this moment only.
func (s *Server) redirect(rec *recorder, r *http.Request, x *exchange) {
	h := rec.Header()
	h.Set("Location", s.location(x.site.Names.NodeName(x.decision.Peer, x.name.Host), r))
	h.Set("Cache-Control", "no-store")
	h.Add("Set-Cookie", x.site.Pins.HopCookie(x.name.Host, pin.Hop{Target: x.decision.Peer, At: x.start, Load: x.view.Me().Load}))
	s.altSvc(h, r, x)
	if x.decision.Reason == balancing.ReasonDraining && r.ProtoMajor < 3 {
		// net/http makes a graceful GOAWAY of it on HTTP/2; on HTTP/3 it would be sent,
		// and make the answer malformed (RFC 9114 4.2).
		h.Set("Connection", "close")
	}
	rec.short(http.StatusTemporaryRedirect, "see "+h.Get("Location"))
}

// sendToEntry lets a client whose node is lost start again: a safe method is sent to
// the entry path, any other is told of it.
func (s *Server) sendToEntry(rec *recorder, r *http.Request, x *exchange) {
	h := rec.Header()
	h.Set("Cache-Control", "no-store")
	s.changePin(h, http.StatusSeeOther, r, x)
	entry := "https://" + s.authority(x.asked()) + x.state.Entry
	if x.behindProxy() {
		entry = x.state.Entry // the proxy's own name and port are not known
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		h.Set("Location", entry)
		rec.short(http.StatusSeeOther, "the session is lost; start again at "+entry)
		return
	}
	h.Set("Link", "<"+entry+`>; rel="start"`)
	rec.short(http.StatusConflict, "the session is lost; start again at "+entry)
}

// asked returns the name that the client used, from the site's own table.
func (x *exchange) asked() string {
	if x.name.Node != "" {
		return x.site.Names.NodeName(x.name.Node, x.name.Host)
	}
	return x.name.Host
}

// location returns the absolute URL of the request's target under host, which comes
// from the site's own table.
func (s *Server) location(host string, r *http.Request) string {
	return "https://" + s.authority(host) + r.RequestURI
}

func (s *Server) authority(host string) string { return host + s.port }

// portSuffix is what follows the host in a URL: nothing for the default port.
func portSuffix(p uint16) string {
	if p == 443 {
		return ""
	}
	return ":" + strconv.Itoa(int(p))
}

// changePin sets, renews or ends the client's pin, as decided, in an answer of the given
// status. An error of the origin leaves everything as it was, and so do HEAD and OPTIONS: a
// preflight comes without cookies whether the client has a pin or not (Fetch 4.8).
func (s *Server) changePin(h http.Header, status int, r *http.Request, x *exchange) {
	switch {
	case x.state == nil:
		return
	case x.decision.Pin == balancing.DropPin: // whatever the answer
	case r.Method == http.MethodHead, r.Method == http.MethodOptions, status >= 400:
		return
	}
	now := time.Now()
	rule := pinRule(x.state)
	switch x.decision.Pin {
	case balancing.KeepPin:
		p, due := rule.Refresh(x.pin, now)
		if x.request.Owner != s.c.Self || !due {
			return
		}
		h.Add("Set-Cookie", x.site.Pins.Cookie(rule, x.name.Host, p))
	case balancing.SetPin:
		me := x.view.Me()
		h.Add("Set-Cookie", x.site.Pins.Cookie(rule, x.name.Host, pin.Pin{
			Owner: me.ID, Incarnation: uint32(me.Incarnation), Born: now, Seen: now,
		}))
		s.counters.pinsSet.Add(1)
		if x.conn != nil {
			x.conn.pinned.Store(true)
		}
	default:
		h.Add("Set-Cookie", x.site.Pins.Clear(rule, x.name.Host))
		s.counters.pinsCleared.Add(1)
	}
	// A cache that others share would give one client's pin to all (RFC 9111 7.3).
	if cc := strings.ToLower(strings.Join(h.Values("Cache-Control"), ",")); !strings.Contains(cc, "private") && !strings.Contains(cc, "no-store") {
		h.Set("Cache-Control", "private")
	}
}

// setPath puts a canonical, escaped path into u.
func setPath(u *url.URL, escaped string) (err error) {
	if u.Path, err = url.PathUnescape(escaped); err != nil {
		return err
	}
	u.RawPath = escaped // ignored by url.URL where it is the default encoding of Path
	return nil
}

// pinRule is what the pins of a stateful path must know of it.
func pinRule(st *route.Stateful) pin.Rule {
	return pin.Rule{Name: st.Name, Path: st.CookiePath(), MaxLife: st.MaxLife, Idle: st.Idle}
}
