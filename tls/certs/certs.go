// Package certs answers a TLS handshake with the certificate of the name, or the
// address, that the client asked for.
//
// Start with [Manager]: its GetCertificate serves TCP and QUIC alike from an index in
// memory. The source of the certificates is the site's local [CA], whose short-lived
// leaves are made in the handshake that first needs them; that costs less than the
// handshake itself, so nothing is prepared and nothing runs in the background.
// [PeerConfig] makes both sides of the mutual TLS between nodes from the same CA, and
// [JoinConfig] lets in, as far as its listener goes, who is no node yet.
//
// A handshake never waits for a disk, a peer or another name's certificate. A name
// that is not the site's gets no certificate and no place in the index. No private key
// is ever part of an error, a log line or a printed value.
//
// The package owns no goroutine.
package certs

import (
	"crypto/tls"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxCerts bounds the index: about 2 kB a certificate. A site with more names than
// that is served too; some of its certificates are then made again now and then.
const maxCerts = 4096

// Config is what a Manager needs. All fields but Default are required. Its functions are
// asked in each handshake, so that a changed site counts at once; they must be cheap and
// safe for concurrent use.
type Config struct {
	CA *CA

	// Names reports whether the site answers to a name: a host or a node name, in
	// lower case and without a final dot.
	Names func(name string) bool

	// Addrs does the same for an address, which is never a mapped one (::ffff:...).
	Addrs func(netip.Addr) bool

	// Default returns the name to show to a client that names none and came to an
	// address that is not one of Addrs. "", or no function, refuses such a client.
	Default func() string

	Log *slog.Logger
}

// Manager holds the certificates of a node's public listeners. Its methods are safe
// for concurrent use.
type Manager struct {
	c     Config
	slots atomic.Pointer[map[subject]*slot] // replaced whole, under mu
	mu    sync.Mutex
}

// subject is what one certificate is for: a name or an address.
type subject struct {
	name string
	addr netip.Addr
}

func (s subject) String() string {
	if s.name != "" {
		return s.name
	}
	return s.addr.String()
}

func (s subject) request() Request {
	if s.name != "" {
		return Request{DNS: []string{s.name}}
	}
	return Request{IPs: []netip.Addr{s.addr}}
}

// New returns a Manager with an empty index.
func New(c Config) *Manager {
	m := &Manager{c: c}
	m.slots.Store(new(map[subject]*slot))
	return m
}

// GetCertificate is for [tls.Config.GetCertificate]. A client that names no server is
// shown the certificate of the address it connected to, else that of the default name.
// One that names a server that is not ours gets none, which crypto/tls answers with
// the alert unrecognized_name (RFC 6066, section 3) as long as the config has no
// Certificates of its own.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	sub, ok := m.subject(hello)
	if !ok {
		return nil, nil
	}
	s := (*m.slots.Load())[sub]
	if s == nil {
		s = m.add(sub)
	}
	cert, fresh, err := s.get(time.Now())
	if fresh {
		m.c.Log.Info("certificate issued", "name", sub.String(), "until", cert.Leaf.NotAfter)
	}
	return cert, err
}

// subject tells which of our names or addresses hello asks for, if any.
func (m *Manager) subject(hello *tls.ClientHelloInfo) (subject, bool) {
	if hello.ServerName == "" {
		if addr := localAddr(hello); addr.IsValid() && m.c.Addrs(addr) {
			return subject{addr: addr}, true
		}
		if m.c.Default == nil {
			return subject{}, false
		}
		name := m.c.Default()
		return subject{name: name}, name != ""
	}
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if m.c.Names(name) && !isPeerName(name) {
		return subject{name: name}, true
	}
	// RFC 6066 forbids an address as server name; clients that send one all the same
	// mean what those mean that send nothing.
	addr, err := netip.ParseAddr(name)
	addr = addr.Unmap()
	return subject{addr: addr}, err == nil && m.c.Addrs(addr)
}

// localAddr returns the address that the client connected to, or the zero Addr.
func localAddr(hello *tls.ClientHelloInfo) netip.Addr {
	if hello.Conn == nil {
		return netip.Addr{}
	}
	a, ok := hello.Conn.LocalAddr().(interface{ AddrPort() netip.AddrPort }) // TCP and UDP
	if !ok {
		return netip.Addr{}
	}
	return a.AddrPort().Addr().Unmap().WithZone("")
}

// add returns the slot of sub, a new one if there is none. If the index is full, some
// other one makes room.
func (m *Manager) add(sub subject) *slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.slots.Load()
	if s := old[sub]; s != nil {
		return s
	}
	slots := make(map[subject]*slot, len(old)+1)
	maps.Copy(slots, old)
	for other := range slots {
		if len(slots) < maxCerts {
			break
		}
		delete(slots, other)
	}
	s := &slot{ca: m.c.CA, req: sub.request()}
	slots[sub] = s
	m.slots.Store(&slots)
	return s
}

// slot is the place of one certificate, which it makes and renews when it is asked
// for.
type slot struct {
	ca  *CA
	req Request

	cur atomic.Pointer[current]
	mu  sync.Mutex // held while a certificate is made
}

type current struct {
	cert          *tls.Certificate
	issued, renew time.Time
}

// due reports whether the certificate should be replaced: half of its life is over,
// or the clock has been set back to before it.
func (c *current) due(now time.Time) bool {
	return !now.Before(c.renew) || now.Before(c.issued.Add(-backdate))
}

// get returns the certificate, and whether this call has made it. The first callers
// wait for one of them to make it; when it is due for renewal, one caller makes the
// next while the others are served the old one.
func (s *slot) get(now time.Time) (cert *tls.Certificate, fresh bool, err error) {
	c := s.cur.Load()
	switch {
	case c == nil:
		s.mu.Lock()
	case !c.due(now) || !s.mu.TryLock():
		return c.cert, false, nil
	}
	defer s.mu.Unlock()
	if c = s.cur.Load(); c != nil && !c.due(now) {
		return c.cert, false, nil
	}
	if cert, err = s.ca.Leaf(now, s.req); err != nil {
		return nil, false, err
	}
	half := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore) / 2
	s.cur.Store(&current{cert: cert, issued: now, renew: cert.Leaf.NotBefore.Add(half)})
	return cert, true, nil
}
