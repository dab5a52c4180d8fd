package state

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"peerage/balancing/keys"
	"peerage/tls/certs"
)

func newCA(t testing.TB) *certs.CA {
	t.Helper()
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newRing(t testing.TB, newest keys.Key, older ...keys.Key) *keys.Ring {
	t.Helper()
	r, err := keys.NewRing(newest, older...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCAComesBack(t *testing.T) {
	path := t.TempDir()
	key, ca := keys.Generate(), newCA(t)
	d := openDir(t, path)
	if err := d.SaveCA(ca, newRing(t, key)); err != nil {
		t.Fatal(err)
	}
	wantMode(t, filepath.Join(path, CAFile), 0o600)
	// While it is locked, and while the site key is being replaced.
	for name, ring := range map[string]*keys.Ring{
		"the key":        newRing(t, key),
		"an older key":   newRing(t, keys.Generate(), key),
		"the newest key": newRing(t, key, keys.Generate()),
	} {
		got, err := LoadCA(path, ring)
		if err != nil {
			t.Errorf("under %s: %v", name, err)
			continue
		}
		if !bytes.Equal(got.CertPEM(), ca.CertPEM()) || !bytes.Equal(got.MarshalKey(), ca.MarshalKey()) {
			t.Errorf("under %s: another CA", name)
		}
	}
	b := []byte(contents(t, filepath.Join(path, CAFile)))
	if bytes.Contains(b, ca.MarshalKey()[20:60]) || !bytes.HasPrefix(b, ca.CertPEM()) {
		t.Error("the file does not begin with the certificate, or shows the private key")
	}
	if err := d.SaveCA(newCA(t), newRing(t, key)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second SaveCA: %v, want %v", err, fs.ErrExist)
	}
	if got := contents(t, filepath.Join(path, CAFile)); got != string(b) {
		t.Error("the second SaveCA changed the file")
	}
}

func TestLoadCARefuses(t *testing.T) {
	key, ca, other := keys.Generate(), newCA(t), newCA(t)
	ring := newRing(t, key)
	good := formatCA(ca, ring)
	sealed := func(plain, with []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: ring.Sealer(keys.LabelCA).Seal(nil, plain, with)})
	}
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "does not begin with"},
		{"certificate alone", ca.CertPEM(), "no PEM block " + blockKey},
		{"key alone", good[len(ca.CertPEM()):], "does not begin with"},
		{"more behind it", append(bytes.Clone(good), ca.CertPEM()...), "something follows"},
		{"of another site", formatCA(ca, newRing(t, keys.Generate())), "not sealed with a key of this site"},
		{"other certificate with the key", append(other.CertPEM(), good[len(ca.CertPEM()):]...), "not sealed with a key of this site"},
		{"no private key in the seal", append(ca.CertPEM(), sealed([]byte("secret"), ca.CertPEM())...), "PKCS #8"},
		{"key of another CA in the seal", append(ca.CertPEM(), sealed(other.MarshalKey(), ca.CertPEM())...), "does not belong"},
		{"unsealed key", append(ca.CertPEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ca.MarshalKey()})...), "no PEM block"},
		{"too large", bytes.Repeat([]byte("\n"), maxFile+1), "more than 65536 octets"},
	} {
		path := t.TempDir()
		writeFile(t, filepath.Join(path, CAFile), string(test.data), 0o600)
		_, err := LoadCA(path, ring)
		wantError(t, err, filepath.Join(path, CAFile), test.want)
	}
	path := t.TempDir()
	_, err := LoadCA(path, ring)
	wantError(t, err, filepath.Join(path, CAFile), "no such file", "needs a copy")
}

// TestDamagedCANeverLoadsAsAnother turns each octet of the file in turn.
func TestDamagedCANeverLoadsAsAnother(t *testing.T) {
	ring, ca := newRing(t, keys.Generate()), newCA(t)
	good := formatCA(ca, ring)
	for i := range good {
		for _, bad := range [][]byte{good[:i], append(append(bytes.Clone(good[:i]), good[i]^1), good[i+1:]...)} {
			got, err := ParseCA(bad, ring)
			if err == nil && (!bytes.Equal(got.CertPEM(), ca.CertPEM()) || !bytes.Equal(got.MarshalKey(), ca.MarshalKey())) {
				t.Fatalf("octet %d: loads as another CA", i)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Fatalf("octet %d: error of several lines: %v", i, err)
			}
		}
	}
}

// fuzzRing opens the seed of FuzzCA.
func fuzzRing(t testing.TB) *keys.Ring {
	key, err := keys.Parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
	if err != nil {
		t.Fatal(err)
	}
	return newRing(t, key)
}

func FuzzCA(f *testing.F) {
	ring := fuzzRing(f)
	seed, err := os.ReadFile(filepath.Join("testdata", CAFile))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := ParseCA(seed, ring); err != nil {
		f.Fatal(err) // versions of Peerage must read each other's files
	}
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ca, err := ParseCA(b, ring)
		if err != nil {
			return
		}
		again, err := ParseCA(formatCA(ca, ring), ring)
		if err != nil || !bytes.Equal(again.MarshalKey(), ca.MarshalKey()) || !bytes.Equal(again.CertPEM(), ca.CertPEM()) {
			t.Errorf("a CA that was loaded does not come back: %v", err)
		}
	})
}

// TestCAChangesOver: a new site key is put above the old one, and later the old one is
// taken away.
func TestCAChangesOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	older, newer := keys.Generate(), keys.Generate()
	ring := func(newest keys.Key, older ...keys.Key) *keys.Ring {
		r, err := keys.NewRing(newest, older...)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SaveCA(ca, ring(older)); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*keys.Ring{ring(older), ring(newer, older), ring(newer)} {
		if err := d.ResealCA(r); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadCA(path, r); err != nil || got.String() != ca.String() {
			t.Errorf("%v, %v, want the same CA", got, err)
		}
	}
	if _, err := LoadCA(path, ring(older)); err == nil {
		t.Error("the old key still opens it")
	}
}
