package zone

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"

	"peerage/balancing"
)

var update = flag.Bool("update", false, "write the replies in testdata anew")

// TestLookup asks the questions in testdata: each file there holds a zone and, by
// question, the replies.
func TestLookup(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		z, err := New(Config{
			Origin: "example.test", Nodes: []balancing.NodeID{"n1"}, Serial: 7, Records: string(a.Files[0].Data), File: file,
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range a.Files[1:] {
			f := &a.Files[i+1]
			t.Run(f.Name, func(t *testing.T) {
				name, typ, _ := strings.Cut(f.Name, " ")
				qtype, ok := dns.StringToType[typ]
				if !ok {
					fmt.Sscanf(typ, "TYPE%d", &qtype)
				}
				got := replyText(z.Answer(&balancing.View{}, Question{name, qtype, dns.ClassINET}, 0))
				if *update {
					f.Data = []byte(got)
				} else if got != string(f.Data) {
					t.Errorf("%s:\n%s", f.Name, cmp.Diff(string(f.Data), got))
				}
			})
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// replyText is a line of rcode and AA, and a line a record.
func replyText(r Reply) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[r.Rcode])
	if r.AA {
		b.WriteString(" aa")
	}
	b.WriteString("\n")
	for _, s := range []struct {
		name string
		rrs  []dns.RR
	}{{"answer", r.Answer}, {"authority", r.Authority}, {"additional", r.Additional}} {
		for _, rr := range s.rrs {
			fmt.Fprintf(&b, "%s: %s\n", s.name, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return b.String()
}

func ips(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var (
	n1v4, n1v6 = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	n2v4, n2v6 = netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("2001:db8::12")
	n3v4       = netip.MustParseAddr("192.0.2.13")
)

// siteView is a site of three nodes that are well and hold what is theirs. n3 has no
// VIP of version 6.
func siteView(change func(n1, n2, n3 *balancing.Node)) *balancing.View {
	v := &balancing.View{Self: "n1", Settings: balancing.Settings{Policy: balancing.DefaultPolicy}}
	for i, home := range [][]netip.Addr{{n1v4, n1v6}, {n2v4, n2v6}, {n3v4}} {
		v.Nodes = append(v.Nodes, balancing.Node{
			ID: balancing.NodeID(fmt.Sprintf("n%d", i+1)), Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)),
			Home: home, Held: home, Online: true, State: balancing.OK,
		})
	}
	if change != nil {
		change(&v.Nodes[0], &v.Nodes[1], &v.Nodes[2])
	}
	return v
}

func siteConfig() Config {
	c := Config{
		Origin: "peerage.test", Nodes: []balancing.NodeID{"n1", "n2", "n3"}, Serial: 1,
		Hosts: []string{"www.peerage.test", "peerage.test", "www.example.com"},
	}
	for _, id := range c.Nodes {
		c.NodeNames = append(c.NodeNames, NodeName{string(id) + ".www.peerage.test", id}, NodeName{string(id) + ".peerage.test", id})
	}
	return c
}

func mustNew(t testing.TB, c Config) *Zone {
	t.Helper()
	z, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// resolve returns the addresses of name in the order of the answer.
func resolve(t *testing.T, z *Zone, v *balancing.View, name string, qtype uint16, turn uint32) (out []netip.Addr) {
	t.Helper()
	r := z.Answer(v, Question{name, qtype, dns.ClassINET}, turn)
	if r.Rcode != dns.RcodeSuccess || !r.AA {
		t.Errorf("%s %s: rcode %d, AA %v", name, dns.Type(qtype), r.Rcode, r.AA)
	}
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A)
			out = append(out, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			out = append(out, a)
		}
	}
	return out
}

func TestSiteAddressesFollowTheView(t *testing.T) {
	z := mustNew(t, siteConfig())
	const host = "www.peerage.test."
	type want struct {
		name   string
		qtype  uint16
		expect []netip.Addr
	}
	a, aaaa := uint16(dns.TypeA), uint16(dns.TypeAAAA)
	for _, c := range []struct {
		name   string
		change func(n1, n2, n3 *balancing.Node)
		want   []want
	}{
		{"all well", nil, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}},
			{"peerage.test.", a, []netip.Addr{n1v4, n2v4, n3v4}},
			{"n2.www.peerage.test.", a, []netip.Addr{n2v4}},
			{"n3.www.peerage.test.", aaaa, nil},
			{"n1.peerage.test.", aaaa, []netip.Addr{n1v6}},
			{"n3.peerage.test.", a, []netip.Addr{n3v4}},
			{"n3.peerage.test.", aaaa, ips("2001:db8:1::3")}, // a name server needs one
		}},
		{"n2 dead, a stand-in holds its addresses", func(n1, n2, n3 *balancing.Node) {
			n2.Online = false
			n3.Held = []netip.Addr{n3v4, n2v4, n2v6}
		}, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}},
			{"n2.www.peerage.test.", a, []netip.Addr{n2v4}},
		}},
		{"n2 dead, nobody holds its addresses", func(n1, n2, n3 *balancing.Node) { n2.Online = false }, []want{
			{host, a, []netip.Addr{n1v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6}},
			{"n2.www.peerage.test.", a, []netip.Addr{n2v4}},
		}},
		{"n2 holds one of its two addresses", func(n1, n2, n3 *balancing.Node) { n2.Held = []netip.Addr{n2v6} }, []want{
			{host, a, []netip.Addr{n1v4, n3v4}},
			{"n2.www.peerage.test.", a, []netip.Addr{n2v4}}, // an answer without an address would be cached
			{"n2.www.peerage.test.", aaaa, []netip.Addr{n2v6}},
		}},
		{"no address of version 6 is held for an instant", func(n1, n2, n3 *balancing.Node) {
			n1.Held, n2.Held = []netip.Addr{n1v4}, []netip.Addr{n2v4}
		}, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}},
		}},
		{"n1 drains", func(n1, n2, n3 *balancing.Node) { n1.State = balancing.Draining }, []want{
			{host, a, []netip.Addr{n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n2v6}},
			{"n1.www.peerage.test.", a, []netip.Addr{n1v4}},
		}},
		{"n1 and n2 are sick: the only addresses of version 6 stay", func(n1, n2, n3 *balancing.Node) {
			n1.State, n2.State = balancing.Sick, balancing.Sick
		}, []want{
			{host, a, []netip.Addr{n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}},
		}},
		{"n1 is overloaded", func(n1, n2, n3 *balancing.Node) { n1.Load, n2.Load = 90, 40 }, []want{
			{host, a, []netip.Addr{n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}}, // two at least
			{"n1.www.peerage.test.", a, []netip.Addr{n1v4}},
		}},
		{"n1 is above the mean, but not above L1", func(n1, n2, n3 *balancing.Node) { n1.Load = 50 }, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
		}},
		{"all are above L1 alike", func(n1, n2, n3 *balancing.Node) { n1.Load, n2.Load, n3.Load = 90, 90, 90 }, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
		}},
		{"two of three are overloaded: two addresses at least", func(n1, n2, n3 *balancing.Node) { n1.Load, n2.Load = 90, 95 }, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
		}},
		{"n2 dead, and its stand-in is overloaded", func(n1, n2, n3 *balancing.Node) {
			n2.Online, n3.Load, n3.Held = false, 90, []netip.Addr{n3v4, n2v4, n2v6}
		}, []want{{host, a, []netip.Addr{n1v4, n2v4, n3v4}}}},
		{"all drain", func(n1, n2, n3 *balancing.Node) {
			n1.State, n2.State, n3.State = balancing.Draining, balancing.Draining, balancing.Draining
		}, []want{{host, a, []netip.Addr{n1v4, n2v4, n3v4}}}},
		{"start-up: nothing is held yet", func(n1, n2, n3 *balancing.Node) {
			for _, n := range []*balancing.Node{n1, n2, n3} {
				n.Held, n.State, n.Online = nil, 0, false
			}
		}, []want{
			{host, a, []netip.Addr{n1v4, n2v4, n3v4}},
			{host, aaaa, []netip.Addr{n1v6, n2v6}},
			{"n1.www.peerage.test.", a, []netip.Addr{n1v4}},
		}},
		{"a report claims an address that is no VIP of the site", func(n1, n2, n3 *balancing.Node) {
			n1.Held = append(ips("198.51.100.66"), n1.Held...)
		}, []want{{host, a, []netip.Addr{n1v4, n2v4, n3v4}}}},
		{"a node without VIPs is reached at its own address", func(n1, n2, n3 *balancing.Node) {
			n3.Home, n3.Held, n3.Address = nil, nil, netip.MustParseAddr("192.0.2.3")
		}, []want{
			{host, a, []netip.Addr{n1v4, n2v4}},
			{"n3.www.peerage.test.", a, ips("192.0.2.3")},
			{"n3.peerage.test.", a, ips("192.0.2.3")},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := siteView(c.change)
			for _, w := range c.want {
				got := resolve(t, z, v, w.name, w.qtype, 0)
				if !slices.Equal(got, w.expect) {
					t.Errorf("%s %s: got %v, want %v", w.name, dns.Type(w.qtype), got, w.expect)
				}
			}
		})
	}
}

