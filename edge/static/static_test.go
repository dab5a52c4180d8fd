package static

import (
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var changed = time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)

// site is a directory as an operator would have it, beside a secret.
func site(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		name = filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, changed, changed); err != nil {
			t.Fatal(err)
		}
	}
	write("secret.txt", "secret")
	write("www/index.html", "<p>start")
	write("www/a.txt", "0123456789")
	write("www/kib.bin", strings.Repeat("x", 1024))
	write("www/app.js", "plain script")
	write("www/app.js.br", "br script")
	write("www/app.js.zst", "zstd script")
	write("www/app.js.gz", "gzip script")
	write("www/some.css", "plain style")
	write("www/some.css.gz", "gzip style")
	write("www/docs/x.unknown", "?")
	write("www/docs/<b>&\"c\".md", "markup")
	write("www/docs/deep/er.txt", "deeper")
	write("www/odd/javascript:alert(1)", "x")
	write("www/colon:dir/index.html", "colon")
	write("www/.env", "password")
	write("www/.git/config", "password")
	write("www/docs/.hidden", "password")
	write("www/.well-known/security.txt", "Contact:")
	write("www/.well-known/.hidden", "password")
	link := func(old, new string) {
		t.Helper()
		if err := os.Symlink(old, filepath.Join(top, "www", new)); err != nil {
			t.Fatal(err)
		}
	}
	link("a.txt", "inside.txt")
	link("docs", "manual")
	link("../secret.txt", "up.txt")
	link(filepath.Join(top, "secret.txt"), "absolute.txt")
	link("..", "updir")
	link("loop", "loop")
	if err := syscall.Mkfifo(filepath.Join(top, "www", "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(top, "www")
}

func newHandler(t testing.TB, c Config) *Handler {
	t.Helper()
	if c.Dir == "" {
		c.Dir = site(t)
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// ask sends a request with pairs of header name and value.
func ask(h http.Handler, method, target string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestServesFilesAndNothingElse(t *testing.T) {
	h := newHandler(t, Config{})
	tests := []struct {
		path   string
		status int
		body   string
	}{
		{"/", 200, "<p>start"},
		{"/index.html", 200, "<p>start"},
		{"/a.txt", 200, "0123456789"},
		{"/docs/deep/er.txt", 200, "deeper"},
		{"/inside.txt", 200, "0123456789"},
		{"/manual/deep/er.txt", 200, "deeper"},
		{"/.well-known/security.txt", 200, "Contact:"},
		{"/colon:dir/", 200, "colon"},
		{"/absent", 404, ""},
		{"/a.txt/", 404, ""},
		{"/a.txt/x", 404, ""},
		{"/docs/", 404, ""},
		{"/.well-known/", 404, ""},
		{"/A.TXT", 404, ""},
		{"/" + strings.Repeat("a", 300), 404, ""},
		{"/" + strings.Repeat("a/", 3000), 404, ""},
		// Out of the directory.
		{"/../secret.txt", 404, ""},
		{"/%2e%2e/secret.txt", 404, ""},
		{"/..%2fsecret.txt", 404, ""},
		{"/docs/../../secret.txt", 404, ""},
		{"/docs/..%2f..%2fsecret.txt", 404, ""},
		{"/..%5csecret.txt", 404, ""},
		{"/%5c..%5csecret.txt", 404, ""},
		{"/a.txt%00.html", 404, ""},
		{"//etc/passwd", 404, ""},
		{"/up.txt", 404, ""},
		{"/absolute.txt", 404, ""},
		{"/updir/secret.txt", 404, ""},
		{"/updir/www/a.txt", 404, ""},
		{"/loop", 404, ""},
		{"/proc/self/environ", 404, ""},
		// Hidden.
		{"/.env", 404, ""},
		{"/%2eenv", 404, ""},
		{"/.git/config", 404, ""},
		{"/docs/.hidden", 404, ""},
		{"/.well-known/.hidden", 404, ""},
		{"/docs/.well-known/x", 404, ""},
		// Not a file.
		{"/pipe", 404, ""},
	}
	for _, tt := range tests {
		for _, method := range []string{"GET", "HEAD"} {
			r := ask(h, method, tt.path)
			got := body(t, r)
			if r.StatusCode != tt.status {
				t.Errorf("%s %.60s: status %d, want %d", method, tt.path, r.StatusCode, tt.status)
			}
			if method == "GET" && tt.status == 200 && got != tt.body {
				t.Errorf("GET %s: body %q, want %q", tt.path, got, tt.body)
			}
			if tt.status != 200 && method == "GET" && got != "404 not found\n" {
				t.Errorf("GET %.60s: body %q, want a short page", tt.path, got)
			}
		}
	}
}

func TestOtherMethodsAreRefused(t *testing.T) {
	h := newHandler(t, Config{})
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} {
		r := ask(h, method, "/a.txt")
		if r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: status %d, Allow %q; want 405 with GET, HEAD", method, r.StatusCode, r.Header.Get("Allow"))
		}
	}
}

func TestUnreadableIsForbidden(t *testing.T) {
	if os.Geteuid() == 0 {
		if got := status(&os.PathError{Op: "openat", Path: "x", Err: syscall.EACCES}); got != 403 {
			t.Errorf("status(EACCES) = %d, want 403", got)
		}
		t.Skip("root reads everything")
	}
	dir := site(t)
	if err := os.Chmod(filepath.Join(dir, "a.txt"), 0); err != nil {
		t.Fatal(err)
	}
	if r := ask(newHandler(t, Config{Dir: dir}), "GET", "/a.txt"); r.StatusCode != 403 || strings.Contains(body(t, r), "a.txt") {
		t.Errorf("status %d, want 403 and a short page", r.StatusCode)
	}
}

func TestStatusOfErrors(t *testing.T) {
	tests := map[error]int{
		syscall.ENOENT:       404,
		syscall.ENOTDIR:      404,
		syscall.ELOOP:        404,
		syscall.ENAMETOOLONG: 404,
		syscall.EACCES:       403,
		syscall.EMFILE:       503,
		os.ErrClosed:         503,
		syscall.EIO:          500,
		errNeither:           404,
	}
	for err, want := range tests {
		if got := status(&os.PathError{Op: "openat", Path: "x", Err: err}); got != want {
			t.Errorf("status(%v) = %d, want %d", err, got, want)
		}
	}
}

// A caller strips the prefix of its route, so the location must not depend on it.
func TestDirectoryIsRedirectedToItsSlash(t *testing.T) {
	h := newHandler(t, Config{})
	tests := []struct {
		prefix, target, location, leadsTo string
	}{
		{"", "/docs", "./docs/", "/docs/"},
		{"", "/docs?x=1&y", "./docs/?x=1&y", "/docs/?x=1&y"},
		{"/static", "/static/docs/deep", "./deep/", "/static/docs/deep/"},
		{"/static", "/static", "./static/", "/static/"},
		{"", "//docs", "./docs/", "/docs/"},
		{"", "/colon:dir", "./colon:dir/", "/colon:dir/"},
		{"", "/manual", "./manual/", "/manual/"},
	}
	for _, tt := range tests {
		r := ask(http.StripPrefix(tt.prefix, h), "GET", tt.target)
		location := r.Header.Get("Location")
		if r.StatusCode != 307 || location != tt.location {
			t.Errorf("GET %s: status %d, location %q; want 307, %q", tt.target, r.StatusCode, location, tt.location)
		}
		base := &url.URL{Scheme: "https", Host: "a.example", Path: strings.Replace(strings.Split(tt.target, "?")[0], "//", "/", 1)}
		to, err := base.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		if to.Host != "a.example" || to.RequestURI() != tt.leadsTo {
			t.Errorf("GET %s: leads to %s, want %s", tt.target, to, tt.leadsTo)
		}
	}
	if r := ask(http.StripPrefix("/static/", h), "GET", "/static/"); r.StatusCode != 200 {
		t.Errorf("GET of the route itself: status %d, want its index", r.StatusCode)
	}
}

func TestContentTypeGoesByExtension(t *testing.T) {
	for name, want := range map[string]string{
		"index.html":      "text/html; charset=utf-8",
		"a.b.css":         "text/css; charset=utf-8",
		"x.js":            "text/javascript; charset=utf-8",
		"x.woff2":         "font/woff2",
		"x.webmanifest":   "application/manifest+json",
		"x.unknown-thing": "application/octet-stream",
		"LICENSE":         "application/octet-stream",
	} {
		if got := contentType(name); got != want {
			t.Errorf("contentType(%s) = %q, want %q", name, got, want)
		}
	}
	r := ask(newHandler(t, Config{}), "GET", "/docs/x.unknown")
	if r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("GET /docs/x.unknown: %v", r.Header)
	}
}

func TestConditionalRequests(t *testing.T) {
	h := newHandler(t, Config{})
	first := ask(h, "GET", "/a.txt")
	tag, at := first.Header.Get("Etag"), first.Header.Get("Last-Modified")
	if tag == "" || strings.HasPrefix(tag, "W/") || at != changed.Format(http.TimeFormat) {
		t.Fatalf("validators %q, %q", tag, at)
	}
	before := changed.Add(-time.Hour).Format(http.TimeFormat)
	tests := []struct {
		name    string
		headers []string
		status  int
	}{
		{"same tag", []string{"If-None-Match", tag}, 304},
		{"same tag among others", []string{"If-None-Match", `"x", W/` + tag}, 304},
		{"any tag", []string{"If-None-Match", "*"}, 304},
		{"other tag", []string{"If-None-Match", `"x"`}, 200},
		{"other tag beats the time", []string{"If-None-Match", `"x"`, "If-Modified-Since", at}, 200},
		{"not changed since", []string{"If-Modified-Since", at}, 304},
		{"changed since", []string{"If-Modified-Since", before}, 200},
		{"must match, does", []string{"If-Match", tag}, 200},
		{"must match, does not", []string{"If-Match", `"x"`}, 412},
		{"must be old, is", []string{"If-Unmodified-Since", at}, 200},
		{"must be old, is not", []string{"If-Unmodified-Since", before}, 412},
		{"range if same", []string{"Range", "bytes=0-0", "If-Range", tag}, 206},
		{"range if same, changed", []string{"Range", "bytes=0-0", "If-Range", `"x"`}, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := ask(h, "GET", "/a.txt", tt.headers...); r.StatusCode != tt.status {
				t.Errorf("%q: status %d, want %d", tt.headers, r.StatusCode, tt.status)
			}
		})
	}
}

