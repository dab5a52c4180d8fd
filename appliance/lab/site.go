package lab

import (
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// Files in the directory of a lab.
const (
	caFile      = "ca.pem"
	nodeFile    = "node.yaml"
	nodeLog     = "node.log"
	resolvFile  = "resolv.conf"
	nsswitch    = "nsswitch.conf"
	portBank    = 8080
	maxResolver = 3 // name servers that the C library heeds
)

// bankOf is where the back-end of a node listens.
func (l *Lab) bankOf(n *Node) netip.AddrPort {
	last := n.Internal.As4()[3] - hostNode + hostBank
	return netip.AddrPortFrom(host(internal4, int(last)), portBank)
}

// writeFiles writes what the nodes start from, and what programs on the machines need to
// find the site.
func (l *Lab) writeFiles() error {
	document, err := l.document()
	if err != nil {
		return err
	}
	ca, err := certs.NewCA("lab", time.Now())
	if err != nil {
		return err
	}
	key := keys.Generate()
	for _, n := range l.nodes {
		f := setup.Files{NodePath: n.file(), Node: n.text(), Document: document, Key: key, CA: ca}
		if err := setup.Write(f); err != nil {
			return err
		}
	}
	var resolv strings.Builder
	for _, n := range l.nodes[:min(maxResolver, len(l.nodes))] {
		fmt.Fprintf(&resolv, "nameserver %s\n", n.VIPs[0])
	}
	resolv.WriteString("options timeout:1\n")
	for name, text := range map[string]string{
		caFile:     string(ca.CertPEM()),
		resolvFile: resolv.String(),
		nsswitch:   "hosts: files dns\n",
	} {
		if err := os.WriteFile(filepath.Join(l.c.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// document is the site document.
func (l *Lab) document() (string, error) {
	type nodeData struct {
		*Node
		Bank netip.AddrPort
	}
	data := struct {
		Host, Zone string
		Period     time.Duration
		Nodes      []nodeData
	}{Host, Zone, l.c.Period, nil}
	for _, n := range l.nodes {
		data.Nodes = append(data.Nodes, nodeData{n, l.bankOf(n)})
	}
	var b strings.Builder
	err := siteTemplate.Execute(&b, data)
	return b.String(), err
}

// text is the node file.
func (n *Node) text() string {
	return fmt.Sprintf(`# Node %[1]s of the lab.
name: %[1]s
data_dir: %[2]q
interfaces: {public: %[3]s, internal: %[4]s}
address: {public: %[5]s, internal: %[6]s}
user: root # no other can be had in a user namespace
`, n.Name, n.Dir, publicLink, internalLink, n.Address, n.Internal)
}

// servers are HTTP servers of this process on machines of the lab.
type servers struct {
	all     []*http.Server
	serving sync.WaitGroup
}

// serveBackends runs a bank for each node, on the machine app: it lives on when its node
// is killed, but nobody asks it any more.
func (l *Lab) serveBackends() error {
	m, err := l.Machine(app)
	if err != nil {
		return err
	}
	for _, n := range l.nodes {
		var listener net.Listener
		err := m.Do(func() (err error) {
			listener, err = net.Listen("tcp", l.bankOf(n).String())
			return err
		})
		if err != nil {
			return fmt.Errorf("back-end of %s: %w", n.Name, err)
		}
		s := &http.Server{
			Handler:           bank.New(bank.Config{Name: n.Name, Domain: Host}),
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		}
		l.servers.all = append(l.servers.all, s)
		l.servers.serving.Go(func() {
			if err := s.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				slog.Error("back-end ended", "node", n.Name, "err", err)
			}
		})
	}
	return nil
}

func (s *servers) close() {
	for _, srv := range s.all {
		srv.Close()
	}
	s.serving.Wait()
}
