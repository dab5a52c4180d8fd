package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/appliance/node"
	"peerage/balancing/heartbeat"
)

// lanDocument is the site document of the LAN; the test fills in how reports go.
const lanDocument = `site: example.com
hosts: [www.example.com]
nodes:
  n1: {address: 192.0.2.1, internal: 10.0.0.1, vips: [192.0.2.11, "2001:db8::11"]}
  n2: {address: 192.0.2.2, internal: 10.0.0.2, vips: [192.0.2.12, "2001:db8::12"]}
  n3: {address: 192.0.2.3, internal: 10.0.0.3, vips: [192.0.2.13, "2001:db8::13"]}
balancing: {exchange: %s, channel: %s, measure: requests}
takeover: {hold_down: 1s}
routes:
  - path: /
    static: {dir: %q}
  - path: /shop/
    backend: shop
    stateful: {entry: /shop/, exit: [/shop/done]}
backends:
  shop:
    by_node: {n1: ["http://10.0.0.1:9000"], n2: ["http://10.0.0.2:9000"], n3: ["http://10.0.0.3:9000"]}
dns: {zone: example.com}
drain: {grace: 2s}
`

// setUp sets the nodes up as an operator does: the first by 'peerage init', the others by
// copies of its files.
func (l *lan) setUp() {
	t, n1 := l.t, l.nodes[0]
	t.Helper()
	n1.run(t, binary, "init", "--host", lanHost, "--address", "192.0.2.1", "--vip", "192.0.2.11", "--vip", "2001:db8::11",
		"--config", n1.config(), "--data-dir", n1.data())
	text := readFile(t, n1.config())
	for _, n := range l.nodes {
		if n != n1 {
			if err := os.Mkdir(n.data(), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"site.key", "ca.sealed"} {
				writeFile(t, filepath.Join(n.data(), name), readFile(t, filepath.Join(n1.data(), name)), 0o600)
			}
		}
		k := n.name[1:]
		writeFile(t, n.config(), edited(t, text,
			"name: n1", "name: "+n.name,
			"data_dir: "+n1.data(), "data_dir: "+n.data(),
			"interfaces: {public: eth0}", "interfaces: {public: eth0, internal: eth1}",
			"address: 192.0.2.1", "address: {public: 192.0.2."+k+", internal: 10.0.0."+k+"}",
			"# user: peerage", "user: root", // no other can be had in the test's namespace
		), 0o644)
	}
	l.document("multicast", "public")
}

// document writes the site document to all nodes.
func (l *lan) document(exchange, channel string) {
	l.t.Helper()
	for _, n := range l.nodes {
		path := filepath.Join(n.data(), "site.yaml")
		writeFile(l.t, path, l.text(exchange, channel), 0o644)
		n.run(l.t, binary, "site", "check", path)
	}
}

