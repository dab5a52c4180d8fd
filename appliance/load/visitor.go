package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/publicsuffix"
)

const (
	connectTime = 3 * time.Second  // until an address is given up
	answerTime  = 60 * time.Second // until a request is
	maxBody     = 64 << 20         // octets that are read of an answer
	maxHops     = 10               // redirects of a request
)

// visitor is a client with cookies and connections of its own.
type visitor struct {
	g      *generator
	random *rand.Rand
	client *http.Client

	// The redirects of the request under way.

	hops  int
	moved bool // one of them was a 307

	transport interface{ CloseIdleConnections() }

	mu     sync.Mutex
	at     map[string][]netip.Addr // of each host, the one that answered first
	open   []net.Conn
	closed bool
}

// visit is the life of a visitor.
func (g *generator) visit(ctx context.Context, random *rand.Rand) {
	v := &visitor{g: g, random: random, at: make(map[string][]netip.Addr)}
	v.begin()
	defer v.close()
	g.record.arrived()
	last := int(g.Session)
	if !g.Fixed {
		last = geometric(random, g.Session)
	}
	u := *g.URL
	for i := range last {
		if i > 0 && !v.pause(ctx) {
			return
		}
		v.request(ctx, &u)
		if ctx.Err() != nil {
			return
		}
	}
}

// geometric returns a number of at least 1 with the given mean, without memory.
func geometric(r *rand.Rand, mean float64) int {
	if mean <= 1 {
		return 1
	}
	return 1 + int(math.Log(1-r.Float64())/math.Log(1-1/mean))
}

// pause reports whether the visitor goes on afterwards.
func (v *visitor) pause(ctx context.Context) bool {
	t := time.NewTimer(time.Duration(float64(v.g.Think) * v.random.ExpFloat64()))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// request makes one, and leaves in u the host that it ended at: links of the page that
// came lead there.
func (v *visitor) request(ctx context.Context, u *url.URL) {
	timed, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	began := time.Now()
	v.hops, v.moved = 0, false
	resp, err := v.do(timed, u)
	if ctx.Err() != nil { // the run is over: nothing is wrong with the site
		return
	}
	o := outcome{took: time.Since(began), moved: v.moved, hops: v.hops, kind: kindOf(err)}
	if err == nil {
		o.status = resp.StatusCode
		u.Host = resp.Request.URL.Host
		o.node, o.address = v.node(u.Hostname())
	}
	v.g.record.add(o)
}

// do reads the whole answer, and closes it.
func (v *visitor) do(ctx context.Context, u *url.URL) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	// By these the site knows a browser that goes to a page, which it may redirect.
	r.Header = http.Header{
		"User-Agent":     {"peerage-load"},
		"Accept":         {"text/html,*/*;q=0.8"},
		"Sec-Fetch-Mode": {"navigate"},
		"Sec-Fetch-Dest": {"document"},
		"Sec-Fetch-Site": {"none"},
	}
	resp, err := v.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	return resp, err
}

// node returns the name of the node that host is, if it is one's, and the address at
// which it was found.
func (v *visitor) node(host string) (string, netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	name, _ := strings.CutSuffix(host, "."+v.g.URL.Hostname())
	if name == host {
		name = ""
	}
	if found := v.at[host]; len(found) > 0 {
		return name, found[0]
	}
	return name, netip.Addr{}
}

// begin makes the visitor's client.
func (v *visitor) begin() {
	if v.g.site != nil {
		v.at[v.g.URL.Hostname()] = []netip.Addr{v.g.site.draw(v.random)}
	}
	tc := &tls.Config{RootCAs: v.g.Roots, VerifyConnection: func(tls.ConnectionState) error {
		v.g.record.handshake()
		return nil
	}}
	var transport http.RoundTripper
	if v.g.HTTP == 3 {
		t := &http3.Transport{TLSClientConfig: tc, Dial: v.dialQUIC}
		v.transport, transport = t, t
	} else {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(v.g.HTTP == 1)
		protocols.SetHTTP2(v.g.HTTP == 2)
		t := &http.Transport{TLSClientConfig: tc, Protocols: protocols, DialContext: v.dial, TLSHandshakeTimeout: connectTime}
		v.transport, transport = t, t
	}
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		panic(err) // it has none to give
	}
	v.client = &http.Client{Transport: transport, Jar: jar, CheckRedirect: v.redirected}
}

var errHops = fmt.Errorf("more than %d redirects", maxHops)

// redirected is called before the client follows a redirect.
func (v *visitor) redirected(r *http.Request, via []*http.Request) error {
	if len(via) > maxHops {
		return errHops
	}
	if r.Response.StatusCode == http.StatusTemporaryRedirect && r.URL.Host != via[len(via)-1].URL.Host {
		v.hops++
		v.moved = true
	}
	return nil
}

// addresses returns where host may be, in the order in which they should be tried. The
// visitor asks once, as a browser whose cache outlives the visit.
func (v *visitor) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	v.mu.Lock()
	found := v.at[host]
	v.mu.Unlock()
	if len(found) > 0 {
		return found, nil
	}
	return v.g.lookup(ctx, host)
}

// find calls dial with the addresses of a host until one answers.
func (v *visitor) find(ctx context.Context, target string, dial func(context.Context, netip.AddrPort) error) error {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	found, err := v.addresses(ctx, host)
	if err != nil {
		return err
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return err
	}
	var errs []error
	for i, a := range found {
		if err := allowed(a); err != nil {
			return err
		}
		timed, cancel := context.WithTimeout(ctx, connectTime)
		err := dial(timed, netip.AddrPortFrom(a, uint16(number)))
		cancel()
		if err == nil {
			found = slices.Clone(found)
			found[0], found[i] = found[i], found[0]
			v.mu.Lock()
			v.at[host] = found
			v.mu.Unlock()
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%w: %w", errConnect, errors.Join(errs...))
}

func (v *visitor) dial(ctx context.Context, network, target string) (conn net.Conn, err error) {
	err = v.find(ctx, target, func(ctx context.Context, a netip.AddrPort) (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, a.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn, v.opened(conn)
}

func (v *visitor) dialQUIC(ctx context.Context, target string, tc *tls.Config, qc *quic.Config) (conn *quic.Conn, err error) {
	err = v.find(ctx, target, func(ctx context.Context, a netip.AddrPort) (err error) {
		conn, err = quic.DialAddr(ctx, a.String(), tc, qc)
		return err
	})
	return conn, err
}

// opened notes a connection that the visitor closes when it goes. The transport may open
// one more than it needs, and may do so when the visitor has gone.
func (v *visitor) opened(c net.Conn) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		c.Close()
		return net.ErrClosed
	}
	v.open = append(v.open, c)
	return nil
}

func (v *visitor) close() {
	v.transport.CloseIdleConnections()
	if c, ok := v.transport.(io.Closer); ok {
		c.Close()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, c := range v.open {
		c.Close()
	}
}
