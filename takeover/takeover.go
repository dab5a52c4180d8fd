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
	"log/slog"
	"net/netip"

	"peerage/takeover/internal/link"
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
}

// Linux returns the interface called ifname as a [Link]. VIPs are its addresses of
// full length (/32, /128). It needs CAP_NET_ADMIN and CAP_NET_RAW.
//
// The interface is set up to answer ARP for nothing but its own addresses, and to
// use nothing but them; where that is forbidden, a warning is logged. The caller
// closes it.
func Linux(ifname string, log *slog.Logger) (*link.Interface, error) {
	return link.Open(ifname, log)
}
