package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/net/publicsuffix"

	"peerage/appliance/setup"
	"peerage/appliance/site"
)

const (
	usualConfig = "/etc/peerage/node.yaml"
	usualData   = "/var/lib/peerage"
)

type initCmd struct {
	Host      []string     `required:"" placeholder:"NAME" help:"Public host name that the site serves. Repeat it for more."`
	VIP       []netip.Addr `name:"vip" placeholder:"ADDR" help:"Virtual IP of this node: a free address of the interface's network. Repeat it for more. Default: none, the node serves on its host address."`
	Interface string       `placeholder:"NAME" help:"Network interface that clients come in on. Default: that of --address, else that of the default route."`
	Address   netip.Addr   `placeholder:"ADDR" help:"Host address of this node there. Default: the first one."`
	Backend   []string     `xor:"origin" placeholder:"URL" help:"Server to carry requests to, such as http://10.0.0.21:8080. Repeat it for more."`
	Static    string       `xor:"origin" type:"existingdir" placeholder:"DIR" help:"Directory of files to serve. Default: one in the data directory, with a first page."`
	Zone      string       `placeholder:"NAME" help:"Zone that the node answers DNS questions for, or 'none'. Default: the registrable parent of the first host; none without a VIP."`
	Site      string       `placeholder:"NAME" help:"Name of the site. Default: the registrable parent of the first host."`
	Name      string       `default:"n1" help:"Name of this node."`
	HighPorts bool         `help:"Ports 8080, 8443 and 8053 in place of 80, 443 and 53, which need privileges."`
	Config    string       `type:"path" default:"/etc/peerage/node.yaml" help:"The node file to write."`
	DataDir   string       `type:"path" default:"/var/lib/peerage" help:"Directory of what the node writes."`
}

func (initCmd) Help() string {
	return `Writes the node file, the site document, a new site key and a new local CA. The two YAML
files explain themselves and are there to be edited. Nothing is ever overwritten.

A VIP is an address that clients are given and that moves: while its node is down, a
peer answers for it. It must be free: no machine has it configured. Without a VIP the
node serves on its host address, which suits a first try, a single node, and networks in
which addresses cannot move. The site's own DNS answers with VIPs, and so needs one.

Examples:
  peerage init --host www.example.com
  peerage init --host www.example.com --host shop.example.com --vip 192.0.2.11
  peerage init --host www.example.com --vip 192.0.2.11 --backend http://10.0.0.21:8080

Without privileges, on loopback:
  peerage init --host www.example.test --interface lo --vip 127.0.0.21 --high-ports \
    --config /tmp/site/node.yaml --data-dir /tmp/site/n1
  peerage run --config /tmp/site/node.yaml`
}

func (c initCmd) Run(s *streams) error {
	n, err := c.first()
	if err != nil {
		return wrongUse{err}
	}
	f, err := n.Files()
	if err != nil {
		return wrongUse{err}
	}
	if err := checkNetworks(n, f.Document); err != nil {
		return err
	}
	err = setup.Write(f)
	if errors.Is(err, setup.ErrExists) {
		return fmt.Errorf("%w\nnothing was changed; name other places with --config and --data-dir, or remove what is left of an earlier node", err)
	}
	if err != nil {
		return asWrongUse(err)
	}
	return tell(s.out, n)
}

// first fills in what the flags leave open.
func (c *initCmd) first() (*setup.First, error) {
	place, err := setup.FindPlace(setup.Place{Interface: c.Interface, Address: c.Address}, c.VIP)
	if err != nil {
		return nil, fmt.Errorf("%w; --interface and --address say where clients come in", err)
	}
	if slices.Contains(c.VIP, place.Address) {
		return nil, fmt.Errorf("--vip %s: the host address cannot move; name a free address of the same network", place.Address)
	}
	// A name that has no such parent is good as it is, or is refused with the document.
	parent, err := publicsuffix.EffectiveTLDPlusOne(c.Host[0])
	if err != nil {
		parent = c.Host[0]
	}
	zone := cmp.Or(c.Zone, parent)
	switch {
	case c.Zone == "none", c.Zone == "" && len(c.VIP) == 0:
		zone = ""
	case len(c.VIP) == 0:
		return nil, fmt.Errorf("--zone %s: the site's DNS answers with VIPs; add --vip, or leave --zone out", c.Zone)
	}
	n := &setup.First{
		Place: place, Site: cmp.Or(c.Site, parent), Name: c.Name, Hosts: c.Host, VIPs: c.VIP, Zone: zone,
		Servers: c.Backend, Static: c.Static, Ports: setup.UsualPorts, NodePath: c.Config, DataDir: c.DataDir,
	}
	if c.HighPorts {
		n.Ports = setup.HighPorts
	}
	return n, nil
}

