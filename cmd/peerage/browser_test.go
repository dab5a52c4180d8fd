package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// lighter is where a redirect away from n1 leads.
var lighter = regexp.MustCompile(`^https://(n[23])\.www\.peerage\.test:8443/`)

// fetched is a request of a script: status, whether it was redirected, by whose bank it
// was answered, whether with a body.
const fetched = `fetch('/whoami').then(async r => [r.status, r.redirected, r.headers.get('X-Bank'), (await r.text()).length > 0].join())`

// TestChromium is the site as Chromium sees it, and Chromium as the nodes see it.
func TestChromium(t *testing.T) {
	d := startDemo(t)

	t.Run("a loaded node sends navigations away, and nothing else", func(t *testing.T) {
		b := d.chromium(t, "127.0.0.21")
		if at := b.open(page + "/"); at.URL != page+"/" || at.Protocol != "h2" || b.node() != "n1" {
			t.Fatalf("while n1 is light: %s over %s by %s, want %s/ over h2 by n1", at.URL, at.Protocol, b.node(), page)
		}
		defer d.busy(t)()
		if got := evaluate[string](b, fetched); got != "200,false,n1,true" {
			t.Errorf("fetch = %s, want 200, not redirected, by n1, with a body", got)
		}
		const asked = `new Promise(done => { const x = new XMLHttpRequest(); x.open('POST', '/whoami'); x.onloadend = () => done(x.status + ' ' + x.responseURL); x.send('a=1') })`
		if got := evaluate[string](b, asked); got != "405 "+page+"/whoami" {
			t.Errorf("XHR with a body = %s, want the bank's own 405", got)
		}

		at := b.open(page + "/?a=1")
		to := lighter.FindStringSubmatch(at.URL)
		if to == nil || !strings.HasSuffix(at.URL, ":8443/?a=1") {
			t.Fatalf("navigation at the loaded n1 ended at %s, want the same page of n2 or n3; n1 says %s", at.URL, d.last(t, "n1", "/"))
		}
		if got := b.node(); got != to[1] {
			t.Errorf("%s was answered by %s", at.URL, got)
		}
		if !evaluate[bool](b, `document.querySelector('img').naturalWidth > 0 && getComputedStyle(document.body).maxWidth != 'none'`) {
			t.Error("the page at the peer came without its image or its style")
		}
		if got := b.follow(`a[href="/whoami"]`); got.URL != to[0]+"whoami" {
			t.Errorf("a link of the page led to %s, want the same node", got.URL)
		}
		d.logged(t, "n1", request{Host: host, Path: "/", Proto: "h2", Status: 307, Decision: "redirect", Peer: to[1]})
		d.logged(t, "n1", request{Host: host, Path: "/whoami", Proto: "h2", Status: 200, Decision: "here"})
		d.logged(t, to[1], request{Host: to[1] + "." + host, Path: "/static/site.svg", Proto: "h2", Status: 200, Decision: "here"})
	})

	t.Run("a session stays where it began, until it is over", func(t *testing.T) {
		b := d.chromium(t, "127.0.0.21")
		b.open(page + "/banking/")
		session := b.text("code")
		cookies := b.cookies()
		if len(cookies) != 2 {
			t.Errorf("the session has %d cookies, want the bank's and the pin", len(cookies))
		}
		for _, c := range cookies {
			if !c.Secure || !c.HTTPOnly || c.SameSite != network.CookieSameSiteLax || !c.Session || c.Path != "/banking" {
				t.Errorf("cookie %+v: want Secure, HttpOnly, SameSite=Lax, for /banking, and not kept", c)
			}
		}
		defer d.busy(t)()
		if at := b.pay("Ada", "12.50"); at.URL != page+"/banking/" || b.node() != "n1" {
			t.Errorf("after a transfer: %s by %s, want %s/banking/ by n1", at.URL, b.node(), page)
		}
		if got := b.text("main"); !strings.Contains(got, "€ 987.50") || !strings.Contains(got, "Ada") || !strings.Contains(got, session) {
			t.Errorf("after a transfer of 12.50 to Ada:\n%s", got)
		}
		if at := b.follow(`a[href="/banking/logout"]`); at.URL != page+"/banking/logout" || b.node() != "n1" {
			t.Errorf("logout: %s by %s, want it under %s by n1", at.URL, b.node(), page)
		}
		if left := b.cookies(); len(left) != 0 {
			t.Errorf("after logout there is still %+v", left[0])
		}
		if at := b.open(page + "/banking/"); !lighter.MatchString(at.URL) {
			t.Errorf("a new session began at %s, want it at a lighter node", at.URL)
		}
	})

	t.Run("a session that comes to another node is handed over", func(t *testing.T) {
		www := newSwitch(t, "127.0.0.29:8443", "127.0.0.21:8443")
		b := d.chromium(t, "127.0.0.29")
		b.open(page + "/banking/")
		session := b.text("code")

		www.to("127.0.0.22:8443") // as when the DNS gives another answer
		if at := b.open(page + "/banking/account"); at.URL != "https://n1."+host+":8443/banking/account" || b.node() != "n1" {
			t.Fatalf("navigation ended at %s by %s, want it under n1's own name", at.URL, b.node())
		}
		if at := b.pay("Ada", "1"); at.URL != "https://n1."+host+":8443/banking/" {
			t.Errorf("a transfer under n1's own name ended at %s", at.URL)
		}
		www.to("127.0.0.21:8443")
		b.open(page + "/banking/")
		www.to("127.0.0.22:8443")
		if at := b.pay("Grace", "1"); at.URL != "https://n1."+host+":8443/banking/" { // POST at n2, relayed; then 303 and 307
			t.Errorf("a transfer that came to n2 ended at %s, want it under n1's own name", at.URL)
		}
		if got := b.text("main"); !strings.Contains(got, session) || !strings.Contains(got, "€ 998.00") || !strings.Contains(got, "Grace") {
			t.Errorf("after transfers to Ada and Grace, session %s:\n%s", session, got)
		}
		d.logged(t, "n2", request{Host: host, Path: "/banking/account", Proto: "h2", Status: 307, Decision: "redirect", Peer: "n1"})
		d.logged(t, "n2", request{Host: host, Path: "/banking/transfer", Proto: "h2", Status: 303, Decision: "relay", Peer: "n1"})
		d.logged(t, "n1", request{Host: host, Path: "/banking/transfer", Proto: "relay", Status: 303, Decision: "here"})
	})

	t.Run("HTTP/3 is taken up", func(t *testing.T) {
		b := d.chromium(t, "127.0.0.22", quicWithOurCA)
		if at := b.open(page + "/"); at.Protocol != "h2" {
			t.Errorf("the first page came over %s, want h2", at.Protocol)
		}
		eventually(t, "the browser takes up the offer of h3", func() bool { return b.open(page+"/whoami").Protocol == "h3" })
		if at := b.open(page + "/"); at.Protocol != "h3" || at.RemoteIPAddress != "127.0.0.22" {
			t.Errorf("then a page came over %s from %s, want h3 from n2", at.Protocol, at.RemoteIPAddress)
		}
		d.logged(t, "n2", request{Host: host, Path: "/", Proto: "h3", Status: 200, Decision: "here"})
	})

	t.Run("the page that keeps a node busy does so", func(t *testing.T) {
		b := d.chromium(t, "127.0.0.21")
		evaluate[bool](b, `location = '`+page+`/busy', true`) // does not wait for the images
		eventually(t, "n1 is loaded by the page's images", func() bool { return d.status("n1").View.Node("n1").Load > 150 })
		if at := b.tab().open(page + "/"); !lighter.MatchString(at.URL) {
			t.Errorf("a newcomer in another tab ended at %s, want a lighter node", at.URL)
		}
	})

	t.Run("quiet steering leaves the address as it is", func(t *testing.T) {
		defer d.busy(t)()
		b := d.chromium(t, "127.0.0.21", quicWithOurCA)
		if at := b.open(page + "/quiet"); at.URL != page+"/quiet" || b.node() != "n1" {
			t.Fatalf("first visit: %s by %s, want %s/quiet by n1", at.URL, b.node(), page)
		}
		eventually(t, "a peer answers", func() bool {
			at := b.open(page + "/quiet")
			if at.URL != page+"/quiet" {
				t.Fatalf("the address has become %s", at.URL)
			}
			return b.node() != "n1"
		})
		d.logged(t, b.node(), request{Host: host, Path: "/quiet", Proto: "h3", Status: 200, Decision: "here"})
	})
}

