package edge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/meter"
	"peerage/edge/pin"
	"peerage/edge/route"
)

// This file is the site that the stories are told of: three nodes a, b and c, each with
// an address of its own on loopback, real listeners, and an origin that tells what it
// saw.

const host = "www.example.test"

var (
	testPorts = Ports{HTTP: 10080, HTTPS: 10443, Relay: 17948}
	nodeIDs   = []balancing.NodeID{"a", "b", "c"}
	protocols = []string{"h1", "h2", "h3"}
)

// cluster is a running site.
type cluster struct {
	t        testing.TB
	ca       *authority
	nodes    map[balancing.NodeID]*node
	state    []balancing.Node // what all views are made of
	settings balancing.Settings
	clients  map[string]http.RoundTripper
}

type node struct {
	*Server
	id     balancing.NodeID
	addr   netip.Addr
	now    atomic.Pointer[balancing.View]
	access lines
	peers  http.HandlerFunc // of Config.Peers
	join   http.HandlerFunc // of Config.Join
	done   chan error       // of Run
	cancel context.CancelFunc
}

// origin answers on a node. The default tells what it saw.
type origin func(id balancing.NodeID, w http.ResponseWriter, r *http.Request)

// newCluster starts a site whose nodes are idle.
func newCluster(t testing.TB, o origin) *cluster {
	t.Helper()
	c := build(t, o)
	for _, n := range c.nodes {
		n.start(t.Context())
		n.Listen([]netip.Addr{n.addr}, nil)
	}
	for _, n := range c.nodes {
		n.await(t, n.addr)
	}
	t.Cleanup(c.stop)
	return c
}

// build returns a site that is not started.
func build(t testing.TB, o origin) *cluster {
	t.Helper()
	if o == nil {
		o = tell
	}
	c := &cluster{t: t, ca: newAuthority(t), nodes: map[balancing.NodeID]*node{}, clients: map[string]http.RoundTripper{}}
	c.settings = balancing.Settings{Policy: balancing.Policy{Light: 50, Margin: 20, Rule: balancing.Patent}, Period: 500 * time.Millisecond}
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range nodeIDs {
		addr := freeAddr()
		c.state = append(c.state, balancing.Node{
			ID: id, Address: addr, Home: []netip.Addr{addr}, Held: []netip.Addr{addr},
			Capacity: 1, Online: true, State: balancing.OK, Incarnation: uint64(100 + i),
		})
		if id == "b" { // has an internal network of its own
			c.state[i].Internal = freeAddr()
		}
	}
	for i, id := range nodeIDs {
		n := &node{id: id, addr: c.state[i].Address, access: make(lines, 1000), done: make(chan error, 1)}
		n.Server = New(Config{
			Self: id, Ports: testPorts, View: n.now.Load, Meter: meter.New(meter.Config{Measure: meter.Requests, Full: 10}), Keys: ring,
			TLS:         &tls.Config{Certificates: []tls.Certificate{c.ca.issue(t, host, "*."+host)}, NextProtos: []string{"h2", "http/1.1"}},
			Relay:       relayAddr(&c.state[i]),
			RelayServer: c.ca.peerServer(t, id), RelayClient: c.ca.peerClient(t, id),
			Peers:    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.peers(w, r) }),
			Join:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.join(w, r) }),
			JoinName: joinName, JoinTLS: &tls.Config{Certificates: []tls.Certificate{c.ca.issue(t, joinName)}},
			AccessLog: slog.New(slog.NewJSONHandler(n.access, nil)),
			Log:       slog.New(slog.DiscardHandler),
		}, c.site(t, ring, id, o))
		c.nodes[id] = n
	}
	c.change(func(map[balancing.NodeID]*balancing.Node) {})
	return c
}

