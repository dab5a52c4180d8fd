package edge

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"peerage/balancing"
	"peerage/balancing/keys"
)

// leaving starts Leave, and returns what it returns.
func leaving(ctx context.Context, n *node, vips ...netip.Addr) <-chan error {
	left := make(chan error, 1)
	go func() { left <- n.Leave(ctx, vips) }()
	return left
}

// A VIP that leaves in order lets its clients go: at once without a request, else with
// their answer. Leave waits for those, and for nobody at other addresses.
func TestClientsAreToldToGo(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n, vip := c.nodes["a"], freeAddr()
	n.Listen([]netip.Addr{n.addr, vip}, nil)
	n.await(t, n.addr, vip)

	stays := c.slowly(t, g, "h2", n.addr)
	var slow []<-chan outcome
	for _, proto := range protocols {
		slow = append(slow, c.slowly(t, g, proto, vip))
	}
	idle := map[string]<-chan struct{}{}
	for _, proto := range protocols {
		idle[proto] = idleClient(t, c, proto, vip)
	}
	if got := n.InProgress(); got[vip] != 3 || got[n.addr] != 1 {
		t.Errorf("%d and %d requests are in progress, want 3 and 1", got[vip], got[n.addr])
	}
	left := leaving(t.Context(), n, vip)
	for proto, gone := range idle {
		receive(t, gone, "an idle client of "+proto+" to hear that it should go")
	}
	// Whoever comes now is served, and not kept.
	resp, conn, br := c.at(t, vip, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if resp.StatusCode != 200 || !resp.Close {
		t.Errorf("HTTP/1.1 while the address leaves: status %d, told to close: %v", resp.StatusCode, resp.Close)
	}
	io.Copy(io.Discard, resp.Body)
	if b, err := io.ReadAll(br); len(b) > 0 || err != nil {
		t.Errorf("the connection goes on: %q, %v", b, err)
	}
	conn.Close()
	receive(t, idleClient(t, c, "h2", vip), "a new client of HTTP/2 to hear that it should go")
	fresh := newClient("h3", vip, c.ca.pool)
	defer closeClient(fresh)
	if a, err := c.tryWith(fresh, question{path: "/"}); err != nil || a.StatusCode != 200 {
		t.Errorf("HTTP/3 while the address leaves: %v", err)
	}
	select {
	case err := <-left:
		t.Errorf("Leave = %v while requests are in progress", err)
	default:
	}
	close(g.open)
	for i, proto := range protocols {
		if o := receive(t, slow[i], "an answer"); o.err != nil || o.StatusCode != 200 {
			t.Errorf("%s: request in progress: %v", proto, o.err)
		}
	}
	if err := receive(t, left, "the end of Leave"); err != nil {
		t.Errorf("Leave = %v", err)
	}
	if o := receive(t, stays, "an answer"); o.err != nil || o.StatusCode != 200 {
		t.Errorf("request at an address that stays: %v", o.err)
	}
	if got := n.InProgress(); got[vip] != 0 || got[n.addr] != 0 {
		t.Errorf("%v requests are in progress, want none", got)
	}
	n.await(t, n.addr, vip) // until the guard has given it up
}

// idleClient connects to vip, asks once, and returns a channel that is closed when the
// client has been told to go.
func idleClient(t *testing.T, c *cluster, proto string, vip netip.Addr) <-chan struct{} {
	t.Helper()
	at := netip.AddrPortFrom(vip, testPorts.HTTPS).String()
	gone := make(chan struct{})
	if proto == "h3" {
		client := &http3.Transport{
			TLSClientConfig: &tls.Config{RootCAs: c.ca.pool},
			Dial: func(ctx context.Context, _ string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
				conn, err := quic.DialAddr(ctx, at, tc, qc)
				if err == nil {
					// A client closes its connection after GOAWAY when it has nothing to do.
					context.AfterFunc(conn.Context(), func() { close(gone) })
				}
				return conn, err
			},
		}
		t.Cleanup(func() { client.Close() })
		if _, err := c.tryWith(client, question{path: "/"}); err != nil {
			t.Fatal(err)
		}
		return gone
	}
	client := newClient(proto, vip, c.ca.pool).(*http.Transport)
	client.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, at)
		return closing{conn, gone}, err
	}
	t.Cleanup(client.CloseIdleConnections)
	if _, err := c.tryWith(client, question{path: "/"}); err != nil {
		t.Fatal(err)
	}
	return gone
}

