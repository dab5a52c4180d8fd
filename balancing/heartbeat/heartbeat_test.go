package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/keys"
)

const period = 500 * time.Millisecond

var document = balancing.Settings{Base: 77, Policy: balancing.DefaultPolicy, Period: period}

// bus is a network in memory. What is lost on it, the test says.
type bus struct {
	mu    sync.Mutex
	wires map[netip.Addr]*wire
	lost  func(from, to netip.Addr, byMulticast bool) bool
	taped [][]byte
}

// wire is the transport of one node on a bus.
type wire struct {
	bus   *bus
	at    netip.Addr
	queue chan sentence
	down  chan struct{}
	once  sync.Once
	group bool        // hears what goes to all
	dead  atomic.Bool // sends nothing more
}

type sentence struct {
	text        []byte
	byMulticast bool
}

// lose says what is lost from now on.
func (b *bus) lose(f func(from, to netip.Addr, byMulticast bool) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost = f
}

func (b *bus) attach(at netip.Addr, mode Mode) *wire {
	w := &wire{bus: b, at: at, group: mode == Auto || mode == Multicast, queue: make(chan sentence, 64), down: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wires[at] = w
	return w
}

func (w *wire) send(text []byte, to netip.Addr, marked bool) error {
	if w.dead.Load() {
		return nil
	}
	w.bus.mu.Lock()
	defer w.bus.mu.Unlock()
	text = bytes.Clone(text)
	w.bus.taped = append(w.bus.taped, text)
	for at, peer := range w.bus.wires {
		group := !to.IsValid()
		if !group && at != to || group && !peer.group || w.bus.lost != nil && w.bus.lost(w.at, at, group) {
			continue
		}
		select {
		case peer.queue <- sentence{text, group}:
		default:
		}
	}
	return nil
}

func (w *wire) receive(deliver func([]byte, bool)) error {
	for {
		select {
		case <-w.down:
			return nil
		case s := <-w.queue:
			deliver(s.text, s.byMulticast)
		}
	}
}

func (w *wire) close() error {
	w.once.Do(func() { close(w.down) })
	return nil
}

// lan is a site of nodes n1, n2, ... on a bus, each with an exchange.
type lan struct {
	t     *testing.T
	bus   *bus
	ring  *keys.Ring
	list  []Peer
	mode  Mode
	edit  func(*Config) // of the nodes started from now on
	stuck bool          // no transport can be opened in place of another
	log   bytes.Buffer
	to    *slog.Logger // writes to log
}

func newLAN(t *testing.T, nodes int, mode Mode) *lan {
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	l := &lan{t: t, bus: &bus{wires: map[netip.Addr]*wire{}}, ring: ring, mode: mode}
	l.to = slog.New(slog.NewTextHandler(&l.log, nil))
	for i := 1; i <= nodes; i++ {
		l.list = append(l.list, Peer{
			ID: balancing.NodeID("n" + string(rune('0'+i))), Address: hostOf(i), Capacity: 1,
			Home: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)})},
		})
	}
	return l
}

func hostOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

var (
	errStuck = errors.New("stuck")
	boot     = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) // before any bubble
)

// running is one node's exchange.
type running struct {
	*Exchange
	made   Config        // what it was made with last
	asleep *atomic.Int64 // for how long its machine has slept, in nanoseconds
	kill   func()        // ends it without a farewell
	end    func()        // ends it in order
}

