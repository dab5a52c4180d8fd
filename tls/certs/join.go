package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"peerage/balancing"
)

// JoinName is the name under which a node lets others join its site. It lies where no
// public listener has a certificate for it; no node can be called JoinNode.
const (
	JoinNode balancing.NodeID = "join"
	JoinName                  = string(JoinNode) + peerDomain
)

// JoinConfig returns the server side of the joining, where the other side is no node yet
// and can show nothing: it is asked for no certificate. It proves the site by the CA's
// own certificate, which it sends along.
func JoinConfig(ca *CA) *tls.Config {
	own := &slot{ca: ca, req: Request{DNS: []string{JoinName}}}
	return &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			leaf, _, err := own.get(time.Now())
			if err != nil {
				return nil, err
			}
			c := *leaf
			c.Certificate = [][]byte{leaf.Certificate[0], ca.cert.Raw}
			return &c, nil
		},
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
	}
}

// JoinClient returns the other side: it takes nobody but [JoinName] as certified by the
// one CA that has this fingerprint, see [CA.Fingerprint].
func JoinClient(fingerprint string) *tls.Config {
	return &tls.Config{
		ServerName: JoinName,
		// There is no pool of roots to verify by before the CA is here; see below.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return verifyJoin(cs, fingerprint) },
		MinVersion:         tls.VersionTLS13,
	}
}

func verifyJoin(cs tls.ConnectionState, want string) error {
	if len(cs.PeerCertificates) < 2 {
		return errors.New("verify the site: it does not show the certificate of its CA")
	}
	roots := x509.NewCertPool()
	found := false
	for _, c := range cs.PeerCertificates[1:] {
		if c.IsCA && strings.EqualFold(fingerprint(c), want) {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return fmt.Errorf("verify the site: it is another one, the fingerprint of its CA is %s", fingerprint(cs.PeerCertificates[len(cs.PeerCertificates)-1]))
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, DNSName: JoinName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("verify the site: %w", err)
	}
	return nil
}