// closing is a connection whose client closes it once.
type closing struct {
	net.Conn
	gone chan struct{}
}

func (c closing) Close() error {
	select {
	case <-c.gone:
	default:
		close(c.gone)
	}
	return c.Conn.Close()
}

// at is raw at another address of a node.
func (c *cluster) at(t *testing.T, addr netip.Addr, text string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	return c.raw(t, &node{addr: addr}, text)
}

func TestLeaveEndsWithItsContext(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	slow := c.slowly(t, g, "h1", n.addr)
	ctx, cancel := context.WithCancelCause(t.Context())
	left, why := leaving(ctx, n, n.addr), errors.New("the bound")
	cancel(why)
	if err := receive(t, left, "the end of Leave"); err != why {
		t.Errorf("Leave = %v, want %v", err, why)
	}
	close(g.open)
	if o := receive(t, slow, "an answer"); o.err != nil || o.StatusCode != 200 {
		t.Errorf("request in progress: %v", o.err)
	}
}

func TestLeaveIsCalledOff(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	slow := c.slowly(t, g, "h2", n.addr)
	left := leaving(t.Context(), n, n.addr)
	e := n.endpoints([]netip.Addr{n.addr})[0]
	eventually(t, func() bool { return !e.stays() }, func() string { return "the address does not leave" })
	n.Stay([]netip.Addr{n.addr})
	if err := receive(t, left, "the end of Leave"); err != errStay {
		t.Errorf("Leave = %v, want %v", err, errStay)
	}
	resp, _, _ := c.at(t, n.addr, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if resp.StatusCode != 200 || resp.Close {
		t.Errorf("a client that comes afterwards: status %d, told to close: %v", resp.StatusCode, resp.Close)
	}
	close(g.open)
	if o := receive(t, slow, "an answer"); o.err != nil || o.StatusCode != 200 {
		t.Errorf("request in progress: %v", o.err)
	}
	// And it can leave again.
	if err := receive(t, leaving(t.Context(), n, n.addr), "the end of Leave"); err != nil {
		t.Errorf("Leave = %v", err)
	}
}

// Leave waits for those as well who come after it has begun.
func TestLeaveWaitsForLateClients(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	n := c.nodes["a"]
	e := n.endpoints([]netip.Addr{n.addr})[0]
	for _, proto := range protocols {
		if err := n.Leave(t.Context(), []netip.Addr{n.addr}); err != nil {
			t.Errorf("Leave = %v", err)
		}
		late := c.slowly(t, g, proto, n.addr)
		if !e.busy() {
			t.Errorf("%s: nothing is waited for", proto)
		}
		left := leaving(t.Context(), n, n.addr)
		g.open <- struct{}{}
		if err := receive(t, left, "the end of Leave"); err != nil {
			t.Errorf("Leave = %v", err)
		}
		if o := receive(t, late, "an answer"); o.err != nil || o.StatusCode != 200 {
			t.Errorf("%s: late request: %v", proto, o.err)
		}
	}
}

// An address without clients, and one that is not held, leave at once.
func TestLeaveWithoutClients(t *testing.T) {
	c := newCluster(t, nil)
	n := c.nodes["a"]
	if err := n.Leave(t.Context(), []netip.Addr{n.addr, freeAddr()}); err != nil {
		t.Errorf("Leave = %v", err)
	}
	if err := n.Leave(t.Context(), nil); err != nil {
		t.Errorf("Leave = %v", err)
	}
}

// The end of Run does not wait for those who were told to go before.
func TestRunEndsWhileAnAddressLeaves(t *testing.T) {
	g := newGate()
	c := newCluster(t, g.serve)
	c.resite(func(s *Site) { s.Grace = 300 * time.Millisecond })
	n := c.nodes["a"]
	for _, proto := range protocols {
		c.slowly(t, g, proto, n.addr)
	}
	left := leaving(t.Context(), n, n.addr)
	e := n.endpoints([]netip.Addr{n.addr})[0]
	eventually(t, func() bool { return !e.stays() }, func() string { return "the address does not leave" })
	n.cancel()
	if err := receive(t, n.done, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	n.cancel = nil
	if err := receive(t, left, "the end of Leave"); err != nil {
		t.Errorf("Leave = %v", err)
	}
}

// A door whose listener fails is opened anew, and so is a UDP socket.
func TestFailedListenerIsOpenedAnew(t *testing.T) {
	c := newCluster(t, nil)
	n := c.nodes["a"]
	for what, fail := range map[string]func(*endpoint){
		"HTTPS": func(e *endpoint) { e.https.l.Close() },
		"HTTP":  func(e *endpoint) { e.http.l.Close() },
		"QUIC":  func(e *endpoint) { e.quic.udp.Close() },
	} {
		was := n.endpoints([]netip.Addr{n.addr})[0]
		fail(was)
		eventually(t, func() bool {
			now := n.endpoints([]netip.Addr{n.addr})
			if len(now) != 1 || now[0] == was {
				return false
			}
			now[0].mu.Lock()
			defer now[0].mu.Unlock()
			return now[0].quic != nil
		}, func() string { return what + " is not opened again" })
		for _, proto := range protocols {
			fresh := newClient(proto, n.addr, c.ca.pool)
			if a, err := c.tryWith(fresh, question{path: "/"}); err != nil || a.StatusCode != 200 {
				t.Errorf("%s after %s has failed: %v", proto, what, err)
			}
			closeClient(fresh)
		}
	}
}

// An address on standby goes with the newest keys, for a peer that it stands in for does;
// one that is held keeps those that its clients have.
func TestStandbyFollowsTheKeys(t *testing.T) {
	c := newCluster(t, nil)
	n, vip := c.nodes["a"], freeAddr()
	n.Listen([]netip.Addr{n.addr}, []netip.Addr{vip})
	resets := func(addr netip.Addr, r *keys.Ring) bool {
		id, token, err := tryReset(addr, 200*time.Millisecond) // a socket that closes takes questions along
		return err == nil && madeWith(r, addr, id, token)
	}
	next, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	for _, ring := range []*keys.Ring{n.c.Keys, next} {
		n.SetKeys(ring)
		eventually(t, func() bool { return resets(vip, ring) }, func() string { return "the standby has other keys" })
	}
	if id, token := statelessReset(t, n.addr); !madeWith(n.c.Keys, n.addr, id, token) {
		t.Error("an address that is held has other keys than its clients")
	}
	n.await(t, n.addr)
}

// madeWith reports whether the token of a reset was made with the keys of r.
func madeWith(r *keys.Ring, addr netip.Addr, id, token []byte) bool {
	return hmac.Equal(token, resetToken(r.Derive(keys.LabelQUICReset, addr.String()), id))
}

// A peer's VIP may be asked a moment before the view says that this node holds it.
func TestClaimedVIPIsServedBeforeTheViewSaysSo(t *testing.T) {
	c := newCluster(t, nil)
	n, vip := c.nodes["a"], freeAddr()
	n.Listen([]netip.Addr{n.addr, vip}, nil)
	n.await(t, n.addr, vip)
	ask := func() answer {
		return c.ask(t, question{addr: vip, proto: "h1", name: "b." + host, path: "/"})
	}
	ask().want(t, http.StatusMisdirectedRequest, "", "")
	c.change(func(n map[balancing.NodeID]*balancing.Node) { n["b"].Home = append(n["b"].Home, vip) })
	ask().want(t, 200, "a", "")
	for _, proto := range protocols {
		if a := c.ask(t, question{addr: vip, proto: proto, name: "b." + host, path: "/"}); a.StatusCode != 200 {
			t.Errorf("%s: status %d, want 200", proto, a.StatusCode)
		}
	}
	if a := c.ask(t, question{at: "a", name: "b." + host, path: "/"}); a.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("at an address of its own: status %d, want 421", a.StatusCode)
	}
}