func TestETagFollowsTheFile(t *testing.T) {
	dir := site(t)
	h := newHandler(t, Config{Dir: dir})
	name := filepath.Join(dir, "a.txt")
	tag := func() string { return ask(h, "GET", "/a.txt").Header.Get("Etag") }
	seen := []string{tag()}
	change := func(content string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, tag())
	}
	change("9876543210", changed.Add(1)) // same size, a nanosecond later
	change("0123", changed)
	if slices.Sort(seen); len(slices.Compact(seen)) != 3 {
		t.Errorf("tags %q: want three different", seen)
	}
	change("0123", time.Unix(1, 0))
	r := ask(h, "GET", "/a.txt")
	if r.Header.Get("Etag") != "" || r.Header.Get("Last-Modified") != "" {
		t.Errorf("validators of a file without a time: %v", r.Header)
	}
}

func TestRanges(t *testing.T) {
	h := newHandler(t, Config{})
	tests := []struct {
		ranges string
		status int
		body   string
	}{
		{"bytes=0-2", 206, "012"},
		{"bytes=7-", 206, "789"},
		{"bytes=-2", 206, "89"},
		{"bytes=8-100", 206, "89"},
		{"bytes=10-", 416, ""},
		{"bytes=x", 416, ""},
		{"bytes=" + strings.Repeat("0-0,", maxRanges) + "1-1", 200, "0123456789"},
	}
	for _, tt := range tests {
		r := ask(h, "GET", "/a.txt", "Range", tt.ranges)
		if got := body(t, r); r.StatusCode != tt.status || r.StatusCode < 300 && got != tt.body {
			t.Errorf("%.40s: status %d, body %q; want %d, %q", tt.ranges, r.StatusCode, got, tt.status, tt.body)
		}
	}
	r := ask(h, "GET", "/a.txt", "Range", "bytes=0-0,9-9")
	_, boundary, ok := strings.Cut(r.Header.Get("Content-Type"), "boundary=")
	if r.StatusCode != 206 || !ok {
		t.Fatalf("two ranges: status %d, %v", r.StatusCode, r.Header)
	}
	var parts strings.Builder
	for m := multipart.NewReader(r.Body, boundary); ; {
		p, err := m.NextPart()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(p)
		parts.WriteString(string(b) + "|")
	}
	if parts.String() != "0|9|" {
		t.Errorf("two ranges: parts %q", parts.String())
	}
}

