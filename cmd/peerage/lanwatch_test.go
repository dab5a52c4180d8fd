package main

import (
	endian "encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	lanRouter  = "192.0.2.250"
	lanRouter6 = "2001:db8::250"
)

// addRouter puts a machine on the public network that is the nodes' default gateway.
func (l *lan) addRouter() {
	l.t.Helper()
	r := newNamespace(l.t)
	l.plug(r, "router", public, lanRouter+"/24", lanRouter6+"/64")
	for _, n := range l.nodes {
		err := n.do(func() error {
			ifi, err := netlink.LinkByName(public)
			if err != nil {
				return err
			}
			for _, gateway := range []string{lanRouter, lanRouter6} {
				if err := netlink.RouteAdd(&netlink.Route{LinkIndex: ifi.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// block has the bridges drop what the rules of nftables say, until the returned function is
// called.
func (l *lan) block(t *testing.T, rules ...string) (pass func()) {
	t.Helper()
	l.blocked = append(l.blocked, rules...)
	l.filter(t)
	return func() {
		for _, r := range rules {
			i := slices.Index(l.blocked, r)
			l.blocked = slices.Delete(l.blocked, i, i+1)
		}
		l.filter(t)
	}
}

func (l *lan) filter(t *testing.T) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table bridge test\ndelete table bridge test\n" +
		"table bridge test { chain forward { type filter hook forward priority 0; " + strings.Join(l.blocked, "; ") + "; }; }")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// watcher is a machine that asks all the time who has the VIPs, and writes down which
// stations answer, and when.
type watcher struct {
	lan  *lan
	conn *packet.Conn
	vips []netip.Addr

	mu   sync.Mutex
	seen map[netip.Addr]*seen
}

// seen is what a watcher saw of a VIP.
type seen struct {
	question []byte
	runs     []stretch // in the order of their beginnings
	dark     []span    // questions in a row that nobody answered
	open     bool      // the last of them goes on
	answered bool      // since the latest question
}

// stretch is a time in which a station answered again and again.
type stretch struct {
	station string
	span
}

type span struct {
	from, to time.Time
	asked    int // questions in it; of dark ones only
}

const (
	watchEvery = 10 * time.Millisecond

	// watchGap is how long a station may not answer, and yet answer all the time: this
	// machine is busy.
	watchGap = 50 * time.Millisecond
)

// newWatcher puts a watcher on the public network, or on the one apart from it.
func (l *lan) newWatcher(host, address6, bridge string) *watcher {
	t := l.t
	t.Helper()
	n := newNamespace(t)
	l.plug(n, host, public, address6+"/64")
	l.move(host, public, bridgeOf(bridge))
	w := &watcher{lan: l, seen: map[netip.Addr]*seen{}}
	err := n.do(func() error {
		ifi, err := net.InterfaceByName(public)
		if err != nil {
			return err
		}
		for _, n := range l.nodes {
			for _, vip := range n.vips {
				q, err := whoHas(vip, ifi.HardwareAddr, netip.MustParseAddr(address6))
				if err != nil {
					return err
				}
				w.vips = append(w.vips, vip)
				w.seen[vip] = &seen{question: q}
			}
		}
		filter, err := bpf.Assemble([]bpf.Instruction{ // only what is for this machine
			bpf.LoadAbsolute{Off: 2, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: endian.BigEndian.Uint32(ifi.HardwareAddr[2:]), SkipFalse: 1},
			bpf.RetConstant{Val: 1514},
			bpf.RetConstant{Val: 0},
		})
		if err != nil {
			return err
		}
		w.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() { w.ask(end) })
	tasks.Go(w.listen)
	t.Cleanup(func() {
		close(end)
		w.conn.Close()
		tasks.Wait()
	})
	return w
}

// whoHas is the frame that asks who has vip. Over ARP it names no sender (RFC 5227 section
// 2.1.1), and so nobody learns one. Over IPv6 it names the watcher, or the answer would go to
// all nodes (RFC 4861 section 7.2.4), and the clients would learn who has the VIP from it.
func whoHas(vip netip.Addr, mac net.HardwareAddr, address6 netip.Addr) ([]byte, error) {
	if vip.Is4() {
		p := arp.Packet{
			HardwareType: 1, ProtocolType: unix.ETH_P_IP, HardwareAddrLength: 6, IPLength: 4, Operation: arp.OperationRequest,
			SenderHardwareAddr: mac, SenderIP: netip.IPv4Unspecified(), TargetHardwareAddr: make(net.HardwareAddr, 6), TargetIP: vip,
		}
		b, err := p.MarshalBinary()
		return ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, unix.ETH_P_ARP, b), err
	}
	group, err := ndp.SolicitedNodeMulticast(vip)
	if err != nil {
		return nil, err
	}
	m := &ndp.NeighborSolicitation{TargetAddress: vip, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}}
	body, err := ndp.MarshalMessageChecksum(m, address6, group)
	if err != nil {
		return nil, err
	}
	b := make([]byte, ipv6.HeaderLen, ipv6.HeaderLen+len(body))
	b[0], b[5], b[6], b[7] = ipv6.Version<<4, byte(len(body)), unix.IPPROTO_ICMPV6, 255
	copy(b[8:], address6.AsSlice())
	copy(b[24:], group.AsSlice())
	g := group.As16()
	return ethernet(append(net.HardwareAddr{0x33, 0x33}, g[12:]...), mac, unix.ETH_P_IPV6, append(b, body...)), nil
}

func ethernet(to, from net.HardwareAddr, etherType uint16, data []byte) []byte {
	return slices.Concat(to, from, endian.BigEndian.AppendUint16(nil, etherType), data)
}

// whoSays returns who has what by the answer b; the zero Addr if it is none.
func whoSays(b []byte) (vip netip.Addr, station string) {
	const header = 14
	if len(b) < header {
		return netip.Addr{}, ""
	}
	switch from, data := net.HardwareAddr(b[6:12]).String(), b[header:]; endian.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		var p arp.Packet
		if p.UnmarshalBinary(data) == nil && p.Operation == arp.OperationReply {
			return p.SenderIP, from
		}
	case unix.ETH_P_IPV6:
		if len(data) > ipv6.HeaderLen && data[6] == unix.IPPROTO_ICMPV6 {
			if m, err := ndp.ParseMessage(data[ipv6.HeaderLen:]); err == nil {
				if na, ok := m.(*ndp.NeighborAdvertisement); ok {
					return na.TargetAddress, from
				}
			}
		}
	}
	return netip.Addr{}, ""
}

func (w *watcher) ask(end <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		for _, vip := range w.vips {
			w.mu.Lock()
			s, now := w.seen[vip], time.Now()
			switch {
			case s.answered:
				s.open = false
			case !s.open:
				s.dark, s.open = append(s.dark, span{from: now.Add(-watchEvery)}), true
				fallthrough
			default:
				last := &s.dark[len(s.dark)-1]
				last.to, last.asked = now, last.asked+1
			}
			s.answered = false
			q := s.question
			w.mu.Unlock()
			w.conn.WriteTo(q, &packet.Addr{HardwareAddr: q[:6]}) // what is not sent is not answered
		}
	}
}

func (w *watcher) listen() {
	b := make([]byte, 1514)
	for {
		n, _, err := w.conn.ReadFrom(b)
		if err != nil {
			return
		}
		vip, station := whoSays(b[:n])
		now := time.Now()
		w.mu.Lock()
		if s := w.seen[vip]; s != nil {
			s.answered = true
			s.note(station, now)
		}
		w.mu.Unlock()
	}
}

func (s *seen) note(station string, now time.Time) {
	for i := len(s.runs) - 1; i >= 0; i-- {
		if r := &s.runs[i]; r.station == station {
			if now.Sub(r.to) <= watchGap {
				r.to = now
				return
			}
			break
		}
	}
	s.runs = append(s.runs, stretch{station, span{from: now, to: now}})
}

// answering returns the names of those that have answered for a VIP since a time, in the
// order in which they began to.
func (w *watcher) answering(vip netip.Addr, since time.Time) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.seen[vip].runs {
		if name := w.lan.owner(r.station); r.to.After(since) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// outage returns the longest time since another in which nobody answered for a VIP.
func (w *watcher) outage(vip netip.Addr, since time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.seen[vip].dark {
		if d.to.After(since) {
			longest = max(longest, d.to.Sub(d.from))
		}
	}
	return longest
}

// unanswered returns how many questions for a VIP have had no answer by now.
func (w *watcher) unanswered(vip netip.Addr) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen[vip]
	if !s.open {
		return 0
	}
	return s.dark[len(s.dark)-1].asked
}

// maxDouble is how long two stations may answer for one VIP on a LAN that is whole.
const maxDouble = 200 * time.Millisecond

// doubles says when, in a span, two stations answered for the same VIP for longer than may
// be.
func (w *watcher) doubles(in span) (found []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, vip := range w.vips {
		runs := w.seen[vip].runs
		for i, a := range runs {
			for _, b := range runs[i+1:] {
				from, to := later(later(a.from, b.from), in.from), sooner(sooner(a.to, b.to), in.to)
				if a.station != b.station && to.Sub(from) > maxDouble {
					found = append(found, fmt.Sprintf("%s is answered by %s and %s for %d ms, until %s", vip,
						w.lan.owner(a.station), w.lan.owner(b.station), to.Sub(from).Milliseconds(), to.Format(stamp)))
				}
			}
		}
	}
	return found
}

// stamp is the time of day as logs have it, but for the date.
const stamp = "15:04:05.000"

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sooner(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// owner returns the name of the machine that a station address belongs to, or the address.
func (l *lan) owner(station string) string {
	for _, n := range l.nodes {
		if n.station == station {
			return n.name
		}
	}
	return station
}

// probeDNS asks the name servers on all the VIPs over UDP every 5 ms, until the returned
// function is called, which returns the longest time for which each gave no answer. An
// answer counts if it comes within 30 ms.
func (l *lan) probeDNS(vips []netip.Addr) (end func() []time.Duration) {
	l.t.Helper()
	question := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(lanHost + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	packed, err := question.Pack()
	if err != nil {
		l.t.Fatal(err)
	}
	stop := make(chan struct{})
	var tasks sync.WaitGroup
	all := make([]*questions, len(vips))
	for i, vip := range vips {
		c, err := l.dial(l.t.Context(), "udp", netip.AddrPortFrom(vip, 53).String())
		if err != nil {
			l.t.Fatal(err)
		}
		a := &questions{at: map[uint16]time.Time{}}
		all[i] = a
		tasks.Go(func() {
			b := make([]byte, 1500)
			for {
				n, err := c.Read(b)
				select {
				case <-stop:
					return
				default:
				}
				if err == nil && n > 2 { // an error is a host's word that nobody is there
					a.answered(endian.BigEndian.Uint16(b), time.Now())
				}
			}
		})
		tasks.Go(func() {
			defer c.Close()
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			q := slices.Clone(packed)
			for id := uint16(0); ; id++ {
				endian.BigEndian.PutUint16(q, id)
				a.ask(id, time.Now())
				c.Write(q)
				select {
				case <-tick.C:
				case <-stop:
					return
				}
			}
		})
	}
	return func() []time.Duration {
		close(stop)
		tasks.Wait()
		var outages []time.Duration
		for _, a := range all {
			outages = append(outages, a.outage())
		}
		return outages
	}
}

// questions are those to one server.
type questions struct {
	mu   sync.Mutex
	at   map[uint16]time.Time // of those without an answer
	good []time.Time          // when those were asked that were answered in time
	last time.Time
}

const dnsPatience = 30 * time.Millisecond

func (a *questions) ask(id uint16, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[id], a.last = now, now
	if len(a.good) == 0 {
		a.good = append(a.good, now)
	}
}

func (a *questions) answered(id uint16, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.at[id]; ok && now.Sub(at) <= dnsPatience {
		a.good = append(a.good, at)
		delete(a.at, id)
	}
}

func (a *questions) outage() (longest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortFunc(a.good, time.Time.Compare)
	for i, at := range append(a.good[1:], a.last) {
		longest = max(longest, at.Sub(a.good[i]))
	}
	return longest
}
