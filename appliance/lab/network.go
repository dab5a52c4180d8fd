package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of network interfaces: of every machine on the public network, and of every
// machine on the internal one.
const (
	publicLink   = "eth0"
	internalLink = "eth1"
)

// The networks.
var (
	public4   = netip.MustParsePrefix("192.0.2.0/24")
	public6   = netip.MustParsePrefix("2001:db8::/64")
	internal4 = netip.MustParsePrefix("10.0.0.0/24")
	world4    = netip.MustParsePrefix("198.51.100.0/24")
	world6    = netip.MustParsePrefix("2001:db8:1::/64")
)

// Hosts in them; a node adds its number.
const (
	hostRouter = 1
	hostNode   = 10
	hostVIP    = 20
	hostBank   = 100
	hostWorld  = 10
	hostClient = 254
)

// Machine is a machine of the lab: a network namespace.
type Machine struct {
	Name  string
	ns    *namespace
	ports []*port
}

func (m *Machine) String() string { return m.Name }

// Namespace is the name under which 'ip netns' knows the machine, or "".
func (m *Machine) Namespace() string {
	if m.ns.name == "" {
		return ""
	}
	return filepath.Base(m.ns.name)
}

// Do runs f on a thread that is on the machine. Sockets that f opens stay there.
func (m *Machine) Do(f func() error) error { return m.ns.do(f) }

// Addresses are the addresses of the machine, without VIPs.
func (m *Machine) Addresses() (all []netip.Addr) {
	for _, p := range m.ports {
		for _, a := range p.addrs {
			all = append(all, a.Addr())
		}
	}
	return all
}

// port returns the port of the machine on a network, or nil.
func (m *Machine) port(network string) *port {
	for _, p := range m.ports {
		if p.network == network {
			return p
		}
	}
	return nil
}

// port is a network interface of a machine, and its place on a switch.
type port struct {
	network string // Public, Internal; or world, a wire without a switch
	link    string // name of the interface on the machine
	plug    string // name of the other end, at the switch
	addrs   []netip.Prefix
	gateway []netip.Addr // default routes
}

// mac is the station address: 02:00 and the first IPv4 address, so that it can be read in a
// capture.
func (p *port) mac() net.HardwareAddr {
	a := p.addrs[0].Addr().As4()
	return net.HardwareAddr{2, 0, a[0], a[1], a[2], a[3]}
}

