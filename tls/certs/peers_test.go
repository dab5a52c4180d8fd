package certs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
)

func TestPeersTakeOnlyEachOther(t *testing.T) {
	ca, stranger := newCA(t), newCA(t)
	// peer returns both sides of a node of the site n1, n2, with certificates of ca.
	peer := func(ca *CA, node balancing.NodeID) (*tls.Config, func(balancing.NodeID) *tls.Config) {
		t.Helper()
		server, client, err := PeerConfig(ca, node, PeerOptions{Known: func(name balancing.NodeID, _ crypto.PublicKey) bool {
			return name == "n1" || name == "n2"
		}})
		if err != nil {
			t.Fatal(err)
		}
		return server, client
	}
	serverN1, _ := peer(ca, "n1")
	_, clientN2 := peer(ca, "n2")

	// by returns what node dials n1 with.
	by := func(ca *CA, node balancing.NodeID) *tls.Config {
		_, client := peer(ca, node)
		return client("n1")
	}
	// showing returns a client that trusts the CA and shows a leaf of that kind.
	showing := func(ca *CA, r Request) *tls.Config {
		leaf, err := ca.Leaf(time.Now(), r)
		if err != nil {
			t.Fatal(err)
		}
		c := by(ca, "n2")
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return leaf, nil }
		return c
	}
	public := ServerConfig(newManager(ca).GetCertificate, Modern)
	old := by(ca, "n2")
	old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12
	bare := by(ca, "n2")
	bare.GetClientCertificate = nil

	for _, tt := range []struct {
		name           string
		client, server *tls.Config
		ok             bool
	}{
		{"n2 to n1", by(ca, "n2"), serverN1, true},
		{"n1 to itself", by(ca, "n1"), serverN1, true},
		{"a node that is not of the site", by(ca, "n3"), serverN1, false},
		{"a node of another CA", by(stranger, "n2"), serverN1, false},
		{"n2 meets n1 where it expects n3", clientN2("n3"), serverN1, false},
		{"n2 meets a public listener", by(ca, "n2"), public, false},
		{"no certificate", bare, serverN1, false},
		{"a public name's certificate", showing(ca, Request{DNS: []string{"www.example.com"}}), serverN1, false},
		{"a public name's, good for clients", showing(ca, Request{DNS: []string{"www.example.com"}, Client: true}), serverN1, false},
		{"a peer's name, not good for clients", showing(ca, Request{DNS: []string{"n2.peers.internal"}}), serverN1, false},
		{"a peer's name and another", showing(ca, Request{DNS: []string{"n2.peers.internal", "www.example.com"}, Client: true}), serverN1, false},
		{"a name below a peer's", showing(ca, Request{DNS: []string{"x.n2.peers.internal"}, Client: true}), serverN1, false},
		{"the domain of peers alone", showing(ca, Request{DNS: []string{"peers.internal"}, Client: true}), serverN1, false},
		{"the name of the joining, good for clients", showing(ca, Request{DNS: []string{JoinName}, Client: true}), serverN1, false},
		{"a peer's name and an address", showing(ca, Request{DNS: []string{"n2.peers.internal"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Client: true}), serverN1, false},
		{"n2 meets the joining", by(ca, "n2"), JoinConfig(ca), false},
		{"TLS 1.2", old, serverN1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clientErr, serverErr := handshake(tt.client, tt.server)
			if ok := clientErr == nil && serverErr == nil; ok != tt.ok {
				t.Errorf("client says %v, server says %v; want ok = %t", clientErr, serverErr, tt.ok)
			}
		})
	}
}

func identity(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestPeersAreKnownByTheirKeys: the CA's word for a name is not enough, for every node of
// the site has the CA's key.
func TestPeersAreKnownByTheirKeys(t *testing.T) {
	ca := newCA(t)
	keys := map[balancing.NodeID]ed25519.PrivateKey{"n1": identity(t), "n2": identity(t)}
	known := func(name balancing.NodeID, key crypto.PublicKey) bool {
		k, ok := keys[name]
		return ok && k.Public().(ed25519.PublicKey).Equal(key)
	}
	peer := func(node balancing.NodeID, key crypto.Signer) (*tls.Config, *tls.Config) {
		t.Helper()
		server, client, err := PeerConfig(ca, node, PeerOptions{Key: key, Known: known})
		if err != nil {
			t.Fatal(err)
		}
		return server, client("n1")
	}
	serverN1, _ := peer("n1", keys["n1"])
	_, clientN2 := peer("n2", keys["n2"])
	falseN1, _ := peer("n1", identity(t))
	_, falseN2 := peer("n2", identity(t))
	_, stolenN2 := peer("n2", keys["n1"])
	keyless, _ := peer("n1", nil)
	for _, tt := range []struct {
		name           string
		client, server *tls.Config
		want           string // in the error of one side; "" for none
	}{
		{"both known", clientN2, serverN1, ""},
		{"client with another key", falseN2, serverN1, "not that of node n2"},
		{"client with the key of another node", stolenN2, serverN1, "not that of node n2"},
		{"server with another key", clientN2, falseN1, "not that of node n1"},
		{"server with a key of the moment", clientN2, keyless, "not that of node n1"},
	} {
		clientErr, serverErr := handshake(tt.client, tt.server)
		switch {
		case tt.want == "":
			if clientErr != nil || serverErr != nil {
				t.Errorf("%s: client says %v, server says %v", tt.name, clientErr, serverErr)
			}
		case !(clientErr != nil && strings.Contains(clientErr.Error(), tt.want)) && !(serverErr != nil && strings.Contains(serverErr.Error(), tt.want)):
			t.Errorf("%s: client says %v, server says %v; want %q", tt.name, clientErr, serverErr, tt.want)
		}
	}

	own, err := serverN1.GetCertificate(hello(peerName("n1"), ""))
	if err != nil || !known("n1", own.Leaf.PublicKey) {
		t.Errorf("n1 shows a certificate of another key: %v", err)
	}
	// A node that is removed or replaced counts at once, for new connections and open ones.
	a := tls.ConnectionState{PeerCertificates: []*x509.Certificate{own.Leaf}}
	if err := clientN2.VerifyConnection(a); err != nil {
		t.Errorf("open connection: %v", err)
	}
	keys["n1"] = identity(t)
	if err := clientN2.VerifyConnection(a); err == nil {
		t.Error("n1 has another identity now, and its open connection still passes")
	}
	if clientErr, _ := handshake(clientN2, serverN1); clientErr == nil {
		t.Error("n1 has another identity now, and is still taken")
	}
}

func TestNoNodeIsCalledJoin(t *testing.T) {
	if _, _, err := PeerConfig(newCA(t), "join", PeerOptions{}); err == nil {
		t.Error("got no error")
	}
}

func TestPeerCertificatesAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		server, _, err1 := PeerConfig(ca, "n1", PeerOptions{})
		_, dial, err2 := PeerConfig(ca, "n2", PeerOptions{})
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		client := dial("n1")
		for day := range 30 {
			if clientErr, serverErr := handshake(client, server); clientErr != nil || serverErr != nil {
				t.Fatalf("day %d: client says %v, server says %v", day, clientErr, serverErr)
			}
			time.Sleep(24 * time.Hour)
		}
	})
}

func TestPeerConfigOfAnEndedCAIsAnError(t *testing.T) {
	ca, err := NewCA("test", time.Now().AddDate(-11, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := PeerConfig(ca, "n1", PeerOptions{}); err == nil {
		t.Error("got no error")
	}
}
