package fence

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"peerage/balancing/nstest"
)

// The other devices that carry VIPs. Those that a kernel may lack have tests of their own.
func TestOnBridge(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a := netlink.NewLinkAttrs()
		a.Name, a.HardwareAddr = "bridge-"+wire, stationOf(wire)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
			return "", err
		}
		port, err := netlink.LinkByName(wire)
		if err != nil {
			return "", err
		}
		return a.Name, netlink.LinkSetMaster(port, &netlink.Bridge{LinkAttrs: a})
	})
}

func TestOnMACVLAN(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a, err := attrsOn(wire, "macvlan-"+wire)
		if err != nil {
			return "", err
		}
		a.HardwareAddr = stationOf(wire)
		below := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.ParentIndex}}
		return a.Name, errors.Join(
			netlink.LinkSetHardwareAddr(below, net.HardwareAddr{2, 0, 0, 0, 1, stationOf(wire)[5]}), // the two must differ
			netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	})
}

func TestOnVLAN(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a, err := attrsOn(wire, wire+".10")
		return a.Name, errors.Join(err, netlink.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: 10}))
	})
}

func TestOnBond(t *testing.T) {
	testOn(t, func(wire string) (string, error) {
		a := netlink.NewLinkAttrs()
		a.Name, a.HardwareAddr = "bond-"+wire, stationOf(wire)
		bond := netlink.NewLinkBond(a)
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		if err := netlink.LinkAdd(bond); err != nil {
			return "", err
		}
		member, err := netlink.LinkByName(wire)
		if err != nil {
			return "", err
		}
		return a.Name, netlink.LinkSetMaster(member, bond)
	})
}

func testOn(t *testing.T, device func(wire string) (string, error)) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, device)
	t.Run("a marked packet opens it", func(t *testing.T) { testOpens(t, l) })
	t.Run("what leaves", func(t *testing.T) { testOutgoing(t, l) })
	t.Run("closes when the lease is over", func(t *testing.T) { testLease(t, l) })
	t.Run("a mark from the device below opens nothing", func(t *testing.T) { testMarkFromBelow(t, l) })
}

// testMarkFromBelow is without the owner, whose table would stop the packets as well.
func testMarkFromBelow(t *testing.T, l *lan) {
	owner := l.startOwner(t)
	must(t, owner.Kill())
	_, err := owner.Wait()
	must(t, err)
	c, err := dial()
	must(t, err)
	defer c.close()
	below := table{name: "below", chains: []chain{
		{name: "below", place: in(nodeWire, 0), rules: []rule{newRule(meta(unix.NFT_META_MARK), change(0, passBit), setMark())}},
	}}
	must(t, c.transact(below.ruleChanges(state{}, true)))
	l.expectStopped(t)
}

func attrsOn(wire, name string) (netlink.LinkAttrs, error) {
	a := netlink.NewLinkAttrs()
	a.Name = name
	parent, err := netlink.LinkByName(wire)
	if err == nil {
		a.ParentIndex = parent.Attrs().Index
	}
	return a, err
}

func stationOf(wire string) net.HardwareAddr {
	if wire == nodeWire {
		return slices.Clone(nodeMAC)
	}
	return slices.Clone(neighbourMAC)
}

// TestDeviceMadeAnew lays the wire a second time. A kernel before 6.16 removes the chains
// of a device with it.
func TestDeviceMadeAnew(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	l := newLAN(t, nil)
	c := l.config()
	f := l.fence(t, c)
	for _, removed := range []bool{false, true} {
		l.report(t, mark)
		l.expectOpen(t, l.incoming(vip4, vip6))
		must(t, f.Set(c)) // and all is found as it should be
		must(t, netlink.LinkDel(byName(t, nodeWire)))
		if err := f.Set(c); !errors.Is(err, unix.ENODEV) {
			t.Errorf("without the device: got %v, want %v", err, unix.ENODEV)
		}
		if removed {
			for _, table := range []table{standingTable(c), ownedTable(c)} {
				have, err := f.conn.read(table.name)
				must(t, err)
				msgs := []message{table.flush()}
				for name, h := range have.chains {
					if h.device != "" {
						msgs = append(msgs, table.chainMessage(unix.NFT_MSG_DELCHAIN, 0, name, nil))
					}
				}
				must(t, f.conn.transact(msgs))
			}
		}
		l = newLAN(t, nil)
		must(t, f.Set(c))
		must(t, f.Revoke())
		l.expectClosed(t, append(l.incoming(vip4, vip6), l.outgoing(t)...))
	}
	l.report(t, mark)
	l.expectOpen(t, l.incoming(vip4, vip6))
}

func testReportsElsewhere(t *testing.T, l *lan) {
	a := netlink.NewLinkAttrs()
	a.Name = "inside0"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "inside1"}))
	inside := byName(t, a.Name)
	defer netlink.LinkDel(inside)
	must(t, netlink.LinkSetUp(byName(t, "inside1")))
	must(t, netlink.LinkSetUp(inside))
	from, to := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	must(t, netlink.AddrAdd(inside, &netlink.Addr{IPNet: &net.IPNet{IP: from.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: inside.Attrs().Index, State: netlink.NUD_PERMANENT, IP: to.AsSlice(), HardwareAddr: neighbourMAC,
	}))
	c := l.config()
	f := l.fence(t, c)
	all := l.incoming(vip4, vip6)
	l.report(t, mark)
	c.Reports = a.Name
	must(t, f.Set(c))
	l.expectOpen(t, all)
	must(t, f.Revoke())
	l.report(t, mark) // by the wrong one
	l.expectClosed(t, all)
	must(t, sendMarked(netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 7947), mark))
	l.expectOpen(t, all)
}