func (l *lan) text(exchange, channel string) string {
	return fmt.Sprintf(lanDocument, exchange, channel, filepath.Join(l.nodes[0].data(), "www"))
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// edited replaces texts that must be there.
func edited(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in\n%s", pairs[i], text)
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// awaitHome waits until each node holds its own VIPs, serves on them, and nobody else
// has them.
func (l *lan) awaitHome() {
	l.t.Helper()
	eventually(l.t, "each node holds its own VIPs alone", func() bool {
		for _, n := range l.nodes {
			st := n.status()
			for _, vip := range n.vips {
				if st == nil || !slices.Contains(st.Listening, vip) || !slices.Equal(l.holders(vip), []string{n.name}) {
					return false
				}
			}
		}
		return true
	})
}

// awaitHolders waits until each of the VIPs is held by one of the others than n, and
// nobody else, and served there.
func (l *lan) awaitHolders(n *lanNode) {
	l.t.Helper()
	eventually(l.t, "one peer stands in for each VIP of "+n.name, func() bool {
		for _, vip := range n.vips {
			names := l.holders(vip)
			if len(names) != 1 || names[0] == n.name {
				return false
			}
			if st := l.node(names[0]).status(); st == nil || !slices.Contains(st.Listening, vip) {
				return false
			}
		}
		return true
	})
}

func (l *lan) node(name string) *lanNode {
	return l.nodes[slices.IndexFunc(l.nodes, func(n *lanNode) bool { return n.name == name })]
}

// awaitNeighbours waits until the client takes the holders of n's VIPs for them.
func (l *lan) awaitNeighbours(n *lanNode) {
	l.t.Helper()
	for _, vip := range n.vips {
		eventually(l.t, "the client knows who has "+vip.String()+" now", func() bool {
			names := l.holders(vip)
			return len(names) == 1 && l.neighbour(vip) == l.node(names[0]).station
		})
	}
}

// TestLAN is a site on a LAN as it is meant: real addresses that move between machines,
// clients on a machine of their own, and what goes wrong with machines and cables.
func TestLAN(t *testing.T) {
	l := newLAN(t, 3)
	l.setUp()
	n1, n2, n3 := l.nodes[0], l.nodes[1], l.nodes[2]
	ca := filepath.Join(n1.dir, "ca.pem")
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(readFile(t, ca))) {
		t.Fatal("ca.pem holds no certificate")
	}
	tc := &tls.Config{RootCAs: roots}
	var all []netip.Addr
	for _, n := range l.nodes {
		all = append(all, n.vips...)
		n.start()
	}
	l.awaitHome()

	t.Run("HTTPS on each VIP", func(t *testing.T) {
		for _, vip := range all {
			at := vip.String()
			if vip.Is6() {
				at = "[" + at + "]"
			}
			for flag, want := range map[string]string{"--http1.1": "200 1.1", "--http2": "200 2"} {
				got := l.client.run(t, "curl", "-sS", flag, "--cacert", ca, "--resolve", lanHost+":443:"+at,
					"-o", "/dev/null", "-w", "%{http_code} %{http_version}", "https://"+lanHost+"/")
				if got != want {
					t.Errorf("curl %s at %s: %q, want %q", flag, vip, got, want)
				}
			}
			resp, err := l.http(tc, vip, 3).Get("https://" + lanHost + "/")
			if err != nil {
				t.Errorf("HTTP/3 at %s: %v", vip, err)
				continue
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 3 {
				t.Errorf("HTTP/3 at %s: %s over %s, want 200", vip, resp.Status, resp.Proto)
			}
		}
	})

	t.Run("DNS on each VIP", func(t *testing.T) {
		for _, flag := range []string{"+notcp", "+tcp"} {
			l.awaitDNS(t, all, flag)
		}
	})

	t.Run("reports go by multicast", func(t *testing.T) {
		for _, n := range l.nodes {
			var st node.Status
			if err := json.Unmarshal([]byte(n.run(t, binary, "status", "--json", "--dir", n.data())), &st); err != nil {
				t.Fatal(err)
			}
			if r := st.Guard.Reports; r.Own == 0 || r.Accepted == 0 || r.Failed > 0 || r.Refused() > 0 {
				t.Errorf("reports of %s: %+v, want some of its own and of the others", n.name, r)
			}
		}
		if n := l.taps[public].of("udp 7947"); n == 0 {
			t.Error("no report passed the public network")
		}
	})

	t.Run("noise changes nothing", func(t *testing.T) {
		marks := l.marks()
		recorded := l.taps[public].report("192.0.2.2")
		rnd := rand.New(rand.NewPCG(1, 2))
		for _, to := range []string{"192.0.2.1:7947", "239.255.79.47:7947"} {
			c, err := l.dial(t.Context(), "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 500 {
				b := bytes.Clone(recorded)
				if i >= 100 {
					b = make([]byte, rnd.IntN(1400))
				}
				for j := range b {
					if i >= 100 {
						b[j] = byte(rnd.Uint32())
					}
				}
				if i >= 50 && i < 100 {
					b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
				}
				c.Write(b)
			}
			c.Close()
		}
		eventually(t, "the refusals are counted", func() bool {
			r := n1.status().Guard.Reports
			return r.Forged >= 800 && r.Replayed >= 90
		})
		if events := l.events(marks); len(events) > 0 {
			t.Errorf("the noise made events:\n%s", strings.Join(events, "\n"))
		}
		l.awaitHome()
	})

	t.Run("a pinned POST is relayed over the internal network", func(t *testing.T) {
		before := l.taps[public].of("tcp 7948")
		cookies := jar(t)
		at1, at2 := l.http(tc, n1.vips[0], 2), l.http(tc, n2.vips[1], 2)
		at1.Jar, at2.Jar = cookies, cookies
		resp, err := at1.Get("https://" + lanHost + "/shop/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		resp, err = at2.Post("https://"+lanHost+"/shop/buy", "text/plain", strings.NewReader("a hat"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-Shop"); resp.StatusCode != http.StatusOK || got != "n1" {
			t.Errorf("POST at n2: %s by %q, want it relayed to n1", resp.Status, got)
		}
		if got := n2.status().Requests.Actions["relay"]; got != 1 {
			t.Errorf("n2 counted %d relays, want 1", got)
		}
		if n := l.taps[internal].of("tcp 7948"); n == 0 {
			t.Error("no relay passed the internal network")
		}
		if n := l.taps[public].of("tcp 7948"); n > before {
			t.Errorf("%d packets of the relay passed the public network", n-before)
		}
	})

	t.Run("a guard is killed", func(t *testing.T) {
		l.awaitNeighbours(n2)
		var ends []func() polled
		for _, vip := range n2.vips {
			ends = append(ends, l.pollDNS(vip))
		}
		n2.signal(syscall.SIGKILL)
		<-n2.ended
		l.awaitHolders(n2)
		l.awaitNeighbours(n2)
		for i, vip := range n2.vips {
			eventually(t, "it answers", func() bool { return l.answers(tc, vip) })
			p := ends[i]()
			t.Logf("kill -9 of a guard, DNS at %s: %s", vip, p)
			if p.outage > 10*time.Second {
				t.Errorf("%s was dark for %v", vip, p.outage)
			}
		}
		l.awaitDNS(t, all, "+notcp")
	})

	t.Run("it returns", func(t *testing.T) {
		end := l.pollDNS(n2.vips[0])
		n2.start()
		l.awaitHome()
		l.awaitNeighbours(n2)
		t.Logf("give-back, DNS at %s: %s", n2.vips[0], end())
	})

	t.Run("a node leaves in order", func(t *testing.T) {
		dns4, dns6 := l.pollDNS(n3.vips[0]), l.pollDNS(n3.vips[1])
		ends := map[string]func() polled{
			"HTTP/1.1, kept":          l.pollHTTPS(tc, n3.vips[0], 1, true, "/"),
			"HTTP/1.1, new each time": l.pollHTTPS(tc, n3.vips[0], 1, false, "/"),
			"HTTP/2, kept":            l.pollHTTPS(tc, n3.vips[1], 2, true, "/"),
			"HTTP/2, takes 100 ms":    l.pollHTTPS(tc, n3.vips[1], 2, true, "/shop/?for=100ms"),
		}
		n3.signal(syscall.SIGTERM)
		l.awaitHolders(n3)
		l.awaitNeighbours(n3)
		<-n3.ended
		if code := n3.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		t.Logf("SIGTERM, DNS: %s", dns4())
		t.Logf("SIGTERM, DNS over IPv6: %s", dns6())
		for what, end := range ends {
			p := end()
			t.Logf("SIGTERM, %s: %s", what, p)
			// These clients never rest, so the node waits for its whole grace. What is under
			// way in the moment of the move may then be lost, and no more.
			if p.failed > 3 {
				t.Errorf("SIGTERM, %s: %d requests were lost", what, p.failed)
			}
		}
		n3.start()
		l.awaitHome()
	})

	t.Run("a server is killed", func(t *testing.T) {
		mark := l.marks()
		end := l.pollDNS(n1.vips[0])
		if err := syscall.Kill(n1.status().ServerPID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "n1 lets its VIPs go", func() bool { return len(l.eventsOf(mark, n1, "vip released")) == 2 })
		l.awaitHome()
		t.Logf("kill -9 of a server, DNS at %s: %s", n1.vips[0], end())
	})

	for what, cut := range map[string]func(bool){
		"a cable is pulled":          func(cut bool) { l.cable("n1", public, !cut) },
		"a switch passes nothing on": func(cut bool) { l.isolate("n1", public, cut) },
	} {
		t.Run(what, func(t *testing.T) {
			l.awaitNeighbours(n1)
			end := l.pollDNS(n1.vips[0])
			cut(true)
			eventually(t, "the client is served", func() bool { return l.answers(tc, n1.vips[0]) && l.answers(tc, n1.vips[1]) })
			t.Logf("%s, DNS at %s: %s", what, n1.vips[0], end())
			end = l.pollDNS(n1.vips[0])
			cut(false)
			began := time.Now()
			eventually(t, "nobody holds what another holds too", func() bool {
				return !slices.ContainsFunc(all, func(vip netip.Addr) bool { return len(l.holders(vip)) != 1 })
			})
			t.Logf("%s: one holder each %d ms after the heal", what, time.Since(began).Milliseconds())
			l.awaitHome()
			for _, n := range l.nodes {
				l.awaitNeighbours(n)
			}
			t.Logf("%s and healed, DNS at %s: %s", what, n1.vips[0], end())
		})
	}

	t.Run("a guard is frozen", func(t *testing.T) {
		end := l.pollDNS(n2.vips[0])
		n2.signal(syscall.SIGSTOP)
		l.awaitHolders(n2)
		l.awaitNeighbours(n2)
		t.Logf("a frozen guard, DNS at %s: %s", n2.vips[0], end())
		n2.signal(syscall.SIGCONT)
		l.awaitHome()
	})

	t.Run("what was left behind is removed", func(t *testing.T) {
		n2.signal(syscall.SIGKILL)
		<-n2.ended
		// Its own addresses, and one that it stood in for: for ever, as by hand.
		n2.configure(n2.vips[0], n2.vips[1], n1.vips[0])
		mark := l.marks()
		n2.start()
		l.awaitHome()
		if removed := l.eventsOf(mark, n2, "vip released"); len(removed) != 3 {
			t.Errorf("n2 says that it has removed:\n%s\nwant three addresses", strings.Join(removed, "\n"))
		}
	})

	for _, test := range []struct{ exchange, channel string }{{"multicast", "internal"}, {"query", "internal"}, {"query", "public"}} {
		t.Run("reports by "+test.exchange+" over the "+test.channel+" network", func(t *testing.T) {
			l.apply(test.exchange, test.channel)
			l.awaitHome()
			l.awaitReports(4) // what was under way has passed
			passed := map[string]int{public: l.taps[public].of("udp 7947"), internal: l.taps[internal].of("udp 7947")}
			before := l.reports()
			l.awaitReports(10)
			after := l.reports()
			for _, n := range l.nodes {
				own, asked := after[n].Own-before[n].Own, after[n].Asked-before[n].Asked
				if (own > 0) != (test.exchange == "multicast") || (asked > 0) != (test.exchange == "query") {
					t.Errorf("reports of %s: %+v, before %+v", n.name, after[n], before[n])
				}
			}
			if test.channel == "internal" {
				// The reports go on; the peers learn by them that the node is of no use.
				end := l.pollDNS(n1.vips[0])
				l.cable("n1", public, false)
				l.awaitHolders(n1)
				l.awaitNeighbours(n1)
				t.Logf("a cable is pulled, DNS at %s: %s", n1.vips[0], end())
				l.cable("n1", public, true)
				l.awaitHome()
			}
			for name, was := range passed {
				if more := l.taps[name].of("udp 7947") - was; (more > 0) != (name == "eth0" && test.channel == "public" || name == "eth1" && test.channel == "internal") {
					t.Errorf("%d packets of reports passed %s", more, name)
				}
			}
		})
	}
}

// reports returns what each node has counted of its reports.
func (l *lan) reports() map[*lanNode]heartbeat.Counters {
	l.t.Helper()
	all := map[*lanNode]heartbeat.Counters{}
	for _, n := range l.nodes {
		eventually(l.t, n.name+" answers", func() bool {
			st := n.status()
			if st != nil {
				all[n] = st.Guard.Reports
			}
			return st != nil
		})
	}
	return all
}

// awaitReports waits until each node has heard that many more reports.
func (l *lan) awaitReports(more uint64) {
	l.t.Helper()
	before := l.reports()
	for _, n := range l.nodes {
		eventually(l.t, n.name+" hears reports", func() bool {
			st := n.status()
			return st != nil && st.Guard.Reports.Accepted >= before[n].Accepted+more
		})
	}
}

// apply changes how the reports of the site go while it runs.
func (l *lan) apply(exchange, channel string) {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "site.yaml")
	writeFile(l.t, path, l.text(exchange, channel), 0o644)
	l.nodes[0].run(l.t, binary, "site", "apply", path, "--dir", l.nodes[0].data())
	// Else the site would go back when a node falls sick, as one is about to.
	l.nodes[0].run(l.t, binary, "site", "confirm", "--dir", l.nodes[0].data())
}

// answers reports whether a client is served at the address.
func (l *lan) answers(tc *tls.Config, vip netip.Addr) bool {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Second)
	defer cancel()
	c := l.http(tc, vip, 2)
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+lanHost+"/", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// marks returns how long the logs of the nodes are now.
func (l *lan) marks() map[*lanNode]int {
	m := map[*lanNode]int{}
	for _, n := range l.nodes {
		m[n] = len(n.lines())
	}
	return m
}

// eventsOf returns the lines of n with the message, from the mark on.
func (l *lan) eventsOf(marks map[*lanNode]int, n *lanNode, msg string) (lines []string) {
	for _, e := range n.lines()[marks[n]:] {
		if msg == "" || e.Msg == msg {
			lines = append(lines, e.line)
		}
	}
	return lines
}

// events returns the lines of all nodes from the marks on.
func (l *lan) events(marks map[*lanNode]int) (lines []string) {
	for _, n := range l.nodes {
		lines = append(lines, l.eventsOf(marks, n, "")...)
	}
	return lines
}

// report returns the latest report from an address.
func (p *tap) report(from string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.last[from])
}

// configure puts addresses on the machine that stay until they are removed.
func (n *lanNode) configure(vips ...netip.Addr) {
	n.t.Helper()
	err := n.do(func() error {
		ifi, err := netlink.LinkByName(public)
		if err != nil {
			return err
		}
		for _, vip := range vips {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
			if vip.Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(ifi, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// awaitDNS waits until each of the name servers gives all the VIPs of the site.
func (l *lan) awaitDNS(t *testing.T, servers []netip.Addr, flag string) {
	t.Helper()
	args := []string{"+short", "+tries=1", "+time=2", flag}
	var want []string
	for _, vip := range servers {
		args = append(args, "@"+vip.String(), lanHost, "A", "@"+vip.String(), lanHost, "AAAA")
		for _, a := range servers {
			want = append(want, a.String())
		}
	}
	slices.Sort(want)
	eventually(t, "all addresses from all name servers", func() bool {
		got := strings.Fields(l.client.run(t, "dig", args...))
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}
