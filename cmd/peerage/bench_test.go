package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"peerage/appliance/demo/bank"
	"peerage/appliance/load"
	"peerage/appliance/node"
	"peerage/appliance/setup"
	"peerage/balancing"
	"peerage/balancing/keys"
	"peerage/balancing/sim"
	"peerage/tls/certs"
)

// reality is the scenario of [BenchmarkRealSite]: three nodes whose processors are
// emulated, so that two real cores are enough, and visitors of whom more than half begin
// at the first node.
func reality() sim.Scenario {
	s := sim.Base()
	s.Name = "real"
	s.Nodes, s.Cores = 3, bank.Cores
	s.Load, s.Service, s.Law = 80, 40*time.Millisecond, sim.Exponential
	s.Session, s.Think = 10, time.Second
	s.RTT, s.Handshake = time.Millisecond, 0 // on loopback; the processors do no handshakes
	s.Resolvers, s.Zipf, s.TTL = s.Nodes, 1.2, 1000*time.Hour
	s.Measure, s.Full = sim.Requests, 1
	s.Cold, s.WarmUp, s.Measured = true, 20*time.Second, 60*time.Second
	return s
}

const (
	agree      = 0.15 // difference of the redirected shares, relative
	agreePoint = 0.5  // the same in points; the larger counts
	saturated  = 80   // per cent of this machine's CPUs, above which nothing is said
)

// BenchmarkRealSite lets the same visitors come to a site of three real nodes, and to the
// simulated one. If the shares of redirected requests differ, the simulation misses
// something, or the nodes do something else than they are meant to. It takes 80 s for
// each scenario, and a machine that has nothing else to do.
func BenchmarkRealSite(b *testing.B) {
	for _, c := range []struct {
		name   string
		change func(*sim.Scenario)
	}{
		{"skewed", func(*sim.Scenario) {}},
		{"one-entry", func(s *sim.Scenario) { s.Zipf = 20 }},
		{"rule=patent", func(s *sim.Scenario) { s.Policy.Rule = balancing.Patent }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := reality()
			c.change(&s)
			want := simulateOften(b, s)
			for b.Loop() {
				compare(b, s, want)
			}
		})
	}
}

// figures are what is compared.
type figures struct{ redirected, spread, p99 float64 }

// simulateOften returns the means of some runs, and the standard deviation of one.
func simulateOften(b *testing.B, s sim.Scenario) (f figures) {
	const runs = 20
	squares := 0.0
	for seed := range uint64(runs) {
		s.Seed = seed + 1
		r, err := sim.Run(b.Context(), s, nil)
		if err != nil {
			b.Fatal(err)
		}
		f.redirected += r.Redirected / runs
		f.p99 += r.P99 / runs
		squares += r.Redirected * r.Redirected / runs
	}
	f.spread = math.Sqrt(max(0, squares-f.redirected*f.redirected))
	return f
}

// compare runs the scenario on real nodes.
func compare(b *testing.B, s sim.Scenario, want figures) {
	site := startSite(b, s)
	defer site.stop()
	cpu := cpuTimes(b)
	r, err := load.Run(b.Context(), site.visitors(s))
	if err != nil {
		b.Fatal(err)
	}
	busy := cpuTimes(b).busySince(cpu)
	site.tell()
	var text strings.Builder
	r.Table(&text)
	b.Logf("CPUs of this machine %.0f %% busy\n%s", busy, &text)

	redirected := 100 * float64(r.Redirects) / float64(max(r.Requests, 1))
	b.ReportMetric(redirected, "redirected-%")
	b.ReportMetric(want.redirected, "simulated-%")
	b.ReportMetric(want.spread, "simulated-sd-%")
	b.ReportMetric(redirected/want.redirected, "redirected/simulated")
	b.ReportMetric(r.P99, "p99-ms")
	b.ReportMetric(want.p99, "simulated-p99-ms")
	b.ReportMetric(busy, "CPU-%")
	b.ReportMetric(0, "ns/op")
	switch {
	case busy > saturated:
		b.Logf("the machine is short of CPU itself: the comparison says nothing")
	case r.Failed() > 0 || r.TurnedAway > 0 || r.Status["2xx"] != r.Requests:
		b.Errorf("not all was answered well: errors %v, %d turned away, status %v of %d", r.Errors, r.TurnedAway, r.Status, r.Requests)
	case math.Abs(redirected-want.redirected) > max(agree*want.redirected, agreePoint):
		b.Errorf("%.2f %% of the requests were redirected, the simulation says %.2f %%: they differ by more than %.0f %%", redirected, want.redirected, 100*agree)
	}
}

