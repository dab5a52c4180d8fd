// Package load makes visitors for a site of the lab: bounded, repeatable, and as a
// browser behaves as far as a balancer can tell.
//
// Start with [Run]. Visitors come at random times (Poisson). Each has cookies and
// connections of its own, makes some requests with pauses between them, follows redirects
// and stays at the name that it was redirected to, pins included.
//
// It never opens a connection to an address that is neither loopback nor private: not the
// site's, not that of its DNS, and not one that a redirect leads to. Run owns all
// goroutines, and returns when the last has ended. What it remembers does not grow with
// the number of requests.
package load

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of a [Config].
const (
	MaxFor     = 10 * time.Minute // with the warm-up
	MaxClients = 10_000
	MaxRate    = 20_000 // requests a second
	MaxSession = 10_000 // requests
)

// Config says what to ask for, how often, and by whom.
type Config struct {
	// URL is what all requests ask for: under https, at the host and port of the site.
	URL *url.URL

	Rate    float64       // requests a second that are offered, on average
	Session float64       // requests of a visitor, on average
	Fixed   bool          // all visitors make Session requests; else their number is geometric
	Think   time.Duration // mean pause of a visitor after an answer, exponential
	HTTP    int           // 1, 2 or 3: the version

	Warm time.Duration // before anything is measured
	For  time.Duration // that is measured, after that

	// Clients is how many visitors there are at a time at the most. Who comes when there
	// are so many is turned away, and counted.
	Clients int

	Entry Entry          // which address of the site a visitor begins at
	DNS   netip.AddrPort // server that names are looked up at; the zero value for the system's
	Roots *x509.CertPool // nil for the system's

	Seed     uint64         // of the visitors' wishes and times; what the network does has none
	Progress func(Progress) // if not nil, called about every second
}

// Check reports everything that is out of bounds.
func (c *Config) Check() error {
	var errs []error
	check := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	check(c.URL != nil && c.URL.Scheme == "https" && c.URL.Hostname() != "" && c.URL.User == nil, "URL %v: want https://HOST[:PORT]/PATH", c.URL)
	check(c.Rate > 0 && c.Rate <= MaxRate, "rate %v: want more than 0 and at most %d requests a second", c.Rate, MaxRate)
	check(c.Session >= 1 && c.Session <= MaxSession, "session %v: want 1 to %d requests", c.Session, MaxSession)
	check(c.Think >= 0, "think %v: must not be negative", c.Think)
	check(c.HTTP >= 1 && c.HTTP <= 3, "HTTP %d: want 1, 2 or 3", c.HTTP)
	check(c.Warm >= 0 && c.For > 0 && c.Warm+c.For <= MaxFor, "for %v after %v: want more than nothing, and at most %v together", c.For, c.Warm, MaxFor)
	check(c.Clients >= 1 && c.Clients <= MaxClients, "clients %d: want 1 to %d", c.Clients, MaxClients)
	return errors.Join(errs...)
}

// generator is a run.
type generator struct {
	Config
	lookup  lookup
	site    *addresses
	record  *recorder
	clients atomic.Int64 // that there are now
}

// Run sends visitors to the site until the time is over or ctx ends, and says what they
// met. The end of ctx is no error: what was measured until then is the result.
func Run(ctx context.Context, c Config) (*Result, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	find, err := resolver(c.DNS)
	if err != nil {
		return nil, err
	}
	return run(ctx, c, find)
}

func run(ctx context.Context, c Config, find lookup) (*Result, error) {
	g := &generator{Config: c, lookup: find}
	var err error
	if g.site, err = g.siteAddresses(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	g.record = newRecorder(began.Add(c.Warm))
	timed, cancel := context.WithDeadline(ctx, began.Add(c.Warm+c.For))
	defer cancel()

	var all sync.WaitGroup
	all.Go(func() { g.progress(timed, began) })
	g.arrivals(timed, &all, began)
	all.Wait()
	return g.record.result(c, time.Since(began), ctx.Err() != nil), nil
}

// arrivals lets visitors come until ctx ends.
func (g *generator) arrivals(ctx context.Context, all *sync.WaitGroup, began time.Time) {
	random := rand.New(rand.NewPCG(g.Seed, 0))
	gap := float64(time.Second) * g.Session / g.Rate
	next := began
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		// Drawn whether or not there is a place, so that the next ones are the same.
		wishes := rand.NewPCG(random.Uint64(), random.Uint64())
		if g.clients.Load() >= int64(g.Clients) {
			g.record.turnedAway()
		} else {
			g.clients.Add(1)
			all.Go(func() {
				defer g.clients.Add(-1)
				g.visit(ctx, rand.New(wishes))
			})
		}
		// Counted from the last arrival's own time, so that late timers do not lower the rate.
		next = next.Add(time.Duration(gap * random.ExpFloat64()))
		t.Reset(time.Until(next))
	}
}

// Progress is how a run goes.
type Progress struct {
	Since    time.Duration // the beginning
	Warming  bool          // nothing is measured yet
	Clients  int           // there are now
	Requests int           // answered since the last report
	Redirect float64       // of those, per cent that were redirected
	P99      time.Duration // of those
	Errors   int           // since the last report
}

func (p Progress) String() string {
	s := fmt.Sprintf("%3.0fs  %5d requests  %5.1f %% redirected  p99 %v  %d clients", p.Since.Seconds(), p.Requests, p.Redirect, round(p.P99), p.Clients)
	if p.Errors > 0 {
		s += fmt.Sprintf("  %d errors", p.Errors)
	}
	if p.Warming {
		s += "  (warm-up)"
	}
	return s
}

func (g *generator) progress(ctx context.Context, began time.Time) {
	if g.Progress == nil {
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			p := g.record.lately()
			p.Since, p.Warming, p.Clients = now.Sub(began), now.Before(g.record.from), int(g.clients.Load())
			g.Progress(p)
		}
	}
}
