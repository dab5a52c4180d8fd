package setup

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"peerage/appliance/state"
	"peerage/balancing/keys"
)

// aNode writes the files of a node below dir, some of which it has only once it ran.
func aNode(t *testing.T, dir string) Files {
	t.Helper()
	f := files(t, dir)
	f.NodeKey = state.NewNodeKey()
	if err := Write(f); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{backupSettings: "{}\n", backupIncarnation: "1790000000123\n", backupDB: strings.Repeat("database ", 30_000)} {
		if err := os.WriteFile(filepath.Join(dir, "data", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// saved is what a backup saves of a tree.
func saved(all map[string]string) map[string]string {
	all = maps.Clone(all)
	delete(all, "data/www/index.html 0644")
	return all
}

func sameTree(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s is missing or different", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is there too", name)
		}
	}
}

func TestBackupAndRestore(t *testing.T) {
	for _, passphrase := range []string{"", "correct horse"} {
		dir, out := t.TempDir(), t.TempDir()
		f := aNode(t, dir)
		before := tree(t, dir)
		path := filepath.Join(out, "backup")
		if err := Backup(path, BackupOptions{NodePath: f.NodePath, Passphrase: passphrase}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info.Mode(), err)
		}
		if err := Backup(path, BackupOptions{NodePath: f.NodePath}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second one in its place: %v, want %v", err, fs.ErrExist)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{f.Key.Reveal(), f.NodeKey.Reveal(), string(f.CA.MarshalKey()), "database"} {
			if bytes.Contains(b, []byte(secret)) {
				t.Error("a secret can be read in the file")
			}
		}
		o := RestoreOptions{NodePath: f.NodePath, Passphrase: passphrase}
		if err := Restore(path, o); !errors.Is(err, ErrExists) {
			t.Errorf("over a node: %v, want %v", err, ErrExists)
		}
		sameTree(t, tree(t, dir), before)

		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := Restore(path, o); err != nil {
			t.Fatal(err)
		}
		sameTree(t, tree(t, dir), saved(before))

		// By force, over a node that went on.
		for _, name := range []string{backupDB, backupNodeKey, backupSettings} {
			if err := os.WriteFile(filepath.Join(dir, "data", name), []byte("later"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.Force = true
		if err := Restore(path, o); err != nil {
			t.Fatal(err)
		}
		sameTree(t, tree(t, dir), saved(before))

		// But not while it runs.
		d, err := state.Open(filepath.Join(dir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Restore(path, o); err == nil || !strings.Contains(err.Error(), "stop the node") {
			t.Errorf("over a node that runs: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBackupOfANodeThatRuns needs a copy of the database by who has it open.
func TestBackupOfANodeThatRuns(t *testing.T) {
	dir := t.TempDir()
	f := aNode(t, dir)
	d, err := state.Open(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	if err := Backup(path, BackupOptions{NodePath: f.NodePath}); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("without: %v", err)
	}
	failed := errors.New("no copy")
	if err := Backup(path, BackupOptions{NodePath: f.NodePath, DB: func(io.Writer) error { return failed }}); !errors.Is(err, failed) {
		t.Errorf("with one that fails: %v", err)
	}
	if exists(path) {
		t.Error("half a backup stays")
	}
	if err := Backup(path, BackupOptions{NodePath: f.NodePath, DB: func(w io.Writer) error {
		for range 3 {
			if _, err := w.Write(bytes.Repeat([]byte("x"), maxPiece-1)); err != nil {
				return err
			}
		}
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Close(), os.RemoveAll(dir), Restore(path, RestoreOptions{NodePath: f.NodePath})); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "data", backupDB))
	if err != nil || len(b) != 3*(maxPiece-1) || strings.Trim(string(b), "x") != "" {
		t.Errorf("the database has %d octets, %v", len(b), err)
	}
}

func TestBackupRefusesANodeThatCannotStart(t *testing.T) {
	dir := t.TempDir()
	f := aNode(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "data", "site.key"), []byte(keys.Generate().Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	if err := Backup(path, BackupOptions{NodePath: f.NodePath}); err == nil || !strings.Contains(err.Error(), "copies from one node") {
		t.Errorf("%v, want that site key and CA do not fit", err)
	}
	if exists(path) {
		t.Error("written all the same")
	}
}

func TestRestoreRefusesAndChangesNothing(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	f := aNode(t, dir)
	plain, sealed := filepath.Join(out, "plain"), filepath.Join(out, "sealed")
	if err := errors.Join(Backup(plain, BackupOptions{NodePath: f.NodePath}), Backup(sealed, BackupOptions{NodePath: f.NodePath, Passphrase: "a"})); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	written := func(b []byte) string {
		path := filepath.Join(out, "bad")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	refused := func(path, passphrase, want string) {
		t.Helper()
		err := Restore(path, RestoreOptions{NodePath: f.NodePath, Passphrase: passphrase, Force: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if got := tree(t, dir); len(got) > 0 {
			t.Fatalf("afterwards there is %v", slicesOf(got))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused(sealed, "", "sealed with one")
	refused(sealed, "b", "wrong passphrase")
	refused(plain, "a", "has none")
	refused(written(nil), "", "no backup")
	refused(written([]byte("hello")), "", "no backup")
	refused(written(bytes.Replace(b, []byte("backup 1"), []byte("backup 2"), 1)), "", "version of Peerage")
	refused(written(append(bytes.Clone(b), 0)), "", "damaged or cut off")
	refused(filepath.Join(out, "none"), "", "no such file")
	// Some of each part of the file; each octet of it would take a while.
	for i := 0; i < len(b); i += 1 + i/3 {
		refused(written(b[:i]), "", "")
		bad := bytes.Clone(b)
		bad[i] ^= 1
		refused(written(bad), "", "")
	}
	// Whole chunks in another order, or left out.
	const chunk = backupChunk + 16
	first, second := b[backupHead:backupHead+chunk], b[backupHead+chunk:backupHead+2*chunk]
	refused(written(bytes.Join([][]byte{b[:backupHead], second, first, b[backupHead+2*chunk:]}, nil)), "", "damaged")
	refused(written(bytes.Join([][]byte{b[:backupHead], first, b[backupHead+2*chunk:]}, nil)), "", "damaged")
	refused(written(b[:backupHead+2*chunk]), "", "damaged")
}

func slicesOf(all map[string]string) (names []string) {
	for name := range all {
		names = append(names, name)
	}
	return names
}

func TestWriteOfANodeThatHasJoined(t *testing.T) {
	dir := t.TempDir()
	f := files(t, dir)
	older := f.Key
	ring, err := keys.NewRing(keys.Generate(), older)
	if err != nil {
		t.Fatal(err)
	}
	f.Key, f.Ring, f.NodeKey = keys.Key{}, ring, state.NewNodeKey()
	if err := Write(f); err != nil {
		t.Fatal(err)
	}
	if got, err := state.ReadSiteKey(filepath.Join(dir, "data", "site.key")); err != nil || got.Reveal() != ring.Reveal() {
		t.Errorf("another ring, or %v", err)
	}
	if got, err := state.LoadNodeKey(filepath.Join(dir, "data")); err != nil || got.Octets() != f.NodeKey.Octets() {
		t.Errorf("another node key, or %v", err)
	}
	if _, err := state.LoadCA(filepath.Join(dir, "data"), ring); err != nil {
		t.Error(err)
	}
}

func FuzzBackup(f *testing.F) {
	// The contents are fuzzed, sealed as a backup without a passphrase has them, and the
	// file itself.
	seal := func(contents []byte) []byte {
		var b bytes.Buffer
		w, err := newSealingWriter(&b, "")
		if err != nil {
			f.Fatal(err)
		}
		w.Write(contents)
		w.Close()
		return b.Bytes()
	}
	var contents bytes.Buffer
	for _, file := range backupFiles {
		if err := writeEntry(&contents, file.name, func(w io.Writer) error { _, err := io.WriteString(w, "contents"); return err }); err != nil {
			f.Fatal(err)
		}
	}
	contents.WriteByte(0)
	if b, err := readBackup(bytes.NewReader(seal(contents.Bytes())), "", io.Discard); err != nil || len(b.files) != len(backupFiles)-1 || !b.db {
		f.Fatal(b, err)
	}
	f.Add(contents.Bytes(), true)
	f.Add(seal(contents.Bytes()), false)
	f.Add([]byte{0}, true)
	f.Fuzz(func(t *testing.T, b []byte, contents bool) {
		if contents {
			b = seal(b)
		}
		got, err := readBackup(bytes.NewReader(b), "", io.Discard)
		if err != nil {
			return
		}
		for name, data := range got.files {
			for _, file := range backupFiles {
				if file.name == name && int64(len(data)) > file.max {
					t.Errorf("%s has %d octets", name, len(data))
				}
			}
		}
	})
}
