package certs

import (
	"crypto/tls"
	"fmt"
)

// Profile is a set of TLS versions and cipher suites, named like Mozilla's.
type Profile uint8

const (
	Intermediate Profile = iota // TLS 1.2 with forward secrecy and AEAD only, and TLS 1.3
	Modern                      // TLS 1.3
)

var profileNames = [...]string{Intermediate: "intermediate", Modern: "modern"}

func (p Profile) String() string {
	if int(p) >= len(profileNames) {
		return fmt.Sprintf("profile(%d)", uint8(p))
	}
	return profileNames[p]
}

// MarshalText writes the profile's name.
func (p Profile) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a profile's name.
func (p *Profile) UnmarshalText(b []byte) error {
	for i, n := range profileNames {
		if n == string(b) {
			*p = Profile(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not a TLS profile: intermediate or modern", b)
}

// aead are the suites of TLS 1.2 that testers have nothing against: Go's own choice
// has two with CBC besides. Those of TLS 1.3 cannot be chosen.
var aead = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// ServerConfig returns the configuration of a public listener for HTTP/1.1 and HTTP/2;
// http3.ConfigureTLSConfig makes that for HTTP/3 out of it. The key exchanges are Go's
// own, which puts the post-quantum hybrids first.
func ServerConfig(getCert func(*tls.ClientHelloInfo) (*tls.Certificate, error), p Profile) *tls.Config {
	c := &tls.Config{
		GetCertificate: getCert,
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   aead,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	if p == Modern {
		c.MinVersion = tls.VersionTLS13
	}
	return c
}