func TestPrecompressed(t *testing.T) {
	h := newHandler(t, Config{Precompressed: true})
	tests := []struct {
		path, accept string
		want, body   string
	}{
		{"/app.js", "", "", "plain script"},
		{"/app.js", "gzip, deflate, br, zstd", "br", "br script"},
		{"/app.js", "gzip, zstd", "zstd", "zstd script"},
		{"/app.js", "gzip", "gzip", "gzip script"},
		{"/app.js", "br;q=0.5, gzip;q=0.8", "gzip", "gzip script"},
		{"/app.js", "gzip;q=0.5, identity", "", "plain script"},
		{"/app.js", "gzip;q=0", "", "plain script"},
		{"/app.js", "*", "br", "br script"},
		{"/app.js", "br;q=0, *", "zstd", "zstd script"},
		{"/app.js", "deflate", "", "plain script"},
		{"/some.css", "gzip, br, zstd", "gzip", "gzip style"},
		{"/a.txt", "gzip, br, zstd", "", "0123456789"},
		{"/app.js.gz", "gzip", "", "gzip script"},
	}
	tags := map[string]string{}
	for _, tt := range tests {
		var headers []string
		if tt.accept != "" {
			headers = []string{"Accept-Encoding", tt.accept}
		}
		r := ask(h, "GET", tt.path, headers...)
		if got := body(t, r); r.Header.Get("Content-Encoding") != tt.want || got != tt.body {
			t.Errorf("%s for %q: %q in %q, want %q in %q", tt.path, tt.accept, got, r.Header.Get("Content-Encoding"), tt.body, tt.want)
		}
		if r.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s for %q: Vary %q", tt.path, tt.accept, r.Header.Get("Vary"))
		}
		if tt.path != "/app.js" {
			continue
		}
		if got := r.Header.Get("Content-Type"); got != "text/javascript; charset=utf-8" {
			t.Errorf("%s for %q: Content-Type %q", tt.path, tt.accept, got)
		}
		tag := r.Header.Get("Etag")
		if other, ok := tags[tag]; ok && other != tt.want {
			t.Errorf("encodings %q and %q share the tag %s", other, tt.want, tag)
		}
		tags[tag] = tt.want
		if r := ask(h, "GET", tt.path, append(headers, "If-None-Match", tag)...); r.StatusCode != 304 || r.Header.Get("Vary") == "" {
			t.Errorf("%s for %q: status %d with its own tag, %v", tt.path, tt.accept, r.StatusCode, r.Header)
		}
	}
	if r := ask(h, "GET", "/app.js", "Accept-Encoding", "br", "Range", "bytes=0-1"); r.StatusCode != 206 || body(t, r) != "br" {
		t.Errorf("range of an encoding: status %d, want 206 and its first two octets", r.StatusCode)
	}
	if r := ask(newHandler(t, Config{}), "GET", "/app.js", "Accept-Encoding", "br"); r.Header.Get("Content-Encoding") != "" || r.Header.Get("Vary") != "" {
		t.Errorf("not switched on: %v", r.Header)
	}
}

