package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// newCA returns a CA made now.
func newCA(tb testing.TB) *CA {
	tb.Helper()
	ca, err := NewCA("test", time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return ca
}

// newManager returns a manager of www.example.com, shop.example.com, and 127.0.0.1.
func newManager(ca *CA) *Manager {
	return New(Config{
		CA:      ca,
		Names:   func(n string) bool { return n == "www.example.com" || n == "shop.example.com" },
		Addrs:   func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.1") },
		Default: func() string { return "www.example.com" },
		Log:     slog.New(slog.DiscardHandler),
	})
}

// hello is a hello for name that came in on the address local; "" is none.
func hello(name, local string) *tls.ClientHelloInfo {
	h := &tls.ClientHelloInfo{ServerName: name}
	if local != "" {
		h.Conn = addressed{addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(local), 443))}
	}
	return h
}

// addressed is a connection that has nothing but its local address.
type addressed struct {
	net.Conn
	addr net.Addr
}

func (c addressed) LocalAddr() net.Addr { return c.addr }

func TestCertificateIsThatOfWhatTheClientAsksFor(t *testing.T) {
	m := newManager(newCA(t))
	for _, tt := range []struct{ name, sni, local, want string }{
		{"a host", "shop.example.com", "127.0.0.9", "shop.example.com"},
		{"letter case", "WWW.Example.COM", "127.0.0.9", "www.example.com"},
		{"final dot", "www.example.com.", "127.0.0.9", "www.example.com"},
		{"no name, our address", "", "127.0.0.1", "127.0.0.1"},
		{"no name, our address, mapped", "", "::ffff:127.0.0.1", "127.0.0.1"},
		{"no name, other address", "", "127.0.0.9", "www.example.com"},
		{"no name, no connection", "", "", "www.example.com"},
		{"our address as name", "127.0.0.1", "127.0.0.9", "127.0.0.1"},
		{"other address as name", "127.0.0.9", "127.0.0.1", ""},
		{"other name", "example.com", "127.0.0.1", ""},
		{"part of a host", "shop", "127.0.0.1", ""},
		{"wildcard", "*.example.com", "127.0.0.1", ""},
		{"dot", ".", "127.0.0.1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert, err := m.GetCertificate(hello(tt.sni, tt.local))
			if err != nil {
				t.Fatal(err)
			}
			if cert == nil {
				if tt.want != "" {
					t.Errorf("GetCertificate(%q on %q) gave none, want that of %s", tt.sni, tt.local, tt.want)
				}
				return
			}
			got := Request{DNS: cert.Leaf.DNSNames}
			for _, ip := range cert.Leaf.IPAddresses {
				a, _ := netip.AddrFromSlice(ip)
				got.IPs = append(got.IPs, a.Unmap())
			}
			if got.String() != tt.want {
				t.Errorf("GetCertificate(%q on %q) is for %s, want %q", tt.sni, tt.local, got, tt.want)
			}
		})
	}
	t.Run("a peer's name is never public", func(t *testing.T) {
		m := newManager(m.c.CA)
		m.c.Names = func(string) bool { return true }
		for _, name := range []string{"n1.peers.internal", JoinName} {
			if cert, err := m.GetCertificate(hello(name, "")); cert != nil || err != nil {
				t.Errorf("%s: got %v, %v, want no certificate and no error", name, cert, err)
			}
		}
	})
	t.Run("without a default", func(t *testing.T) {
		m := newManager(m.c.CA)
		for _, none := range []func() string{nil, func() string { return "" }} {
			m.c.Default = none
			if cert, err := m.GetCertificate(hello("", "127.0.0.9")); cert != nil || err != nil {
				t.Errorf("got %v, %v, want no certificate and no error", cert, err)
			}
		}
	})
	t.Run("another default", func(t *testing.T) {
		m, name := newManager(m.c.CA), "www.example.com"
		m.c.Default = func() string { return name }
		for _, name = range []string{"www.example.com", "shop.example.com"} {
			cert, err := m.GetCertificate(hello("", "127.0.0.9"))
			if err != nil || len(cert.Leaf.DNSNames) != 1 || cert.Leaf.DNSNames[0] != name {
				t.Errorf("got %v, %v, want one for %s", cert, err, name)
			}
		}
	})
}

// serve starts a web server on loopback, over TCP and QUIC on one port, that says the
// protocol of each request.
func serve(t *testing.T, c *tls.Config) (port int) {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: handler, TLSConfig: c, ErrorLog: log.New(io.Discard, "", 0)}
	h3 := &http3.Server{Handler: handler, TLSConfig: http3.ConfigureTLSConfig(c)}
	var wg sync.WaitGroup
	wg.Go(func() { web.ServeTLS(tcp, "", "") })
	wg.Go(func() { h3.Serve(udp) })
	t.Cleanup(func() {
		web.Close()
		h3.Close()
		udp.Close()
		wg.Wait()
	})
	return tcp.Addr().(*net.TCPAddr).Port
}

