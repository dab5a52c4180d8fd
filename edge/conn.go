package edge

import (
	"cmp"
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

// connKey is the context key of a connection's *conn.
type connKey struct{}

// conn is what is remembered of one client connection.
type conn struct {
	proxy netip.Addr // the proxy that opened it, and named its client in the PROXY protocol

	first  atomic.Int64 // unix nanoseconds of its first request; 0 before
	last   atomic.Int64 // of its latest
	pinned atomic.Bool  // its client has a pin
	steer  atomic.Pointer[steer]
}

// steer is an offer to go on at a peer.
type steer struct {
	to balancing.NodeID
	at time.Time // when it was made last
}

func withConn(ctx context.Context, proxy netip.Addr) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{proxy: proxy})
}

// connOf returns the connection of ctx, or nil.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// request notes a request, and returns the time since the one before; negative for the
// first. A connection that many clients share is nil, and each of their requests a first.
func (c *conn) request(now time.Time) time.Duration {
	if c == nil {
		return -1
	}
	c.first.CompareAndSwap(0, now.UnixNano())
	last := c.last.Swap(now.UnixNano())
	if last == 0 {
		return -1
	}
	return cmp.Or(max(0, time.Duration(now.UnixNano()-last)), 1)
}

// young reports whether the first request came a moment ago.
func (c *conn) young(now time.Time) bool {
	return now.UnixNano()-c.first.Load() < int64(arrival)
}

// offered returns the peer that the client was last told to go on at, "" for none or if
// that has run out.
func (c *conn) offered(v *balancing.View, now time.Time) balancing.NodeID {
	if c == nil || c.pinned.Load() {
		return ""
	}
	last := c.steer.Load()
	if last == nil || now.Sub(last.at) >= steerLife {
		return ""
	}
	if n := v.Node(last.to); n == nil || !n.Serves() {
		return ""
	}
	return last.to
}
