package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedTestsExist: docs/patent.md and the decisions name the test that proves a
// claim. A test that was renamed or removed must not go on proving it.
func TestDocumentedTestsExist(t *testing.T) {
	root := filepath.Join("..", "..")
	exists := map[string]bool{}
	define := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	walk(t, root, "_test.go", func(_, text string) {
		for _, m := range define.FindAllStringSubmatch(text, -1) {
			exists[m[1]] = true
		}
	})
	name := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
	named := 0
	walk(t, filepath.Join(root, "docs"), ".md", func(path, text string) {
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			if named++; !exists[m[1]] {
				t.Errorf("%s names %s, which does not exist", path, m[1])
			}
		}
	})
	if named < 50 {
		t.Errorf("the documents name %d tests: they were not read", named)
	}
}

// walk calls f with each file below dir whose name ends so, and its text.
func walk(t *testing.T, dir, suffix string, f func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil {
			f(path, string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
