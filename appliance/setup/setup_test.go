package setup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// files returns those of a node below dir.
func files(t *testing.T, dir string) Files {
	t.Helper()
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	return Files{
		NodePath: filepath.Join(dir, "etc", "node.yaml"),
		Node:     fmt.Sprintf("name: n1\ndata_dir: %q\ninterfaces: {public: lo}\naddress: 127.0.0.1\n", data),
		Document: "site: test\nhosts: [www.example.test]\nnodes: {n1: {}}\nroutes: [{path: /, static: {dir: /srv/www}}]\n",
		Key:      keys.Generate(),
		CA:       ca,
		Others:   []File{{filepath.Join(data, "www", "index.html"), "<!doctype html>", 0o644}},
	}
}

// tree returns the files below dir with their modes, and their contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		all[fmt.Sprintf("%s %#o", rel, info.Mode().Perm())] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWriteMakesAllThatANodeStartsFrom(t *testing.T) {
	dir := t.TempDir()
	f := files(t, dir)
	if err := Write(f); err != nil {
		t.Fatal(err)
	}
	got := tree(t, dir)
	for _, want := range []string{"etc/node.yaml 0644", "data/site.yaml 0644", "data/site.key 0600", "data/ca.sealed 0600", "data/www/index.html 0644"} {
		if _, ok := got[want]; !ok {
			t.Errorf("no %s", want)
		}
		delete(got, want)
	}
	for name := range got {
		t.Errorf("%s is there too", name)
	}

	nf, err := site.LoadNode(f.NodePath)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.LoadDocument(nf.SiteFile); err != nil {
		t.Error(err)
	}
	ring, err := state.ReadSiteKey(nf.SiteKeyFile)
	if err == nil && ring.Reveal() != f.Key.Reveal()+"\n" {
		t.Error("the site key that was written is another")
	}
	if err != nil {
		t.Fatal(err)
	}
	ca, err := state.LoadCA(nf.DataDir, ring)
	if err != nil || !bytes.Equal(ca.CertPEM(), f.CA.CertPEM()) {
		t.Errorf("local CA: %v", err)
	}
	d, err := state.Open(nf.DataDir)
	if err != nil {
		t.Fatal(err) // Write must have let go of it
	}
	d.Close()
}

func TestWriteOverwritesNothing(t *testing.T) {
	for _, there := range []string{"etc/node.yaml", "data/site.yaml", "data/site.key", "data/ca.sealed", "data/www/index.html"} {
		dir := t.TempDir()
		path := filepath.Join(dir, there)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
			t.Fatal(err)
		}
		err := Write(files(t, dir))
		if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), path) {
			t.Errorf("with %s: %v, want %v and its name", there, err, ErrExists)
		}
		if got := tree(t, dir); len(got) != 1 || got[there+" 0600"] != "mine" {
			t.Errorf("with %s: afterwards %q", there, got)
		}
	}
	// A node that runs is a node that is there.
	dir := t.TempDir()
	f := files(t, dir)
	if err := Write(f); err != nil {
		t.Fatal(err)
	}
	d, err := state.Open(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := Write(f); !errors.Is(err, ErrExists) {
		t.Errorf("beside a node that runs: %v, want %v", err, ErrExists)
	}
}

func TestWriteTakesBackWhatItCannotFinish(t *testing.T) {
	dir := t.TempDir()
	f := files(t, dir)
	blocked := filepath.Join(dir, "blocked")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.NodePath = filepath.Join(blocked, "node.yaml") // below a file
	if err := Write(f); err == nil {
		t.Fatal("no error")
	}
	if got := tree(t, dir); len(got) != 1 {
		t.Errorf("afterwards %q", got)
	}
	f = files(t, dir)
	if err := Write(f); err != nil {
		t.Errorf("second attempt: %v", err)
	}
}

func TestWriteRefusesWhatNoNodeCouldStartFrom(t *testing.T) {
	for name, spoil := range map[string]func(*Files){
		"node file": func(f *Files) { f.Node += "nonsense: true\n" },
		"document":  func(f *Files) { f.Document += "nonsense: true\n" },
		"site key":  func(f *Files) { f.Key = keys.Key{} },
	} {
		dir := t.TempDir()
		f := files(t, dir)
		spoil(&f)
		if err := Write(f); err == nil {
			t.Errorf("bad %s: no error", name)
		}
		if got := tree(t, dir); len(got) != 0 {
			t.Errorf("bad %s: afterwards %q", name, got)
		}
	}
}
