package heartbeat

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// opener opens a transport in place of another one, or the first one for nil. The other
// one stays open, and as it was if there is an error.
type opener func(c *Config, mode Mode, old transport) (transport, error)

// reopening asks Run for another transport. Commit is to be called when it is open.
type reopening struct {
	c      *Config
	mode   Mode
	commit func()
	done   chan<- error // capacity 1
}

// Reconfigure changes, while reports go on, what an Exchange was made with: all of it or,
// with an error, nothing. What is known of the nodes that stay is kept; those that are not
// in c vanish from the view. Sockets are opened anew only if another network or way of
// exchange is wanted: the old ones are closed when the new ones are open.
//
// Self, Port, Site, Incarnation and Version cannot change; Keep and Log are not looked at.
// The settings in force stay unless the document says something else than before.
//
// It may be called at any time, before Run too.
func (x *Exchange) Reconfigure(c Config) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	c.Keep, c.Log = x.c.Keep, x.c.Log
	switch {
	case c.Self != x.c.Self, c.Port != x.c.Port, c.Site != x.c.Site, c.Incarnation != x.c.Incarnation, c.Version != x.c.Version:
		return errors.New("exchange of reports: neither node, port, site, incarnation nor version can change while it runs")
	case c.Sealer == nil:
		return errors.New("exchange of reports: there is no key to seal with")
	}
	if err := c.check(); err != nil {
		return err
	}
	if x.sameNetwork(&c) {
		x.commit(&c, x.mode, false)
		return nil
	}
	mode, err := x.settle(&c)
	if err != nil {
		return err
	}
	x.mu.Lock()
	ended := x.ended
	if ended == nil { // Run will open what c says
		defer x.mu.Unlock()
		x.commitLocked(&c, mode, true)
		return nil
	}
	x.mu.Unlock()
	done := make(chan error, 1)
	select {
	case x.reopen <- reopening{c: &c, mode: mode, commit: func() { x.commit(&c, mode, true) }, done: done}:
	case <-ended:
		return errors.New("exchange of reports: it has ended")
	}
	if err := <-done; err != nil {
		return fmt.Errorf("exchange of reports: %w", err)
	}
	return nil
}

// sameNetwork reports whether the sockets that are open do for c. Only Reconfigure writes
// what it reads, so x.mu need not be held.
func (x *Exchange) sameNetwork(c *Config) bool {
	return c.Exchange == x.c.Exchange && c.Local == x.c.Local && c.Interface == x.c.Interface && c.Group == x.c.Group
}

// reopen puts another transport in the place of the one that is open, and makes r so.
func (s *sender) reopen(r reopening) error {
	t, err := s.x.open(r.c, r.mode, s.t)
	if err != nil {
		return err
	}
	received := s.x.receive(t)
	moved := r.c.Local != s.x.c.Local
	r.commit()
	s.closeTransport()
	s.t, s.received = t, received
	if moved {
		s.string(netip.AddrPortFrom(r.c.Local, r.c.Port))
	}
	return nil
}

func (x *Exchange) commit(c *Config, mode Mode, moved bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.commitLocked(c, mode, moved)
}

// commitLocked makes c so, and tells the peers. What others read without x.mu is left alone.
func (x *Exchange) commitLocked(c *Config, mode Mode, moved bool) {
	now := time.Now()
	x.sealer.Store(c.Sealer)
	before := x.c
	x.c.Address, x.c.Internal, x.c.Local, x.c.Nodes = c.Address, c.Internal, c.Local, c.Nodes
	x.c.Document, x.c.OfflineAfter = c.Document, c.OfflineAfter
	x.c.Exchange, x.c.Interface, x.c.Group = c.Exchange, c.Interface, c.Group
	x.mode = mode

	x.me.Address, x.me.Internal = c.Address, c.Internal
	x.me.Home, x.me.Capacity = c.self().Home, c.self().Capacity
	x.peers = x.peers.changed(&before, c, now)
	if moved {
		x.peers.moved()
		x.c.Log.Info("reports go another way", "mode", mode, "addr", c.Local, "link", c.Interface)
	}
	if s := c.settings(x.settings); s != x.settings {
		x.adopt(s)
	}
	x.publish(now)
	x.tell(true)
}
