package state

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"peerage/balancing/keys"
)

func TestSiteKeyComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets", "site.key")
	key := keys.Generate()
	if err := WriteSiteKey(path, newRing(t, key)); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path, 0o600)
	if got, err := ReadSiteKey(path); err != nil || got.Reveal() != key.Reveal()+"\n" {
		t.Errorf("ReadSiteKey: %v, the same: %t", err, err == nil && got.Reveal() == key.Reveal()+"\n")
	}
	if err := WriteSiteKey(path, newRing(t, keys.Generate())); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second WriteSiteKey: %v, want %v", err, fs.ErrExist)
	}
	if got, err := ReadSiteKey(path); err != nil || got.Reveal() != key.Reveal()+"\n" {
		t.Errorf("after that: %v, the same: %t", err, err == nil && got.Reveal() == key.Reveal()+"\n")
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "site.key")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSiteKey(link); err != nil || got.Reveal() != key.Reveal()+"\n" {
		t.Errorf("read-only, through a link: %v", err)
	}
}

func TestReadSiteKeyRefusesWhatOthersCanRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.key")
	key := keys.Generate()
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o644, 0o666, 0o610} {
		writeFile(t, path, key.Reveal()+"\n", mode)
		got, err := ReadSiteKey(path)
		wantError(t, err, path, "others may read it", "chmod 600 "+path)
		if got != nil {
			t.Errorf("mode %#o: the key is returned", mode)
		}
	}
}

func TestReadSiteKeyRefuses(t *testing.T) {
	dir := t.TempDir()
	const secret = "hunter2hunter2hunter2hunter2hunter2hunter2!"
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "there is none"},
		{"half", secret[:20], "20 characters, want 43"},
		{"no base64", secret, "not base64url"},
		{"zeros", strings.Repeat("A", 43) + "\n", "all zero"},
		{"two keys", secret + "\n" + secret, "not base64url"},
		{"binary", strings.Repeat("\x00", 43), "not base64url"},
		{"huge", strings.Repeat(secret, maxFile/len(secret)+1), "more than 65536 octets"},
	} {
		path := filepath.Join(dir, test.name)
		writeFile(t, path, test.text, 0o600)
		_, err := ReadSiteKey(path)
		wantError(t, err, path, test.want)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells what is in the file: %v", test.name, err)
		}
	}
	missing := filepath.Join(dir, "missing")
	_, err := ReadSiteKey(missing)
	wantError(t, err, missing, "no such file", "peerage init")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not %v", err, fs.ErrNotExist)
	}
	_, err = ReadSiteKey(dir)
	wantError(t, err, dir, "not a regular file")
}

func TestReadSiteKeyDoesNotWait(t *testing.T) {
	dir := t.TempDir()
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, path := range []string{pipe, socket, "/dev/null"} {
		_, err := ReadSiteKey(path)
		wantError(t, err, path, "not a regular file")
	}
}

// TestPowerFailsWhileTheRingIsReplaced takes a node through a whole rotation, and stops
// after each step of each replacement: the files must fit each other.
func TestPowerFailsWhileTheRingIsReplaced(t *testing.T) {
	older, newer := keys.Generate(), keys.Generate()
	rings := []*keys.Ring{newRing(t, older), newRing(t, older, newer), newRing(t, newer, older), newRing(t, newer)}
	for i, ring := range rings[1:] {
		was := rings[i]
		for taken := range 5 {
			path := filepath.Join(t.TempDir(), "data")
			d := openDir(t, path)
			file := filepath.Join(t.TempDir(), "site.key")
			if err := errors.Join(WriteSiteKey(file, was), d.SaveCA(newCA(t), was)); err != nil {
				t.Fatal(err)
			}
			for _, s := range d.siteKeySteps(file, was, ring)[:taken] {
				if err := s(); err != nil {
					t.Fatal(err)
				}
			}
			got, err := ReadSiteKey(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := LoadCA(path, got); err != nil {
				t.Errorf("ring %d, after %d steps: %v", i+1, taken, err)
			}
			if taken == 4 && got.Reveal() != ring.Reveal() {
				t.Errorf("ring %d is not the one that was to be written", i+1)
			}
			wantMode(t, file, 0o600)
		}
	}
}

func TestReplaceSiteKeyRefusesAStranger(t *testing.T) {
	d := openDir(t, filepath.Join(t.TempDir(), "data"))
	was := newRing(t, keys.Generate())
	file := filepath.Join(t.TempDir(), "site.key")
	if err := errors.Join(WriteSiteKey(file, was), d.SaveCA(newCA(t), was)); err != nil {
		t.Fatal(err)
	}
	before := contents(t, file)
	wantError(t, d.ReplaceSiteKey(file, was, newRing(t, keys.Generate())), file, "no key of the old one")
	wantError(t, d.ReplaceSiteKey(file, newRing(t, keys.Generate()), was), file, "no key of the old one")
	if contents(t, file) != before {
		t.Error("the file was changed")
	}
	if err := d.ReplaceSiteKey(file, was, was); err != nil {
		t.Error(err)
	}
}
