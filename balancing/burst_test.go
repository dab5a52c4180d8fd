package balancing

import (
	"math/rand/v2"
	"testing"
)

func TestHelpers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for _, c := range []struct {
		nodes string
		r     Request
		want  string // all that are ever drawn
	}{
		{"a:90 b:0 c:0 d:0", Request{}, "bcd"},
		{"a:90 b:0/sick c:off d:0 e:0/7 f:0", Request{Route: 7}, "df"},
		{"a:90 b:0 c:0 d:0", Request{Dedicated: []NodeID{"a", "c"}}, "c"},
		{"a:90 b:off", Request{}, ""},
	} {
		drawn := map[NodeID]int{}
		for range 1000 {
			c.r.Draw1, c.r.Draw2 = rnd.Float64(), rnd.Float64()
			one, two := site(t, c.nodes).Helpers(&c.r)
			if one == two && one != "" || two != "" && one == "" || (two == "") != (len(c.want) < 2) {
				t.Fatalf("%s: drew %q and %q", c.nodes, one, two)
			}
			drawn[one]++
			drawn[two]++
		}
		delete(drawn, "")
		for _, id := range c.want {
			if drawn[NodeID(id)] < 400 {
				t.Errorf("%s: drawn %v, want a fair share of each of %s", c.nodes, drawn, c.want)
			}
		}
		if len(drawn) != len(c.want) {
			t.Errorf("%s: drawn %v, want %s", c.nodes, drawn, c.want)
		}
	}
}

func TestWhatMayBeHelpedWith(t *testing.T) {
	for _, c := range []struct {
		d    Decision
		want bool
	}{
		{Decision{Action: Here, Reason: ReasonLight}, true},
		{Decision{Action: Here, Reason: ReasonLight, Pin: SetPin}, false},
		{Decision{Action: Here, Reason: ReasonPinned}, false},
		{Decision{Action: Here, Reason: ReasonRelayed}, false},
		{Decision{Action: Here, Reason: ReasonHousekeeping}, false},
		{Decision{Action: Redirect, Reason: ReasonLighter}, false},
	} {
		if got := c.d.Helps(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.d, got, c.want)
		}
	}
}
