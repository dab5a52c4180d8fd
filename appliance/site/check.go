package site

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/edge/route"
	"peerage/tls/certs"
)

// checker looks for what a single value does not show: it holds the values of a document
// against each other, and those with a meaning of their own against the package that
// gives it.
type checker struct {
	*report
	doc  *Document
	text []byte
	root *yaml.Node
}

func (c *checker) check() {
	c.site()
	c.hosts()
	c.nodes()
	c.addresses()
	c.names()
	c.routes()
	c.backends()
	c.zone()
	c.logs()
}

// ok reports whether the file has a value at path that could be decoded.
func (c *checker) ok(path string) bool { return c.given(path) && !c.failed[path] }

// first notes under value that it is taken by path. If it was taken before, it returns
// where, and false.
func (c *checker) first(taken map[string]string, value, path string) (other string, ok bool) {
	if other, ok := taken[value]; ok {
		return describePlace(c.report, other), false
	}
	taken[value] = path
	return "", true
}

func (c *checker) site() {
	name := c.doc.Site
	if c.ok("site") && (len(name) > certs.MaxSite || !isName(name)) {
		c.bad("site", "%s; write 1 to %d letters, digits and inner hyphens, dots and underscores", quote(name), certs.MaxSite)
	}
}

// isName reports whether s is made of letters and digits, with hyphens, dots and
// underscores between them.
func isName(s string) bool {
	const inner = "-._"
	return s != "" && !strings.ContainsAny(s[:1], inner) && !strings.ContainsAny(s[len(s)-1:], inner) &&
		strings.IndexFunc(s, func(c rune) bool { return !strings.ContainsRune(inner, c) && !isAlphanumeric(c) }) < 0
}

func isAlphanumeric(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func (c *checker) hosts() {
	taken := map[string]string{}
	for i, h := range c.doc.Hosts {
		at := item("hosts", i)
		if !c.ok(at) {
			continue
		}
		if _, err := route.NewNames([]string{h}, nil, "{node}.{host}"); err != nil {
			c.bad(at, "%s", hostFault(h, err))
		} else if other, ok := c.first(taken, h, at); !ok {
			c.bad(at, "%s is %s too; leave one of them out", h, other)
		}
	}
}

// hostFault shortens what package route says of a host.
func hostFault(host string, err error) string {
	if why, ok := strings.CutPrefix(err.Error(), "host "+strconv.Quote(host)+": "); ok && !strings.Contains(why, "write it") {
		return quote(host) + ": " + why + "; write a name such as www.example.com"
	}
	return strings.Replace(err.Error(), ": write", " is not in canonical form; write", 1)
}

// nodeNameRule says what a node can be called.
var nodeNameRule = fmt.Sprintf("a node's name is 1 to %d lower-case letters, digits and inner hyphens", balancing.MaxNodeID)

func (c *checker) nodes() {
	unicast := c.doc.Balancing.Exchange == heartbeat.Unicast && len(c.doc.Nodes) > 1
	for _, id := range c.doc.NodeIDs() {
		at := below("nodes", string(id))
		if !id.Valid() {
			c.bad(at, "not a name; %s", nodeNameRule)
		} else if id == certs.JoinNode {
			c.bad(at, "no node can be called that: it is whom nodes ask that join; choose another name")
		}
		if address := at + ".address"; unicast && !c.given(address) && !c.failed[at] {
			c.bad(address, "missing; with 'exchange: unicast' each node needs its host address here")
		}
	}
}

// addresses checks host addresses and VIPs: each belongs to one node.
func (c *checker) addresses() {
	type owner struct {
		node balancing.NodeID
		path string
	}
	hosts := map[netip.Addr]owner{}
	vips := map[netip.Addr]owner{}
	for _, id := range c.doc.NodeIDs() {
		at := below("nodes", string(id)) + ".address"
		a := c.doc.Nodes[id].Address
		if !a.IsValid() {
			continue
		}
		if why := unusable(a); why != "" {
			c.bad(at, "%s", why)
		} else if other, ok := hosts[a]; ok {
			c.bad(at, "%s is %s too; each node has an address of its own", a, describePlace(c.report, other.path))
		} else {
			hosts[a] = owner{id, at}
		}
	}
	for _, id := range c.doc.NodeIDs() {
		for i, a := range c.doc.Nodes[id].VIPs {
			at := item(below("nodes", string(id))+".vips", i)
			if !a.IsValid() {
				continue
			}
			if why := unusable(a); why != "" {
				c.bad(at, "%s", why)
			} else if other, ok := vips[a]; ok {
				c.bad(at, "%s is %s too; a VIP belongs to one node", a, describePlace(c.report, other.path))
			} else if other, ok := hosts[a]; ok && other.node != id {
				c.bad(at, "%s is the host address %s; a VIP must be free to move", a, describePlace(c.report, other.path))
			} else {
				vips[a] = owner{id, at}
			}
		}
	}
	for i, a := range c.doc.Takeover.Witness {
		at := item("takeover.witness", i)
		if !a.IsValid() {
			continue
		}
		if why := unusable(a); why != "" {
			c.bad(at, "%s", why)
		} else if other, ok := vips[a]; ok {
			c.bad(at, "%s is %s; a witness must be there whatever becomes of the nodes, as a router is", a, describePlace(c.report, other.path))
		} else if other, ok := hosts[a]; ok {
			c.bad(at, "%s is %s; a witness must be there whatever becomes of the nodes, as a router is", a, describePlace(c.report, other.path))
		}
	}
}

// unusable says why a cannot be an address of a node, "" if it can.
func unusable(a netip.Addr) string {
	switch {
	case a.Zone() != "":
		return fmt.Sprintf("%s has a zone; write an address without", quote(a.String()))
	case a.Is4In6():
		return fmt.Sprintf("%s is an IPv4 address; write it as %s", a, a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("%s is not an address that clients can reach; write a global or private unicast address", a)
	}
	return ""
}

// names checks that no name stands for two things.
func (c *checker) names() {
	d := c.doc
	_, err := route.NewNames([]string{"host.example"}, nil, d.NodeNames)
	if err != nil && !c.failed["node_names"] {
		c.bad("node_names", "%s; write a pattern with {node} that ends in .{host}, such as '{node}.{host}'", quote(d.NodeNames))
	}
	if !c.sound("hosts", "nodes", "node_names") {
		return
	}
	for i, host := range d.Hosts {
		for _, id := range d.NodeIDs() {
			if j := slices.Index(d.Hosts, d.NodeName(id, host)); j >= 0 {
				c.bad(item("hosts", j), "the name of node %s for %s; rename the host or the node, or change 'node_names'", id, describePlace(c.report, item("hosts", i)))
			}
		}
	}
	if !c.sound("hosts") {
		return
	}
	if _, err := route.NewNames(d.Hosts, d.NodeIDs(), d.NodeNames); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			c.bad("node_names", "%s; the names of nodes must be domain names too", line)
		}
	}
}

func (c *checker) logs() {
	switch name := c.doc.Logs.Access; {
	case !c.ok("logs.access"), name == "off", name == "-":
	case path.Ext(name) != ".log" || !isName(name) || len(name) > 64:
		c.bad("logs.access", "%s; write 'off', '-', or the name of a file that ends in .log, such as access.log", quote(name))
	}
}
