package balancing

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// TestRules is what tells the selectable rules apart: whom each sends a page to, from a
// node at 90 per cent (L1 50, L2 20, below 45).
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		rule  Rule
		nodes string
		r     Request
		want  Decision
	}{
		{"below: at the level counts (D1)", Below, "a:90 b:46 c:45", Request{}, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"below: an absolute level, not a difference (D3)", Below, "a:60 b:45 c:100", Request{}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"below: all peers above the level (D3)", Below, "a:900 b:46 c:50", Request{}, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"below: first by the draw", Below, "a:90 b:45 c:0", Request{Draw1: 0.1}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"below: last by the draw", Below, "a:90 b:45 c:0", Request{Draw1: 0.9}, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"below: L1 comes first (S203)", Below, "a:50 b:0 c:0", Request{}, Decision{Action: Here, Reason: ReasonLight}},
		{"rotate: from the turn on (D2)", Rotate, "a:90 b:30 c:0 d:60", Request{Turn: 2}, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"rotate: around, over those not lighter", Rotate, "a:90 b:30 c:0 d:80", Request{Turn: 3}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"rotate: a turn beyond the end", Rotate, "a:90 b:30 c:0", Request{Turn: 3}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"rotate: nobody lighter", Rotate, "a:90 b:71 c:80", Request{Turn: 1}, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"two choices: the lighter of two", TwoChoices, "a:90 b:50 c:40 d:10", Request{Draw1: 0, Draw2: 0}, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
		{"two choices: the other two", TwoChoices, "a:90 b:50 c:40 d:10", Request{Draw1: 0.4, Draw2: 0.9}, Decision{Action: Redirect, Peer: "d", Reason: ReasonLighter}},
		{"two choices: of one", TwoChoices, "a:90 b:50 c:80 d:off", Request{Draw1: 0.99, Draw2: 0.99}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"two choices: of none", TwoChoices, "a:90 b:80", Request{}, Decision{Action: Here, Reason: ReasonNoLighter}},
		{"the letter keeps no books", Patent, "a:90 b:60", Request{Books: Books{Debit: 90, Credit: []Load{0, 90}}}, Decision{Action: Redirect, Peer: "b", Reason: ReasonLighter}},
		{"damped, least", Damped, "a:90 b:60 c:0", Request{Draw2: 0.1}, Decision{Action: Redirect, Peer: "c", Reason: ReasonLighter}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.r.Movable = true
			p := Policy{Light: 50, Margin: 20, Below: 45, Rule: c.rule, Choice: Least}
			if got := p.Decide(site(t, c.nodes), &c.r); got != c.want {
				t.Errorf("Decide(%s) = %+v, want %+v", c.nodes, got, c.want)
			}
		})
	}
}

// TestRotationIsEven hands off to each lighter peer in turn, as the caller keeps the turn.
func TestRotationIsEven(t *testing.T) {
	v := site(t, "a:90 b:0 c:30 d:85 e:10")
	p := Policy{Light: 50, Margin: 20, Rule: Rotate}
	turn := 0
	var got strings.Builder
	for range 9 {
		d := p.Decide(v, &Request{Movable: true, Turn: turn})
		turn = v.Place(d.Peer) + 1
		got.WriteString(string(d.Peer))
	}
	if got.String() != "bcebcebce" {
		t.Errorf("handed off to %s, want b, c and e in turn", got.String())
	}
}

// TestEqualsAreSpread: with all peers idle, not everybody is sent to the first by name.
func TestEqualsAreSpread(t *testing.T) {
	v := site(t, "a:90 b:0 c:0 d:0")
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, rule := range []Rule{Patent, Below, TwoChoices} {
		p := DefaultPolicy
		p.Rule = rule
		sent := map[NodeID]int{}
		for range 3000 {
			sent[p.Decide(v, &Request{Movable: true, Draw1: rnd.Float64(), Draw2: rnd.Float64()}).Peer]++
		}
		for _, id := range []NodeID{"b", "c", "d"} {
			if sent[id] < 600 {
				t.Errorf("%v sent %v, want a fair part to each", rule, sent)
			}
		}
	}
}

// TestDecideAllocatesNothing is a part of goal G14.
func TestDecideAllocatesNothing(t *testing.T) {
	v := site(t, "a:90 b:0 c:30 d:85 e:10")
	for rule := range Rule(len(ruleNames)) {
		for choice := range Choice(len(choiceNames)) {
			p := Policy{Light: 50, Margin: 20, Below: 50, Rule: rule, Choice: choice}
			r := Request{Movable: true, Dedicated: []NodeID{"a", "b", "c"}, Books: Books{Credit: []Load{0, 1, 2, 3, 4}}}
			if n := testing.AllocsPerRun(100, func() { p.Decide(v, &r) }); n > 0 {
				t.Errorf("%v, %v: %v allocations", rule, choice, n)
			}
		}
	}
}

func TestNamesOfRules(t *testing.T) {
	for r := range Rule(len(ruleNames)) {
		text, err := r.MarshalText()
		var back Rule
		if err != nil || back.UnmarshalText(text) != nil || back != r {
			t.Errorf("%v is written %s and read as %v", r, text, back)
		}
	}
	var r Rule
	if err := r.UnmarshalText([]byte("fair")); err == nil {
		t.Error("no error for a rule that there is not")
	}
}
