package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Sighting is something that was seen on an interface.
type Sighting struct {
	// VIP is an address that another station says it has, and Station that station. Without
	// a VIP, the state of the interface or the addresses on it have changed.
	VIP     netip.Addr
	Station net.HardwareAddr
}

// maxWatched bounds the VIPs that one filter looks for; a filter of the kernel has at most
// 4096 instructions.
const maxWatched = 2000

// rewatch is the pause after which an interface that cannot be watched is tried again.
const rewatch = time.Second

// Watch reports, until ctx ends, when the state of the interface or an address of full
// length changes, and when another station answers for one of vips. Saw is called by
// several goroutines. An interface that vanishes is waited for.
func (i *Interface) Watch(ctx context.Context, vips []netip.Addr, saw func(Sighting)) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	changed := make(chan struct{}, 1)
	if err := i.subscribe(ctx, end, &tasks, func() {
		saw(Sighting{})
		select {
		case changed <- struct{}{}: // its stations must be watched anew
		default:
		}
	}); err != nil {
		return fmt.Errorf("watch %s: %w", i.name, err)
	}
	for ctx.Err() == nil {
		var watches sync.WaitGroup
		watching, stop := context.WithCancel(ctx)
		ifi, err := i.ethernet(watching)
		if err == nil && ifi != nil {
			for _, p := range []*protocol{&arpProtocol, &ndpProtocol} {
				watches.Go(func() { watchStations(watching, ifi, p, vips, saw) })
			}
		}
		pause := time.NewTimer(rewatch)
		if err == nil {
			pause.Stop()
		}
		i.awaitOther(ctx, ifi, changed, pause.C)
		stop()
		watches.Wait()
		pause.Stop()
	}
	if err := context.Cause(ctx); errors.Is(err, errSubscription) {
		return fmt.Errorf("watch %s: %w", i.name, err)
	}
	return nil
}

// awaitOther returns when the interface is another one than ifi, made under the same name;
// when retry says so; and when ctx ends.
func (i *Interface) awaitOther(ctx context.Context, ifi *net.Interface, changed <-chan struct{}, retry <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry:
			return
		case <-changed:
			now, err := i.ethernet(ctx)
			if err != nil || (now == nil) != (ifi == nil) || now != nil && (now.Index != ifi.Index || !bytes.Equal(now.HardwareAddr, ifi.HardwareAddr)) {
				return
			}
		}
	}
}

// errSubscription is that the kernel tells nothing any more: it had too much to tell.
var errSubscription = errors.New("the kernel's news of interfaces have ended")

// subscribe calls changed, until ctx ends, after each change that the kernel tells of. If
// the kernel ends it, it ends ctx.
func (i *Interface) subscribe(ctx context.Context, end context.CancelCauseFunc, tasks *sync.WaitGroup, changed func()) error {
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{}); err != nil {
		return err
	}
	tasks.Go(func() {
		defer end(errSubscription)
		for u := range links { // closed when ctx has ended
			if u.Attrs().Name == i.name {
				changed()
			}
		}
	})
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{}); err != nil {
		return err
	}
	tasks.Go(func() {
		defer end(errSubscription)
		for u := range addrs {
			if ones, bits := u.LinkAddress.Mask.Size(); ones == bits && !u.NewAddr {
				changed()
			}
		}
	})
	return nil
}

// watchStations reports what other stations of ifi say to have of vips, until ctx ends or
// the interface does.
func watchStations(ctx context.Context, ifi *net.Interface, p *protocol, vips []netip.Addr, saw func(Sighting)) {
	of := map[netip.Addr]bool{}
	for _, vip := range vips {
		if protocolOf(vip) == p && len(of) < maxWatched {
			of[vip] = true
		}
	}
	if len(of) == 0 {
		return
	}
	c, err := listen(ifi, p.etherType, p.claims(of))
	if err != nil {
		return // it goes on without; that it vanished is seen elsewhere
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	var buf [1500]byte
	for {
		n, from, err := c.ReadFrom(buf[:])
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENETDOWN): // a cable that is pulled may come back
			continue
		case err != nil:
			return
		}
		vip := p.claimed(buf[:n])
		if !of[vip] {
			continue
		}
		if h := p.holder(buf[:n], from.(*packet.Addr).HardwareAddr, vip); h != nil && !bytes.Equal(h, ifi.HardwareAddr) {
			saw(Sighting{VIP: vip, Station: bytes.Clone(h)})
		}
	}
}

// claimFilter passes what has one of the words at an offset of its network header.
func claimFilter(before []bpf.Instruction, offset uint32, words []uint32) []bpf.Instruction {
	filter := append(before, bpf.LoadAbsolute{Off: offset, Size: 4})
	for _, w := range words {
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: w, SkipTrue: 1}, bpf.RetConstant{Val: 1500})
	}
	return append(filter, bpf.RetConstant{Val: 0})
}

// arpClaims passes ARP whose sender is one of vips.
func arpClaims(vips map[netip.Addr]bool) []bpf.Instruction {
	return claimFilter(nil, arpSenderIP, lastWords(vips))
}

func arpClaimed(data []byte) netip.Addr {
	if len(data) < arpSenderIP+4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(data[arpSenderIP:]))
}

// ndpClaims passes neighbour advertisements for one of vips, by the end of their addresses.
func ndpClaims(vips map[netip.Addr]bool) []bpf.Instruction {
	const nextHeader, messageType = 6, ipv6.HeaderLen
	return claimFilter([]bpf.Instruction{
		bpf.LoadAbsolute{Off: nextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: messageType, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(ipv6.ICMPTypeNeighborAdvertisement), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}, ndpTarget+12, lastWords(vips))
}

func ndpClaimed(data []byte) netip.Addr {
	if len(data) < ndpTarget+16 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(data[ndpTarget:]))
}

// lastWords returns the last four octets of each address.
func lastWords(vips map[netip.Addr]bool) (words []uint32) {
	for vip := range vips {
		b := vip.AsSlice()
		b = b[len(b)-4:]
		words = append(words, uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]))
	}
	return words
}
