package lab

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How a machine is cut off.
type How string

const (
	Cable  How = "cable"  // it is pulled: both ends see that there is no carrier
	Switch How = "switch" // nothing passes the switch, and the carrier stays
	Router How = "router" // nothing passes between the machine and the router; all others are reached
)

// Both networks at a time.
const Both = "both"

// maxLatency and maxLoss bound a [Delay].
const (
	maxLatency = 10 * time.Second
	maxLoss    = 100 // per cent
)

// Delay is what becomes of packets that a machine sends on the public network.
type Delay struct {
	Latency time.Duration `json:"latency,omitempty"` // up to 10 s
	Loss    float64       `json:"loss,omitempty"`    // in per cent
}

// faults are what is broken in the LAN. Those of processes show in the processes.
type faults struct {
	cuts   map[string]map[string]How // by machine and network
	groups [][]string                // of a partition; who is in none is in one more
	delays map[string]Delay          // by machine
}

// Fault is one thing that is broken in the LAN.
type Fault struct {
	Kind    string     `json:"kind"` // "cut", "partition" or "delay"
	Machine string     `json:"machine,omitempty"`
	Network string     `json:"network,omitempty"`
	How     How        `json:"how,omitempty"`
	Groups  [][]string `json:"groups,omitempty"`
	Delay
}

func (f Fault) String() string {
	switch f.Kind {
	case "cut":
		return fmt.Sprintf("%s: %s network cut (%s)", f.Machine, f.Network, f.How)
	case "delay":
		return fmt.Sprintf("%s: what it sends on the public network takes %v longer, %g %% is lost", f.Machine, f.Latency, f.Loss)
	}
	var groups []string
	for _, g := range f.Groups {
		groups = append(groups, strings.Join(g, ","))
	}
	return "partition: " + strings.Join(groups, " | ") + " | the others"
}

// list returns the faults in a fixed order.
func (f *faults) list() (all []Fault) {
	for _, m := range slices.Sorted(maps.Keys(f.cuts)) {
		for _, network := range slices.Sorted(maps.Keys(f.cuts[m])) {
			all = append(all, Fault{Kind: "cut", Machine: m, Network: network, How: f.cuts[m][network]})
		}
	}
	if len(f.groups) > 0 {
		all = append(all, Fault{Kind: "partition", Groups: f.groups})
	}
	for _, m := range slices.Sorted(maps.Keys(f.delays)) {
		all = append(all, Fault{Kind: "delay", Machine: m, Delay: f.delays[m]})
	}
	return all
}

// Cut cuts a machine off from a network, or from [Both]; in place of what was cut there
// before.
func (l *Lab) Cut(machine, network string, how How) error {
	m, err := l.Machine(machine)
	if err != nil {
		return err
	}
	networks := []string{network}
	switch {
	case network != Both && network != Public && network != Internal:
		return useErrorf("%q is no network; there are %s and %s, and %s", network, Public, Internal, Both)
	case how != Cable && how != Switch && how != Router:
		return useErrorf("%q is no way to cut; there are %s, %s and %s", how, Cable, Switch, Router)
	case how == Router && network == Internal:
		return useErrorf("there is no router on the %s network", Internal)
	case how == Router && m.Name == router:
		return useErrorf("the router cannot be cut off from itself; --how switch cuts it off from all")
	case how == Router:
		networks = []string{Public}
	case network == Both:
		networks = []string{Public, Internal}
	}
	networks = slices.DeleteFunc(networks, func(n string) bool { return m.port(n) == nil })
	if len(networks) == 0 {
		return useErrorf("%s is not on the %s network", m.Name, network)
	}
	return l.change(func(f *faults) {
		if f.cuts == nil {
			f.cuts = map[string]map[string]How{}
		}
		if f.cuts[m.Name] == nil {
			f.cuts[m.Name] = map[string]How{}
		}
		for _, n := range networks {
			f.cuts[m.Name][n] = how
		}
	})
}

