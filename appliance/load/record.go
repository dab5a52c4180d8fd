package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// outcome is what became of a request.
type outcome struct {
	took    time.Duration
	status  int // of the last answer
	moved   bool
	hops    int // answers of status 307
	node    string
	address netip.Addr
	kind    string // of the error, or ""
}

var errConnect = errors.New("no address answers")

// kindOf names what kind of an error err is: "" for none.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, errForeign) {
		return "foreign address"
	}
	if errors.Is(err, errHops) {
		return "redirects"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "DNS"
	}
	if isTLS(err) {
		return "TLS"
	}
	if errors.Is(err, errConnect) {
		return "connect"
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return "broken off"
}

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok && e.ErrorCode.IsCryptoError() {
		return true
	}
	_, ok := errors.AsType[tls.AlertError](err)
	return ok
}

// counts are what is added up over some time.
type counts struct {
	requests  int // answered
	moved     int // of those, the ones that were redirected
	redirects int
	failed    int
	times     histogram
}

func (c *counts) add(o outcome) {
	if o.kind != "" {
		c.failed++
		return
	}
	c.requests++
	c.redirects += o.hops
	if o.moved {
		c.moved++
	}
	c.times.add(o.took)
}

// recorder adds up what the visitors meet, from the end of the warm-up on.
type recorder struct {
	from time.Time

	mu         sync.Mutex
	recent     counts // since the last progress
	all        counts
	errors     map[string]int // by kind
	classes    [6]int         // of status, by first digit
	nodes      map[netip.Addr]*share
	visitors   int
	noPlace    int
	handshakes int
}

// share is what an address has served.
type share struct {
	node     string
	requests int
}

func newRecorder(from time.Time) *recorder {
	return &recorder{from: from, errors: make(map[string]int), nodes: make(map[netip.Addr]*share)}
}

// count calls f if something that happens now is measured.
func (r *recorder) count(f func()) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now.Before(r.from) {
		f()
	}
}

func (r *recorder) arrived()    { r.count(func() { r.visitors++ }) }
func (r *recorder) turnedAway() { r.count(func() { r.noPlace++ }) }
func (r *recorder) handshake()  { r.count(func() { r.handshakes++ }) }

func (r *recorder) add(o outcome) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recent.add(o)
	if now.Before(r.from) {
		return
	}
	r.all.add(o)
	if o.kind != "" {
		r.errors[o.kind]++
		return
	}
	r.classes[min(o.status/100, 5)]++
	s := r.nodes[o.address]
	if s == nil {
		if len(r.nodes) >= maxAddresses {
			return
		}
		s = new(share)
		r.nodes[o.address] = s
	}
	s.requests++
	if o.node != "" {
		s.node = o.node
	}
}

// lately returns what happened since the last call.
func (r *recorder) lately() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.recent
	p := Progress{Requests: c.requests, Redirect: percent(c.moved, c.requests), P99: c.times.quantile(0.99), Errors: c.failed}
	*c = counts{}
	return p
}

func percent(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}
