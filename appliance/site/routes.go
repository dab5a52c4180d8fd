package site

import (
	"cmp"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"peerage/balancing"
	"peerage/edge/route"
)

func (c *checker) routes() {
	paths, entries, exits := map[string]string{}, map[string]string{}, map[string]string{}
	for i := range c.doc.Routes {
		r, at := &c.doc.Routes[i], item("routes", i)
		if c.failed[at] {
			continue
		}
		c.routeHost(r, at)
		c.routeOrigin(r, at)
		c.nodeList(r.Nodes, at+".nodes")
		if c.ok(at+".path") && (r.Path == noPath || c.canonical(r.Path, at+".path")) {
			if other, ok := c.first(paths, r.Host+r.Path, at+".path"); !ok {
				c.bad(at+".path", "%s is %s too; give each path one route", quote(r.Host+r.Path), other)
			}
			if c.ok(at + ".stateful") {
				c.stateful(r, at+".stateful", entries, exits)
			}
		}
	}
	c.table()
}

// noPath is the path of a route for requests that name none.
const noPath = "none"

// Rules returns the routes as the edge matches them, in their order.
func (d *Document) Rules() []route.Rule {
	rules := make([]route.Rule, len(d.Routes))
	for i, r := range d.Routes {
		rules[i] = route.Rule{Host: r.Host, Path: r.Path, Nodes: r.Nodes, Spill: r.WhenDown == Spill, Move: d.Balancing.Move, Index: i}
		if r.Path == noPath {
			rules[i].Path, rules[i].NoURI = "", true
		}
		if r.Move != nil {
			rules[i].Move = *r.Move
		}
		if s := r.Stateful; s != nil {
			rules[i].Stateful = &route.Stateful{
				Name: r.Host + cmp.Or(s.Entry, r.Path), Entry: s.Entry, Exit: s.Exit, Scope: s.Scope, OnOwnerLoss: s.OnOwnerLoss,
				EntryKeepsPin: s.EntryKeepsPin, Idle: s.Idle, MaxLife: s.MaxLife,
			}
		}
	}
	return rules
}

func (c *checker) routeHost(r *Route, at string) {
	if at += ".host"; c.ok(at) && c.sound("hosts") && !slices.Contains(c.doc.Hosts, r.Host) {
		c.bad(at, "%s is not a host of the site; %s", quote(r.Host), suggest(r.Host, "hosts", c.doc.Hosts))
	}
}

// routeOrigin checks what a route serves from.
func (c *checker) routeOrigin(r *Route, at string) {
	static, name := at+".static", at+".backend"
	switch {
	case c.given(static) && c.given(name):
		c.bad(at, "both 'static' and 'backend'; a route serves from one of them")
	case !c.given(static) && !c.given(name):
		c.bad(at, "nothing to serve from; add 'static: {dir: …}' or 'backend: …'")
	}
	if _, there := c.doc.Backends[r.Backend]; c.ok(name) && !there && !c.failed["backends"] {
		known := slices.Sorted(maps.Keys(c.doc.Backends))
		c.bad(name, "no back-end %s; %s", quote(r.Backend), suggest(r.Backend, "back-ends", known))
	}
	if !c.ok(static) {
		return
	}
	if c.ok(at+".path") && r.Path != noPath && !strings.HasSuffix(strings.TrimSuffix(r.Path, "*"), "/") {
		c.bad(at+".path", "%s is a single path, and 'static' serves what lies below one; end it with a slash", quote(r.Path))
	}
	if dir := static + ".dir"; c.ok(dir) && !filepath.IsAbs(r.Static.Dir) {
		c.bad(dir, "%s is not an absolute path; begin it with a slash", quote(r.Static.Dir))
	}
	if index := static + ".index"; c.ok(index) && (r.Static.Index == "" || r.Static.Index[0] == '.' || strings.ContainsAny(r.Static.Index, "/\x00")) {
		c.bad(index, "%s is not a plain file name; write one such as index.html", quote(r.Static.Index))
	}
}

// nodeList checks that each of ids is a node, and is named once.
func (c *checker) nodeList(ids []balancing.NodeID, at string) {
	taken := map[string]string{}
	for i, id := range ids {
		if p := item(at, i); c.ok(p) {
			c.node(id, p)
			if other, ok := c.first(taken, string(id), p); !ok {
				c.bad(p, "%s is %s too; leave one of them out", quote(string(id)), other)
			}
		}
	}
}

func (c *checker) node(id balancing.NodeID, at string) {
	if _, ok := c.doc.Nodes[id]; !ok && !c.failed["nodes"] {
		var known []string
		for _, n := range c.doc.NodeIDs() {
			known = append(known, string(n))
		}
		c.bad(at, "no node %s; %s", quote(string(id)), suggest(string(id), "nodes", known))
	}
}

// canonical checks that p is a path as package route matches it, with a star at its end or
// without.
func (c *checker) canonical(p, at string) bool {
	path, star := strings.CutSuffix(p, "*")
	form, query, err := route.Canonical(path)
	if star {
		form += "*"
	}
	switch {
	case err != nil:
		c.bad(at, "%s: %s; write a path such as /app/", quote(p), strings.TrimPrefix(err.Error(), "request target: "))
	case query != "" || strings.HasSuffix(p, "?"):
		c.bad(at, "%s has a query; a path ends before the question mark", quote(p))
	case form != p:
		c.bad(at, "%s is not in canonical form; write it as %s", quote(p), quote(form))
	default:
		return true
	}
	return false
}

