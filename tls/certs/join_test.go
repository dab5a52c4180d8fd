package certs

import (
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestJoinKnowsTheSiteByItsFingerprint(t *testing.T) {
	ca, stranger := newCA(t), newCA(t)
	showing := func(c *CA, chain *CA, r Request) *tls.Config {
		leaf, err := c.Leaf(time.Now(), r)
		if err != nil {
			t.Fatal(err)
		}
		if chain != nil {
			leaf.Certificate = append(leaf.Certificate, chain.cert.Raw)
		}
		return &tls.Config{Certificates: []tls.Certificate{*leaf}}
	}
	join := Request{DNS: []string{JoinName}}
	for _, tt := range []struct {
		name        string
		fingerprint string
		server      *tls.Config
		want        string // in the client's error; "" for none
	}{
		{"the site", ca.Fingerprint(), JoinConfig(ca), ""},
		{"in capitals", strings.ToUpper(ca.Fingerprint()), JoinConfig(ca), ""},
		{"another site", ca.Fingerprint(), JoinConfig(stranger), "it is another one"},
		{"no fingerprint", "", JoinConfig(ca), "it is another one"},
		{"part of it", ca.Fingerprint()[:62], JoinConfig(ca), "it is another one"},
		{"without the CA's certificate", ca.Fingerprint(), showing(ca, nil, join), "does not show"},
		{"another CA's leaf below the site's CA", ca.Fingerprint(), showing(stranger, ca, join), "unknown authority"},
		{"a node", ca.Fingerprint(), showing(ca, ca, Request{DNS: []string{"n1.peers.internal"}}), "not join.peers.internal"},
		{"a public name", ca.Fingerprint(), showing(ca, ca, Request{DNS: []string{"www.example.com"}}), "not join.peers.internal"},
	} {
		clientErr, serverErr := handshake(JoinClient(tt.fingerprint), tt.server)
		if tt.want == "" && (clientErr != nil || serverErr != nil) || tt.want != "" && (clientErr == nil || !strings.Contains(clientErr.Error(), tt.want)) {
			t.Errorf("%s: client says %v, server says %v; want %q", tt.name, clientErr, serverErr, tt.want)
		}
	}
	if got := ca.Fingerprint(); len(got) != 64 || !strings.HasSuffix(ca.String(), " sha256:"+got) {
		t.Errorf("Fingerprint = %q, and the CA is printed as %s", got, ca)
	}
}

func TestJoinCertificateIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		server, client := JoinConfig(ca), JoinClient(ca.Fingerprint())
		for day := range 30 {
			if clientErr, serverErr := handshake(client, server); clientErr != nil || serverErr != nil {
				t.Fatalf("day %d: client says %v, server says %v", day, clientErr, serverErr)
			}
			time.Sleep(24 * time.Hour)
		}
	})
}
