// Package linktest has what tests of takeover need: [Fake], a link in memory on a
// [LAN] of its like, and [TestLink], the suite that each link must pass, fake or
// real.
package linktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"peerage/takeover"
)

// LAN is a network of fakes. It writes down what happens on it.
type LAN struct {
	mu         sync.Mutex
	start      time.Time
	probeTime  time.Duration
	hosts      []*Fake
	transcript strings.Builder
	gateways   []netip.Addr
	deaf       bool // the gateway learns nothing
}

// Gateway says which default gateways the hosts have, and whether they learn from
// announcements. They answer probes if a host holds their addresses.
func (l *LAN) Gateway(learns bool, addrs ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gateways, l.deaf = addrs, !learns
}

// NewLAN returns a network without hosts, on which a probe that nobody answers takes
// probeTime.
func NewLAN(probeTime time.Duration) *LAN {
	return &LAN{start: time.Now(), probeTime: probeTime}
}

// Host adds a host to the network.
func (l *LAN) Host(name string) *Fake {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &Fake{lan: l, name: name, segment: -1, until: make(map[netip.Addr]time.Time)}
	l.hosts = append(l.hosts, f)
	f.station = net.HardwareAddr{2, 0, 0, 0, 0, byte(len(l.hosts))}
	return f
}

// Split parts the network: the hosts of each group reach each other, and those that none
// names do so as well. Without groups it is whole again.
func (l *LAN) Split(groups ...[]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.hosts {
		f.segment = slices.IndexFunc(groups, func(g []string) bool { return slices.Contains(g, f.name) })
	}
}

// Holders returns the names of the hosts that answer for vip.
func (l *LAN) Holders(vip netip.Addr) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.hosts {
		if f.answers(vip) {
			names = append(names, f.name)
		}
	}
	return names
}

// others returns the names of those that answer f for vip.
func (f *Fake) others(vip netip.Addr) (names []string) {
	for _, g := range f.lan.hosts {
		if g != f && g.segment == f.segment && g.answers(vip) {
			names = append(names, g.name)
		}
	}
	return names
}

// Transcript returns what has happened since the last call, one line an event: the time
// since the network was made, the host, what it did. A claim of an address that others
// answer for names them.
func (l *LAN) Transcript() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.transcript.String()
	l.transcript.Reset()
	return s
}

// String is one line a host: its name and the addresses on it.
func (l *LAN) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, f := range l.hosts {
		fmt.Fprintln(&b, f.text())
	}
	return b.String()
}

// Fake is a [takeover.Link] in memory.
type Fake struct {
	lan     *LAN
	name    string
	station net.HardwareAddr

	// Guarded by lan.mu.
	addrs   []netip.Addr             // sorted
	until   map[netip.Addr]time.Time // when each lapses unless it is added again
	segment int                      // of the network; hosts of one reach each other
	down    bool
	fault   error
	fence   time.Duration // lease of its fence; 0 for none
	saw     func(takeover.Sighting)
}

var _ takeover.Link = (*Fake)(nil)

// lease is for how long an address stays that is not added again.
const lease = 2 * time.Second

// lapse takes away the addresses whose time is over.
func (f *Fake) lapse() {
	now := time.Now()
	f.addrs = slices.DeleteFunc(f.addrs, func(a netip.Addr) bool { return !now.Before(f.until[a]) })
}

var errDown = errors.New("network is down")

// Crash cuts the host off: it answers for nothing and each call fails.
func (f *Fake) Crash() { f.locked(func() { f.down = true }) }

// Boot brings the host back. Its addresses are those that keep names of the ones it had.
func (f *Fake) Boot(keep ...netip.Addr) {
	f.locked(func() {
		f.down = false
		f.addrs = slices.DeleteFunc(f.addrs, func(a netip.Addr) bool { return !slices.Contains(keep, a) })
	})
}

// Fail makes each Add, Remove and Announce fail with err; nil ends that.
func (f *Fake) Fail(err error) { f.locked(func() { f.fault = err }) }

// String is the host's name and the addresses on it.
func (f *Fake) String() (s string) {
	f.locked(func() { s = f.text() })
	return s
}

// Addrs implements [takeover.Link].
func (f *Fake) Addrs(ctx context.Context) (addrs []netip.Addr, err error) {
	err = f.call(ctx, func() error {
		addrs = slices.Clone(f.addrs)
		return nil
	})
	return addrs, err
}