// realSite is a site of real nodes, made for a scenario.
type realSite struct {
	b     *testing.B
	dir   string
	roots *x509.CertPool
	nodes []*realNode
	banks []*http.Server
	wg    sync.WaitGroup
}

type realNode struct {
	name               balancing.NodeID
	address, vip, bank netip.Addr
	dir                string
	cmd                *exec.Cmd
}

const (
	realHTTPS = 8443
	realDNS   = 8053
	realBank  = 8090
)

// startSite returns when all nodes answer.
func startSite(b *testing.B, s sim.Scenario) *realSite {
	r := &realSite{b: b, dir: b.TempDir()}
	b.Cleanup(r.stop)
	for i := range s.Nodes {
		at := func(ten int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(10*ten + i + 1)}) }
		name := fmt.Sprintf("n%d", i+1)
		r.nodes = append(r.nodes, &realNode{balancing.NodeID(name), at(1), at(2), at(3), filepath.Join(r.dir, name), nil})
	}
	r.write(s)
	for _, n := range r.nodes {
		r.startBank(n)
		r.startNode(n)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		if !slices.ContainsFunc(r.nodes, func(n *realNode) bool { return !r.ready(n) }) {
			return r
		}
		if time.Now().After(deadline) {
			b.Fatal("the site is not ready after 30 s")
		}
	}
}

// ready reports whether n answers on its VIP and sees that all others do.
func (r *realSite) ready(n *realNode) bool {
	ctx, cancel := context.WithTimeout(r.b.Context(), time.Second)
	defer cancel()
	st, err := node.Client(n.dir).Status(ctx)
	if err != nil || !slices.Contains(st.Listening, n.vip) {
		return false
	}
	return !slices.ContainsFunc(st.View.Nodes, func(n balancing.Node) bool { return !n.Serves() || len(n.Held) != 1 })
}

// write makes the files of all nodes.
func (r *realSite) write(s sim.Scenario) {
	ca, err := certs.NewCA("real", time.Now())
	if err != nil {
		r.b.Fatal(err)
	}
	r.roots = x509.NewCertPool()
	r.roots.AppendCertsFromPEM(ca.CertPEM())
	key := keys.Generate()
	for _, n := range r.nodes {
		err := setup.Write(setup.Files{NodePath: n.file(), Node: n.text(), Document: r.document(s), Key: key, CA: ca})
		if err != nil {
			r.b.Fatal(err)
		}
	}
}

func (n *realNode) file() string { return filepath.Join(n.dir, "node.yaml") }

func (n *realNode) text() string {
	return fmt.Sprintf(`name: %s
data_dir: %q
interfaces: {public: lo}
address: %s
listen: {http: 8080, https: %d, dns: %d, reports: 7947, relay: 7948}
`, n.name, n.dir, n.address, realHTTPS, realDNS)
}

