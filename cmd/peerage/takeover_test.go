package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"peerage/appliance/node"
	"peerage/takeover"
)

// guarded is a site on a LAN with a router, where somebody watches who answers.
type guarded struct {
	*lan
	all  []netip.Addr
	tls  *tls.Config
	near *watcher // on the side of the client
	far  *watcher // on a network apart
}

// swiftly is what a site document needs so that a node that returns has its VIPs soon.
const swiftly = "takeover: {hold_down: 100ms}"

func newGuarded(t *testing.T, nodes int) *guarded {
	g := &guarded{lan: newLAN(t, nodes)}
	g.addRouter()
	g.setUp()
	for _, n := range g.nodes {
		path := filepath.Join(n.data(), "site.yaml")
		writeFile(t, path, edited(t, readFile(t, path), "takeover: {hold_down: 1s}", swiftly, "grace: 2s", "grace: 200ms"), 0o644)
		g.all = append(g.all, n.vips...)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(g.nodes[0].dir, "ca.pem")))) {
		t.Fatal("ca.pem holds no certificate")
	}
	g.tls = &tls.Config{RootCAs: roots}
	g.bridge(apart(public))
	g.near = g.newWatcher("near", "2001:db8::fd", public)
	g.far = g.newWatcher("far", "2001:db8::fc", apart(public))
	for _, n := range g.nodes {
		n.start()
	}
	g.awaitHome()
	for _, n := range g.nodes {
		var st node.Status
		if err := json.Unmarshal([]byte(n.run(t, binary, "status", "--json", "--dir", n.data())), &st); err != nil {
			t.Fatal(err)
		}
		switch f := st.Guard.Takeover; {
		case f.Fence != "":
			t.Skipf("no fence around the VIPs of %s: %s", n.name, f.Fence)
		case !f.Fenced:
			t.Fatalf("%s does not say that its VIPs are fenced: %+v", n.name, f)
		}
	}
	for _, vip := range g.all { // so that the client knows all stations
		eventually(t, "the client is served at "+vip.String(), func() bool { return g.answers(g.tls, vip) })
	}
	return g
}

// trial is one fault, from before it to when all is well again.
type trial struct {
	*guarded
	t      *testing.T
	victim *lanNode
	began  time.Time
	next   map[netip.Addr]string // who is to have its VIPs, if it has not
	ends   func() ([]time.Duration, polled)
}

// begin lets clients ask the VIPs of n.
func (g *guarded) begin(t *testing.T, n *lanNode) *trial {
	t.Helper()
	g.awaitNeighbours(n)
	x := &trial{guarded: g, t: t, victim: n, next: map[netip.Addr]string{}}
	v := *g.nodes[0].status().View
	for i := range v.Nodes {
		if string(v.Nodes[i].ID) == n.name {
			v.Nodes[i].Online, v.Nodes[i].Held = false, nil
		}
	}
	for _, a := range takeover.Plan(&v, nil) {
		if slices.Contains(n.vips, a.VIP) {
			x.next[a.VIP] = string(a.Node)
		}
	}
	dns, https := g.probeDNS(n.vips), g.pollHTTPS(g.tls, n.vips[0], 1, false, "/")
	x.ends = func() ([]time.Duration, polled) { return dns(), https() }
	x.began = time.Now()
	return x
}

// log tells how long the clients had no answers.
func (x *trial) log(what string) {
	x.t.Helper()
	dns, https := x.ends()
	for i, vip := range x.victim.vips {
		x.t.Logf("%s, %s: no answer by DNS for %d ms, to ARP or NDP for %d ms", what, vip,
			dns[i].Milliseconds(), x.near.outage(vip, x.began).Milliseconds())
	}
	x.t.Logf("%s, HTTPS by new connections: %s", what, https)
}

// taken waits until the peers that are next have the VIPs, and the client knows.
func (x *trial) taken(what string) {
	x.t.Helper()
	x.awaitHolders(x.victim)
	x.awaitNeighbours(x.victim)
	for _, vip := range x.victim.vips {
		if names := x.holders(vip); !slices.Equal(names, []string{x.next[vip]}) {
			x.t.Errorf("%s has %s, want %s", names, vip, x.next[vip])
		}
	}
	x.log(what)
}

