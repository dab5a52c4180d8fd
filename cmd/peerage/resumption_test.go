package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// visitor is a client of one node, by one version of HTTP, that makes a connection for each
// visit and keeps nothing but the TLS session.
type visitor struct {
	c       *changing
	name    string
	vip     string
	version int
	tickets tickets
}

// tickets is a session cache that tells when it is given one.
type tickets struct {
	tls.ClientSessionCache
	came chan struct{} // capacity 1
}

func (t tickets) Put(key string, s *tls.ClientSessionState) {
	t.ClientSessionCache.Put(key, s)
	if s == nil {
		return
	}
	select {
	case t.came <- struct{}{}:
	default:
	}
}

func (c *changing) visitor(n *grownNode, version int) *visitor {
	return &visitor{
		c, fmt.Sprintf("HTTP/%d at %s", version, n.name), c.vip(n), version,
		tickets{tls.NewLRUClientSessionCache(1), make(chan struct{}, 1)},
	}
}

// visit fetches a page, and stays until it has the ticket for the next visit. It reports
// whether the TLS session of the last visit was resumed.
func (v *visitor) visit() (resumed bool, err error) {
	rt, end := v.c.transport(v.vip, v.version, new(atomic.Int64))
	defer end()
	switch t := rt.(type) {
	case *http.Transport:
		t.TLSClientConfig.ClientSessionCache = v.tickets
	case *http3.Transport:
		t.TLSClientConfig.ClientSessionCache = v.tickets
	}
	select {
	case <-v.tickets.came: // of the last visit, a second one
	default:
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: rt}).Get(grownURL + "/")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != v.version {
		return false, fmt.Errorf("%s by %s", resp.Status, resp.Proto)
	}
	select {
	case <-v.tickets.came:
	case <-time.After(10 * time.Second):
		return false, errors.New("no ticket for the next visit")
	}
	return resp.TLS.DidResume, nil
}

// resume visits, and must find its session again.
func (v *visitor) resume() bool {
	resumed, err := v.visit()
	switch {
	case err != nil:
		v.c.fail("%s: %v", v.name, err)
	case !resumed:
		v.c.fail("%s: the TLS session is not resumed", v.name)
	}
	return err == nil && resumed
}

// TestSessionsOutliveTheSiteKey replaces the site key under clients that come again and
// again: each resumes its TLS session every time, over TCP and QUIC, at every node, and so do
// those that come back only when the key is no more.
func TestSessionsOutliveTheSiteKey(t *testing.T) {
	c := &changing{grown: newSwift(t, 3), roots: x509.NewCertPool()}
	n1 := c.nodes[0]
	c.roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(n1.dir, "ca.pem"))))
	var early, steady []*visitor
	for _, n := range c.nodes {
		for version := 1; version <= 3; version++ {
			for _, all := range []*[]*visitor{&early, &steady} {
				v := c.visitor(n, version)
				if resumed, err := v.visit(); err != nil || resumed {
					t.Fatalf("%s, at the first visit: resumed %t, %v", v.name, resumed, err)
				}
				*all = append(*all, v)
			}
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	rounds := make([]atomic.Int64, len(steady))
	for i, v := range steady {
		clients.Go(func() {
			for ctx.Err() == nil && v.resume() {
				rounds[i].Add(1)
				pause(ctx, 5*time.Millisecond)
			}
		})
	}
	// more waits until each has been there so many times again, or has failed.
	more := func(times int64) {
		for i, v := range steady {
			want := rounds[i].Load() + times
			eventually(t, v.name+" is at work", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return rounds[i].Load() >= want || len(c.failed) > 0
			})
		}
	}
	more(2)
	before := n1.status().Agreed.Key.Key
	if out := n1.must("key", "rotate", "--dir", n1.data()); !strings.Contains(out, "steady") {
		t.Errorf("rotate says %s", out)
	}
	for _, n := range c.nodes {
		if st := n.status(); st.Agreed.Key.Key == before {
			t.Errorf("%s has the site key still that it had", n.name)
		}
	}
	more(2)
	stop()
	clients.Wait()
	for _, v := range early {
		v.resume()
	}
	total := int64(0)
	for i := range rounds {
		total += rounds[i].Load()
	}
	t.Logf("%d sessions were resumed meanwhile", total)
	for _, why := range c.failed {
		t.Error(why)
	}
}
