package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"peerage/balancing"
	"peerage/dnsserver"
	"peerage/edge"
	"peerage/edge/backend"
)

// Status is what a node tells of itself and its site on its control socket.
type Status struct {
	Site      string                      `json:"site"`
	Node      balancing.NodeID            `json:"node"`
	Version   string                      `json:"version"`
	Started   time.Time                   `json:"started"`
	ServerPID int                         `json:"server_pid"`
	Guard     *GuardStatus                `json:"guard,omitempty"`
	View      *balancing.View             `json:"view"`
	VIPs      []VIP                       `json:"vips"`
	Listening []netip.Addr                `json:"listening"`
	InFlight  int64                       `json:"in_flight"`
	Requests  edge.Counters               `json:"requests"`
	DNS       *dnsserver.Counters         `json:"dns,omitempty"`
	Backends  map[string][]backend.Server `json:"backends"`
}

// VIP is one VIP of the site: whose it is, and who answers for it.
type VIP struct {
	Address netip.Addr       `json:"address"`
	Home    balancing.NodeID `json:"home"`
	Holder  balancing.NodeID `json:"holder,omitempty"` // "" while nobody does
}

// SocketName is the control socket's name in the data directory.
const SocketName = "control.sock"

const statusPath = "/v1/status"

func (s *server) status() *Status {
	v := s.view.Load()
	st := &Status{
		Site: s.document.Site, Node: s.nodeFile.Name, Version: Version(), Started: s.started,
		ServerPID: os.Getpid(), Guard: s.told.Load(), View: v, Listening: s.edge.Listening(),
		InFlight: s.meter.InFlight(), Requests: s.edge.Counters(), Backends: s.origins.status(),
	}
	for _, n := range v.Nodes {
		for _, vip := range n.Home {
			x := VIP{Address: vip, Home: n.ID}
			if h := v.Holder(vip); h != nil {
				x.Holder = h.ID
			}
			st.VIPs = append(st.VIPs, x)
		}
	}
	if s.dns != nil {
		c := s.dns.Counters()
		st.DNS = &c
	}
	return st
}

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
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.status())
	})
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ReadStatus asks the node whose data directory is dir.
func ReadStatus(ctx context.Context, dir string) (*Status, error) {
	socket := filepath.Join(dir, SocketName)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer t.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+statusPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("ask the node at %s: %w", dir, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the node at %s: %s", dir, resp.Status)
	}
	var st Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxMessage)).Decode(&st); err != nil {
		return nil, fmt.Errorf("ask the node at %s: %w", dir, err)
	}
	return &st, nil
}
