package edge

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/pires/go-proxyproto"
)

// trusts reports whether a is the address of a proxy whose word counts.
func (site *Site) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(site.Proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// proxyOf returns the address of the proxy that opened a connection, if it spoke the PROXY
// protocol. It does not wait for what it says.
func proxyOf(c net.Conn) netip.Addr {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	if c, ok := c.(*proxyproto.Conn); ok {
		return addrOf(c.Raw().RemoteAddr())
	}
	return netip.Addr{}
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// identify finds out who asks: from here on r.RemoteAddr is the client, as far as a
// trusted proxy tells (patent, fourth embodiment). It must come before scrub.
func (x *exchange) identify(r *http.Request) {
	if x.relayed != "" || len(x.site.Proxies) == 0 {
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	byProxy := x.site.trusts(from.Addr())
	x.proxied = byProxy || x.conn != nil && x.conn.proxy.IsValid()
	if byProxy {
		r.RemoteAddr = forwardedFor(r.Header, from, x.site.trusts).String()
		x.conn = nil // it is not the client's
	}
}

// behindProxy reports whether the client can reach the site through its proxy only.
func (x *exchange) behindProxy() bool { return x.proxied && !x.site.ProxyRedirects }

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
	// What a client names here would be taken from the request on its way to the back-end,
	// our own headers among it.
	if h.Get("Upgrade") != "" {
		h.Set("Connection", "Upgrade")
	} else {
		delete(h, "Connection")
	}
}
