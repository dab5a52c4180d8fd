package site

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"peerage/balancing"
)

// NodeFile says who this node is. It is YAML, and lies on the node alone.
type NodeFile struct {
	// Name of this node, one of those below 'nodes' of the site document.
	Name balancing.NodeID `yaml:"name" required:"true" example:"n1"`

	// Directory of what the node writes, an absolute path.
	DataDir string `yaml:"data_dir" default:"/var/lib/peerage"`

	// Network interfaces of the node.
	Interfaces Interfaces `yaml:"interfaces" required:"true" example:"{public: eth0}"`

	// Host addresses of the node, which are no VIPs: one for both networks, as in
	// 'address: 192.0.2.1', or one for each, as in {public: 192.0.2.1, internal: 10.0.0.1}.
	Address Addresses `yaml:"address" required:"true" example:"192.0.2.1"`

	// Port numbers, all different. They are the same on all nodes of a site.
	Listen Listen `yaml:"listen"`

	// How reports go to many at a time.
	Multicast Multicast `yaml:"multicast"`

	// File of the site key. A path that is not absolute begins in the data directory.
	SiteKeyFile string `yaml:"site_key_file" default:"site.key"`

	// File of the site document. A path that is not absolute begins in the data directory.
	SiteFile string `yaml:"site_file" default:"site.yaml"`

	// User that the server becomes if the node is started as root; without it 'peerage', if
	// there is one.
	User string `yaml:"user" example:"peerage"`

	// Program that is run, as the user that the node was started as, with 'claim' or 'release' and the
	// address when a VIP comes to this node or leaves it: for networks where an address moves by
	// a call of their API. An absolute path.
	VIPCommand string `yaml:"vip_command" example:"/usr/local/sbin/move-vip"`

	// Device of a hardware watchdog, which resets the machine when the node has stood still for
	// 15 s, an absolute path.
	Watchdog string `yaml:"watchdog" example:"/dev/watchdog0"`
}

// Interfaces are network interfaces by name, as 'ip link' shows them.
type Interfaces struct {
	// Interface that clients come in on, and that carries the VIPs.
	Public string `yaml:"public" required:"true" example:"eth0"`

	// Interface of the back-ends. Without it the public one serves for both.
	Internal string `yaml:"internal" example:"eth1"`
}

// Addresses are host addresses.
type Addresses struct {
	// Address on the public interface.
	Public netip.Addr `yaml:"public" required:"true" example:"192.0.2.1"`

	// Address on the internal interface, where peers reach this node. Without it the public
	// one serves for both.
	Internal netip.Addr `yaml:"internal" example:"10.0.0.1"`
}

// UnmarshalText reads the short form, one address for both networks.
func (a *Addresses) UnmarshalText(text []byte) error { return a.Public.UnmarshalText(text) }

// Listen are port numbers.
type Listen struct {
	// HTTP, TCP.
	HTTP uint16 `yaml:"http" default:"80" min:"1" max:"65535"`

	// HTTPS: HTTP/1.1 and HTTP/2 over TCP, HTTP/3 over UDP.
	HTTPS uint16 `yaml:"https" default:"443" min:"1" max:"65535"`

	// DNS, UDP and TCP.
	DNS uint16 `yaml:"dns" default:"53" min:"1" max:"65535"`

	// What the nodes agree on, between them: TCP and UDP.
	Gossip uint16 `yaml:"gossip" default:"7946" min:"1" max:"65535"`

	// Reports of the peers, UDP.
	Reports uint16 `yaml:"reports" default:"7947" min:"1" max:"65535"`

	// Requests that peers carry here, and nodes that join, TCP.
	Relay uint16 `yaml:"relay" default:"7948" min:"1" max:"65535"`
}

// Multicast says how reports go to many at a time.
type Multicast struct {
	// Multicast address of the reports, the same on all nodes of a site, of the family of
	// the host address.
	Group netip.Addr `yaml:"group" default:"239.255.79.47"`
}

// derive fills in what follows from other values.
func (nf *NodeFile) derive() {
	if nf.Interfaces.Internal == "" {
		nf.Interfaces.Internal = nf.Interfaces.Public
	}
	if !nf.Address.Internal.IsValid() {
		nf.Address.Internal = nf.Address.Public
	}
	for _, file := range []*string{&nf.SiteKeyFile, &nf.SiteFile} {
		if !filepath.IsAbs(*file) {
			*file = filepath.Join(nf.DataDir, *file)
		}
	}
}

// checkNode looks for what a single value does not show.
func checkNode(r *report, nf *NodeFile) {
	if !r.failed["name"] && !nf.Name.Valid() {
		r.bad("name", "%s; %s", quote(string(nf.Name)), nodeNameRule)
	}
	if !r.failed["data_dir"] && !filepath.IsAbs(nf.DataDir) {
		r.bad("data_dir", "%s is not an absolute path; begin it with a slash", quote(nf.DataDir))
	}
	for _, f := range []struct{ path, file string }{{"site_key_file", nf.SiteKeyFile}, {"site_file", nf.SiteFile}} {
		if !r.failed[f.path] && (f.file == "" || strings.HasSuffix(f.file, "/")) {
			r.bad(f.path, "%s is not the name of a file; write it out, or leave the key out", quote(f.file))
		}
	}
	for _, f := range []struct{ path, file string }{{"vip_command", nf.VIPCommand}, {"watchdog", nf.Watchdog}} {
		if !r.failed[f.path] && f.file != "" && !filepath.IsAbs(f.file) {
			r.bad(f.path, "%s is not an absolute path; begin it with a slash", quote(f.file))
		}
	}
	for _, i := range []struct{ path, name string }{{"interfaces.public", nf.Interfaces.Public}, {"interfaces.internal", nf.Interfaces.Internal}} {
		if r.given(i.path) && !r.failed[i.path] && !isInterface(i.name) {
			r.bad(i.path, "%s is not the name of a network interface; 'ip link' shows them", quote(i.name))
		}
	}
	public := "address.public"
	if !r.given(public) {
		public = "address"
	}
	for _, a := range []struct {
		path string
		addr netip.Addr
	}{{public, nf.Address.Public}, {"address.internal", nf.Address.Internal}} {
		if why := unusable(a.addr); a.addr.IsValid() && why != "" {
			r.bad(a.path, "%s", why)
		}
	}
	if g := nf.Multicast.Group; g.IsValid() && (!g.IsMulticast() || g.Zone() != "") {
		r.bad("multicast.group", "%s is not a multicast address; write one such as 239.255.79.47 or ff18::4f2f", quote(g.String()))
	}
	checkPorts(r, nf.Listen)
}

func checkPorts(r *report, l Listen) {
	seen := map[uint16]string{}
	for _, p := range []struct {
		key  string
		port uint16
	}{{"http", l.HTTP}, {"https", l.HTTPS}, {"dns", l.DNS}, {"gossip", l.Gossip}, {"reports", l.Reports}, {"relay", l.Relay}} {
		path := "listen." + p.key
		if r.failed[path] {
			continue
		}
		if other, ok := seen[p.port]; ok {
			if !r.given(path) { // point at the one that was written, not at the default
				path, other = other, path
			}
			r.bad(path, "port %d is that of %s too; give each a port of its own", p.port, describePlace(r, other))
			continue
		}
		seen[p.port] = path
	}
}

// describePlace says where the other party to a conflict stands.
func describePlace(r *report, path string) string {
	if at, ok := r.places[path]; ok {
		return fmt.Sprintf("%s (line %d)", path, at.line)
	}
	return path + " (by default)"
}

// isInterface reports whether name can be that of a network interface in Linux.
func isInterface(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n")
}
