package membership

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"peerage/appliance/state"
)

// TestIdentityGivesTheFixedVectors fixes what every version of Peerage derives from one
// node key.
func TestIdentityGivesTheFixedVectors(t *testing.T) {
	id := fixedIdentity(t)
	sum := sha256.Sum256(id.Public().Box)
	for _, v := range []struct{ what, got, want string }{
		{"signing key", hex.EncodeToString(id.Public().Sign), "38b2493c0bc8899699c510275f451bd0a258f24c18b7f669e892240bbd92e795"},
		{"SHA-256 of the box key", hex.EncodeToString(sum[:]), "71d98032b1e472c21578de7785d64c922c92e4e0dad33d95333aacc8f2de1a99"},
		{"fingerprint", id.Public().Fingerprint(), "eb3dde7ffc9c7fcbaf849e5dc68ceca7"},
		{"signature of 'message'", hex.EncodeToString(id.Sign([]byte("message")))[:32], "d7af36bec41f5bb48559a74c69df66a8"},
	} {
		if v.got != v.want {
			t.Errorf("%s = %s, want %s", v.what, v.got, v.want)
		}
	}
}

// TestIdentityIsRFC5869 computes the seeds in the RFC's own steps (sections 2.2 and 2.3).
func TestIdentityIsRFC5869(t *testing.T) {
	mac := func(key []byte, parts ...string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(strings.Join(parts, "")))
		return m.Sum(nil)
	}
	id := fixedIdentity(t)
	seed := id.NodeKey().Octets()
	extracted := mac([]byte("peerage"), string(seed[:]))
	if want := ed25519.NewKeyFromSeed(mac(extracted, "identity sign", "\x01")).Public(); !id.Public().Sign.Equal(want) {
		t.Error("the signing key is another one")
	}
	if box, err := id.box().Bytes(); err != nil || !bytes.Equal(box, mac(extracted, "identity box", "\x01")) {
		t.Errorf("the key of the boxes is another one, %v", err)
	}
}

func TestIdentityIsMadeOnce(t *testing.T) {
	dir, err := state.Open(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	a, err := LoadOrCreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadOrCreateIdentity(dir)
	if err != nil || a.String() != b.String() || a.Public().Fingerprint() == newIdentity(t).Public().Fingerprint() {
		t.Errorf("%v, then %v, %v", a, b, err)
	}
}

func TestBoxesOpenForOneNodeAndPurpose(t *testing.T) {
	a, b := newIdentity(t), newIdentity(t)
	box, err := a.Public().Seal("this", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open("this", box); err != nil || string(got) != "secret" {
		t.Errorf("Open = %q, %v", got, err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another node":    func() ([]byte, error) { return b.Open("this", box) },
		"another purpose": func() ([]byte, error) { return a.Open("that", box) },
		"cut off":         func() ([]byte, error) { return a.Open("this", box[:len(box)-1]) },
		"nothing":         func() ([]byte, error) { return a.Open("this", nil) },
	} {
		if got, err := open(); !errors.Is(err, errBox) {
			t.Errorf("%s: %q, %v, want %v", name, got, err, errBox)
		}
	}
	for i := range box {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if _, err := a.Open("this", bad); err == nil {
			t.Fatalf("opens with octet %d changed", i)
		}
	}
	if _, err := (Public{}).Seal("this", nil); err == nil {
		t.Error("sealed for nobody")
	}
	if _, err := NewIdentity(state.NodeKey{}); err == nil {
		t.Error("an identity of no key")
	}
}

// TestSignerMakesATLSConnection: certificates are made for the identity's own key.
func TestSignerMakesATLSConnection(t *testing.T) {
	id := newIdentity(t)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"n1"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, id.Signer().Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	server, client := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(server, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: id.Signer()}}}).Handshake()
	}()
	c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	if !id.Public().Sign.Equal(c.ConnectionState().PeerCertificates[0].PublicKey) {
		t.Error("the peer has another key")
	}
}

func TestNothingPrintsAnIdentity(t *testing.T) {
	id := newIdentity(t)
	seed := id.NodeKey().Octets()
	sign := id.sign()
	box, err := id.box().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	type hiding struct {
		id     *Identity
		signer any
	}
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range []any{id, *id, &id, id.Signer(), hiding{id, id.Signer()}, &hiding{id, id.Signer()}, []any{id}, Admission{NodeKey: id.NodeKey()}} {
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %X %d %!") {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		out.Write(b)
		log.Info("message", "v", v)
	}
	for _, secret := range [][]byte{seed[:], sign.Seed(), box} {
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret[:8]), fmt.Sprintf("%X", secret[:8]), strings.Trim(fmt.Sprint(secret[:8]), "[]"), strings.Trim(fmt.Sprintf("%#v", secret[:8]), "[]byte{}")} {
			if strings.Contains(out.String(), form) {
				t.Errorf("a secret is in %q", out.String())
			}
		}
	}
}
