package pin

import (
	"net/http"
	"slices"
	"testing"
)

func TestStrip(t *testing.T) {
	for _, c := range []struct {
		name       string
		from, want []string
	}{
		{"none", []string{"a=b; c=d"}, []string{"a=b; c=d"}},
		{"between others", []string{"a=b; " + prefix + "abc=x;c=d"}, []string{"a=b; c=d"}},
		{"alone", []string{prefix + "hop=x"}, nil},
		{"in another line", []string{"a=b", prefix + "hop=x; c=d"}, []string{"a=b; c=d"}},
		{"in a value", []string{"a=" + prefix}, []string{"a=" + prefix}},
	} {
		h := http.Header{}
		if c.from != nil {
			h["Cookie"] = c.from
		}
		StripCookie(h)
		if got := h["Cookie"]; !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	h := http.Header{"Set-Cookie": {"a=b; Path=/", " " + prefix + "abc=; Max-Age=0"}}
	StripSetCookie(h)
	if got := h["Set-Cookie"]; !slices.Equal(got, []string{"a=b; Path=/"}) {
		t.Errorf("of an answer: %q", got)
	}
	h = http.Header{"Set-Cookie": {prefix + "abc=x"}}
	StripSetCookie(h)
	if _, ok := h["Set-Cookie"]; ok {
		t.Error("an empty header stays")
	}
}
