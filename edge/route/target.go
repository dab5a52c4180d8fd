package route

import (
	"bytes"
	"strings"
)

// MaxTarget is the length in octets that a request target may have, as it came and in
// canonical form. RFC 9110 4.1 asks for at least 8000.
const MaxTarget = 8 << 10

// Malformed is the error of [Canonical] and [ParseAuthority]: what is wrong with the
// request. It repeats nothing that the client sent.
type Malformed string

func (m Malformed) Error() string { return string(m) }

const (
	targetTooLong Malformed = "request target: longer than 8 KiB"
	notAPath      Malformed = "request target: not a path that begins with a slash"
	controlByte   Malformed = "request target: control character"
	backslash     Malformed = "request target: backslash"
	encodedSlash  Malformed = "request target: encoded slash"
	fragment      Malformed = "request target: number sign"
	badEscape     Malformed = "request target: per cent sign without two hexadecimal digits"
	aboveRoot     Malformed = "request target: climbs above the root"
	dotParameter  Malformed = "request target: parameter on a dot segment"
	spaceInQuery  Malformed = "request target: space in the query"
	noAuthority   Malformed = "request host: missing"
	badHost       Malformed = "request host: not a host name or address"
	badPort       Malformed = "request host: not a port number"
	hostTooLong   Malformed = "request host: too long"
)

// Canonical returns the one form of a request target's path that is matched and
// forwarded, and the query as the client sent it, without the question mark.
//
// Escapes of unreserved characters are decoded, the others get upper-case digits, and
// what RFC 3986 does not allow raw is escaped; repeated slashes count as one; dot
// segments are resolved. The result begins with a slash, and is its own canonical form.
//
// Refused with an error of type [Malformed] is what two readers may take for different
// paths: encoded slashes, backslashes, control characters, encoded or not, dot segments
// that climb above the root or bear a parameter ("/..;/"), number signs, and targets
// that are not in origin form (RFC 9112 3.2.1).
func Canonical(target string) (path, rawQuery string, err error) {
	if len(target) > MaxTarget {
		return "", "", targetTooLong
	}
	raw, rawQuery, _ := strings.Cut(target, "?")
	if !strings.HasPrefix(raw, "/") {
		return "", "", notAPath
	}
	for i := range len(rawQuery) {
		// A space would end the target in the next HTTP/1.1 request line.
		switch c := rawQuery[i]; {
		case c == ' ':
			return "", "", spaceInQuery
		case isControl(c):
			return "", "", controlByte
		case c == '#':
			return "", "", fragment
		}
	}
	if isPlain(raw) {
		return raw, rawQuery, nil
	}
	if path, err = canonicalPath(raw); err != nil {
		return "", "", err
	}
	if len(path)+len("?")+len(rawQuery) > MaxTarget {
		return "", "", targetTooLong
	}
	return path, rawQuery, nil
}

// isPlain reports whether path is canonical at a glance, as most are.
func isPlain(path string) bool {
	for i := range len(path) {
		c := path[i]
		if !isRaw[c] || i > 0 && path[i-1] == '/' && (c == '/' || c == '.') {
			return false
		}
	}
	return true
}

func canonicalPath(raw string) (string, error) {
	out := make([]byte, 1, len(raw)+32)
	out[0] = '/'
	segment := 1 // where the current one starts in out
	for i := 1; i <= len(raw); i++ {
		if i == len(raw) || raw[i] == '/' {
			name, _, parameter := bytes.Cut(out[segment:], []byte(";"))
			here, up := string(name) == ".", string(name) == ".."
			switch {
			case (here || up) && parameter:
				return "", dotParameter
			case up && segment == 1:
				return "", aboveRoot
			case up:
				out = out[:bytes.LastIndexByte(out[:segment-1], '/')+1]
			case here:
				out = out[:segment]
			case len(out) > segment && i < len(raw):
				out = append(out, '/')
			}
			segment = len(out)
			continue
		}
		c, escaped := raw[i], raw[i] == '%'
		if escaped {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", badEscape
			}
			c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
			i += 2
		}
		switch {
		case isControl(c):
			return "", controlByte
		case c == '\\':
			return "", backslash
		case escaped && c == '/':
			return "", encodedSlash
		case !escaped && c == '#':
			return "", fragment
		case isUnreserved(c) || !escaped && isRaw[c]:
			out = append(out, c)
		default:
			const digits = "0123456789ABCDEF"
			out = append(out, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(out), nil
}

func isControl(c byte) bool { return c < ' ' || c == 0x7f }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// isUnreserved is RFC 3986 2.3.
func isUnreserved(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || isDigit(c) || c == '-' || c == '.' || c == '_' || c == '~'
}

// isRaw holds the bytes that a path may hold as they are: pchar of RFC 3986 3.3, and the
// slash.
var isRaw = func() (raw [256]bool) {
	for c := range 256 {
		raw[c] = isUnreserved(byte(c)) || c < 128 && strings.IndexByte("!$&'()*+,;=:@/", byte(c)) >= 0
	}
	return raw
}()