// TestFirefox is the site as Firefox sees it, and Firefox as the nodes see it.
func TestFirefox(t *testing.T) {
	d := startDemo(t)

	t.Run("HTTP/3 is taken up, and a redirect is followed", func(t *testing.T) {
		f := d.firefox(t)
		const protocol = `performance.getEntriesByType('navigation')[0].nextHopProtocol`
		if at, over := f.open(page+"/"), f.evaluate(protocol); at != page+"/" || over != "h2" || f.node() != "n1" {
			t.Fatalf("first visit: %s over %s by %s, want %s/ over h2 by n1", at, over, f.node(), page)
		}
		eventually(t, "the browser takes up the offer of h3", func() bool {
			f.open(page + "/")
			return f.evaluate(protocol) == "h3"
		})
		d.logged(t, "n1", request{Host: host, Path: "/", Proto: "h3", Status: 200, Decision: "here"})

		defer d.busy(t)()
		if got := f.evaluate(fetched); got != "200,false,n1,true" {
			t.Errorf("fetch = %s, want 200, not redirected, by n1, with a body", got)
		}
		at := f.open(page + "/?a=1")
		to := lighter.FindStringSubmatch(at)
		if to == nil || f.node() != to[1] {
			t.Fatalf("navigation at the loaded n1 ended at %s by %s, want n2 or n3 under its own name; n1 says %s", at, f.node(), d.last(t, "n1", "/"))
		}
		d.logged(t, "n1", request{Host: host, Path: "/", Proto: "h3", Status: 307, Decision: "redirect", Peer: to[1]})
	})

	t.Run("quiet steering leaves the address as it is", func(t *testing.T) {
		defer d.busy(t)()
		f := d.firefox(t)
		if at := f.open(page + "/quiet"); at != page+"/quiet" || f.node() != "n1" {
			t.Fatalf("first visit: %s by %s, want %s/quiet by n1", at, f.node(), page)
		}
		eventually(t, "a peer answers", func() bool {
			if at := f.open(page + "/quiet"); at != page+"/quiet" {
				t.Fatalf("the address has become %s", at)
			}
			return f.node() != "n1"
		})
		d.logged(t, f.node(), request{Host: host, Path: "/quiet", Proto: "h3", Status: 200, Decision: "here"})
	})
}

