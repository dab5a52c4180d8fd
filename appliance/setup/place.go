package setup

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Place is where clients come in on this machine.
type Place struct {
	Interface string
	Address   netip.Addr // the host address
}

// FindPlace fills in what want leaves open: the interface is that of the address, else
// that of the default route; the address is the first one there that is no VIP. What
// want says already must be so.
func FindPlace(want Place, vips []netip.Addr) (Place, error) {
	p := want
	if p.Interface == "" {
		find := defaultInterface
		if p.Address.IsValid() {
			find = func() (string, error) { return interfaceOf(p.Address) }
		}
		var err error
		if p.Interface, err = find(); err != nil {
			return Place{}, err
		}
	}
	there, err := hostAddresses(p.Interface)
	if err != nil {
		return Place{}, err
	}
	if p.Address.IsValid() {
		if !slices.ContainsFunc(there, func(a hostAddress) bool { return a.is(p.Address) }) {
			return Place{}, fmt.Errorf("host address %s: not on %s, which has %s", p.Address, p.Interface, join(there))
		}
		return p, nil
	}
	there = slices.DeleteFunc(there, func(a hostAddress) bool { return slices.Contains(vips, a.Addr()) })
	if len(there) == 0 {
		return Place{}, fmt.Errorf("network interface %s: no address that clients could reach", p.Interface)
	}
	p.Address = there[0].Addr()
	return p, nil
}

// hostAddress is an address of this machine, with its network.
type hostAddress struct {
	netip.Prefix
	loopback bool
}

// is reports whether a node can have the address a here. On loopback that is each of the
// network.
func (h hostAddress) is(a netip.Addr) bool { return h.Addr() == a || h.loopback && h.Contains(a) }

// rank is lower for a likelier host address: one of full length may be a VIP that was
// left behind, and not every client has IPv6.
func (h hostAddress) rank() int {
	n := 0
	if h.IsSingleIP() {
		n += 2
	}
	if h.Addr().Is6() {
		n++
	}
	return n
}

func join(there []hostAddress) string {
	var all []string
	for _, a := range there {
		all = append(all, a.Addr().String())
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

// hostAddresses returns the addresses of an interface, the likeliest host address first.
func hostAddresses(name string) ([]hostAddress, error) {
	link, err := netlink.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, fmt.Errorf("network interface %s: not on this machine, which has %s", name, interfaceNames())
	}
	if err != nil {
		return nil, fmt.Errorf("network interface %s: %w", name, err)
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", name, err)
	}
	// Of IPv6 the ones that will not last, or are not good yet.
	const passing = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	var there []hostAddress
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() || ip.Is6() && a.Flags&passing != 0 {
			continue
		}
		ones, _ := a.Mask.Size()
		there = append(there, hostAddress{netip.PrefixFrom(ip, ones), link.Attrs().Flags&net.FlagLoopback != 0})
	}
	slices.SortStableFunc(there, func(a, b hostAddress) int { return cmp.Compare(a.rank(), b.rank()) })
	return there, nil
}

// interfaceOf returns the interface that has an address.
func interfaceOf(address netip.Addr) (string, error) {
	for _, name := range interfaces() {
		there, err := hostAddresses(name)
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(there, func(a hostAddress) bool { return a.is(address) }) {
			return name, nil
		}
	}
	return "", fmt.Errorf("host address %s: not on this machine; 'ip address' shows its addresses", address)
}

// defaultInterface returns the interface that the rest of the world is behind.
func defaultInterface() (string, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return "", fmt.Errorf("list routes: %w", err)
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return !isDefault(r) })
		if len(routes) == 0 {
			continue
		}
		r := slices.MinFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
		if len(r.MultiPath) > 0 {
			r.LinkIndex = r.MultiPath[0].LinkIndex
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return "", fmt.Errorf("interface of the default route: %w", err)
		}
		return link.Attrs().Name, nil
	}
	return "", fmt.Errorf("no default route shows the network interface that clients come in on; this machine has %s", interfaceNames())
}

func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

func interfaces() (names []string) {
	all, _ := net.Interfaces() // none, if they cannot be listed
	for _, ifi := range all {
		names = append(names, ifi.Name)
	}
	return names
}

func interfaceNames() string { return cmp.Or(strings.Join(interfaces(), ", "), "none") }