// start starts node i in its given incarnation, in state OK.
func (l *lan) start(i int, incarnation uint64) *running {
	l.t.Helper()
	c := Config{
		Self: l.list[i-1].ID, Address: hostOf(i), Incarnation: incarnation, Nodes: l.list,
		Sealer: l.ring.Sealer(keys.LabelReport), Site: "test",
		Document: document, OfflineAfter: 3, Exchange: Unicast, Version: "v1", Internal: hostOf(100 + i),
		Log: l.to,
	}
	if l.edit != nil {
		l.edit(&c)
	}
	x, err := New(c)
	if err != nil {
		l.t.Fatal(err)
	}
	x.mode, x.c.Exchange, c.Exchange = l.mode, l.mode, l.mode // no interface is asked
	w := l.bus.attach(hostOf(i), l.mode)
	x.settle = func(c *Config) (Mode, error) { return c.Exchange, nil }
	x.string = func(*Exchange, netip.AddrPort) (*tripwires, error) { return nil, nil }
	asleep := new(atomic.Int64)
	x.boot = func() time.Duration { return time.Since(boot) + time.Duration(asleep.Load()) }
	x.open = func(_ *Config, mode Mode, old transport) (transport, error) {
		switch {
		case old == nil:
			return w, nil
		case l.stuck:
			return nil, errStuck
		}
		w = l.bus.attach(hostOf(i), mode)
		return w, nil
	}
	x.Update(func(s *Status) { s.State = balancing.OK })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	end := func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("%s: %v", x.c.Self, err)
		}
	}
	return &running{Exchange: x, made: c, asleep: asleep, end: end, kill: func() {
		l.bus.mu.Lock()
		delete(l.bus.wires, hostOf(i))
		l.bus.mu.Unlock()
		w.dead.Store(true)
		end()
	}}
}

// change changes x as it runs.
func (x *running) change(edit func(*Config)) error {
	c := x.made
	edit(&c)
	err := x.Reconfigure(c)
	if err == nil {
		x.made = c
	}
	return err
}

// hears reports whether x sees the named node on-line.
func (x *running) hears(id balancing.NodeID) bool { return x.View().Node(id).Online }

func settled(d time.Duration) {
	time.Sleep(d) // in a bubble: it costs nothing
	synctest.Wait()
}

func TestReportsMakeTheView(t *testing.T) {
	for _, mode := range []Mode{Auto, Multicast, Unicast, Query} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t, 3, mode)
				n1, n2, n3 := l.start(1, 100), l.start(2, 200), l.start(3, 300)
				defer n3.end()
				defer n2.end()
				defer n1.end()
				vips := addrs("192.0.2.12", "2001:db8::12")
				n2.Update(func(s *Status) {
					s.Load, s.Held, s.Debit, s.Shed, s.Unable = 42.5, vips, 3, 4, []balancing.RouteID{5, 6}
				})
				settled(period + period/5)
				for _, x := range []*running{n1, n3} {
					got := x.View().Node("n2")
					if !got.Online || got.State != balancing.OK || got.Load != 42.5 || !slices.Equal(got.Held, vips) || got.Incarnation != 200 || got.Address != hostOf(2) ||
						got.ByMulticast != (mode == Auto || mode == Multicast) || got.Debit != 3 || got.Shed != 4 || got.Able(6) || !got.Able(7) || got.Version != "v1" || got.Internal != hostOf(102) {
						t.Errorf("%s sees %+v", x.c.Self, got)
					}
				}
				if got := n2.View().Me(); got.Load != 42.5 || got.Incarnation != 200 || !got.Online {
					t.Errorf("n2 sees itself as %+v", got)
				}
				if got := n1.Counters(); got.Refused() != 0 || got.Accepted == 0 {
					t.Errorf("n1 counted %+v", got)
				}
			})
		})
	}
}

// TestSilence is the patent's S207: three missed reports, and the node is left out.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 3, Auto)
		n1, n2, n3 := l.start(1, 1), l.start(2, 1), l.start(3, 1)
		defer n1.end()
		defer n3.end()
		settled(10 * period)
		n2.kill()
		killed := time.Now()
		for n1.hears("n2") {
			settled(time.Millisecond)
		}
		took := time.Since(killed)
		if took < 3*period-period*11/10 || took > 3*period+time.Millisecond {
			t.Errorf("off-line %v after its end, want three periods after its last report", took)
		}
		if !n1.hears("n3") {
			t.Error("n3 is off-line too")
		}
		n2 = l.start(2, 2)
		defer n2.end()
		settled(50 * time.Millisecond)
		if !n1.hears("n2") || !n2.hears("n1") {
			t.Error("n2 has come back, and they do not see each other at once")
		}
	})
}

