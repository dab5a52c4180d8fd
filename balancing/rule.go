package balancing

import (
	"cmp"
	"iter"
	"math"
	"slices"
)

// Rule selects how a node above [Policy.Light] sheds work, and to whom.
type Rule uint8

const (
	// Damped sheds only the excess over the mean of the site and keeps books
	// of what it sent away, so that the nodes do not herd. The default.
	Damped Rule = iota
	// Patent is the letter of S203 to S208: above Light, and with a peer
	// lighter by Margin, every movable request goes to the lightest peer.
	Patent
	// Below sends to any peer whose load is not above [Policy.Below], an absolute
	// level in place of the difference (behind S210, and the summary).
	Below
	// Rotate hands off to the peers lighter by Margin in turn (behind S210).
	Rotate
	// TwoChoices draws two of the peers lighter by Margin and takes the lighter.
	TwoChoices
)

var ruleNames = []string{Damped: "damped", Patent: "patent", Below: "below", Rotate: "rotate", TwoChoices: "two-choices"}

func (r Rule) String() string { return name(ruleNames, r, "rule") }

// UnmarshalText reads a rule's name.
func (r *Rule) UnmarshalText(b []byte) (err error) {
	*r, err = parse[Rule](ruleNames, b, "rule")
	return
}

// MarshalText writes the rule's name.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Choice selects the target among the lighter peers under rule [Damped].
type Choice uint8

const (
	// Headroom draws a peer with a probability that grows with its headroom.
	Headroom Choice = iota
	// Least takes the lightest peer (S208).
	Least
)

var choiceNames = []string{Headroom: "headroom", Least: "least"}

func (c Choice) String() string { return name(choiceNames, c, "choice") }

// UnmarshalText reads a choice's name.
func (c *Choice) UnmarshalText(b []byte) (err error) {
	*c, err = parse[Choice](choiceNames, b, "choice")
	return
}

// MarshalText writes the choice's name.
func (c Choice) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// start returns the place where a search for the lightest begins. Equals are taken in the
// order met, so that an idle site does not send everybody to the first node by name.
func (v *View) start(r *Request) int { return int(r.Draw2 * float64(len(v.Nodes))) }

// around walks over the places in v.Nodes, beginning at the given one.
func (v *View) around(from int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for k, i := 0, from; k < len(v.Nodes); k, i = k+1, i+1 {
			if i >= len(v.Nodes) {
				i = 0
			}
			if !yield(i) {
				return
			}
		}
	}
}

// goes reports whether n should rid itself of clients whatever its load.
func (n *Node) goes() bool { return n.State == Draining || n.State == Leaving || n.State == Sick }

// lighter are the peers that load may move a request to: those that serve, that can serve
// its path and are not left out by its dedication, and whose load, with what is booked on them, is not above limit.
type lighter struct {
	v      *View
	me     *Node
	route  RouteID
	only   []NodeID // nil for all
	credit []Load   // by place, each times worth; nil for no books
	worth  Load
	limit  Load
}

// load returns the load of the node at place i, as far as this node knows, and whether
// work may be moved there at all.
func (l *lighter) load(i int, n *Node) (Load, bool) {
	if n == l.me || !n.Serves() || !n.Able(l.route) || l.only != nil && !slices.Contains(l.only, n.ID) {
		return 0, false
	}
	if i < len(l.credit) {
		return n.Load + l.credit[i]*l.worth, true
	}
	return n.Load, true
}

// all walks over them and their loads, beginning at a place.
func (l *lighter) all(from int) iter.Seq2[*Node, Load] {
	return func(yield func(*Node, Load) bool) {
		for k, i := 0, from; k < len(l.v.Nodes); k, i = k+1, i+1 {
			if i >= len(l.v.Nodes) {
				i = 0
			}
			n := &l.v.Nodes[i]
			if e, ok := l.load(i, n); ok && e <= l.limit && !yield(n, e) {
				return
			}
		}
	}
}

// nth returns the k-th of them and its load.
func (l *lighter) nth(k int) (*Node, Load) {
	for n, e := range l.all(0) {
		if k == 0 {
			return n, e
		}
		k--
	}
	return nil, 0
}