// host returns the address of a host in a network, as "2001:db8::11": the number is read as
// the digits of it, so that a machine has the same ones in both families.
func host(network netip.Prefix, number int) netip.Addr {
	b := network.Addr().AsSlice()
	last := number
	if network.Addr().Is6() {
		last = 0
		for shift := 0; number > 0; shift += 4 {
			last |= number % 10 << shift
			number /= 10
		}
		b[len(b)-2] = byte(last >> 8)
	}
	b[len(b)-1] = byte(last)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// plan says which machines there are, and where they are plugged in.
func (l *Lab) plan() {
	publicNet, worldNet := l.networks(public4, public6), l.networks(world4, world6)
	for k := 1; k <= l.c.Nodes; k++ {
		n := &Node{
			Machine: &Machine{Name: fmt.Sprint("n", k)}, l: l,
			Address: host(public4, hostNode+k), Internal: host(internal4, hostNode+k),
		}
		n.Dir = filepath.Join(l.c.Dir, n.Name)
		for _, network := range publicNet {
			n.VIPs = append(n.VIPs, host(network, hostVIP+k))
		}
		n.plug(Public, publicLink, publicNet, hostNode+k).route(publicNet, hostRouter)
		n.plug(Internal, internalLink, []netip.Prefix{internal4}, hostNode+k)
		l.nodes, l.machines = append(l.nodes, n), append(l.machines, n.Machine)
	}
	c, r, w, a := &Machine{Name: client}, &Machine{Name: router}, &Machine{Name: world}, &Machine{Name: app}
	c.plug(Public, publicLink, publicNet, hostClient).route(publicNet, hostRouter)
	r.plug(Public, publicLink, publicNet, hostRouter)
	r.plug(world, internalLink, worldNet, hostRouter)
	w.plug(world, publicLink, worldNet, hostWorld).route(worldNet, hostRouter)
	banks := a.plug(Internal, internalLink, []netip.Prefix{internal4}, hostBank)
	for k := range l.c.Nodes {
		banks.addrs = append(banks.addrs, netip.PrefixFrom(host(internal4, hostBank+k+1), internal4.Bits()))
	}
	l.machines = append(l.machines, c, r, w, a)
}

// networks leaves out IPv6 if it is not wanted.
func (l *Lab) networks(v4, v6 netip.Prefix) []netip.Prefix {
	if l.c.IPv6 {
		return []netip.Prefix{v4, v6}
	}
	return []netip.Prefix{v4}
}

func (m *Machine) plug(network, link string, in []netip.Prefix, number int) *port {
	p := &port{network: network, link: link, plug: m.Name + "-" + network}
	for _, n := range in {
		p.addrs = append(p.addrs, netip.PrefixFrom(host(n, number), n.Bits()))
	}
	m.ports = append(m.ports, p)
	return p
}

func (p *port) route(networks []netip.Prefix, number int) {
	for _, n := range networks {
		p.gateway = append(p.gateway, host(n, number))
	}
}

// build makes what was planned.
func (l *Lab) build() (err error) {
	if l.lan, err = newNamespace(l.id, l.nameOf(lan)); err != nil {
		return err
	}
	for _, m := range l.machines {
		if m.ns, err = newNamespace(l.id, l.nameOf(m.Name)); err != nil {
			return err
		}
	}
	// The switches are no hosts, and say nothing by themselves.
	if err := l.lan.do(func() error { return setSysctl("net/ipv6/conf/default/disable_ipv6", "1") }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The switches first, and so the number of a plug is never that of the link at its other
	// end: the kernel would take their carriers for less urgent.
	for _, network := range []string{Public, Internal} {
		if err := l.lan.do(func() error { return ensureSwitch(network) }); err != nil {
			return fmt.Errorf("switch of the %s network: %w%s", network, err, hint(err))
		}
	}
	for _, m := range l.machines {
		for _, p := range m.ports {
			if err := l.wire(m, p); err != nil {
				return fmt.Errorf("plug %s into the %s network: %w%s", m.Name, p.network, err, hint(err))
			}
		}
	}
	r, _ := l.Machine(router)
	forward := []string{"net/ipv4/ip_forward"}
	if l.c.IPv6 {
		forward = append(forward, "net/ipv6/conf/all/forwarding")
	}
	for _, key := range forward {
		if err := r.Do(func() error { return setSysctl(key, "1") }); err != nil {
			return err
		}
	}
	return l.match()
}

// namePrefix begins the names of all namespaces of a lab.
const namePrefix = "pg-"

// nameOf is the path of the name of a machine's namespace, or "".
func (l *Lab) nameOf(machine string) string {
	if l.c.Names == "" {
		return ""
	}
	return filepath.Join(l.c.Names, namePrefix+machine)
}

// wire lays the cable of a port. That of the world leads straight to the router; the others
// end beside the switches, for match to plug in.
func (l *Lab) wire(m *Machine, p *port) error {
	if p.network == world {
		if m.Name == world {
			return nil // the router has laid it
		}
		w, _ := l.Machine(world)
		far := w.port(world)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = p.link, p.mac()
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: far.link, PeerHardwareAddr: far.mac(), PeerNamespace: netlink.NsFd(w.ns.file.Fd())}
		if err := m.Do(func() error { return netlink.LinkAdd(veth) }); err != nil {
			return err
		}
		return errors.Join(m.Do(p.configure), w.Do(far.configure))
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.plug
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.link, PeerHardwareAddr: p.mac(), PeerNamespace: netlink.NsFd(m.ns.file.Fd())}
	if err := l.lan.do(func() error { return netlink.LinkAdd(veth) }); err != nil {
		return err
	}
	return m.Do(p.configure)
}

// configure gives the interface its addresses and routes. This thread is on the machine.
func (p *port) configure() error {
	link, err := netlink.LinkByName(p.link)
	if err != nil {
		return err
	}
	for _, a := range p.addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, g := range p.gateway {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", g, err)
		}
	}
	return nil
}

// setSysctl sets a value of the namespace of this thread.
func setSysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}

// list names machines in a sentence.
func list[T fmt.Stringer](all []T) string {
	var names []string
	for _, m := range all {
		names = append(names, m.String())
	}
	return strings.Join(names, ", ")
}