// site returns the configuration that node id serves.
func (c *cluster) site(t testing.TB, ring *keys.Ring, id balancing.NodeID, o origin) *Site {
	t.Helper()
	var addrs []netip.Addr
	for _, n := range c.state {
		addrs = append(addrs, n.Address)
	}
	names, err := route.NewNames([]string{host}, nodeIDs, "{node}.{host}", addrs...)
	if err != nil {
		t.Fatal(err)
	}
	stateful := func(dir string, lost balancing.OwnerLoss) route.Rule {
		return route.Rule{Path: dir, Spill: true, Index: 0, Stateful: &route.Stateful{
			Name: dir, Entry: dir, Exit: []string{dir + "logout"}, OnOwnerLoss: lost, EntryKeepsPin: true,
			Idle: time.Hour, MaxLife: 12 * time.Hour,
		}}
	}
	table, err := route.NewTable([]route.Rule{
		{Path: "/", Spill: true},
		stateful("/bank/", balancing.Repin),
		stateful("/restart/", balancing.Restart),
		stateful("/fail/", balancing.Fail),
		{Path: "/only-c/", Nodes: []balancing.NodeID{"c"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	serve := func(w http.ResponseWriter, r *http.Request) { o(id, w, r) }
	return &Site{
		Name: "example", Names: names, Routes: table, Origins: []http.Handler{http.HandlerFunc(serve)},
		Pins:  pin.NewRing(ring.PinSealer(time.Now()), "example"),
		Grace: 5 * time.Second,
	}
}

// reroute gives all nodes another URI table.
func (c *cluster) reroute(t testing.TB, rules ...route.Rule) {
	t.Helper()
	table, err := route.NewTable(rules)
	if err != nil {
		t.Fatal(err)
	}
	c.resite(func(s *Site) { s.Routes = table })
}

// resite gives all nodes another site.
func (c *cluster) resite(edit func(*Site)) {
	for _, n := range c.nodes {
		next := *n.site.Load()
		edit(&next)
		n.SetSite(&next)
	}
}

// change gives all nodes a new view, in which edit has changed what it likes.
func (c *cluster) change(edit func(map[balancing.NodeID]*balancing.Node)) {
	c.state = slices.Clone(c.state)
	byID := map[balancing.NodeID]*balancing.Node{}
	for i := range c.state {
		byID[c.state[i].ID] = &c.state[i]
	}
	edit(byID)
	for id, n := range c.nodes {
		n.now.Store(&balancing.View{Self: id, Time: time.Now(), Nodes: c.state, Settings: c.settings})
	}
}

// load sets the loads of a, b and c.
func (c *cluster) load(a, b, cc balancing.Load) {
	c.change(func(n map[balancing.NodeID]*balancing.Node) {
		n["a"].Load, n["b"].Load, n["c"].Load = a, b, cc
	})
}

func (c *cluster) stop() {
	for _, rt := range c.clients {
		closeClient(rt)
	}
	clear(c.clients)
	for _, n := range c.nodes {
		if n.cancel != nil {
			n.cancel()
		}
	}
	for _, n := range c.nodes {
		if n.cancel == nil {
			continue
		}
		if err := <-n.done; err != nil {
			c.t.Errorf("node %s: Run = %v", n.id, err)
		}
		n.cancel = nil
	}
}

func (n *node) start(ctx context.Context) {
	ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { n.done <- n.Run(ctx) }()
}

// await waits until n answers on exactly addrs.
func (n *node) await(t testing.TB, addrs ...netip.Addr) {
	t.Helper()
	slices.SortFunc(addrs, netip.Addr.Compare)
	eventually(t, func() bool { return slices.Equal(n.Listening(), addrs) }, func() string {
		return fmt.Sprintf("node %s listens on %v, want %v", n.id, n.Listening(), addrs)
	})
}

// A question is a GET to node at over HTTP/2, unless it says otherwise.
type question struct {
	at     balancing.NodeID
	addr   netip.Addr // in place of at
	proto  string
	method string
	name   string // in place of host
	path   string
	header []string // lines
	body   string
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	body string
}

// ask sends q and follows no redirect.
func (c *cluster) ask(t testing.TB, q question) answer {
	t.Helper()
	a, err := c.try(t.Context(), q)
	if err != nil {
		t.Fatalf("%s %s at %s: %v", q.method, q.path, q.at, err)
	}
	return a
}

func (c *cluster) try(ctx context.Context, q question) (answer, error) {
	resp, err := c.open(ctx, q)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b)}, err
}

// tryWith is try with a client of the test's own.
func (c *cluster) tryWith(client http.RoundTripper, q question) (answer, error) {
	r, err := q.request(c.t.Context())
	if err != nil {
		return answer{}, err
	}
	resp, err := client.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b)}, err
}