// TestSettingsReachAll is the patent's re-setting of levels and period by a user, at run
// time: on all nodes at once, and without a false verdict even if the period grows twenty
// times and a report in three is lost.
// which is a change of settings that cannot fail.
func which(f func(*balancing.Settings)) func(*balancing.Settings) error {
	return func(s *balancing.Settings) error {
		f(s)
		return nil
	}
}

func TestSettingsReachAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(9, 9))
		l := newLAN(t, 3, Auto)
		n1 := l.start(1, 1)
		defer n1.end()
		var kept balancing.Settings
		l.edit = func(c *Config) { c.Keep = func(s balancing.Settings) { kept = s } }
		n2 := l.start(2, 1)
		defer n2.end()
		l.edit = nil
		settled(3 * period)
		set, err := n1.Set(which(func(s *balancing.Settings) { s.Light, s.Rule = 65, balancing.Rotate }))
		if err != nil {
			t.Fatal(err)
		}
		if n1.View().Settings != set {
			t.Errorf("n1 itself has %+v, want %+v", n1.View().Settings, set)
		}
		settled(jumpPause + earliest)
		if got := n2.View().Settings; got != set || got.Light != 65 || got.Margin != 20 || kept != set {
			t.Errorf("n2 has %+v and kept %+v, want %+v", got, kept, set)
		}
		if _, err := n1.Set(which(func(s *balancing.Settings) { s.Light = 2000 })); err == nil || n1.View().Settings != set {
			t.Errorf("out of bounds: error %v, settings %+v", err, n1.View().Settings)
		}

		n3 := l.start(3, 1) // comes later
		defer n3.end()
		settled(jumpPause + earliest)
		if got := n3.View().Settings; got != set {
			t.Errorf("n3, which came later, has %+v, want %+v", got, set)
		}

		// Of two changes the newest counts, wherever it was made.
		newest, err := n2.Set(which(func(s *balancing.Settings) { s.Margin = 10 }))
		if err != nil || newest.Version <= set.Version || newest.Light != 65 {
			t.Fatalf("second change: %+v, %v", newest, err)
		}
		settled(jumpPause + earliest)
		if got := n1.View().Settings; got != newest {
			t.Errorf("n1 has %+v, want the newest %+v", got, newest)
		}

		l.bus.lose(func(netip.Addr, netip.Addr, bool) bool { return rnd.Float64() < 0.3 })
		silences := strings.Count(l.log.String(), `msg="peer silent"`)
		if _, err := n1.Set(which(func(s *balancing.Settings) { s.Period = 10 * time.Second })); err != nil {
			t.Fatal(err)
		}
		settled(9 * time.Second)
		if got := strings.Count(l.log.String(), `msg="peer silent"`); got != silences {
			t.Errorf("the longer period made %d verdicts", got-silences)
		}
		l.bus.lose(nil)
		settled(30 * time.Second)
		for _, x := range []*running{n1, n2, n3} {
			for p := range x.View().Peers() {
				if !p.Online || x.View().Settings.Period != 10*time.Second {
					t.Errorf("%s: %s on-line is %v, period %v", x.c.Self, p.ID, p.Online, x.View().Settings.Period)
				}
			}
		}
		sent := n1.Counters().Sent
		if _, err := n2.Reset(); err != nil {
			t.Fatal(err)
		}
		settled(20 * period)
		if got := n1.View().Settings; got.Policy != document.Policy || got.Period != period {
			t.Errorf("after the reset n1 has %+v, want those of the document", got)
		}
		if got := n1.Counters().Sent - sent; got < 15 {
			t.Errorf("%d datagrams in twenty of the shorter periods", got)
		}
	})
}

