package site

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzDocument checks that no input does harm, that every error is one of ours with a
// line for each problem, and that what is printed reads back equal.
func FuzzDocument(f *testing.F) {
	good, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range good {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	bad, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range bad {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, in := range a.Files {
			if !strings.HasSuffix(in.Name, wantSuffix) {
				f.Add(in.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := ParseNode("node.yaml", text); err != nil {
			wantProblems(t, err)
		}
		doc, err := ParseDocument("site.yaml", text)
		if err != nil {
			wantProblems(t, err)
			return
		}
		printed := doc.String()
		again, err := ParseDocument("printed", []byte(printed))
		if err != nil {
			t.Fatalf("printed:\n%s\n%v", printed, err)
		}
		if d := equal(doc, again); d != "" {
			t.Errorf("reads back different:\n%s\n%s", printed, d)
		}
	})
}

func wantProblems(t *testing.T, err error) {
	ps, ok := errors.AsType[Problems](err)
	if !ok || len(ps) == 0 || len(ps) > maxProblems+1 {
		t.Fatalf("got %v, want problems", err)
	}
	for _, p := range ps {
		if p.Line < 1 || p.Column < 1 || p.Text == "" || strings.IndexFunc(p.String(), unicode.IsControl) >= 0 {
			t.Errorf("problem %#v: want a place, and one line", p)
		}
	}
}
