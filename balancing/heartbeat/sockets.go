package heartbeat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// transport carries datagrams between the nodes.
type transport interface {
	// send sends b, marked or not, to one address, or to the group if that is the zero Addr.
	send(b []byte, to netip.Addr, marked bool) error
	// receive reads datagrams until the transport is closed, and hands each to deliver,
	// which must not keep it.
	receive(deliver func(b []byte, byMulticast bool)) error
	close() error
}

const (
	receiveBuffer = 1 << 20       // octets in the kernel: a flood must not push the reports out
	classCS6      = 48 << 2       // DSCP CS6, network control (RFC 4594 3.1)
	maxDatagram   = maxPlain + 64 // octets that are read of one: more is no report
)

// sockets is the transport of the operating system: a socket on the host address, which
// sends everything, and one that hears the group.
type sockets struct {
	local netip.AddrPort
	group netip.Addr // the zero Addr: no multicast
	host  *net.UDPConn
	heard *net.UDPConn // nil without multicast

	mark   uint32
	marked bool // host has the mark
}

// openSockets opens the sockets for c in the given mode. An address that old is on already
// cannot be bound twice: the socket is shared with it then, so nothing that comes in is
// lost either.
func openSockets(c *Config, mode Mode, old transport) (_ transport, err error) {
	s := &sockets{local: netip.AddrPortFrom(c.Local, c.Port), mark: c.Mark}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if was, ok := old.(*sockets); ok && was.local == s.local {
		s.host, err = share(was.host)
	} else {
		s.host, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.local))
	}
	if err != nil {
		return nil, fmt.Errorf("open the socket of the reports: %w", err)
	}
	if err := s.host.SetReadBuffer(receiveBuffer); err != nil {
		return nil, fmt.Errorf("open the socket of the reports: %w", err)
	}
	is6 := c.Local.Is6()
	if is6 {
		err = ipv6.NewConn(s.host).SetTrafficClass(classCS6)
	} else {
		err = ipv4.NewConn(s.host).SetTOS(classCS6)
	}
	if err != nil {
		return nil, fmt.Errorf("set the class of the reports: %w", err)
	}
	hears := mode == Auto || mode == Multicast
	if !hears && c.Mark == 0 {
		return s, nil
	}
	s.group = c.Group
	ifi, err := net.InterfaceByName(c.Interface)
	if err == nil && hears {
		err = s.join(ifi, is6) // first: what may well fail must not alter host, which may be shared
	}
	if err == nil {
		err = s.sendBy(ifi, is6)
	}
	if err == nil && c.Mark != 0 {
		err = s.setMark(false) // host may be shared with one that had it
	}
	if err != nil {
		return nil, fmt.Errorf("join %s on %s for the reports: %w", c.Group, c.Interface, err)
	}
	return s, nil
}

// share returns another descriptor of the same socket.
func share(c *net.UDPConn) (*net.UDPConn, error) {
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return p.(*net.UDPConn), nil
}

// join opens the socket that hears the group.
func (s *sockets) join(ifi *net.Interface, is6 bool) (err error) {
	if s.heard, err = listenGroup(netip.AddrPortFrom(s.group, s.local.Port())); err != nil {
		return err
	}
	if err := s.heard.SetReadBuffer(receiveBuffer); err != nil {
		return err
	}
	group := &net.UDPAddr{IP: s.group.AsSlice()}
	if is6 {
		return ipv6.NewPacketConn(s.heard).JoinGroup(ifi, group)
	}
	return ipv4.NewPacketConn(s.heard).JoinGroup(ifi, group)
}

// sendBy makes host send to groups by an interface.
func (s *sockets) sendBy(ifi *net.Interface, is6 bool) error {
	if is6 {
		out := ipv6.NewPacketConn(s.host)
		return errors.Join(out.SetMulticastInterface(ifi), out.SetMulticastHopLimit(1), out.SetMulticastLoopback(true))
	}
	out := ipv4.NewPacketConn(s.host)
	return errors.Join(out.SetMulticastInterface(ifi), out.SetMulticastTTL(1), out.SetMulticastLoopback(true))
}

// setMark makes what host sends from now on marked, or not.
func (s *sockets) setMark(marked bool) error {
	mark := 0
	if marked {
		mark = int(s.mark)
	}
	raw, err := s.host.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("setsockopt SO_MARK", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark))
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	s.marked = marked
	return nil
}

// listenGroup opens a socket that hears what is sent to group, and nothing else. Package
// net would bind the wildcard address instead, which the sockets of host addresses and
// of claimed VIPs do not bear beside them.
func listenGroup(group netip.AddrPort) (*net.UDPConn, error) {
	family, level, all := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL
	var at unix.Sockaddr
	if group.Addr().Is4() {
		at = &unix.SockaddrInet4{Port: int(group.Port()), Addr: group.Addr().As4()}
	} else {
		family, level, all = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL
		at = &unix.SockaddrInet6{Port: int(group.Port()), Addr: group.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "group")
	defer f.Close()
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // for the nodes of one machine
		unix.SetsockoptInt(fd, level, all, 0),                         // only on the interface joined on
		unix.Bind(fd, at),
	)
	if err != nil {
		return nil, err
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (s *sockets) send(b []byte, to netip.Addr, marked bool) error {
	if marked != s.marked {
		if err := s.setMark(marked); err != nil {
			return err
		}
	}
	if !to.IsValid() {
		to = s.group
	}
	_, err := s.host.WriteToUDPAddrPort(b, netip.AddrPortFrom(to, s.local.Port()))
	return err
}

func (s *sockets) receive(deliver func(b []byte, byMulticast bool)) error {
	if s.heard == nil {
		return read(s.host, false, deliver)
	}
	group := make(chan error, 1)
	go func() {
		group <- read(s.heard, true, deliver)
		s.host.Close() // if one cannot be read, both end
	}()
	err := read(s.host, false, deliver)
	s.heard.Close()
	return errors.Join(err, <-group)
}

// read returns nil when c is closed. What else goes wrong concerns one datagram, such as
// the ICMP answer of a peer that is not there: the next may be good.
func read(c *net.UDPConn, byMulticast bool, deliver func([]byte, bool)) error {
	b := make([]byte, maxDatagram)
	failures := 0
	for {
		n, _, err := c.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			if failures++; failures > 1000 { // in a row: it would spin for ever
				return fmt.Errorf("read reports: %w", err)
			}
		default:
			failures = 0
			deliver(b[:n], byMulticast)
		}
	}
}

func (s *sockets) close() error {
	var errs []error
	for _, c := range []*net.UDPConn{s.host, s.heard} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
