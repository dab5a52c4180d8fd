package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"peerage/balancing"
)

// TestStateOfANode tells lives of a node, step by step: what happens, after how much
// time, and which state it is in then.
func TestStateOfANode(t *testing.T) {
	const (
		listen   = 750 * time.Millisecond
		holdDown = 5 * time.Second
		stale    = 1500 * time.Millisecond
	)
	type step struct {
		after time.Duration
		token bool // the server has just served itself
		held  bool // a peer holds a VIP of this node
		leave bool
		cut   bool   // the public interface has no carrier
		amiss string // what the server says is amiss
		want  balancing.State
	}
	for name, life := range map[string][]step{
		"starts into a quiet site": {
			{want: balancing.Joining},
			{after: 100 * time.Millisecond, token: true, want: balancing.Joining},
			{after: 600 * time.Millisecond, token: true, want: balancing.Joining},
			{after: 100 * time.Millisecond, token: true, want: balancing.OK},
		},
		"a server that never gets going": {
			{want: balancing.Joining},
			{after: 5 * time.Second, want: balancing.Joining},
			{after: time.Second, want: balancing.Sick}, // its VIPs must not wait for ever
			{after: time.Minute, want: balancing.Sick},
			{after: time.Second, token: true, want: balancing.OK},
		},
		"returns to VIPs that a stand-in holds: hold-down": {
			{token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.OK},
		},
		"the stand-in dies during the hold-down": {
			{token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: false, want: balancing.OK},
		},
		"a gap in the tokens begins the hold-down anew": {
			{token: true, held: true, want: balancing.Joining},
			{after: 4 * time.Second, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
		},
		"a peer's claim does not unseat a node that is well": {
			{after: time.Second, token: true, want: balancing.OK},
			{token: true, held: true, want: balancing.OK},
		},
		"the server falls silent, and comes back": {
			{after: time.Second, token: true, want: balancing.OK},
			{after: stale, want: balancing.OK},
			{after: time.Millisecond, want: balancing.Sick},
			{after: time.Second, held: true, want: balancing.Sick},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: 1400 * time.Millisecond, token: true, held: true, want: balancing.Joining},
			{after: 1400 * time.Millisecond, token: true, held: true, want: balancing.Joining},
			{after: 1400 * time.Millisecond, token: true, held: true, want: balancing.Joining},
			{after: 1400 * time.Millisecond, token: true, held: true, want: balancing.OK},
		},
		"a cable is pulled and plugged in again": {
			{after: time.Second, token: true, want: balancing.OK},
			{after: 100 * time.Millisecond, token: true, cut: true, want: balancing.Sick},
			{after: time.Second, token: true, cut: true, want: balancing.Sick},
			{after: 100 * time.Millisecond, token: true, want: balancing.Joining},
			{after: 500 * time.Millisecond, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.Joining},
			{after: time.Second, token: true, held: true, want: balancing.OK},
		},
		"a cable is pulled, and nobody stands in": {
			{after: time.Second, token: true, want: balancing.OK},
			{after: 100 * time.Millisecond, token: true, cut: true, want: balancing.Sick},
			{after: 100 * time.Millisecond, token: true, want: balancing.Joining},
			{after: listen, token: true, want: balancing.OK},
		},
		"something is amiss": {
			{after: time.Second, token: true, amiss: "disk", want: balancing.Degraded},
			{after: time.Second, token: true, amiss: "disk", want: balancing.Degraded},
			{after: time.Second, token: true, held: true, want: balancing.OK},
			{after: time.Second, token: true, amiss: "back-end", want: balancing.Degraded},
			{after: 2 * time.Second, amiss: "back-end", want: balancing.Sick},
			{after: time.Second, leave: true, want: balancing.Draining},
		},
		"leaves": {
			{after: time.Second, token: true, want: balancing.OK},
			{leave: true, want: balancing.Draining},
			{after: time.Minute, want: balancing.Draining},
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			f := facts{started: now, listen: listen, holdDown: holdDown, stale: stale}
			for i, s := range life {
				now = now.Add(s.after)
				if s.token {
					f.token = now
				}
				f.carrier(now, !s.cut)
				f.leaving = f.leaving || s.leave
				f.told.Amiss = strings.Fields(s.amiss)
				if got := f.judge(now, s.held); got != s.want {
					t.Fatalf("step %d: %v, want %v", i+1, got, s.want)
				}
			}
		})
	}
}

// TestStandstill is what a guard makes of having stood still, of being cut off, and of a
// server that is stopped.
func TestStandstill(t *testing.T) {
	now := time.Unix(1000, 0)
	f := facts{started: now.Add(-time.Hour), listen: 750 * time.Millisecond, holdDown: 5 * time.Second, stale: time.Second, current: balancing.OK}
	after := func(d time.Duration, held bool, want balancing.State) {
		t.Helper()
		now = now.Add(d)
		f.tell(now, token{})
		if got := f.judge(now, held); got != want {
			t.Errorf("at %v: %v, want %v", now.Sub(time.Unix(1000, 0)), got, want)
		}
	}
	after(0, false, balancing.OK)
	f.lapse(now, 1)
	after(100*time.Millisecond, true, balancing.Joining)
	after(4*time.Second, true, balancing.Joining) // a stand-in has its VIPs
	after(2*time.Second, true, balancing.OK)
	f.lapse(now, 1) // that is not news
	after(100*time.Millisecond, false, balancing.OK)
	f.lapse(now, 2)
	after(100*time.Millisecond, false, balancing.Joining)
	after(time.Second, false, balancing.OK) // nobody has its VIPs

	f.isolate(now, true)
	after(time.Second, false, balancing.Sick)
	f.isolate(now, false)
	after(100*time.Millisecond, false, balancing.Joining)
	after(time.Second, false, balancing.OK)

	f.stopped = true
	after(10*time.Millisecond, false, balancing.Sick)
	if amiss := f.amiss(now); len(amiss) != 1 || !strings.Contains(amiss[0], "kill -CONT") {
		t.Errorf("amiss: %q", amiss)
	}
	f.stopped = false
	after(10*time.Millisecond, false, balancing.OK)
}