// open is try, with the body left to read.
func (c *cluster) open(ctx context.Context, q question) (*http.Response, error) {
	r, err := q.request(ctx)
	if err != nil {
		return nil, err
	}
	addr := q.addr
	if !addr.IsValid() {
		addr = c.nodes[q.at].addr
	}
	return c.client(q.proto, addr).RoundTrip(r)
}

func (q question) request(ctx context.Context) (*http.Request, error) {
	name := host
	if q.name != "" {
		name = q.name
	}
	method := http.MethodGet
	if q.method != "" {
		method = q.method
	}
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://%s:%d%s", name, testPorts.HTTPS, q.path), body)
	if err != nil {
		return nil, err
	}
	for _, line := range q.header {
		k, v, _ := strings.Cut(line, ": ")
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header[k] = append(r.Header[k], v)
	}
	return r, nil
}

var clientsMu sync.Mutex

// client returns a client that reaches every name at addr.
func (c *cluster) client(proto string, addr netip.Addr) http.RoundTripper {
	clientsMu.Lock()
	defer clientsMu.Unlock()
	key := proto + addr.String()
	if c.clients[key] == nil {
		c.clients[key] = newClient(proto, addr, c.ca.pool)
	}
	return c.clients[key]
}

func newClient(proto string, addr netip.Addr, roots *x509.CertPool) http.RoundTripper {
	at := netip.AddrPortFrom(addr, testPorts.HTTPS).String()
	if proto == "h3" {
		return &http3.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots},
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, at, tc, qc)
			},
		}
	}
	p := new(http.Protocols)
	p.SetHTTP1(proto == "h1")
	p.SetHTTP2(proto != "h1")
	return &http.Transport{
		Protocols:          p,
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, at)
		},
	}
}

func closeClient(rt http.RoundTripper) {
	switch rt := rt.(type) {
	case *http3.Transport:
		rt.Close()
	case *http.Transport:
		rt.CloseIdleConnections()
	}
}

// raw sends text over TLS to n and returns the answer and the connection.
func (c *cluster) raw(t testing.TB, n *node, text string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := tls.Dial("tcp", netip.AddrPortFrom(n.addr, testPorts.HTTPS).String(), &tls.Config{RootCAs: c.ca.pool, ServerName: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("answer to %.80q: %v", text, err)
	}
	return resp, conn, br
}

// enter goes to the entry of the stateful path dir at node id and returns the pin, as a
// header line.
func (c *cluster) enter(t testing.TB, id balancing.NodeID, dir string) string {
	t.Helper()
	a := c.ask(t, question{at: id, path: dir})
	if len(a.Cookies()) != 1 || a.seen(t).Node != id {
		t.Fatalf("GET %s at %s: served by %q with cookies %v, want there with a pin", dir, id, a.body, a.Header["Set-Cookie"])
	}
	return cookieLine(a)
}

// cookieLine is what a browser would send back of a's cookies.
func cookieLine(a answer) string {
	var pairs []string
	for _, k := range a.Cookies() {
		pairs = append(pairs, k.Name+"="+k.Value)
	}
	return "Cookie: " + strings.Join(pairs, "; ")
}

// sight is what an origin saw of a request.
type sight struct {
	Node   balancing.NodeID
	Method string
	URI    string
	Path   string
	Host   string
	Remote string
	Body   string
	Header http.Header
}

// tell answers with what it saw, with the status that the query asks for.
func tell(id balancing.NodeID, w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if s := r.URL.Query().Get("status"); s != "" {
		var status int
		fmt.Sscan(s, &status)
		w.WriteHeader(status)
	}
	json.NewEncoder(w).Encode(sight{
		Node: id, Method: r.Method, URI: r.RequestURI, Path: r.URL.EscapedPath(), Host: r.Host, Remote: r.RemoteAddr,
		Body: string(b), Header: r.Header,
	})
}

func (a answer) seen(t testing.TB) (s sight) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("status %d, body %q is not what an origin saw: %v", a.StatusCode, a.body, err)
	}
	return s
}

