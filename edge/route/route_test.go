package route

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"peerage/balancing"
)

func bank() *Stateful {
	return &Stateful{Name: "bank", Entry: "/banking/", Exit: []string{"/banking/logout", "/bye", "/banking/done/"}, MaxLife: 12 * time.Hour}
}

func shop() *Stateful {
	return &Stateful{Name: "shop", Entry: "/shop/", Exit: []string{"/shop/img/end"}}
}

func cart() *Stateful { return &Stateful{Name: "cart", Entry: "/shop/cart"} }

func newTable(t testing.TB) *Table {
	t.Helper()
	table, err := NewTable([]Rule{
		{Path: "/", Index: 0},
		{Path: "/banking/", Stateful: bank(), Index: 1},
		{Path: "/shop/", Stateful: shop(), Index: 2},
		{Path: "/shop/cart/", Stateful: cart(), Index: 3},
		{Path: "/shop/img/", Index: 4},
		{Path: "/robots.txt", Index: 5},
		{Path: "/docs/", Index: 6},
		{Path: "/docs", Index: 7},
		{Host: "b.example", Path: "/docs/", Index: 8},
		{Host: "b.example", Path: "/own/", Index: 9},
		{Host: "b.example", Path: "/robots.txt", Index: 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestMatch(t *testing.T) {
	table := newTable(t)
	tests := []struct {
		host, path string
		want       int
	}{
		{"a.example", "/", 0},
		{"a.example", "/x/y", 0},
		{"a.example", "/banking/", 1},
		{"a.example", "/banking", 1},
		{"a.example", "/banking/x/y/", 1},
		{"a.example", "/bankingfoo", 0},
		{"a.example", "/Banking/x", 0},
		{"a.example", "/shop/x", 2},
		{"a.example", "/shop/cart", 3},
		{"a.example", "/shop/cart/1", 3},
		{"a.example", "/shop/carton", 2},
		{"a.example", "/robots.txt", 5},
		{"a.example", "/robots.txt/", 0},
		{"a.example", "/robots.txt/x", 0},
		{"a.example", "/docs", 7},
		{"a.example", "/docs/", 6},
		{"a.example", "/docs/x", 6},
		{"b.example", "/docs", 7}, // exact for any host is longer than a subtree of the host
		{"b.example", "/docs/", 8},
		{"b.example", "/docs/x", 8},
		{"b.example", "/own/x", 9},
		{"a.example", "/own/x", 0},
		{"b.example", "/robots.txt", 10},
		{"b.example", "/banking/x", 1},
		{"a.example", "/" + strings.Repeat("x/", 4000), 0},
		{"a.example", "/banking/" + strings.Repeat("x", 4000), 1},
		{"a.example", "", 0},
		{"a.example", "x", 0},
	}
	for _, tt := range tests {
		r, ok := table.Match(tt.host, tt.path)
		if !ok || r.Index != tt.want {
			t.Errorf("Match(%s, %.40q) = %+v, %t; want index %d", tt.host, tt.path, r, ok, tt.want)
		}
	}
}

func TestMatchFindsNothingWhereNoRuleIs(t *testing.T) {
	table, err := NewTable([]Rule{{Host: "b.example", Path: "/a/"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/ab", "/a"} {
		if r, ok := table.Match("a.example", path); ok {
			t.Errorf("Match(a.example, %q) = %+v, want none", path, r)
		}
	}
	if _, ok := new(Table).Match("a.example", "/a/b"); ok {
		t.Error("an empty table matches")
	}
}

// TestMatchAgreesWithNaiveTwin compares with the rule as one would say it aloud.
func TestMatchAgreesWithNaiveTwin(t *testing.T) {
	paths := []string{"/", "/a", "/a/", "/a/b", "/a/b/", "/ab/", "/b/a/c", "/b/"}
	hosts := []string{"", "h.example"}
	for mask := range 1 << len(paths) {
		var rules []Rule
		for i, p := range paths {
			if mask&(1<<i) != 0 {
				rules = append(rules, Rule{Host: hosts[(mask+i)%2], Path: p, Index: len(rules)})
			}
		}
		table, err := NewTable(rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range append(paths, "/a/b/c", "/abc", "/b/a", "/b/a/c/") {
			want := -1
			for i, r := range rules {
				if covers(r.Path, path) && (r.Host == "" || r.Host == "h.example") &&
					(want < 0 || rank(r.Path, path) > rank(rules[want].Path, path)) {
					want = i
				}
			}
			got := -1
			if r, ok := table.Match("h.example", path); ok {
				got = r.Index
			}
			if got != want {
				t.Fatalf("Match(%q) among %v = %d, want %d", path, rules, got, want)
			}
		}
	}
}

// rank is the length of the pattern, or most for an exact match.
func rank(pattern, path string) int {
	if !strings.HasSuffix(pattern, "/") && pattern == path {
		return 1 << 20
	}
	return len(pattern)
}

// Rows are those of the test table for stateful paths, section 5.6 of the balancing
// report, of which 31 to 35 and 37 speak of paths.
func TestStateful(t *testing.T) {
	table := newTable(t)
	tests := []struct {
		row, target string
		want        string
		position    balancing.Position
	}{
		{"31 dot segments, encoded", "/banking/%2e%2e/public", "", balancing.Outside},
		{"32 repeated slash", "/banking//x", "bank", balancing.Interior},
		{"32 dot segment", "/banking/./x", "bank", balancing.Interior},
		{"34 upper case", "/Banking/x", "", balancing.Outside},
		{"34 longer name", "/bankingx", "", balancing.Outside},
		{"35 query", "/banking?x=1", "bank", balancing.Entry},
		{"36 longest rule", "/shop/cart/1", "cart", balancing.Interior},
		{"37 exit outside", "/bye", "bank", balancing.Exit},
		{"entry", "/banking/", "bank", balancing.Entry},
		{"interior", "/banking/transfer", "bank", balancing.Interior},
		{"exit", "/banking/logout", "bank", balancing.Exit},
		{"below an exact exit", "/banking/logout/x", "bank", balancing.Interior},
		{"exit subtree", "/banking/done/x", "bank", balancing.Exit},
		{"exit subtree without slash", "/banking/done", "bank", balancing.Exit},
		{"entry without slash", "/shop/cart", "cart", balancing.Entry},
		{"entry without slash, asked with one", "/shop/cart/", "cart", balancing.Entry},
		{"other rule's name begins alike", "/shop/carton", "shop", balancing.Interior},
		{"plain route within a stateful one", "/shop/img/x", "", balancing.Outside},
		{"exit in a plain route within", "/shop/img/end", "shop", balancing.Exit},
	}
	for _, tt := range tests {
		path, _, err := Canonical(tt.target)
		if err != nil {
			t.Fatal(err)
		}
		s, position := table.Stateful("a.example", path)
		got := ""
		if s != nil {
			got = s.Name
		}
		if got != tt.want || position != tt.position {
			t.Errorf("row %s: Stateful(%q) = %q, %d; want %q, %d", tt.row, path, got, position, tt.want, tt.position)
		}
	}
	// Row 33.
	if _, _, err := Canonical("/banking%2Fx"); err != encodedSlash {
		t.Errorf("Canonical(/banking%%2Fx) = %v, want %v", err, encodedSlash)
	}
}

func TestExitBelongsToTheHostOfItsRule(t *testing.T) {
	table, err := NewTable([]Rule{{Path: "/"}, {Host: "a.example", Path: "/banking/", Stateful: bank()}})
	if err != nil {
		t.Fatal(err)
	}
	if s, p := table.Stateful("a.example", "/bye"); s == nil || p != balancing.Exit {
		t.Errorf("Stateful(a.example, /bye) = %v, %d; want an exit", s, p)
	}
	if s, p := table.Stateful("b.example", "/bye"); s != nil {
		t.Errorf("Stateful(b.example, /bye) = %v, %d; want none", s, p)
	}
}

func TestStatefulOfTheWholeSite(t *testing.T) {
	s := &Stateful{Name: "all", Entry: "/", Exit: []string{"/bye"}}
	for path, want := range map[string]balancing.Position{"/": balancing.Entry, "/x": balancing.Interior, "/bye": balancing.Exit} {
		if got := s.Position(path); got != want {
			t.Errorf("Position(%q) = %d, want %d", path, got, want)
		}
	}
}

func TestNewTableNamesAllThatIsWrong(t *testing.T) {
	other := bank()
	other.Entry = "/other/"
	_, err := NewTable([]Rule{
		{Path: "/banking/", Stateful: bank(), Index: 1},
		{Path: "/banking/", Index: 2},
		{Host: "A.example", Path: "/h/"},
		{Path: "x"},
		{Path: "/a/../b"},
		{Path: "/a?b"},
		{Path: "/a?"},
		{Path: "/a%2fb"},
		{Path: "/s/", Stateful: &Stateful{Entry: "/t/", Exit: []string{"/bye", "/t/", "//x"}, Idle: -1}},
		{Path: "/other/", Stateful: other},
	})
	if err == nil {
		t.Fatal("NewTable accepts it")
	}
	for _, want := range []string{
		"route /banking/: the path is taken by the route with index 1, this one has index 2",
		`route A.example/h/: host "A.example": write it as "a.example"`,
		`path "x": request target: not a path`,
		`path "/a/../b": write it as "/b"`,
		`path "/a?b": a path has no query`,
		`path "/a?": a path has no query`,
		`path "/a%2fb": request target: encoded slash`,
		`stateful rule "": it has no name`,
		"entry /t/ lies outside the route",
		"exit /t/ takes in the entry",
		`exit: path "//x": write it as "/x"`,
		"a time is negative",
		`exit /bye of stateful rule "" is an exit of "bank" too`,
		`stateful rule "bank": the name is taken by the one with entry /banking/, this one has entry /other/`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("NewTable's error lacks %q:\n%v", want, err)
		}
	}
}

func TestNewTableTakesOneStatefulRuleForTwoHosts(t *testing.T) {
	s := bank()
	_, err := NewTable([]Rule{
		{Host: "a.example", Path: "/banking/", Stateful: s},
		{Host: "b.example", Path: "/banking/", Stateful: s},
	})
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{4, 256} {
		rules := []Rule{{Path: "/"}}
		for i := range n {
			rules = append(rules, Rule{Path: fmt.Sprintf("/part%d/", i)})
		}
		table, err := NewTable(rules)
		if err != nil {
			b.Fatal(err)
		}
		for name, path := range map[string]string{"usual": "/part2/css/site.css", "longest": strings.Repeat("/a", MaxTarget/2)} {
			b.Run(fmt.Sprintf("rules=%d/path=%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, ok := table.Match("www.example.com", path); !ok {
						b.Fatal("no match")
					}
				}
			})
		}
	}
}

func BenchmarkStateful(b *testing.B) {
	table := newTable(b)
	b.ReportAllocs()
	for b.Loop() {
		table.Stateful("www.example.com", "/banking/accounts/17")
	}
}
