package membership

import (
	"crypto"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// TestWhoRefusesANode has a node that was away ask a peer for keys. That it is refused for
// its identity makes it leave the site, so nobody but the peer may say that.
func TestWhoRefusesANode(t *testing.T) {
	ca, err := certs.NewCA("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	self, peer := newIdentity(t), newIdentity(t)
	_, client, err := certs.PeerConfig(ca, "n1", certs.PeerOptions{Key: self.Signer()})
	if err != nil {
		t.Fatal(err)
	}
	server, _, err := certs.PeerConfig(ca, "n2", certs.PeerOptions{
		Key: peer.Signer(), Known: func(balancing.NodeID, crypto.PublicKey) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewUnstartedServer(http.NotFoundHandler())
	listener.TLS = server
	listener.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	listener.StartTLS()
	defer listener.Close()

	impostor, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	go func() {
		for {
			c, err := impostor.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			c.Write([]byte{21, 3, 3, 0, 2, 2, 42}) // alert, fatal, bad certificate (RFC 8446 B.2)
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()

	for _, c := range []struct {
		who, url string
		want     bool
	}{
		{"the peer", listener.URL, true},
		{"an impostor", "https://" + impostor.Addr().String(), false},
	} {
		refused := false
		ring, err := keys.NewRing(keys.Generate())
		if err != nil {
			t.Fatal(err)
		}
		store := openStore(t, "")
		r := NewRotation(RotationConfig{
			Self: "n1", Identity: self, Registry: NewRegistry(openTable(t, store, "n1", MembersTable), "n1", self),
			Table: openTable(t, store, "n1", KeysTable), Ring: ring,
			Peer: func(balancing.NodeID) (*http.Client, string) {
				return &http.Client{Transport: &http.Transport{TLSClientConfig: client("n2").Clone(), DisableKeepAlives: true}}, c.url
			},
			Refused: func(_ balancing.NodeID, is bool) { refused = is },
			Log:     slog.New(slog.DiscardHandler),
		})
		r.fetchFrom(t.Context(), "n2")
		if refused != c.want {
			t.Errorf("after the answer of %s the node is refused: %v, want %v", c.who, refused, c.want)
		}
	}
}