// want checks status and, unless they are "", the node that served and the Location.
func (a answer) want(t testing.TB, status int, servedBy balancing.NodeID, location string) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("status %d, want %d; body %q", a.StatusCode, status, a.body)
		return
	}
	if servedBy != "" {
		if got := a.seen(t).Node; got != servedBy {
			t.Errorf("served by %s, want %s", got, servedBy)
		}
	}
	if got := a.Header.Get("Location"); got != location {
		t.Errorf("Location %q, want %q", got, location)
	}
}

// at is the URL of path at node id, or at the host itself for "".
func at(id balancing.NodeID, path string) string {
	name := host
	if id != "" {
		name = string(id) + "." + host
	}
	return fmt.Sprintf("https://%s:%d%s", name, testPorts.HTTPS, path)
}

// lines is a log whose lines can be waited for.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(bytes.TrimSpace(b)):
	default: // nobody reads this log
	}
	return len(b), nil
}

func (l lines) next(t testing.TB) map[string]any {
	t.Helper()
	select {
	case line := <-l:
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("no line in the log")
	}
	return nil
}

// eventually waits for ok, for things that end behind the back of the client.
func eventually(t testing.TB, ok func() bool, what func() string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal(what())
		}
	}
}

func receive[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(15 * time.Second):
		t.Fatal("still waiting for " + what)
	}
	return v
}

var addrsUsed atomic.Uint32

// freeAddr returns an address on loopback that no other test uses, nor one of another
// test process.
func freeAddr() netip.Addr {
	n := addrsUsed.Add(1)
	return netip.AddrFrom4([4]byte{127, byte(64 + os.Getpid()%128), byte(os.Getpid() / 128 % 250), byte(n)})
}

// authority is a small CA.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	bad  sync.Map // of certificates in DER, as strings
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

const (
	peerDomain = ".peers.test"
	joinName   = "join" + peerDomain
)

func (a *authority) peerServer(t testing.TB, id balancing.NodeID) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, string(id)+peerDomain)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.pool, VerifyConnection: a.verify,
	}
}

// verify takes the certificates that the test has not called bad.
func (a *authority) verify(cs tls.ConnectionState) error {
	if _, bad := a.bad.Load(string(cs.PeerCertificates[0].Raw)); bad {
		return errors.New("it has another identity now")
	}
	return nil
}

func (a *authority) peerClient(t testing.TB, id balancing.NodeID) func(balancing.NodeID) *tls.Config {
	own := []tls.Certificate{a.issue(t, string(id)+peerDomain)}
	return func(peer balancing.NodeID) *tls.Config {
		return &tls.Config{Certificates: own, RootCAs: a.pool, ServerName: string(peer) + peerDomain, VerifyConnection: a.verify}
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sum adds up the counts of keys, or all.
func sum(m map[string]uint64, only ...string) (n uint64) {
	for k := range maps.Keys(m) {
		if len(only) == 0 || slices.Contains(only, k) {
			n += m[k]
		}
	}
	return n
}

func readAnswer(t testing.TB, conn net.Conn, text string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("answer to %.80q: %v", text, err)
	}
	return resp
}
