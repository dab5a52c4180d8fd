package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"peerage/balancing"
)

// gate is an origin that keeps its requests until it is opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan struct{}, 100), open: make(chan struct{})} }

func (g *gate) serve(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/slow" {
		tell(id, w, r)
		return
	}
	g.entered <- struct{}{}
	select {
	case <-g.open:
		tell(id, w, r)
	case <-r.Context().Done():
	}
}

type outcome struct {
	answer
	err error
}

// slowly asks for /slow at addr and returns when the origin has it.
func (c *cluster) slowly(t testing.TB, g *gate, proto string, addr netip.Addr) <-chan outcome {
	t.Helper()
	got := make(chan outcome, 1)
	go func() {
		a, err := c.try(t.Context(), question{at: "a", addr: addr, proto: proto, path: "/slow"})
		got <- outcome{a, err}
	}()
	receive(t, g.entered, "the request to reach the origin")
	return got
}

func TestAddressesComeAndGo(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n, vip := c.nodes["a"], freeAddr()
	n.Listen([]netip.Addr{n.addr, vip}, nil)
	n.await(t, n.addr, vip)

	var stays, goes []<-chan outcome
	for _, proto := range protocols {
		stays = append(stays, c.slowly(t, g, proto, n.addr))
		goes = append(goes, c.slowly(t, g, proto, vip))
	}
	n.Listen([]netip.Addr{n.addr}, nil)
	n.await(t, n.addr)
	for _, port := range []uint16{testPorts.HTTP, testPorts.HTTPS} {
		eventually(t, func() bool {
			conn, err := net.Dial("tcp", netip.AddrPortFrom(vip, port).String())
			if err == nil {
				conn.Close()
			}
			return err != nil
		}, func() string { return "a removed address still takes connections" })
	}
	// The address comes back while its last clients are there.
	n.Listen([]netip.Addr{n.addr, vip}, nil)
	n.await(t, n.addr, vip)
	for _, proto := range []string{"h1", "h2"} {
		fresh := newClient(proto, vip, c.ca.pool)
		r, _ := http.NewRequestWithContext(t.Context(), "GET", at("", "/"), nil)
		resp, err := fresh.RoundTrip(r)
		if err != nil {
			t.Fatalf("%s to an address that came back: %v", proto, err)
		}
		resp.Body.Close()
		closeClient(fresh)
	}
	close(g.open)
	for i, proto := range protocols {
		for which, got := range map[string]<-chan outcome{"an address that stayed": stays[i], "a removed address": goes[i]} {
			if o := receive(t, got, "an answer"); o.err != nil || o.StatusCode != 200 {
				t.Errorf("%s request in progress at %s: %v", proto, which, o.err)
			}
		}
	}
	// HTTP/3 is back as soon as its socket is free.
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		fresh := newClient("h3", vip, c.ca.pool)
		defer closeClient(fresh)
		r, _ := http.NewRequestWithContext(ctx, "GET", at("", "/"), nil)
		resp, err := fresh.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	}, func() string { return "no HTTP/3 on an address that came back" })
}

func TestAddressInUseIsTriedAgain(t *testing.T) {
	c := newCluster(t, nil)
	n, vip := c.nodes["a"], freeAddr()
	other, err := net.Listen("tcp", netip.AddrPortFrom(vip, testPorts.HTTP).String())
	if err != nil {
		t.Fatal(err)
	}
	n.Listen([]netip.Addr{vip, n.addr}, nil)
	c.ask(t, question{at: "a", path: "/"}).want(t, 200, "a", "")
	if conn, err := net.Dial("tcp", netip.AddrPortFrom(vip, testPorts.HTTPS).String()); err == nil {
		conn.Close()
		t.Error("HTTPS is open on an address without HTTP")
	}
	other.Close()
	n.await(t, n.addr, vip)
}