// TestSettingsOfOneVersion: two changes that were made at the same moment, where neither was
// known, do not divide the site.
func TestSettingsOfOneVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		settled(3 * period)
		for x, light := range map[*running]balancing.Load{n1: 60, n2: 70} {
			if _, err := x.Set(which(func(s *balancing.Settings) { s.Light = light })); err != nil {
				t.Fatal(err)
			}
		}
		settled(3 * period)
		if a, b := n1.View().Settings, n2.View().Settings; a != b || a.Version != n1.View().Settings.Version {
			t.Errorf("n1 follows %+v, n2 %+v", a, b)
		}
		// A longer period, and soon a shorter one: nobody is called silent.
		silences := strings.Count(l.log.String(), `msg="peer silent"`)
		for _, p := range []time.Duration{2 * time.Second, 100 * time.Millisecond} {
			if _, err := n1.Set(which(func(s *balancing.Settings) { s.Period = p })); err != nil {
				t.Fatal(err)
			}
			settled(200 * time.Millisecond)
		}
		settled(5 * time.Second)
		if got := strings.Count(l.log.String(), `msg="peer silent"`); got != silences {
			t.Errorf("%d verdicts between two nodes that are well", got-silences)
		}
	})
}

// TestSettingsOfAnotherDocument: a node whose document says something else does not follow
// a change of what it never had.
func TestSettingsOfAnotherDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1 := l.start(1, 1)
		defer n1.end()
		l.edit = func(c *Config) { c.Document.Base = 78 }
		n2 := l.start(2, 1)
		defer n2.end()
		settled(3 * period)
		if _, err := n1.Set(which(func(s *balancing.Settings) { s.Light = 65 })); err != nil {
			t.Fatal(err)
		}
		settled(3 * period)
		if got := n2.View().Settings; got.Version != 0 || got.Light != 50 {
			t.Errorf("n2 follows %+v", got)
		}
	})
}

func TestSettingsAreTakenUpAgain(t *testing.T) {
	c := Config{
		Self: "n1", Address: hostOf(1), Nodes: []Peer{{ID: "n1", Capacity: 1}}, Document: document, OfflineAfter: 3,
		Exchange: Unicast, Log: slog.New(slog.DiscardHandler),
	}
	for name, test := range map[string]struct {
		change func(*balancing.Settings)
		want   balancing.Load
	}{
		"kept":                      {func(*balancing.Settings) {}, 65},
		"the document was changed":  {func(s *balancing.Settings) { s.Base++ }, 50},
		"damaged":                   {func(s *balancing.Settings) { s.Period = 1 }, 50},
		"there is nothing to go on": {func(s *balancing.Settings) { *s = balancing.Settings{} }, 50},
	} {
		c.Changed = document
		c.Changed.Version, c.Changed.Light = 9, 65
		test.change(&c.Changed)
		x, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := x.View().Settings.Light; got != test.want {
			t.Errorf("%s: L1 is %v, want %v", name, got, test.want)
		}
	}
}

// TestAsking is the exchange by query and response, triggered by an event (patent, summary).
func TestAsking(t *testing.T) {
	for _, mode := range []Mode{Auto, Multicast, Unicast, Query} {
		synctest.Test(t, func(t *testing.T) {
			l := newLAN(t, 3, mode)
			n1, n2, n3 := l.start(1, 1), l.start(2, 1), l.start(3, 1)
			defer n1.end()
			defer n2.end()
			defer n3.end()
			settled(period * 7 / 2)
			n2.Update(func(s *Status) { s.Load = 10 }) // too little for an early report
			asked, idle := n2.Counters().Asked, n3.Counters().Accepted
			for range 50 {
				n1.Ask()
			}
			settled(3 * earliest)
			if got := n1.View().Node("n2").Load; got != 10 {
				t.Errorf("%v: asked, n1 knows of load %v, want 10", mode, got)
			}
			if got := n2.Counters().Asked - asked; got != 1 {
				t.Errorf("%v: n2 was asked %d times, want once", mode, got)
			}
			if got := n3.Counters().Accepted - idle; mode != Multicast && got > 2 {
				t.Errorf("%v: n3, which did not ask, heard %d reports", mode, got)
			}
		})
	}
}

func TestFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		settled(2 * period)
		n2.Update(func(s *Status) { s.Held = addrs("192.0.2.12") })
		n2.end()
		synctest.Wait()
		if got := n1.View().Node("n2"); got.Online || got.State != balancing.Leaving || len(got.Held) > 0 {
			t.Errorf("after its farewell n2 is %+v", got)
		}
		if !strings.Contains(l.log.String(), `msg="peer left" peer=n2`) {
			t.Errorf("log:\n%s", &l.log)
		}
	})
}

func TestChangesAreReportedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 1), l.start(2, 1)
		defer n1.end()
		defer n2.end()
		settled(3 * period)
		for name, change := range map[string]func(s *Status){
			"state": func(s *Status) { s.State = balancing.Draining },
			"VIPs":  func(s *Status) { s.Held = addrs("192.0.2.12") },
			"load":  func(s *Status) { s.Load = 80 },
		} {
			n2.Update(change)
			settled(jumpPause + viewEvery)
			want, got := n2.View().Me(), n1.View().Node("n2")
			if got.State != want.State || got.Load != want.Load || !slices.Equal(got.Held, want.Held) {
				t.Errorf("%s: n1 sees %+v, want %+v", name, got, want)
			}
		}
		// Early reports are bounded, whatever the node does.
		settled(period)
		before := n2.Counters().Sent
		for i := range 1000 { // state by state
			n2.Update(func(s *Status) { s.State = balancing.OK + balancing.State(i%2) })
			settled(time.Millisecond)
		}
		if sent := n2.Counters().Sent - before; sent > 2*1000/20+10 {
			t.Errorf("%d datagrams in a second of changes, want one to each way every 20 ms at most", sent)
		}
	})
}

// TestMulticastIsHelpedOut: where a switch eats multicast, in one direction or both, the
// nodes find it out and send datagrams; where it carries, they do not.
func TestMulticastIsHelpedOut(t *testing.T) {
	for name, lost := range map[string]func(from, to netip.Addr) bool{
		"none":      func(from, to netip.Addr) bool { return false },
		"all":       func(from, to netip.Addr) bool { return true },
		"to n1":     func(from, to netip.Addr) bool { return to == hostOf(1) },
		"n1 to n2":  func(from, to netip.Addr) bool { return from == hostOf(1) && to == hostOf(2) },
		"n3's is":   func(from, to netip.Addr) bool { return from == hostOf(3) },
		"n3 is off": func(from, to netip.Addr) bool { return from == hostOf(3) || to == hostOf(3) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t, 3, Auto)
				l.bus.lost = func(from, to netip.Addr, byMulticast bool) bool { return byMulticast && lost(from, to) }
				all := []*running{l.start(1, 1), l.start(2, 1), l.start(3, 1)}
				for _, x := range all {
					defer x.end()
				}
				settled(5 * period)
				for range 20 {
					settled(period)
					for _, x := range all {
						for p := range x.View().Peers() {
							if !p.Online {
								t.Fatalf("%s does not hear %s", x.c.Self, p.ID)
							}
						}
					}
				}
				before := all[0].Counters().Sent
				settled(10 * period)
				if sent := all[0].Counters().Sent - before; name == "none" && sent > 12 {
					t.Errorf("%d datagrams in ten periods, want the multicast ones alone", sent)
				}
			})
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, 2, Auto)
		n1, n2 := l.start(1, 5), l.start(2, 5)
		defer n1.end()
		settled(4 * period)
		sealer := l.ring.Sealer(keys.LabelReport)
		genuine := func(change func(*report)) []byte {
			r := fullReport()
			r.node, r.incarnation, r.sequence, r.sent = "n2", 5, 1000, time.Now()
			change(r)
			return sealer.Seal(nil, r.appendTo(nil), []byte("test"))
		}
		other, _ := keys.NewRing(keys.Generate())
		tape := slices.Clone(l.bus.taped)
		n2.kill()
		settled(4 * period)
		before := *n1.View().Node("n2")
		c := n1.Counters()

		for _, text := range tape {
			n1.hear(text, true)
		}
		if got := n1.Counters(); got.Replayed+got.Own+got.Forged != c.Replayed+c.Own+c.Forged+uint64(len(tape)) {
			t.Errorf("of %d replayed: %+v, before %+v", len(tape), got, c)
		}
		n1.hear(other.Sealer(keys.LabelReport).Seal(nil, fullReport().appendTo(nil), []byte("test")), true)
		n1.hear(sealer.Seal(nil, fullReport().appendTo(nil), []byte("another site")), true)
		n1.hear(sealer.Seal(nil, []byte("nonsense"), []byte("test")), true)
		n1.hear(genuine(func(r *report) { r.node = "n9" }), true)
		n1.hear(genuine(func(r *report) { r.sent = r.sent.Add(-maxSkew - time.Second) }), true)
		n1.hear(genuine(func(r *report) { r.sent = r.sent.Add(maxSkew + time.Second) }), true)
		n1.hear(genuine(func(r *report) { r.incarnation = 4 }), true)
		n1.hear(genuine(func(r *report) { r.node, r.incarnation = "n1", 6 }), true)
		altered := genuine(func(*report) {})
		for i := range altered {
			altered[i] ^= 1
			n1.hear(altered, true)
			altered[i] ^= 1
		}
		got := n1.Counters()
		for name, n := range map[string][2]uint64{
			"forged":    {got.Forged - c.Forged, uint64(2 + len(altered))},
			"malformed": {got.Malformed - c.Malformed, 1},
			"unknown":   {got.Unknown - c.Unknown, 1},
			"clock":     {got.Clock - c.Clock, 2},
			"twins":     {got.Twins - c.Twins, 1},
		} {
			if n[0] != n[1] {
				t.Errorf("counted %d %s, want %d", n[0], name, n[1])
			}
		}
		synctest.Wait()
		if after := *n1.View().Node("n2"); after.Online || after.Heard != before.Heard {
			t.Errorf("it changed n2 from %+v to %+v", before, after)
		}
		for _, word := range []string{`msg="clock differs"`, `msg="another node has this name"`} {
			if strings.Count(l.log.String(), word) != 1 {
				t.Errorf("log, want once %s:\n%s", word, &l.log)
			}
		}
		n1.hear(genuine(func(r *report) { r.incarnation = 6 }), true)
		if !n1.hears("n2") {
			t.Error("a genuine report was refused as well: the test proves nothing")
		}
	})
}

