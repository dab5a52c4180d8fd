package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNodeKeyIsMadeOnce(t *testing.T) {
	path := t.TempDir()
	if _, err := LoadNodeKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v, want %v", err, fs.ErrNotExist)
	}
	d := openDir(t, path)
	k, err := d.NodeKey()
	if err != nil || k.Empty() {
		t.Fatal(k.Empty(), err)
	}
	wantMode(t, filepath.Join(path, NodeKeyFile), 0o600)
	again, err := d.NodeKey()
	if err != nil || again.Octets() != k.Octets() {
		t.Errorf("again: another one, or %v", err)
	}
	if got, err := LoadNodeKey(path); err != nil || got.Octets() != k.Octets() {
		t.Errorf("from outside: another one, or %v", err)
	}
	if err := d.SaveNodeKey(NewNodeKey()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second SaveNodeKey: %v, want %v", err, fs.ErrExist)
	}
	wantError(t, openDir(t, t.TempDir()).SaveNodeKey(NodeKey{}), NodeKeyFile, "no node key")
}

func TestLoadNodeKeyRefuses(t *testing.T) {
	const secret = "hunter2hunter2hunter2hunter2hunter2hunter2!"
	for _, test := range []struct {
		name, text string
		mode       fs.FileMode
		want       string
	}{
		{"empty", "", 0o600, "0 characters, want 43"},
		{"no base64", secret, 0o600, "not base64url"},
		{"zeros", strings.Repeat("A", 43), 0o600, "all zero"},
		{"huge", strings.Repeat(secret, maxFile), 0o600, "more than 65536 octets"},
		{"readable", NewNodeKey().Reveal(), 0o640, "others may read it"},
	} {
		path := t.TempDir()
		writeFile(t, filepath.Join(path, NodeKeyFile), test.text, test.mode)
		_, err := LoadNodeKey(path)
		wantError(t, err, filepath.Join(path, NodeKeyFile), test.want)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells what is in the file: %v", test.name, err)
		}
		if _, err := openDir(t, path).NodeKey(); err == nil {
			t.Errorf("%s: replaced by a new one", test.name)
		}
	}
}

func TestNothingPrintsANodeKey(t *testing.T) {
	k := NewNodeKey()
	type hiding struct{ key NodeKey }
	b, err := json.Marshal(struct{ K NodeKey }{k})
	if err != nil {
		t.Fatal(err)
	}
	octets := k.Octets()
	var out strings.Builder
	out.Write(b)
	for _, v := range []any{k, &k, hiding{k}, &hiding{k}, []NodeKey{k}} {
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %d %!") {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, form := range []string{k.Reveal()[:10], fmt.Sprintf("%x", octets[:8]), strings.Trim(fmt.Sprint(octets[:8]), "[]")} {
		if strings.Contains(out.String(), form) {
			t.Errorf("shown in %q", out.String())
		}
	}
}

func FuzzNodeKey(f *testing.F) {
	f.Add("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseNodeKey(text)
		if err == nil && k.Reveal() != strings.TrimSpace(text) {
			t.Errorf("%q is a second spelling of %q", text, k.Reveal())
		}
	})
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "site.yaml")
	for _, text := range []string{"one", "two"} {
		if err := Replace(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, path); got != text {
			t.Errorf("holds %q, want %q", got, text)
		}
		wantMode(t, path, 0o644)
	}
	if p := partials(t, dir); len(p) > 0 {
		t.Errorf("left: %q", p)
	}
	if err := Replace(filepath.Join(dir, "new", "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	wantError(t, Replace(filepath.Join(dir, "d"), nil, 0o600), filepath.Join(dir, "d"), "not a regular file")
}

// TestReplaceFollowsNoLink has a server that put a link in place of its site document.
func TestReplaceFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	shadow, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "site.yaml")
	writeFile(t, shadow, "theirs", 0o600)
	if err := os.Symlink(shadow, path); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if contents(t, shadow) != "theirs" || contents(t, path) != "mine" {
		t.Errorf("the other file holds %q, this one %q", contents(t, shadow), contents(t, path))
	}
	wantMode(t, path, 0o644)
}

func TestReplaceKeepsTheOwner(t *testing.T) {
	asRoot(t)
	path := filepath.Join(t.TempDir(), "site.yaml")
	writeFile(t, path, "old", 0o644)
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, path); got != 12345 {
		t.Errorf("belongs to %d, want 12345", got)
	}
}
