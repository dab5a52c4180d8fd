package lab

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// someLab is a plan, of which nothing is made.
func someLab(nodes int, ipv6 bool) *Lab {
	l := &Lab{c: Config{Nodes: nodes, IPv6: ipv6}}
	l.plan()
	return l
}

// reaches says what a wiring does to frames from one plug to another.
func (w *wiring) reaches(from, to string) bool {
	a, b := w.ports[from], w.ports[to]
	if a.pulled || b.pulled || a.bridge == "" || b.bridge == "" {
		return false
	}
	if a.bridge == b.bridge {
		return !a.private || !b.private
	}
	if w.trunk != "" && a.bridge == w.side() {
		return b.bridge == w.trunk && !b.private
	}
	return w.trunk != "" && b.bridge == w.side() && a.bridge == w.trunk && !a.private
}

// shouldReach says what the faults mean.
func shouldReach(f *faults, network, a, b string) bool {
	group := func(name string) int {
		return slices.IndexFunc(f.groups, func(g []string) bool { return slices.Contains(g, name) })
	}
	for _, m := range []string{a, b} {
		if how := f.cuts[m][network]; how == Cable || how == Switch {
			return false
		}
	}
	apart := f.cuts[a][network] == Router && b == router || f.cuts[b][network] == Router && a == router
	return group(a) == group(b) && !apart
}

func TestWiringDoesWhatFaultsMean(t *testing.T) {
	l := someLab(4, false)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		f := faults{cuts: map[string]map[string]How{}}
		f.groups = make([][]string, rnd.IntN(4))
		for _, m := range l.machines {
			if g := rnd.IntN(len(f.groups) + 1); g > 0 {
				f.groups[g-1] = append(f.groups[g-1], m.Name)
			}
			f.cuts[m.Name] = map[string]How{}
			if how := []How{"", "", Cable, Switch, Router}[rnd.IntN(5)]; m.Name != router || how != Router {
				f.cuts[m.Name][Public] = how
			}
			f.cuts[m.Name][Internal] = []How{"", "", Cable, Switch}[rnd.IntN(4)]
		}
		for _, network := range []string{Public, Internal} {
			w := layOut(network, l.machines, &f)
			for _, a := range l.machines {
				for _, b := range l.machines {
					pa, pb := a.port(network), b.port(network)
					if pa == nil || pb == nil || a == b {
						continue
					}
					if got, want := w.reaches(pa.plug, pb.plug), shouldReach(&f, network, a.Name, b.Name); got != want {
						t.Fatalf("%s reaches %s on the %s network: %v, want %v\n%v\n%+v", a, b, network, got, want, f.list(), w)
					}
				}
			}
			for plug, at := range w.ports {
				if at.bridge != "" && !slices.Contains(w.switches, at.bridge) {
					t.Fatalf("%s is plugged into %s, which is not in use\n%+v", plug, at.bridge, w)
				}
			}
		}
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	l := someLab(MaxNodes, true)
	names := []string{}
	for _, network := range []string{Public, Internal} {
		var groups [][]string
		for _, m := range l.machines {
			groups = append(groups, []string{m.Name})
		}
		w := layOut(network, l.machines, &faults{groups: groups})
		names = append(names, w.side(), network+"-t0")
		names = append(names, w.switches...)
		for plug := range w.ports {
			names = append(names, plug)
		}
	}
	slices.Sort(names)
	for i, n := range names {
		if len(n) > 15 { // IFNAMSIZ
			t.Errorf("%s is too long for the name of a link", n)
		}
		if i > 0 && n == names[i-1] {
			t.Errorf("%s is the name of two links", n)
		}
	}
}

func TestPlanGivesEachAddressOnce(t *testing.T) {
	l := someLab(MaxNodes, true)
	seen := map[string]string{}
	add := func(what, who string) {
		if other, ok := seen[what]; ok {
			t.Errorf("%s and %s both have %s", other, who, what)
		}
		seen[what] = who
	}
	for _, m := range l.machines {
		for _, p := range m.ports {
			add(p.mac().String(), m.Name)
		}
		for _, a := range m.Addresses() {
			add(a.String(), m.Name)
		}
	}
	for i, n := range l.nodes {
		for _, v := range n.VIPs {
			add(v.String(), n.Name+"'s VIP")
		}
		want := []string{fmt.Sprint("192.0.2.2", i+1), fmt.Sprint("2001:db8::2", i+1)}
		if got := []string{n.VIPs[0].String(), n.VIPs[1].String()}; !slices.Equal(got, want) {
			t.Errorf("VIPs of %s: %v, want %v", n.Name, got, want)
		}
		add(l.bankOf(n).String(), n.Name+"'s bank")
		m, _ := l.Machine(app)
		if !slices.Contains(m.Addresses(), l.bankOf(n).Addr()) {
			t.Errorf("%s has not the address of the bank of %s, %s", app, n.Name, l.bankOf(n))
		}
	}
	if c, _ := l.Machine(client); c.Addresses()[1].String() != "2001:db8::254" {
		t.Errorf("the client has %v", c.Addresses())
	}
}
