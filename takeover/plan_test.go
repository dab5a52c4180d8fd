package takeover_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"peerage/balancing"
	"peerage/takeover"
)

// site makes a view of nodes n1, n2, ..., written as "state:held,held", where "off" is a
// node off-line and held names the homes of VIPs. Each is home to one VIP, 192.0.2.1,
// 192.0.2.2, ...
func site(t *testing.T, text string) *balancing.View {
	t.Helper()
	v := &balancing.View{Self: "n1"}
	for i, f := range strings.Fields(text) {
		state, held, _ := strings.Cut(f, ":")
		n := balancing.Node{
			ID: balancing.NodeID(fmt.Sprint("n", i+1)), Capacity: 1, Online: state != "off",
			Home: []netip.Addr{vipOf(i + 1)},
		}
		if n.Online {
			if err := n.State.UnmarshalText([]byte(state)); err != nil {
				t.Fatal(err)
			}
		}
		for s := range strings.SplitSeq(held, ",") {
			var home int
			if _, err := fmt.Sscanf(s, "n%d", &home); err == nil {
				n.Held = append(n.Held, vipOf(home))
			}
		}
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

func vipOf(home int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(home)}) }

func TestPlan(t *testing.T) {
	// By rendezvous, the order for the VIP of n1 is n3 n2 n1, for that of n2 n1 n2 n3,
	// and for that of n3 n2 n1 n3.
	for _, c := range []struct{ name, site, want, moved string }{
		{"all well", "ok ok ok", "n1 home, n2 home, n3 home", ""},
		{"degraded serves", "degraded ok ok", "n1 home, n2 home, n3 home", ""},
		{"silent node", "off ok ok", "n3 stand-in, n2 home, n3 home", ""},
		{"stand-in keeps what it holds", "off ok:n1 ok", "n2 holder, n2 home, n3 home", ""},
		{"two hold it", "off ok:n1 ok:n1", "n3 holder, n2 home, n3 home", ""},
		{"holder is not well", "off ok sick:n1", "n2 stand-in, n2 home, n2 stand-in", ""},
		{"holder is off-line", "off ok off:n1", "n2 stand-in, n2 home, n2 stand-in", ""},
		{"home is back, still joining, holder keeps it", "joining ok:n1 ok", "n2 holder, n2 home, n3 home", ""},
		{"home is back and well", "ok ok ok:n1", "n1 home, n2 home, n3 home", ""},
		{"start of a site", "joining joining ok", "n1 waiting for home, n2 waiting for home, n3 home", ""},
		{"sick node", "sick:n1 ok ok", "n3 stand-in, n2 home, n3 home", ""},
		{"draining node", "draining:n1 ok ok", "n3 stand-in, n2 home, n3 home", ""},
		{"sick and alone", "sick:n1 off off", "n1 last resort, nobody, nobody", ""},
		{"sick, alone and dark", "sick off off", "nobody, nobody, nobody", ""},
		{"sick stand-in", "sick:n1,n2 off off", "n1 last resort, n1 last resort, nobody", ""},
		{"stand-in that begins anew", "off joining:n1,n2 draining", "nobody, n2 waiting for home, nobody", ""},
		{"drained stand-in", "off draining:n1,n2 off", "n2 last resort, n2 last resort, nobody", ""},
		{"moved, and both hold it", "ok:n1 ok:n1 ok", "n1 home, n2 home, n3 home", "n1>n2"},
		{"all off-line", "off off off", "nobody, nobody, nobody", ""},
		{"one left", "off ok off", "n2 stand-in, n2 home, n2 stand-in", ""},
		{"no nodes", "", "", ""},
		{"more than one share goes to the next", "off off ok:n1 ok", "n3 holder, n4 stand-in, n3 home, n4 home", ""},
		{"moved from home", "ok ok ok", "n2 moved, n2 home, n3 home", "n1>n2"},
		{"moved from a stand-in", "off ok ok:n1", "n2 moved, n2 home, n3 home", "n1>n2"},
		{"moved to one that does not serve", "ok draining ok", "n1 home, n1 stand-in, n3 home", "n1>n2"},
		{"moved to one that is not there", "ok ok ok", "n1 home, n2 home, n3 home", "n1>n9"},
	} {
		var got []string
		for _, a := range takeover.Plan(site(t, c.site), movedTo(c.moved)) {
			got = append(got, strings.TrimSpace(fmt.Sprint(a.Node, " ", a.Reason)))
		}
		if g := strings.Join(got, ", "); g != c.want {
			t.Errorf("%s: plan of %q\n got %s\nwant %s", c.name, c.site, g, c.want)
		}
	}
}

