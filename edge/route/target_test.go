package route

import (
	"net/url"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	tests := []struct{ target, path, query string }{
		{"/", "/", ""},
		{"/banking/a", "/banking/a", ""},
		{"/banking?x=1", "/banking", "x=1"},
		{"/banking/", "/banking/", ""},
		// Spellings of one path.
		{"/%62anking/a", "/banking/a", ""},
		{"//banking/a", "/banking/a", ""},
		{"/banking//a", "/banking/a", ""},
		{"/banking///a//", "/banking/a/", ""},
		{"/banking/./a", "/banking/a", ""},
		{"/banking/%2e/a", "/banking/a", ""},
		{"/x/../banking/a", "/banking/a", ""},
		{"/x/%2E%2e/banking/a", "/banking/a", ""},
		{"/x/.%2e/banking/a", "/banking/a", ""},
		{"/x//../banking/a", "/banking/a", ""},
		{"/banking/b/../a", "/banking/a", ""},
		// Not under /banking/ whatever it looks like.
		{"/banking/../x", "/x", ""},
		{"/banking/%2e%2e/public", "/public", ""},
		{"/banking/..", "/", ""},
		{"/banking/x/..", "/banking/", ""},
		{"/banking/.", "/banking/", ""},
		{"/Banking/a", "/Banking/a", ""},
		{"/bankingfoo", "/bankingfoo", ""},
		{"/banking/...", "/banking/...", ""},
		{"/banking/..a", "/banking/..a", ""},
		{"/.well-known/x", "/.well-known/x", ""},
		{"/banking;v=1/a", "/banking;v=1/a", ""},
		{"/banking%3bv=1/a", "/banking%3Bv=1/a", ""},
		{"/banking%253bv", "/banking%253bv", ""},
		{"/banking%252fa", "/banking%252fa", ""},
		{"//evil.example/x", "/evil.example/x", ""},
		{"///evil.example", "/evil.example", ""},
		// Escapes.
		{"/a%20b?x", "/a%20b", "x"},
		{"/a b", "/a%20b", ""},
		{"/%7euser/%41%2d", "/~user/A-", ""},
		{"/%c3%a4", "/%C3%A4", ""},
		{"/ä", "/%C3%A4", ""},
		{"/\xff", "/%FF", ""},
		{`/"<>^{|}[]` + "`", "/%22%3C%3E%5E%7B%7C%7D%5B%5D%60", ""},
		{"/!$&'()*+,;=:@", "/!$&'()*+,;=:@", ""},
		{"/%3f%23", "/%3F%23", ""},
		// The query is nobody's business.
		{"/a?a=1;b=2&c=3", "/a", "a=1;b=2&c=3"},
		{"/a?//../%2f%zz?\\ä", "/a", "//../%2f%zz?\\ä"},
		{"/a?", "/a", ""},
	}
	for _, tt := range tests {
		path, query, err := Canonical(tt.target)
		if path != tt.path || query != tt.query || err != nil {
			t.Errorf("Canonical(%q) = %q, %q, %v; want %q, %q", tt.target, path, query, err, tt.path, tt.query)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	tests := []struct {
		target string
		want   error
	}{
		{"", notAPath},
		{"*", notAPath},
		{"banking/a", notAPath},
		{"?x", notAPath},
		{"https://www.example.com/banking/a", notAPath},
		{"www.example.com:443", notAPath},
		{"/banking%2Fa", encodedSlash},
		{"/banking/..%2fx", encodedSlash},
		{"/%2e%2e%2fx", encodedSlash},
		{"/banking%5ca", backslash},
		{`/banking\a`, backslash},
		{`/banking\..\x`, backslash},
		{"/banking%00/a", controlByte},
		{"/banking%0d%0aSet-Cookie:x", controlByte},
		{"/banking\x00", controlByte},
		{"/banking\r\n", controlByte},
		{"/banking%7f", controlByte},
		{"/a?x=\n", controlByte},
		{"/a?x HTTP/1.1", spaceInQuery},
		{"/a?x#y", fragment},
		{"/a#y", fragment},
		{"/banking%", badEscape},
		{"/banking%2", badEscape},
		{"/banking%zz", badEscape},
		{"/banking%u002f", badEscape},
		{"/..", aboveRoot},
		{"/../banking", aboveRoot},
		{"/banking/../../x", aboveRoot},
		{"/banking/%2e%2e/%2E%2E/x", aboveRoot},
		{"/public/..;/banking/a", dotParameter},
		{"/public/%2e%2e;x=1/banking/a", dotParameter},
		{"/public/.;/a", dotParameter},
		{"/" + strings.Repeat("a", MaxTarget), targetTooLong},
		{"/" + strings.Repeat("ä", MaxTarget/4), targetTooLong},
	}
	for _, tt := range tests {
		if path, _, err := Canonical(tt.target); err != tt.want {
			t.Errorf("Canonical(%.40q) = %q, %v; want error %v", tt.target, path, err, tt.want)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"/", "/banking/%2e%2e/public?x", "//a/./b//", "/%62%2f", "/ä b;c/..;/", "/a/../..", "*", "/[%5B]", "/:@!$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		path, query, err := Canonical(target)
		if err != nil {
			return
		}
		full := path
		if query != "" {
			full += "?" + query
		}
		if path2, query2, err := Canonical(full); path2 != path || query2 != query || err != nil {
			t.Errorf("Canonical(%q) = %q, %q; again = %q, %q, %v", target, path, query, path2, query2, err)
		}
		if strings.Contains(path, "//") || path[0] != '/' {
			t.Errorf("Canonical(%q) = %q: empty segment", target, path)
		}
		for segment := range strings.SplitSeq(path, "/") {
			if segment == "." || segment == ".." {
				t.Errorf("Canonical(%q) = %q: dot segment", target, path)
			}
		}
		u, err := url.Parse(full)
		if err != nil {
			t.Fatalf("Canonical(%q) = %q, which url.Parse refuses: %v", target, full, err)
		}
		if u.EscapedPath() != path || u.RawQuery != query || u.Host != "" {
			t.Errorf("Canonical(%q) = %q, %q; url.Parse has %q, %q and host %q", target, path, query, u.EscapedPath(), u.RawQuery, u.Host)
		}
		if strings.ContainsAny(u.Path, "\x00\\") || strings.Count(u.Path, "/") != strings.Count(path, "/") {
			t.Errorf("Canonical(%q) = %q, which decodes to %q", target, path, u.Path)
		}
	})
}

func BenchmarkCanonical(b *testing.B) {
	for name, target := range map[string]string{
		"plain":   "/static/css/site.css?v=17",
		"escaped": "/shop/%7euser/a%20b/../c",
		"longest": strings.Repeat("/a", MaxTarget/5) + strings.Repeat("/..", MaxTarget/5),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Canonical(target); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