func TestAccepted(t *testing.T) {
	tests := map[string]string{
		"":                                 "",
		",;,=":                             "",
		"BR":                               "br",
		"x-gzip":                           "gzip",
		"gzip ; q=1":                       "gzip",
		"gzip;q=0.001":                     "gzip",
		"gzip;Q=1":                         "gzip",
		"gzip;q=2":                         "",
		"gzip;q=-1":                        "",
		"gzip;q=NaN":                       "",
		"gzip;q=":                          "",
		"gzip;x=1":                         "",
		"*;q=0":                            "",
		"gzip, *;q=0.5":                    "gzip br zstd",
		"zstd, br":                         "br zstd",
		"identity;q=0.5, gzip;q=0.4, zstd": "zstd",
		"identity;q=0":                     "",
	}
	for accept, want := range tests {
		var names []string
		for _, c := range accepted([]string{accept}) {
			names = append(names, c.name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("accepted(%q) = %q, want %q", accept, got, want)
		}
	}
	if got := accepted([]string{"gzip", "br"}); len(got) != 2 || got[0].name != "br" {
		t.Errorf("accepted of two header lines = %v", got)
	}
}

func TestListing(t *testing.T) {
	h := newHandler(t, Config{Listing: true})
	r := ask(h, "GET", "/docs/")
	page := body(t, r)
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/html; charset=utf-8" ||
		!strings.HasPrefix(r.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("status %d, %v", r.StatusCode, r.Header)
	}
	for _, want := range []string{
		`<h1>Files in /docs/</h1>`, `href="../"`, `<a href="./deep/">deep/</a>`, `href="./x.unknown"`,
		`href="./%3Cb%3E&amp;%22c%22.md">&lt;b&gt;&amp;&#34;c&#34;.md</a>`, "2030-01-02 03:04",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %q:\n%s", want, page)
		}
	}
	if strings.Index(page, "deep/") > strings.Index(page, "x.unknown") {
		t.Errorf("directories are not first:\n%s", page)
	}
	for _, bad := range []string{".hidden", "<b>", "<script", "There are more"} {
		if strings.Contains(page, bad) {
			t.Errorf("page has %q:\n%s", bad, page)
		}
	}
	if page := body(t, ask(h, "GET", "/odd/")); !strings.Contains(page, `href="./javascript:alert%281%29"`) {
		t.Errorf("name like a URL:\n%s", page)
	}
	if page := body(t, ask(h, "GET", "/")); page != "<p>start" {
		t.Errorf("the index is not preferred: %q", page)
	}
	if r := ask(h, "HEAD", "/docs/"); r.ContentLength <= 0 || body(t, r) != "" {
		t.Errorf("HEAD: Content-Length %d", r.ContentLength)
	}
}