// TestOwnDelayMakesNobodySick: a guard that was itself not run judges by what it has not
// read yet.
func TestOwnDelayMakesNobodySick(t *testing.T) {
	now := time.Unix(1000, 0)
	f := facts{stale: 1500 * time.Millisecond, current: balancing.OK, token: now}
	now = now.Add(3 * time.Second)
	f.forgive(2900 * time.Millisecond)
	if got := f.judge(now, false); got != balancing.OK {
		t.Errorf("after a pause of its own: %v, want ok", got)
	}
	for range 16 { // and then nothing comes
		now = now.Add(healthEvery)
		f.forgive(time.Millisecond)
		f.judge(now, false)
	}
	if f.current != balancing.Sick || len(f.amiss(now)) != 1 {
		t.Errorf("without a token for 1.6 s: %v, amiss %v", f.current, f.amiss(now))
	}
}

func TestSlowStart(t *testing.T) {
	now := time.Unix(1000, 0)
	f := facts{told: token{Load: 12}}
	for _, c := range []struct {
		serves time.Duration // ago; negative for never
		want   balancing.Load
	}{{-1, 12}, {0, 30}, {5 * time.Second, 15}, {8 * time.Second, 12}, {time.Minute, 12}} {
		f.serves = now.Add(-c.serves)
		if c.serves < 0 {
			f.serves = time.Time{}
		}
		if got := f.load(now, 30); got != c.want {
			t.Errorf("%v after it began: %v, want %v", c.serves, got, c.want)
		}
	}
	if got := f.load(now, -20); got != 12 {
		t.Errorf("with a margin above L1: %v, want 12", got)
	}
}

func TestHomeHeldByOthers(t *testing.T) {
	vip := netip.MustParseAddr("192.0.2.11")
	view := func(online bool, held ...netip.Addr) *balancing.View {
		return &balancing.View{Self: "n1", Nodes: []balancing.Node{
			{ID: "n1", Online: true, Home: []netip.Addr{vip}, Held: []netip.Addr{vip}},
			{ID: "n2", Online: online, Held: held},
		}}
	}
	for _, c := range []struct {
		v    *balancing.View
		want bool
	}{
		{view(true, vip), true},
		{view(false, vip), false},
		{view(true, netip.MustParseAddr("192.0.2.12")), false},
		{&balancing.View{Self: "n9"}, false},
	} {
		if got := homeHeldByOthers(c.v); got != c.want {
			t.Errorf("%+v: %v, want %v", c.v, got, c.want)
		}
	}
}

// newChannels returns both ends of a channel.
func newChannels(t *testing.T) (*channel, *channel) {
	t.Helper()
	ours, file, err := newPair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := openChannel(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.close(); theirs.close() })
	return ours, theirs
}

func TestChannelCarriesTheLargestSite(t *testing.T) {
	guard, server := newChannels(t)
	v := &balancing.View{Self: "n0", Time: time.Unix(1, 0).UTC()}
	for i := range balancing.MaxNodes {
		n := balancing.Node{ID: balancing.NodeID(fmt.Sprintf("n%031d", i)), Online: true, State: balancing.OK}
		for j := range balancing.MaxHeld {
			n.Held = append(n.Held, netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i), 15: byte(j)}))
		}
		for j := range balancing.MaxVIPs {
			n.Home = append(n.Home, netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i), 15: byte(j)}))
		}
		v.Nodes = append(v.Nodes, n)
	}
	sent := make(chan error, 1)
	go func() { sent <- guard.send(toServer{View: v, Guard: &GuardStatus{PID: 1}}) }()
	var m toServer
	if err := server.receive(&m); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if len(m.View.Nodes) != balancing.MaxNodes || !m.View.Nodes[511].Holds(v.Nodes[511].Held[balancing.MaxHeld-1]) || m.Guard.PID != 1 {
		t.Error("what arrived is not what was sent")
	}
	if err := server.send(toGuard{Token: &token{Load: 12.5, Unable: []balancing.RouteID{7}}}); err != nil {
		t.Fatal(err)
	}
	var back toGuard
	if err := guard.receive(&back); err != nil || back.Token == nil || back.Token.Load != 12.5 || back.Token.Unable[0] != 7 {
		t.Errorf("token: %+v, %v", back, err)
	}
}

func TestChannelRefusesWhatIsNoMessage(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":    "hello\n",
		"other type": `{"view": 7}` + "\n",
		"too long":   strings.Repeat("x", maxMessage+1),
	} {
		ours, theirs := newChannels(t)
		go ours.conn.Write([]byte(text))
		var m toServer
		if err := theirs.receive(&m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestChannelDoesNotHangOnASilentReader(t *testing.T) {
	ours, _ := newChannels(t)
	long := make([]balancing.Node, 20_000)
	if err := ours.send(toServer{View: &balancing.View{Nodes: long}}); err == nil {
		t.Error("sent to nobody, without an error")
	}
}
