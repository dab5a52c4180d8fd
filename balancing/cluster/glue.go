package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// settings returns the configuration of memberlist. Whatever it dials ends with ctx.
func (m *Member) settings(ctx context.Context) (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	c.TCPTimeout = 3 * time.Second // a message may be as large as MaxValue
	if m.c.Distance == WAN {
		c = memberlist.DefaultWANConfig()
		c.TCPTimeout = 10 * time.Second
	}
	c.Name = m.c.Self
	c.Label = m.c.Site
	c.BindAddr, c.BindPort = m.c.Bind.Addr().String(), int(m.c.Bind.Port())
	c.AdvertisePort = c.BindPort
	if !m.c.Bind.Addr().IsUnspecified() {
		c.AdvertiseAddr = c.BindAddr
	}
	c.Keyring = m.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	// The size of what is compressed before it is sealed can tell what is in it.
	c.EnableCompression = false
	c.ProtocolVersion = memberlist.ProtocolVersionMax
	// The envelopes carry versions of their own. This one is for what they cannot bridge.
	c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = 1, 1, 1
	// Names cannot be required: seeds are addresses. Label and keys keep strangers out.
	c.RequireNodeNames = false
	// A node that comes back with another address, but not one that merely stutters.
	c.DeadNodeReclaimTime = 10 * time.Second
	// The default of 6 lets a silent node be waited for up to 24 s.
	c.SuspicionMaxTimeoutMult = 3
	c.UDPBufferSize = 1400
	c.Logger = log.New(lines{m.c.Log}, "", 0)

	c.Delegate = delegate{m}
	c.Events = delegate{m}
	c.Alive = delegate{m}
	c.Conflict = delegate{m}

	c.Transport = m.c.Transport
	if c.Transport == nil {
		t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger})
		if err != nil {
			return nil, err
		}
		local := m.c.Bind.Addr()
		if local.IsUnspecified() {
			local = netip.Addr{}
		}
		c.Transport = &sockets{t, ctx, local}
	}
	return c, nil
}

// sockets are real ones, whose dials and connections end with a context, so that the end of
// a node does not wait for a peer. They dial from the address that is bound: the kernel
// would choose, and could choose a VIP.
type sockets struct {
	*memberlist.NetTransport
	ctx   context.Context
	local netip.Addr
}

func (s *sockets) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return s.DialTimeout(a.Addr, timeout)
}

func (s *sockets) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	if s.local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.local, 0))
	}
	c, err := d.DialContext(s.ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &conn{c, context.AfterFunc(s.ctx, func() { c.Close() })}, nil
}

type conn struct {
	net.Conn
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// lines takes what memberlist logs, a line at a time. All of it is for debugging: what an
// operator acts on is logged by the Member. It names nodes and addresses, no keys.
type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	l.log.Debug("memberlist", "text", string(bytes.TrimSpace(b)))
	return len(b), nil
}

// delegate is what memberlist calls, some of it with its locks held: it copies and hands
// over, and calls nothing of memberlist's.
type delegate struct{ m *Member }

const metaVersion = 1

func (d delegate) NodeMeta(limit int) []byte {
	b := append([]byte{metaVersion}, d.m.c.Version...)
	return b[:min(limit, len(b))]
}

// versionOf returns the version of the software from what a node tells of itself.
func versionOf(meta []byte) string {
	if len(meta) < 2 || meta[0] != metaVersion || !printable(string(meta[1:]), 64) {
		return ""
	}
	return string(meta[1:])
}

func (d delegate) NotifyMsg(b []byte) { d.m.post(event{message: true, body: bytes.Clone(b)}) }

func (d delegate) LocalState(bool) []byte { return d.m.state(false) }

func (d delegate) MergeRemoteState(b []byte, _ bool) { d.NotifyMsg(b) }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.notify(n, Alive) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.notify(n, Alive) }

func (d delegate) NotifyLeave(n *memberlist.Node) { d.notify(n, Dead) }

var errStranger = errors.New("no node of this site")

// NotifyAlive keeps those out that are no nodes of the site.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.m.c.Self || validNode(n.Name) && d.m.c.Allowed(n.Name) {
		return nil
	}
	d.m.counters.strangers.Add(1)
	return errStranger
}

// NotifyConflict is called when a member's name comes from another address.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.m.post(event{conflict: existing.Name, at: time.Now(), addresses: [2]netip.AddrPort{addressOf(existing), addressOf(other)}})
}

func addressOf(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// notify takes over the state of a member.
func (d delegate) notify(n *memberlist.Node, s State) {
	m := d.m
	if n.Name == m.c.Self {
		return
	}
	node := *n
	node.Addr, node.Meta = slices.Clone(n.Addr), bytes.Clone(n.Meta)
	m.mu.Lock()
	p := m.peers[n.Name]
	if p == nil {
		p = &peer{}
		m.peers[n.Name] = p
	}
	// memberlist does not tell whether it was dead or left. A farewell does.
	if s == Dead && p.farewell {
		s = Left
	}
	p.farewell = false
	changed := p.state != s
	if changed {
		p.state, p.since, p.failed = s, time.Now(), false
	}
	p.node = node
	m.mu.Unlock()
	if changed {
		m.post(event{changed: n.Name, state: s})
	}
}

// checkRing tells what is wrong with gossip keys, and nothing of them.
func checkRing(keys [][32]byte) error {
	if len(keys) == 0 || len(keys) > MaxKeys {
		return fmt.Errorf("cluster: %d keys, want 1 to %d", len(keys), MaxKeys)
	}
	for n, k := range keys {
		if k == [32]byte{} {
			return errors.New("cluster: empty key")
		}
		if slices.Contains(keys[:n], k) {
			return errors.New("cluster: the same key twice")
		}
	}
	return nil
}

func newRing(keys [][32]byte) *memberlist.Keyring {
	all := make([][]byte, len(keys))
	for n, k := range keys {
		all[n] = k[:]
	}
	ring, err := memberlist.NewKeyring(all, all[0])
	if err != nil {
		panic("gossip keys: " + err.Error()) // only for sizes that AES does not have
	}
	return ring
}

// SetKeys changes the gossip keys while they are in use: the first seals from now on, all
// open. It is done on all nodes in turn: add the new one last, make it the first, and drop
// the old one when it is the first on all of them.
func (m *Member) SetKeys(keys [][32]byte) error {
	if err := checkRing(keys); err != nil {
		return err
	}
	m.ringLock.Lock()
	defer m.ringLock.Unlock()
	first := bytes.Clone(keys[0][:])
	if err := errors.Join(m.ring.AddKey(first), m.ring.UseKey(first)); err != nil {
		return fmt.Errorf("cluster: gossip keys: %w", err)
	}
	wanted := func(k []byte) bool {
		return slices.ContainsFunc(keys, func(w [32]byte) bool { return bytes.Equal(w[:], k) })
	}
	// RemoveKey moves the keys behind the one that it removes within the slice that others
	// read just now, unless it is the last. So all from the first that is not wanted go, and
	// those that are wanted come back in an instant.
	have := slices.Clone(m.ring.GetKeys())
	keep := len(have)
	if first := slices.IndexFunc(have, func(k []byte) bool { return !wanted(k) }); first > 0 {
		keep = first
	}
	for _, k := range slices.Backward(have[keep:]) {
		if err := m.ring.RemoveKey(k); err != nil {
			return fmt.Errorf("cluster: gossip keys: %w", err)
		}
	}
	for _, k := range keys {
		if err := m.ring.AddKey(bytes.Clone(k[:])); err != nil {
			return fmt.Errorf("cluster: gossip keys: %w", err)
		}
	}
	return nil
}
