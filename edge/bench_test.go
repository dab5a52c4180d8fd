package edge

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"peerage/balancing"
)

var page = make([]byte, 1024)

// BenchmarkHandlerHere is a request that is served from memory, as the handler of the
// listeners sees it: no network, no TLS.
func BenchmarkHandlerHere(b *testing.B) {
	for _, k := range []struct {
		name, path string
		cookie     bool
	}{{"plain", "/static/page.html?v=1", false}, {"pinned", "/bank/transfer", true}} {
		b.Run(k.name, func(b *testing.B) { benchmarkHandler(b, k.path, k.cookie, http.StatusOK, 10) })
	}
}

// BenchmarkHandlerRedirect is a request that goes to a peer.
func BenchmarkHandlerRedirect(b *testing.B) {
	benchmarkHandler(b, "/static/page.html?v=1", false, http.StatusTemporaryRedirect, 90)
}

func benchmarkHandler(b *testing.B, path string, pinned bool, want int, load balancing.Load) {
	c := build(b, func(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = contentType
		w.Write(page)
	})
	n := c.nodes["a"]
	n.c.AccessLog = slog.New(slog.NewJSONHandler(io.Discard, nil))
	w := &memory{header: http.Header{}}
	template := http.Request{
		Method: "GET", ProtoMajor: 2, Host: host, RemoteAddr: "192.0.2.1:50000", Body: http.NoBody,
		Header: http.Header{
			"Sec-Fetch-Mode": {"navigate"}, "Accept": {"text/html"}, "Accept-Encoding": {"gzip, br"},
			"User-Agent": {"Mozilla/5.0"}, "Accept-Language": {"en"},
		},
	}
	template = *template.WithContext(withConn(b.Context(), netip.Addr{}))
	ask := func() {
		clear(w.header)
		r := template
		r.RequestURI, r.URL = path, &url.URL{}
		n.serve(w, &r)
	}
	if pinned {
		ask()
		resp := http.Response{Header: w.header}
		template.Header.Set("Cookie", resp.Cookies()[0].Name+"="+resp.Cookies()[0].Value)
	}
	c.load(load, 20, 20)
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
	if w.status != want {
		b.Fatalf("status %d, want %d", w.status, want)
	}
}

var contentType = []string{"text/html; charset=utf-8"}

// BenchmarkConnection is a connection of its own for one request, client and all: what it
// takes to accept one.
func BenchmarkConnection(b *testing.B) {
	c := newCluster(b, nil)
	n := c.nodes["a"]
	b.Run("plain", func(b *testing.B) {
		at, ask := netip.AddrPortFrom(n.addr, testPorts.HTTP).String(), []byte("GET "+HealthPath+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		b.ReportAllocs()
		for b.Loop() {
			conn, err := net.Dial("tcp", at)
			if err != nil {
				b.Fatal(err)
			}
			conn.Write(ask)
			if got, err := io.Copy(io.Discard, conn); got == 0 || err != nil {
				b.Fatalf("an answer of %d octets, %v", got, err)
			}
			conn.Close()
		}
	})
	for _, proto := range protocols {
		b.Run(proto, func(b *testing.B) {
			r, err := question{path: HealthPath}.request(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				client := newClient(proto, n.addr, c.ca.pool)
				resp, err := client.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				closeClient(client)
			}
		})
	}
}

// memory is a response that goes nowhere.
type memory struct {
	header http.Header
	status int
}

func (m *memory) Header() http.Header              { return m.header }
func (m *memory) WriteHeader(status int)           { m.status = status }
func (m *memory) Write(b []byte) (int, error)      { return len(b), nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }
