package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
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
	s.operate(mux)
	srv := &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// Who waits for a lengthy work hears how it ends: the node may have been asked to leave.
		end, cancel := context.WithTimeout(context.Background(), lastAnswers)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})
	err = srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// lastAnswers is how long a node that ends has for answers that are under way.
const lastAnswers = time.Second

func answer(w http.ResponseWriter, x any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(x)
}

// patchSettings changes those settings of the whole site that the body names.
func (s *server) patchSettings(w http.ResponseWriter, r *http.Request) {
	var patch json.RawMessage
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxChange)).Decode(&patch); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.set(w, r, set{Patch: patch})
}

// resetSettings goes back to the settings of the site document.
func (s *server) resetSettings(w http.ResponseWriter, r *http.Request) { s.set(w, r, set{Reset: true}) }

// set has the guard change the settings, and answers when this node follows them.
func (s *server) set(w http.ResponseWriter, r *http.Request, to set) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	t, err := s.askGuard(ctx, func(id uint64) toGuard {
		to.ID = id
		return toGuard{Set: &to}
	})
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case t.Err != "":
		http.Error(w, t.Err, http.StatusBadRequest)
		return
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if now := s.view.Load().Settings; now.Version >= t.Version {
			answer(w, now)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			http.Error(w, "the guard has not told of the new settings", http.StatusServiceUnavailable)
			return
		}
	}
}