// TestOwnDelayAccusesNobody: a node whose own clock has jumped ahead, as after a stop of
// the whole machine, does not take its peers for dead.
func TestOwnDelayAccusesNobody(t *testing.T) {
	p := newPeers(&Config{Self: "n1", OfflineAfter: 3, Nodes: []Peer{{ID: "n1"}, {ID: "n2", Capacity: 1}}})
	now := time.Unix(1000, 0)
	r := &report{node: "n2", incarnation: 1, sequence: 1, sent: now, period: period, state: balancing.OK}
	if _, what, err := p.accept(r, now, true); what != joined || err != nil {
		t.Fatal(what, err)
	}
	p.forgive(time.Second)
	if silent := p.expire(now.Add(3*period + 900*time.Millisecond)); len(silent) > 0 {
		t.Error("accused in spite of the delay")
	}
	if silent := p.expire(now.Add(3*period + time.Second)); len(silent) != 1 || !p.next().IsZero() {
		t.Error("not accused after it")
	}
}

// TestPeriodOfThePeerCounts: a site whose period is being changed has nodes with both.
func TestPeriodOfThePeerCounts(t *testing.T) {
	p := newPeers(&Config{Self: "n1", OfflineAfter: 3, Nodes: []Peer{{ID: "n1"}, {ID: "n2", Capacity: 1}}})
	now := time.Unix(1000, 0)
	p.accept(&report{node: "n2", incarnation: 1, sequence: 1, sent: now, period: 4 * time.Second, state: balancing.OK}, now, true)
	if got := p.next(); got != now.Add(5*time.Second) {
		t.Errorf("asked at %v, want after one and a quarter of its periods", got)
	}
	if early, due := p.expire(now.Add(12*time.Second-1)), p.expire(now.Add(12*time.Second)); len(early) != 0 || len(due) != 1 {
		t.Errorf("verdicts %v and %v, want one after three of its periods", early, due)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{
		Self: "n1", Address: hostOf(1), Nodes: []Peer{{ID: "n1", Capacity: 1}}, Document: document, OfflineAfter: 3,
		Exchange: Unicast, Log: slog.New(slog.DiscardHandler),
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"itself unknown":    func(c *Config) { c.Self = "n2" },
		"period":            func(c *Config) { c.Document.Period = time.Minute },
		"broken period":     func(c *Config) { c.Document.Period += time.Microsecond },
		"level":             func(c *Config) { c.Document.Light = -1 },
		"one missed report": func(c *Config) { c.OfflineAfter = 1 },
		"no interface":      func(c *Config) { c.Exchange, c.Interface = Multicast, "nosuch0" },
		"no multicast":      func(c *Config) { c.Exchange, c.Interface = Multicast, "lo" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	good.Exchange, good.Interface = Auto, "lo"
	if x, err := New(good); err != nil || x.mode != Unicast {
		t.Errorf("auto on loopback: %v, %v, want unicast", x.mode, err)
	}
}

// TestLossIsBorne: with a third of all datagrams lost on the way, nobody is called
// off-line for long, and every verdict is taken back.
func TestLossIsBorne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(3, 4))
		l := newLAN(t, 3, Auto)
		l.bus.lose(func(netip.Addr, netip.Addr, bool) bool { return rnd.Float64() < 0.3 })
		all := []*running{l.start(1, 1), l.start(2, 1), l.start(3, 1)}
		for _, x := range all {
			defer x.end()
		}
		settled(5 * period)
		heard, asked := 0, 0
		for range 400 {
			settled(period)
			for _, x := range all {
				for p := range x.View().Peers() {
					asked++
					if p.Online {
						heard++
					}
				}
			}
		}
		if heard*100 < asked*93 {
			t.Errorf("heard %d of %d times", heard, asked)
		}
	})
}