// request is what the access log tells of one.
type request struct {
	Proto    string `json:"proto"`
	Host     string `json:"host"`
	Path     string `json:"path"`
	Status   int    `json:"status"`
	Decision string `json:"decision"`
	Peer     string `json:"peer"`
}

// logged waits until the access log of the named node tells of such a request: a line is
// written when the answer has been, which the browser may have read already.
func (d *running) logged(t *testing.T, name string, want request) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has served %+v", name, want), func() bool {
		f, err := os.Open(filepath.Join(d.dir, name, "access.log"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for dec := json.NewDecoder(f); ; {
			var r request
			if dec.Decode(&r) != nil {
				return false
			}
			if r == want {
				return true
			}
		}
	})
}

// last returns the latest line in the access log of the named node that is about path, to
// tell why a test has failed.
func (d *running) last(t *testing.T, name, path string) (line string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, `"path":"`+path+`"`) {
			line = l
		}
	}
	return line
}

// busy keeps n1 loaded far beyond L1 until stop is called. It fetches as a script does,
// which cannot be redirected, so the load stays where it is put.
func (d *running) busy(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	c := d.client("127.0.0.21", 2)
	for range 40 {
		slow.Go(func() {
			for {
				r, _ := http.NewRequestWithContext(ctx, "GET", page+"/slow?for=30s", nil)
				r.Header.Set("Sec-Fetch-Mode", "cors")
				resp, err := c.Do(r)
				if err != nil {
					return
				}
				resp.Body.Close()
			}
		})
	}
	load := func() float64 { return float64(d.status("n1").View.Node("n1").Load) }
	eventually(t, "n1 is loaded beyond L1 by far", func() bool { return load() > 150 })
	return func() {
		cancel()
		slow.Wait()
		eventually(t, "n1 is light again", func() bool { return load() < 20 })
	}
}

// chromium is one tab of a Chromium that trusts the demo's CA.
type chromium struct {
	t   *testing.T
	ctx context.Context
}

