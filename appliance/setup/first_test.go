package setup

import (
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"peerage/appliance/site"
)

func first(dir string) First {
	return First{
		Place: Place{"eth0", netip.MustParseAddr("192.0.2.1")},
		Site:  "example.com", Name: "n1", Hosts: []string{"www.example.com"}, Ports: UsualPorts,
		NodePath: filepath.Join(dir, "etc", "node.yaml"), DataDir: filepath.Join(dir, "data"),
	}
}

// TestFilesReadBackAsWhatWasWanted: whatever the names are, they survive YAML.
func TestFilesReadBackAsWhatWasWanted(t *testing.T) {
	addr := netip.MustParseAddr
	for name, change := range map[string]func(*First){
		"least":            func(*First) {},
		"words of YAML":    func(n *First) { n.Site, n.Name, n.Interface = "true", "y", "on" },
		"numbers":          func(n *First) { n.Site, n.Name, n.Interface = "1.0", "12", "0x1f" },
		"path with spaces": func(n *First) { n.DataDir = "/srv/it's \"here\": #1\\ [a]" },
		"path not ASCII":   func(n *First) { n.DataDir = "/srv/größe/🙂" },
		"IPv6": func(n *First) {
			n.Address, n.VIPs = addr("2001:db8::"), []netip.Addr{addr("2001:db8::11"), addr("192.0.2.11")}
		},
		"zone":   func(n *First) { n.VIPs, n.Zone = []netip.Addr{addr("192.0.2.11")}, "example.com" },
		"static": func(n *First) { n.Static = "/srv/www" },
		"everything": func(n *First) {
			n.Hosts = []string{"www.example.com", "shop.example.com", "www.example.org"}
			n.Servers = []string{"http://10.0.0.21:8080", "https://[fd00::1]:8443"}
			n.VIPs, n.Zone, n.Ports = []netip.Addr{addr("192.0.2.11"), addr("192.0.2.12")}, "example.com", HighPorts
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := first(t.TempDir())
			change(&n)
			f, err := n.Files()
			if err != nil {
				t.Fatal(err)
			}
			nf, err := site.ParseNode(n.NodePath, []byte(f.Node))
			if err != nil {
				t.Fatalf("%v\n%s", err, f.Node)
			}
			if string(nf.Name) != n.Name || nf.DataDir != n.DataDir || nf.Interfaces.Public != n.Interface || nf.Address.Public != n.Address {
				t.Errorf("node file: %+v, want %+v", nf, n)
			}
			if nf.SiteFile != n.SitePath() || nf.SiteKeyFile != n.KeyPath() || nf.Listen.HTTPS != n.Ports.HTTPS || nf.Listen.DNS != n.Ports.DNS || nf.Listen.HTTP != n.Ports.HTTP {
				t.Errorf("node file: %+v, want %+v", nf, n)
			}
			if nf.Multicast.Group.Is4() != n.Address.Is4() {
				t.Errorf("reports of %s to the group %s", n.Address, nf.Multicast.Group)
			}
			doc, err := site.ParseDocument(n.SitePath(), []byte(f.Document))
			if err != nil {
				t.Fatalf("%v\n%s", err, f.Document)
			}
			node, ok := doc.Nodes[nf.Name]
			if !ok || len(doc.Nodes) != 1 || node.Address != n.Address || !slices.Equal(node.VIPs, n.VIPs) || doc.Site != n.Site || !slices.Equal(doc.Hosts, n.Hosts) {
				t.Errorf("document: %+v, want %+v", doc, n)
			}
			if (doc.DNS != nil) != (n.Zone != "") || doc.DNS != nil && doc.DNS.Zone != n.Zone {
				t.Errorf("zone %+v, want %q", doc.DNS, n.Zone)
			}
			if !slices.Equal(doc.Backends["app"].Servers, n.Servers) || len(doc.Routes) != 1 {
				t.Errorf("back-ends %v, want %v", doc.Backends, n.Servers)
			}
			if s := doc.Routes[0].Static; (s != nil) != (len(n.Servers) == 0) || s != nil && s.Dir != n.Pages() {
				t.Errorf("files %v, want %q", s, n.Pages())
			}
		})
	}
}

// example is a line that is commented out; prose has more than one word before a colon.
var example = regexp.MustCompile(`(?m)^( *)# ( *(?:- )?[a-z0-9_]+:.*| +(?:@|mail) .*)$`)

// TestTheExamplesInTheFilesAreGood uncomments what an operator is invited to.
func TestTheExamplesInTheFilesAreGood(t *testing.T) {
	n := first(t.TempDir())
	f, err := n.Files()
	if err != nil {
		t.Fatal(err)
	}
	text := example.ReplaceAllString(f.Document, "$1$2")
	doc, err := site.ParseDocument(n.SitePath(), []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(doc.Nodes) != 2 || len(doc.Routes) != 3 || doc.Backends["app"].Health == nil || doc.DNS == nil || !strings.Contains(doc.DNS.Records, "MX") || doc.Routes[2].Stateful == nil {
		t.Errorf("not all examples were taken in: %+v\n%s", doc, text)
	}
}

func TestFilesRefusesASiteThatNoCACanBear(t *testing.T) {
	n := first(t.TempDir())
	n.Site = strings.Repeat("x", 46)
	if _, err := n.Files(); err == nil || !strings.Contains(err.Error(), "1 to 45 octets") {
		t.Errorf("error %v, want the bounds", err)
	}
}
