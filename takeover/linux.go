package takeover

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"peerage/takeover/internal/fence"
	"peerage/takeover/internal/link"
)

// LinuxLink is a [Link] of the Linux kernel.
type LinuxLink struct {
	*link.Interface
	name    string
	reports func() string

	mu     sync.Mutex
	fence  *fence.Fence // nil while there is none
	fenced []netip.Addr
	clear  bool      // there is none that an earlier process has left either
	tried  time.Time // when one was opened last
}

// Linux returns the interface called ifname as a [Link]. VIPs are its addresses of full
// length (/32, /128). It needs CAP_NET_ADMIN and CAP_NET_RAW.
//
// The interface is set up to answer ARP for nothing but its own addresses, and to use
// nothing but them; where that is forbidden, a warning is logged. Reports names the
// interface that marked reports leave by. The caller closes it.
func Linux(ifname string, reports func() string, log *slog.Logger) (*LinuxLink, error) {
	i, err := link.Open(ifname, log)
	if err != nil {
		return nil, err
	}
	return &LinuxLink{Interface: i, name: ifname, reports: reports}, nil
}

// tryEvery is the pause before a fence that an earlier process may have left is looked for
// again, if that was not possible.
const tryEvery = 10 * time.Second

// Fence implements [Link] with nf_tables.
func (l *LinuxLink) Fence(_ context.Context, vips []netip.Addr, lease time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(vips) == 0 && (l.clear || time.Since(l.tried) < tryEvery) {
		return nil
	}
	if l.fence == nil {
		l.tried = time.Now()
		f, err := fence.Open()
		if len(vips) == 0 && err != nil {
			return nil // as a rule there is none then; it is looked for again
		}
		if err != nil {
			return err
		}
		l.fence = f
	}
	if len(vips) == 0 {
		err := l.fence.Close()
		l.fence, l.fenced, l.clear = nil, nil, err == nil
		return err
	}
	l.clear, l.fenced = false, vips
	return l.fence.Set(fence.Config{Device: l.name, Reports: l.reports(), Mark: Mark, VIPs: vips, Lease: lease})
}

// Close takes the fence away, unless there are VIPs on the interface, and closes the
// sockets. Addresses stay where they are, for no longer than 2 s.
func (l *LinuxLink) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.fence != nil {
		ctx, cancel := context.WithTimeout(context.Background(), linkTimeout)
		defer cancel()
		on, listErr := l.Addrs(ctx)
		if err = listErr; err == nil && !slices.ContainsFunc(on, func(a netip.Addr) bool { return slices.Contains(l.fenced, a) }) {
			err = l.fence.Close()
		}
		l.fence = nil
	}
	return errors.Join(err, l.Interface.Close())
}
