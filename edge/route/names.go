package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"peerage/balancing"
)

// Names are all names that a site answers to.
type Names struct {
	known           map[string]Name
	before, between string // of the pattern: before + node + between + host
}

// Name is what one of a site's names stands for.
type Name struct {
	Host    string           // one of the site's hosts
	Node    balancing.NodeID // set for a node name: the node that it leads to
	Literal bool             // the name is an address; Host is then the site's first
}

// NewNames returns the names of a site: its hosts, a name for each node under each
// host, and addresses.
//
// The pattern says how node names are made, usually "{node}.{host}". It ends in
// ".{host}", or the browser would not send a host's cookies to its node names. The error
// names all that is wrong.
func NewNames(hosts []string, nodes []balancing.NodeID, pattern string, addrs ...netip.Addr) (*Names, error) {
	before, rest, ok1 := strings.Cut(pattern, "{node}")
	between, after, ok2 := strings.Cut(rest, "{host}")
	if !ok1 || !ok2 || after != "" || !strings.HasSuffix(between, ".") {
		return nil, fmt.Errorf("pattern of node names %q: want {node} followed by .{host} at the end", pattern)
	}
	if len(hosts) == 0 {
		return nil, errors.New("names of a site: it has no hosts")
	}
	n := &Names{known: map[string]Name{}, before: before, between: between}
	var errs []error
	add := func(name string, to Name) {
		if err := checkHost(name); err != nil {
			errs = append(errs, err)
		} else if old, ok := n.known[name]; ok {
			errs = append(errs, fmt.Errorf("name %s: taken twice, by %s and by %s", name, old, to))
		} else {
			n.known[name] = to
		}
	}
	for _, host := range hosts {
		add(host, Name{Host: host})
		for _, node := range nodes {
			add(n.NodeName(node, host), Name{Host: host, Node: node})
		}
	}
	for _, a := range addrs {
		n.known[a.Unmap().WithZone("").String()] = Name{Host: hosts[0], Literal: true}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return n, nil
}

// Lookup says what name, as returned by [ParseAuthority], stands for.
func (n *Names) Lookup(name string) (Name, bool) {
	found, ok := n.known[name]
	return found, ok
}

// NodeName returns the name under which node is reached for host.
func (n *Names) NodeName(node balancing.NodeID, host string) string {
	return n.before + string(node) + n.between + host
}

func (n Name) String() string {
	if n.Node == "" {
		return "host " + n.Host
	}
	return "node " + string(n.Node) + " of host " + n.Host
}

// checkHost reports whether host is a domain name in canonical form.
func checkHost(host string) error {
	name, err := hostName(host)
	switch {
	case err != nil:
		return fmt.Errorf("host %q: not a domain name", host)
	case name != host:
		return fmt.Errorf("host %q: write it as %q", host, name)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("host %q: an address, not a domain name", host)
	}
	return nil
}
