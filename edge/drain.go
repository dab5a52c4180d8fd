package edge

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// requests counts those in progress.
type requests struct{ n atomic.Int64 }

// counted returns h so that its requests are counted.
func (c *requests) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.n.Add(1)
		defer c.n.Add(-1)
		h.ServeHTTP(w, r)
	})
}

// of returns srv so that its requests are counted.
func (c *requests) of(srv *http.Server) *http.Server {
	srv.Handler = c.counted(srv.Handler)
	return srv
}

// wait returns when no request is in progress, or ctx ends. It looks now and then, as
// http.Server.Shutdown does.
func (c *requests) wait(ctx context.Context) {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for c.n.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// waitQuiet returns when inProgress has been 0 for d, or ctx ends.
func waitQuiet(ctx context.Context, d time.Duration, inProgress func() int64) {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for quiet := time.Now(); time.Since(quiet) < d; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if inProgress() > 0 {
			quiet = time.Now()
		}
	}
}

// lastMoment is what requests get to end by themselves once they were cancelled.
const lastMoment = time.Second

// drainable is a server of which everything ends with the drain. Shutdown and Close
// know nothing of connections that were handed over to a tunnel.
type drainable struct {
	*http.Server
	requests requests
	cancel   context.CancelFunc // of all requests
}

func newDrainable(srv *http.Server) *drainable {
	ctx, cancel := context.WithCancel(context.Background())
	d := &drainable{cancel: cancel}
	d.Server = d.requests.of(srv)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	return d
}

// drain stops listening at once, and ends all requests that are left when ctx ends.
func (d *drainable) drain(ctx context.Context) {
	if d.Shutdown(ctx) != nil {
		d.Close()
	}
	d.requests.wait(ctx) // for the tunnels
	d.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), lastMoment)
	defer cancel()
	d.requests.wait(ctx)
}
