package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"peerage/appliance/site"
	"peerage/balancing/keys"
)

// A server turns to another site document, or another ring of site keys, while it serves.
// No listener is touched unless its address or port is another, and no open connection:
// the next request finds the new generation, and those under way end in theirs.

// guardTime is how long the guard may take over a change: it writes to the disk.
const guardTime = 10 * time.Second

// turnTo serves doc, whose text that is, from the next request on. The guard goes by it
// first. After an error nothing has changed.
func (s *server) turnTo(ctx context.Context, text string, doc *site.Document) error {
	s.turning.Lock()
	defer s.turning.Unlock()
	return s.turn(ctx, doc, s.ring, change{Document: text})
}

// turnToRing seals and opens with the keys of ring from now on.
func (s *server) turnToRing(ctx context.Context, ring *keys.Ring) error {
	s.turning.Lock()
	defer s.turning.Unlock()
	if err := s.turn(ctx, s.document(), ring, change{SiteKey: ring.Reveal()}); err != nil {
		return err
	}
	s.ring = ring
	s.edge.SetKeys(ring)
	return nil
}

// turn makes the next generation the present one. s.turning is held.
func (s *server) turn(ctx context.Context, doc *site.Document, ring *keys.Ring, c change) error {
	was := s.current.Load()
	next, err := newGeneration(s.nodeFile, doc, ring, was, s.log)
	if err != nil {
		return err
	}
	if err := s.wish(ctx, c); err != nil {
		next.origins.closeAllBut(was.origins)
		return err
	}
	s.current.Store(next)
	s.past.add(was.origins)
	s.passed.Store(0)
	s.edge.SetSite(next.site)
	if doc != was.doc {
		s.edge.SetPeers(doc.NodeIDs())
		s.dns.SetZones(next.zones)
		s.meter.Set(meterConfig(s.nodeFile, doc))
		s.access.set(doc.Logs.Access)
	}
	select {
	case s.renewed <- struct{}{}:
	default:
	}
	s.follow()
	return nil
}

// wishes are the changes that the guard has been asked for and has not answered.
type wishes struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]chan took
}

func (w *wishes) begin() (uint64, <-chan took) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[uint64]chan took{}
	}
	w.last++
	c := make(chan took, 1)
	w.open[w.last] = c
	return w.last, c
}

func (w *wishes) forget(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, id)
}

func (w *wishes) answered(t took) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.open[t.ID]; c != nil {
		c <- t // has room: each is answered once
		delete(w.open, t.ID)
	}
}

// wish has the guard make a change, and waits until it goes by it.
func (s *server) wish(ctx context.Context, c change) error {
	t, err := s.askGuard(ctx, func(id uint64) toGuard {
		c.ID = id
		return toGuard{Change: &c}
	})
	if err == nil && t.Err != "" {
		err = errors.New(t.Err)
	}
	return err
}

// askGuard sends the guard a message, and waits for the answer to it.
func (s *server) askGuard(ctx context.Context, message func(id uint64) toGuard) (took, error) {
	ctx, cancel := context.WithTimeout(ctx, guardTime)
	defer cancel()
	id, answer := s.wishes.begin()
	defer s.wishes.forget(id)
	if err := s.guard.send(message(id)); err != nil {
		return took{}, errGuardGone
	}
	select {
	case t := <-answer:
		return t, nil
	case <-ctx.Done():
		return took{}, errors.New("the guard has not answered: " + context.Cause(ctx).Error())
	}
}