func TestRealHandshakes(t *testing.T) {
	ca := newCA(t)
	m := newManager(ca)
	port := serve(t, ServerConfig(m.GetCertificate, Intermediate))
	client := func() *tls.Config { return &tls.Config{RootCAs: ca.pool()} }

	transports := map[string]func(*tls.Config) http.RoundTripper{
		"HTTP/1.1": func(c *tls.Config) http.RoundTripper {
			p := new(http.Protocols)
			p.SetHTTP1(true)
			return &http.Transport{TLSClientConfig: c, Protocols: p, DialContext: toLoopback}
		},
		"HTTP/2.0": func(c *tls.Config) http.RoundTripper {
			return &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true, DialContext: toLoopback}
		},
		"HTTP/3.0": func(c *tls.Config) http.RoundTripper {
			return &http3.Transport{TLSClientConfig: c, Dial: func(ctx context.Context, addr string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
				_, port, _ := net.SplitHostPort(addr)
				return quic.DialAddrEarly(ctx, "127.0.0.1:"+port, c, q)
			}}
		},
	}
	for proto, transport := range transports {
		for _, host := range []string{"www.example.com", "shop.example.com", "127.0.0.1"} {
			t.Run(proto+" "+host, func(t *testing.T) {
				rt := transport(client())
				defer closeTransport(rt)
				resp, err := (&http.Client{Transport: rt}).Get(fmt.Sprintf("https://%s:%d/", host, port))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if got, _ := io.ReadAll(resp.Body); string(got) != proto {
					t.Errorf("got protocol %q, want %q", got, proto)
				}
			})
		}
		t.Run(proto+" unknown name", func(t *testing.T) {
			rt := transport(client())
			defer closeTransport(rt)
			_, err := (&http.Client{Transport: rt}).Get(fmt.Sprintf("https://unknown.example.com:%d/", port))
			if !isUnrecognizedName(err) {
				t.Errorf("got error %v, want the alert unrecognized_name", err)
			}
		})
	}
}

func toLoopback(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, _ := net.SplitHostPort(addr)
	return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
}

func closeTransport(rt http.RoundTripper) {
	switch rt := rt.(type) {
	case *http.Transport:
		rt.CloseIdleConnections()
	case *http3.Transport:
		rt.Close()
	}
}

func isUnrecognizedName(err error) bool {
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		return e.ErrorCode == 0x100+112 // RFC 9001, section 4.8
	}
	// crypto/tls has no exported type for an alert that came over TCP.
	return err != nil && strings.Contains(err.Error(), "tls: unrecognized name")
}

func TestProfiles(t *testing.T) {
	ca := newCA(t)
	m := newManager(ca)
	for _, tt := range []struct {
		name    string
		profile Profile
		client  *tls.Config
		refused bool
	}{
		{"intermediate takes 1.3", Intermediate, &tls.Config{MinVersion: tls.VersionTLS13}, false},
		{"intermediate takes 1.2 with AEAD", Intermediate, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: aead[:1]}, false},
		{"intermediate refuses 1.2 with CBC", Intermediate, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, true},
		{"intermediate refuses 1.1", Intermediate, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, true},
		{"modern takes 1.3", Modern, &tls.Config{}, false},
		{"modern refuses 1.2", Modern, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.RootCAs = ca.pool()
			tt.client.ServerName = "www.example.com"
			client, server := handshake(tt.client, ServerConfig(m.GetCertificate, tt.profile))
			if refused := client != nil || server != nil; refused != tt.refused {
				t.Errorf("client says %v, server says %v; want refused = %t", client, server, tt.refused)
			}
		})
	}
	t.Run("text", func(t *testing.T) {
		for _, want := range []Profile{Intermediate, Modern} {
			var got Profile
			if err := got.UnmarshalText([]byte(want.String())); err != nil || got != want {
				t.Errorf("UnmarshalText(%q) = %v, %v", want, got, err)
			}
		}
		if err := new(Profile).UnmarshalText([]byte("old")); err == nil {
			t.Error(`UnmarshalText("old") took it`)
		}
	})
}

// handshake connects a client and a server by a pipe, sends an octet each way, and
// returns what went wrong on either side.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	x, y := net.Pipe()
	a, b := newEager(x), newEager(y)
	var wg sync.WaitGroup
	wg.Go(a.run)
	wg.Go(b.run)
	wg.Go(func() { serverErr = talk(b, tls.Server(b, server)) })
	clientErr = talk(a, tls.Client(a, client))
	wg.Wait()
	return clientErr, serverErr
}

// eager is the end of a pipe that does not wait for its reader when it writes: a client
// that complains while the server has not written all would hold up both.
type eager struct {
	net.Conn
	out chan []byte
}

func newEager(c net.Conn) *eager { return &eager{c, make(chan []byte, 64)} }

func (e *eager) Write(b []byte) (int, error) {
	e.out <- bytes.Clone(b)
	return len(b), nil
}

