package setup

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"peerage/appliance/state"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// First is the first node of a new site.
type First struct {
	Place
	Inner    Place // on the internal network; the zero Place for the same
	Site     string
	Name     string // of the node
	Hosts    []string
	VIPs     []netip.Addr
	Zone     string   // "" for no DNS
	Servers  []string // URLs to carry requests to, or none
	Static   string   // directory of files to serve if there are no servers; "" for one with a first page
	Ports    Ports
	NodePath string // of the node file
	DataDir  string
}

// Ports are those of every node of the site.
type Ports struct {
	HTTP, HTTPS, DNS       uint16 // that clients use
	Gossip, Reports, Relay uint16 // that nodes use
}

// UsualPorts are the well-known ones, HighPorts such as need no privileges.
var (
	UsualPorts = Ports{80, 443, 53, 7946, 7947, 7948}
	HighPorts  = Ports{8080, 8443, 8053, 7946, 7947, 7948}
)

// SitePath is where the site document will be.
func (n *First) SitePath() string { return filepath.Join(n.DataDir, "site.yaml") }

// KeyPath is where the site key will be.
func (n *First) KeyPath() string { return filepath.Join(n.DataDir, "site.key") }

// CAPath is where the local CA will be, sealed.
func (n *First) CAPath() string { return filepath.Join(n.DataDir, state.CAFile) }

// RootPath is where the certificate of the local CA will be, for clients.
func (n *First) RootPath() string { return filepath.Join(filepath.Dir(n.NodePath), "ca.pem") }

// PagePath is where the first page will be, or "".
func (n *First) PagePath() string {
	if n.Static != "" || len(n.Servers) > 0 {
		return ""
	}
	return filepath.Join(n.Pages(), "index.html")
}

// Pages is the directory of the files that are served.
func (n *First) Pages() string {
	if n.Static != "" {
		return n.Static
	}
	return filepath.Join(n.DataDir, "www")
}

// Files makes the contents of all files of the node, a site key and a CA among them.
func (n *First) Files() (Files, error) {
	f := Files{NodePath: n.NodePath, Key: keys.Generate()}
	var err error
	if f.CA, err = certs.NewCA(n.Site, time.Now()); err != nil {
		return Files{}, err
	}
	if f.Node, err = n.text("node.yaml.tmpl"); err != nil {
		return Files{}, err
	}
	if f.Document, err = n.text("site.yaml.tmpl"); err != nil {
		return Files{}, err
	}
	f.Others = []File{{n.RootPath(), string(f.CA.CertPEM()), 0o644}}
	if page := n.PagePath(); page != "" {
		f.Others = append(f.Others, File{page, firstPage, 0o644})
	}
	return f, nil
}

//go:embed index.html
var firstPage string

//go:embed node.yaml.tmpl site.yaml.tmpl
var texts embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"scalar":    scalar,
	"names":     flowList[string],
	"addresses": flowList[netip.Addr],
}).ParseFS(texts, "*.tmpl"))

func (n *First) text(name string) (string, error) { return execute(name, n) }

// Group is the multicast address of the reports, if it is not the one that goes without
// saying.
func (n *First) Group() string {
	if n.Address.Is6() {
		return "ff18::4f2f"
	}
	return ""
}

func execute(name string, n any) (string, error) {
	var b strings.Builder
	err := templates.ExecuteTemplate(&b, name, n)
	return b.String(), err
}

var (
	plainScalar = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9./_-]*$`)
	yamlWords   = []string{"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
)

// scalar writes a string as YAML: plainly if that cannot be mistaken for anything else.
func scalar(v any) string {
	text := fmt.Sprint(v)
	if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
		return text
	}
	if plainScalar.MatchString(text) && !slices.Contains(yamlWords, strings.ToLower(text)) {
		return text
	}
	quoted, _ := json.Marshal(text) // no string is an error; and a JSON string is a YAML one
	return string(quoted)
}

// flowList writes a YAML list in one line.
func flowList[T any](all []T) string {
	var items []string
	for _, v := range all {
		items = append(items, scalar(v))
	}
	return "[" + strings.Join(items, ", ") + "]"
}