// quicWithOurCA lets Chromium use HTTP/3 under a CA that it did not come with. It asks
// for QUIC at another port, lest the tests' requests begin with it.
var quicWithOurCA = chromedp.Flag("origin-to-force-quic-on", host+":9,n1."+host+":9,n2."+host+":9,n3."+host+":9")

// chromium starts one that finds the site at the address www, and each node's own name
// at the node's VIP.
func (d *running) chromium(t *testing.T, www string, flags ...chromedp.ExecAllocatorOption) *chromium {
	t.Helper()
	home := t.TempDir()
	d.trusted(t, filepath.Join(home, ".pki", "nssdb"))
	options := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath(installed(t, "chromium")),
		chromedp.Env("HOME=" + home),
		chromedp.UserDataDir(filepath.Join(home, "profile")),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("password-store", "basic"),
		chromedp.Flag("host-resolver-rules", fmt.Sprintf(
			"MAP %[1]s %[2]s, MAP n1.%[1]s 127.0.0.21, MAP n2.%[1]s 127.0.0.22, MAP n3.%[1]s 127.0.0.23", host, www)),
	}, flags...)
	allocator, ended := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(ended)
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(cancel)
	b := &chromium{t, ctx}
	if err := chromedp.Do(ctx); err != nil { // starts it; its life must not hang on a shorter context
		t.Fatalf("start chromium: %v", err)
	}
	return b
}

// tab returns another tab of the same browser.
func (b *chromium) tab() *chromium {
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	return &chromium{b.t, ctx}
}

// visit does what leads to another page, and returns the answer that the page came in.
func (b *chromium) visit(what ...chromedp.Action[chromedp.Void]) *network.Response {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	resp, err := chromedp.RunResponse(ctx, what...)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

// open goes to url as if it had been typed.
func (b *chromium) open(url string) *network.Response {
	b.t.Helper()
	return b.visit(chromedp.Navigate(url))
}

// follow clicks on a link.
func (b *chromium) follow(selector string) *network.Response {
	b.t.Helper()
	return b.visit(chromedp.Click(chromedp.CSS(selector)))
}

// pay fills in and sends the bank's form.
func (b *chromium) pay(to, amount string) *network.Response {
	b.t.Helper()
	return b.visit(
		chromedp.SendKeys(chromedp.CSS("#to"), to),
		chromedp.SendKeys(chromedp.CSS("#amount"), amount),
		chromedp.Click(chromedp.CSS("form button")))
}

func (b *chromium) text(selector string) string {
	b.t.Helper()
	return do(b, chromedp.Text(chromedp.CSS(selector)))
}

// node returns whose bank has made the page.
func (b *chromium) node() string {
	b.t.Helper()
	return b.text("#node")
}

func (b *chromium) cookies() []*network.Cookie {
	b.t.Helper()
	return do(b, func(ctx context.Context, _ *chromedp.Target) ([]*network.Cookie, error) {
		r, err := chromedp.Call(ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{page + "/banking/"}})
		return r.Cookies, err
	})
}

