// Package fence makes the kernel drop all traffic of the site's VIPs on one interface,
// unless this node's own reports have left within the lease, and at once when the process
// that opened it dies.
//
// Start with [Open] and [Fence.Set]. The caller marks the socket of its reports with
// SO_MARK when the node may hold VIPs: each such report that leaves opens the fence for the
// lease, in the kernel, without a system call. So a node that is frozen, or cannot send, is
// dark before its peers take its VIPs.
//
// There are two tables of the netdev family. The standing one drops what is from or for a
// VIP, and stays when the process dies. The other is owned by the netlink socket
// (NFT_TABLE_F_OWNER): it has a set with one element, which a marked packet renews and
// whose timeout is the lease, and lets the VIPs' packets pass while it is there. The kernel
// removes it with the socket, whatever the process died of, and nobody else can change it.
//
// What the fence stops is dropped without a word to the sender, but a packet socket is told
// so: its write says ENOBUFS.
//
// Nothing here touches an address, starts a goroutine, or decides who holds a VIP. The
// names of the tables are those of the network namespace: two nodes in one are not
// supported on a real link. What a process that died has left goes with the next Close, or
// by nft delete table netdev peerage. Packets of other addresses are never touched. Of the
// mark of a VIP's packets the highest bit is used in between, and is zero afterwards.
package fence

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what is fenced, and what opens it.
type Config struct {
	// Device carries the VIPs. It is of Ethernet, or looks like it: a VLAN, a bond.
	Device string
	// Reports is the device by which the marked reports leave, often the same.
	Reports string
	// Mark is the mark of the reports' socket, not 0. Only they may have it.
	Mark uint32
	// VIPs are all VIPs of the site, at most 16384, in any order.
	VIPs []netip.Addr
	// Lease is for how long a report opens the fence, 10 ms to 1 h. The kernel counts in
	// ticks of 1 to 10 ms, and closes it up to two ticks early, never late.
	Lease time.Duration
}

// maxVIPs is 512 nodes with 32 VIPs each.
const maxVIPs = 512 * 32

const (
	minLease = 10 * time.Millisecond
	maxLease = time.Hour
)

// Fence is the fence of one network namespace, that of the thread that called [Open].
// Methods may be called by several goroutines at a time.
type Fence struct {
	mu      sync.Mutex
	conn    *conn // nil once closed
	config  Config
	applied bool // config is what the last transaction was about

	// What was so when all was found as it should be; generation is 0 before.
	generation uint32
	devices    [2]uint32
}

// Open asks the kernel whether it can do all that is needed, and becomes the owner of the
// fence. Nothing is fenced yet, but for what a process that died has left: that stays
// closed. The error says what is missing, and what to do.
func Open() (*Fence, error) {
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open the fence of VIPs: netlink to nf_tables: %w: a kernel with CONFIG_NF_TABLES is needed", err)
	}
	if err := try(c); err != nil {
		c.close()
		return nil, fmt.Errorf("open the fence of VIPs: %w", err)
	}
	return &Fence{conn: c}, nil
}

// Set makes the kernel have the fence of c, in one transaction. A lease that runs goes on,
// though one that was longer than the new one ends no sooner, unless a marked packet or
// [Fence.Revoke] comes. It repairs what somebody removed, and costs next to nothing when
// there is nothing to do: call it every few seconds. If a device was made anew it has no
// fence before Set: call it before an address is added there.
func (f *Fence) Set(c Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.set(c); err != nil {
		return fmt.Errorf("fence VIPs on %s: %w", c.Device, err)
	}
	return nil
}

func (f *Fence) set(c Config) error {
	if f.conn == nil {
		return errClosed
	}
	same := f.applied && c.equal(f.config)
	if !same {
		if err := c.check(); err != nil {
			return err
		}
	}
	devices, err := f.conn.devices(c)
	if err != nil {
		return err
	}
	generation, err := f.conn.generation()
	if err != nil {
		return fmt.Errorf("read the generation of nf_tables: %w", err)
	}
	if same && generation == f.generation && devices == f.devices {
		return nil
	}
	anew := !f.applied || !c.equalRules(f.config) || devices != f.devices
	msgs, err := f.changes(c, anew)
	if err != nil {
		return err
	}
	if len(msgs) > 0 {
		// Others may make a transaction at the same time. What came of it is seen by the
		// next call.
		generation = 0
		if err := f.conn.transact(msgs); err != nil {
			return err
		}
	}
	c.VIPs = slices.Clone(c.VIPs)
	f.config, f.applied, f.generation, f.devices = c, true, generation, devices
	return nil
}

