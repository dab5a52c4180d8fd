package certs

import (
	"crypto/tls"
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
		server, client, err := PeerConfig(ca, node, []balancing.NodeID{"n1", "n2"})
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

func TestPeerCertificatesAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		nodes := []balancing.NodeID{"n1", "n2"}
		server, _, err1 := PeerConfig(ca, "n1", nodes)
		_, dial, err2 := PeerConfig(ca, "n2", nodes)
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
	if _, _, err := PeerConfig(ca, "n1", nil); err == nil {
		t.Error("got no error")
	}
}
