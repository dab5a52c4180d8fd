package dnsserver

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// serve runs serveConn on a pipe and returns the client's end, and a channel that is
// closed when the connection has ended.
func serve(s *Server) (net.Conn, chan struct{}) {
	client, server := net.Pipe()
	done := make(chan struct{})
	c := &conn{Conn: server}
	s.conns.add(c)
	go func() {
		defer close(done)
		s.serveConn(c)
	}()
	return client, done
}

func TestConnectionsEndWhenTheirTimeIsUp(t *testing.T) {
	wire := pack(t, "www.peerage.test.", dns.TypeA, nil)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	for _, c := range []struct {
		name string
		send []byte
		read bool
		want time.Duration
	}{
		{"idle from the start", nil, false, idleTimeout},
		{"idle after a question", framed, true, idleTimeout},
		{"half a length", framed[:1], false, messageTimeout},
		{"half a question", framed[:20], false, messageTimeout},
		{"65,535 octets announced, none sent", []byte{0xff, 0xff}, false, messageTimeout},
		{"the reply is not read", framed, false, writeTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, nil)
				client, done := serve(s)
				defer client.Close()
				start := time.Now()
				client.Write(c.send)
				if c.read {
					if _, err := new(dns.Conn{Conn: client}).ReadMsg(); err != nil {
						t.Fatal(err)
					}
				}
				<-done
				if got := time.Since(start); got != c.want {
					t.Errorf("ended after %s, want %s", got, c.want)
				}
				if n := s.Counters().Conns; n != 0 {
					t.Errorf("%d connections are left", n)
				}
			})
		})
	}
}

func TestMessageThatIsNoQueryEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, done := serve(newServer(t, nil))
		client.Write([]byte{0, 1, 0})
		<-done
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want EOF", err)
		}
	})
}

func TestConnectionLimits(t *testing.T) {
	prefix := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24) }
	epoch := time.Unix(0, 0)
	newConn := func(from netip.Prefix, idle time.Time) *conn {
		c, _ := net.Pipe()
		return &conn{Conn: c, from: from, idle: idle}
	}
	has := func(t *conns, c *conn) bool { _, ok := t.open[c]; return ok }

	t.Run("one network", func(t *testing.T) {
		table := conns{open: map[*conn]struct{}{}}
		other := newConn(prefix(1), epoch)
		table.add(other)
		var all []*conn
		for i := range maxConnsPerNet {
			c := newConn(prefix(0), epoch.Add(time.Duration(100-i)*time.Second))
			if !table.add(c) {
				t.Fatalf("connection %d was refused", i)
			}
			all = append(all, c)
		}
		idlest := all[len(all)-1]
		if !table.add(newConn(prefix(0), time.Time{})) || has(&table, idlest) || !has(&table, other) {
			t.Error("the connection of the network that was idle for longest did not make room")
		}
		for _, c := range all {
			table.setIdle(c, time.Time{})
		}
		if table.add(newConn(prefix(0), time.Time{})) {
			t.Error("a connection more was taken while all of the network are at work")
		}
		if !table.add(newConn(prefix(2), time.Time{})) {
			t.Error("another network was refused")
		}
	})
	t.Run("all", func(t *testing.T) {
		table := conns{open: map[*conn]struct{}{}}
		for i := range maxConns {
			table.add(newConn(prefix(i), time.Time{}))
		}
		if table.add(newConn(prefix(300), time.Time{})) {
			t.Error("a connection more was taken while all are at work")
		}
		for c := range table.open {
			table.setIdle(c, epoch)
			break
		}
		if !table.add(newConn(prefix(300), time.Time{})) || table.count() != maxConns {
			t.Errorf("the idle connection did not make room; there are %d", table.count())
		}
	})
}

// TestConnectionsEndWithTheirAddress: those of another address go on.
func TestConnectionsEndWithTheirAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		goes, stays := &address{s: s}, &address{s: s}
		var done []chan struct{}
		for _, a := range []*address{goes, stays} {
			a.open.Store(&endpoint{s: s})
			client, ended := serve(s)
			defer client.Close()
			done = append(done, ended)
			s.conns.mu.Lock()
			for c := range s.conns.open {
				if c.at == nil {
					c.at = a.open.Load()
				}
			}
			s.conns.mu.Unlock()
		}
		start := time.Now()
		goes.Hold(true)
		goes.Hold(false)
		<-done[0]
		if got := time.Since(start); got != 0 {
			t.Errorf("a connection ended %s after its address", got)
		}
		<-done[1]
		if got := time.Since(start); got != idleTimeout {
			t.Errorf("a connection of another address ended after %s, want %s", got, idleTimeout)
		}
	})
}
