package pin

import (
	"net/http"
	"slices"
	"strings"
)

// Pins and hop markers are between the nodes and the client: a back-end neither sees nor
// sets one.

// StripCookie takes them from the headers of a request to a back-end.
func StripCookie(h http.Header) {
	lines := h["Cookie"]
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, prefix) }) {
		return
	}
	var kept []string
	for _, line := range lines {
		for c := range strings.SplitSeq(line, ";") {
			if c = strings.TrimSpace(c); c != "" && !strings.HasPrefix(c, prefix) {
				kept = append(kept, c)
			}
		}
	}
	if len(kept) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = []string{strings.Join(kept, "; ")}
}

// StripSetCookie takes them from the headers of an answer of a back-end.
func StripSetCookie(h http.Header) {
	if lines, ok := h["Set-Cookie"]; ok {
		h["Set-Cookie"] = slices.DeleteFunc(lines, func(l string) bool {
			return strings.HasPrefix(strings.TrimSpace(l), prefix)
		})
		if len(h["Set-Cookie"]) == 0 {
			delete(h, "Set-Cookie")
		}
	}
}
