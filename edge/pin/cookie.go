package pin

import (
	"iter"
	"net/http"
	"strings"
	"time"
)

// Rule is what the cookies of one stateful path must know of it.
type Rule struct {
	Name    string
	Path    string        // the part of the site for which browsers send the pin
	MaxLife time.Duration // of a pin since it was born; 0 for ever
	Idle    time.Duration // since the client was last seen; 0 for ever
}

// noted is how often at most it is noted that a client is active.
const noted = time.Minute

// Refresh reports whether the pin of an active client should be sealed again, and
// returns it so: once a minute, or twice in the time that the client may be idle if
// that is shorter. Never, if it may be idle for ever.
func (rule Rule) Refresh(p Pin, now time.Time) (Pin, bool) {
	if rule.Idle <= 0 || now.Sub(p.Seen) < min(noted, rule.Idle/2) {
		return p, false
	}
	p.Seen = now
	return p, true
}

// Cookie returns the value of the Set-Cookie header that pins a client of host by p. It
// lasts as long as the browser's session; MaxLife and Idle are under the seal.
func (r *Ring) Cookie(rule Rule, host string, p Pin) string {
	return r.Name(rule.Name) + "=" + r.Seal(rule.Name, p) + attributes(rule.Path, host)
}

// Clear returns the value of the Set-Cookie header that ends the pin.
func (r *Ring) Clear(rule Rule, host string) string {
	return r.Name(rule.Name) + "=; Max-Age=0" + attributes(rule.Path, host)
}

// attributes are those of all cookies. The domain lets the node names below host see
// them.
func attributes(path, host string) string {
	return "; Path=" + path + "; Domain=" + host + "; Secure; HttpOnly; SameSite=Lax"
}

// Find returns the client's pin for rule from the headers of a request, or a [Reason]
// why it has none. If several cookies bear the name, as when a neighbouring host set one
// or the path of the rule was changed, the youngest that opens counts.
func (r *Ring) Find(h http.Header, rule Rule, now time.Time) (Pin, error) {
	var (
		best Pin
		err  error = Absent
	)
	for value := range values(h, r.Name(rule.Name)) {
		p, why := r.Open(rule, value, now)
		switch {
		case why != nil && err == Absent:
			err = why
		case why == nil && (err != nil || p.Born.After(best.Born)):
			best, err = p, nil
		}
	}
	return best, err
}

// maxTried is how many cookies of one kind are looked at. A site has one for each of
// its stateful rules, and a client can send any number.
const maxTried = 8

// values yields the values of the cookies called name, among the first of its kind:
// those with the same prefix and length.
func values(h http.Header, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		tried := 0
		for _, line := range h["Cookie"] {
			for cookie := range strings.SplitSeq(line, ";") {
				key, value, ok := strings.Cut(strings.Trim(cookie, " \t"), "=")
				if !ok || len(key) != len(name) || !strings.HasPrefix(key, prefix) {
					continue
				}
				if tried++; tried > maxTried || key == name && !yield(value) {
					return
				}
			}
		}
	}
}
