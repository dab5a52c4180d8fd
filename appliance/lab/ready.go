package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"peerage/edge"
)

// readyWithin bounds [Lab.AwaitReady]. It takes about two seconds on a machine that has
// nothing else to do.
const readyWithin = 90 * time.Second

// AwaitReady returns when each VIP is held by its home node alone, and answers HTTPS and
// DNS there to the client.
func (l *Lab) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	pem, err := os.ReadFile(filepath.Join(l.c.Dir, caFile))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		n, amiss := l.notReady(ctx, roots)
		if amiss == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%w after %v; %s ends with\n%s", amiss, readyWithin, n.Log(), tail(n.Log(), 10))
			}
			return context.Cause(ctx)
		}
		if _, err := n.current(); err != nil {
			return fmt.Errorf("%s has ended by itself; its log ends with\n%s", n.Name, tail(n.Log(), 10))
		}
	}
}

// notReady returns the first node that is not ready, and what is amiss.
func (l *Lab) notReady(ctx context.Context, roots *x509.CertPool) (*Node, error) {
	for _, n := range l.nodes {
		for _, vip := range n.VIPs {
			holders, err := l.holders(vip)
			if err == nil && !slices.Equal(holders, []string{n.Name}) {
				err = fmt.Errorf("it is held by %q", holders)
			}
			if err == nil {
				err = l.ask(ctx, vip, roots)
			}
			if err != nil {
				return n, fmt.Errorf("%s does not serve on its VIP %s (%w)", n.Name, vip, err)
			}
		}
	}
	return nil, nil
}

// ask asks the site at a VIP, from the client.
func (l *Lab) ask(ctx context.Context, vip netip.Addr, roots *x509.CertPool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	from, err := l.Machine(client)
	if err != nil {
		return err
	}
	dial := func(port uint16) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, _ string) (c net.Conn, err error) {
			return c, from.Do(func() error {
				var d net.Dialer
				c, err = d.DialContext(ctx, network, netip.AddrPortFrom(vip, port).String())
				return err
			})
		}
	}
	t := &http.Transport{DialContext: dial(443), TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	defer t.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+Host+edge.HealthPath, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)); err != nil || resp.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("its health is %s", resp.Status), err)
	}
	dns := &net.Resolver{PreferGo: true, Dial: dial(53)}
	_, err = dns.LookupNetIP(ctx, "ip4", Host)
	return err
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\n' {
			if lines--; lines == 0 {
				return string(b[i+1:])
			}
		}
	}
	return string(b)
}
