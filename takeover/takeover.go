// Package takeover keeps the VIPs of the site answered: the VIP of a node that
// fell silent is claimed by a peer, and given back when the node has returned.
//
// Start with [Keeper]. It makes what the network interface holds match what
// [Plan] says that this node should hold, and repeats that on each new view of
// the site and every few seconds; after a crash the same steps clean up. Plan is
// a pure function of the view, so that all nodes come to the same answer without
// talking about it.
//
// A Keeper never claims an address that a live peer reports to hold, or that
// another host still answers for; and what is not its to hold it gives up before
// it claims anything.
//
// [Keeper.Run] owns all state; everyone else sees [Keeper.Status]. The kernel is
// behind [Link], of which there are two: [Linux] for real addresses, [Loopback]
// for nodes of one machine without privileges. A third one is for tests, in
// takeover/linktest.
//
// ARP is RFC 826 and RFC 5227, neighbour discovery RFC 4861.
package takeover

import (
	"context"
	"net/netip"
	"time"
)

// Link is one network interface: the addresses on it, as the kernel has them now,
// and the neighbours on its LAN. Methods may be called by several goroutines at a
// time, return soon after their context has ended, and say in their errors which
// address they were about.
type Link interface {
	// Addrs returns the addresses that are on the interface in the manner of a
	// VIP, whoever put them there, in no particular order.
	Addrs(context.Context) ([]netip.Addr, error)
	// Add puts an address on the interface. It is no error if it is there already. The
	// address need not stay for longer than two seconds unless it is added again: who
	// freezes or dies shall not go on answering.
	Add(context.Context, netip.Addr) error
	// Remove takes an address off the interface. It is no error if it is not there.
	Remove(context.Context, netip.Addr) error
	// Announce tells the LAN, once, that the address is here now.
	Announce(context.Context, netip.Addr) error
	// Probe reports whether another host answers for the address.
	Probe(context.Context, netip.Addr) (bool, error)
	// Confirm reports whether the default gateway knows that the address, which is on the
	// interface, is here. It is true where there is no gateway to know it.
	Confirm(context.Context, netip.Addr) (bool, error)
	// Gateways returns the default gateways that are reached by the interface; none where
	// there are no neighbours to ask.
	Gateways(context.Context) ([]netip.Addr, error)

	// Fence makes the kernel drop what concerns any of the addresses, unless this node has
	// sent a report marked with [Mark] within the lease, and from the moment on that this
	// process is dead. No addresses remove the fence. It is nothing to do where an address
	// goes with its process anyway.
	Fence(ctx context.Context, vips []netip.Addr, lease time.Duration) error
	// Watch reports what is seen of the addresses and the interface until ctx ends. The
	// function may be called by several goroutines, and must not block.
	Watch(ctx context.Context, vips []netip.Addr, saw func(Sighting)) error
}

// Mark is the firewall mark of reports that renew the lease of a [Link]'s fence.
const Mark = 0x50454552