// evaluate returns what an expression, or its promise, comes to in the page.
func evaluate[T any](b *chromium, expression string) T {
	b.t.Helper()
	return do(b, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

func do[T any](b *chromium, what chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	v, err := chromedp.Run(ctx, what)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// firefox is a Firefox that trusts the demo's CA. The test drives it by Marionette, the
// protocol it brings along: JSON with its length in front, over TCP.
type firefox struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	sent int
}

// firefoxPrefs let it use HTTP/3 under a CA that it did not come with, and keep it from
// looking for the world outside.
const firefoxPrefs = `
user_pref("network.http.http3.disable_when_third_party_roots_found", false);
user_pref("network.trr.mode", 5);
user_pref("network.manage-offline-status", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
`

// firefox starts one that finds the site at n1, and each node's own name at its VIP. It
// cannot be told addresses, so it gets a hosts file, in a mount namespace of its own.
func (d *running) firefox(t *testing.T) *firefox {
	t.Helper()
	home := t.TempDir()
	profile, hosts := filepath.Join(home, "profile"), filepath.Join(home, "hosts")
	d.trusted(t, profile)
	for path, text := range map[string]string{
		filepath.Join(profile, "user.js"): firefoxPrefs,
		hosts:                             fmt.Sprintf("127.0.0.1 localhost\n127.0.0.21 %[1]s n1.%[1]s\n127.0.0.22 n2.%[1]s\n127.0.0.23 n3.%[1]s\n", host),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stderr bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts,
		installed(t, "firefox-esr"), "--headless", "--no-remote", "--marionette", "--profile", profile)
	cmd.Env = append(os.Environ(), "HOME="+home)
	cmd.Stderr = &stderr
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // whose end Pdeathsig waits for
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		cmd.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	f := &firefox{t: t}
	t.Cleanup(func() {
		if f.conn != nil {
			f.conn.Close()
		}
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("firefox: %s", stderr.String())
		}
	})
	eventually(t, "firefox listens for the test", func() bool {
		var err error
		f.conn, err = net.Dial("tcp", "127.0.0.1:2828")
		return err == nil
	})
	f.r = bufio.NewReader(f.conn)
	f.read() // its greeting
	f.do("WebDriver:NewSession", map[string]any{"acceptInsecureCerts": false})
	return f
}

// read returns the next message.
func (f *firefox) read() []byte {
	f.t.Helper()
	f.conn.SetReadDeadline(time.Now().Add(time.Minute))
	length, err := f.r.ReadString(':')
	if err != nil {
		f.t.Fatalf("firefox: %v", err)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil {
		f.t.Fatalf("firefox: %v", err)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(f.r, b); err != nil {
		f.t.Fatalf("firefox: %v", err)
	}
	return b
}

// do sends a command and returns its value.
func (f *firefox) do(command string, parameters map[string]any) any {
	f.t.Helper()
	f.sent++
	b, err := json.Marshal([]any{0, f.sent, command, parameters})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(f.conn, "%d:%s", len(b), b); err != nil {
		f.t.Fatalf("firefox: %v", err)
	}
	var answer [4]any // 1, the number, an error, the result
	if err := json.Unmarshal(f.read(), &answer); err != nil {
		f.t.Fatalf("firefox: %v", err)
	}
	if answer[2] != nil {
		f.t.Fatalf("firefox: %s %v: %v", command, parameters, answer[2])
	}
	result, _ := answer[3].(map[string]any)
	return result["value"]
}

// open goes to url as if it had been typed, and returns where that led.
func (f *firefox) open(url string) string {
	f.t.Helper()
	f.do("WebDriver:Navigate", map[string]any{"url": url})
	return f.evaluate(`location.href`)
}

// evaluate returns what an expression, or its promise, comes to in the page.
func (f *firefox) evaluate(expression string) string {
	f.t.Helper()
	return fmt.Sprint(f.do("WebDriver:ExecuteScript", map[string]any{"script": "return " + expression, "args": []any{}}))
}

// node returns whose bank has made the page.
func (f *firefox) node() string {
	f.t.Helper()
	return f.evaluate(`document.querySelector('#node').textContent`)
}

// installed returns the path of a program that 'make browser' installs.
func installed(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%v: run 'make browser', which installs what the browser tests need", err)
	}
	return path
}

// trusted makes a certificate database, as both browsers use it, that trusts the demo's CA.
func (d *running) trusted(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	certutil := installed(t, "certutil")
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-n", "demo", "-t", "C,,", "-i", filepath.Join(d.dir, "ca.pem")},
	} {
		if out, err := exec.Command(certutil, append(args, "-d", "sql:"+dir)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %s: %v\n%s", args[0], err, out)
		}
	}
}

// switched is an address whose TCP connections lead to one node or another, as a name
// does whose DNS answer changes.
type switched struct {
	mu     sync.Mutex
	target string
	open   []net.Conn
}

func newSwitch(t *testing.T, addr, target string) *switched {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &switched{target: target}
	var accepting, carrying sync.WaitGroup
	accepting.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			node, err := s.connect(client)
			if err != nil {
				client.Close()
				continue
			}
			carrying.Go(func() { carry(node, client) })
			carrying.Go(func() { carry(client, node) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		accepting.Wait()
		s.to("")
		carrying.Wait()
	})
	return s
}

func (s *switched) connect(client net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, err := net.Dial("tcp", s.target)
	if err == nil {
		s.open = append(s.open, client, node)
	}
	return node, err
}

// carry copies until one of the two ends, and ends both.
func carry(to, from net.Conn) {
	io.Copy(to, from)
	to.Close()
	from.Close()
}

// to leads new connections to target and ends those there are.
func (s *switched) to(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = target
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}