func BenchmarkHear(b *testing.B) {
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		b.Fatal(err)
	}
	x, err := New(Config{
		Self: "n1", Address: hostOf(1), Nodes: []Peer{{ID: "n1", Capacity: 1}, {ID: "n2", Capacity: 1}}, Document: document,
		OfflineAfter: 3, Exchange: Unicast, Log: slog.New(slog.DiscardHandler), Sealer: ring.Sealer(keys.LabelReport), Site: "test",
	})
	if err != nil {
		b.Fatal(err)
	}
	r := fullReport()
	r.node, r.sent = "n2", time.Now()
	var plain, sealed []byte
	b.Run("genuine", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.sequence++
			plain = r.appendTo(plain[:0])
			sealed = x.sealer.Load().Seal(sealed[:0], plain, []byte("test"))
			x.hear(sealed, true)
		}
	})
	b.Run("forged", func(b *testing.B) {
		forged := bytes.Clone(sealed)
		forged[len(forged)-1] ^= 1
		b.ReportAllocs()
		for b.Loop() {
			x.hear(forged, true)
		}
	})
}

// TestSiteKeyChangesOver: node by node, first the new key is added below the old one, then
// put above it, then the old one is taken away. At each step the nodes hear each other.
func TestSiteKeyChangesOver(t *testing.T) {
	older, newer := keys.Generate(), keys.Generate()
	stages := [][]keys.Key{{older}, {older, newer}, {newer, older}, {newer}}
	for i := range len(stages) - 1 {
		synctest.Test(t, func(t *testing.T) {
			l := newLAN(t, 2, Auto)
			var all []*running
			for n, stage := range [][]keys.Key{stages[i], stages[i+1]} {
				ring, err := keys.NewRing(stage[0], stage[1:]...)
				if err != nil {
					t.Fatal(err)
				}
				l.edit = func(c *Config) { c.Sealer = ring.Sealer(keys.LabelReport) }
				x := l.start(n+1, 1)
				defer x.end()
				all = append(all, x)
			}
			settled(2 * period)
			if !all[0].hears("n2") || !all[1].hears("n1") {
				t.Errorf("between stages %d and %d the nodes do not hear each other", i, i+1)
			}
		})
	}
}