// Add implements [takeover.Link].
func (f *Fake) Add(ctx context.Context, vip netip.Addr) error {
	return f.change(ctx, "claim", vip, func() error {
		f.until[vip] = time.Now().Add(lease)
		i, present := slices.BinarySearchFunc(f.addrs, vip, netip.Addr.Compare)
		if present {
			return nil
		}
		too := ""
		if others := f.others(vip); others != nil {
			too = ", as do " + strings.Join(others, " ")
		}
		f.addrs = slices.Insert(f.addrs, i, vip)
		f.note("holds %s%s", vip, too)
		return nil
	})
}

// Remove implements [takeover.Link].
func (f *Fake) Remove(ctx context.Context, vip netip.Addr) error {
	return f.change(ctx, "release", vip, func() error {
		if i, present := slices.BinarySearchFunc(f.addrs, vip, netip.Addr.Compare); present {
			f.addrs = slices.Delete(f.addrs, i, i+1)
			f.note("gives up %s", vip)
		}
		return nil
	})
}

// Announce implements [takeover.Link]. The watches of the others see it.
func (f *Fake) Announce(ctx context.Context, vip netip.Addr) error {
	var watches []func(takeover.Sighting)
	err := f.change(ctx, "announce", vip, func() error {
		f.note("announces %s", vip)
		for _, g := range f.lan.hosts {
			if g != f && g.segment == f.segment && !g.down && g.saw != nil {
				watches = append(watches, g.saw)
			}
		}
		return nil
	})
	for _, saw := range watches {
		saw(takeover.Sighting{VIP: vip, Station: f.station})
	}
	return err
}