// covers reports whether a route for pattern serves path, both canonical.
func covers(pattern, path string) bool {
	t, err := route.NewTable([]route.Rule{{Path: pattern}})
	if err != nil {
		return false
	}
	_, ok := t.Match("", path)
	return ok
}

// stateful checks the stateful rule of r. entries and exits hold those of all routes.
func (c *checker) stateful(r *Route, at string, entries, exits map[string]string) {
	s := r.Stateful
	entry, good := at+".entry", r.Path != noPath
	switch begin := cmp.Or(s.Entry, r.Path); {
	case !good:
		c.bad(at, "a request without a path has nothing below it to stay on; write a path for the route")
	case s.Entry != "" && (!c.ok(entry) || !c.canonical(s.Entry, entry)):
		good = false
	case s.Entry != "" && !covers(r.Path, s.Entry):
		c.bad(entry, "%s lies outside the route for %s; put it below", quote(s.Entry), quote(r.Path))
	default:
		if s.Entry == "" {
			entry = at
		}
		if other, ok := c.first(entries, r.Host+begin, entry); !ok {
			c.bad(entry, "%s is %s too; an entry begins one stay", quote(begin), other)
		}
	}
	for i, exit := range s.Exit {
		p := item(at+".exit", i)
		if !c.ok(p) || !c.canonical(exit, p) {
			continue
		}
		if begin := cmp.Or(s.Entry, strings.TrimSuffix(r.Path, "*")); good && covers(exit, begin) {
			c.bad(p, "%s takes in the entry %s, so that no stay could begin; write a path below it", quote(exit), quote(begin))
		}
		if other, ok := c.first(exits, r.Host+exit, p); !ok {
			c.bad(p, "%s is %s too; an exit ends one stay", quote(exit), other)
		}
	}
}

// table builds the table of routes as the edge will, for what only the whole shows.
func (c *checker) table() {
	if !c.sound("routes") {
		return
	}
	if _, err := route.NewTable(c.doc.Rules()); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			c.bad("routes", "%s; change one of the two", line)
		}
	}
}

func (c *checker) backends() {
	for _, name := range slices.Sorted(maps.Keys(c.doc.Backends)) {
		b, at := c.doc.Backends[name], below("backends", name)
		if c.failed[at] {
			continue
		}
		if len(name) > 64 || !isName(name) {
			c.bad(at, "not a name; write 1 to 64 letters, digits and inner hyphens, dots and underscores")
		}
		c.servers(b.Servers, at+".servers")
		for _, id := range slices.Sorted(maps.Keys(b.ByNode)) {
			p := below(at+".by_node", string(id))
			c.node(id, p)
			c.servers(b.ByNode[id], p)
			if len(b.ByNode[id]) == 0 && !c.failed[p] {
				c.bad(p, "no servers; write at least one, or leave the node out")
			}
		}
		c.coverage(&b, at)
		if p := at + ".health.path"; c.ok(p) {
			c.canonical(b.Health.Path, p)
		}
	}
}

// coverage checks that a back-end has servers on every node.
func (c *checker) coverage(b *Backend, at string) {
	if c.given(at+".servers") || c.failed[at+".by_node"] || c.failed["nodes"] {
		return
	}
	if len(b.ByNode) == 0 {
		c.bad(at, "no servers; add 'servers: [http://10.0.0.21:8080]'")
		return
	}
	var missing []string
	for _, id := range c.doc.NodeIDs() {
		if _, ok := b.ByNode[id]; !ok {
			missing = append(missing, string(id))
		}
	}
	if len(missing) > 0 {
		more := ""
		if len(missing) > maxList {
			missing, more = missing[:maxList], " and others"
		}
		c.bad(at+".by_node", "no servers for %s%s; add them, or 'servers' for all nodes", strings.Join(missing, ", "), more)
	}
}

func (c *checker) servers(list []string, at string) {
	taken := map[string]string{}
	for i, s := range list {
		p := item(at, i)
		if !c.ok(p) {
			continue
		}
		if why := serverFault(s); why != "" {
			c.bad(p, "%s %s; write scheme, host and port, as in http://10.0.0.21:8080", quote(s), why)
		} else if other, ok := c.first(taken, s, p); !ok {
			c.bad(p, "%s is %s too; leave one of them out", s, other)
		}
	}
}

// serverFault says why s is not the URL of a server, "" if it is.
func serverFault(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "is not a URL"
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "is not an http or https URL"
	case u.User != nil:
		return "has a user name or password"
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#"):
		return "has something after the port"
	}
	name, _, err := route.ParseAuthority(u.Host)
	if err != nil {
		return "has no good host or port"
	}
	if a, err := netip.ParseAddr(name); err == nil && (a.IsUnspecified() || a.IsMulticast()) {
		return "has an address that no server can have"
	}
	return ""
}
