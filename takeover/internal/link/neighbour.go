package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A holder on the LAN answers a probe within 0.2 ms; the second probe and the pause
// after it are for one that is busy, or a frame that was lost.
const (
	probeSpacing = 25 * time.Millisecond
	probeTime    = 60 * time.Millisecond
)

// frame is one packet, from its network header on, and the station it goes to.
type frame struct {
	to   net.HardwareAddr
	data []byte
}

// protocol is how neighbours of one address family are told and asked.
type protocol struct {
	etherType int
	family    int // of netlink

	// announcement makes a neighbour that knows vip by another station's address
	// turn to mac. The gateway is invalid if there is none.
	announcement func(mac net.HardwareAddr, vip, gateway netip.Addr) ([]frame, error)
	// probe asks who has vip, without making anybody believe it were mac.
	probe func(mac net.HardwareAddr, vip netip.Addr) (frame, error)
	// answers lets nothing pass but what may be an answer about vip.
	answers func(vip netip.Addr) []bpf.Instruction
	// holder returns the station that says in data, sent by from, that it has vip;
	// nil if it is not said.
	holder func(data []byte, from net.HardwareAddr, vip netip.Addr) net.HardwareAddr

	// question asks a neighbour for its station as a host that has asker does, and answersTo
	// knows the answer.
	question  func(mac net.HardwareAddr, asker, asked netip.Addr) (frame, error)
	answersTo func(data []byte, asker, asked netip.Addr) bool

	// claims lets pass what says that the sender has one of vips, and claimed says which.
	claims  func(vips map[netip.Addr]bool) []bpf.Instruction
	claimed func(data []byte) netip.Addr
}

func protocolOf(vip netip.Addr) *protocol {
	if vip.Is4() {
		return &arpProtocol
	}
	return &ndpProtocol
}

// nothing is the filter of a socket that only sends.
var nothing = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// Announce tells the neighbours that vip is here: in several forms, for none of them is
// heeded by all. On an interface without neighbours it does nothing.
func (i *Interface) Announce(ctx context.Context, vip netip.Addr) error {
	if err := i.announce(ctx, vip); err != nil {
		return fmt.Errorf("announce %s on %s: %w", vip, i.name, err)
	}
	return nil
}

func (i *Interface) announce(ctx context.Context, vip netip.Addr) error {
	if !usable(vip) {
		return errUnusable
	}
	ifi, err := i.ethernet(ctx)
	if ifi == nil || err != nil {
		return err
	}
	p := protocolOf(vip)
	gateway, err := i.gateway(ifi, p.family)
	if err != nil {
		return fmt.Errorf("find gateway: %w", err)
	}
	frames, err := p.announcement(ifi.HardwareAddr, vip, gateway)
	if err != nil {
		return err
	}
	return i.send(ctx, ifi, p.etherType, frames)
}

// send sends frames by the socket that is kept for the protocol. One that failed, or is
// bound to an interface that has been made again since, is given up.
func (i *Interface) send(ctx context.Context, ifi *net.Interface, etherType int, frames []frame) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	s, kept := i.senders[etherType]
	if kept && s.index != ifi.Index {
		kept = false
		s.conn.Close()
	}
	if !kept {
		c, err := listen(ifi, etherType, nothing)
		if err != nil {
			return err
		}
		s = sender{conn: c, index: ifi.Index}
	}
	delete(i.senders, etherType)
	if err := write(ctx, s.conn, frames...); err != nil {
		return errors.Join(err, s.conn.Close())
	}
	i.senders[etherType] = s
	return nil
}

// sender is a socket for announcements. It is kept because the kernel needs some 10 ms
// to close a packet socket.
type sender struct {
	conn  *packet.Conn
	index int // of the interface that it is bound to
}

// Probe reports whether another station answers for vip. It takes 60 ms if none does.
// On an interface without neighbours none does, at once.
func (i *Interface) Probe(ctx context.Context, vip netip.Addr) (bool, error) {
	answered, err := i.probe(ctx, vip)
	if err != nil {
		return false, fmt.Errorf("probe for %s on %s: %w", vip, i.name, err)
	}
	return answered, nil
}

func (i *Interface) probe(ctx context.Context, vip netip.Addr) (bool, error) {
	if !usable(vip) {
		return false, errUnusable
	}
	ifi, err := i.ethernet(ctx)
	if ifi == nil || err != nil {
		return false, err
	}
	p := protocolOf(vip)
	question, err := p.probe(ifi.HardwareAddr, vip)
	if err != nil {
		return false, err
	}
	return i.ask(ctx, ifi, p, question, vip, func(data []byte, from net.HardwareAddr) bool {
		h := p.holder(data, from, vip)
		return h != nil && !bytes.Equal(h, ifi.HardwareAddr)
	})
}