// checkNetworks says whether this machine could answer for the VIPs.
func checkNetworks(n *setup.First, document string) error {
	doc, err := site.ParseDocument(n.SitePath(), []byte(document))
	if err != nil {
		return asWrongUse(err)
	}
	networks, err := site.LocalNetworks(n.Interface)
	if err != nil {
		return err
	}
	if problems := doc.CheckInterfaces(networks); len(problems) > 0 {
		return asWrongUse(problems)
	}
	return nil
}

// asWrongUse turns problems with a file that was made from the flags into problems with
// the flags.
func asWrongUse(err error) error {
	problems, ok := errors.AsType[site.Problems](err)
	if !ok {
		return err
	}
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.Path+": "+p.Text)
	}
	return wrongUse{errors.New(strings.Join(lines, "\n"))}
}

// tell says what was written, and what comes next.
func tell(w io.Writer, n *setup.First) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Set up node %s of the site %s, host address %s on %s.\n\n", n.Name, n.Site, n.Address, n.Interface)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range []struct{ path, what string }{
		{n.NodePath, "who this node is"},
		{n.SitePath(), "what the nodes serve"},
		{n.KeyPath(), "the site key; keep it secret"},
		{n.CAPath(), "the local CA, sealed with the site key"},
		{n.RootPath(), "its certificate, for clients to trust"},
		{n.PagePath(), "a first page"},
	} {
		if f.path != "" {
			fmt.Fprintf(t, "  %s\t%s\n", f.path, f.what)
		}
	}
	t.Flush()
	dir := ""
	if n.DataDir != usualData {
		dir = " --dir " + shellWord(n.DataDir)
	}
	fmt.Fprintf(&b, "\nNext:\n  peerage site check %s\n  peerage run%s\n  peerage status%s\n  %s\n",
		shellWord(n.SitePath()), configFlag(n.NodePath), dir, curl(n))
	tellDNS(&b, n)
	tellSecond(&b, n)
	_, err := io.WriteString(w, b.String())
	return err
}

// configFlag is what names a node file on the command line, if that is necessary.
func configFlag(path string) string {
	if path == usualConfig {
		return ""
	}
	return " --config " + shellWord(path)
}

// curl is a line that asks the node for its first host.
func curl(n *setup.First) string {
	to, port := n.Address, fmt.Sprint(n.Ports.HTTPS)
	if len(n.VIPs) > 0 {
		to = n.VIPs[0]
	}
	host, at := n.Hosts[0], to.String()
	if to.Is6() {
		at = "[" + at + "]"
	}
	url := "https://" + host
	if port != "443" {
		url += ":" + port
	}
	return fmt.Sprintf("curl --cacert %s --resolve %s:%s:%s %s/", shellWord(n.RootPath()), host, port, at, url)
}

func tellDNS(w io.Writer, n *setup.First) {
	if n.Zone == "" {
		fmt.Fprintf(w, "\nDNS: make %s known with the address %s where its zone is kept.\n", strings.Join(n.Hosts, ", "), n.Address)
		return
	}
	fmt.Fprintf(w, "\nDNS: the node answers for the zone %s. Have its parent zone delegate it to %s.%s.\n", n.Zone, n.Name, n.Zone)
	for _, h := range n.Hosts {
		if h != n.Zone && !strings.HasSuffix(h, "."+n.Zone) {
			fmt.Fprintf(w, "%s lies outside it: make it known where its own zone is kept.\n", h)
		}
	}
}

func tellSecond(w io.Writer, n *setup.First) {
	dir := ""
	if n.DataDir != usualData {
		dir = " --dir " + shellWord(n.DataDir)
	}
	fmt.Fprintf(w, `
A second node:
  1. Here, while this one runs: peerage token create%s
  2. There: peerage join --token TOKEN --name n2 --vip ADDR
`, dir)
	if n.PagePath() != "" {
		fmt.Fprintf(w, "  3. Copy %s there, to the same place.\n", n.Pages())
	}
	fmt.Fprintln(w, "Their clocks must agree.")
}

// shellWord writes a file name so that a shell takes it for one word.
func shellWord(s string) string {
	if strings.IndexFunc(s, func(c rune) bool {
		return !strings.ContainsRune("/._-", c) && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
