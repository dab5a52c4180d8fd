// Package node is one node, assembled: it builds the parts from the node file and the
// site document, starts them in order, and stops them in order. It is the only place
// where long-lived work is started.
//
// A node is two processes. Start with [Run], the guard: small, privileged, owner of the
// reports and the VIPs. It starts its own program again as the server, which calls
// [Serve]: HTTP, TLS, QUIC and DNS. docs/decisions/0001 says why.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/DeRuina/timberjack"

	"peerage/appliance/site"
	"peerage/appliance/state"
)

// Run runs the node of the node file at path until ctx ends, and then leaves the site in
// order. args are the arguments with which this program serves.
func Run(ctx context.Context, path string, log *slog.Logger, args ...string) error {
	nf, doc, err := load(path)
	if err != nil {
		return err
	}
	nets, err := site.LocalNetworks(nf.Interfaces.Public)
	if err != nil {
		return err
	}
	if problems := doc.CheckInterfaces(nets); len(problems) > 0 {
		return problems
	}
	ring, err := state.ReadSiteKey(nf.SiteKeyFile)
	if err != nil {
		return err
	}
	dir, err := state.Open(nf.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.ResealCA(ring); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	as, err := serverAccount(nf, log)
	if err != nil {
		return err
	}
	if as != nil {
		if err := dir.Own(int(as.uid), int(as.gid)); err != nil {
			return err
		}
	}
	command := func() *exec.Cmd {
		cmd := exec.Command(self, args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = credentials(as)
		return cmd
	}
	log = log.With("node", nf.Name)
	g, err := newGuard(nf, doc, dir, ring, command, log)
	if err != nil {
		return err
	}
	return g.run(ctx)
}

// Serve is the server of the node of the node file at path. It must have been started by
// a guard.
func Serve(_ context.Context, path string, log *slog.Logger) error {
	guard, err := guardChannel()
	if err != nil {
		return err
	}
	defer guard.close()
	ring, err := guard.siteKey()
	if err != nil {
		return err
	}
	nf, doc, err := load(path)
	if err != nil {
		return err
	}
	ca, err := state.LoadCA(nf.DataDir, ring)
	if err != nil {
		return err
	}
	access, closeAccess := accessLog(nf, doc)
	defer closeAccess()
	log = log.With("node", nf.Name)
	s, err := newServer(nf, doc, ring, ca, guard, access, log)
	if err != nil {
		return err
	}
	// Signals are for the guard, which tells the server when it is time.
	return s.run(context.Background())
}

// load reads the two files of a node.
func load(path string) (*site.NodeFile, *site.Document, error) {
	nf, err := site.LoadNode(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w\n'peerage init' sets up a first node; 'peerage demo' needs no files", err)
		}
		return nil, nil, err
	}
	doc, err := site.LoadDocument(nf.SiteFile)
	if err != nil {
		return nil, nil, err
	}
	if _, ok := doc.Nodes[nf.Name]; !ok {
		return nil, nil, fmt.Errorf("%s: node %s is not one of the site's nodes; add it to %s below 'nodes', or mend 'name'", path, nf.Name, nf.SiteFile)
	}
	return nf, doc, nil
}

// accessLog opens the access log of the document. A file is turned over before it grows
// without bound.
func accessLog(nf *site.NodeFile, doc *site.Document) (*slog.Logger, func()) {
	var w io.Writer
	done := func() {}
	switch name := doc.Logs.Access; name {
	case "off":
		return slog.New(slog.DiscardHandler), done
	case "-":
		w = os.Stdout
	default:
		f := &timberjack.Logger{Filename: filepath.Join(nf.DataDir, name), MaxSize: 64, MaxBackups: 3, FileMode: 0o640}
		w, done = f, func() { f.Close() }
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey {
			return slog.Attr{} // a line of an access log has no level
		}
		return a
	}})), done
}

// account is the user that the server runs as.
type account struct{ uid, gid uint32 }

// serverAccount returns the user that the server is to become, or nil to stay what the
// guard is.
func serverAccount(nf *site.NodeFile, log *slog.Logger) (*account, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	name := nf.User
	if name == "" {
		name = "peerage"
	}
	u, err := user.Lookup(name)
	switch {
	case err != nil && nf.User == "":
		log.Warn("the server runs as root: make a user for it with 'useradd --system peerage'")
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("user of the node file: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil || uid == 0 {
		return nil, err
	}
	return &account{uint32(uid), uint32(gid)}, nil
}