// document is the site document for a scenario. Load is the number of requests in
// progress per emulated core, as the simulation has it.
func (r *realSite) document(s sim.Scenario) string {
	var d strings.Builder
	fmt.Fprintf(&d, "site: real\nhosts: [%s]\nnodes:\n", host)
	for _, n := range r.nodes {
		fmt.Fprintf(&d, "  %s: {address: %s, vips: [%s]}\n", n.name, n.address, n.vip)
	}
	fmt.Fprintf(&d, "balancing: {period: %v, light: %v, margin: %v, rule: %v, measure: requests, full: %d}\n",
		s.Period, float64(s.Policy.Light), float64(s.Policy.Margin), s.Policy.Rule, int(s.Full*float64(s.Cores)))
	fmt.Fprintf(&d, "routes:\n  - {path: /, backend: bank}\nbackends:\n  bank:\n    by_node:\n")
	for _, n := range r.nodes {
		fmt.Fprintf(&d, "      %s: [%q]\n", n.name, fmt.Sprintf("http://%s:%d", n.bank, realBank))
	}
	fmt.Fprintf(&d, "dns: {zone: peerage.test, ttl: 20s}\n")
	return d.String()
}

func (r *realSite) startBank(n *realNode) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(n.bank, realBank).String())
	if err != nil {
		r.b.Fatal(err)
	}
	s := &http.Server{
		Handler:           bank.New(bank.Config{Name: string(n.name)}),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	r.banks = append(r.banks, s)
	r.wg.Go(func() { s.Serve(l) })
}

func (r *realSite) startNode(n *realNode) {
	log, err := os.Create(filepath.Join(n.dir, "node.log"))
	if err != nil {
		r.b.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(binary, "run", "--config", n.file())
	n.cmd.Stderr = log
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		r.b.Fatal(err)
	}
}

// tell logs why the nodes redirected, and why not.
func (r *realSite) tell() {
	for _, n := range r.nodes {
		ctx, cancel := context.WithTimeout(r.b.Context(), time.Second)
		st, err := node.Client(n.dir).Status(ctx)
		cancel()
		if err != nil {
			r.b.Errorf("status of %s: %v", n.name, err)
			continue
		}
		r.b.Logf("%s with the warm-up: %v, reasons %v", n.name, st.Requests.Actions, st.Requests.Reasons)
	}
}

// stop ends the site. It may be called again.
func (r *realSite) stop() {
	for _, n := range r.nodes {
		if n.cmd != nil {
			n.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	for _, n := range r.nodes {
		if n.cmd != nil {
			n.cmd.Wait()
			n.cmd = nil
		}
		if log, err := os.ReadFile(filepath.Join(n.dir, "node.log")); err == nil && r.b.Failed() {
			r.b.Logf("log of %s:\n%s", n.name, log)
		}
	}
	for _, s := range r.banks {
		s.Close()
	}
	r.wg.Wait()
}

// visitors are those of the scenario.
func (r *realSite) visitors(s sim.Scenario) load.Config {
	capacity := float64(s.Nodes*s.Cores) / s.Service.Seconds()
	var entry load.Entry
	for k, n := range r.nodes {
		entry.To = append(entry.To, load.Share{Address: n.vip, Weight: math.Pow(float64(k+1), -s.Zipf)})
	}
	return load.Config{
		URL: &url.URL{
			Scheme: "https", Host: fmt.Sprintf("%s:%d", host, realHTTPS), Path: "/work",
			RawQuery: fmt.Sprintf("for=%v&law=%v", s.Service, s.Law),
		},
		Rate: capacity * s.Load / 100, Session: s.Session, Think: s.Think,
		HTTP: 2, Warm: s.WarmUp, For: s.Measured, Clients: 2000,
		Entry: entry,
		DNS:   netip.AddrPortFrom(r.nodes[0].address, realDNS),
		Roots: r.roots, Seed: 1,
	}
}

// ticks are those of the clock that this machine's CPUs have spent.
type ticks struct{ idle, all uint64 }

func cpuTimes(b *testing.B) (t ticks) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	var user, nice, system, idle, wait, irq, soft, steal uint64
	fmt.Sscanf(string(stat), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft, &steal)
	return ticks{idle + wait, user + nice + system + idle + wait + irq + soft + steal}
}

func (t ticks) busySince(s ticks) float64 {
	return 100 * (1 - float64(t.idle-s.idle)/float64(cmp.Or(t.all-s.all, 1)))
}
