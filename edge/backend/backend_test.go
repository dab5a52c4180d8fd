package backend

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// start runs h as a server and returns its URL.
func start(t testing.TB, h http.HandlerFunc) *url.URL {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return parse(t, s.URL)
}

// refusing returns the URL of a port where nobody listens.
func refusing(t testing.TB) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return parse(t, "http://"+l.Addr().String())
}

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// front serves a pool of servers over TLS, as the edge does.
func front(t testing.TB, servers ...*url.URL) (*Pool, *httptest.Server) {
	t.Helper()
	p := New(Config{Name: "app", Servers: servers, Log: slog.New(slog.DiscardHandler)})
	s := httptest.NewTLSServer(p)
	t.Cleanup(s.Close)
	t.Cleanup(p.wire.CloseIdleConnections)
	return p, s
}

func get(t testing.TB, s *httptest.Server, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func request(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, rd)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPoolTellsTheOriginWhoAsks(t *testing.T) {
	origin := start(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Alt-Svc", `h3=":1"`)
		fmt.Fprintf(w, "host=%s query=%s for=%s proto=%s xhost=%s forwarded=%q upgrade=%q agent=%q via=%q",
			r.Host, r.URL.RawQuery, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"),
			r.Header.Get("X-Forwarded-Host"), r.Header.Get("Forwarded"), r.Header.Get("Upgrade"), r.Header.Get("User-Agent"), r.Header["Via"])
	})
	_, s := front(t, origin)
	r := request(t, "GET", s.URL+"/a?a=1;b=2&c=%zz", "")
	r.Host = "www.example.com"
	r.Header.Set("X-Forwarded-For", "6.6.6.6")
	r.Header.Set("Forwarded", "for=6.6.6.6")
	r.Header.Set("Via", "1.0 other")
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "h2c")
	r.Header.Set("User-Agent", "")
	resp, body := get(t, s, r)
	want := `host=www.example.com query=a=1;b=2&c=%zz for=127.0.0.1 proto=https xhost=www.example.com forwarded="" upgrade="" agent="" via=["1.0 other" "1.1 peerage"]`
	if body != want {
		t.Errorf("the origin saw\n%s\nwant\n%s", body, want)
	}
	if got := resp.Header.Get("Alt-Svc"); got != "" {
		t.Errorf("Alt-Svc of the origin came through: %q", got)
	}
}

func TestPoolRetriesOnAnotherServer(t *testing.T) {
	var asked atomic.Int64
	good := start(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.Copy(w, r.Body)
	})
	dead := refusing(t)

	t.Run("GET is tried once more", func(t *testing.T) {
		for range 20 {
			_, s := front(t, dead, good)
			if resp, _ := get(t, s, request(t, "GET", s.URL, "")); resp.StatusCode != http.StatusOK {
				t.Fatalf("status = %s, want 200 from the server that answers", resp.Status)
			}
		}
	})
	t.Run("POST is not", func(t *testing.T) {
		failed := 0
		for range 40 {
			asked.Store(0)
			_, s := front(t, dead, good)
			resp, _ := get(t, s, request(t, "POST", s.URL, "pay"))
			if resp.StatusCode == http.StatusBadGateway {
				failed++
			} else if n := asked.Load(); n != 1 {
				t.Fatalf("the origin was asked %d times for one POST", n)
			}
		}
		if failed == 0 {
			t.Error("no POST met the dead server in 40 draws of two")
		}
	})
	t.Run("a server that refused is left alone", func(t *testing.T) {
		p, s := front(t, dead, good)
		for range 50 {
			get(t, s, request(t, "GET", s.URL, ""))
		}
		if st := p.Status(); st[0].Up || !st[1].Up {
			t.Errorf("status = %+v, want the first down and the second up", st)
		}
	})
}