// changes returns what makes the kernel have the fence of c.
func (f *Fence) changes(c Config, anew bool) ([]message, error) {
	var msgs []message
	keys := c.keys()
	for _, t := range []table{standingTable(c), ownedTable(c)} {
		have, err := f.conn.read(t.name)
		if err != nil {
			return nil, fmt.Errorf("read table %s: %w", t.name, err)
		}
		msgs = append(msgs, t.ruleChanges(have, anew)...)
		msgs = append(msgs, t.vipChanges(have, keys)...)
	}
	return msgs, nil
}

// Revoke closes the fence at once. The next marked packet opens it again.
func (f *Fence) Revoke() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return fmt.Errorf("close the fence of VIPs: %w", errClosed)
	}
	if !f.applied {
		return nil
	}
	if err := f.conn.transact([]message{table{name: owned}.emptied(lease)}); err != nil {
		return fmt.Errorf("close the fence of VIPs: %w", err)
	}
	return nil
}

// Close removes everything. The VIPs are off the interface by then, or are answered for
// from now on whatever becomes of the reports.
func (f *Fence) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return nil
	}
	t := table{name: standing}
	err := f.conn.transact([]message{t.add(), t.delete(), table{name: owned}.delete()})
	err = errors.Join(err, f.conn.close())
	f.conn = nil
	if err != nil {
		return fmt.Errorf("remove the fence of VIPs: %w", err)
	}
	return nil
}

var errClosed = errors.New("the fence is closed for good")

// check returns all that is wrong with c.
func (c Config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Mark == 0 {
		wrong("mark 0: every packet has it; choose another")
	}
	if c.Lease < minLease || c.Lease > maxLease {
		wrong("lease %v: must be %v to %v", c.Lease, minLease, maxLease)
	}
	if len(c.VIPs) > maxVIPs {
		wrong("%d VIPs: must be at most %d", len(c.VIPs), maxVIPs)
	}
	for _, vip := range c.VIPs {
		if !vip.IsValid() || vip.Is4In6() || vip.Zone() != "" || vip.IsUnspecified() || vip.IsMulticast() {
			wrong("VIP %s: not a unicast address without zone", vip)
		}
	}
	return errors.Join(errs...)
}

func (c Config) equal(d Config) bool { return c.equalRules(d) && slices.Equal(c.VIPs, d.VIPs) }

func (c Config) equalRules(d Config) bool {
	return c.Device == d.Device && c.Reports == d.Reports && c.Mark == d.Mark && c.Lease == d.Lease
}

func (c Config) keys() keySets {
	k := keySets{vips4: make(map[string]bool), vips6: make(map[string]bool)}
	for _, vip := range c.VIPs {
		set := vips4
		if vip.Is6() {
			set = vips6
		}
		k[set][string(vip.AsSlice())] = true
	}
	return k
}

// devices returns the indexes of the two devices, which change when one is made anew.
func (c *conn) devices(config Config) (indexes [2]uint32, err error) {
	for i, name := range []string{config.Device, config.Reports} {
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			err = unix.IoctlIfreq(c.fd, unix.SIOCGIFHWADDR, ifr)
		}
		if err != nil {
			return indexes, fmt.Errorf("interface %q: %w", name, err)
		}
		if t := ifr.Uint16(); t != unix.ARPHRD_ETHER && i == 0 {
			return indexes, fmt.Errorf("interface %q is not of Ethernet (type %d): have the VIPs on one that is", name, t)
		}
		if err := unix.IoctlIfreq(c.fd, unix.SIOCGIFINDEX, ifr); err != nil {
			return indexes, fmt.Errorf("interface %q: %w", name, err)
		}
		indexes[i] = ifr.Uint32()
	}
	return indexes, nil
}
