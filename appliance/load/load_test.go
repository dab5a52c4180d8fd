package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// site is a small one: the site's name at one address, a node's at another.
type site struct {
	port  string
	roots *x509.CertPool
	certs []tls.Certificate
}

var (
	siteAddr = netip.MustParseAddr("127.0.0.1")
	nodeAddr = netip.MustParseAddr("127.0.0.2")
	foreign  = netip.MustParseAddr("203.0.113.1")
)

// startSite serves both addresses, over HTTP/1.1 and 2.
func startSite(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	s := new(site)
	for _, a := range []netip.Addr{siteAddr, nodeAddr} {
		l, err := net.Listen("tcp", net.JoinHostPort(a.String(), s.port))
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(handler)
		srv.Listener.Close()
		srv.Listener = l
		srv.EnableHTTP2 = true
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		_, s.port, _ = net.SplitHostPort(l.Addr().String())
		s.certs = srv.TLS.Certificates
		s.roots = x509.NewCertPool()
		s.roots.AddCert(srv.Certificate())
	}
	return s
}

// names finds hosts as the DNS of the site would.
func names(_ context.Context, host string) ([]netip.Addr, error) {
	switch host {
	case "example.com":
		return []netip.Addr{siteAddr}, nil
	case "n2.example.com":
		return []netip.Addr{nodeAddr}, nil
	case "elsewhere.example.com":
		return []netip.Addr{foreign}, nil
	}
	return nil, fmt.Errorf("look up %s: %w", host, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true})
}

// generator is for visitors that make five requests each, one right after the other.
func (s *site) generator(path string) *generator {
	return &generator{
		Config: Config{
			URL:  &url.URL{Scheme: "https", Host: "example.com:" + s.port, Path: path},
			Rate: 1000, Session: 5, Fixed: true, HTTP: 2, For: MaxFor, Clients: 10, Roots: s.roots, Seed: 1,
		},
		lookup: names,
		record: newRecorder(time.Now()),
	}
}

// visits lets n visitors come at once, and returns what they met.
func (g *generator) visits(t *testing.T, n int) *Result {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { g.visit(t.Context(), rand.New(rand.NewPCG(g.Seed, uint64(i)))) })
	}
	all.Wait()
	return g.record.result(g.Config, time.Second, false)
}

func TestVisitorsAreApartAndKeepTheirCookies(t *testing.T) {
	for version := 1; version <= 3; version++ {
		t.Run(fmt.Sprintf("HTTP/%d", version), func(t *testing.T) {
			var (
				mu       sync.Mutex
				visitors = map[string]string{} // cookie by connection
			)
			handler := func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != version || r.Header.Get("Sec-Fetch-Mode") != "navigate" {
					http.Error(w, "no browser", http.StatusBadRequest)
				}
				mu.Lock()
				defer mu.Unlock()
				c, err := r.Cookie("visitor")
				switch known := visitors[r.RemoteAddr]; {
				case err != nil && known == "":
					id := fmt.Sprint("v", len(visitors))
					visitors[r.RemoteAddr] = id
					http.SetCookie(w, &http.Cookie{Name: "visitor", Value: id, Path: "/", Secure: true})
				case err != nil || c.Value != known:
					http.Error(w, "another visitor's connection", http.StatusConflict)
				}
			}
			s := startSite(t, handler)
			if version == 3 {
				serveQUIC(t, s, handler)
			}
			g := s.generator("/")
			g.HTTP = version
			r := g.visits(t, 3)
			if r.Requests != 15 || r.Status["2xx"] != 15 || r.Failed() > 0 || r.Redirects != 0 {
				t.Errorf("%d answers of status %v, errors %v, %d redirects; want 15 good ones", r.Requests, r.Status, r.Errors, r.Redirects)
			}
			if len(visitors) != 3 || r.Visitors != 3 || r.Handshakes != 3 {
				t.Errorf("%d visitors with %d handshakes, %d were seen; want 3", r.Visitors, r.Handshakes, len(visitors))
			}
			if !(r.P50 > 0 && r.P50 <= r.P90 && r.P90 <= r.P99 && r.P99 <= r.Max) {
				t.Errorf("response times %+v", r)
			}
		})
	}
}

func serveQUIC(t *testing.T, s *site, h http.HandlerFunc) {
	pc, err := net.ListenPacket("udp", net.JoinHostPort(siteAddr.String(), s.port))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: s.certs})}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(pc) })
	t.Cleanup(func() {
		srv.Close()
		pc.Close()
		serving.Wait()
	})
}

