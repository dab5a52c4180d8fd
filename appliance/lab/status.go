package lab

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// Status is what there is in a lab, and what has become of it.
type Status struct {
	Dir      string         `json:"dir"`
	Keeper   int            `json:"keeper"` // process that has the lab
	Began    time.Time      `json:"began"`
	Period   time.Duration  `json:"period"`
	URL      string         `json:"url"`
	CA       string         `json:"ca"` // path of the certificate to trust
	Machines []MachineState `json:"machines"`
	VIPs     []VIP          `json:"vips"`
	Faults   []Fault        `json:"faults"`
}

// MachineState is a machine, and the node on it.
type MachineState struct {
	Name      string       `json:"name"`
	Namespace string       `json:"namespace,omitempty"` // for 'ip netns'
	Addresses []netip.Addr `json:"addresses"`
	Node      *NodeState   `json:"node,omitempty"`
}

// NodeState is a node, as the kernel sees it.
type NodeState struct {
	Processes []Process `json:"processes"`
	Ended     string    `json:"ended,omitempty"` // how, if it does not run
	Dir       string    `json:"dir"`
	Log       string    `json:"log"`
}

// VIP is a VIP, and who has it.
type VIP struct {
	Address netip.Addr `json:"address"`
	Home    string     `json:"home"`
	// Kernel are the nodes on whose public interface the address is.
	Kernel []string `json:"kernel"`
	// Answers are the machines that answer the client when it asks by ARP or neighbour
	// discovery who has the address; for one that is none of the lab's, its station address.
	Answers []string `json:"answers"`
}

// Status asks the kernel of each machine, and the public network.
func (l *Lab) Status(ctx context.Context) (*Status, error) {
	st := &Status{
		Dir: l.c.Dir, Keeper: os.Getpid(), Began: l.began, Period: l.c.Period, URL: "https://" + Host + "/", CA: filepath.Join(l.c.Dir, caFile),
		VIPs: []VIP{}, Faults: []Fault{},
	}
	for _, m := range l.machines {
		st.Machines = append(st.Machines, MachineState{Name: m.Name, Namespace: m.Namespace(), Addresses: m.Addresses()})
	}
	var vips []netip.Addr
	for i, n := range l.nodes { // the first of the machines
		st.Machines[i].Node = n.state()
		vips = append(vips, n.VIPs...)
	}
	answers, err := l.whoAnswers(ctx, vips)
	if err != nil {
		return nil, err
	}
	for _, n := range l.nodes {
		for _, vip := range n.VIPs {
			holders, err := l.holders(vip)
			if err != nil {
				return nil, err
			}
			st.VIPs = append(st.VIPs, VIP{vip, n.Name, holders, answers[vip]})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Faults = append(st.Faults, l.faults.list()...)
	return st, nil
}

func (n *Node) state() *NodeState {
	st := &NodeState{Processes: []Process{}, Dir: n.Dir, Log: n.Log()}
	r, err := n.current()
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if st.Ended = n.last; n.run == nil {
			st.Ended = "not started"
		}
		return st
	}
	st.Processes = append(st.Processes, r.processes()...)
	return st
}

// holders returns the nodes whose kernels have the address on the public interface.
func (l *Lab) holders(vip netip.Addr) ([]string, error) {
	names := []string{}
	for _, n := range l.nodes {
		err := n.Do(func() error {
			link, err := netlink.LinkByName(publicLink)
			if err != nil {
				return err
			}
			all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.IP.Equal(vip.AsSlice()) }) {
				names = append(names, n.Name)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}
