package certs

import (
	"crypto"
	"crypto/tls"
	"errors"
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

// PeerOptions say who the peers are.
type PeerOptions struct {
	// Key is this node's identity: its certificates are made for it. Nil for a key that
	// lasts as long as the process.
	Key crypto.Signer

	// Known reports whether key is the identity of the node of that name. It is asked in
	// each handshake and must be cheap and safe for concurrent use. Nil takes any key,
	// and every name that a node can have.
	Known func(name balancing.NodeID, key crypto.PublicKey) bool
}

// PeerConfig returns both sides of the mutual TLS between node and its peers: server
// for its listener, client for its connections to one peer. Each shows the certificate
// of {node}.peers.internal, renewed when half of its life is over. The client takes
// nobody but the peer it asked for, the server nobody but nodes; both ask o for the
// key. Other certificates of the CA, as public listeners and that of the joining show
// them, are good for neither.
//
// VerifyConnection of either can be called again for a connection that is open: it says
// whether its peer would be taken now.
//
// The protocol on top (ALPN) is for http.Server and http.Transport to set. The error
// is that of the CA, if it cannot issue.
func PeerConfig(ca *CA, node balancing.NodeID, o PeerOptions) (server *tls.Config, client func(peer balancing.NodeID) *tls.Config, err error) {
	if peerName(node) == JoinName {
		return nil, nil, fmt.Errorf("no node can be called %s: its name would be that of the joining", node)
	}
	own := &slot{ca: ca, req: Request{DNS: []string{peerName(node)}, Client: true, Key: conceal(o.Key)}}
	if _, _, err := own.get(time.Now()); err != nil {
		return nil, nil, err
	}
	roots := ca.pool()
	server = &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, _, err := own.get(time.Now())
			return cert, err
		},
		ClientAuth:       tls.RequireAndVerifyClientCert, // the chain, and the usage clientAuth
		ClientCAs:        roots,
		VerifyConnection: func(cs tls.ConnectionState) error { return o.verify(cs, "") },
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
			VerifyConnection: func(cs tls.ConnectionState) error { return o.verify(cs, peer) },
			MinVersion:       tls.VersionTLS13,
		}
	}
	return server, client, nil
}

// PeerOf returns the node at the other end of a connection that [PeerConfig] has verified.
func PeerOf(cs *tls.ConnectionState) (balancing.NodeID, bool) {
	if cs == nil || len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].DNSNames) != 1 {
		return "", false
	}
	node, ok := strings.CutSuffix(cs.PeerCertificates[0].DNSNames[0], peerDomain)
	return balancing.NodeID(node), ok
}

// verify checks that a certificate, whose chain crypto/tls has verified, is for a node
// and nothing else, for the one that is wanted unless that is "", and for a key of it.
func (o *PeerOptions) verify(cs tls.ConnectionState, want balancing.NodeID) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("verify peer: it shows no certificate")
	}
	cert := cs.PeerCertificates[0]
	node, ok := "", false
	if len(cert.DNSNames) == 1 && len(cert.IPAddresses)+len(cert.URIs)+len(cert.EmailAddresses) == 0 {
		node, ok = strings.CutSuffix(cert.DNSNames[0], peerDomain)
	}
	id := balancing.NodeID(node)
	switch {
	case !ok, !id.Valid(), peerName(id) == JoinName, want != "" && id != want:
		return fmt.Errorf("verify peer: its certificate is for %q, which is no node that is wanted", cert.DNSNames)
	case o.Known != nil && !o.Known(id, cert.PublicKey):
		return fmt.Errorf("verify peer: its key is not that of node %s of this site", id)
	}
	return nil
}
