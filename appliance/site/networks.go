package site

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Network is a network that an interface of this machine is on.
type Network struct {
	Prefix    netip.Prefix
	Interface string
}

func (n Network) String() string { return n.Prefix.String() + " (" + n.Interface + ")" }

// LocalNetworks returns the networks of the named interfaces; of all, if none is named.
//
// An address of full length makes no network: it is a VIP that is held there. On loopback
// all of 127.0.0.0/8 is local, whichever of its addresses show.
func LocalNetworks(interfaces ...string) ([]Network, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var networks []Network
	for _, ifi := range all {
		if len(interfaces) > 0 && !slices.Contains(interfaces, ifi.Name) {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", ifi.Name, err)
		}
		networks = append(networks, networksOf(ifi.Name, ifi.Flags&net.FlagLoopback != 0, addrs)...)
	}
	for _, name := range interfaces {
		if !slices.ContainsFunc(all, func(i net.Interface) bool { return i.Name == name }) {
			return nil, fmt.Errorf("network interface %s: not on this machine, which has %s", name, interfaceNames(all))
		}
	}
	slices.SortFunc(networks, func(a, b Network) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Interface, b.Interface))
	})
	return slices.Compact(networks), nil
}

func networksOf(name string, loopback bool, addrs []net.Addr) []Network {
	var networks []Network
	if loopback {
		networks = append(networks, Network{netip.MustParsePrefix("127.0.0.0/8"), name})
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.IsSingleIP() {
			continue
		}
		networks = append(networks, Network{p.Masked(), name})
	}
	return networks
}

func interfaceNames(all []net.Interface) string {
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return strings.Join(names, ", ")
}

// CheckInterfaces returns a problem for each VIP that lies in none of the networks: no
// node here could answer for it.
func (d *Document) CheckInterfaces(networks []Network) Problems {
	var ps Problems
	for _, id := range d.NodeIDs() {
		for i, vip := range d.Nodes[id].VIPs {
			if slices.ContainsFunc(networks, func(n Network) bool { return n.Prefix.Contains(vip) }) {
				continue
			}
			p := Problem{
				Path: item(below("nodes", string(id))+".vips", i),
				Text: fmt.Sprintf("%s lies in no network here; %s", vip, networkList(networks)),
			}
			if d.source != nil {
				at := where(d.source.places, p.Path)
				p.File, p.Line, p.Column = d.source.file, at.line, at.column
			}
			ps = append(ps, p)
		}
	}
	return sorted(ps)
}

func networkList(networks []Network) string {
	if len(networks) == 0 {
		return "there are none: give the interface an address first"
	}
	more := ""
	if n := len(networks) - maxList; n > 0 {
		networks, more = networks[:maxList], fmt.Sprintf(", and %d more", n)
	}
	names := make([]string, len(networks))
	for i, n := range networks {
		names[i] = n.String()
	}
	return "the networks are " + strings.Join(names, ", ") + more
}
