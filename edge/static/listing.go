package static

import (
	"bytes"
	_ "embed"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxListed is how many entries of a directory are listed.
const maxListed = 4096

//go:embed listing.html
var listingPage string

var listingTemplate = template.Must(template.New("listing").Parse(listingPage))

type listing struct {
	Title   string
	Up      bool // it is not the top
	Entries []entry
	More    bool // than are listed
}

type entry struct {
	Name, Link, Size, Changed string
	dir                       bool
}

// list sends a page with the contents of the open directory dir, directories first.
func (h *Handler) list(w http.ResponseWriter, r *http.Request, name string, dir *os.File) {
	found, err := dir.ReadDir(maxListed + 1)
	if err != nil && err != io.EOF {
		fail(w, status(err))
		return
	}
	page := listing{Title: "/", Up: name != ".", More: len(found) > maxListed}
	if page.Up {
		page.Title += name + "/"
	}
	for _, e := range found[:min(len(found), maxListed)] {
		if hidden(e.Name()) {
			continue
		}
		// Stat, not e.Info: what a symbolic link leads to counts, if it stays below the root.
		info, err := h.root.Stat(path.Join(name, e.Name()))
		if err == nil && (info.Mode().IsRegular() || info.IsDir()) {
			page.Entries = append(page.Entries, newEntry(e.Name(), info))
		}
	}
	slices.SortFunc(page.Entries, func(a, b entry) int {
		switch {
		case a.dir == b.dir:
			return strings.Compare(a.Name, b.Name)
		case a.dir:
			return -1
		}
		return 1
	})
	var body bytes.Buffer
	if err := listingTemplate.Execute(&body, page); err != nil {
		fail(w, http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(body.Len()))
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache")
	if r.Method == http.MethodGet {
		body.WriteTo(w)
	}
}

func newEntry(name string, info fs.FileInfo) entry {
	e := entry{
		Name:    name,
		Link:    "./" + url.PathEscape(name),
		Changed: info.ModTime().UTC().Format("2006-01-02 15:04"),
		dir:     info.IsDir(),
	}
	if e.dir {
		e.Name += "/"
		e.Link += "/"
	} else {
		e.Size = strconv.FormatInt(info.Size(), 10)
	}
	return e
}
