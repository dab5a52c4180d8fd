package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"peerage/appliance/site"
	"peerage/balancing/keys"
)

// A server turns to another site document, or another ring of site keys, while it serves.
// No listener is touched unless its address or port is another, and no open connection:
// the next request finds the new generation, and those under way end in theirs.

const (
	// guardTime is how long the guard may take over a change: it writes to the disk. One that
	// takes longer it takes back by itself.
	guardTime = 10 * time.Second

	// answerTime is how much longer the server waits for the answer.
	answerTime = 2 * time.Second
)

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

// wishes are what the guard has been asked for and has not answered.
type wishes struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]wish
}

// wish is one of them.
type wish struct {
	answer chan took // capacity 1; nil once nobody waits any more
	late   func()    // what is to be done if the guard says yes all the same
}

func (w *wishes) begin() (uint64, <-chan took) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[uint64]wish{}
	}
	w.last++
	c := make(chan took, 1)
	w.open[w.last] = wish{answer: c}
	return w.last, c
}

func (w *wishes) forget(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, id)
}

// giveUp ends the waiting for an answer; false if it has come. Those that were given up are
// few: the guard has room for [maxChanges], and answers the others at once.
func (w *wishes) giveUp(id uint64, late func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, open := w.open[id]
	if open {
		w.open[id] = wish{late: late}
	}
	return open
}

func (w *wishes) answered(t took) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x, open := w.open[t.ID]
	delete(w.open, t.ID)
	switch {
	case open && x.answer != nil:
		x.answer <- t // has room: each is answered once
	case open && t.Err == "":
		x.late()
	}
}

// wish has the guard make a change, and waits until it goes by it. After an error it does
// not, and will not.
func (s *server) wish(ctx context.Context, c change) error {
	c.Until = time.Now().Add(guardTime)
	t, err := s.askGuard(ctx, func(id uint64) toGuard {
		c.ID = id
		return toGuard{Change: &c}
	})
	switch {
	case errors.Is(err, errGuardGone):
		return err
	case err != nil:
		return fmt.Errorf("nothing was changed: %w; look whether the disk of the data directory is well", err)
	case t.Err != "":
		return errors.New(t.Err)
	}
	return nil
}

// askGuard sends the guard a message, and waits for the answer to it.
func (s *server) askGuard(ctx context.Context, message func(id uint64) toGuard) (took, error) {
	ctx, cancel := context.WithTimeout(ctx, guardTime+answerTime)
	defer cancel()
	id, answer := s.wishes.begin()
	m := message(id)
	if err := s.guard.send(m); err != nil {
		s.wishes.forget(id)
		return took{}, errGuardGone
	}
	select {
	case t := <-answer:
		return t, nil
	case <-ctx.Done():
	}
	late := func() {}
	if m.Change != nil {
		late = s.endLate
	}
	if !s.wishes.giveUp(id, late) {
		return <-answer, nil
	}
	return took{}, fmt.Errorf("the guard has not answered: %w", context.Cause(ctx))
}

// endLate is for a change that the guard has made in time, and has then not said so for
// seconds. It would go by something else than its server: let the server end, and the next
// one begin with what the guard goes by.
func (s *server) endLate() {
	s.log.Error("guard made a change that was given up")
	s.guard.close()
}