// movedTo reads "n1>n2" as the VIP of n1 moved to n2.
func movedTo(text string) map[netip.Addr]balancing.NodeID {
	moved := map[netip.Addr]balancing.NodeID{}
	for f := range strings.FieldsSeq(text) {
		vip, to, _ := strings.Cut(f, ">")
		home, _ := strconv.Atoi(vip[1:])
		moved[vipOf(home)] = balancing.NodeID(to)
	}
	return moved
}

// randomSite has all combinations of states, capacities and holders, sane or not.
func randomSite(r *rand.Rand) *balancing.View {
	v := &balancing.View{}
	for i := range r.IntN(6) {
		n := balancing.Node{
			ID: balancing.NodeID(fmt.Sprintf("n%02d", i)), Online: r.IntN(3) > 0,
			State: balancing.State(r.IntN(7)), Capacity: []float64{0.5, 1, 3}[r.IntN(3)],
		}
		for j := range r.IntN(3) {
			n.Home = append(n.Home, netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}))
		}
		v.Nodes = append(v.Nodes, n)
	}
	for _, home := range v.Nodes {
		for _, vip := range home.Home {
			for k := range v.Nodes {
				if r.IntN(4) == 0 {
					v.Nodes[k].Held = append(v.Nodes[k].Held, vip)
				}
			}
		}
	}
	return v
}

// score is the weight of n for vip in rendezvous hashing.
func score(n balancing.Node, vip netip.Addr) float64 {
	sum := sha256.Sum256([]byte(string(n.ID) + "\x00" + string(vip.AsSlice())))
	hash, err := strconv.ParseUint(hex.EncodeToString(sum[:8]), 16, 64)
	if err != nil {
		panic(err)
	}
	return -n.Capacity / math.Log(math.Ldexp(float64(hash), -64))
}

// naive makes the plan by sorting all candidates for a VIP by preference, twice: first
// without those that would take over, then with them, to see who has its share already.
func naive(v *balancing.View, moved map[netip.Addr]balancing.NodeID) (plan []takeover.Assignment) {
	type candidate struct {
		node   balancing.Node
		rank   int
		reason takeover.Reason
	}
	serves := func(n balancing.Node) bool {
		return n.Online && (n.State == balancing.OK || n.State == balancing.Degraded)
	}
	homeHolds := func(vip netip.Addr) bool {
		return slices.ContainsFunc(v.Nodes, func(n balancing.Node) bool {
			return serves(n) && slices.Contains(n.Home, vip) && slices.Contains(n.Held, vip)
		})
	}
	best := func(vip netip.Addr, mayTakeOver func(balancing.Node) bool) takeover.Assignment {
		var all []candidate
		for _, n := range v.Nodes {
			home, held := slices.Contains(n.Home, vip), slices.Contains(n.Held, vip)
			switch {
			case serves(n) && moved[vip] == n.ID && (home || !held || !homeHolds(vip)):
				all = append(all, candidate{n, 0, takeover.ReasonMoved})
			case serves(n) && home:
				all = append(all, candidate{n, 1, takeover.ReasonHome})
			case serves(n) && held:
				all = append(all, candidate{n, 2, takeover.ReasonHolder})
			case n.Online && home && n.State == balancing.Joining:
				all = append(all, candidate{n, 3, takeover.ReasonWaiting})
			case serves(n) && mayTakeOver(n):
				all = append(all, candidate{n, 4, takeover.ReasonStandIn})
			case n.Online && home && held:
				all = append(all, candidate{n, 5, takeover.ReasonLastResort})
			case n.Online && held && n.State != balancing.Joining:
				all = append(all, candidate{n, 6, takeover.ReasonLastResort})
			}
		}
		if len(all) == 0 {
			return takeover.Assignment{VIP: vip}
		}
		slices.SortStableFunc(all, func(a, b candidate) int {
			if a.rank != b.rank {
				return a.rank - b.rank
			}
			return cmp.Compare(score(b.node, vip), score(a.node, vip))
		})
		return takeover.Assignment{VIP: vip, Node: all[0].node.ID, Reason: all[0].reason}
	}
	var vips []netip.Addr
	capacity := 0.
	for _, n := range v.Nodes {
		vips = append(vips, n.Home...)
		if serves(n) {
			capacity += n.Capacity
		}
	}
	has := map[balancing.NodeID]int{}
	for _, vip := range vips {
		if a := best(vip, func(balancing.Node) bool { return false }); a.Node != "" && a.Reason != takeover.ReasonLastResort {
			has[a.Node]++
		}
	}
	for _, vip := range vips {
		a := best(vip, func(n balancing.Node) bool { return float64(has[n.ID])*capacity < float64(len(vips))*n.Capacity })
		if a.Reason == takeover.ReasonStandIn {
			has[a.Node]++
		}
		plan = append(plan, a)
	}
	return plan
}

func TestPlanIsThatOfItsNaiveTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		v := randomSite(r)
		moved := map[netip.Addr]balancing.NodeID{}
		for _, n := range v.Nodes {
			for _, vip := range n.Home {
				if r.IntN(4) == 0 {
					moved[vip] = balancing.NodeID(fmt.Sprintf("n%02d", r.IntN(7)))
				}
			}
		}
		plan := takeover.Plan(v, moved)
		if want := naive(v, moved); !slices.Equal(plan, want) {
			t.Fatalf("plan: got %v, want %v, moved %v, view %+v", plan, want, moved, v)
		}
		checkPlan(t, v, plan)
		for _, n := range v.Nodes {
			as := *v
			as.Self = n.ID
			if got := takeover.Plan(&as, moved); !slices.Equal(got, plan) {
				t.Fatalf("plan as seen by %s: got %v, want %v", n.ID, got, plan)
			}
		}
	}
}

// checkPlan checks what must hold of every plan: each VIP of the site is in it once, at a
// node that is on-line; and at one if any serves.
func checkPlan(t *testing.T, v *balancing.View, plan []takeover.Assignment) {
	t.Helper()
	var vips, want []netip.Addr
	serving := slices.ContainsFunc(v.Nodes, func(n balancing.Node) bool { return n.Serves() })
	for _, a := range plan {
		vips = append(vips, a.VIP)
		if n := v.Node(a.Node); a.Node != "" && !n.Online || a.Node == "" && serving {
			t.Fatalf("plan for %s: %q, view %+v", a.VIP, a.Node, v)
		}
	}
	for _, n := range v.Nodes {
		want = append(want, n.Home...)
	}
	if !slices.Equal(vips, want) {
		t.Fatalf("planned VIPs: got %v, want each once: %v", vips, want)
	}
}

func TestPlanSpreadsVIPsByCapacity(t *testing.T) {
	v := &balancing.View{Nodes: []balancing.Node{
		{ID: "gone"},
		{ID: "n1", Online: true, State: balancing.OK, Capacity: 1},
		{ID: "n2", Online: true, State: balancing.OK, Capacity: 1},
		{ID: "n3", Online: true, State: balancing.OK, Capacity: 2},
	}}
	const vips = 4000
	for i := range vips {
		v.Nodes[0].Home = append(v.Nodes[0].Home, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	share := make(map[balancing.NodeID]float64)
	all := takeover.Plan(v, nil)
	for _, a := range all {
		n := v.Node(a.Node)
		n.Held = append(n.Held, a.VIP)
		share[a.Node] += 1. / vips
	}
	for id, want := range map[balancing.NodeID]float64{"n1": .25, "n2": .25, "n3": .5} {
		if math.Abs(share[id]-want) > 1./vips {
			t.Errorf("share of %s: got %.3f, want %.2f", id, share[id], want)
		}
	}

	v.Nodes[1].Online = false
	for i, a := range takeover.Plan(v, nil) {
		if was := all[i].Node; was != "n1" && a.Node != was {
			t.Fatalf("%s moved from %s to %s although neither was lost", a.VIP, was, a.Node)
		}
	}
}

func TestReasonReadsWhatItWrites(t *testing.T) {
	for r := takeover.ReasonNobody; r <= takeover.ReasonMoved; r++ {
		text, err := r.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got takeover.Reason
		if err := got.UnmarshalText(text); err != nil || got != r {
			t.Errorf("reading %q: got %v, %v; want %v", text, got, err, r)
		}
	}
	var r takeover.Reason
	if err := r.UnmarshalText([]byte("whim")); err == nil {
		t.Error(`reading "whim": got no error`)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, nodes := range []int{4, 64} {
		v := &balancing.View{}
		for i := range nodes {
			v.Nodes = append(v.Nodes, balancing.Node{
				ID: balancing.NodeID(fmt.Sprintf("n%03d", i)), Capacity: 1, Online: i != 1, State: balancing.OK,
				Home: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), netip.AddrFrom4([4]byte{10, 0, byte(i), 2})},
			})
		}
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				takeover.Plan(v, nil)
			}
		})
	}
}
