package state

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also the other process that holds a directory, until it is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("PEERAGE_TEST_HOLD"); path != "" {
		if _, err := Open(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		select {}
	}
	os.Exit(m.Run())
}

func openDir(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func writeFile(t testing.TB, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func wantMode(t testing.TB, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %#o, want %#o", path, got, want)
	}
}

// wantError wants one line of text that has all of the words.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one line with %q", err, w)
		}
	}
}

func TestOpenMakesADirectoryForItsOwnerAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	base := t.TempDir()
	path := filepath.Join(base, "above", "data")
	openDir(t, path)
	wantMode(t, path, 0o700)
	wantMode(t, filepath.Dir(path), 0o755) // a server of another user must come through
}

func TestOpenRefuses(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	writeFile(t, file, "", 0o600)
	for name, mode := range map[string]fs.FileMode{"group": 0o770, "others": 0o702, "all": 0o777} {
		path := filepath.Join(base, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		wantError(t, err, path, "others may write", "chmod go-w "+path)
	}
	_, err := Open(file)
	wantError(t, err, file, "not a directory")
	_, err = Open(filepath.Join(file, "below"))
	wantError(t, err, file, "not a directory")
	dangling := filepath.Join(base, "dangling")
	if err := os.Symlink(filepath.Join(base, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dangling)
	wantError(t, err, dangling, "no such file")
}

func TestOpenFollowsALinkToTheDirectory(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(base, "real"), 0o755), os.Symlink("real", path)); err != nil {
		t.Fatal(err)
	}
	openDir(t, path)
}

func TestOpenLocks(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	_, err := Open(path)
	wantError(t, err, path, "another process uses it", "stop the node")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openDir(t, path).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLockEndsWithItsProcess(t *testing.T) {
	path := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PEERAGE_TEST_HOLD="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	if _, err := Open(path); !errors.Is(err, errLocked) {
		t.Errorf("while another process holds it: %v, want %v", err, errLocked)
	}
	cmd.Process.Kill()
	cmd.Wait()
	openDir(t, path)
}

func TestOpenRemovesWhatAWriteHasLeft(t *testing.T) {
	path := t.TempDir()
	left := newWrite(nil, "ca.sealed", nil, 0).partial
	keep := []string{"site.key", ".hidden", "x.partial-y", "access.log", "not-empty.partial-"}
	for _, name := range append(keep, left) {
		writeFile(t, filepath.Join(path, name), "x", 0o600)
	}
	dir := "." + partialMark + "a-directory"
	if err := os.Mkdir(filepath.Join(path, dir), 0o700); err != nil {
		t.Fatal(err)
	}
	openDir(t, path)
	if _, err := os.Lstat(filepath.Join(path, left)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there", left)
	}
	for _, name := range append(keep, dir) {
		if _, err := os.Lstat(filepath.Join(path, name)); err != nil {
			t.Error(err)
		}
	}
}

// asRoot skips unless this process may give files away.
func asRoot(t *testing.T) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "f")
	writeFile(t, f, "", 0o600)
	if err := os.Chown(f, 12345, 12345); err != nil {
		t.Skip("needs root: ", err)
	}
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// TestOwn has a server that was broken into and put things in its directory, to get
// files elsewhere from a root that comes back.
func TestOwn(t *testing.T) {
	asRoot(t)
	base := t.TempDir()
	path := filepath.Join(base, "data")
	d := openDir(t, path)
	elsewhere := filepath.Join(base, "shadow")
	writeFile(t, elsewhere, "secret", 0o600)
	writeFile(t, filepath.Join(path, "site.key"), "x", 0o600)
	if err := errors.Join(
		os.Symlink(elsewhere, filepath.Join(path, "symbolic")),
		os.Link(elsewhere, filepath.Join(path, "hard")),
		os.Symlink(base, filepath.Join(path, "dir")),
		unix.Mkfifo(filepath.Join(path, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	if err := d.Own(12345, 12345); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]uint32{path: 12345, filepath.Join(path, "site.key"): 12345, elsewhere: 0, base: 0} {
		if got := ownerOf(t, p); got != want {
			t.Errorf("%s belongs to %d, want %d", p, got, want)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, path) // root comes back
}

// TestOpenOfAnotherUsersDirectory runs as a process without root's rights would.
func TestOpenOfAnotherUsersDirectory(t *testing.T) {
	asRoot(t)
	path, err := os.MkdirTemp("", "state-") // not T.TempDir, which lies in a private one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	if err := errors.Join(os.Chown(path, 12345, 12345), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PEERAGE_TEST_HOLD="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 23456, Gid: 23456}}
	out, err := cmd.Output()
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("another user cannot run this test: ", err)
	}
	wantError(t, errors.New(strings.TrimSpace(string(out))), path, "belongs to user 12345", "this process is user 23456")
}
