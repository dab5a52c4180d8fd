package node

import (
	"net/netip"
	"os"
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
	Drained   map[balancing.NodeID]Order  `json:"drained,omitempty"` // by an operator
	Listening []netip.Addr                `json:"listening"`
	InFlight  int64                       `json:"in_flight"`
	Requests  edge.Counters               `json:"requests"`
	DNS       *dnsserver.Counters         `json:"dns,omitempty"`
	Backends  map[string][]backend.Server `json:"backends"`
	Agreed    *SiteStatus                 `json:"agreed"` // by the nodes of the site
}

func (s *server) status() *Status {
	v := s.view.Load()
	st := &Status{
		Site: s.document().Site, Node: s.nodeFile.Name, Version: Version(), Started: s.started,
		ServerPID: os.Getpid(), Guard: s.told.Load(), View: v, Listening: s.edge.Listening(),
		InFlight: s.meter.InFlight(), Requests: s.edge.Counters(), Backends: s.current.Load().origins.status(),
		Agreed: s.member.status(), VIPs: s.vips(), Drained: readOrders(s.member.orders).Drained,
	}
	if len(s.current.Load().zones) > 0 {
		c := s.dns.Counters()
		st.DNS = &c
	}
	return st
}