// well waits until all is as before, and judges what the watcher has seen.
func (x *trial) well() {
	x.t.Helper()
	x.awaitHome()
	x.awaitNeighbours(x.victim)
	healed := time.Now()
	for _, n := range x.nodes {
		for _, vip := range n.vips {
			eventually(x.t, "the watcher has asked", func() bool { return len(x.near.answering(vip, healed)) > 0 })
			if names := x.near.answering(vip, healed); !slices.Equal(names, []string{n.name}) {
				x.t.Errorf("%s is answered by %v, want %s", vip, names, n.name)
			}
		}
	}
	x.single()
}

// single looks whether two stations answered for one VIP.
func (x *trial) single() {
	x.t.Helper()
	for _, d := range x.near.doubles(span{from: x.began, to: time.Now()}) {
		x.t.Error(d)
	}
}

// TestTakeover is a site on a LAN whose VIPs move because of all that can befall a node. At
// no time do two nodes answer for one VIP.
func TestTakeover(t *testing.T) {
	g := newGuarded(t, 3)
	n1, n2, n3 := g.nodes[0], g.nodes[1], g.nodes[2]
	server := func(s syscall.Signal) {
		if err := syscall.Kill(n2.status().ServerPID, s); err != nil {
			t.Fatal(err)
		}
	}

	for _, f := range []struct {
		what        string
		begin, heal func()
	}{
		{"SIGKILL of the guard", func() { n2.signal(syscall.SIGKILL); <-n2.ended }, n2.start},
		{"SIGKILL of guard and server", func() { server(syscall.SIGKILL); n2.signal(syscall.SIGKILL); <-n2.ended }, n2.start},
		{"SIGTERM", func() { n2.signal(syscall.SIGTERM); <-n2.ended }, n2.start},
		{"the cable is pulled", func() { g.cable(n2.name, public, false) }, func() { g.cable(n2.name, public, true) }},
		{
			"the node is drained",
			func() { n1.run(t, binary, "node", "drain", n2.name, "--dir", n1.data()) },
			func() { n3.run(t, binary, "node", "undrain", n2.name, "--dir", n3.data()) },
		},
	} {
		t.Run(f.what, func(t *testing.T) {
			x := g.begin(t, n2)
			f.begin()
			x.taken(f.what)
			f.heal()
			x.well()
		})
	}

	t.Run("SIGKILL of the server", func(t *testing.T) {
		x, mark := g.begin(t, n2), g.marks()
		server(syscall.SIGKILL)
		eventually(t, "n2 lets its VIPs go", func() bool { return len(g.eventsOf(mark, n2, "vip released")) == len(n2.vips) })
		x.well()
		x.log("SIGKILL of the server")
	})

	for what, whom := range map[string]struct{ guard, server bool }{
		"SIGSTOP of the server": {false, true}, "SIGSTOP of the guard": {true, false}, "SIGSTOP of both": {true, true},
	} {
		t.Run(what, func(t *testing.T) {
			x, pid := g.begin(t, n2), n2.status().ServerPID
			send := func(s syscall.Signal) {
				if whom.guard {
					n2.signal(s)
				}
				if whom.server {
					syscall.Kill(pid, s)
				}
			}
			send(syscall.SIGSTOP)
			x.taken(what)
			send(syscall.SIGCONT)
			x.well()
		})
	}

	t.Run("the switch passes nothing on", func(t *testing.T) {
		x := g.begin(t, n2)
		g.move(n2.name, public, bridgeOf(apart(public))) // without a router
		x.taken("the switch passes nothing on")
		eventually(t, "n2 holds nothing", func() bool { return !slices.ContainsFunc(g.all, n2.holds) })
		for _, vip := range g.all {
			if names := g.far.answering(vip, time.Time{}); len(names) > 0 && !slices.Contains(n2.vips, vip) {
				t.Errorf("%v answered for %s on the side of n2", names, vip)
			}
		}
		g.move(n2.name, public, bridgeOf(public))
		x.well()
	})

	t.Run("a VIP is moved", func(t *testing.T) {
		x, vip := g.begin(t, n2), n2.vips[0]
		for _, to := range []*lanNode{n3, n1} {
			n1.run(t, binary, "vip", "move", vip.String(), to.name, "--dir", n1.data())
			if names := g.holders(vip); !slices.Equal(names, []string{to.name}) {
				t.Errorf("%s is at %v, want %s", vip, names, to.name)
			}
			g.awaitNeighbours(n2)
		}
		n3.run(t, binary, "vip", "return", vip.String(), "--dir", n3.data())
		x.well()
		x.log("moved to n3, to n1, and back")
	})

	if _, err := exec.LookPath("nft"); err != nil {
		t.Log("no nft (Debian package nftables): nothing is dropped by the switch")
		return
	}
	g.tryDrops(t)
}

