// Package static serves the files below a directory.
//
// Start with [Handler]. It serves nothing outside its directory, whatever the path and
// whatever symbolic links there are ([os.Root]), nothing whose name begins with a dot
// (except /.well-known, RFC 8615), and nothing but files and directories. It says
// nothing of where the files lie, and writes nothing.
//
// Ranges and conditional requests are those of RFC 9110 sections 13 and 14, done by
// [http.ServeContent]; the choice of an encoding is section 12.5.3.
package static

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Config says what is served.
type Config struct {
	Dir           string // the directory; it must be there
	Index         string // name of the file that stands for its directory; "" is index.html
	Listing       bool   // list directories that have no index
	Precompressed bool   // serve NAME.br, NAME.zst or NAME.gz in place of NAME where the client takes it
}

// Handler serves the files of one directory.
type Handler struct {
	root          *os.Root
	index         string
	listing       bool
	precompressed bool
}

// New opens the directory. The caller closes the handler after its last request.
func New(c Config) (*Handler, error) {
	index := cmp.Or(c.Index, "index.html")
	if strings.Contains(index, "/") || hidden(index) {
		return nil, fmt.Errorf("serve files of %s: index %q: not a plain file name", c.Dir, index)
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("serve files of %s: %w", c.Dir, err)
	}
	return &Handler{root, index, c.Listing, c.Precompressed}, nil
}

// Close closes the directory.
func (h *Handler) Close() error { return h.root.Close() }

// maxRanges is how many ranges of a file are sent in one answer. Each costs more in
// heads than it may hold; a request for more gets the whole file (RFC 9110 14.2).
const maxRanges = 16

// ServeHTTP serves the file at r.URL.Path, which is relative to the handler's
// directory. r.RequestURI is the target as the client sent it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	name, ok := fileName(r.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound)
		return
	}
	f, info, err := h.open(name)
	if err != nil {
		fail(w, status(err))
		return
	}
	defer f.Close()
	target, _, _ := strings.Cut(cmp.Or(r.RequestURI, r.URL.Path), "?")
	slash := strings.HasSuffix(target, "/")
	switch {
	case !info.IsDir() && slash: // relative links in it would lead astray
		fail(w, http.StatusNotFound)
	case !info.IsDir():
		h.serveFile(w, r, name, f, info)
	case !slash:
		redirectToDir(w, r, target)
	default:
		h.serveDir(w, r, name, f)
	}
}

// fileName turns the path of a request into a name below the root, or refuses it.
func fileName(p string) (string, bool) {
	name := cmp.Or(strings.Trim(p, "/"), ".")
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\\x00") {
		return "", false
	}
	rest := strings.TrimPrefix(name+"/", ".well-known/")
	for segment := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		if name != "." && hidden(segment) {
			return "", false
		}
	}
	return name, true
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// errNeither is the error for what is neither a file nor a directory.
var errNeither = errors.New("neither a file nor a directory")

// open opens a file or directory.
func (h *Handler) open(name string) (*os.File, fs.FileInfo, error) {
	// Without O_NONBLOCK, to open a named pipe is to wait for its writer.
	f, err := h.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = errNeither
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// status is the answer to an error of opening a file. What os.Root refuses is not there,
// as far as the client is concerned.
func status(err error) int {
	errno, fromKernel := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return http.StatusForbidden
	case errors.Is(err, fs.ErrClosed), errno == syscall.EMFILE, errno == syscall.ENFILE:
		return http.StatusServiceUnavailable
	case !fromKernel:
		return http.StatusNotFound
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENXIO:
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// redirectToDir adds the slash that a directory's relative links need. The location is
// relative to the client's own path, so neither a stripped prefix nor a path that looks
// like a host can mislead it.
func redirectToDir(w http.ResponseWriter, r *http.Request, target string) {
	last, err := url.PathUnescape(target[strings.LastIndexByte(target, '/')+1:])
	if err != nil || last == "" {
		fail(w, http.StatusNotFound)
		return
	}
	to := url.URL{Path: "./" + last + "/", RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", to.String())
	plain(w, http.StatusTemporaryRedirect)
}

// serveDir serves the index of the open directory dir, or lists it.
func (h *Handler) serveDir(w http.ResponseWriter, r *http.Request, name string, dir *os.File) {
	index := path.Join(name, h.index)
	f, info, err := h.open(index)
	if err == nil {
		defer f.Close()
	}
	switch {
	case err == nil && info.Mode().IsRegular():
		h.serveFile(w, r, index, f, info)
	case err != nil && status(err) != http.StatusNotFound:
		fail(w, status(err))
	case h.listing:
		h.list(w, r, name, dir)
	default:
		fail(w, http.StatusNotFound)
	}
}

// serveFile serves the open file called name, or a compressed sibling.
func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request, name string, f *os.File, info fs.FileInfo) {
	header := w.Header()
	coding := "" // as it is
	if h.precompressed {
		header.Add("Vary", "Accept-Encoding")
		for _, c := range accepted(r.Header["Accept-Encoding"]) {
			sibling, siblingInfo, err := h.open(name + c.suffix)
			if err != nil {
				continue
			}
			defer sibling.Close()
			if siblingInfo.Mode().IsRegular() {
				f, info, coding = sibling, siblingInfo, c.name
				header.Set("Content-Encoding", coding)
				break
			}
		}
	}
	header.Set("Content-Type", contentType(name))
	header.Set("X-Content-Type-Options", "nosniff")
	changed := info.ModTime()
	if changed.Unix() <= 1 { // set so by reproducible builds: says nothing of the content
		changed = time.Time{}
	} else {
		header.Set("Etag", etag(changed, info.Size(), coding))
	}
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
	}
	http.ServeContent(w, r, "", changed, f)
}

// types are those that package mime lacks, or takes for something else than the web does.
var types = map[string]string{
	".map":         "application/json",
	".md":          "text/markdown; charset=utf-8",
	".otf":         "font/otf",
	".ttf":         "font/ttf",
	".webm":        "video/webm",
	".webmanifest": "application/manifest+json",
	".woff":        "font/woff",
	".woff2":       "font/woff2",
}

// contentType goes by the extension and never by the content, which may be compressed,
// or made to look like a page by whoever wrote it.
func contentType(name string) string {
	ext := path.Ext(name)
	return cmp.Or(types[ext], mime.TypeByExtension(ext), "application/octet-stream")
}

// etag is a strong validator of one encoding of a file.
func etag(changed time.Time, size int64, coding string) string {
	tag := `"` + strconv.FormatInt(changed.UnixNano(), 36) + "-" + strconv.FormatInt(size, 36)
	if coding != "" {
		tag += "-" + coding
	}
	return tag + `"`
}

// fail answers with a short page of ours.
func fail(w http.ResponseWriter, status int) {
	w.Header().Set("Cache-Control", "no-store")
	plain(w, status)
}

func plain(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%d %s\n", status, strings.ToLower(http.StatusText(status)))
}
