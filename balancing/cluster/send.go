package cluster

import (
	"slices"

	"github.com/hashicorp/memberlist"
)

const (
	// small is the largest message that goes in one datagram of 1,400 octets, with what
	// memberlist adds to it: label, nonce, seal, checksum.
	small = 1000

	// direct is the most peers that each are told a change directly.
	direct = 32

	// fanout is how many peers a change goes to directly when there are more. Those for whom
	// it is new tell it on; what fits into a datagram goes with memberlist's gossip too.
	fanout = 6

	maxJobs      = 256
	maxJobOctets = 160 << 20
)

// job is messages to be sent reliably, one after the other: each is the header and a body.
type job struct {
	header []byte
	bodies [][]byte
}

func (j *job) octets() int {
	n := 0
	for _, b := range j.bodies {
		n += len(j.header) + len(b)
	}
	return n
}

// send sends a message to a peer, and waits for nothing: small ones as a datagram, others
// by its queue.
func (m *Member) send(name string, header []byte, bodies ...[]byte) {
	if len(bodies) == 0 {
		bodies = [][]byte{nil}
	}
	if len(bodies) == 1 && len(header)+len(bodies[0]) <= small {
		m.datagram(name, slices.Concat(header, bodies[0]))
		return
	}
	m.reliably(name, job{header, bodies})
}

// broadcast sends a message to several peers.
func (m *Member) broadcast(names []string, header []byte, bodies ...[]byte) {
	for _, name := range names {
		m.send(name, header, bodies...)
	}
}

func (m *Member) datagram(name string, b []byte) {
	list := m.list.Load()
	m.mu.Lock()
	p := m.peers[name]
	if list == nil || p == nil || m.ended {
		m.mu.Unlock()
		m.counters.failed.Add(1)
		return
	}
	node := p.node
	m.mu.Unlock()
	m.count(list.SendBestEffort(&node, b))
}

func (m *Member) count(err error) {
	if err != nil {
		m.counters.failed.Add(1)
		return
	}
	m.counters.sent.Add(1)
}

// reliably puts a job into the queue of a peer.
func (m *Member) reliably(name string, j job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list, p := m.list.Load(), m.peers[name]
	n := j.octets()
	switch {
	case list == nil, p == nil, m.ended:
		m.counters.failed.Add(1)
		return
	case len(p.jobs) >= maxJobs, p.octets > 0 && n > maxJobOctets-p.octets:
		m.counters.dropped.Add(1)
		return
	}
	p.jobs = append(p.jobs, j)
	p.octets += n
	if !p.sending {
		p.sending = true
		m.sending.Go(func() { m.drain(list, p) })
	}
}

// idle reports whether nothing is being sent to a peer reliably.
func (m *Member) idle(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[name]
	return p != nil && !p.sending
}

// drain sends what is queued for a peer.
func (m *Member) drain(list *memberlist.Memberlist, p *peer) {
	for {
		m.mu.Lock()
		if len(p.jobs) == 0 {
			p.sending = false
			m.mu.Unlock()
			return
		}
		j, node := p.jobs[0], p.node
		p.jobs = p.jobs[1:]
		m.mu.Unlock()

		var err error
		for _, body := range j.bodies {
			if err = list.SendReliable(&node, slices.Concat(j.header, body)); err != nil {
				break // the others would have to wait as long
			}
			m.counters.sent.Add(1)
		}

		m.mu.Lock()
		p.failed = err != nil
		p.octets = max(0, p.octets-j.octets())
		if err != nil {
			m.counters.failed.Add(uint64(1 + len(p.jobs)))
			p.jobs, p.octets = nil, 0
		}
		m.mu.Unlock()
	}
}

// tell tells a change: this node's own, or when there are many peers, of another.
func (m *Member) tell(doc string, part []byte) {
	names := m.alive()
	header := changeOf(m.c.Self, doc)
	if len(names) <= direct {
		m.broadcast(names, header, part)
		return
	}
	m.broadcast(m.some(fanout), header, part)
	if len(header)+len(part) <= small {
		m.queue.QueueBroadcast(broadcast(slices.Concat(header, part)))
		m.queue.Prune(maxEvents)
	}
}

// broadcast is a message for memberlist's queue.
type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
func (b broadcast) UniqueBroadcast()                      {}

var _ memberlist.UniqueBroadcast = broadcast(nil)
