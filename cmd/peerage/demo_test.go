package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/publicsuffix"

	"peerage/appliance/demo"
	"peerage/appliance/node"
)

const (
	host = "www.peerage.test"
	page = "https://" + host + ":8443"
)

// running is a demo that the test has started.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string
	roots  *x509.CertPool
	stderr bytes.Buffer
	ended  chan struct{}

	mu     sync.Mutex
	events []demo.Event
	more   chan struct{} // closed and replaced at each event
}

func startDemo(t *testing.T, args ...string) *running {
	t.Helper()
	d := &running{t: t, dir: t.TempDir(), more: make(chan struct{}), ended: make(chan struct{})}
	d.cmd = exec.Command(binary, append([]string{"demo", "--json", "--dir", d.dir}, args...)...)
	d.cmd.Stderr = &d.stderr
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.ended)
		dec := json.NewDecoder(bufio.NewReader(out))
		for {
			var e demo.Event
			if dec.Decode(&e) != nil {
				return
			}
			d.mu.Lock()
			d.events = append(d.events, e)
			close(d.more)
			d.more = make(chan struct{})
			d.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			d.cmd.Process.Signal(syscall.SIGTERM)
			<-d.ended
			d.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("standard error:\n%s", d.stderr.String())
			for _, e := range d.events {
				t.Logf("%s %s %s %v", e.Time.Format("05.000"), e.Node, e.Event, e.Attrs)
			}
		}
	})
	ready := d.await(0, "ready", func(e demo.Event) bool { return e.Event == "ready" })
	if ready.Attrs["dir"] != d.dir {
		t.Errorf("ready says dir = %v, want %s", ready.Attrs["dir"], d.dir)
	}
	pem, err := os.ReadFile(filepath.Join(d.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	d.roots = x509.NewCertPool()
	if !d.roots.AppendCertsFromPEM(pem) {
		t.Fatal("ca.pem holds no certificate")
	}
	return d
}

// mark returns the number of events so far.
func (d *running) mark() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.events)
}

// await returns the first event from mark on that fits.
func (d *running) await(mark int, what string, fits func(demo.Event) bool) demo.Event {
	d.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		d.mu.Lock()
		for _, e := range d.events[mark:] {
			if fits(e) {
				d.mu.Unlock()
				return e
			}
		}
		mark = len(d.events)
		more := d.more
		d.mu.Unlock()
		select {
		case <-more:
		case <-d.ended:
			d.t.Fatalf("the demo ended while waiting for: %s\n%s", what, d.stderr.String())
		case <-timeout:
			d.t.Fatalf("no such event within 30 s: %s", what)
		}
	}
}

// client returns an HTTP client that finds the host at addr, follows no redirect, and
// speaks the wanted version (1 or 2).
func (d *running) client(addr string, version int) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetHTTP2(version == 2)
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, net.JoinHostPort(addr, "8443"))
		},
		TLSClientConfig:     &tls.Config{RootCAs: d.roots},
		Protocols:           protocols,
		MaxIdleConnsPerHost: 64,
	}
	d.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 40 * time.Second, CheckRedirect: noRedirect}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// jar returns cookies as a browser keeps them.
func jar(t *testing.T) http.CookieJar {
	j, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// fetch returns status, the header and the whole body.
func fetch(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(r)
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

func (d *running) get(c *http.Client, url string) (*http.Response, string) {
	d.t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return fetch(d.t, c, r)
}

// status asks the named node.
func (d *running) status(name string) *node.Status {
	d.t.Helper()
	out, err := exec.Command(binary, "status", "--json", "--dir", filepath.Join(d.dir, name)).Output()
	if err != nil {
		d.t.Fatalf("peerage status of %s: %v", name, err)
	}
	var st node.Status
	if err := json.Unmarshal(out, &st); err != nil {
		d.t.Fatal(err)
	}
	return &st
}

// eventually asks until the answer is good or a minute is over.
func eventually(t testing.TB, what string, good func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !good() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within a minute: %s", what)
		case <-tick.C:
		}
	}
}

// sh runs a line that the demo printed, as a person would.
func sh(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", line)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", line, err, stderr.String())
	}
	return string(out)
}