// tryDrops has the switch drop reports, and nothing else: the nodes take each other for
// off-line, but each answers for its VIPs, and nobody may claim them.
func (g *guarded) tryDrops(t *testing.T) {
	const reports = "udp dport 7947 drop"
	n1, n2, n3 := g.nodes[0], g.nodes[1], g.nodes[2]
	from, to := `iifname "n2-eth0" `+reports, `oifname "n2-eth0" `+reports

	t.Run("multicast is dropped", func(t *testing.T) {
		x := g.begin(t, n2)
		pass := g.block(t, "ip daddr 239.255.79.47 drop")
		eventually(t, "nobody hears a peer by multicast", func() bool {
			for _, n := range g.nodes {
				st := n.status()
				for p := range st.View.Peers() {
					if p.ByMulticast {
						return false
					}
				}
			}
			return true
		})
		g.awaitReports(5)
		for _, n := range g.nodes {
			for _, vip := range n.vips {
				if names := g.near.answering(vip, x.began); !slices.Equal(names, []string{n.name}) {
					t.Errorf("%s was answered by %v, want %s", vip, names, n.name)
				}
			}
		}
		n2.signal(syscall.SIGKILL)
		<-n2.ended
		x.taken("multicast is dropped, SIGKILL of the guard")
		pass()
		n2.start()
		x.well()
	})

	// refused reports whether at has wanted a VIP, and another host answered for it.
	refused := func(at *lanNode, vip netip.Addr) bool {
		st := at.status()
		return st != nil && slices.ContainsFunc(st.Guard.Takeover.VIPs, func(s takeover.VIPStatus) bool {
			return s.VIP == vip && strings.Contains(s.Err, "another host answers")
		})
	}
	for _, f := range []struct {
		what  string
		rules []string
		blind []*lanNode // who hears nothing of
		of    []*lanNode
	}{
		{"reports of n2 are dropped", []string{from}, []*lanNode{n1, n3}, []*lanNode{n2}},
		{"reports to n2 are dropped", []string{to}, []*lanNode{n2}, []*lanNode{n1, n3}},
		{"reports of n2 and to it are dropped", []string{from, to}, g.nodes, g.nodes},
		{"all reports are dropped", []string{reports}, g.nodes, g.nodes},
	} {
		t.Run(f.what, func(t *testing.T) {
			x := g.begin(t, n2)
			pass := g.block(t, f.rules...)
			for _, n := range f.of {
				for _, vip := range n.vips {
					eventually(t, "a peer of "+n.name+" wants "+vip.String(), func() bool {
						return slices.ContainsFunc(f.blind, func(b *lanNode) bool { return b != n && refused(b, vip) })
					})
				}
			}
			for _, n := range g.nodes {
				for _, vip := range n.vips {
					if names := g.near.answering(vip, x.began); !slices.Equal(names, []string{n.name}) {
						t.Errorf("%s was answered by %v, want %s", vip, names, n.name)
					}
				}
			}
			if len(f.blind) == len(g.nodes) {
				n2.signal(syscall.SIGKILL)
				<-n2.ended
				g.awaitHolders(n2)
				g.awaitNeighbours(n2)
			}
			x.log(f.what)
			pass()
			if len(f.blind) == len(g.nodes) {
				n2.start()
			}
			x.well()
		})
	}
}
