package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"peerage/edge"
)

// settling is how long a server that starts may fail its own check without a word: its
// listeners are being opened.
const settling = time.Second

// outFor is how long a node waits before it believes that it was removed from its site.
const outFor = 3 * time.Second

// quietEvery is the pause between two self-checks while a node is at rest. It must be a
// small part of the age at which the guard takes a token for stale, and a multiple of
// [healthEvery].
const quietEvery = 2 * healthEvery

// checks are the self-checks of a server. They are for one goroutine.
type checks struct {
	s       *server
	own     selfCheck
	failing string    // why the last one failed, "" if it did not
	out     time.Time // since when the peers refuse this node; zero if they do not
	told    token     // to the guard
	at      time.Time // when
}

// check asks the node's own listener for its health, as a client would, and gives the
// guard a token for each answer. No answer, no token; no token, no VIP.
func (s *server) check(ctx context.Context) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ca.CertPEM())
	at := netip.AddrPortFrom(s.nodeFile.Address.Public, s.nodeFile.Listen.HTTPS).String()
	c := &checks{s: s, own: selfCheck{at: at, roots: roots}}
	defer c.own.close()
	select {
	case <-s.obeys:
	case <-ctx.Done():
		return nil
	}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			if err := c.look(ctx, time.Now()); err != nil {
				return err
			}
		}
		// On the multiples, as the meter: then an idle server wakes up once for both.
		now := time.Now()
		next.Reset(now.Truncate(healthEvery).Add(healthEvery).Sub(now))
	}
}

// look makes a check, unless the node is at rest and has nothing new to tell since the last.
func (c *checks) look(ctx context.Context, now time.Time) error {
	s := c.s
	t := token{Load: s.meter.Load()}
	t.Debit, t.Shed = s.edge.Books()
	t.Unable, t.Amiss = s.diagnose()
	if now.Sub(c.at) < quietEvery-healthEvery/2 && s.isQuiet() && t.saysNoMoreThan(&c.told) {
		return nil
	}
	g := s.current.Load()
	if err := c.own.ask(ctx, g.doc.Hosts[0]); err != nil {
		c.failed(ctx, err)
		return nil
	}
	c.failing = ""
	if s.current.Load() == g {
		s.passed.Add(1)
	}
	if !s.member.isOut() {
		c.out = time.Time{}
	} else if c.out.IsZero() {
		c.out = time.Now()
	}
	if !c.out.IsZero() && time.Since(c.out) > outFor {
		if err := s.wish(ctx, change{Leave: "the peers refuse it; let it join anew with a token"}); err != nil {
			return err
		}
		<-ctx.Done() // there is nothing more to say
		return nil
	}
	if !c.out.IsZero() || !s.member.isReady() {
		return nil // its VIPs would be served with what the site had when the node went
	}
	t.Load = s.meter.Load()
	if s.guard.send(toGuard{Token: &t}) != nil {
		return errGuardGone
	}
	c.told, c.at = t, now
	return nil
}

func (c *checks) failed(ctx context.Context, err error) {
	if ctx.Err() == nil && c.failing != err.Error() && time.Since(c.s.started) > settling {
		c.failing = err.Error()
		c.s.log.Warn("self-check failed", "err", err)
	}
}

// isQuiet reports whether the node is at rest: it serves what it is to serve, nobody asks
// for anything, and tokens count for so long that half as many do.
func (s *server) isQuiet() bool {
	v := s.view.Load()
	me := v.Me()
	return me != nil && me.Serves() && s.meter.Rests() && s.passed.Load() >= settledAfter &&
		staleAfter(s.document(), v.Settings.Period) >= 5*quietEvery
}

// saysNoMoreThan reports whether t tells the guard nothing that was does not.
func (t *token) saysNoMoreThan(was *token) bool {
	return math.Abs(float64(t.Load-was.Load)) < 1 && slices.Equal(t.Unable, was.Unable) && slices.Equal(t.Amiss, was.Amiss)
}

// selfCheck asks the node's own listener for its health over one connection, as a client
// would. It is what an idle server does most: so it is no http.Client, which hands each
// request to two goroutines, and gives it a timer. It is for one goroutine.
type selfCheck struct {
	at    string // host address and port
	roots *x509.CertPool

	conn   net.Conn // nil if there is none
	answer *bufio.Reader
	host   string      // that conn is for
	uncut  func() bool // ends the watch for the end of ctx
}

const (
	askWithin = time.Second // one check, with all that it takes
	maxHealth = 1 << 10     // octets of an answer's body
)

// ask returns nil if the node has answered for host. A status such as 503 is an answer as
// well: the node drains, and serves what it has.
func (c *selfCheck) ask(ctx context.Context, host string) error {
	until := time.Now().Add(askWithin)
	if c.conn != nil && c.host == host {
		err := c.exchange(host, until)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	// A connection from before may have been closed in order: that it fails says nothing.
	c.close()
	if err := c.open(ctx, host, until); err != nil {
		return err
	}
	return c.exchange(host, until)
}

func (c *selfCheck) open(ctx context.Context, host string, until time.Time) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Deadline: until}, Config: &tls.Config{RootCAs: c.roots, ServerName: host}}
	conn, err := d.DialContext(ctx, "tcp", c.at)
	if err != nil {
		return err
	}
	c.conn, c.answer, c.host = conn, bufio.NewReader(conn), host
	c.uncut = context.AfterFunc(ctx, func() { conn.Close() })
	return nil
}

// exchange asks over the connection that is open, and closes it unless it can be used again.
func (c *selfCheck) exchange(host string, until time.Time) error {
	again, err := c.once(host, until)
	if !again {
		c.close()
	}
	return err
}

func (c *selfCheck) once(host string, until time.Time) (again bool, err error) {
	if err := c.conn.SetDeadline(until); err != nil {
		return false, err
	}
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", edge.HealthPath, host); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(c.answer, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxHealth+1))
	return err == nil && n <= maxHealth && !resp.Close, err
}

func (c *selfCheck) close() {
	if c.conn != nil {
		c.uncut()
		c.conn.Close()
		c.conn = nil
	}
}