// TestDemo is the first issue's acceptance from outside: a real site of real processes,
// real clients, and a node that is killed and comes back.
func TestDemo(t *testing.T) {
	d := startDemo(t)
	ready := d.await(0, "ready", func(e demo.Event) bool { return e.Event == "ready" })
	try := ready.Attrs["try"].([]any)

	t.Run("the printed lines work as they stand", func(t *testing.T) {
		curl := try[0].(string)
		for flag, version := range map[string]string{"--http1.1": "1.1", "--http2": "2"} {
			if out := sh(t, curl+" -sS -o /dev/null -w '%{http_code} %{http_version}' "+flag); out != "200 "+version {
				t.Errorf("%s %s: %q, want 200 over HTTP/%s", curl, flag, out, version)
			}
		}
		first := map[string]bool{}
		for range 3 {
			out := strings.Fields(sh(t, try[1].(string)))
			if len(out) != 3 {
				t.Fatalf("%s: %q, want three addresses", try[1], out)
			}
			first[out[0]] = true
		}
		if len(first) != 3 {
			t.Errorf("three answers began with %v, want each address once", first)
		}
		if out := sh(t, try[2].(string)); !strings.Contains(out, "127.0.0.23") {
			t.Errorf("status:\n%s\nwant all VIPs", out)
		}
	})

	t.Run("HTTP/3", func(t *testing.T) {
		tr := &http3.Transport{
			TLSClientConfig: &tls.Config{RootCAs: d.roots},
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, "127.0.0.22:8443", tc, qc)
			},
		}
		defer tr.Close()
		resp, body := d.get(&http.Client{Transport: tr, Timeout: 20 * time.Second}, page+"/static/style.css")
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 3 || len(body) == 0 {
			t.Errorf("GET over HTTP/3: %s %s, %d octets", resp.Status, resp.Proto, len(body))
		}
		resp, _ = d.get(d.client("127.0.0.21", 2), page+"/static/style.css")
		if got := resp.Header.Get("Alt-Svc"); !strings.Contains(got, `h3=":8443"`) {
			t.Errorf("Alt-Svc over HTTP/2 = %q, want an offer of HTTP/3", got)
		}
	})

	t.Run("what is not ours is refused", func(t *testing.T) {
		c := d.client("127.0.0.21", 1)
		for _, test := range []struct {
			host, target string
			want         int
		}{
			{"evil.example", "/", http.StatusMisdirectedRequest},
			{"n2." + host, "/", http.StatusMisdirectedRequest}, // an on-line peer's own name
			{"a,b", "/", http.StatusBadRequest},
			{host, "/banking/%2e%2e/%2e%2e/x", http.StatusBadRequest},
			{host, "/a%2fb", http.StatusBadRequest},
			{"n1." + host, "/static/style.css", http.StatusOK},
			{"127.0.0.21", "/static/style.css", http.StatusOK},
		} {
			r := &http.Request{
				Method: "GET", Host: test.host, Header: http.Header{},
				URL: &url.URL{Scheme: "https", Host: host + ":8443", Opaque: test.target}, // sent as it stands
			}
			resp, body := fetch(t, c, r)
			if resp.StatusCode != test.want {
				t.Errorf("Host %s, target %s: %s %q, want %d", test.host, test.target, resp.Status, body, test.want)
			}
		}
		plain, err := http.NewRequest("GET", "http://127.0.0.21:8080/banking/?a=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		plain.Host = host + ":8080"
		resp, _ := fetch(t, &http.Client{CheckRedirect: noRedirect}, plain)
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusPermanentRedirect || got != page+"/banking/?a=1" {
			t.Errorf("over HTTP: %s to %q, want 308 to the same over HTTPS", resp.Status, got)
		}
	})

	t.Run("noise changes nothing", func(t *testing.T) {
		before := d.mark()
		rnd := rand.New(rand.NewPCG(1, 2))
		for _, to := range []string{"127.0.0.11:7947", "127.0.0.11:8053", "127.0.0.11:8443", "127.0.0.21:8443"} {
			c, err := net.Dial("udp", to)
			if err != nil {
				t.Fatal(err)
			}
			for range 300 {
				b := make([]byte, rnd.IntN(1400))
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
				c.Write(b) // a refused datagram is as good as an ignored one
			}
			c.Close()
		}
		for _, to := range []string{"127.0.0.11:8443", "127.0.0.11:8053", "127.0.0.11:8080", "127.0.0.11:7948"} {
			for range 20 {
				c, err := net.Dial("tcp", to)
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 1+rnd.IntN(600))
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
				c.Write(b)
				c.Close()
			}
		}
		eventually(t, "the reports' refusals are counted", func() bool { return d.status("n1").Guard.Reports.Refused() >= 250 })
		if resp, _ := d.get(d.client("127.0.0.21", 2), page+"/static/style.css"); resp.StatusCode != http.StatusOK {
			t.Errorf("after the noise: %s", resp.Status)
		}
		for _, e := range d.events[before:] {
			t.Errorf("the noise made an event: %+v", e)
		}
	})

	t.Run("a loaded node redirects, a pinned client stays", func(t *testing.T) {
		c := d.client("127.0.0.21", 1)
		c.Jar = jar(t)
		resp, _ := d.get(c, page+"/banking/")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Bank") != "n1" {
			t.Fatalf("entry: %s by bank %q, want 200 by n1", resp.Status, resp.Header.Get("X-Bank"))
		}
		ctx, stop := context.WithCancel(t.Context())
		var slow sync.WaitGroup
		loader := d.client("127.0.0.21", 2)
		for range 40 {
			slow.Go(func() {
				// A fetch of a script cannot be redirected: the load stays where it is put.
				r, _ := http.NewRequestWithContext(ctx, "GET", page+"/slow?for=30s", nil)
				r.Header.Set("Sec-Fetch-Mode", "cors")
				if resp, err := loader.Do(r); err == nil {
					resp.Body.Close()
				}
			})
		}
		eventually(t, "n1 is loaded beyond L1 by far", func() bool { return d.status("n1").View.Node("n1").Load > 150 })

		fresh := d.client("127.0.0.21", 2)
		for range 10 {
			resp, _ := d.get(fresh, page+"/a%20page?q=1")
			loc, err := resp.Location()
			if resp.StatusCode != http.StatusTemporaryRedirect || err != nil {
				t.Fatalf("new request at the loaded n1: %s %v, want 307", resp.Status, err)
			}
			if name, rest, _ := strings.Cut(loc.String(), "."); name != "https://n2" && name != "https://n3" || rest != host+":8443/a%20page?q=1" {
				t.Fatalf("Location = %s, want the same target at n2 or n3", loc)
			}
			if cc := resp.Header.Get("Cache-Control"); cc != "no-store" {
				t.Errorf("Cache-Control of the redirect = %q, want no-store", cc)
			}
			peer := map[string]string{"n2": "127.0.0.22", "n3": "127.0.0.23"}[loc.Host[:2]]
			if resp, _ := d.get(d.client(peer, 2), "https://"+loc.Host+"/"); resp.StatusCode != http.StatusOK {
				t.Errorf("at the peer: %s, want 200", resp.Status)
			}
		}
		for _, path := range []string{"/banking/account", "/banking/", "/banking/account"} {
			if resp, _ := d.get(c, page+path); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Bank") != "n1" {
				t.Errorf("pinned %s: %s by %q, want 200 by n1", path, resp.Status, resp.Header.Get("X-Bank"))
			}
		}
		if resp, _ := d.get(c, page+"/banking/logout"); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Bank") != "n1" {
			t.Errorf("logout: %s by %q, want 200 by n1", resp.Status, resp.Header.Get("X-Bank"))
		}
		if resp, _ := d.get(c, page+"/banking/"); resp.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("entry after logout: %s, want 307: the pin has ended", resp.Status)
		}
		stop()
		slow.Wait()
		eventually(t, "n1 is light again", func() bool { return d.status("n1").View.Node("n1").Load < 20 })
	})

	t.Run("a pinned request at the wrong node is handed to the right one", func(t *testing.T) {
		cookies := jar(t)
		n1, n2 := d.client("127.0.0.21", 2), d.client("127.0.0.22", 2)
		n1.Jar, n2.Jar = cookies, cookies
		if resp, _ := d.get(n1, page+"/banking/"); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		resp, _ := d.get(n2, page+"/banking/account")
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusTemporaryRedirect || got != "https://n1."+host+":8443/banking/account" {
			t.Errorf("GET at n2: %s to %q, want 307 to n1", resp.Status, got)
		}
		r, err := http.NewRequest("POST", page+"/banking/transfer", strings.NewReader("amount=10&to=alice"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, body := fetch(t, n2, r)
		if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("X-Bank") != "n1" {
			t.Errorf("POST at n2: %s by %q, want the bank of n1 to take it\n%s", resp.Status, resp.Header.Get("X-Bank"), body)
		}
		if got := d.status("n2").Requests.Actions["relay"]; got != 1 {
			t.Errorf("n2 counted %d relays, want 1", got)
		}
		if got := d.status("n1").Requests.Protocols["relay"]; got != 1 {
			t.Errorf("n1 counted %d requests by relay, want 1", got)
		}
	})

	t.Run("a killed node is stood in for, and gets its VIP back", func(t *testing.T) {
		vip := netip.MustParseAddr("127.0.0.22")
		mark := d.mark()
		killed := d.status("n2")
		if err := syscall.Kill(killed.Guard.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took := d.await(mark, "a peer claims the VIP of n2", func(e demo.Event) bool {
			return e.Event == "vip claimed" && e.Node != "n2" && e.Attrs["vip"] == vip.String()
		})
		gone := d.await(mark, "the demo tells how n2 ended", func(e demo.Event) bool { return e.Event == "node ended" && e.Node == "n2" })
		eventually(t, "the VIP answers", func() bool {
			resp, err := d.client(vip.String(), 2).Get(page + "/static/style.css")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		if resp, _ := d.get(d.client(vip.String(), 1), "https://n2."+host+":8443/whoami"); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Bank") != took.Node {
			t.Errorf("n2's own name at its VIP: %s by %q, want 200 by %s", resp.Status, resp.Header.Get("X-Bank"), took.Node)
		}
		eventually(t, "DNS gives the three addresses", func() bool {
			return len(strings.Fields(sh(t, try[1].(string)))) == 3
		})
		st := d.status("n1")
		if n := st.View.Node("n2"); n.Online {
			t.Errorf("n1 still sees n2 on-line: %+v", n)
		}
		if i := slices.IndexFunc(st.VIPs, func(v node.VIP) bool { return v.Address == vip }); string(st.VIPs[i].Holder) != took.Node {
			t.Errorf("status: %+v, want it held by %s", st.VIPs[i], took.Node)
		}

		mark = d.mark()
		restart := exec.Command("bash", "-c", "exec "+gone.Attrs["restart"].(string))
		var log bytes.Buffer
		restart.Stderr = &log
		if err := restart.Start(); err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		go func() { over <- restart.Wait() }()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("log of the restarted n2:\n%s", log.String())
			}
		})
		d.await(mark, "the stand-in lets go", func(e demo.Event) bool {
			return e.Event == "vip released" && e.Node == took.Node && e.Attrs["vip"] == vip.String()
		})
		eventually(t, "n2 has its VIP back", func() bool {
			st := d.status("n1")
			return st.View.Node("n2").Holds(vip) && slices.Contains(d.status("n2").Listening, vip)
		})
		resp, _ := d.get(d.client(vip.String(), 2), page+"/whoami")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Bank") != "n2" {
			t.Errorf("at its VIP: %s by %q, want 200 by n2", resp.Status, resp.Header.Get("X-Bank"))
		}

		// The end of the demo ends the node that was started by hand as well.
		d.cmd.Process.Signal(syscall.SIGINT)
		<-d.ended
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("demo after Ctrl-C: %v, want exit status 0\n%s", err, d.stderr.String())
		}
		if err := <-over; err != nil {
			t.Errorf("the restarted n2: %v, want exit status 0\n%s", err, log.String())
		}
		for _, pid := range []int{killed.ServerPID, st.ServerPID, st.Guard.PID} {
			if err := syscall.Kill(pid, 0); err == nil {
				t.Errorf("process %d is still there", pid)
			}
		}
	})
}

