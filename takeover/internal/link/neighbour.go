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
	ifi, err := i.ethernet(ctx, vip)
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
	ifi, err := i.ethernet(ctx, vip)
	if ifi == nil || err != nil {
		return false, err
	}
	p := protocolOf(vip)
	question, err := p.probe(ifi.HardwareAddr, vip)
	if err != nil {
		return false, err
	}
	c, err := listen(ifi, p.etherType, p.answers(vip))
	if err != nil {
		return false, err
	}
	defer c.Close()
	for _, wait := range []time.Duration{probeSpacing, probeTime - probeSpacing} {
		if err := write(ctx, c, question); err != nil {
			return false, err
		}
		if answered, err := answer(ctx, c, p, ifi.HardwareAddr, vip, wait); answered || err != nil {
			return answered, err
		}
	}
	return false, nil
}

// answer reports whether another station than mac says, within the time given, that it
// has vip.
func answer(ctx context.Context, c *packet.Conn, p *protocol, mac net.HardwareAddr, vip netip.Addr, wait time.Duration) (bool, error) {
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
		if h := p.holder(buf[:n], from.(*packet.Addr).HardwareAddr, vip); h != nil && !bytes.Equal(h, mac) {
			return true, nil
		}
	}
}

// ethernet returns the interface as a packet socket wants it, or nil if it has no
// neighbours to speak of: loopback, a tunnel, a dummy.
func (i *Interface) ethernet(ctx context.Context, vip netip.Addr) (*net.Interface, error) {
	if !usable(vip) {
		return nil, errUnusable
	}
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
