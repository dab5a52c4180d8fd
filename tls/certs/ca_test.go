package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLeafVerifiesAgainstTheCA(t *testing.T) {
	ca := newCA(t)
	stranger := newCA(t)
	now := time.Now()
	for _, tt := range []struct {
		name    string
		request Request
		verify  string // name or [address]
		usage   x509.ExtKeyUsage
		at      time.Duration
		ok      bool
	}{
		{"by name", Request{DNS: []string{"a.example", "b.example"}}, "b.example", x509.ExtKeyUsageServerAuth, 0, true},
		{"other name", Request{DNS: []string{"a.example"}}, "b.example", x509.ExtKeyUsageServerAuth, 0, false},
		{"by v4 address", Request{IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "[192.0.2.1]", x509.ExtKeyUsageServerAuth, 0, true},
		{"by v6 address", Request{IPs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}, "[2001:db8::1]", x509.ExtKeyUsageServerAuth, 0, true},
		{"other address", Request{IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "[192.0.2.2]", x509.ExtKeyUsageServerAuth, 0, false},
		{"a server's is no client's", Request{DNS: []string{"a.example"}}, "a.example", x509.ExtKeyUsageClientAuth, 0, false},
		{"client", Request{DNS: []string{"a.example"}, Client: true}, "a.example", x509.ExtKeyUsageClientAuth, 0, true},
		{"slow clock", Request{DNS: []string{"a.example"}}, "a.example", x509.ExtKeyUsageServerAuth, -59 * time.Minute, true},
		{"late in its life", Request{DNS: []string{"a.example"}}, "a.example", x509.ExtKeyUsageServerAuth, leafLife - time.Minute, true},
		{"ended", Request{DNS: []string{"a.example"}}, "a.example", x509.ExtKeyUsageServerAuth, leafLife + time.Minute, false},
		{"short life ended", Request{DNS: []string{"a.example"}, Life: time.Hour}, "a.example", x509.ExtKeyUsageServerAuth, 2 * time.Hour, false},
		{"life is cut to the CA's", Request{DNS: []string{"a.example"}, Life: 100 * 365 * 24 * time.Hour}, "a.example", x509.ExtKeyUsageServerAuth, 9 * 365 * 24 * time.Hour, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf, err := ca.Leaf(now, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			options := x509.VerifyOptions{Roots: ca.pool(), DNSName: tt.verify, CurrentTime: now.Add(tt.at), KeyUsages: []x509.ExtKeyUsage{tt.usage}}
			if _, err := leaf.Leaf.Verify(options); (err == nil) != tt.ok {
				t.Errorf("verify %s: %v, want ok = %t", tt.verify, err, tt.ok)
			}
			options.Roots = stranger.pool()
			if _, err := leaf.Leaf.Verify(options); err == nil {
				t.Error("verifies against another CA")
			}
		})
	}
}

func TestLeafRefusesWhatItCannotIssue(t *testing.T) {
	ca := newCA(t)
	now := time.Now()
	for _, tt := range []struct {
		name    string
		at      time.Time
		request Request
		want    string
	}{
		{"for nobody", now, Request{}, "neither a name nor an address"},
		{"negative life", now, Request{DNS: []string{"a.example"}, Life: -1}, "a life of -1ns"},
		{"ended CA", now.AddDate(11, 0, 0), Request{DNS: []string{"a.example"}}, "the local CA ended"},
		{"not ASCII", now, Request{DNS: []string{"bücher.example"}}, "issue a certificate for bücher.example"},
	} {
		if _, err := ca.Leaf(tt.at, tt.request); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestLeafBeforeTheCAsBirthBeginsWithIt(t *testing.T) {
	ca := newCA(t)
	leaf, err := ca.Leaf(time.Unix(0, 0), Request{DNS: []string{"a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: ca.pool(), DNSName: "a.example"}); err != nil {
		t.Errorf("made with a clock at 1970: %v", err)
	}
}

func TestCANamesItsSite(t *testing.T) {
	ca, err := NewCA("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ca.cert.Subject.CommonName, "Peerage local CA (example)"; got != want {
		t.Errorf("got common name %q, want %q", got, want)
	}
	if _, err := NewCA(strings.Repeat("x", MaxSite), time.Now()); err != nil {
		t.Errorf("longest name: %v", err)
	}
	for _, site := range []string{"", strings.Repeat("x", MaxSite+1)} {
		if _, err := NewCA(site, time.Now()); err == nil {
			t.Errorf("took the name %q", site)
		}
	}
}

func TestLoadedCAIsTheSame(t *testing.T) {
	ca := newCA(t)
	got, err := LoadCA(ca.CertPEM(), ca.MarshalKey())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := got.Leaf(time.Now(), Request{DNS: []string{"a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: ca.pool(), DNSName: "a.example"}); err != nil {
		t.Error(err)
	}
}

func TestLoadCARefuses(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	leaf, err := ca.Leaf(time.Now(), Request{DNS: []string{"a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) []byte {
		b, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	leafPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})
	for _, tt := range []struct {
		name      string
		cert, key []byte
		want      string
	}{
		{"nothing", nil, nil, "not one PEM block"},
		{"a key as certificate", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ca.MarshalKey()}), ca.MarshalKey(), "not one PEM block"},
		{"two certificates", slices.Concat(ca.CertPEM(), other.CertPEM()), ca.MarshalKey(), "not one PEM block"},
		{"a leaf", leafPEM, pkcs8(leaf.PrivateKey), "not a root"},
		{"no key", ca.CertPEM(), nil, "not in PKCS #8 form"},
		{"other curve", ca.CertPEM(), pkcs8(p384), "P-256"},
		{"another's key", ca.CertPEM(), other.MarshalKey(), "does not belong"},
	} {
		if _, err := LoadCA(tt.cert, tt.key); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	ca := newCA(t)
	m := newManager(ca)
	leaf, err := m.GetCertificate(hello("www.example.com", ""))
	if err != nil {
		t.Fatal(err)
	}
	public := (*m.slots.Load())[subject{name: "www.example.com"}]
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, client, err := PeerConfig(ca, "n1", PeerOptions{Key: identity})
	if err != nil {
		t.Fatal(err)
	}
	own, err := server.GetCertificate(hello("n1.peers.internal", ""))
	if err != nil {
		t.Fatal(err)
	}
	peers := &slot{ca: ca, req: Request{Key: conceal(identity)}}

	var out strings.Builder
	for _, v := range []any{ca, *ca, m, m.c, public, public.cur.Load(), leaf, *leaf, ServerConfig(m.GetCertificate, Modern), server, client("n2"), own, *own, peers, Request{Key: identity}} {
		fmt.Fprintf(&out, "%v %+v %#v %s %x %d\n", v, v, v, v, v, v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
	}
	// The key of a tls.Certificate is a field for all to see; JSON is told of those
	// values that hold a CA.
	for _, v := range []any{ca, m, public, peers, Request{Key: identity}} {
		json.NewEncoder(&out).Encode(v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	secrets := map[string][]byte{"identity": identity.Seed()}
	for who, key := range map[string]*ecdsa.PrivateKey{"CA": ca.key, "leaf": leaf.PrivateKey.(*ecdsa.PrivateKey)} {
		if secrets[who], err = key.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	for who, secret := range secrets {
		for form, text := range map[string]string{
			"raw":     string(secret),
			"hex":     hex.EncodeToString(secret),
			"base64":  base64.RawStdEncoding.EncodeToString(secret)[:40],
			"list":    strings.Trim(fmt.Sprint(secret), "[]"),
			"decimal": new(big.Int).SetBytes(secret).String(),
		} {
			if strings.Contains(out.String(), text) {
				t.Errorf("the key of the %s shows as %s", who, form)
			}
		}
	}
	if !strings.Contains(ca.String(), "Peerage local CA (test) sha256:") {
		t.Errorf("the CA is printed as %s", ca)
	}
}

func FuzzLoadCA(f *testing.F) {
	ca := newCA(f)
	f.Add(ca.CertPEM(), ca.MarshalKey())
	f.Add(ca.CertPEM(), []byte{})
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), ca.MarshalKey())
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		ca, err := LoadCA(cert, key)
		if err != nil {
			return
		}
		now := ca.cert.NotBefore
		leaf, err := ca.Leaf(now, Request{DNS: []string{"a.example"}})
		if err != nil {
			return // its life may be over
		}
		if err := leaf.Leaf.CheckSignatureFrom(ca.cert); err != nil {
			t.Errorf("a loaded CA issues what it has not signed: %v", err)
		}
	})
}

func BenchmarkLeaf(b *testing.B) {
	ca := newCA(b)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ca.Leaf(now, Request{DNS: []string{"www.example.com"}}); err != nil {
			b.Fatal(err)
		}
	}
}
