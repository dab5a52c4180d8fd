package demo

import (
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"peerage/appliance/demo/bank"
	"peerage/appliance/setup"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

//go:embed site.yaml.tmpl
var siteText string

var siteTemplate = template.Must(template.New("site").Parse(siteText))

// prepare writes the files that the nodes start from.
func (d *Demo) prepare() error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	pages, err := fs.Sub(bank.Static, "static")
	if err != nil {
		return err
	}
	if err := writeFiles(filepath.Join(d.dir, "static"), pages); err != nil {
		return err
	}
	key := keys.Generate()
	ca, err := certs.NewCA("demo", time.Now())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "ca.pem"), ca.CertPEM(), 0o644); err != nil {
		return err
	}
	document, err := d.document()
	if err != nil {
		return err
	}
	for _, p := range d.nodes {
		p.dir = filepath.Join(d.dir, string(p.id))
		if err := os.RemoveAll(p.dir); err != nil {
			return err
		}
		err := setup.Write(setup.Files{
			NodePath: p.nodeFile(),
			Node:     d.nodeText(p),
			Document: document,
			Key:      key,
			CA:       ca,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) nodeText(p *process) string {
	return fmt.Sprintf(`# Node %[1]s of the demo.
name: %[1]s
data_dir: %[2]q
interfaces: {public: lo}
address: %[3]s
listen: {http: %[4]d, https: %[5]d, dns: %[6]d, reports: %[7]d, relay: %[8]d}
`, p.id, p.dir, p.address, portHTTP, portHTTPS, portDNS, portReports, portRelay)
}

func (d *Demo) document() (string, error) {
	type nodeData struct{ Name, Address, VIP, Bank string }
	data := struct {
		Host, Zone, Static string
		Nodes              []nodeData
	}{Host, Zone, filepath.Join(d.dir, "static"), nil}
	for _, p := range d.nodes {
		data.Nodes = append(data.Nodes, nodeData{string(p.id), p.address.String(), p.vip.String(), "http://" + p.bank.String()})
	}
	var b strings.Builder
	err := siteTemplate.Execute(&b, data)
	return b.String(), err
}

// latest is where the directory of a running demo can be found by 'peerage status'.
func latest() string {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		base = filepath.Join(os.TempDir(), fmt.Sprintf("peerage-%d", os.Getuid()))
	}
	return filepath.Join(base, "demo")
}

// publish notes dir as the running demo's. Only one demo runs at a time: they would
// share the ports.
func publish(dir string) (unpublish func(), err error) {
	link := latest()
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return nil, err
	}
	os.Remove(link)
	if err := os.Symlink(dir, link); err != nil {
		return nil, err
	}
	return func() { os.Remove(link) }, nil
}

// Latest returns the directory of the demo that this user runs, or "". A link that
// somebody else could have made is not followed.
func Latest() string {
	link := latest()
	if info, err := os.Lstat(filepath.Dir(link)); err != nil || !ownedByUs(info) {
		return ""
	}
	dir, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	return dir
}
