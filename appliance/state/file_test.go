package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func openRoot(t testing.TB, path string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// contents returns what a file holds, or "none".
func contents(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func partials(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if isPartial(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

const (
	before = "the file before, which is the longer one"
	after  = "the file after"
)

// TestPowerFailsAfterEachStep takes the first steps of a write only, and lets the disk
// forget what had not been synced by then: of an unsynced file any part, of an unsynced
// directory the new names. After the next Open there must be the file before or the one
// after, and nothing else.
func TestPowerFailsAfterEachStep(t *testing.T) {
	for _, kind := range []struct {
		name      string
		steps     []step
		published int // steps after which the new name may be on disk
		before    string
	}{
		{"replacing a file", replacing, 3, before},
		{"replacing none", replacing, 3, "none"},
		{"creating", creating, 3, "none"},
	} {
		for taken := range len(kind.steps) + 1 {
			t.Run(fmt.Sprintf("%s, %d steps", kind.name, taken), func(t *testing.T) {
				path := t.TempDir()
				file := filepath.Join(path, "file")
				if kind.before != "none" {
					writeFile(t, file, kind.before, 0o600)
				}
				w := newWrite(openRoot(t, path), "file", []byte(after), 0o640)
				for _, s := range kind.steps[:taken] {
					if err := s(w); err != nil {
						t.Fatal(err)
					}
				}
				want := []string{kind.before}
				switch {
				case taken == len(kind.steps):
					want = []string{after}
				case taken >= kind.published:
					want = []string{after, kind.before}
				}

				reboot := func() {
					t.Helper()
					d, err := Open(path)
					if err != nil {
						t.Fatal(err)
					}
					defer d.Close()
					if got := contents(t, file); !slices.Contains(want, got) {
						t.Errorf("the file is %q, want one of %q", got, want)
					}
					if left := partials(t, path); len(left) > 0 {
						t.Errorf("left behind: %q", left)
					}
				}
				if taken == 1 { // begun, and perhaps partly filled
					for n := range len(after) {
						writeFile(t, filepath.Join(path, w.partial), after[:n], 0o600)
						reboot()
					}
					return
				}
				if taken >= kind.published && taken < len(kind.steps) {
					// The name is not on disk yet.
					os.Remove(file)
					if kind.before != "none" {
						writeFile(t, file, kind.before, 0o600)
					}
					writeFile(t, filepath.Join(path, w.partial), after, 0o600)
				}
				reboot()
			})
		}
	}
}

// TestAFailingStepLeavesNothing stands for a full disk and the like.
func TestAFailingStepLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	for name, steps := range map[string][]step{"replacing": replacing, "creating": creating} {
		for i := range 3 {
			t.Run(fmt.Sprintf("%s, step %d", name, i), func(t *testing.T) {
				path := t.TempDir()
				file := filepath.Join(path, "file")
				want := "none"
				if name == "replacing" {
					want = before
					writeFile(t, file, before, 0o600)
				}
				failing := slices.Clone(steps)
				failing[i] = func(*write) error { return broken }
				err := newWrite(openRoot(t, path), "file", []byte(after), 0o600).take(failing)
				if !errors.Is(err, broken) {
					t.Errorf("error %v, want %v", err, broken)
				}
				wantError(t, err, "write "+file)
				if got := contents(t, file); got != want {
					t.Errorf("the file is %q, want %q", got, want)
				}
				if left := partials(t, path); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

func TestReplaceAndCreate(t *testing.T) {
	path := t.TempDir()
	root, file := openRoot(t, path), filepath.Join(path, "file")
	if err := create(root, "file", []byte(before), 0o640); err != nil {
		t.Fatal(err)
	}
	err := create(root, "file", []byte(after), 0o640)
	if !errors.Is(err, fs.ErrExist) || contents(t, file) != before {
		t.Errorf("second create: %v, and the file is %q", err, contents(t, file))
	}
	wantError(t, err, "write "+file+": file already exists")
	if err := replace(root, "file", []byte(after), 0o600); err != nil || contents(t, file) != after {
		t.Errorf("replace: %v, and the file is %q", err, contents(t, file))
	}
	wantMode(t, file, 0o600)
	if left := partials(t, path); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestCreateMakesDirectoriesAndExactModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "etc", "peerage", "node.yaml")
	if err := Create(path, []byte("name: n1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path, 0o644)
	wantMode(t, filepath.Dir(path), 0o755)
	if got := contents(t, path); got != "name: n1\n" {
		t.Errorf("contents %q", got)
	}
	t.Chdir(filepath.Dir(path))
	if err := Create("relative", nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestCreateTakesNoNameAway(t *testing.T) {
	path := t.TempDir()
	link := filepath.Join(path, "link")
	if err := os.Symlink(filepath.Join(path, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{link, path} {
		if err := Create(p, []byte("x"), 0o600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("create %s: %v, want %v", p, err, fs.ErrExist)
		}
	}
	if got := contents(t, filepath.Join(path, "elsewhere")); got != "none" {
		t.Errorf("written through a link: %q", got)
	}
	wantError(t, Create(filepath.Join(path, "link", "below"), nil, 0o600), "link")
	if strings.Contains(Create(path, nil, 0o600).Error(), partialMark) {
		t.Error("the error names the partial file")
	}
}
