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
	"sync"
	"sync/atomic"

	"github.com/DeRuina/timberjack"

	"peerage/appliance/membership"
	"peerage/appliance/site"
	"peerage/appliance/state"
)

// ErrRemoved is that the node was removed from its site, or has left it. It cannot come
// back: the machine must join as a new node.
var ErrRemoved = errRemoved

// Run runs the node of the node file at path until ctx ends, and then leaves the site in
// order. args are the arguments with which this program serves. A node that was removed
// from its site ends by itself, with [ErrRemoved]; one that was given another name leaves and
// comes back with it.
func Run(ctx context.Context, path string, log *slog.Logger, args ...string) error {
	for {
		err := runOnce(ctx, path, log, args)
		if !errors.Is(err, errRenamed) || ctx.Err() != nil {
			return err
		}
	}
}

func runOnce(ctx context.Context, path string, log *slog.Logger, args []string) error {
	nf, err := loadNode(path)
	if err != nil {
		return err
	}
	dir, err := state.Open(nf.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if nf, err = finishRenaming(path, nf, dir); err != nil {
		return err
	}
	text, err := os.ReadFile(nf.SiteFile)
	if err != nil {
		return err
	}
	doc, err := parseDocument(nf, string(text))
	if err != nil {
		return err
	}
	ring, err := state.ReadSiteKey(nf.SiteKeyFile)
	if err != nil {
		return err
	}
	if err := dir.ResealCA(ring); err != nil {
		return err
	}
	if _, err := membership.LoadOrCreateIdentity(dir); err != nil {
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
	g, err := newGuard(path, nf, string(text), doc, dir, ring, command, log)
	if err != nil {
		return err
	}
	beOnTime(log)
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
	begin, ring, err := guard.begin()
	if err != nil {
		return err
	}
	nf, err := loadNode(path)
	if err != nil {
		return err
	}
	doc, err := site.ParseDocument(nf.SiteFile, []byte(begin.Document))
	if err != nil {
		return err
	}
	ca, err := state.LoadCA(nf.DataDir, ring)
	if err != nil {
		return err
	}
	access := newAccessLog(nf, doc.Logs.Access)
	defer access.close()
	log = log.With("node", nf.Name)
	s, err := newServer(nf, begin.Document, doc, ring, ca, guard, access, log)
	if err != nil {
		return err
	}
	// Signals are for the guard, which tells the server when it is time.
	return s.run(context.Background())
}

func loadNode(path string) (*site.NodeFile, error) {
	nf, err := site.LoadNode(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w\n'peerage init' sets up a first node, 'peerage join' a further one; 'peerage demo' needs no files", err)
	}
	return nf, err
}

// accessLog is the access log, whose place the site document may change.
type accessLog struct {
	nf *site.NodeFile

	mu   sync.Mutex
	name string // as in the document
	to   atomic.Pointer[io.Writer]
	end  func()
}

func newAccessLog(nf *site.NodeFile, name string) *accessLog {
	a := &accessLog{nf: nf, end: func() {}}
	a.set(name)
	return a
}

// set says where lines go from now on. A file is turned over before it grows without
// bound.
func (a *accessLog) set(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name == a.name {
		return
	}
	a.name = name
	end := a.end
	a.end = func() {}
	var w io.Writer
	switch name {
	case "off":
		w = io.Discard
	case "-":
		w = os.Stdout
	default:
		f := &timberjack.Logger{Filename: filepath.Join(a.nf.DataDir, name), MaxSize: 64, MaxBackups: 3, FileMode: 0o640}
		w, a.end = f, func() { f.Close() }
	}
	a.to.Store(&w)
	end()
}

func (a *accessLog) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end()
}

func (a *accessLog) Write(b []byte) (int, error) { return (*a.to.Load()).Write(b) }

// logger returns what the edge writes to.
func (a *accessLog) logger() *slog.Logger {
	return slog.New(accessHandler{a, slog.NewJSONHandler(a, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey {
			return slog.Attr{} // a line of an access log has no level
		}
		return a
	}})})
}

// accessHandler spares the making of lines that nobody wants.
type accessHandler struct {
	a *accessLog
	slog.Handler
}

func (h accessHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return *h.a.to.Load() != io.Discard && h.Handler.Enabled(ctx, l)
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
