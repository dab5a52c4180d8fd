package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"peerage/balancing"
)

// SocketName is the control socket's name in the data directory.
const SocketName = "control.sock"

const (
	statusPath    = "/v1/status"
	balancingPath = "/v1/balancing"

	maxAnswer = maxMessage + 1<<20 // a status holds a view and the counters
	maxChange = 4 << 10
)

// control answers on the control socket: a file that only the node's own user can
// open.
func (s *server) control(ctx context.Context) error {
	path := filepath.Join(s.nodeFile.DataDir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.status()) })
	mux.HandleFunc("GET "+balancingPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.view.Load().Settings) })
	mux.HandleFunc("PATCH "+balancingPath, s.patchSettings)
	mux.HandleFunc("DELETE "+balancingPath, s.resetSettings)
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, x any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(x)
}

// patchSettings changes those settings of the whole site that the body names.
func (s *server) patchSettings(w http.ResponseWriter, r *http.Request) {
	settings := s.view.Load().Settings
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxChange))
	d.DisallowUnknownFields()
	if err := d.Decode(&settings); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.change(w, r, settings)
}

// resetSettings goes back to the settings of the site document.
func (s *server) resetSettings(w http.ResponseWriter, r *http.Request) {
	s.change(w, r, s.document.Balancing.Settings())
}

// change has the guard change the settings, and answers when this node follows them.
func (s *server) change(w http.ResponseWriter, r *http.Request, to balancing.Settings) {
	if err := to.Check(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	was := s.view.Load().Settings.Version
	if err := s.guard.send(toGuard{Set: &to}); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if now := s.view.Load().Settings; now.Version > was {
			answer(w, now)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			http.Error(w, "the guard has not taken it up", http.StatusServiceUnavailable)
			return
		}
	}
}

// call sends a request to the control socket of the node whose data directory is dir, and
// reads the answer into out.
func call(ctx context.Context, dir, method, path string, body, out any) error {
	fail := func(err error) error { return fmt.Errorf("ask the node at %s: %w", dir, err) }
	socket := filepath.Join(dir, SocketName)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer t.CloseIdleConnections()
	b, err := json.Marshal(body)
	if err != nil {
		return fail(err)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(b))
	if err != nil {
		return fail(err)
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(answer, 1<<10))
		return fail(fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(why)))
	}
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		return fail(err)
	}
	return nil
}

// ReadStatus asks the node whose data directory is dir.
func ReadStatus(ctx context.Context, dir string) (*Status, error) {
	st := new(Status)
	return st, call(ctx, dir, http.MethodGet, statusPath, nil, st)
}

// ReadSettings asks the same node how its site balances now.
func ReadSettings(ctx context.Context, dir string) (s balancing.Settings, err error) {
	return s, call(ctx, dir, http.MethodGet, balancingPath, nil, &s)
}

// ChangeSettings changes the settings of the whole site that changes names, by their keys
// in JSON, and returns those that count from now on.
func ChangeSettings(ctx context.Context, dir string, changes map[string]any) (s balancing.Settings, err error) {
	return s, call(ctx, dir, http.MethodPatch, balancingPath, changes, &s)
}

// ResetSettings goes back to those of the site document.
func ResetSettings(ctx context.Context, dir string) (s balancing.Settings, err error) {
	return s, call(ctx, dir, http.MethodDelete, balancingPath, nil, &s)
}
