package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"peerage/appliance/node"
)

// changing is a site on loopback with clients that never pause.
type changing struct {
	*grown
	roots  *x509.CertPool
	origin string // of the back-ends
	other  string // does the same

	dials  atomic.Int64 // connections of clients that should need only one
	served atomic.Int64
	mu     sync.Mutex
	failed []string
}

// Nobody takes a busy machine for a silent node, or a sick one.
const changingRoutes = `balancing: {light: 1000, margin: 1000, measure: requests, offline_after: 10}
drain: {grace: 5s}
backends:
  app: {servers: [%[1]q], health: {path: /health, every: 1s}}
  bank: {servers: [%[1]q]}
routes:
  - path: /
    backend: app
  - path: /bank/
    backend: bank
    stateful: {entry: /bank/, exit: [/bank/done]}
`

func newChanging(t *testing.T) *changing {
	c := &changing{grown: newGrown(t), roots: x509.NewCertPool()}
	c.origin, c.other = c.startOrigin(), c.startOrigin()
	for _, name := range []string{"n2", "n3"} {
		c.join(name)
	}
	c.awaitWhole()
	c.roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(c.nodes[0].dir, "ca.pem"))))
	c.change("routes of its own", func(text string) string {
		var b strings.Builder
		keep := true
		for line := range strings.Lines(text) {
			if line[0] != ' ' && line[0] != '#' && line[0] != '\n' {
				keep = !slices.ContainsFunc([]string{"balancing:", "routes:", "backends:", "drain:"}, func(key string) bool { return strings.HasPrefix(line, key) })
			}
			if keep {
				b.WriteString(line)
			}
		}
		return b.String() + fmt.Sprintf(changingRoutes, c.origin)
	})
	return c
}

// startOrigin serves what routes carry on, and returns where.
func (c *changing) startOrigin() string {
	l, err := net.Listen("tcp", "127.0.2.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
				io.WriteString(w, "more\n")
				http.NewResponseController(w).Flush()
			}
		}
	})
	mux.HandleFunc("/two-seconds", func(w http.ResponseWriter, _ *http.Request) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range 40 {
			io.WriteString(w, "more\n")
			http.NewResponseController(w).Flush()
			<-tick.C
		}
	})
	mux.HandleFunc("/tunnel", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, rw)
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	c.t.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String()
}

// client finds the site at a VIP, and speaks the wanted version of HTTP. It counts the
// connections that it makes.
func (c *changing) client(vip string, version int) *http.Client {
	t, end := c.transport(vip, version, &c.dials)
	c.t.Cleanup(end)
	return &http.Client{Timeout: 10 * time.Second, CheckRedirect: noRedirect, Transport: t}
}

func (c *changing) transport(vip string, version int, dials *atomic.Int64) (http.RoundTripper, func()) {
	tc := &tls.Config{RootCAs: c.roots}
	at := net.JoinHostPort(vip, "8443")
	if version == 3 {
		t := &http3.Transport{TLSClientConfig: tc, Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
			dials.Add(1)
			return quic.DialAddr(ctx, at, tc, qc)
		}}
		return t, func() { t.Close() }
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetHTTP2(version == 2)
	t := &http.Transport{TLSClientConfig: tc, Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", at)
	}}
	return t, t.CloseIdleConnections
}

func (c *changing) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failed) < 20 {
		c.failed = append(c.failed, fmt.Sprintf(format, args...))
	}
}

const grownURL = "https://" + grownHost + ":8443"

// ask asks one thing after another, over one connection if that is let be.
func (c *changing) ask(ctx context.Context, name string, client *http.Client) {
	for ctx.Err() == nil && c.once(name, client) {
		pause(ctx, 5*time.Millisecond)
	}
}

// askAnew asks one thing after another, each over a connection of its own.
func (c *changing) askAnew(ctx context.Context, name, vip string, version int) {
	for good := true; good && ctx.Err() == nil; pause(ctx, 100*time.Millisecond) {
		t, end := c.transport(vip, version, new(atomic.Int64))
		good = c.once(name+", anew", &http.Client{Timeout: 10 * time.Second, CheckRedirect: noRedirect, Transport: t})
		end()
	}
}