func TestRedirectedVisitorStaysAtTheNode(t *testing.T) {
	s := startSite(t, func(w http.ResponseWriter, r *http.Request) {
		name, port, _ := net.SplitHostPort(r.Host)
		_, err := r.Cookie("hop")
		switch {
		case name == "example.com":
			http.SetCookie(w, &http.Cookie{Name: "hop", Value: "1", Domain: "example.com", Path: "/", Secure: true})
			http.Redirect(w, r, "https://n2.example.com:"+port+"/b", http.StatusTemporaryRedirect)
		case err != nil:
			http.Error(w, "without the cookie of the redirect", http.StatusBadRequest)
		case r.URL.Path == "/a": // within the node: moves nobody
			http.Redirect(w, r, "/b", http.StatusTemporaryRedirect)
		}
	})
	r := s.generator("/a").visits(t, 3)
	if r.Redirects != 3 || r.Redirected != 20 || r.Requests != 15 || r.Status["2xx"] != 15 || r.Handshakes != 6 {
		t.Errorf("%d redirects, %v %% of %d requests, status %v, %d handshakes; want one redirect for each of 3 visitors of 5 good requests", r.Redirects, r.Redirected, r.Requests, r.Status, r.Handshakes)
	}
	want := []NodeShare{{"n2", nodeAddr.String(), 15, 100}}
	if !slices.Equal(r.Nodes, want) {
		t.Errorf("served by %+v, want %+v", r.Nodes, want)
	}
}

func TestErrorsAreTold(t *testing.T) {
	var target atomic.Pointer[string] // of redirects
	s := startSite(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		if to := target.Load(); to != nil {
			http.Redirect(w, r, *to, http.StatusTemporaryRedirect)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	_, closed, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	for _, test := range []struct {
		kind, path, to string
		change         func(*generator)
	}{
		{"foreign address", "/", "https://elsewhere.example.com/", nil},
		{"DNS", "/", "https://nowhere.example.com/", nil},
		{"redirects", "/", "/", nil},
		{"broken off", "/broken", "", nil},
		{"TLS", "/", "", func(g *generator) { g.Roots = x509.NewCertPool() }},
		{"TLS", "/", "", func(g *generator) { g.HTTP, g.Roots = 1, x509.NewCertPool() }},
		{"connect", "/", "", func(g *generator) {
			g.URL.Host = "example.com:" + closed
			g.lookup = func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("127.0.0.3")}, nil
			}
		}},
	} {
		t.Run(test.kind, func(t *testing.T) {
			target.Store(nil)
			if test.to != "" {
				target.Store(&test.to)
			}
			g := s.generator(test.path)
			if test.change != nil {
				test.change(g)
			}
			if r := g.visits(t, 1); r.Errors[test.kind] != 5 || r.Failed() != 5 || r.Requests != 0 {
				t.Errorf("errors %v and %d answers, want 5 of kind %q", r.Errors, r.Requests, test.kind)
			}
		})
	}
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	s := startSite(t, func(http.ResponseWriter, *http.Request) {})
	g := s.generator("/")
	dead := netip.MustParseAddr("127.0.0.3")
	asked := 0
	g.lookup = func(context.Context, string) ([]netip.Addr, error) {
		asked++
		return []netip.Addr{dead, nodeAddr}, nil
	}
	r := g.visits(t, 1)
	if want := []NodeShare{{"", nodeAddr.String(), 5, 100}}; !slices.Equal(r.Nodes, want) || asked != 1 {
		t.Errorf("served by %+v after %d lookups, want %+v after one", r.Nodes, asked, want)
	}
}

func TestForeignSiteIsRefused(t *testing.T) {
	c := Config{
		URL:  &url.URL{Scheme: "https", Host: "elsewhere.example.com", Path: "/"},
		Rate: 1, Session: 1, HTTP: 2, For: time.Minute, Clients: 1,
	}
	if _, err := run(t.Context(), c, names); !errors.Is(err, errForeign) || !strings.Contains(err.Error(), foreign.String()) {
		t.Errorf("a site at %v: %v, want it refused", foreign, err)
	}
	c.Entry.To = []Share{{foreign, 1}}
	if _, err := Run(t.Context(), c); !errors.Is(err, errForeign) {
		t.Errorf("--to %v: %v, want it refused", foreign, err)
	}
	c.Entry.To, c.DNS = nil, netip.AddrPortFrom(foreign, 53)
	if _, err := Run(t.Context(), c); !errors.Is(err, errForeign) {
		t.Errorf("DNS at %v: %v, want it refused", foreign, err)
	}
	for a, want := range map[string]bool{
		"127.9.9.9": true, "10.1.2.3": true, "192.168.1.1": true, "172.31.0.1": true, "169.254.1.1": true,
		"::1": true, "fd00::1": true, "fe80::1": true, "::ffff:10.0.0.1": true,
		"192.0.2.1": true, "192.0.3.1": false, "172.32.0.1": false, "0.0.0.0": false, "::": false, "2001:db8::1": true, "2001:db9::1": false, "224.0.0.1": false, "::ffff:192.0.2.1": true,
	} {
		if got := allowed(netip.MustParseAddr(a)) == nil; got != want {
			t.Errorf("%s is allowed: %v, want %v", a, got, want)
		}
	}
}

func TestVisitorsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, asked atomic.Int64
		find := func(ctx context.Context, host string) ([]netip.Addr, error) {
			if asked.Add(1) == 1 {
				return []netip.Addr{siteAddr}, nil
			}
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		r, err := run(t.Context(), Config{
			URL: &url.URL{Scheme: "https", Host: "example.com"}, HTTP: 2,
			Rate: 100, Session: 1, For: 10 * time.Second, Clients: 3,
		}, find)
		if err != nil {
			t.Fatal(err)
		}
		if most.Load() != 3 || r.Visitors != 3 || r.TurnedAway < 500 || r.Requests+r.Failed() != 0 {
			t.Errorf("%d at a time, %+v; want 3, many turned away, and those that were cut off not counted", most.Load(), r)
		}
	})
}

func TestInterruptedRunTellsWhatItHas(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var served atomic.Int64
	s := startSite(t, func(http.ResponseWriter, *http.Request) {
		if served.Add(1) == 100 {
			cancel()
		}
	})
	g := s.generator("/")
	r, err := run(ctx, g.Config, names)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Interrupted || r.Requests < 50 || r.Requests > 100+g.Clients || r.Failed() > 0 {
		t.Errorf("after 100 requests: %+v", r)
	}
	var b strings.Builder
	if err := r.Table(&b); err != nil || !strings.Contains(b.String(), "interrupted") {
		t.Errorf("table (%v):\n%s", err, &b)
	}
}

// TestVisitorsComeAtTheRate needs no site: one whose name is lost after the first
// question answers nothing, and at once.
func TestVisitorsComeAtTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := false
		find := func(ctx context.Context, host string) ([]netip.Addr, error) {
			if !asked {
				asked = true
				return []netip.Addr{siteAddr}, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host}
		}
		var progress []Progress
		c := Config{
			URL: &url.URL{Scheme: "https", Host: "example.com"}, HTTP: 2,
			Rate: 100, Session: 10, Think: time.Second, Warm: 40 * time.Second, For: 100 * time.Second, Clients: 500,
			Progress: func(p Progress) { progress = append(progress, p) },
		}
		r, err := run(t.Context(), c, find)
		if err != nil {
			t.Fatal(err)
		}
		// Visitors of a geometric number of requests: the count scatters by about 4 %.
		if got := float64(r.Errors["DNS"]); math.Abs(got/10_000-1) > 0.15 || r.Failed() != r.Errors["DNS"] {
			t.Errorf("%v errors, want about 10000 for DNS", r.Errors)
		}
		if math.Abs(float64(r.Visitors)/1000-1) > 0.15 || r.Seconds != 100 {
			t.Errorf("%d visitors in %v s, want about 1000 in 100 s", r.Visitors, r.Seconds)
		}
		if n := len(progress); n < 139 || n > 140 || !progress[38].Warming || progress[41].Warming {
			t.Fatalf("%d lines of progress, want one a second and 40 of the warm-up", n)
		}
		if p := progress[100]; p.Errors < 30 || p.Errors > 300 || p.Clients < 40 || p.Clients > 200 {
			t.Errorf("in the second after 100 s: %v", p)
		}
	})
}

func TestSameSeedSameVisitors(t *testing.T) {
	draw := func(seed uint64) (times []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			first := true
			find := func(ctx context.Context, host string) ([]netip.Addr, error) {
				if first {
					first = false
					return []netip.Addr{siteAddr}, nil
				}
				times = append(times, time.Since(began))
				return nil, &net.DNSError{Err: "no such host", Name: host}
			}
			c := Config{
				URL: &url.URL{Scheme: "https", Host: "example.com"}, HTTP: 2,
				Rate: 20, Session: 4, Think: time.Second, For: 20 * time.Second, Clients: 100, Seed: seed,
			}
			if _, err := run(t.Context(), c, find); err != nil {
				t.Fatal(err)
			}
		})
		return times
	}
	one := draw(1)
	if again := draw(1); !slices.Equal(one, again) || len(one) < 100 {
		t.Errorf("%d and %d requests, want the same times", len(one), len(again))
	}
	if other := draw(2); slices.Equal(one, other) {
		t.Error("another seed gave the same times")
	}
}

func TestCheckReportsAll(t *testing.T) {
	c := Config{URL: &url.URL{Scheme: "http", Host: "example.com"}, Rate: math.NaN(), Think: -1, For: time.Hour}
	err := c.Check()
	if err == nil {
		t.Fatal("nonsense is accepted")
	}
	for _, want := range []string{"URL http://example.com", "rate NaN", "session 0", "think -1ns", "HTTP 0", "for 1h0m0s", "clients 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

func TestResultAsJSON(t *testing.T) {
	r := newRecorder(time.Now())
	r.add(outcome{took: 3 * time.Millisecond, status: 200, moved: true, hops: 1, node: "n2", address: nodeAddr})
	r.add(outcome{took: 5 * time.Millisecond, status: 503, address: siteAddr})
	r.add(outcome{kind: "timeout"})
	b, err := json.Marshal(r.result(Config{URL: &url.URL{Scheme: "https", Host: "example.com"}, For: time.Second}, time.Second, false))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"requests":2,"per_s":2,"errors":{"timeout":1},"status":{"2xx":1,"5xx":1},"redirected":50,"redirects":1`,
		`{"node":"n2","address":"127.0.0.2","requests":1,"share":50}`, `"max_ms":5`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in\n%s", want, b)
		}
	}
}
