package cluster

import (
	"context"
	"slices"
	"time"
)

// push is one call of [Member.Push].
type push struct {
	waiting map[string]bool // peers that have not answered
	refused []string
	done    chan struct{} // closed when nobody is waited for
}

// Push sends a part of a document to all peers that are alive, and waits until each of them
// has it on its disk. It returns those that have not: when ctx ends, when they refuse it, or
// when they are no longer alive. Nil means that all have it. The part should have been merged
// or put here before, so that it is not lost with a peer.
func (m *Member) Push(ctx context.Context, doc string, part []byte) (missing []string) {
	p := &push{waiting: map[string]bool{}, done: make(chan struct{})}
	for name := range m.live() {
		p.waiting[name] = true
	}
	if len(p.waiting) == 0 {
		return nil
	}
	m.mu.Lock()
	m.pushID++
	number := m.pushID
	m.pushes[number] = p
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pushes, number)
		m.mu.Unlock()
	}()

	header := pushOf(m.c.Self, number, doc)
	wait := 150 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var lost []string
	m.broadcast(m.pending(p), header, part)
	for {
		select {
		case <-ctx.Done():
			return m.unanswered(p, lost)
		case <-p.done:
			return m.unanswered(p, lost)
		case <-timer.C:
		}
		// Datagrams get lost, and so do answers.
		live := m.live()
		for _, name := range m.pending(p) {
			if !live[name] {
				lost = append(lost, name)
				m.answered(number, name, true)
				continue
			}
			if m.idle(name) {
				m.reliably(name, job{header, [][]byte{part}})
			}
		}
		wait = min(2*wait, 2*time.Second)
		timer.Reset(wait)
	}
}

// live returns the peers that are alive by memberlist or by their reports.
func (m *Member) live() map[string]bool {
	all := map[string]bool{}
	for _, name := range slices.Concat(m.alive(), m.c.Live()) {
		if name != m.c.Self && m.c.Allowed(name) {
			all[name] = true
		}
	}
	return all
}

func (m *Member) pending(p *push) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(p.waiting))
	for name := range p.waiting {
		names = append(names, name)
	}
	return names
}

func (m *Member) unanswered(p *push, lost []string) []string {
	missing := append(m.pending(p), lost...)
	m.mu.Lock()
	missing = append(missing, p.refused...)
	m.mu.Unlock()
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return missing
}

// answered takes the answer of a peer to a push.
func (m *Member) answered(number uint64, from string, durable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pushes[number]
	if p == nil || !p.waiting[from] {
		return
	}
	delete(p.waiting, from)
	if !durable {
		p.refused = append(p.refused, from)
	}
	if len(p.waiting) == 0 {
		close(p.done)
	}
}