func TestPoolAnswersWhenTheOriginDoesNot(t *testing.T) {
	_, s := front(t, refusing(t))
	resp, body := get(t, s, request(t, "GET", s.URL, ""))
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "Bad Gateway") {
		t.Errorf("only server refuses: %s %q, want 502", resp.Status, body)
	}
	cut := start(t, func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			c.Close()
		}
	})
	_, s = front(t, cut)
	if resp, _ := get(t, s, request(t, "GET", s.URL, "")); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("server closes without an answer: %s, want 502", resp.Status)
	}
}

func TestPoolPrefersTheLessBusy(t *testing.T) {
	release, arrived := make(chan struct{}), make(chan struct{})
	var one, two atomic.Int64
	hold := func(n *atomic.Int64) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			arrived <- struct{}{}
			<-release
		}
	}
	p, s := front(t, start(t, hold(&one)), start(t, hold(&two)))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { get(t, s, request(t, "GET", s.URL, "")) })
		<-arrived // the next draw sees this one
	}
	if a, b := one.Load(), two.Load(); a != 10 || b != 10 {
		t.Errorf("20 requests in progress: %d and %d, want 10 each", a, b)
	}
	close(release)
	wg.Wait()
	for _, st := range p.Status() {
		if st.InFlight != 0 {
			t.Errorf("after all ended: %+v, want none in flight", st)
		}
	}
}

func TestHealthRiseAndFall(t *testing.T) {
	p := New(Config{
		Name: "app", Servers: []*url.URL{parse(t, "http://127.0.0.1:1"), parse(t, "http://127.0.0.1:2")},
		Health: &Health{Rise: 2, Fall: 3}, Log: slog.New(slog.DiscardHandler),
	})
	s, bad := p.servers[0], errors.New("health check answered 500")
	for i, step := range []struct {
		err  error
		want bool
	}{
		{bad, true},
		{bad, true},
		{nil, true}, // a run ends with one good check
		{bad, true},
		{bad, true},
		{bad, false},
		{nil, false},
		{bad, false},
		{nil, false},
		{nil, true},
	} {
		p.judge(s, step.err)
		if got := s.usable(time.Now()); got != step.want {
			t.Fatalf("step %d (%v): usable = %v, want %v", i, step.err, got, step.want)
		}
	}
	for range 3 {
		p.judge(p.servers[0], bad)
		p.judge(p.servers[1], bad)
	}
	if p.pick(nil) == nil {
		t.Error("all servers judged down: none is picked, want one all the same")
	}
}

func TestActiveChecksTakeAServerOutAndBringItBack(t *testing.T) {
	var sick atomic.Bool
	checked := make(chan bool)
	origin := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			return
		}
		was := sick.Load()
		if was {
			w.WriteHeader(http.StatusInternalServerError)
		}
		select {
		case checked <- was:
		case <-r.Context().Done():
		}
	})
	p := New(Config{
		Name: "app", Servers: []*url.URL{origin}, Log: slog.New(slog.DiscardHandler),
		Health: &Health{Path: "/healthz", Every: time.Millisecond, Timeout: 5 * time.Second, Rise: 1, Fall: 1},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	until := func(want bool) {
		t.Helper()
		// A check that has begun after the change has been judged when the next begins.
		for n := 0; n < 2; {
			if <-checked == sick.Load() {
				n++
			}
		}
		if got := p.Status()[0].Up; got != want {
			t.Errorf("up = %v, want %v", got, want)
		}
	}
	until(true)
	sick.Store(true)
	until(false)
	sick.Store(false)
	until(true)
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestPoolCarriesAWebSocket(t *testing.T) {
	origin := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			http.Error(w, "no upgrade", http.StatusBadRequest)
			return
		}
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(c, "echo %s", line)
	})
	p := New(Config{Name: "app", Servers: []*url.URL{origin}, Log: slog.New(slog.DiscardHandler)})
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v %v, want 101", resp, err)
	}
	fmt.Fprintf(c, "hello\n")
	if line, _ := r.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("through the tunnel came %q, want the echo", line)
	}
}

func BenchmarkPool(b *testing.B) {
	origin := start(b, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1024)) })
	p := New(Config{Name: "app", Servers: []*url.URL{origin}, Log: slog.New(slog.DiscardHandler)})
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
