package setup

import (
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"peerage/appliance/membership"
	"peerage/appliance/site"
	"peerage/appliance/state"
)

// Joined is a node that joins a site.
type Joined struct {
	Place
	Inner    Place // on the internal network; the zero Place for the same
	Name     string
	NodePath string // of the node file
	DataDir  string

	Ports Ports // Files fills it in
	group netip.Addr
}

// Common is what the node files of a site have in common.
type Common struct {
	Listen site.Listen `json:"listen"`
	Group  netip.Addr  `json:"group"` // of the reports
}

// Free returns an error, [ErrExists], if there is something of a node where this one is to
// be: before it joins the site whose local CA has that fingerprint. The certificate of that
// very CA is not in the way.
func (n *Joined) Free(fingerprint string) error {
	paths := []string{n.NodePath}
	if text, err := os.ReadFile(n.rootPath()); err == nil {
		block, _ := pem.Decode(text)
		if block == nil || fmt.Sprintf("%x", sha256.Sum256(block.Bytes)) != fingerprint {
			paths = append(paths, n.rootPath())
		}
	}
	for _, name := range []string{"site.yaml", "site.key", state.CAFile, state.NodeKeyFile} {
		paths = append(paths, filepath.Join(n.DataDir, name))
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			return fmt.Errorf("%w: %s exists", ErrExists, p)
		}
	}
	return nil
}

// Files makes the contents of all files of the node from what its site has handed over.
func (n *Joined) Files(a *membership.Admission) (Files, error) {
	var c Common
	if err := json.Unmarshal(a.Common, &c); err != nil {
		return Files{}, fmt.Errorf("what the site says of its ports is not understood: %w", err)
	}
	l := c.Listen
	n.Name, n.group = string(a.Name), c.Group
	n.Ports = Ports{l.HTTP, l.HTTPS, l.DNS, l.Gossip, l.Reports, l.Relay}
	text, err := execute("node.yaml.tmpl", n)
	if err != nil {
		return Files{}, err
	}
	return Files{
		NodePath: n.NodePath, Node: text, Document: a.Document, Ring: a.Ring, CA: a.CA, NodeKey: a.NodeKey,
		Others: []File{{n.rootPath(), string(a.CA.CertPEM()), 0o644}},
	}, nil
}

func (n *Joined) rootPath() string { return filepath.Join(filepath.Dir(n.NodePath), "ca.pem") }

// Group is the multicast address of the reports, if it is not the one that goes without
// saying.
func (n *Joined) Group() string {
	if n.group.IsValid() && n.group != netip.MustParseAddr("239.255.79.47") {
		return n.group.String()
	}
	return ""
}
