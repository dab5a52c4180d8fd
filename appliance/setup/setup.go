// Package setup writes the files that a node starts from: the node file, and as a rule in
// its data directory the site key, the site document and the local CA. Start with
// [Write]: it writes all of them or none.
package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// Files are the contents of a node's files.
type Files struct {
	NodePath string // of the node file
	Node     string // YAML
	Document string // YAML
	Key      keys.Key
	Ring     *keys.Ring // of a site that is joined, in place of Key
	CA       *certs.CA
	NodeKey  state.NodeKey // of a node that has joined; without it the node makes one when it starts
	Others   []File        // that the document needs, such as pages
}

// File is one more file of a node.
type File struct {
	Path string
	Text string
	Mode fs.FileMode
}

// ErrExists says that there is a node already, which is left as it is.
var ErrExists = errors.New("there is a node already")

// Write checks the two YAML files and writes everything, the node file last. It
// overwrites nothing: if one of the files is there, the error is [ErrExists], and nothing
// is written; but one of Others that is there word for word is good as it is. Nor does
// anything stay that was written before another error.
func Write(f Files) error {
	nf, err := site.ParseNode(f.NodePath, []byte(f.Node))
	if err != nil {
		return err
	}
	if _, err := site.ParseDocument(nf.SiteFile, []byte(f.Document)); err != nil {
		return err
	}
	ring := f.Ring
	if ring == nil {
		if ring, err = keys.NewRing(f.Key); err != nil {
			return err
		}
	}
	paths := []string{f.NodePath, nf.SiteKeyFile, nf.SiteFile, filepath.Join(nf.DataDir, state.CAFile), filepath.Join(nf.DataDir, state.NodeKeyFile)}
	f.Others = slices.DeleteFunc(slices.Clone(f.Others), func(o File) bool {
		text, err := os.ReadFile(o.Path)
		return err == nil && string(text) == o.Text
	})
	for _, o := range f.Others {
		paths = append(paths, o.Path)
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			return fmt.Errorf("%w: %s exists", ErrExists, p)
		}
	}
	dir, err := state.Open(nf.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return writeAll(f.parts(nf, dir, ring))
}

// part is one file, still to be written.
type part struct {
	path  string
	write func() error
}

// parts returns the files in the order of writing: who finds a node file finds all.
func (f *Files) parts(nf *site.NodeFile, dir *state.Dir, ring *keys.Ring) []part {
	plain := func(path, text string, mode fs.FileMode) part {
		return part{path, func() error { return state.Create(path, []byte(text), mode) }}
	}
	parts := []part{
		{nf.SiteKeyFile, func() error { return state.WriteSiteKey(nf.SiteKeyFile, ring) }},
		{filepath.Join(nf.DataDir, state.CAFile), func() error { return dir.SaveCA(f.CA, ring) }},
		plain(nf.SiteFile, f.Document, 0o644),
	}
	if !f.NodeKey.Empty() {
		parts = append(parts, part{filepath.Join(nf.DataDir, state.NodeKeyFile), func() error { return dir.SaveNodeKey(f.NodeKey) }})
	}
	for _, o := range f.Others {
		parts = append(parts, plain(o.Path, o.Text, o.Mode))
	}
	return append(parts, plain(f.NodePath, f.Node, 0o644))
}

// writeAll writes the parts, or takes back those that it has written.
func writeAll(parts []part) error {
	for i, p := range parts {
		if err := p.write(); err != nil {
			for _, done := range parts[:i] {
				os.Remove(done.path)
			}
			return err
		}
	}
	return nil
}
