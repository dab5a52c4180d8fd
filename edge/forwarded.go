package edge

import (
	"net/http"
	"net/netip"
	"strings"
)

// forwardedFor returns the client for whom the proxy from asks, by its header Forwarded
// (RFC 7239) or X-Forwarded-For. Each proxy adds at the right end whom it heard the
// request from: the client is the right-most address that is not a trusted proxy. What is
// left of that, or of what cannot be understood, anybody may have written.
//
// A proxy that writes one of the two headers may pass the other as the client sent it: if
// they disagree, neither is believed, and the proxy itself stands for its client.
func forwardedFor(h http.Header, from netip.AddrPort, trusted func(netip.Addr) bool) netip.AddrPort {
	standard := rightmost(h["Forwarded"], forwardedNode, from, trusted)
	custom := rightmost(h["X-Forwarded-For"], plainNode, from, trusted)
	switch {
	case len(h["X-Forwarded-For"]) == 0:
		return standard
	case len(h["Forwarded"]) == 0 || standard.Addr() == custom.Addr():
		return custom
	}
	return from
}

// rightmost returns the right-most address in the lists of lines that is not trusted, or
// the last one up to which all could be read; from, if there is none.
func rightmost(lines []string, read func(string) (netip.AddrPort, bool), from netip.AddrPort, trusted func(netip.Addr) bool) netip.AddrPort {
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var element string
			rest, element, more = cutLast(rest, ',')
			if element == "" && more { // an empty element of a list means nothing (RFC 9110 5.6.1.2)
				continue
			}
			a, ok := read(element)
			if !ok {
				return from
			}
			if from = a; !trusted(a.Addr()) {
				return from
			}
		}
	}
	return from
}

// cutLast cuts a list at its last separator outside of quotes. It reads from the right
// end, the one that a trusted proxy wrote: a quote that the client left open hides nothing.
func cutLast(list string, separator byte) (before, last string, found bool) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case list[i] == '"':
			quoted = !quoted
		case list[i] == separator && !quoted:
			return list[:i], strings.Trim(list[i+1:], " \t"), true
		}
	}
	return "", strings.Trim(list, " \t"), false
}

// forwardedNode reads the parameter "for" of an element of Forwarded.
func forwardedNode(element string) (a netip.AddrPort, ok bool) {
	for more := true; more; {
		var pair string
		element, pair, more = cutLast(element, ';')
		name, value, isPair := strings.Cut(pair, "=")
		if !isPair || !strings.EqualFold(name, "for") {
			continue
		}
		if ok {
			return a, false // twice (RFC 7239 4)
		}
		if a, ok = plainNode(unquote(value)); !ok {
			return a, false
		}
	}
	return a, ok
}

// unquote takes the quotes off. What they must quote in an address needs no backslash.
func unquote(value string) string {
	if inner, ok := strings.CutPrefix(value, `"`); ok {
		if inner, ok = strings.CutSuffix(inner, `"`); ok {
			return inner
		}
	}
	return value
}

// plainNode reads an address, with a port or without: "192.0.2.1", "192.0.2.1:80",
// "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:80". Names such as "unknown" and "_x"
// stand for nobody (RFC 7239 6).
func plainNode(text string) (netip.AddrPort, bool) {
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		bare := text
		if inner, ok := strings.CutPrefix(text, "["); ok {
			bare = strings.TrimSuffix(inner, "]")
		}
		addr, err := netip.ParseAddr(bare)
		if err != nil {
			return netip.AddrPort{}, false
		}
		at = netip.AddrPortFrom(addr, 0)
	}
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()), true
}
