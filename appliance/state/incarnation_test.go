package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var start = time.UnixMilli(1_790_000_000_123)

func next(t *testing.T, path string, now time.Time) uint64 {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n, err := d.NextIncarnation(now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestIncarnationGrowsWithEachStart(t *testing.T) {
	path := t.TempDir()
	for _, s := range []struct {
		name string
		now  time.Time
		want uint64
	}{
		{"first start", start, 1_790_000_000_123},
		{"again in the same millisecond", start, 1_790_000_000_124},
		{"an hour later", start.Add(time.Hour), 1_790_003_600_123},
		{"the clock lost its battery", time.Unix(0, 0), 1_790_003_600_124},
		{"before 1970", time.Unix(-1e9, 0), 1_790_003_600_125},
		{"the zero time", time.Time{}, 1_790_003_600_126},
		{"the clock goes right again", start.Add(2 * time.Hour), 1_790_007_200_123},
	} {
		if got := next(t, path, s.now); got != s.want {
			t.Errorf("%s: %d, want %d", s.name, got, s.want)
		}
	}
	wantMode(t, filepath.Join(path, incarnationFile), 0o600)
}

func TestIncarnationWithoutAClock(t *testing.T) {
	path := t.TempDir()
	for want := range uint64(3) {
		if got := next(t, path, time.Time{}); got != want+1 {
			t.Errorf("start %d: %d", want+1, got)
		}
	}
}

func TestDamagedIncarnationIsHealedByTheClock(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"cut":           "17900000",
		"zeros":         strings.Repeat("\x00", 14),
		"words":         "many\n",
		"negative":      "-1\n",
		"beyond 2^53":   "9007199254740992\n",
		"the last":      "18446744073709551615\n",
		"beyond 2^64":   "18446744073709551616\n",
		"leading zeros": "0001790000000123\n",
		"huge":          strings.Repeat("1", 2*maxFile),
	} {
		path := t.TempDir()
		writeFile(t, filepath.Join(path, incarnationFile), text, 0o600)
		if got := next(t, path, start); got != uint64(start.UnixMilli()) {
			t.Errorf("%s: %d, want the clock's", name, got)
		}
		if got := next(t, path, start); got != uint64(start.UnixMilli())+1 {
			t.Errorf("%s, second start: %d, want one more", name, got)
		}
	}
}

func TestIncarnationDoesNotWaitOrFollow(t *testing.T) {
	base := t.TempDir()
	elsewhere := filepath.Join(base, "elsewhere")
	writeFile(t, elsewhere, "7\n", 0o600)
	for name, put := range map[string]func(string) error{
		"pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"link":      func(p string) error { return os.Symlink(elsewhere, p) },
	} {
		path := filepath.Join(base, name)
		d := openDir(t, path)
		if err := put(filepath.Join(path, incarnationFile)); err != nil {
			t.Fatal(err)
		}
		_, err := d.NextIncarnation(start)
		wantError(t, err, filepath.Join(path, incarnationFile))
	}
	if got := contents(t, elsewhere); got != "7\n" {
		t.Errorf("written through a link: %q", got)
	}
}

func FuzzIncarnation(f *testing.F) {
	for _, s := range []string{"", "1\n", "1790000000123\n", "01\n", "+1\n", "1_0\n", "9007199254740991\n", "1\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := parseIncarnation(b)
		if ok && string(formatIncarnation(n)) != string(b) {
			t.Errorf("%q is a second spelling of %d", b, n)
		}
		if n > maxIncarnation || !ok && n != 0 {
			t.Errorf("%q is %d, %t", b, n, ok)
		}
	})
}