// Partition puts each group of machines on switches of its own, those that are named in
// none on another one, in place of the partition before.
func (l *Lab) Partition(groups ...[]string) error {
	seen := map[string]bool{}
	for _, g := range groups {
		for _, name := range g {
			if _, err := l.Machine(name); err != nil {
				return err
			}
			if seen[name] {
				return useErrorf("%s is in two groups", name)
			}
			seen[name] = true
		}
	}
	groups = slices.DeleteFunc(slices.Clone(groups), func(g []string) bool { return len(g) == 0 })
	if len(groups) == 0 {
		return useErrorf("name at least one group of machines, such as n1,n2")
	}
	return l.change(func(f *faults) { f.groups = groups })
}

// Heal takes back what was cut, parted and delayed: all of it, or with a name what was cut
// and delayed at that machine.
func (l *Lab) Heal(machine string) error {
	if machine == "" {
		return l.change(func(f *faults) { *f = faults{} })
	}
	if _, err := l.Machine(machine); err != nil {
		return err
	}
	return l.change(func(f *faults) {
		delete(f.cuts, machine)
		delete(f.delays, machine)
	})
}

// Delay has packets that a machine sends on the public network take longer, or get lost.
// The zero Delay ends that.
func (l *Lab) Delay(machine string, d Delay) error {
	m, err := l.Machine(machine)
	switch {
	case err != nil:
		return err
	case m.port(Public) == nil:
		return useErrorf("%s is not on the %s network", m.Name, Public)
	case d.Latency < 0 || d.Latency > maxLatency:
		return useErrorf("a delay of %v: it is at most %v", d.Latency, maxLatency)
	case !(d.Loss >= 0 && d.Loss <= maxLoss): // nor not a number
		return useErrorf("a loss of %g %%: it is 0 to %d", d.Loss, maxLoss)
	}
	return l.change(func(f *faults) {
		if f.delays == nil {
			f.delays = map[string]Delay{}
		}
		f.delays[m.Name] = d
		if d == (Delay{}) {
			delete(f.delays, m.Name)
		}
	})
}

// change changes the faults, and makes the LAN match. If that fails, the LAN is made to
// match the faults before.
func (l *Lab) change(f func(*faults)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return errClosing
	}
	was := l.faults
	l.faults = was.clone()
	f(&l.faults)
	err := l.match()
	if err != nil {
		l.faults = was
		err = errors.Join(err, l.match())
	}
	return err
}

func (f *faults) clone() faults {
	c := faults{cuts: map[string]map[string]How{}, groups: f.groups, delays: maps.Clone(f.delays)}
	for m, cuts := range f.cuts {
		c.cuts[m] = maps.Clone(cuts)
	}
	return c
}

// match makes the LAN match the faults. l.mu is held, or nobody else has the lab yet.
func (l *Lab) match() error {
	for _, network := range []string{Public, Internal} {
		w := layOut(network, l.machines, &l.faults)
		if err := l.lan.do(w.match); err != nil {
			return fmt.Errorf("%s network: %w%s", network, err, hint(err))
		}
	}
	for _, m := range l.machines {
		if m.port(Public) == nil {
			continue
		}
		if err := m.Do(func() error { return matchDelay(l.faults.delays[m.Name]) }); err != nil {
			return fmt.Errorf("delay at %s: %w", m.Name, err)
		}
	}
	return nil
}

// matchDelay sets how packets leave the public interface of this thread's namespace.
func matchDelay(d Delay) error {
	link, err := netlink.LinkByName(publicLink)
	if err != nil {
		return err
	}
	qdisc := netlink.NewNetem(
		netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		netlink.NetemQdiscAttrs{Latency: uint32(d.Latency.Microseconds()), Loss: float32(d.Loss)})
	if d != (Delay{}) {
		err = netlink.QdiscReplace(qdisc)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("this kernel cannot delay packets: it has no netem (CONFIG_NET_SCH_NETEM, 'modprobe sch_netem')")
		}
		return err
	}
	all, err := netlink.QdiscList(link)
	if err != nil {
		return err
	}
	for _, q := range all {
		if q.Type() == qdisc.Type() && q.Attrs().Parent == netlink.HANDLE_ROOT {
			return netlink.QdiscDel(qdisc)
		}
	}
	return nil
}