func TestAddressesTurn(t *testing.T) {
	c := siteConfig()
	c.Records = "mail A 192.0.2.1\nmail A 192.0.2.2\nmail A 192.0.2.3\n"
	z, v := mustNew(t, c), siteView(nil)
	for _, name := range []string{"www.peerage.test.", "mail.peerage.test."} {
		whole := resolve(t, z, v, name, dns.TypeA, 0)
		for turn := range uint32(6) {
			got := resolve(t, z, v, name, dns.TypeA, turn)
			if k := turn % 3; !slices.Equal(got, slices.Concat(whole[k:], whole[:k])) {
				t.Errorf("%s, turn %d: got %v, first was %v", name, turn, got, whole)
			}
		}
	}
}

func TestManyAddressesAreShownInParts(t *testing.T) {
	v := &balancing.View{Self: "n1"}
	n := balancing.Node{ID: "n1", Online: true, State: balancing.OK}
	for i := range 30 {
		n.Home = append(n.Home, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	n.Held = n.Home
	v.Nodes = []balancing.Node{n}
	z := mustNew(t, Config{Origin: "peerage.test", Nodes: []balancing.NodeID{"n1"}, Hosts: []string{"www.peerage.test"}})
	first := map[netip.Addr]int{}
	for turn := range uint32(30) {
		got := resolve(t, z, v, "www.peerage.test.", dns.TypeA, turn)
		if len(got) != maxAddresses {
			t.Fatalf("turn %d: got %d addresses, want %d", turn, len(got), maxAddresses)
		}
		first[got[0]]++
	}
	if len(first) != 30 {
		t.Errorf("30 turns began with %d different addresses, want 30", len(first))
	}
}

func TestReplyKeepsTheAskersLetterCase(t *testing.T) {
	z, v := mustNew(t, siteConfig()), siteView(nil)
	for _, name := range []string{"wWw.PEERAGE.tesT.", "N1.wWw.PEERAGE.tesT."} {
		r := z.Answer(v, Question{name, dns.TypeA, dns.ClassINET}, 0)
		if len(r.Answer) == 0 || r.Answer[0].Header().Name != name {
			t.Errorf("%s: got %v", name, r.Answer)
		}
	}
}

func TestOtherClassIsRefused(t *testing.T) {
	z := mustNew(t, siteConfig())
	r := z.Answer(siteView(nil), Question{"www.peerage.test.", dns.TypeA, dns.ClassCHAOS}, 0)
	if r.Rcode != dns.RcodeRefused || r.AA {
		t.Errorf("class CH: rcode %d, AA %v", r.Rcode, r.AA)
	}
}

func TestNamesOutsideTheZoneAreLeftOut(t *testing.T) {
	if got := mustNew(t, siteConfig()).Outside(); !slices.Equal(got, []string{"www.example.com"}) {
		t.Errorf("outside: got %v", got)
	}
}

// numbered repeats a line with its number in it.
func numbered(n int, line string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, line, i)
	}
	return b.String()
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		records string
		change  func(*Config)
		want    []string // lines of the error
	}{
		{name: "syntax", records: "a A 192.0.2.1\nb A 192.0.2\n", want: []string{`peerage.yaml: zone peerage.test., line 2 of its records: bad A A: "192.0.2"`}},
		{name: "include", records: "$INCLUDE /etc/passwd\n", want: []string{`line 1 of its records: $INCLUDE directive not allowed`}},
		{name: "generate", records: "a A 192.0.2.1\n$generate 1-2 a$ A 192.0.2.1\n", want: []string{`line 2 of its records: $GENERATE is not part of RFC 1035`}},
		{name: "outside", records: "\n\na.example.com. A 192.0.2.1", want: []string{"line 3 of its records: a.example.com. A: not in the zone"}},
		{name: "class", records: "a CH TXT x", want: []string{"line 1 of its records: a.peerage.test. TXT: class CH: only IN is served"}},
		{name: "no data", records: "a A\n", want: []string{"a.peerage.test. A: no data"}},
		{name: "TTL", records: "a 4294967295 A 192.0.2.1", want: []string{"TTL 4294967295: more than 2147483647"}},
		{name: "two TTLs", records: "a 60 A 192.0.2.1\na 61 A 192.0.2.2", want: []string{"line 2 of its records: a.peerage.test. A: TTL 61, but line 1 gives the same set 60"}},
		{name: "SOA", records: "@ SOA a b 1 2 3 4 5", want: []string{"the site writes the SOA by itself"}},
		{name: "NS", records: "@ NS ns.example.com.", want: []string{"the site writes the NS records of the zone by itself"}},
		{name: "signature", records: "@ NSEC a A", want: []string{"belongs to a signed zone"}},
		{name: "CNAME and other", records: "a CNAME b\na TXT x", want: []string{"line 1 of its records: a.peerage.test. CNAME: stands beside line 2's TXT; a CNAME must be alone"}},
		{name: "CNAME at the apex", records: "@ CNAME b", want: []string{"peerage.test. CNAME: stands beside the site's NS"}},
		{name: "two CNAMEs", records: "a CNAME b\na CNAME c", want: []string{"line 2 of its records: a.peerage.test. CNAME: a name can have only one"}},
		{name: "CNAME to itself", records: "a CNAME A", want: []string{"a.peerage.test. CNAME: the chain from here comes back"}},
		{name: "CNAME loop", records: "a CNAME b\nb CNAME c\nc CNAME a\nd CNAME a", want: []string{"line 1 of its records: a.peerage.test. CNAME: the chain"}},
		{name: "CNAME loop by a wildcard", records: "*.w CNAME x.w", want: []string{"*.w.peerage.test. CNAME: the chain"}},
		{name: "DNAME loop", records: "a DNAME b.a", want: []string{"a.peerage.test. DNAME: loop: its target b.a.peerage.test. is renamed again"}},
		{name: "wildcard delegation", records: "*.w NS ns.example.com.", want: []string{"*.w.peerage.test. NS: not at a wildcard"}},
		{name: "data below a delegation", records: "s NS ns.example.com.\nx.s TXT x\ns TXT x", want: []string{
			"line 2 of its records: x.s.peerage.test. TXT: lies below the delegation s.peerage.test.",
			"line 3 of its records: s.peerage.test. TXT: the name is delegated",
		}},
		{name: "data below a DNAME", records: "d DNAME example.com.\nx.d A 192.0.2.1", want: []string{"x.d.peerage.test. A: lies below the DNAME d.peerage.test."}},
		{name: "no glue", records: "s NS ns.s", want: []string{"s.peerage.test. NS: ns.s.peerage.test. has no address here"}},
		{name: "DS without delegation", records: "s DS 1 13 2 00", want: []string{"there is no delegation (NS) here"}},
		{name: "address of a host", records: "x TXT x\nwww A 192.0.2.1", want: []string{"line 2 of its records: www.peerage.test. A: the name is a host of the site, which writes its addresses"}},
		{name: "alias at a node name", records: "n1.www CNAME x", want: []string{"n1.www.peerage.test. CNAME: the name is a node name of the site"}},
		{name: "address of a name server", records: "n2 AAAA ::1", want: []string{"n2.peerage.test. AAAA: the name is a name server of the site"}},
		{name: "delegated host", records: "www NS ns.example.com.", want: []string{
			"line 1 of its records: www.peerage.test. NS: hides the node name n1.www.peerage.test. of the site",
			"line 1 of its records: www.peerage.test. NS: hides the host www.peerage.test. of the site",
		}},
		{name: "several", records: "a.example.com. A 192.0.2.1\nb.example.com. A 192.0.2.1\nc A x", want: []string{"line 1", "line 2", "line 3"}},
		{name: "very many", records: strings.Repeat("a.example.com. A 192.0.2.1\n", 100), want: []string{"line 20 ", "1 more"}},
		{name: "too many records", records: numbered(100_001, "a%d A 192.0.2.1\n"), want: []string{"line 100001 of its records: more than 100000 records"}},
		{name: "set too long", records: numbered(1001, "a TXT %d\n"), want: []string{"a.peerage.test. TXT: more than 1000 records"}},
		{name: "set too large", records: numbered(1000, "a TXT %d-"+strings.Repeat("x", 100)+"\n"), want: []string{"the set does not fit a message"}},
		{name: "origin", change: func(c *Config) { c.Origin = "a..b" }, want: []string{`zone "a..b": not a domain name`}},
		{name: "TTL of the site", change: func(c *Config) { c.TTL = 1 }, want: []string{"TTL 1ns: not a number of whole seconds"}},
		{name: "no nodes", change: func(c *Config) { c.Nodes = nil }, want: []string{"no nodes"}},
		{name: "host", change: func(c *Config) { c.Hosts = []string{"a..b"} }, want: []string{`host "a..b": not a domain name`}},
		{name: "host of a name server's name", change: func(c *Config) { c.Hosts = []string{"n1.peerage.test"} }, want: []string{"n1.peerage.test. is a name server and a host"}},
		{name: "foreign node", change: func(c *Config) { c.NodeNames = []NodeName{{"n9.peerage.test", "n9"}} }, want: []string{`node name "n9.peerage.test": no node "n9"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := siteConfig()
			conf.Records, conf.File = c.records, "peerage.yaml"
			if c.change != nil {
				c.change(&conf)
			}
			_, err := New(conf)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestRecordsGivenTwiceAreOne(t *testing.T) {
	z := mustNew(t, Config{Origin: "peerage.test", Nodes: []balancing.NodeID{"n1"}, Records: "a A 192.0.2.1\nA A 192.0.2.1\n"})
	if got := resolve(t, z, &balancing.View{}, "a.peerage.test.", dns.TypeA, 0); len(got) != 1 {
		t.Errorf("got %v, want one address", got)
	}
}

// TestNamesWithEscapesAreFound covers a dot inside a label, and two spellings of one octet.
func TestNamesWithEscapesAreFound(t *testing.T) {
	z := mustNew(t, Config{Origin: "peerage.test", Nodes: []balancing.NodeID{"n1"}, Records: `a\.b A 192.0.2.1` + "\n" + `\099 A 192.0.2.2` + "\n"})
	for _, name := range []string{`a\.b.peerage.test.`, `c.peerage.test.`} {
		if got := resolve(t, z, &balancing.View{}, name, dns.TypeA, 0); len(got) != 1 {
			t.Errorf("%s: got %v, want one address", name, got)
		}
	}
	if z.contains(`x\.peerage.test.`) {
		t.Error(`x\.peerage.test. counts as a name of the zone`)
	}
}

// FuzzParse: any text either is refused with an error or gives a zone whose every name
// answers, in messages that can be packed.
func FuzzParse(f *testing.F) {
	a, err := txtar.ParseFile("testdata/lookup.txtar")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(a.Files[0].Data))
	for _, s := range []string{
		"$GENERATE 1-3 a$ A 192.0.2.$\n", "$ORIGIN x\n$TTL 5\na A 1.2.3.4", "a TXT (\n\"x\"\n)\n", `a TYPE1 \# 4 01020304`,
		"a SVCB 1 . key65000=x ipv4hint=1.2.3.4\n", "a LOC 51 30 12.748 N 0 7 39.611 W 0m", `\000.a CNAME \255`, "* CNAME *.*",
		"a CAA 0 issue \"x\"\na NAPTR 1 1 \"\" \"\" \"\" .\na APL 1:0.0.0.0/0",
	} {
		f.Add(s)
	}
	v := siteView(nil)
	f.Fuzz(func(t *testing.T, text string) {
		z, err := New(Config{Origin: "peerage.test", Nodes: []balancing.NodeID{"n1"}, Hosts: []string{"www.peerage.test"}, Records: text})
		if err != nil {
			return
		}
		for name, n := range z.nodes {
			types := []uint16{dns.TypeA, dns.TypeANY, dns.TypeDS}
			for _, s := range n.sets {
				types = append(types, s.rtype)
			}
			for _, qtype := range types {
				r := z.Answer(v, Question{name, qtype, dns.ClassINET}, 1)
				m := dns.Msg{Answer: r.Answer, Ns: r.Authority, Extra: r.Additional, Compress: true}
				wire, err := m.Pack()
				if err != nil {
					t.Fatalf("%s %s: %v", name, dns.Type(qtype), err)
				}
				if err := new(dns.Msg).Unpack(wire); err != nil {
					t.Fatalf("%s %s: %v", name, dns.Type(qtype), err)
				}
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	z, v := mustNew(b, siteConfig()), siteView(nil)
	for _, c := range []struct {
		name string
		q    Question
	}{
		{"host A", Question{"www.peerage.test.", dns.TypeA, dns.ClassINET}},
		{"node name A", Question{"n1.www.peerage.test.", dns.TypeA, dns.ClassINET}},
		{"NXDOMAIN", Question{"nothing.peerage.test.", dns.TypeA, dns.ClassINET}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			turn := uint32(0)
			for b.Loop() {
				turn++
				z.Answer(v, c.q, turn)
			}
		})
	}
}