// Probe implements [takeover.Link].
func (f *Fake) Probe(ctx context.Context, vip netip.Addr) (bool, error) {
	second := f.lan.probeTime * 5 / 12 // when it is asked again, as on a real link
	for _, wait := range []time.Duration{second, f.lan.probeTime - second} {
		answered := false
		err := f.call(ctx, func() error {
			answered = f.others(vip) != nil
			return nil
		})
		if answered || err != nil {
			return answered, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return false, f.call(ctx, func() error { return nil })
}

// Confirm implements [takeover.Link].
func (f *Fake) Confirm(ctx context.Context, vip netip.Addr) (confirmed bool, err error) {
	err = f.call(ctx, func() error {
		confirmed = !f.lan.deaf
		return nil
	})
	return confirmed, err
}

// Gateways implements [takeover.Link].
func (f *Fake) Gateways(ctx context.Context) (all []netip.Addr, err error) {
	err = f.call(ctx, func() error {
		all = slices.Clone(f.lan.gateways)
		return nil
	})
	return all, err
}

// Fence implements [takeover.Link].
func (f *Fake) Fence(ctx context.Context, vips []netip.Addr, lease time.Duration) error {
	return f.call(ctx, func() error {
		if f.fault != nil {
			return fmt.Errorf("fence: %w", f.fault)
		}
		if len(vips) == 0 {
			lease = 0
		}
		if lease != f.fence {
			f.fence = lease
			f.note("fence %v", lease)
		}
		return nil
	})
}

// Watch implements [takeover.Link]: it sees what other hosts announce, and what [Fake.See]
// shows it.
func (f *Fake) Watch(ctx context.Context, _ []netip.Addr, saw func(takeover.Sighting)) error {
	f.locked(func() { f.saw = saw })
	<-ctx.Done()
	f.locked(func() { f.saw = nil })
	return nil
}

// See shows a watch that another station answers for vip.
func (f *Fake) See(vip netip.Addr, station net.HardwareAddr) {
	var saw func(takeover.Sighting)
	f.locked(func() { saw = f.saw })
	if saw != nil {
		saw(takeover.Sighting{VIP: vip, Station: station})
	}
}

// change does what is asked with vip, unless it is to fail.
func (f *Fake) change(ctx context.Context, what string, vip netip.Addr, do func() error) error {
	return f.call(ctx, func() error {
		switch {
		case !vip.IsValid():
			return fmt.Errorf("%s: not an address", what)
		case f.fault != nil:
			return fmt.Errorf("%s %s: %w", what, vip, f.fault)
		}
		return do()
	})
}

// call does what is asked of the host, if it can do anything.
func (f *Fake) call(ctx context.Context, do func() error) (err error) {
	f.locked(func() {
		if err = ctx.Err(); err != nil {
			return
		}
		if err = errDown; !f.down {
			f.lapse()
			err = do()
		}
	})
	return err
}

func (f *Fake) locked(do func()) {
	f.lan.mu.Lock()
	defer f.lan.mu.Unlock()
	do()
}

func (f *Fake) answers(vip netip.Addr) bool {
	f.lapse()
	return !f.down && slices.Contains(f.addrs, vip)
}

func (f *Fake) text() string {
	f.lapse()
	words := []string{f.name + ":"}
	for _, a := range f.addrs {
		words = append(words, a.String())
	}
	if f.down {
		words = append(words, "(down)")
	}
	return strings.Join(words, " ")
}

func (f *Fake) note(format string, args ...any) {
	fmt.Fprintf(&f.lan.transcript, "%7.3fs %s ", time.Since(f.lan.start).Seconds(), f.name)
	fmt.Fprintf(&f.lan.transcript, format+"\n", args...)
}

// TestLink checks that links keep to the contract of [takeover.Link]. Pair makes two of
// them on one LAN, with nothing on either, that can claim the VIPs, of which there must
// be two or more.
func TestLink(t *testing.T, vips []netip.Addr, pair func(*testing.T) (mine, other takeover.Link)) {
	vips = slices.SortedFunc(slices.Values(vips), netip.Addr.Compare)
	vip := vips[0]

	run := func(name string, test func(t *testing.T, mine, other takeover.Link)) {
		t.Run(name, func(t *testing.T) {
			mine, other := pair(t)
			t.Cleanup(func() {
				for _, v := range vips {
					mine.Remove(context.Background(), v)
					other.Remove(context.Background(), v)
				}
			})
			test(t, mine, other)
		})
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	holds := func(t *testing.T, l takeover.Link, want ...netip.Addr) {
		t.Helper()
		all, err := l.Addrs(t.Context())
		must(t, err)
		var got []netip.Addr // without those of the interface itself
		for _, a := range all {
			if slices.Contains(vips, a) {
				got = append(got, a)
			}
		}
		slices.SortFunc(got, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("addresses on the link: got %v, want %v", got, want)
		}
	}
	answered := func(t *testing.T, l takeover.Link, vip netip.Addr, want bool) {
		t.Helper()
		got, err := l.Probe(t.Context(), vip)
		must(t, err)
		if got != want {
			t.Fatalf("another host answers for %s: got %v, want %v", vip, got, want)
		}
	}

	run("holds nothing at first", func(t *testing.T, mine, other takeover.Link) {
		holds(t, mine)
		for _, v := range vips {
			answered(t, mine, v, false)
		}
	})
	run("adding twice is adding once", func(t *testing.T, mine, other takeover.Link) {
		must(t, mine.Add(t.Context(), vip))
		must(t, mine.Add(t.Context(), vip))
		holds(t, mine, vip)
		holds(t, other)
	})
	run("removing twice is removing once", func(t *testing.T, mine, other takeover.Link) {
		must(t, mine.Remove(t.Context(), vip))
		must(t, mine.Add(t.Context(), vip))
		must(t, mine.Remove(t.Context(), vip))
		must(t, mine.Remove(t.Context(), vip))
		holds(t, mine)
	})
	run("addresses are independent", func(t *testing.T, mine, other takeover.Link) {
		for _, v := range vips {
			must(t, mine.Add(t.Context(), v))
		}
		holds(t, mine, vips...)
		must(t, mine.Remove(t.Context(), vip))
		holds(t, mine, vips[1:]...)
	})
	run("a probe hears others only", func(t *testing.T, mine, other takeover.Link) {
		for _, v := range vips {
			must(t, mine.Add(t.Context(), v))
			answered(t, mine, v, false)
			answered(t, other, v, true)
			must(t, mine.Remove(t.Context(), v))
			answered(t, other, v, false)
		}
	})
	run("moves there and back", func(t *testing.T, mine, other takeover.Link) {
		for range 2 {
			for _, l := range []takeover.Link{mine, other} {
				must(t, l.Add(t.Context(), vip))
				holds(t, l, vip)
				must(t, l.Remove(t.Context(), vip))
			}
		}
	})
	run("announces as often as asked", func(t *testing.T, mine, other takeover.Link) {
		for _, v := range vips {
			must(t, mine.Add(t.Context(), v))
			must(t, mine.Announce(t.Context(), v))
			must(t, mine.Announce(t.Context(), v))
		}
		holds(t, mine, vips...)
	})
	run("refuses what is no address", func(t *testing.T, mine, other takeover.Link) {
		if err := mine.Add(t.Context(), netip.Addr{}); err == nil {
			t.Error("Add of the zero Addr: got no error")
		}
		holds(t, mine)
	})
	run("several ask at a time", func(t *testing.T, mine, other takeover.Link) {
		var all sync.WaitGroup
		for _, v := range vips {
			all.Go(func() {
				if err := mine.Add(t.Context(), v); err != nil {
					t.Error(err)
				}
				if got, err := other.Probe(t.Context(), v); err != nil || !got {
					t.Errorf("another host answers for %s: got %v, %v; want true", v, got, err)
				}
			})
		}
		all.Wait()
		holds(t, mine, vips...)
	})
}
