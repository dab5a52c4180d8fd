package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"peerage/appliance/site"
	"peerage/balancing/heartbeat"
	"peerage/balancing/keys"
	"peerage/balancing/meter"
	"peerage/dnsserver/zone"
	"peerage/edge"
	"peerage/edge/pin"
	"peerage/edge/route"
	"peerage/takeover"
)

// This file turns the two files of a node into the configurations of the parts.

func heartbeatConfig(nf *site.NodeFile, doc *site.Document, ring *keys.Ring, log *slog.Logger) heartbeat.Config {
	c := heartbeat.Config{
		Self:         nf.Name,
		Address:      nf.Address.Public,
		Internal:     nf.Address.Internal,
		Version:      shortVersion(),
		Sealer:       ring.Sealer(keys.LabelReport),
		Site:         doc.Site,
		Document:     doc.Balancing.Settings(),
		OfflineAfter: doc.Balancing.OfflineAfter,
		Port:         nf.Listen.Reports,
		Exchange:     doc.Balancing.Exchange,
		Local:        nf.Address.Public,
		Group:        nf.Multicast.Group,
		Log:          log,
	}
	if doc.Balancing.Channel == site.InternalChannel {
		c.Local = nf.Address.Internal
	}
	c.Interface = reportDevice(nf, doc)
	for _, id := range doc.NodeIDs() {
		n := doc.Nodes[id]
		c.Nodes = append(c.Nodes, heartbeat.Peer{ID: id, Address: n.Address, Internal: n.Internal, Home: n.VIPs, Capacity: n.Capacity})
	}
	return c
}

// reportDevice returns the interface that reports leave by.
func reportDevice(nf *site.NodeFile, doc *site.Document) string {
	if doc.Balancing.Channel == site.InternalChannel {
		return nf.Interfaces.Internal
	}
	return nf.Interfaces.Public
}

// reportMark returns the mark of reports by which the kernel lets VIPs through, or 0 and
// why there is none: the kernel might see no report leave where it goes to peers alone, which
// may not be there. On loopback, where VIPs are sockets, none is needed.
func reportMark(nf *site.NodeFile, doc *site.Document) (mark uint32, why string) {
	public, err := net.InterfaceByName(nf.Interfaces.Public)
	if err != nil || public.Flags&net.FlagLoopback != 0 {
		return 0, ""
	}
	name := reportDevice(nf, doc)
	reports, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		return 0, err.Error()
	case reports.Flags&net.FlagMulticast == 0:
		return 0, fmt.Sprintf("interface %s, by which reports leave, carries no multicast", name)
	}
	return takeover.Mark, ""
}

func meterConfig(nf *site.NodeFile, doc *site.Document) meter.Config {
	b := doc.Balancing
	c := meter.Config{Measure: b.Measure, Full: float64(b.Full) * doc.Nodes[nf.Name].Capacity, Interface: nf.Interfaces.Public}
	for i, r := range doc.Routes {
		if _, own := doc.Backends[r.Backend].ByNode[nf.Name]; r.Static == nil && !own {
			c.Elsewhere = append(c.Elsewhere, i)
		}
	}
	return c
}

// onLoopback reports whether the node claims VIPs on the loopback interface.
func onLoopback(nf *site.NodeFile) (bool, error) {
	ifi, err := net.InterfaceByName(nf.Interfaces.Public)
	if err != nil {
		return false, fmt.Errorf("public interface %s: %w", nf.Interfaces.Public, err)
	}
	return ifi.Flags&net.FlagLoopback != 0, nil
}

// openLink returns the means to claim VIPs: the kernel's addresses, or on loopback, where
// every address is there already, sockets.
func openLink(nf *site.NodeFile, reports func() string, log *slog.Logger) (takeover.Link, func(), error) {
	loopback, err := onLoopback(nf)
	if err != nil {
		return nil, nil, err
	}
	if loopback {
		l := takeover.Loopback(nf.Listen.Reports)
		return l, func() { l.Close() }, nil
	}
	l, err := takeover.Linux(nf.Interfaces.Public, reports, log)
	if err != nil {
		return nil, nil, err
	}
	return l, func() { l.Close() }, nil
}

// edgeSite returns the site as the edge serves it, with one origin for each route.
func edgeSite(nf *site.NodeFile, doc *site.Document, ring *keys.Ring, handlers []http.Handler) (*edge.Site, error) {
	addrs := []netip.Addr{nf.Address.Public}
	for _, n := range doc.Nodes {
		addrs = append(addrs, n.VIPs...)
	}
	names, err := route.NewNames(doc.Hosts, doc.NodeIDs(), doc.NodeNames, addrs...)
	if err != nil {
		return nil, err
	}
	table, err := route.NewTable(doc.Rules())
	if err != nil {
		return nil, err
	}
	return &edge.Site{
		Name:    doc.Site,
		Names:   names,
		Routes:  table,
		Origins: handlers,
		Pins:    pin.NewRing(ring.PinSealer(time.Now()), doc.Site),
		Grace:   doc.Drain.Grace,

		Bursts:         doc.Balancing.Bursts,
		MaxRequests:    doc.Limits.Requests,
		Proxies:        doc.Proxies.Trusted,
		ProxyRedirects: doc.Proxies.Redirect,
		ProxyProtocol:  doc.Proxies.Protocol,
	}, nil
}

// siteZone returns the zone that the site answers for.
func siteZone(nf *site.NodeFile, doc *site.Document) ([]*zone.Zone, error) {
	c := zone.Config{
		Origin:  doc.DNS.Zone,
		TTL:     doc.DNS.TTL,
		Serial:  doc.DNS.Serial,
		Hosts:   doc.Hosts,
		Records: doc.DNS.Records,
		File:    nf.SiteFile,
		Nodes:   doc.NodeIDs(),
	}
	for _, host := range doc.Hosts {
		for _, id := range doc.NodeIDs() {
			c.NodeNames = append(c.NodeNames, zone.NodeName{Name: doc.NodeName(id, host), Node: id})
		}
	}
	z, err := zone.New(c)
	if err != nil {
		return nil, err
	}
	return []*zone.Zone{z}, nil
}

// fanout passes the one signal of the exchange, that there is a new view, to several.
type fanout struct {
	from <-chan struct{}
	to   []chan struct{}
}

func newFanout(x *heartbeat.Exchange) *fanout { return &fanout{from: x.Changed()} }

// subscribe must be called before run.
func (f *fanout) subscribe() <-chan struct{} {
	c := make(chan struct{}, 1)
	f.to = append(f.to, c)
	return c
}

func (f *fanout) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.from:
			f.signal()
		}
	}
}

func (f *fanout) signal() {
	for _, c := range f.to {
		select {
		case c <- struct{}{}:
		default: // there is a signal waiting
		}
	}
}
