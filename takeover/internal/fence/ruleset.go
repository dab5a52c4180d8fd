package fence

import (
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// standing is the table that stays when the process dies: a VIP's packet passes only
	// if its mark says that the lease is open.
	standing = "peerage"
	// owned is the table that the kernel removes when the process dies. It has the lease,
	// and marks the packets that pass.
	owned = "peerage-lease"

	vips4 = "vips4"
	vips6 = "vips6"
	lease = "lease" // has leaseKey while it is open
)

// leaseKey loads what is the same of every packet in a table of this family: the set has
// one element at most.
var leaseKey = meta(unix.NFT_META_NFPROTO)

// passBit is set in the mark of a VIP's packet on its way from a chain of owned to the
// next, which is of standing and clears it. It is cleared before the first of the two as
// well: whoever else uses this bit cannot open the fence with it, but does not find it
// again on a VIP's packets.
const passBit = 1 << 31

// flagOwner is NFT_TABLE_F_OWNER: the table goes with the socket that made it, and nobody
// else may change it.
const flagOwner = 2

// table is what one of the two is to have, apart from the VIPs.
type table struct {
	name   string
	flags  uint32
	sets   []set
	chains []chain
}

// set has keys of a length in octets. The type is for those who list it.
type set struct {
	name   string
	flags  uint32
	kind   uint32
	octets uint32
}

// The types are libnftables' own numbers for ipv4_addr, ipv6_addr and nf_proto.
var (
	set4     = set{name: vips4, kind: 7, octets: 4}
	set6     = set{name: vips6, kind: 8, octets: 16}
	setLease = set{name: lease, flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, kind: 2, octets: 1}
)

// chain is one at a hook of a device, or one that others go to, whose device is "".
type chain struct {
	place
	name  string
	rules []rule
}

// place is where the kernel calls a chain.
type place struct {
	device   string
	hook     uint32
	priority int32
}

// On the way in the fence is first, so that it sees what the neighbour sent; on the way
// out it is last, so that it sees what would leave. The steps follow each other closely,
// and so nobody else sees the bit.
func in(device string, step int32) place {
	return place{device: device, hook: unix.NF_NETDEV_INGRESS, priority: math.MinInt32 + step}
}

func out(device string, step int32) place {
	return place{device: device, hook: unix.NF_NETDEV_EGRESS, priority: math.MaxInt32 - 3 + step}
}

// The steps of a packet.
const (
	stepClear = iota // standing: the bit says nothing yet
	stepLease        // owned: the lease
	stepPass         // standing: the bit
	stepRenew        // owned: a report that leaves renews the lease
)

func standingTable(c Config) table {
	mark := meta(unix.NFT_META_MARK)
	unmarked := newRule(mark, change(passBit, 0), equals(native(0)...), verdict(accept, ""))
	cleared := newRule(mark, change(^uint32(passBit), 0), setMark())
	return table{name: standing, sets: []set{set4, set6}, chains: []chain{
		{name: "clear", rules: []rule{cleared}},
		{name: "pass", rules: []rule{newRule(mark, change(passBit, 0), equals(native(0)...), verdict(drop, "")), cleared}},
		{name: "clear-in", place: in(c.Device, stepClear), rules: slices.Concat([]rule{unmarked}, incoming("clear"))},
		{name: "clear-out", place: out(c.Device, stepClear), rules: slices.Concat([]rule{unmarked}, outgoing("clear"))},
		{name: "pass-in", place: in(c.Device, stepPass), rules: incoming("pass")},
		{name: "pass-out", place: out(c.Device, stepPass), rules: outgoing("pass")},
	}}
}

func ownedTable(c Config) table {
	return table{name: owned, flags: flagOwner, sets: []set{set4, set6, setLease}, chains: []chain{
		{name: "lease", rules: []rule{
			newRule(leaseKey, without(lease), verdict(drop, "")),
			newRule(meta(unix.NFT_META_MARK), change(^uint32(passBit), passBit), setMark()),
		}},
		{name: "lease-in", place: in(c.Device, stepLease), rules: incoming("lease")},
		{name: "lease-out", place: out(c.Device, stepLease), rules: outgoing("lease")},
		{name: "renew", place: out(c.Reports, stepRenew), rules: []rule{
			newRule(meta(unix.NFT_META_MARK), equals(native(c.Mark)...), leaseKey, renew(lease, c.Lease)),
		}},
	}}
}

const (
	drop   = 0 // NF_DROP
	accept = 1 // NF_ACCEPT
)

// incoming are the rules that send packets for a VIP to a chain. Whoever else claims to
// have one is heard at all times: the gratuitous request too (RFC 5227 section 3), in
// which the sender asks for itself, replies, and neighbour advertisements.
func incoming(to string) []rule {
	next := verdict(unix.NFT_GOTO, to)
	return []rule{
		newRule(isIPv4, network(ipv4Destination, 4), within(vips4), next),
		newRule(isARP, network(arpOperation, 2), equals(0, arpRequest), network(arpSender, 4), without(vips4),
			network(arpTarget, 4), within(vips4), next),
		newRule(isIPv6, network(ipv6Destination, 16), within(vips6), next),
		newRule(isIPv6, isICMPv6, transport(0, 1), equals(neighbourSolicitation),
			transport(ndpTarget, 16), within(vips6), next),
	}
}

// outgoing are the rules that send packets from a VIP to a chain, and those that say that
// this node has one. A probe for a VIP, which names no sender, is not among them.
func outgoing(to string) []rule {
	next := verdict(unix.NFT_GOTO, to)
	return []rule{
		newRule(isIPv4, network(ipv4Source, 4), within(vips4), next),
		newRule(isARP, network(arpSender, 4), within(vips4), next),
		newRule(isIPv6, network(ipv6Source, 16), within(vips6), next),
		newRule(isIPv6, isICMPv6, transport(0, 1), equals(neighbourAdvertisement),
			transport(ndpTarget, 16), within(vips6), next),
	}
}

// Offsets in octets: RFC 791 section 3.1, RFC 8200 section 3, RFC 826 on Ethernet,
// RFC 4861 sections 4.3 and 4.4.
const (
	ipv4Source, ipv4Destination        = 12, 16
	ipv6Source, ipv6Destination        = 8, 24
	arpOperation, arpSender, arpTarget = 6, 14, 24
	ndpTarget                          = 8

	arpRequest             = 1
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

var (
	isIPv4   = etherType(unix.ETH_P_IP)
	isIPv6   = etherType(unix.ETH_P_IPV6)
	isARP    = etherType(unix.ETH_P_ARP)
	isICMPv6 = slices.Concat(meta(unix.NFT_META_L4PROTO), equals(unix.IPPROTO_ICMPV6))
)

func etherType(t uint16) attrs {
	return slices.Concat(meta(unix.NFT_META_PROTOCOL), equals(byte(t>>8), byte(t)))
}
