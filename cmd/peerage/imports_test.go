package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers are the top-level folders, from the highest to the lowest. A package imports
// from its own folder and from lower layers only.
var layers = [][]string{
	{"cmd"},
	{"appliance"},
	{"edge", "dnsserver", "takeover", "tls"},
	{"balancing"},
}

// TestImportsRunDownwards reads every import of the module. It parses the files itself,
// for what 'go list' says would not be seen by the test cache.
func TestImportsRunDownwards(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if to, ours := strings.CutPrefix(imported, "peerage/"); ours && !below(rel, to) {
				t.Errorf("%s imports %s: %s is not below %s", rel, to, to, rel)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("read %d Go files below %s: this is not the module", files, root)
	}
}

func below(from, to string) bool {
	fromTop, _, _ := strings.Cut(filepath.ToSlash(from), "/")
	toTop, _, _ := strings.Cut(to, "/")
	return fromTop == toTop || layer(fromTop) < layer(toTop)
}

// layer returns the place of a top-level folder, above all for one that must not exist.
func layer(top string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, top) })
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"cmd/peerage", "appliance/node", true},
		{"appliance/node", "edge", true},
		{"edge", "edge/route", true},
		{"edge/route", "balancing", true},
		{"edge", "tls/certs", false},
		{"balancing", "edge", false},
		{"dnsserver", "appliance/site", false},
		{"edge", "helpers", false},
	} {
		if got := below(c.from, c.to); got != c.want {
			t.Errorf("below(%s, %s) = %v, want %v", c.from, c.to, got, c.want)
		}
	}
}