// ask sends a question about an address twice, and reports whether it is answered.
func (i *Interface) ask(ctx context.Context, ifi *net.Interface, p *protocol, question frame, about netip.Addr, answers func([]byte, net.HardwareAddr) bool) (bool, error) {
	c, err := listen(ifi, p.etherType, p.answers(about))
	if err != nil {
		return false, err
	}
	defer c.Close()
	for _, wait := range []time.Duration{probeSpacing, probeTime - probeSpacing} {
		if err := write(ctx, c, question); err != nil {
			return false, err
		}
		if answered, err := answer(ctx, c, wait, answers); answered || err != nil {
			return answered, err
		}
	}
	return false, nil
}

// answer reports whether something comes in, within the time given, that answers.
func answer(ctx context.Context, c *packet.Conn, wait time.Duration, answers func([]byte, net.HardwareAddr) bool) (bool, error) {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	var buf [1500]byte
	for {
		n, from, err := c.ReadFrom(buf[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, ctx.Err()
		}
		if err != nil {
			return false, err
		}
		if answers(buf[:n], from.(*packet.Addr).HardwareAddr) {
			return true, nil
		}
	}
}

// Confirm reports whether the default gateway answers a question that comes from vip: then
// it has learned that vip is here. It takes 60 ms if it does not. Where there is no
// gateway, or no neighbours are, there is nothing to learn.
func (i *Interface) Confirm(ctx context.Context, vip netip.Addr) (bool, error) {
	confirmed, err := i.confirm(ctx, vip)
	if err != nil {
		return false, fmt.Errorf("ask the gateway of %s from %s: %w", i.name, vip, err)
	}
	return confirmed, nil
}

func (i *Interface) confirm(ctx context.Context, vip netip.Addr) (bool, error) {
	if !usable(vip) {
		return false, errUnusable
	}
	ifi, err := i.ethernet(ctx)
	if ifi == nil || err != nil {
		return true, err
	}
	p := protocolOf(vip)
	gateway, err := i.gateway(ifi, p.family)
	if !gateway.IsValid() || err != nil {
		return true, err
	}
	question, err := p.question(ifi.HardwareAddr, vip, gateway)
	if err != nil {
		return false, err
	}
	return i.ask(ctx, ifi, p, question, gateway, func(data []byte, _ net.HardwareAddr) bool { return p.answersTo(data, vip, gateway) })
}

// Gateways returns the default gateways that are reached by the interface, one a family at
// most.
func (i *Interface) Gateways(ctx context.Context) ([]netip.Addr, error) {
	ifi, err := i.ethernet(ctx)
	if ifi == nil || err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, p := range []*protocol{&arpProtocol, &ndpProtocol} {
		gateway, err := i.gateway(ifi, p.family)
		if err != nil {
			return nil, fmt.Errorf("find the gateway of %s: %w", i.name, err)
		}
		if gateway.IsValid() {
			all = append(all, gateway)
		}
	}
	return all, nil
}

// ethernet returns the interface as a packet socket wants it, or nil if it has no
// neighbours to speak of: loopback, a tunnel, a dummy.
func (i *Interface) ethernet(ctx context.Context) (*net.Interface, error) {
	l, err := i.link(ctx)
	if err != nil {
		return nil, err
	}
	a := l.Attrs()
	if a.RawFlags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) != 0 || len(a.HardwareAddr) != 6 {
		return nil, nil
	}
	return &net.Interface{Index: a.Index, Name: a.Name, HardwareAddr: a.HardwareAddr}, nil
}

// gateway returns the default gateway that is reached through ifi; the zero Addr if
// there is none.
func (i *Interface) gateway(ifi *net.Interface, family int) (gateway netip.Addr, err error) {
	filter := &netlink.Route{LinkIndex: ifi.Index} // Dst nil: the default route
	err = i.handle.RouteListFilteredIter(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST, func(r netlink.Route) bool {
		if gw, ok := netip.AddrFromSlice(r.Gw); ok {
			gateway = gw.Unmap()
		}
		return !gateway.IsValid()
	})
	return gateway, err
}

// listen returns a socket for the protocol on ifi that reads what the filter lets pass.
// Without a filter, all of a busy LAN would be read here.
func listen(ifi *net.Interface, etherType int, filter []bpf.Instruction) (*packet.Conn, error) {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return nil, err
	}
	return packet.Listen(ifi, packet.Datagram, etherType, &packet.Config{Filter: raw})
}

func write(ctx context.Context, c *packet.Conn, frames ...frame) error {
	deadline, _ := ctx.Deadline() // the zero time is none
	if err := c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	for _, f := range frames {
		if _, err := c.WriteTo(f.data, &packet.Addr{HardwareAddr: f.to}); err != nil {
			return err
		}
	}
	return nil
}