func (c *changing) once(name string, client *http.Client) bool {
	resp, err := client.Get(grownURL + "/page")
	if err != nil {
		c.fail("%s: %v", name, err)
		return false
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || string(b) != "ok\n" {
		c.fail("%s: %s, %q, %v", name, resp.Status, b, err)
		return false
	}
	c.served.Add(1)
	return true
}

// stay asks, pinned to n1, at n1 and at another node.
func (c *changing) stay(ctx context.Context, pin *http.Cookie) {
	own, other := c.client(c.vip(c.nodes[0]), 2), c.client(c.vip(c.nodes[1]), 2)
	for ctx.Err() == nil {
		resp, err := c.pinned(own, "/bank/account", pin)
		if err != nil || resp.StatusCode != http.StatusOK {
			c.fail("pinned to n1, at n1: %v, %v", resp, err)
			return
		}
		if i := slices.IndexFunc(resp.Cookies(), func(k *http.Cookie) bool { return k.Name != pin.Name }); i >= 0 {
			c.fail("pinned to n1 by %s, and given %s", pin.Name, resp.Cookies()[i].Name)
		}
		resp, err = c.pinned(other, "/bank/account", pin)
		if err != nil || resp.StatusCode != http.StatusTemporaryRedirect || !strings.HasPrefix(resp.Header.Get("Location"), "https://n1.") {
			c.fail("pinned to n1, at n2: %v, %v", resp, err)
			return
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// read reads an answer without an end.
func (c *changing) read(ctx context.Context, client *http.Client) {
	client.Timeout = 0
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, grownURL+"/stream", nil)
	if err != nil {
		c.fail("stream: %v", err)
		return
	}
	resp, err := client.Do(r)
	if err != nil {
		c.fail("stream: %v", err)
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
	}
	if ctx.Err() == nil {
		c.fail("stream: ended by the server: %v", lines.Err())
	}
}

// tunnel sends through a tunnel and awaits the echo.
func (c *changing) tunnel(ctx context.Context, vip string) {
	conn, err := tls.Dial("tcp", net.JoinHostPort(vip, "8443"), &tls.Config{RootCAs: c.roots, ServerName: grownHost})
	if err != nil {
		c.fail("tunnel: %v", err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /tunnel HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", grownHost)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		c.fail("tunnel: %v, %v", resp, err)
		return
	}
	for ctx.Err() == nil {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(conn, "anybody there")
		if line, err := in.ReadString('\n'); err != nil || line != "anybody there\n" {
			c.fail("tunnel: %q, %v", line, err)
			return
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// change applies a change of the document at one node, and returns what it was said to
// touch.
func (c *changing) change(what string, f func(string) string) []string {
	c.t.Helper()
	n := c.nodes[0]
	head, err := n.client().Revision(c.t.Context(), "")
	if err != nil {
		c.t.Fatal(err)
	}
	a := node.Apply{Text: f(head.Text), Base: string(head.ID), User: "op", Comment: what}
	p, err := n.client().Plan(c.t.Context(), a)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	if _, err := n.client().Apply(c.t.Context(), a, nil); err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	var effects []string
	for _, e := range p.Effects {
		effects = append(effects, string(e.Touches)+": "+e.Text)
	}
	return effects
}

// pinned asks for a page of the bank, with the pin if there is one.
func (c *changing) pinned(client *http.Client, path string, pin *http.Cookie) (*http.Response, error) {
	r, err := http.NewRequest(http.MethodGet, grownURL+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	if pin != nil {
		r.AddCookie(&http.Cookie{Name: pin.Name, Value: pin.Value})
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	io.Copy(io.Discard, resp.Body)
	return resp, resp.Body.Close()
}

// session is a client of one node that keeps the TLS session.
type session struct {
	c      *changing
	at     string
	config *tls.Config
}

func (c *changing) session(n *grownNode) *session {
	s := &session{c, net.JoinHostPort(c.vip(n), "8443"), &tls.Config{
		RootCAs: c.roots, ServerName: grownHost, ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}}
	if s.resumes() || !s.resumes() {
		c.t.Fatalf("a TLS session at %s is not resumed even without a change", n.name)
	}
	return s
}

// resumes connects, and reports whether it could resume the session.
func (s *session) resumes() bool {
	s.c.t.Helper()
	conn, err := tls.Dial("tcp", s.at, s.config)
	if err != nil {
		s.c.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", grownHost)
	io.Copy(io.Discard, conn) // the ticket comes on the way
	return conn.ConnectionState().DidResume
}

// listening is what each node listens on.
func (c *changing) listening() string {
	c.t.Helper()
	var b strings.Builder
	for _, n := range c.nodes {
		st := n.status()
		if st == nil {
			c.t.Fatalf("%s does not answer", n.name)
		}
		fmt.Fprintf(&b, "%s: %v, DNS %v\n", n.name, st.Listening, st.DNS != nil)
	}
	return b.String()
}

// refusals is what the nodes have refused so far, or answered with an error.
func (c *changing) refusals() string {
	var b strings.Builder
	for _, n := range c.nodes {
		st := n.status()
		if st == nil || st.Guard == nil {
			c.t.Fatalf("%s does not answer", n.name)
		}
		r, a := st.Requests, st.Agreed.Counters
		fmt.Fprintf(&b, "%s: requests refused %d, 5xx %d, bad pins %d; reports %d; gossip malformed %d, unknown %d, strangers %d, clock %d, full %d, content %d, storing %d\n",
			n.name, r.Refused, r.Statuses["5xx"], r.BadPins, st.Guard.Reports.Refused(), a.Malformed, a.Unknown, a.Strangers, a.Clock, a.Full, a.Content, a.Storing)
	}
	return b.String()
}

func (c *changing) answersDNS(n *grownNode) bool {
	m := new(dns.Msg).SetQuestion(grownHost+".", dns.TypeA)
	reply, err := dns.Exchange(m, net.JoinHostPort(c.vip(n), "8053"))
	return err == nil && len(reply.Answer) == len(c.nodes)
}

// replaced returns an edit that puts a text in the place of another, which must be there.
func (c *changing) replaced(old, new string) func(string) string {
	return func(text string) string {
		if !strings.Contains(text, old) {
			c.t.Fatalf("%q is not in\n%s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
}

func added(more string) func(string) string { return func(text string) string { return text + more } }

// TestChangeLosesNothing changes the document and the site key under clients that never
// pause: none of them may notice, and what is touched must have been said before.
func TestChangeLosesNothing(t *testing.T) {
	c := newChanging(t)
	n1, n2 := c.nodes[0], c.nodes[1]

	// Pinned to n1, and TLS sessions of all, from before.
	resp, err := c.pinned(c.client(c.vip(n1), 2), "/bank/", nil)
	if err != nil || len(resp.Cookies()) != 1 {
		t.Fatalf("no pin: %v, %v", resp, err)
	}
	pin := resp.Cookies()[0]
	sessions := map[*grownNode]*session{}
	for _, n := range c.nodes {
		sessions[n] = c.session(n)
	}

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	for _, n := range c.nodes {
		for version := 1; version <= 3; version++ {
			name := fmt.Sprintf("HTTP/%d at %s", version, n.name)
			clients.Go(func() { c.ask(ctx, name, c.client(c.vip(n), version)) })
			clients.Go(func() { c.askAnew(ctx, name, c.vip(n), version) })
			clients.Go(func() { c.read(ctx, c.client(c.vip(n), version)) })
		}
		clients.Go(func() { c.tunnel(ctx, c.vip(n)) })
	}
	clients.Go(func() { c.stay(ctx, pin) })
	eventually(t, "all clients are at work", func() bool { return c.served.Load() > 500 })
	connected, listening, refusals := c.dials.Load(), c.listening(), c.refusals()
	untouched := func(what string) {
		t.Helper()
		if now := c.dials.Load(); now != connected {
			t.Errorf("%s: %d connections were made anew", what, now-connected)
			connected = now
		}
		if now := c.listening(); now != listening {
			t.Errorf("%s: the nodes listened on\n%sand listen now on\n%s", what, listening, now)
			listening = now
		}
	}

	const servers = "connections: connections to the servers of back-end app are opened anew as their requests end"
	for _, step := range []struct {
		what    string
		change  func(string) string
		effects string
	}{
		{"a route more", added("  - {path: /more/, backend: app}\n"), ""},
		{"a route less", c.replaced("  - {path: /more/, backend: app}\n", ""), ""},
		{"the levels", c.replaced("light: 1000", "light: 999"), ""},
		{"the period", c.replaced("measure: requests", "period: 400ms, measure: requests"), ""},
		{"limits", added("limits: {requests: 5000}\n"), ""},
		{"no access log", added("logs: {access: 'off'}\n"), ""},
		{"an access log", c.replaced("logs: {access: 'off'}\n", ""), ""},
		{"the grace", c.replaced("grace: 5s", "grace: 6s"), ""},
		{"no takeover", added("takeover: {enabled: false}\n"), "vips: nodes give up the VIPs that they hold for silent peers"},
		{"takeover", c.replaced("takeover: {enabled: false}\n", ""), "vips: nodes take over the VIPs of peers that are silent"},
		{"a capacity", c.replaced("127.0.1.2,", "127.0.1.2, capacity: 2,"), ""},
		{"the health of a back-end", c.replaced("every: 1s", "every: 2s"), servers},
		{"the servers of a back-end", c.replaced("app: {servers: ["+strconv.Quote(c.origin), "app: {servers: ["+strconv.Quote(c.other)), servers},
	} {
		if effects := strings.Join(c.change(step.what, step.change), "\n"); effects != step.effects {
			t.Errorf("%s is said to touch %q, want %q", step.what, effects, step.effects)
		}
		untouched(step.what)
	}

	// A zone has sockets of its own, and touches no others.
	if effects := c.change("no zone", c.replaced("\ndns:\n  zone: example.test\n", "\n")); len(effects) != 1 || !strings.HasPrefix(effects[0], "listeners: the nodes no longer answer DNS") {
		t.Errorf("the end of a zone is said to touch %q", effects)
	}
	for _, n := range c.nodes {
		eventually(t, n.name+" answers no DNS questions", func() bool { return !c.answersDNS(n) })
	}
	if effects := c.change("a zone", added("dns: {zone: example.test}\n")); len(effects) != 1 || !strings.HasPrefix(effects[0], "listeners: the nodes begin to answer DNS") {
		t.Errorf("a zone is said to touch %q", effects)
	}
	for _, n := range c.nodes {
		eventually(t, n.name+" answers DNS questions", func() bool { return c.answersDNS(n) })
	}
	untouched("no zone for a while")

	// Changes that do not last.
	head, err := n1.client().Revision(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	refused := c.replaced("\nroutes:\n", "\nroutes:\n  - {path: /gone/, static: {dir: /nowhere}}\n")(head.Text)
	if _, err := n1.client().Apply(t.Context(), node.Apply{Text: refused, Base: string(head.ID), User: "op"}, nil); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a directory that is not there: %v", err)
	}
	untouched("a change that was refused")
	trial := c.replaced("\nroutes:\n", "\nroutes:\n  - {path: /more/, backend: bank}\n")(head.Text)
	if _, err := n1.client().Apply(t.Context(), node.Apply{Text: trial, Base: string(head.ID), User: "op", ConfirmWithin: time.Second}, nil); err != nil {
		t.Error(err)
	}
	eventually(t, "a change that nobody confirms is rolled back", func() bool {
		for _, n := range c.nodes {
			now, err := n.client().Revision(t.Context(), "")
			if err != nil || now.Number < head.Number+2 || now.Text != head.Text {
				return false
			}
		}
		return true
	})
	c.awaitWhole()
	untouched("a change that was rolled back")

	for range 2 {
		if _, err := n2.client().Rotate(t.Context(), node.Rotate{}, nil); err != nil {
			t.Fatal(err)
		}
		untouched("another site key")
	}
	for n, s := range sessions {
		if !s.resumes() {
			t.Errorf("a TLS session of %s from before is not resumed", n.name)
		}
	}
	served := c.served.Load()
	eventually(t, "the clients are at work still", func() bool { return c.served.Load() > served+500 })
	if now := c.refusals(); now != refusals {
		t.Errorf("refused was\n%sand is now\n%s", refusals, now)
	}
	stop()
	clients.Wait()
	t.Logf("%d requests were served meanwhile", c.served.Load())
	for _, why := range c.failed {
		t.Error(why)
	}
}

// TestVIPMoves gives a VIP to another node: what is touched was said before, and is no
// more than that.
func TestVIPMoves(t *testing.T) {
	c := newChanging(t)
	n1, n2, n3 := c.nodes[0], c.nodes[1], c.nodes[2]
	vip := c.vip(n3)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	for _, n := range c.nodes[:2] {
		for version := 1; version <= 3; version++ {
			clients.Go(func() { c.ask(ctx, fmt.Sprintf("HTTP/%d at %s", version, n.name), c.client(c.vip(n), version)) })
		}
		clients.Go(func() { c.tunnel(ctx, c.vip(n)) })
		clients.Go(func() { c.read(ctx, c.client(c.vip(n), 3)) })
	}
	// And n3 keeps the connections of its host address.
	clients.Go(func() { c.ask(ctx, "HTTP/2 at the host address of n3", c.client(c.address(n3), 2)) })
	eventually(t, "all clients are at work", func() bool { return c.served.Load() > 100 })
	connected := c.dials.Load()

	// At the VIP that moves: what will end soon, for each version, and what will not.
	ends := make(chan string, 3)
	for version := 1; version <= 3; version++ {
		tr, end := c.transport(vip, version, new(atomic.Int64))
		t.Cleanup(end)
		resp, err := (&http.Client{Transport: tr}).Get(grownURL + "/two-seconds")
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || len(b) != 40*len("more\n") {
				ends <- fmt.Sprintf("HTTP/%d: a download at a VIP that moves has %d octets, %v", version, len(b), err)
				return
			}
			ends <- ""
		})
	}
	tr, end := c.transport(vip, 2, new(atomic.Int64))
	t.Cleanup(end)
	resp, err := (&http.Client{Transport: tr}).Get(grownURL + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	stream := make(chan time.Time, 1)
	clients.Go(func() {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		stream <- time.Now()
	})

	effects := c.change("a VIP moves", func(text string) string {
		text = c.replaced("vips: ["+vip+"]", "vips: []")(text)
		return c.replaced("vips: ["+c.vip(n2)+"]", "vips: ["+c.vip(n2)+", "+vip+"]")(text)
	})
	moved := time.Now()
	if want := fmt.Sprintf("vips: VIP %s moves from n3 to n2: connections to it end within 5s", vip); len(effects) != 1 || effects[0] != want {
		t.Errorf("the move is said to touch %q, want %q", effects, want)
	}
	for range cap(ends) {
		if why := <-ends; why != "" {
			t.Error(why)
		}
	}
	select {
	case at := <-stream:
		if took := at.Sub(moved); took > 8*time.Second {
			t.Errorf("a connection to the VIP has ended %v after the move, want 5 s", took)
		}
	case <-time.After(30 * time.Second):
		t.Error("a connection to the VIP does not end")
		end()
	}
	for version := 1; version <= 3; version++ {
		eventually(t, fmt.Sprintf("n2 answers for the VIP by HTTP/%d", version), func() bool {
			tr, end := c.transport(vip, version, new(atomic.Int64))
			defer end()
			resp, err := (&http.Client{Transport: tr, Timeout: time.Second}).Get(grownURL + "/page")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
	for n, want := range map[*grownNode][]string{
		n1: {c.address(n1), c.vip(n1)}, n2: {c.address(n2), c.vip(n2), vip}, n3: {c.address(n3)},
	} {
		eventually(t, fmt.Sprintf("%s listens on %v", n.name, want), func() bool {
			st := n.status()
			return st != nil && fmt.Sprint(st.Listening) == fmt.Sprint(want)
		})
	}
	served := c.served.Load()
	eventually(t, "the clients are at work still", func() bool { return c.served.Load() > served+100 })
	if now := c.dials.Load(); now != connected {
		t.Errorf("%d connections to other addresses were made anew", now-connected)
	}
	stop()
	clients.Wait()
	for _, why := range c.failed {
		t.Error(why)
	}
}

// descriptors returns how many files a process has open, and which of them are that
// directory.
func descriptors(t testing.TB, pid int, dir string) (all, dirs int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			continue // closed meanwhile
		}
		all++
		if to == dir {
			dirs++
		}
	}
	return all, dirs
}

// TestChangesLeaveNothingBehind changes the document many times: no file or connection may
// stay behind for each. PEERAGE_CHANGES says how many times; in appliance/node there is the
// same for the server alone.
func TestChangesLeaveNothingBehind(t *testing.T) {
	changes := 20
	if text := os.Getenv("PEERAGE_CHANGES"); text != "" {
		var err error
		if changes, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	c := &changing{grown: newGrown(t)}
	origin := c.startOrigin()
	n := c.nodes[0]
	eventually(t, "n1 serves", func() bool { st := n.status(); return st != nil && st.View.Me().Serves() })
	first, err := n.client().Revision(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	change := func(i int) {
		c.change(fmt.Sprint("change ", i), func(string) string {
			text := strings.Replace(first.Text, "\nroutes:\n", fmt.Sprintf("\nroutes:\n  - path: /p%d/\n    static: {dir: %s, index: i%d.html}\n  - {path: /app/, backend: app}\n", i, n.data(), i), 1)
			return text + fmt.Sprintf("backends: {app: {servers: [%q], health: {path: /h%d, every: 100ms, timeout: 90ms}}}\nlogs: {access: a%d.log}\nlimits: {requests: %d}\n", origin, i, i%5, 1000+i)
		})
	}
	pids := []int{n.cmd.Process.Pid, n.status().ServerPID}
	change(0)
	var began [2]int
	for i, pid := range pids {
		began[i], _ = descriptors(t, pid, n.data())
	}
	for i := range changes {
		change(1 + i)
	}
	var now [2]int
	eventually(t, "what is no longer served is closed", func() bool {
		dirs := 0
		for i, pid := range pids {
			now[i], dirs = descriptors(t, pid, n.data())
		}
		return dirs == 1 && now[0] <= began[0]+1 && now[1] <= began[1]+2 // a question or a health check is under way now and then
	})
	t.Logf("open files of guard and server: %v after one change, %v after %d more", began, now, changes)
}
