package route

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName      = 253 // octets of a domain name as text (RFC 1035 2.3.4)
	maxLabel     = 63
	maxAuthority = 1024 // a name in UTF-8 is longer than its A-labels
)

// ParseAuthority takes apart the authority of a request: its Host header or :authority.
// The name comes back in lower case, as A-labels, without a final dot; an address in its
// shortest form and without brackets. The port is 0 if none is given. What is not a host
// and port by RFC 3986 3.2.2 and 3.2.3 is refused with an error of type [Malformed].
func ParseAuthority(authority string) (name string, port uint16, err error) {
	switch {
	case authority == "":
		return "", 0, noAuthority
	case len(authority) > maxAuthority:
		return "", 0, hostTooLong
	}
	var rest string
	if inner, ok := strings.CutPrefix(authority, "["); ok {
		if inner, rest, ok = strings.Cut(inner, "]"); !ok {
			return "", 0, badHost
		}
		addr, err := netip.ParseAddr(inner)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, badHost
		}
		name = addr.Unmap().String()
	} else {
		i := strings.IndexByte(authority, ':')
		if i < 0 {
			i = len(authority)
		}
		if name, err = hostName(authority[:i]); err != nil {
			return "", 0, err
		}
		rest = authority[i:]
	}
	if rest == "" || rest == ":" { // RFC 3986 3.2.3 allows the empty port
		return name, 0, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(rest, ":"), 10, 16)
	if err != nil || rest[0] != ':' || n == 0 {
		return "", 0, badPort
	}
	return name, uint16(n), nil
}

// hostName brings a domain name or IPv4 address into canonical form.
func hostName(host string) (string, error) {
	name := host
	if !isLDH(host) || strings.Contains(host, "xn--") {
		var err error
		if name, err = idna.Lookup.ToASCII(host); err != nil || !utf8.ValidString(host) {
			return "", badHost
		}
	}
	name = strings.TrimSuffix(name, ".")
	if !isLDH(name) {
		return "", badHost
	}
	// What ends in a number is an address for every browser, however odd (WHATWG URL
	// 3.5): it must be a whole one.
	last := name[strings.LastIndexByte(name, '.')+1:]
	if isNumber(last) {
		if addr, err := netip.ParseAddr(name); err != nil || !addr.Is4() {
			return "", badHost
		}
	}
	return name, nil
}

// isLDH reports whether name consists of labels of lower-case letters, digits and inner
// hyphens (RFC 5890 2.3.1).
func isLDH(name string) bool {
	if len(name) > maxName {
		return false
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if i == start || i-start > maxLabel || name[start] == '-' || name[i-1] == '-' {
				return false
			}
			start = i + 1
			continue
		}
		if c := name[i]; (c < 'a' || c > 'z') && !isDigit(c) && c != '-' {
			return false
		}
	}
	return true
}

func isNumber(label string) bool {
	isOne := isDigit
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, isOne = hex, isHex
	}
	for i := range len(label) {
		if !isOne(label[i]) {
			return false
		}
	}
	return true
}