// Close writes what is left, as far as somebody reads it.
func (e *eager) Close() error {
	e.out <- nil
	return nil
}

func (e *eager) run() {
	defer e.Conn.Close()
	for b := range e.out {
		if b == nil {
			return
		}
		if _, err := e.Conn.Write(b); err != nil {
			return
		}
	}
}

// talk writes and reads an octet. In TLS 1.3 a client learns that it is refused when
// it reads.
func talk(pipe net.Conn, c *tls.Conn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer pipe.Close()
	if err := c.Handshake(); err != nil {
		return err
	}
	written := make(chan error, 1)
	wg.Go(func() {
		_, err := c.Write([]byte{1})
		written <- err
	})
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return err
	}
	return <-written
}

func TestSimultaneousHellosShareOneCertificate(t *testing.T) {
	m := newManager(newCA(t))
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 64)
	start := make(chan struct{})
	for i := range got {
		wg.Go(func() {
			<-start
			cert, err := m.GetCertificate(hello([]string{"www.example.com", "shop.example.com"}[i%2], ""))
			if err != nil {
				t.Error(err)
			}
			got[i] = cert
		})
	}
	close(start)
	wg.Wait()
	for i, cert := range got {
		if cert != got[i%2] {
			t.Errorf("hello %d got a certificate of its own", i)
		}
	}
	if got[0] == got[1] {
		t.Error("two names have the same certificate")
	}
}

func TestIndexIsBounded(t *testing.T) {
	m := newManager(newCA(t))
	full := map[subject]*slot{}
	for i := range maxCerts {
		full[subject{name: fmt.Sprint(i)}] = new(slot)
	}
	m.slots.Store(&full)
	for range 3 {
		if _, err := m.GetCertificate(hello("www.example.com", "")); err != nil {
			t.Fatal(err)
		}
		if _, err := m.GetCertificate(hello("", "127.0.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(*m.slots.Load()); n != maxCerts {
		t.Errorf("%d certificates, want %d", n, maxCerts)
	}
}

func TestHellosOfOthersTakeNoPlace(t *testing.T) {
	m := newManager(newCA(t))
	for i := range 100 {
		m.GetCertificate(hello(fmt.Sprintf("%d.example.com", i), "127.0.0.1"))
	}
	if n := len(*m.slots.Load()); n != 0 {
		t.Errorf("%d entries, want none", n)
	}
}

func TestCertificateIsRenewedAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		m := newManager(ca)
		get := func() *tls.Certificate {
			t.Helper()
			cert, err := m.GetCertificate(hello("www.example.com", ""))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.pool(), DNSName: "www.example.com"}); err != nil {
				t.Fatal(err)
			}
			return cert
		}
		first := get()
		time.Sleep(leafLife/2 - 2*time.Hour)
		if get() != first {
			t.Fatal("renewed before half of its life was over")
		}
		time.Sleep(2 * time.Hour)

		// While one caller makes the next, the others are served the old one.
		s := (*m.slots.Load())[subject{name: "www.example.com"}]
		s.mu.Lock()
		if get() != first {
			t.Error("not served the old one during the renewal")
		}
		s.mu.Unlock()

		second := get()
		if second == first {
			t.Fatal("not renewed after half of its life")
		}
		if get() != second {
			t.Error("renewed twice")
		}
		if clientErr, serverErr := handshake(&tls.Config{RootCAs: ca.pool(), ServerName: "www.example.com"}, ServerConfig(m.GetCertificate, Intermediate)); clientErr != nil || serverErr != nil {
			t.Errorf("handshake with the renewed one: client %v, server %v", clientErr, serverErr)
		}
		time.Sleep(30 * 24 * time.Hour) // nobody came; it has ended
		get()
	})
}

func TestCertificateFromTheFutureIsReplaced(t *testing.T) {
	ca := newCA(t)
	s := &slot{ca: ca, req: Request{DNS: []string{"www.example.com"}}}
	now := time.Now()
	future, _, err := s.get(now.AddDate(5, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	got, fresh, err := s.get(now)
	if err != nil || !fresh || got == future {
		t.Fatalf("get after the clock was set back = %v, %t", err, fresh)
	}
	if again, _, _ := s.get(now.Add(-time.Minute)); again != got {
		t.Error("a clock that is set back by a minute makes a new certificate")
	}
}

func TestEndedCAIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(newCA(t))
		time.Sleep(11 * 365 * 24 * time.Hour)
		if cert, err := m.GetCertificate(hello("www.example.com", "")); err == nil {
			t.Errorf("got %v, want an error", cert)
		}
	})
}

func BenchmarkGetCertificate(b *testing.B) {
	m := newManager(newCA(b))
	for _, tt := range []struct{ name, sni, local string }{
		{"name", "www.example.com", "127.0.0.1"},
		{"address", "", "127.0.0.1"},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			h := hello(tt.sni, tt.local)
			for b.Loop() {
				if cert, err := m.GetCertificate(h); cert == nil || err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
