package takeover_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/takeover"
	"peerage/takeover/linktest"
)

// The nodes of a network that is parted report this often, count as off-line after that
// silence, and listen for so long when they were cut off.
const (
	partPeriod  = 500 * time.Millisecond
	partSilence = time.Second
	partListen  = 750 * time.Millisecond

	// partSettle is after what time a network that stays as it is has settled: the silence,
	// the questions to the witnesses and the probes, what was yielded, and a return.
	partSettle = 5 * time.Second
)

// parted is a site on a network that can be parted. A node hears the reports of those on its
// segment, and has a view of its own.
type parted struct {
	t      *testing.T
	lan    *linktest.LAN
	router *linktest.Fake
	hosts  []*reporter
	log    strings.Builder

	mu    sync.Mutex
	where map[string]int // segment of each host
	drops bool           // no report passes, to anybody
}

// reporter is a node of such a site.
type reporter struct {
	site    *parted
	name    string
	link    *linktest.Fake
	changed chan struct{}
	early   chan struct{}
	stop    func() // nil while it is off

	// Guarded by site.mu.
	on    bool
	me    balancing.Node
	peers map[balancing.NodeID]balancing.Node // as they were heard last
	cut   bool
	since time.Time // when it began to listen
}

func newParted(t *testing.T, nodes int) *parted {
	s := &parted{t: t, lan: linktest.NewLAN(60 * time.Millisecond), where: map[string]int{}}
	gateway := netip.MustParseAddr("192.0.2.254")
	s.lan.Gateway(true, gateway)
	s.router = s.lan.Host("router")
	for i := range nodes {
		name := fmt.Sprint("n", i+1)
		s.hosts = append(s.hosts, &reporter{
			site: s, name: name, link: s.lan.Host(name),
			changed: make(chan struct{}, 1), early: make(chan struct{}, 1),
			me: balancing.Node{ID: balancing.NodeID(name), Home: []netip.Addr{vipOf(2*i + 1), vipOf(2*i + 2)}, Capacity: 1},
		})
	}
	var renewing sync.WaitGroup
	renewing.Go(func() { // an address of a fake goes unless it is renewed
		for s.router.Add(t.Context(), gateway) == nil {
			time.Sleep(partPeriod)
		}
	})
	synctest.Wait()
	t.Cleanup(func() {
		for _, h := range s.hosts {
			if h.stop != nil {
				h.stop()
			}
		}
		renewing.Wait()
	})
	return s
}

// split parts the network: a segment for each group, of which one has the router.
func (s *parted) split(groups ...[]string) {
	s.lan.Split(groups...)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.where)
	for i, g := range groups {
		for _, name := range g {
			s.where[name] = i
		}
	}
}

func (h *reporter) start() {
	ctx, cancel := context.WithCancel(h.site.t.Context())
	h.site.mu.Lock()
	h.on, h.peers, h.cut, h.since = true, map[balancing.NodeID]balancing.Node{}, false, time.Now()
	h.me.Online, h.me.State, h.me.Held = true, balancing.Joining, nil
	h.site.mu.Unlock()
	k := takeover.New(takeover.Config{
		Self: h.me.ID, Link: h.link, Changed: h.changed, View: h.view,
		Held: func(held []netip.Addr) { h.change(func() { h.me.Held = held }) },
		Cut: func(cut bool) {
			h.change(func() { h.cut, h.since, h.me.State = cut, time.Now(), balancing.Joining })
		},
		Log: slog.New(slog.DiscardHandler),
	})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := k.Run(ctx); err != nil {
			h.site.t.Error(err)
		}
	})
	tasks.Go(func() { h.report(ctx) })
	h.stop = func() {
		cancel()
		tasks.Wait()
		h.stop = nil
	}
}

// change changes what the node says, and has it said.
func (h *reporter) change(f func()) {
	h.site.mu.Lock()
	f()
	h.site.mu.Unlock()
	notify(h.early)
	notify(h.changed)
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// report tells those on the same segment what the node is, and looks who has been silent.
func (h *reporter) report(ctx context.Context) {
	for ctx.Err() == nil {
		s := h.site
		s.mu.Lock()
		now := time.Now()
		if h.me.State == balancing.Joining && !h.cut && now.Sub(h.since) >= partListen {
			h.me.State = balancing.OK
			notify(h.changed)
		}
		if h.cut {
			h.me.State = balancing.Sick
		}
		calls, missing := true, len(h.peers) < len(s.hosts)-1
		for id, p := range h.peers {
			if p.Online && now.Sub(p.Heard) >= partSilence {
				p.Online = false
				h.peers[id] = p
				notify(h.changed)
			}
			calls = calls && (!p.Online || id > h.me.ID)
			missing = missing || !p.Online
		}
		said := h.me
		said.Heard = now
		for _, p := range s.hosts {
			if p == h || !p.on || s.drops || s.where[p.name] != s.where[h.name] {
				continue
			}
			was := p.peers[said.ID]
			p.peers[said.ID] = said
			if !was.Online || was.State != said.State || !slices.Equal(was.Held, said.Held) {
				notify(p.changed)
			}
			if !was.Online {
				notify(p.early)
			}
		}
		s.mu.Unlock()
		pause := partPeriod
		if calls && missing {
			pause /= 10
		}
		select {
		case <-ctx.Done():
			return
		case <-h.early:
			time.Sleep(time.Millisecond) // on its way
		case <-time.After(time.Duration(float64(pause) * (0.9 + 0.2*rand.Float64()))):
		}
	}
}

func (h *reporter) view() *balancing.View {
	h.site.mu.Lock()
	defer h.site.mu.Unlock()
	v := &balancing.View{Self: h.me.ID}
	for _, p := range h.site.hosts {
		n := balancing.Node{ID: p.me.ID, Home: p.me.Home, Capacity: 1}
		if p == h {
			n = h.me
		} else if heard, ok := h.peers[p.me.ID]; ok {
			n = heard
		}
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

// crash takes a node from the network at once.
func (h *reporter) crash() {
	h.link.Crash()
	h.site.mu.Lock()
	h.on = false
	h.site.mu.Unlock()
	h.stop()
}

// holders returns by segment the names of those that answer for a VIP.
func (s *parted) holders(vip netip.Addr) map[int][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[int][]string{}
	for _, name := range s.lan.Holders(vip) {
		all[s.where[name]] = append(all[s.where[name]], name)
	}
	return all
}

// partDouble is for how long two nodes may answer for one VIP where two parts have come
// together: until the next report.
const partDouble = partPeriod*11/10 + 50*time.Millisecond

// watch looks for d that no VIP is answered by two nodes of a segment for longer than most.
func (s *parted) watch(d, most time.Duration) {
	s.t.Helper()
	const every = 5 * time.Millisecond
	double := map[string]time.Duration{}
	for ; d > 0; d -= every {
		time.Sleep(every)
		was := double
		double = map[string]time.Duration{}
		for i := range 2 * len(s.hosts) {
			vip := vipOf(i + 1)
			for _, names := range s.holders(vip) {
				if len(names) < 2 {
					continue
				}
				key := fmt.Sprint(vip, names)
				if double[key] = was[key] + every; double[key] > most {
					s.t.Fatalf("%v of one segment answer for %s for %v\n%s%s", names, vip, double[key], &s.log, s.lan.Transcript())
				}
			}
		}
	}
}

// check looks whether each segment with a node that is not cut off has each VIP once.
func (s *parted) check() {
	s.t.Helper()
	up := map[int]int{}
	s.mu.Lock()
	for _, h := range s.hosts {
		if h.on {
			up[s.where[h.name]]++
		}
	}
	witness, segments := s.where["router"], 0
	for _, segment := range s.where {
		segments = max(segments, segment)
	}
	s.mu.Unlock()
	for i := range 2 * len(s.hosts) {
		all := s.holders(vipOf(i + 1))
		for segment := range segments + 1 {
			want := 0
			if up[segment] > 1 || up[segment] == 1 && segment == witness {
				want = 1
			}
			if names := all[segment]; len(names) != want {
				s.t.Fatalf("%v of segment %d, with %d nodes, answer for %s; want %d, the router is in %d\n%s%s%s",
					names, segment, up[segment], vipOf(i+1), want, witness, &s.log, s.lan, s.lan.Transcript())
			}
		}
	}
}

// Into whatever parts the network falls, each VIP is held once in every part that has a
// witness or more than one node, and by nobody in the others.
func TestPartitions(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			s := newParted(t, 5)
			fmt.Fprintf(&s.log, "seed %d\n", seed)
			for _, h := range s.hosts {
				h.start()
			}
			for range 12 {
				s.befall(r)
				s.watch(time.Duration(r.IntN(1500))*time.Millisecond, partDouble)
				if r.IntN(3) == 0 {
					s.watch(partSettle, partDouble)
					s.check()
				}
			}
		})
	}
}

// Nodes that do not hear of each other, and claim the same in the same moment, see that, and
// one of them gives it up.
func TestClaimsOfTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newParted(t, 3)
		s.drop(true)
		two := s.hosts[:2]
		for _, h := range two {
			h.start()
		}
		time.Sleep(partListen / 2)
		for _, h := range two {
			h.change(func() { h.me.State = balancing.OK })
		}
		time.Sleep(70 * time.Millisecond)
		if names := s.lan.Holders(vipOf(1)); len(names) != 2 {
			t.Fatalf("%v have claimed %s, want both", names, vipOf(1))
		}
		s.watch(partSettle, 150*time.Millisecond)
		s.check()
	})
}

// befall parts the network anew, or drops all reports on it, or lets a node die or return.
func (s *parted) befall(r *rand.Rand) {
	h := s.hosts[r.IntN(len(s.hosts))]
	switch r.IntN(6) {
	case 0, 1:
		s.drop(false)
		groups := make([][]string, 1+r.IntN(3))
		for _, name := range append([]string{"router"}, names(s.hosts)...) {
			i := r.IntN(len(groups))
			groups[i] = append(groups[i], name)
		}
		fmt.Fprintf(&s.log, "%v\n", groups)
		s.split(groups...)
	case 2: // all take each other for dead, and claim the same in the same moment
		fmt.Fprintf(&s.log, "whole, and no reports\n")
		s.split()
		s.watch(partSettle, partDouble)
		s.drop(true)
		s.watch(2*partSilence, partDouble)
		fallthrough
	case 3:
		if h.stop != nil {
			fmt.Fprintf(&s.log, "%s dies\n", h.name)
			h.crash()
		}
	default:
		if h.stop == nil {
			fmt.Fprintf(&s.log, "%s returns\n", h.name)
			h.link.Boot()
			h.start()
		}
	}
}

func (s *parted) drop(drops bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops = drops
}

func names(hosts []*reporter) (all []string) {
	for _, h := range hosts {
		all = append(all, h.name)
	}
	return all
}
