package balancing

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// site makes the view of node a from loads such as "a:90 b:20 c:off d:30/draining e:0/7",
// where e is unable to serve route 7.
func site(t testing.TB, loads string) *View {
	t.Helper()
	v := &View{Self: "a"}
	for f := range strings.FieldsSeq(loads) {
		n := Node{Online: true, State: OK, Capacity: 1, Incarnation: 1}
		var load float64
		var word string
		id := f[:1]
		switch rest := f[2:]; {
		case rest == "off":
			n.Online = false
		default:
			fmt.Sscanf(rest, "%f/%s", &load, &word)
			if word == "restarted" {
				n.Incarnation = 2
			} else if id, err := strconv.Atoi(word); err == nil {
				n.Unable = []RouteID{RouteID(id)}
			} else if word != "" {
				if err := n.State.UnmarshalText([]byte(word)); err != nil {
					t.Fatal(err)
				}
			}
		}
		n.ID, n.Load = NodeID(id), Load(load)
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

func at(self NodeID, v *View) *View { v.Self = self; return v }

// TestDecide walks the table of the stateful, dedicated and load rules. The numbers in
// front are those of the case table in docs/decisions/0004.
func TestDecide(t *testing.T) {
	page := Request{Movable: true}
	entry := Request{Movable: true, Position: Entry}
	interior := Request{Movable: true, Position: Interior}
	with := func(r Request, change func(*Request)) Request { change(&r); return r }
	pinned := func(r Request, owner NodeID) Request { r.Owner, r.Incarnation = owner, 1; return r }
	post := func(r Request) Request { r.Movable = false; return r }
	dedicated := func(r Request, ids ...NodeID) Request { r.Dedicated = ids; return r }
	quiet := func(r Request) Request { r.Move = MoveQuiet; return r }
	stay := func(r Request) Request { r.Move = MoveNone; return r }
	route := func(r Request, id RouteID) Request { r.Route = id; return r }
	lost := func(r Request, rule OwnerLoss) Request { r.OnOwnerLoss = rule; return r }

	for _, c := range []struct {
		name  string
		nodes string
		self  NodeID
		r     Request
		want  Decision
	}{
		{"load below L1", "a:30 b:0 c:0", "a", page, Decision{Action: Here, Reason: ReasonLight}},
		{"load equal to L1 serves (S203)", "a:50 b:0 c:0", "a", page, Decision{Action: Here, Reason: ReasonLight}},
		{"above L1, to the lightest (S208)", "a:90 b:40 c:20", "a", page, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"gap equal to L2 redirects (S206)", "a:60 b:40 c:55", "a", page, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"gap just below L2 serves (S206)", "a:60 b:40.1 c:55", "a", page, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"off-line peer left out (S207)", "a:90 b:30 c:off", "a", page, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"sick peer left out (S207)", "a:90 b:30 c:0/sick", "a", page, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"draining and joining peers left out", "a:90 b:0/joining c:0/draining", "a", page, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"degraded peer still serves", "a:90 b:0/degraded c:85", "a", page, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"alone", "a:900", "a", page, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"what cannot be redirected stays, and is steered", "a:90 b:0 c:20", "a", post(page), Decision{Action: Here, Reason: ReasonImmovable, Steer: "b"}},
		{"what cannot be redirected, light", "a:50 b:0 c:20", "a", post(page), Decision{Action: Here, Reason: ReasonLight}},
		{"what cannot be redirected, nobody lighter", "a:90 b:80 c:80", "a", post(page), Decision{Action: Here, Reason: ReasonNoLighter}},
		{"quiet steering", "a:90 b:0 c:20", "a", quiet(page), Decision{Action: Here, Reason: ReasonQuiet, Steer: "b"}},
		{"quiet steering, draining: no offer", "a:90/draining b:0 c:20", "a", quiet(page), Decision{Action: Here, Reason: ReasonImmovable}},
		{"not moved by load at all", "a:90 b:0 c:20", "a", stay(page), Decision{Action: Here, Reason: ReasonImmovable}},
		{"not moved by load, but by a pin", "a:90 b:0 c:20", "a", stay(pinned(interior, "b")), Decision{Action: Redirect, Peer: "b", Reason: ReasonPinElsewhere}},
		{"a peer that cannot serve the route is not chosen", "a:90 b:0/7 c:20", "a", route(page, 7), Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"but for another route it is", "a:90 b:0/7 c:20", "a", route(page, 8), Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"a node that cannot serve the route sends it to one that can", "a:0/7 b:60 c:40", "a", route(page, 7), Decision{Action: Redirect, Peer: "c", Reason: ReasonUnable}},
		{"the same with a body", "a:0/7 b:60 c:40", "a", route(post(page), 7), Decision{Action: Relay, Peer: "c", Reason: ReasonUnable}},
		{"nobody can: do what it can", "a:0/7 b:60/7 c:off", "a", route(page, 7), Decision{Action: Here, Reason: ReasonLight}},
		{"a pin beats what its node cannot serve", "a:0/7 b:0", "a", route(pinned(interior, "a"), 7), Decision{Action: Here, Reason: ReasonPinned}},
		{"one hop only (S210)", "a:90 b:0 c:0", "a", with(page, func(r *Request) { r.Hopped = true }), Decision{Action: Here, Reason: ReasonHopped}},
		{"a relayed request ends here", "a:90 b:0 c:0", "a", with(page, func(r *Request) { r.Relayed = true }), Decision{Action: Here, Reason: ReasonRelayed}},
		{"housekeeping is local", "a:90/draining b:0 c:0", "a", Request{Housekeeping: true, Movable: true}, Decision{Action: Here, Reason: ReasonHousekeeping}},

		{"1 entry without a pin, light", "a:30 b:30", "a", entry, Decision{Action: Here, Reason: ReasonLight, Pin: SetPin}},
		{"2 entry without a pin, loaded", "a:90 b:20", "a", entry, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"3 entry after the hop", "a:20 b:95", "b", with(entry, func(r *Request) { r.Hopped = true }), Decision{Action: Here, Reason: ReasonHopped, Pin: SetPin}},
		{"4 interior, pinned here, overloaded", "a:90 b:20", "a", pinned(interior, "a"), Decision{Action: Here, Reason: ReasonPinned}},
		{"5 interior without a pin", "a:90 b:20", "a", interior, Decision{Action: Here, Reason: ReasonInterior, Pin: SetPin}},
		{"6 pin of another path does not bind", "a:90 b:20", "a", pinned(page, "a"), Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"8 exit, pinned here", "a:90 b:20", "a", pinned(Request{Movable: true, Position: Exit}, "a"), Decision{Action: Here, Reason: ReasonPinned, Pin: ClearPin}},
		{"11 navigation pinned to a peer", "a:30 b:30", "b", pinned(interior, "a"), Decision{Action: Redirect, Peer: "a", Reason: ReasonPinElsewhere}},
		{"12 POST pinned to a peer", "a:30 b:30", "b", pinned(post(interior), "a"), Decision{Action: Relay, Peer: "a", Reason: ReasonPinElsewhere}},
		{"pin follows its node when it is overloaded or draining", "a:300/draining b:0", "b", pinned(interior, "a"), Decision{Action: Redirect, Peer: "a", Reason: ReasonPinElsewhere}},
		{"relayed for a pin that this node does not own", "a:30 b:30", "b", with(pinned(interior, "a"), func(r *Request) { r.Relayed = true }), Decision{Action: Unavailable, Reason: ReasonPinElsewhere}},
		{"16 owner off-line, repin", "a:off b:30", "b", pinned(interior, "a"), Decision{Action: Here, Reason: ReasonPinLost, Pin: SetPin, PinLost: true}},
		{"17 owner off-line, restart", "a:off b:30", "b", lost(pinned(interior, "a"), Restart), Decision{Action: SendToEntry, Reason: ReasonPinLost, Pin: DropPin}},
		{"19 owner off-line, fail", "a:off b:30", "b", lost(pinned(interior, "a"), Fail), Decision{Action: Unavailable, Reason: ReasonPinLost}},
		{"owner off-line, restart, at the entry already", "a:off b:30", "b", lost(pinned(entry, "a"), Restart), Decision{Action: Here, Reason: ReasonPinLost, Pin: SetPin, PinLost: true}},
		{"21 owner back without what it knew, fail: once", "a:30/restarted b:30", "b", lost(pinned(interior, "a"), Fail), Decision{Action: Unavailable, Reason: ReasonPinLost, Pin: DropPin}},
		{"owner off-line at the exit", "a:off b:30", "b", pinned(Request{Movable: true, Position: Exit}, "a"), Decision{Action: Here, Reason: ReasonPinLost, Pin: ClearPin, PinLost: true}},
		{"owner not of this site", "a:30 b:30", "a", pinned(interior, "z"), Decision{Action: Here, Reason: ReasonPinLost, Pin: SetPin, PinLost: true}},
		{"20 repinned client at the returned node", "a:30 b:30", "a", pinned(interior, "b"), Decision{Action: Redirect, Peer: "b", Reason: ReasonPinElsewhere}},
		{"21 own pin of before a restart", "a:30/restarted b:30", "a", pinned(interior, "a"), Decision{Action: Here, Reason: ReasonPinLost, Pin: SetPin, PinLost: true}},
		{"21 peer's pin of before its restart", "a:30/restarted b:30", "b", pinned(interior, "a"), Decision{Action: Here, Reason: ReasonPinLost, Pin: SetPin, PinLost: true}},
		{"23 a pin beats a dedication", "a:30 b:30 c:0", "a", dedicated(pinned(interior, "a"), "c"), Decision{Action: Here, Reason: ReasonPinned}},
		{"24 dedicated elsewhere, entry", "a:30 b:30 c:0", "a", dedicated(entry, "c"), Decision{Action: Redirect, Peer: "c", Reason: ReasonDedicated}},
		{"25 dedicated elsewhere, interior", "a:30 b:30 c:0", "a", dedicated(interior, "c"), Decision{Action: Redirect, Peer: "c", Reason: ReasonDedicated}},
		{"25 the same with a body", "a:30 b:30 c:0", "a", dedicated(post(interior), "c"), Decision{Action: Relay, Peer: "c", Reason: ReasonDedicated}},
		{"dedicated to two, one of which cannot serve it (dynamic table)", "a:0 b:0/7 c:90", "a", route(dedicated(page, "b", "c"), 7), Decision{Action: Redirect, Peer: "c", Reason: ReasonDedicated}},
		{"dedicated here, where it cannot be served, and there", "a:0/7 b:90 c:0", "a", route(dedicated(page, "a", "b"), 7), Decision{Action: Redirect, Peer: "b", Reason: ReasonUnable}},
		{"dedicated to a node that cannot serve it, refuse", "a:0 b:0/7", "a", with(route(dedicated(page, "b"), 7), func(r *Request) { r.Refuse = true }), Decision{Action: Unavailable, Reason: ReasonDedicatedDown}},
		{"26 dedicated to two, here loaded (third embodiment)", "a:0 b:80 c:40", "b", dedicated(entry, "b", "c"), Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"27 dedicated here alone, loaded", "a:0 b:80 c:0", "b", dedicated(entry, "b"), Decision{Action: Here, Reason: ReasonNoLighter, Pin: SetPin}},
		{"dedicated here, light (S404)", "a:0 b:40 c:0", "b", dedicated(page, "b"), Decision{Action: Here, Reason: ReasonDedicatedHere}},
		{"dedicated to two others, the lightest (S405)", "a:0 b:80 c:40", "a", dedicated(page, "b", "c"), Decision{Action: Redirect, Peer: "c", Reason: ReasonDedicated}},
		{"28 dedicated node off-line, spill, light", "a:30 b:off c:0", "a", dedicated(entry, "b"), Decision{Action: Here, Reason: ReasonLight, Pin: SetPin}},
		{"28 dedicated node off-line, spill, loaded", "a:90 b:off c:0", "a", dedicated(page, "b"), Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"dedicated node off-line, refuse", "a:30 b:off c:0", "a", with(dedicated(entry, "b"), func(r *Request) { r.Refuse = true }), Decision{Action: Unavailable, Reason: ReasonDedicatedDown}},
		{"nodes that disagree about a dedication do not toss the client", "a:0 b:0", "a", with(dedicated(page, "b"), func(r *Request) { r.Hopped = true }), Decision{Action: Relay, Peer: "b", Reason: ReasonDedicated}},
		{"29 entry keeps the pin", "a:90 b:20", "a", pinned(entry, "a"), Decision{Action: Here, Reason: ReasonPinned}},
		{"30 entry leaves the pin (the letter)", "a:90 b:20", "a", with(pinned(entry, "a"), func(r *Request) { r.EntryLeavesPin = true }), Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"48 draining, pinned here", "a:10/draining b:0", "a", pinned(interior, "a"), Decision{Action: Here, Reason: ReasonPinned}},
		{"49 draining, no pin", "a:0/draining b:40", "a", entry, Decision{Action: Redirect, Peer: "b", Reason: ReasonDraining}},
		{"draining, interior without a pin", "a:0/draining b:40", "a", interior, Decision{Action: Redirect, Peer: "b", Reason: ReasonDraining}},
		{"draining, and nobody else", "a:0/draining b:off", "a", page, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"sick, and reached all the same", "a:0/sick b:40", "a", page, Decision{Action: Redirect, Peer: "b", Reason: ReasonDraining}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := DefaultPolicy
			p.Rule = Patent
			if got := p.Decide(at(c.self, site(t, c.nodes)), &c.r); got != c.want {
				t.Errorf("Decide(%s at %s) = %+v, want %+v", c.nodes, c.self, got, c.want)
			}
		})
	}
}

func TestDampedShedsOnlyTheExcess(t *testing.T) {
	p := DefaultPolicy
	v := site(t, "a:100 b:20 c:60") // mean 60: two fifths of what comes are too much
	moved := map[NodeID]int{}
	const n = 10000
	rnd := rand.New(rand.NewPCG(1, 2))
	for range n {
		d := p.Decide(v, &Request{Movable: true, Draw1: rnd.Float64(), Draw2: rnd.Float64()})
		if d.Action == Redirect {
			moved[d.Peer]++
		} else if d.Reason != ReasonKept {
			t.Fatalf("served for reason %v, want %v", d.Reason, ReasonKept)
		}
	}
	if got := moved["b"] + moved["c"]; got < n*37/100 || got > n*43/100 {
		t.Errorf("redirected %d of %d, want about 40 %%", got, n)
	}
	if moved["b"] < 2*moved["c"] {
		t.Errorf("b (headroom 61) got %d, c (headroom 21) got %d: want about three to one", moved["b"], moved["c"])
	}
}

func TestDampedReadsTheBooks(t *testing.T) {
	p := DefaultPolicy
	r := Request{Movable: true, Books: Books{Debit: 45}}
	if got := p.Decide(site(t, "a:90 b:0"), &r); got.Reason != ReasonLight {
		t.Errorf("with 45 of 90 already sent away: %+v, want it served as light", got)
	}
	r.Books = Books{Credit: []Load{0, 80}}
	if got := p.Decide(site(t, "a:90 b:0"), &r); got.Reason != ReasonNoLighter {
		t.Errorf("with 80 already sent to the only peer: %+v, want no lighter peer", got)
	}
}

// TestDecideNeverHarms checks laws that hold for every view and request.
func TestDecideNeverHarms(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	ids := []NodeID{"a", "b", "c", "d", "e"}
	for range 200000 {
		v := &View{Self: ids[rnd.IntN(5)]}
		for _, id := range ids[:1+rnd.IntN(5)] {
			v.Nodes = append(v.Nodes, Node{
				ID: id, Online: rnd.IntN(4) > 0, State: Joining + State(rnd.IntN(6)), Capacity: 1,
				Load: Load(rnd.IntN(200)), Incarnation: uint64(rnd.IntN(2)), Unable: []RouteID{0, 1, 2}[:rnd.IntN(4)],
			})
		}
		r := Request{
			Position: Position(rnd.IntN(4)), OnOwnerLoss: OwnerLoss(rnd.IntN(3)), EntryLeavesPin: rnd.IntN(2) == 0,
			Movable: rnd.IntN(2) == 0, Hopped: rnd.IntN(3) == 0, Relayed: rnd.IntN(4) == 0, Refuse: rnd.IntN(2) == 0,
			Draw1: rnd.Float64(), Draw2: rnd.Float64(), First: rnd.IntN(2) == 0, Turn: rnd.IntN(7),
			Move: Move(rnd.IntN(3)), Route: RouteID(rnd.IntN(3)),
		}
		if rnd.IntN(2) == 0 {
			r.Owner = ids[rnd.IntN(5)]
		}
		if rnd.IntN(3) == 0 {
			r.Dedicated = ids[rnd.IntN(3):3]
		}
		p := Policy{Light: 50, Margin: 20, Below: 50, Rule: Rule(rnd.IntN(len(ruleNames))), Choice: Choice(rnd.IntN(2))}
		d := p.Decide(v, &r)
		why := fmt.Sprintf("%+v\nview %+v\nrequest %+v", d, v, r)
		moves := d.Action == Redirect || d.Action == Relay
		switch {
		case d.Action < Here || d.Action > Unavailable || !slices.Contains(Reasons(), d.Reason):
			t.Fatalf("no outcome: %s", why)
		case moves != (d.Peer != ""):
			t.Fatalf("a peer is named where it should not be, or not where it should: %s", why)
		case moves && (d.Peer == v.Self || !v.Node(d.Peer).Online):
			t.Fatalf("sent to itself or to a node that is off-line: %s", why)
		case moves && d.Reason != ReasonPinElsewhere && !v.Node(d.Peer).Serves():
			t.Fatalf("new work given to a node that must not have it: %s", why)
		case (d.Steer != "") != (d.Reason == ReasonQuiet) && d.Reason != ReasonImmovable:
			t.Fatalf("steered without a reason, or the reverse: %s", why)
		case d.Steer != "" && (d.Action != Here || d.Steer == v.Self || !v.Node(d.Steer).Serves() || r.Move == MoveNone):
			t.Fatalf("steered where nobody should go: %s", why)
		case d.Action == Redirect && !r.Movable, moves && r.Relayed:
			t.Fatalf("moved what cannot be moved: %s", why)
		case d.Action == Redirect && r.Hopped && d.Reason != ReasonPinElsewhere:
			t.Fatalf("a second hop: %s", why)
		case d.Reason == ReasonLighter && p.Rule != Damped && p.Rule != Below && v.Node(d.Peer).Load > v.Me().Load-p.Margin:
			t.Fatalf("sent to a peer that is not lighter by L2: %s", why)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, nodes := range []int{3, 16, 512} {
		v := &View{}
		for i := range nodes {
			v.Nodes = append(v.Nodes, Node{
				ID: NodeID(fmt.Sprintf("n%03d", i)), Online: true, State: OK, Capacity: 1, Load: Load(i % 40),
			})
		}
		v.Self = v.Nodes[nodes/2].ID
		r := Request{Movable: true, Draw1: 0.1, Draw2: 0.7}
		for _, load := range []Load{30, 90} {
			v.Me().Load = load
			b.Run(fmt.Sprintf("nodes=%d/load=%.0f", nodes, float64(load)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					DefaultPolicy.Decide(v, &r)
				}
			})
		}
	}
}