// byLoad is the rule of S203 to S208; docs/decisions/0003 says what damps it.
func (p Policy) byLoad(v *View, me *Node, r *Request) Decision {
	leaving := me.goes()
	damped := p.Rule == Damped && !leaving
	load := me.Load
	if damped {
		load -= r.Books.Debit
	}
	if !leaving && load <= p.Light {
		return Decision{Action: Here, Reason: ReasonLight}
	}
	quietly := !r.Movable || r.Move == MoveQuiet
	if r.Move == MoveNone || quietly && leaving { // a node that goes takes its own offers back
		return Decision{Action: Here, Reason: ReasonImmovable}
	}
	l := lighter{v: v, me: me, route: r.Route, limit: load - p.Margin}
	if slices.Contains(r.Dedicated, me.ID) { // else all of them are off-line, and this node stands in
		l.only = r.Dedicated
	}
	switch {
	case leaving:
		l.limit = Load(math.Inf(1)) // any peer is better than a node that goes
	case damped:
		l.credit, l.worth = r.Books.Credit, cmp.Or(r.Books.Worth, 1)
	case p.Rule == Below:
		l.limit = p.Below
	}
	var to *Node
	reason := ReasonLighter
	switch {
	case leaving:
		to, reason = l.least(r), ReasonDraining
	case damped:
		var kept bool
		if to, kept = p.shed(&l, r, load); kept {
			return Decision{Action: Here, Reason: ReasonKept}
		}
	default:
		to = p.pick(&l, r)
	}
	switch {
	case to == nil:
		return Decision{Action: Here, Reason: ReasonNoLighter}
	case quietly && r.Movable:
		return Decision{Action: Here, Reason: ReasonQuiet, Steer: to.ID}
	case quietly:
		return Decision{Action: Here, Reason: ReasonImmovable, Steer: to.ID}
	}
	return Decision{Action: Redirect, Peer: to.ID, Reason: reason}
}

// least returns the lightest (S208), or nil.
func (l *lighter) least(r *Request) (least *Node) {
	var lowest Load
	for n, e := range l.all(l.v.start(r)) {
		if least == nil || e < lowest {
			least, lowest = n, e
		}
	}
	return least
}

// pick chooses by the rules that move every request.
func (p Policy) pick(l *lighter, r *Request) *Node {
	switch p.Rule {
	case Rotate:
		for n := range l.all(r.Turn) {
			return n
		}
		return nil
	case Below, TwoChoices:
		count := 0
		for range l.all(0) {
			count++
		}
		first := int(r.Draw1 * float64(count))
		one, load1 := l.nth(first)
		if p.Rule == Below || count < 2 {
			return one
		}
		second := int(r.Draw2 * float64(count-1))
		if second >= first {
			second++
		}
		if other, load2 := l.nth(second); load2 < load1 {
			return other
		}
		return one
	}
	return l.least(r)
}

// shed is rule [Damped]: only what exceeds the mean goes, with a probability.
func (p Policy) shed(l *lighter, r *Request, load Load) (to *Node, kept bool) {
	var (
		least   *Node // of the lighter peers
		lowest  Load
		weight  float64 // of all lighter peers
		sum     = load  // of this node and all peers
		members = 1
	)
	for i := range l.v.around(l.v.start(r)) {
		n := &l.v.Nodes[i]
		e, ok := l.load(i, n)
		if !ok {
			continue
		}
		sum += e
		members++
		if e > l.limit {
			continue
		}
		weight += l.headroom(n, e)
		if least == nil || e < lowest {
			least, lowest = n, e
		}
	}
	if least == nil {
		return nil, false
	}
	offered := load
	if r.First {
		offered += r.Books.Shed
	}
	if mean := sum / Load(members); r.Draw1 >= float64((offered-mean)/offered) {
		return nil, true
	}
	if p.Choice == Least {
		return least, false
	}
	left := r.Draw2 * weight
	for n, e := range l.all(0) {
		to = n
		if left -= l.headroom(n, e); left < 0 {
			break
		}
	}
	return to, false
}

// headroom is the weight of a peer of load e in the draw among the lighter ones.
func (l *lighter) headroom(n *Node, e Load) float64 { return (float64(l.limit-e) + 1) * n.Capacity }

// Senders counts the nodes of v that shed load as well, as far as this node can
// see: those above L1 that are not lighter than this node by L2. It is at least 1.
func (p Policy) Senders(v *View) int {
	me := v.Me()
	senders := 0
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Serves() && n.Load > p.Light && (me == nil || n.Load > me.Load-p.Margin) {
			senders++
		}
	}
	return max(senders, 1)
}
