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
		{Path: "/media*", Index: 11, Stateful: &Stateful{Name: "media", Exit: []string{"/media/end*"}}},
		{Path: "/media/own/*", Index: 12},
		{Path: "/mediation*", Index: 13},
		{Host: "b.example", Path: "/media*", Index: 14},
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
		{"a.example", "/media", 11},
		{"a.example", "/media/x", 11},
		{"a.example", "/medial/x", 11},
		{"a.example", "/med", 0},
		{"a.example", "/media/own", 12},
		{"a.example", "/media/own/x", 12},
		{"a.example", "/media/ownx", 11},
		{"a.example", "/mediations", 13},
		{"b.example", "/medial", 14},
		{"b.example", "/media/own/x", 12},
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

// Patent S402: a rule for requests without a URI is not one for the paths below.
func TestLackOfURI(t *testing.T) {
	table, err := NewTable([]Rule{
		{Path: "/", Index: 0}, {NoURI: true, Index: 1}, {Host: "b.example", Path: "/", Index: 2}, {Host: "c.example", Path: "/", NoURI: true, Index: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		host, target string
		want         int
	}{
		{"a.example", "/", 1},
		{"a.example", "/?q=1", 1},
		{"a.example", "//", 1},
		{"a.example", "/.", 1},
		{"a.example", "/x", 0},
		{"b.example", "/", 1}, // exact for any host is longer than a subtree of the host
		{"b.example", "/x", 2},
		{"c.example", "/", 3},
		{"c.example", "/x", 0},
	} {
		path, _, err := Canonical(tt.target)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := table.Match(tt.host, path); !ok || r.Index != tt.want {
			t.Errorf("Match(%s, %q) = %+v, %t; want index %d", tt.host, tt.target, r, ok, tt.want)
		}
	}
}

func TestRulesHaveTheIDsOfReports(t *testing.T) {
	table := newTable(t)
	for path, want := range map[string]balancing.RouteID{
		"/banking/x": balancing.RouteIDOf("", "/banking/"), "/media/own/x": balancing.RouteIDOf("", "/media/own/*"),
	} {
		if r, _ := table.Match("a.example", path); r.ID != want {
			t.Errorf("the rule for %s has ID %d, want %d", path, r.ID, want)
		}
	}
	table, err := NewTable([]Rule{{Path: "/"}, {Path: "/", NoURI: true}})
	if err != nil {
		t.Fatal(err)
	}
	all, _ := table.Match("a.example", "/x")
	if none, _ := table.Match("a.example", "/"); none.ID == all.ID || none.ID != balancing.RouteIDOf("", "") {
		t.Errorf("the rule for the lack of a URI has ID %d, that for / %d", none.ID, all.ID)
	}
}

func TestCookiePath(t *testing.T) {
	for _, tt := range []struct {
		name, path, entry string
		exits             []string
		scope             Scope
		want              string
	}{
		{"exits below the entry", "/banking/", "/banking/", []string{"/banking/logout", "/banking/done/"}, ScopePath, "/banking"},
		{"entry of the route", "/banking/*", "", []string{"/banking/*/logout*"}, ScopePath, "/banking"},
		{"no slash at the end of the entry", "/shop/cart/", "/shop/cart", nil, ScopePath, "/shop/cart"},
		{"star without a slash", "/shop/cart*", "/shop/cart", nil, ScopePath, "/shop"},
		{"star without a slash, at the root", "/cart*", "", nil, ScopePath, "/"},
		{"row 37 exit outside", "/banking/", "/banking/", []string{"/banking/logout", "/bye"}, ScopePath, "/"},
		{"exit that begins alike", "/banking/", "/banking/", []string{"/bankingfoo"}, ScopePath, "/"},
		{"exit with a star, below", "/banking/", "/banking/", []string{"/banking/out*"}, ScopePath, "/banking"},
		{"exit with a star, outside", "/banking/", "/banking/", []string{"/bye*"}, ScopePath, "/"},
		{"row 7 scope of the site", "/banking/", "/banking/", nil, ScopeSite, "/"},
		{"whole site", "/", "/", []string{"/bye"}, ScopePath, "/"},
		{"entry with a semicolon", "/a;b/", "", nil, ScopePath, "/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, err := NewTable([]Rule{{Path: tt.path, Stateful: &Stateful{Name: "s", Entry: tt.entry, Exit: tt.exits, Scope: tt.scope}}})
			if err != nil {
				t.Fatal(err)
			}
			s, _ := table.Stateful("a.example", strings.TrimSuffix(tt.path, "*"))
			if s == nil || s.CookiePath() != tt.want {
				t.Errorf("%+v: want cookies for %s", s, tt.want)
			}
		})
	}
}

func TestSiteWide(t *testing.T) {
	wide := func(name string) *Stateful { return &Stateful{Name: name, Scope: ScopeSite} }
	both := wide("both")
	table, err := NewTable([]Rule{
		{Path: "/any/", Stateful: wide("any")},
		{Host: "a.example", Path: "/own/", Stateful: wide("own")},
		{Host: "a.example", Path: "/path/", Stateful: &Stateful{Name: "path"}},
		{Host: "b.example", Path: "/both/", Stateful: both},
		{Host: "b.example", Path: "/both/more/", Stateful: &Stateful{Name: "more"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"a.example": "own any", "b.example": "both any", "c.example": "any"} {
		var got []string
		for _, s := range table.SiteWide(host) {
			got = append(got, s.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("SiteWide(%s) = %q, want %s", host, got, want)
		}
	}
}

func TestScopeHasNames(t *testing.T) {
	for _, s := range []Scope{ScopePath, ScopeSite} {
		var got Scope
		text, _ := s.MarshalText()
		if err := got.UnmarshalText(text); err != nil || got != s {
			t.Errorf("%q reads as %v, %v", text, got, err)
		}
	}
	if err := new(Scope).UnmarshalText([]byte("host")); err == nil {
		t.Error("host is a scope")
	}
}

// TestMatchAgreesWithNaiveTwin compares with the rule as one would say it aloud.
func TestMatchAgreesWithNaiveTwin(t *testing.T) {
	paths := []string{"/", "/a", "/a/", "/a/b", "/a/b*", "/ab/", "/a*", "/b/a/c", "/b/*", "/b/a/*"}
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
		for _, path := range append(paths, "/a/b/c", "/a/bc/d", "/abc", "/ab", "/b", "/b/a", "/b/a/c/") {
			want := -1
			for i, r := range rules {
				if newPattern(r.Path).covers(path) && (r.Host == "" || r.Host == "h.example") &&
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

// rank is the length of the pattern without its star, or most for an exact match.
func rank(pattern, path string) int {
	text, star := strings.CutSuffix(pattern, "*")
	if !star && !strings.HasSuffix(pattern, "/") && pattern == path {
		return 1 << 20
	}
	return len(text)
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
		{"row 31 dot segments, encoded", "/banking/%2e%2e/public", "", balancing.Outside},
		{"row 32 repeated slash", "/banking//x", "bank", balancing.Interior},
		{"row 32 dot segment", "/banking/./x", "bank", balancing.Interior},
		{"row 34 upper case", "/Banking/x", "", balancing.Outside},
		{"row 34 longer name", "/bankingx", "", balancing.Outside},
		{"row 35 query", "/banking?x=1", "bank", balancing.Entry},
		{"row 36 longest rule", "/shop/cart/1", "cart", balancing.Interior},
		{"row 37 exit outside", "/bye", "bank", balancing.Exit},
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
		{"star without a slash: entry", "/media", "media", balancing.Entry},
		{"star without a slash: entry with one", "/media/", "media", balancing.Entry},
		{"star without a slash: below", "/media/x", "media", balancing.Interior},
		{"star without a slash: what begins alike", "/medial", "media", balancing.Interior},
		{"star in an exit", "/media/ended/x", "media", balancing.Exit},
		{"longer star without a pin", "/mediations", "", balancing.Outside},
	}
	for _, tt := range tests {
		t.Run(tt.row, func(t *testing.T) {
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
				t.Errorf("Stateful(%q) = %q, %d; want %q, %d", path, got, position, tt.want, tt.position)
			}
		})
	}
	t.Run("row 33 encoded slash", func(t *testing.T) {
		if _, _, err := Canonical("/banking%2Fx"); err != encodedSlash {
			t.Errorf("Canonical(/banking%%2Fx) = %v, want %v", err, encodedSlash)
		}
	})
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
	table, err := NewTable([]Rule{{Path: "/", Stateful: &Stateful{Name: "all", Entry: "/", Exit: []string{"/bye"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]balancing.Position{"/": balancing.Entry, "/x": balancing.Interior, "/bye": balancing.Exit} {
		if _, got := table.Stateful("a.example", path); got != want {
			t.Errorf("Stateful(%q) = %d, want %d", path, got, want)
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
		{Path: "/star*", Index: 3},
		{Path: "/star*", Index: 4},
		{Path: "/tree/", Index: 5},
		{Path: "/tree/*", Index: 6},
		{Path: "/a/../b*"},
		{Path: "*"},
		{Path: "/x", NoURI: true},
		{NoURI: true, Stateful: bank()},
		{NoURI: true, Index: 7},
		{Path: "/", NoURI: true, Index: 8},
		{Path: "/wild/", Stateful: &Stateful{Name: "wild", Exit: []string{"/wil*"}}},
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
		"route /star*: the path is taken by the route with index 3, this one has index 4",
		"route /tree/*: the path is taken by the route with index 5, this one has index 6",
		`path "/a/../b*": write it as "/b*"`,
		`route *: path "*": request target: not a path`,
		`route /x (no URI): path "/x": the lack of a URI has no path but /`,
		"the lack of a URI cannot be stateful",
		"route / (no URI): the path is taken by the route with index 7, this one has index 8",
		"exit /wil* takes in the entry /wild/",
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