func TestDemoEndsByItselfAndRemovesItsFiles(t *testing.T) {
	out, err := exec.Command(binary, "demo", "--nodes", "1", "--for", "1ms").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, rest, ok := strings.Cut(string(out), "--cacert ")
	if !ok {
		t.Fatalf("no curl line in\n%s", out)
	}
	ca, _, _ := strings.Cut(rest, " ")
	if _, err := os.Stat(filepath.Dir(ca)); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", filepath.Dir(ca), err)
	}
}

func TestServerThatDiesIsReplaced(t *testing.T) {
	d := startDemo(t, "--nodes", "2")
	st := d.status("n1")
	mark := d.mark()
	if err := syscall.Kill(st.ServerPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.await(mark, "n2 takes the VIP", func(e demo.Event) bool {
		return e.Event == "vip claimed" && e.Node == "n2" && e.Attrs["vip"] == "127.0.0.21"
	})
	d.await(mark, "n1 has it back", func(e demo.Event) bool {
		return e.Event == "vip claimed" && e.Node == "n1" && e.Attrs["vip"] == "127.0.0.21"
	})
	eventually(t, "n1 serves again", func() bool {
		resp, err := d.client("127.0.0.21", 2).Get(page + "/static/style.css")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func TestDemoTellsWhatIsInTheWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.11:8443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := exec.Command(binary, "demo", "--for", "1s").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "127.0.0.11:8443") || !strings.Contains(string(out), "another demo") {
		t.Errorf("demo on a busy port: %v\n%s\nwant exit 1, the port and a hint", err, out)
	}
}