// A change of the site touches no listener, no connection and no request in progress.
func TestRequestKeepsItsSite(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	var slow []<-chan outcome
	for _, proto := range protocols {
		slow = append(slow, c.slowly(t, g, proto, n.addr))
	}
	next := *n.site.Load()
	next.Origins = []http.Handler{http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "new site") })}
	n.SetSite(&next)
	for _, proto := range protocols {
		if a := c.ask(t, question{at: "a", proto: proto, path: "/"}); a.body != "new site" {
			t.Errorf("%s: body %q, want that of the new site", proto, a.body)
		}
	}
	close(g.open)
	for i, proto := range protocols {
		o := receive(t, slow[i], "an answer")
		if o.err != nil {
			t.Fatalf("%s: %v", proto, o.err)
		}
		o.want(t, 200, "a", "")
	}
}

// Run ends within the grace, and leaves nothing behind: no connection, no tunnel, no
// goroutine, no socket. Requests that end within the grace get their answer.
func TestRunEndsAllItStarted(t *testing.T) {
	before := runtime.NumGoroutine()
	g := newGate()
	c := newCluster(t, func(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" || r.URL.Path == "/bank/" {
			echoTunnel(id, w, r)
			return
		}
		g.serve(id, w, r)
	})
	for _, n := range c.nodes {
		short := *n.site.Load()
		short.Grace = 4 * time.Second
		n.SetSite(&short)
	}
	pinned := c.pin(t, "b")
	_, relayed, fromRelay := c.raw(t, c.nodes["a"], upgrade("/bank/ws", pinned))
	_, here, fromHere := c.raw(t, c.nodes["b"], upgrade("/bank/ws", pinned))
	var slow []<-chan outcome
	for _, proto := range protocols {
		c.ask(t, question{at: "b", proto: proto, path: "/"}).want(t, 200, "b", "") // left idle
		slow = append(slow, c.slowly(t, g, proto, c.nodes["a"].addr))
	}
	began := time.Now()
	for _, n := range c.nodes {
		n.cancel()
	}
	n := c.nodes["a"]
	eventually(t, func() bool { return len(n.Listening()) == 0 }, func() string { return "still listening" })
	<-time.After(goAwayTime + 200*time.Millisecond) // clients of HTTP/3 are not hurried
	io.WriteString(here, "still there\n")
	if got, err := fromHere.ReadString('\n'); got != "still there\n" {
		t.Errorf("tunnel within the grace: %q, %v", got, err)
	}
	close(g.open)
	for i, proto := range protocols {
		if o := receive(t, slow[i], "an answer"); o.err != nil || o.StatusCode != 200 {
			t.Errorf("%s: request in progress at the end: %v", proto, o.err)
		}
	}
	for _, n := range c.nodes {
		if err := receive(t, n.done, "the end of Run"); err != nil {
			t.Errorf("node %s: Run = %v", n.id, err)
		}
		n.cancel = nil
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("Run took %v to end with a grace of 4 s", took)
	}
	for what, br := range map[string]io.Reader{"relayed": fromRelay, "local": fromHere} {
		if _, err := io.ReadAll(br); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s tunnel: still there after the end of Run", what)
		}
	}
	relayed.Close()
	here.Close()
	c.stop()
	eventually(t, func() bool { return runtime.NumGoroutine() <= before }, func() string {
		var b bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		return "goroutines left: " + b.String()
	})
	for _, n := range c.nodes { // no socket is left
		e, err := n.Server.open(n.addr)
		if err == nil {
			err = e.openQUIC()
		}
		if err != nil {
			t.Fatalf("node %s: open again: %v", n.id, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e.drain(ctx)
	}
}

// An answer whose handler is done is not thrown away on its way to a client that takes it
// a little later.
func TestLastAnswersArrive(t *testing.T) {
	const size = 100 << 10 // fits into every window: nothing holds the handler up
	open, entered, done := make(chan struct{}), make(chan struct{}, 3), make(chan struct{}, 3)
	c := newCluster(t, func(_ balancing.NodeID, w http.ResponseWriter, _ *http.Request) {
		http.NewResponseController(w).Flush()
		entered <- struct{}{}
		<-open
		w.Write(make([]byte, size))
		done <- struct{}{}
	})
	n := c.nodes["a"]
	var answers []*http.Response
	for _, proto := range protocols {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.client(proto, n.addr).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answers = append(answers, resp)
		receive(t, entered, "the request to reach the origin")
	}
	n.cancel()
	<-time.After(goAwayTime + 100*time.Millisecond)
	close(open)
	for range protocols {
		receive(t, done, "the end of the handler")
	}
	<-time.After(200 * time.Millisecond)
	for i, resp := range answers {
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != size {
			t.Errorf("%s: %d octets, %v", protocols[i], len(b), err)
		}
	}
	if err := receive(t, n.done, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	n.cancel = nil
}

// Clients without a request, or with one that never ends, do not hold Run up.
func TestRunEndsInSpiteOfClients(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	short := *n.site.Load()
	short.Grace = 300 * time.Millisecond
	n.SetSite(&short)
	for _, proto := range protocols {
		c.slowly(t, g, proto, n.addr)
	}
	silent, err := net.Dial("tcp", netip.AddrPortFrom(n.addr, testPorts.HTTPS).String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	n.cancel()
	if err := receive(t, n.done, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	n.cancel = nil
}

func TestListenNeverBlocks(t *testing.T) {
	c := build(t, nil) // Run is not there to listen
	n := c.nodes["a"]
	for range 100 {
		n.Listen([]netip.Addr{freeAddr()}, nil)
	}
	n.Listen([]netip.Addr{n.addr}, nil)
	n.start(t.Context())
	t.Cleanup(c.stop)
	n.await(t, n.addr) // the newest set
}

func TestRunNeedsItsRelay(t *testing.T) {
	c := newCluster(t, nil)
	other := build(t, nil).nodes["b"]
	other.relay.c.Relay = c.nodes["a"].addr
	if err := other.Run(t.Context()); err == nil {
		t.Error("Run = nil, want that the address of the relay is in use")
	}
}

func TestQUICLoadIsBounded(t *testing.T) {
	c := newCluster(t, nil)
	n, vip := c.nodes["a"], freeAddr()
	e, err := n.Server.open(vip)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e.drain(ctx)
	}()
	if err := e.openQUIC(); err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		client := newClient("h3", vip, c.ca.pool)
		defer closeClient(client)
		r, _ := http.NewRequestWithContext(ctx, "GET", at("", "/"), nil)
		resp, err := client.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	load := &e.quic.load
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := newClient("h3", vip, c.ca.pool)
	defer closeClient(client)
	r, _ := http.NewRequestWithContext(ctx, "GET", at("", "/"), nil)
	if _, err := client.RoundTrip(r); err != nil || load.conns.Load() != 1 || load.handshakes.Load() != 0 {
		t.Errorf("%v; %d connections, %d handshakes; want 1 and 0", err, load.conns.Load(), load.handshakes.Load())
	}
	closeClient(client)
	if e.quic.tr.VerifySourceAddress(nil) {
		t.Error("clients of an idle node must prove their address")
	}
	load.handshakes.Add(retryHandshake)
	if !e.quic.tr.VerifySourceAddress(nil) {
		t.Error("clients need not prove their address however many handshakes are in progress")
	}
	if err := ask(); err != nil {
		t.Errorf("client that proves its address: %v", err)
	}
	load.handshakes.Add(-retryHandshake)
	load.conns.Add(maxConns)
	if ask() == nil {
		t.Error("a connection over the limit was taken")
	}
	load.conns.Add(-maxConns)
	if err := ask(); err != nil {
		t.Errorf("client after the rush: %v", err)
	}
	eventually(t, func() bool { return load.conns.Load() == 0 && load.handshakes.Load() == 0 }, func() string {
		return "the books of QUIC connections do not balance"
	})
}
