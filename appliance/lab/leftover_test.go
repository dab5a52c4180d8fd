package lab

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestClearLeavesAloneWhatIsNoLab(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "thesis.txt")
	must(t, os.WriteFile(mine, []byte("chapter 1"), 0o600))
	c := Config{Nodes: 1, Period: minPeriod, Dir: dir, Binary: "/bin/false"}
	for what, err := range map[string]error{"up": second(Up(t.Context(), c, true)), "down": Down(t.Context(), dir)} {
		if err == nil {
			t.Errorf("%s in a directory of somebody's: no error", what)
		}
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "thesis.txt" {
		t.Errorf("now it holds %v", entries)
	}
}

func TestUpLeavesNothingWhenItFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	for _, binary := range []string{"/bin/false", "/no/such/program"} {
		if _, err := Up(t.Context(), Config{Nodes: 1, Period: minPeriod, Dir: dir, Binary: binary}, true); err == nil {
			t.Errorf("a lab of %s: no error", binary)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a lab of %s: the directory is left, or %v", binary, err)
		}
	}
}

func TestLockIsHeldByOne(t *testing.T) {
	dir := t.TempDir()
	f, err := lockDir(dir)
	must(t, err)
	if _, err := lockDir(dir); !errors.Is(err, errLocked) {
		t.Errorf("a second lock: %v, want %v", err, errLocked)
	}
	if _, err := Up(t.Context(), Config{Nodes: 1, Period: minPeriod, Dir: dir, Binary: "/bin/false"}, true); err == nil {
		t.Error("a second lab in the directory: no error")
	}
	must(t, unlock(f, false))
	f, err = lockDir(dir)
	must(t, err)
	must(t, unlock(f, true))
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left, or %v", err)
	}
}

func TestDirectoryMustBeOurs(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	must(t, os.Mkdir(open, 0o700))
	must(t, os.Chmod(open, 0o777))
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(t.TempDir(), link))
	for _, dir := range []string{open, link, "/dev/null"} {
		_, err := Client(dir).Status(t.Context())
		for what, err := range map[string]error{"up": second(openDir(dir)), "down": Down(t.Context(), dir), "status": err} {
			if _, ok := errors.AsType[*UseError](err); !ok {
				t.Errorf("%s in %s: got %v, want an error that says whose it must be", what, dir, err)
			}
		}
	}
}

func TestStraysAreOurs(t *testing.T) {
	if found := strays("no such lab", nil); len(found) > 0 {
		t.Errorf("strays of no lab: %v", found)
	}
}
