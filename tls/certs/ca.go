package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

const (
	caYears  = 10
	leafLife = 7 * 24 * time.Hour

	// backdate is how far the beginning of a certificate's life lies before its issue,
	// for clients whose clock is slow.
	backdate = time.Hour

	// MaxSite is the length of the longest site name a CA can bear, in octets: a
	// common name has at most 64 (RFC 5280, appendix A.1).
	MaxSite = 64 - len(caName) - len(" ()")

	caName = "Peerage local CA"
)

// CA is the local certificate authority of a site: a P-256 root that signs short-lived
// leaves. All nodes of a site share it, and it is safe for concurrent use. However it
// is printed, its key does not show.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a root for the site of that name, valid for ten years from now.
func NewCA(site string, now time.Time) (*CA, error) {
	if site == "" || len(site) > MaxSite {
		return nil, fmt.Errorf("make a CA for site %q: the name must have 1 to %d octets", site, MaxSite)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a CA for site %q: %w", site, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s (%s)", caName, site)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(caYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // leaves only
	}
	cert, err := create(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a CA for site %q: %w", site, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA puts a CA together from what [CA.CertPEM] and [CA.MarshalKey] gave. No error
// tells anything of the key.
func LoadCA(certPEM, pkcs8 []byte) (*CA, error) {
	block, rest := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("load the local CA: its certificate is not one PEM block of type CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load the local CA: %w", err)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("load the local CA: its certificate is not a root: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, errors.New("load the local CA: its key is not in PKCS #8 form")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("load the local CA: its key is not one of the curve P-256")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("load the local CA: its key does not belong to its certificate")
	}
	return &CA{cert: cert, key: key}, nil
}

// CertPEM returns the root certificate, for clients to trust.
func (ca *CA) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// MarshalKey returns the private key in PKCS #8 form. It is the caller's to seal
// before it is written anywhere.
func (ca *CA) MarshalKey() (pkcs8 []byte) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		panic("certs: a P-256 key has no PKCS #8 form") // cannot be
	}
	return pkcs8
}

// String names the CA and the SHA-256 fingerprint of its certificate.
func (ca *CA) String() string {
	return fmt.Sprintf("%s sha256:%s", ca.cert.Subject.CommonName, ca.Fingerprint())
}

// Fingerprint returns the SHA-256 of the root certificate in hexadecimal digits, by which
// a node that joins knows the site; see [JoinClient].
func (ca *CA) Fingerprint() string { return fingerprint(ca.cert) }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Format writes [CA.String] whatever the verb, lest one of them shows the key.
func (ca *CA) Format(f fmt.State, _ rune) { io.WriteString(f, ca.String()) }

// pool returns the set of roots that holds this one alone.
func (ca *CA) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// Request says what a leaf is to be for.
type Request struct {
	DNS    []string      // names; with IPs at least one
	IPs    []netip.Addr  // addresses
	Client bool          // good for the client's side of mutual TLS too
	Life   time.Duration // from now on; 0 is seven days. Never longer than the CA's
	Key    crypto.Signer `json:"-"` // that the certificate is for; nil for a new one of the curve P-256
}

// Leaf makes a certificate, and unless it is given the key for it. The certificate is valid since an hour
// ago. It fails if r is not well-formed, or the CA's own life is over. A clock that is
// before the CA's birth is taken for wrong, and the leaf's life begins with the CA's.
func (ca *CA) Leaf(now time.Time, r Request) (*tls.Certificate, error) {
	if len(r.DNS)+len(r.IPs) == 0 {
		return nil, errors.New("issue a certificate: neither a name nor an address is given")
	}
	life := r.Life
	if life == 0 {
		life = leafLife
	}
	if life < 0 {
		return nil, fmt.Errorf("issue a certificate for %s: a life of %v", r, life)
	}
	if !now.Before(ca.cert.NotAfter) {
		return nil, fmt.Errorf("issue a certificate for %s: the local CA ended on %v", r, ca.cert.NotAfter)
	}
	template := &x509.Certificate{
		NotBefore:             later(now.Add(-backdate), ca.cert.NotBefore),
		NotAfter:              later(now, ca.cert.NotBefore).Add(life),
		DNSNames:              r.DNS,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	for _, a := range r.IPs {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	key := conceal(r.Key)
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("issue a certificate for %s: %w", r, err)
		}
	}
	leaf, err := create(template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", r, err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// signer is a private key of somebody else's, of which nothing shows: those of some kinds
// are mere octets, which fmt would print.
type signer struct{ key func() crypto.Signer }

func conceal(k crypto.Signer) crypto.Signer {
	if k == nil {
		return nil
	}
	return signer{func() crypto.Signer { return k }}
}

func (s signer) Public() crypto.PublicKey { return s.key().Public() }

func (s signer) Sign(rand io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.key().Sign(rand, digest, o)
}

// Format writes [Request.String] whatever the verb, lest one of them shows the key.
func (r Request) Format(f fmt.State, _ rune) { io.WriteString(f, r.String()) }

// String lists the names and addresses.
func (r Request) String() string {
	all := r.DNS[:len(r.DNS):len(r.DNS)]
	for _, a := range r.IPs {
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// create signs template, and reads the result back in.
func create(template, parent *x509.Certificate, public crypto.PublicKey, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
