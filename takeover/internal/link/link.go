// Package link makes Linux answer for an address on one interface, and talks to
// the neighbours there: netlink for the addresses, packet sockets for ARP and
// neighbour discovery. It is the only package that needs CAP_NET_ADMIN and
// CAP_NET_RAW.
//
// Start with [Open]. Nothing here decides which address should be where, starts a
// goroutine, or keeps what it read from the network.
package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is one network interface, found by its name anew for each call: it may be
// made again under the same name. Methods may be called by several goroutines at a
// time.
type Interface struct {
	name   string
	handle *netlink.Handle

	mu      sync.Mutex
	senders map[int]sender // by EtherType
}

// netlinkTimeout bounds the wait for the kernel's answer.
const netlinkTimeout = time.Second

// Open returns the interface called name in the network namespace of the calling
// thread, and sets it up to carry VIPs. Where the latter is forbidden, a warning is
// logged. The caller closes it.
func Open(name string, log *slog.Logger) (*Interface, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink for %s: %w", name, err)
	}
	i := &Interface{name: name, handle: handle, senders: make(map[int]sender)}
	if err := i.setUp(log); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

func (i *Interface) setUp(log *slog.Logger) error {
	if err := i.handle.SetSocketTimeout(netlinkTimeout); err != nil {
		return fmt.Errorf("set up netlink for %s: %w", i.name, err)
	}
	if _, err := i.handle.LinkByName(i.name); err != nil {
		return fmt.Errorf("interface %s: %w", i.name, err)
	}
	for _, s := range []struct{ key, value string }{
		{"arp_ignore", "1"},          // or the host answers here for VIPs on its other interfaces
		{"arp_announce", "2"},        // or it may ask with a VIP as sender, and steal it back
		{"promote_secondaries", "1"}, // or removing one address may take others with it
	} {
		path := filepath.Join("/proc/sys/net/ipv4/conf", i.name, s.key)
		err := os.WriteFile(path, []byte(s.value), 0)
		switch {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
			log.Warn("sysctl not set", "link", i.name, "err", err)
		case err != nil:
			return fmt.Errorf("set %s of %s: %w", s.key, i.name, err)
		}
	}
	return nil
}

// Close closes the sockets. Addresses stay where they are.
func (i *Interface) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handle.Close()
	var errs []error
	for _, s := range i.senders {
		errs = append(errs, s.conn.Close())
	}
	clear(i.senders)
	return errors.Join(errs...)
}

// Addrs returns the addresses of full length, /32 and /128.
func (i *Interface) Addrs(ctx context.Context) ([]netip.Addr, error) {
	vips, err := i.addrs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", i.name, err)
	}
	return vips, nil
}

func (i *Interface) addrs(ctx context.Context) ([]netip.Addr, error) {
	l, err := i.link(ctx)
	if err != nil {
		return nil, err
	}
	all, err := i.handle.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var vips []netip.Addr
	for _, a := range all {
		if ones, bits := a.Mask.Size(); ones == bits {
			if vip, ok := netip.AddrFromSlice(a.IP); ok {
				vips = append(vips, vip.Unmap())
			}
		}
	}
	return vips, nil
}

// lease is for how long the kernel keeps an address that is not added again. It counts
// in whole seconds.
const lease = 2 // s

// Add puts vip on the interface, from where the kernel takes it after two seconds unless
// it is added again: if this process freezes or dies, a peer finds the address free. It
// is no error if it is there already.
func (i *Interface) Add(ctx context.Context, vip netip.Addr) error {
	if err := i.change(ctx, vip, i.handle.AddrReplace); err != nil {
		return fmt.Errorf("claim %s on %s: %w", vip, i.name, err)
	}
	return nil
}

// Remove takes vip off the interface. It is no error if it is not there.
func (i *Interface) Remove(ctx context.Context, vip netip.Addr) error {
	if err := i.change(ctx, vip, i.handle.AddrDel); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("release %s on %s: %w", vip, i.name, err)
	}
	return nil
}

func (i *Interface) change(ctx context.Context, vip netip.Addr, f func(netlink.Link, *netlink.Addr) error) error {
	if !usable(vip) {
		return errUnusable
	}
	l, err := i.link(ctx)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
	// Preferred for no time, so never the source of this host's own connections.
	a.PreferedLft, a.ValidLft = 0, lease
	if vip.Is6() {
		// No duplicate address detection: it takes a second, and who asked by Probe
		// knows already.
		a.Flags = unix.IFA_F_NODAD
	}
	return f(l, a)
}

var errUnusable = errors.New("not a unicast address without zone")

func usable(vip netip.Addr) bool {
	return vip.IsValid() && !vip.Is4In6() && vip.Zone() == "" && !vip.IsUnspecified() && !vip.IsMulticast()
}

// link finds the interface.
func (i *Interface) link(ctx context.Context) (netlink.Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return i.handle.LinkByName(i.name)
}
