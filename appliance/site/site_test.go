package site

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/balancing/meter"
	"peerage/edge/route"
	"peerage/takeover"
)

var update = flag.Bool("update", false, "write what is wrong with the files in testdata/bad anew")

// equal says what differs between two documents, but for where they were read from.
func equal(a, b any) string {
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(Document{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}))
}

const wantSuffix = " wants"

// TestProblems parses the files in testdata/bad. Each is followed by what is wrong
// with it.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		wants := map[string]string{}
		var inputs []txtar.File
		for _, f := range a.Files {
			if name, ok := strings.CutSuffix(f.Name, wantSuffix); ok {
				wants[name] = string(f.Data)
			} else {
				inputs = append(inputs, f)
			}
		}
		a.Files = nil
		for _, f := range inputs {
			t.Run(filepath.Base(file)+"/"+f.Name, func(t *testing.T) {
				err := parseBad(file, f.Data)
				if _, ok := errors.AsType[Problems](err); !ok {
					t.Fatalf("got %v, want problems", err)
				}
				got := err.Error() + "\n"
				if !*update && got != wants[f.Name] {
					t.Errorf("-want +got (-update writes it):\n%s", cmp.Diff(wants[f.Name], got))
				}
				a.Files = append(a.Files, f, txtar.File{Name: f.Name + wantSuffix, Data: []byte(got)})
			})
		}
		if *update && !t.Failed() {
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func parseBad(file string, text []byte) error {
	if filepath.Base(file) == "nodefile.txtar" {
		_, err := ParseNode("node.yaml", text)
		return err
	}
	_, err := ParseDocument("site.yaml", text)
	return err
}

func TestDocumentIsWhatWasWritten(t *testing.T) {
	got, err := LoadDocument("testdata/good/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	want := &Document{
		Site:      "example",
		Hosts:     []string{"www.example.com", "shop.example.com"},
		NodeNames: "{node}.{host}",
		Nodes: map[balancing.NodeID]Node{
			"n1": {Address: addr("192.0.2.1"), Internal: addr("10.0.0.1"), VIPs: []netip.Addr{addr("192.0.2.11"), addr("2001:db8::11")}, Capacity: 1},
			"n2": {Address: addr("192.0.2.2"), VIPs: []netip.Addr{addr("192.0.2.12"), addr("2001:db8::12")}, Capacity: 1},
			"n3": {Address: addr("192.0.2.3"), VIPs: []netip.Addr{addr("192.0.2.13")}, Capacity: 2.5},
		},
		Balancing: Balancing{
			Period: 500 * time.Millisecond, Light: 50, Margin: 20, Rule: balancing.Damped, Choice: balancing.Headroom,
			Below: 40, Measure: meter.Weighted, Full: 400, Move: balancing.MoveQuiet, Bursts: true,
			Exchange: heartbeat.Multicast, Channel: InternalChannel, OfflineAfter: 3,
		},
		Takeover: Takeover{Enabled: true, HoldDown: 5 * time.Second, Partition: takeover.Majority, Witness: []netip.Addr{addr("192.0.2.254")}},
		Routes: []Route{
			{Path: "/static/", Static: &Static{Dir: "/srv/www", Index: "home.html", Listing: true, Precompressed: true}},
			{Path: "/banking/", Backend: "bank", Stateful: &Stateful{
				Entry: "/banking/", Exit: []string{"/banking/logout", "/goodbye/"}, OnOwnerLoss: balancing.Restart,
				Idle: 30 * time.Minute, MaxLife: 8 * time.Hour,
			}},
			{Path: "/securities/", Nodes: []balancing.NodeID{"n2", "n3"}, WhenDown: Refuse, Backend: "app"},
			{Host: "shop.example.com", Path: "/", Backend: "bank", Move: new(balancing.MoveNone)},
			{Path: "none", Backend: "app", Nodes: []balancing.NodeID{"n1"}},
			{Path: "/shop/cart*", Backend: "bank", Stateful: &Stateful{
				Exit: []string{"/shop/cart-paid*"}, Scope: route.ScopeSite, EntryKeepsPin: true, MaxLife: 12 * time.Hour,
			}},
			{Path: "/", Backend: "app"},
		},
		Backends: map[string]Backend{
			"app": {
				Servers: []string{"http://10.0.0.21:8080", "https://app.internal:8443", "http://[2001:db8::21]"},
				Health:  &Health{Path: "/healthz", Every: 2 * time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3},
			},
			"bank": {ByNode: map[balancing.NodeID][]string{
				"n1": {"http://127.0.0.1:8080"}, "n2": {"http://127.0.0.1:8080"}, "n3": {"http://127.0.0.1:8080", "http://127.0.0.1:8081"},
			}},
		},
		DNS: &DNS{
			Zone: "example.com", TTL: 20 * time.Second, Serial: 2026010101,
			Records: "@    MX   10 mail\nmail A    192.0.2.25\n\n; a comment\ntext TXT  \"a; b\" # not a comment of YAML\n",
		},
		Proxies: Proxies{
			Trusted:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8:9::/48")},
			Redirect: true, Protocol: true,
		},
		Limits: Limits{Requests: 5000},
		Drain:  Drain{Grace: 10 * time.Second},
		Logs:   Logs{Access: "-"},
	}
	if d := equal(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if ids := got.NodeIDs(); !slices.Equal(ids, []balancing.NodeID{"n1", "n2", "n3"}) {
		t.Errorf("NodeIDs() = %v", ids)
	}
	if name := got.NodeName("n2", "shop.example.com"); name != "n2.shop.example.com" {
		t.Errorf("NodeName() = %s", name)
	}
}

// TestDefaults has the defaults that the manual promises.
func TestDefaults(t *testing.T) {
	got, err := LoadDocument("testdata/good/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &Document{
		Site:      "small",
		Hosts:     []string{"www.example.com"},
		NodeNames: "{node}.{host}",
		Nodes:     map[balancing.NodeID]Node{"n1": {VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.11")}, Capacity: 1}},
		Balancing: Balancing{Period: 500 * time.Millisecond, Light: 50, Margin: 20, Below: 50, Full: 200, OfflineAfter: 2},
		Limits:    Limits{Requests: 20000},
		Takeover:  Takeover{Enabled: true, HoldDown: 5 * time.Second},
		Routes:    []Route{{Path: "/", Static: &Static{Dir: "/srv/www", Index: "index.html"}}},
		Drain:     Drain{Grace: 30 * time.Second},
		Logs:      Logs{Access: "access.log"},
	}
	if d := equal(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if p, b := balancing.DefaultPolicy, got.Balancing; p != (balancing.Policy{Light: b.Light, Margin: b.Margin, Below: b.Below, Rule: b.Rule, Choice: b.Choice}) {
		t.Errorf("defaults %+v are not those of package balancing, %+v", b, p)
	}
}

func TestDocumentPrintsItself(t *testing.T) {
	for _, file := range []string{"testdata/good/full.yaml", "testdata/good/small.yaml"} {
		doc, err := LoadDocument(file)
		if err != nil {
			t.Fatal(err)
		}
		text := doc.String()
		again, err := ParseDocument("printed", []byte(text))
		if err != nil {
			t.Fatalf("%s printed:\n%s\n%v", file, text, err)
		}
		if d := equal(doc, again); d != "" {
			t.Errorf("%s reads back different:\n%s", file, d)
		}
		if again.String() != text {
			t.Errorf("%s prints different the second time", file)
		}
	}
	doc, err := LoadDocument("testdata/good/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/good/small.printed")
	if *update {
		want = []byte(doc.String())
		err = os.WriteFile("testdata/good/small.printed", want, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), doc.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestDemo parses the demo's document: it is the first one that users see.
func TestDemo(t *testing.T) {
	tmpl, err := template.ParseFiles("../demo/site.yaml.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	type node struct{ Name, Address, VIP, Bank string }
	data := struct {
		Host, Zone, Static string
		Nodes              []node
	}{"www.peerage.test", "peerage.test", "/srv/a demo/static", []node{
		{"n1", "127.0.0.11", "127.0.0.21", "http://127.0.0.11:9001"},
		{"n2", "127.0.0.12", "127.0.0.22", "http://127.0.0.12:9001"},
	}}
	var text bytes.Buffer
	if err := tmpl.Execute(&text, data); err != nil {
		t.Fatal(err)
	}
	doc, err := ParseDocument("site.yaml", text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if doc.Balancing.Rule != balancing.Patent || len(doc.Nodes) != 2 || doc.Routes[0].Static.Dir != data.Static {
		t.Errorf("got %+v", doc)
	}
}

func TestNodeFile(t *testing.T) {
	a, b := netip.MustParseAddr("127.0.0.11"), netip.MustParseAddr("10.0.0.1")
	group := netip.MustParseAddr("239.255.79.47")
	for _, c := range []struct {
		name, text string
		want       NodeFile
	}{
		{"defaults", "name: n1\ninterfaces: {public: lo}\naddress: 127.0.0.11\n", NodeFile{
			Name: "n1", DataDir: "/var/lib/peerage", Interfaces: Interfaces{"lo", "lo"}, Address: Addresses{a, a},
			Listen: Listen{80, 443, 53, 7946, 7947, 7948}, Multicast: Multicast{group},
			SiteKeyFile: "/var/lib/peerage/site.key", SiteFile: "/var/lib/peerage/site.yaml",
		}},
		{"all keys", `name: n2
data_dir: "/srv/n2"
interfaces: {public: eth0, internal: eth1}
address: {public: 127.0.0.11, internal: 10.0.0.1}
listen: {http: 8080, https: 8443, dns: 8053, reports: 1947, relay: 1948}
multicast: {group: ff18::4f2f}
site_key_file: /etc/peerage/site.key
site_file: conf/site.yaml
user: www
`, NodeFile{
			Name: "n2", DataDir: "/srv/n2", Interfaces: Interfaces{"eth0", "eth1"}, Address: Addresses{a, b},
			Listen: Listen{8080, 8443, 8053, 7946, 1947, 1948}, Multicast: Multicast{netip.MustParseAddr("ff18::4f2f")},
			SiteKeyFile: "/etc/peerage/site.key", SiteFile: "/srv/n2/conf/site.yaml", User: "www",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseNode("node.yaml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if d := equal(c.want, *got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.yaml")
	if _, err := LoadNode(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoadNode of no file: %v", err)
	}
	if _, err := LoadDocument(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoadDocument of no file: %v", err)
	}
}

// TestUnreadable has what a txtar file cannot hold.
func TestUnreadable(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"not UTF-8", "site: é\nhosts: [\xff]\n", "f:2:9: not UTF-8; save the file in that encoding"},
		{"UTF-16", "\xff\xfes\x00i\x00", "f:1:1: not UTF-8; save the file in that encoding"},
		{"control character", "site: a\x00b\n", "f:1:8: a control character; remove it, or write it as an escape between double quotes"},
		{"too many values", "a: [" + strings.Repeat("x,", maxSeparators) + "]", "f:1:1: more than 500000 lines, commas and opening brackets; make it shorter"},
		{"too long", strings.Repeat("#\n", MaxNodeFile/2) + "#", "f:1:1: the file is longer than 1048576 octets; make it shorter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseNode("f", []byte(c.text)); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestProblemsAreBounded(t *testing.T) {
	text := "backends:\n" + strings.Repeat("  \"\": {}\n", 2*maxProblems)
	_, err := ParseDocument("f", []byte(text))
	ps, _ := errors.AsType[Problems](err)
	if len(ps) != maxProblems+1 || !strings.Contains(ps[maxProblems].Text, "more problems") {
		t.Errorf("%d problems, the last is %v", len(ps), ps[len(ps)-1])
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"light", "margin", "vips", "exit"}
	for word, want := range map[string]string{
		"vip": "did you mean 'vips'?", "ligth": "did you mean 'light'?", "Margin": "did you mean 'margin'?", "exist": "did you mean 'exit'?",
		"x": "the keys are light, margin, vips, exit", "balance": "the keys are light, margin, vips, exit", "": "the keys are light, margin, vips, exit",
	} {
		if got := suggest(word, "keys", known); got != want {
			t.Errorf("suggest(%q) = %s, want %s", word, got, want)
		}
	}
	if got, want := suggest("x", "keys", nil), "there are no keys"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 500 * time.Millisecond: "500ms", 20 * time.Second: "20s", 10 * time.Minute: "10m",
		12 * time.Hour: "12h", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h0m1s", 10*time.Hour + 10*time.Second: "10h0m10s",
	} {
		if got := durationText(d); got != want {
			t.Errorf("%d ns: got %s, want %s", d, got, want)
		}
	}
}
