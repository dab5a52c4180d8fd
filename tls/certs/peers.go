package certs

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"peerage/balancing"
)

// peerDomain is where the names of nodes lie in the certificates that nodes show each
// other. It is apart from all that a public listener has certificates for; .internal
// is never delegated in the DNS.
const peerDomain = ".peers.internal"

func peerName(id balancing.NodeID) string { return string(id) + peerDomain }

func isPeerName(name string) bool { return strings.HasSuffix(name, peerDomain) }

// PeerConfig returns both sides of the mutual TLS between node and its peers: server
// for its listener, client for its connections to one peer. Each shows the certificate
// of {node}.peers.internal, renewed when half of its life is over. The client takes
// nobody but the peer it asked for, the server nobody but nodes, which are all those
// of the site. Other certificates of the CA, as public listeners show them, are good
// for neither.
//
// The protocol on top (ALPN) is for http.Server and http.Transport to set. The error
// is that of the CA, if it cannot issue.
func PeerConfig(ca *CA, node balancing.NodeID, nodes []balancing.NodeID) (server *tls.Config, client func(peer balancing.NodeID) *tls.Config, err error) {
	own := &slot{ca: ca, req: Request{DNS: []string{peerName(node)}, Client: true}}
	if _, _, err := own.get(time.Now()); err != nil {
		return nil, nil, err
	}
	roots := ca.pool()
	names := make(map[string]bool, len(nodes))
	for _, id := range nodes {
		names[peerName(id)] = true
	}
	server = &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, _, err := own.get(time.Now())
			return cert, err
		},
		ClientAuth:       tls.RequireAndVerifyClientCert, // the chain, and the usage clientAuth
		ClientCAs:        roots,
		VerifyConnection: func(cs tls.ConnectionState) error { return verifyPeer(cs, names) },
		MinVersion:       tls.VersionTLS13,
		// Few connections, and long ones: full handshakes keep every check in one place.
		SessionTicketsDisabled: true,
	}
	client = func(peer balancing.NodeID) *tls.Config {
		return &tls.Config{
			ServerName: peerName(peer),
			RootCAs:    roots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert, _, err := own.get(time.Now())
				return cert, err
			},
			MinVersion: tls.VersionTLS13,
		}
	}
	return server, client, nil
}

// verifyPeer checks that a client's certificate, whose chain is already verified, is
// for one of names and nothing else.
func verifyPeer(cs tls.ConnectionState, names map[string]bool) error {
	got := cs.PeerCertificates[0].DNSNames
	if len(got) != 1 || !names[got[0]] {
		return fmt.Errorf("verify peer: its certificate is for %q, which is no node of this site", got)
	}
	return nil
}