func TestListingOfTheTop(t *testing.T) {
	page := body(t, ask(newHandler(t, Config{Listing: true, Index: "none"}), "GET", "/"))
	for _, bad := range []string{"up.txt", "absolute.txt", "updir", "loop", "pipe", ".env", "../"} {
		if strings.Contains(page, bad) {
			t.Errorf("page has %q:\n%s", bad, page)
		}
	}
	for _, want := range []string{"inside.txt", "manual/"} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %q:\n%s", want, page)
		}
	}
}

func TestListingIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range maxListed + 10 {
		if err := os.Link(filepath.Join(dir, "0"), filepath.Join(dir, fmt.Sprint(i))); err != nil {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	page := body(t, ask(newHandler(t, Config{Dir: dir, Listing: true}), "GET", "/"))
	if n := strings.Count(page, "<tr><td>"); n != maxListed || !strings.Contains(page, "There are more") {
		t.Errorf("%d entries listed, want %d and a remark", n, maxListed)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := site(t)
	for want, c := range map[string]Config{
		"no such file":    {Dir: filepath.Join(dir, "absent")},
		"not a directory": {Dir: filepath.Join(dir, "a.txt")},
		"not a plain":     {Dir: dir, Index: "../secret.txt"},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), c.Dir) {
			t.Errorf("New(%+v) = %v, want an error with %q and the directory", c, err, want)
		}
	}
}

func TestClosedHandlerIsUnavailable(t *testing.T) {
	h := newHandler(t, Config{})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if r := ask(h, "GET", "/a.txt"); r.StatusCode != 503 {
		t.Errorf("status %d, want 503", r.StatusCode)
	}
}

// FuzzPath checks that no path gets at what is hidden or lies outside, or leads away.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/docs", "/../secret.txt", "/.env", "/updir/secret.txt", "//docs", "/docs/..\\..", "/pipe", "", "/a.txt\x00", "/.well-known/.hidden"} {
		f.Add(s)
	}
	h := newHandler(f, Config{Listing: true, Precompressed: true})
	f.Fuzz(func(t *testing.T, path string) {
		r := &http.Request{
			Method: "GET", URL: &url.URL{Path: path}, RequestURI: (&url.URL{Path: path}).EscapedPath(),
			Header: http.Header{"Accept-Encoding": {"gzip"}},
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Body.String()
		if strings.Contains(got, "secret") || strings.Contains(got, "password") || strings.Contains(got, ".hidden") {
			t.Errorf("GET %q: %d %q", path, w.Code, got)
		}
		switch w.Code {
		case 200, 404:
		case 307:
			if l := w.Header().Get("Location"); !strings.HasPrefix(l, "./") || strings.Contains(l, "..") {
				t.Errorf("GET %q: location %q", path, l)
			}
		default:
			t.Errorf("GET %q: status %d", path, w.Code)
		}
	})
}

// nowhere is an answer that nobody reads.
type nowhere struct{ header http.Header }

func (w *nowhere) Header() http.Header         { return w.header }
func (w *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (w *nowhere) WriteHeader(int)             {}

func BenchmarkServe(b *testing.B) {
	h := newHandler(b, Config{Precompressed: true})
	plain := httptest.NewRequest("GET", "/kib.bin", nil)
	compressed := httptest.NewRequest("GET", "/app.js", nil)
	compressed.Header.Set("Accept-Encoding", "gzip, deflate, br, zstd")
	unchanged := compressed.Clone(b.Context())
	unchanged.Header.Set("If-None-Match", ask(h, "GET", "/app.js", "Accept-Encoding", "br").Header.Get("Etag"))
	for name, r := range map[string]*http.Request{"1KiB": plain, "precompressed": compressed, "304": unchanged} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := nowhere{http.Header{}}
				h.ServeHTTP(&w, r)
			}
		})
	}
}
