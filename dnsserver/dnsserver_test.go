package dnsserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"peerage/balancing"
	"peerage/dnsserver/zone"
)

func testView() *balancing.View {
	v := &balancing.View{Self: "n1"}
	for i := range 3 {
		vips := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})}
		v.Nodes = append(v.Nodes, balancing.Node{
			ID: balancing.NodeID(fmt.Sprintf("n%d", i+1)), Home: vips, Held: vips, Online: true, State: balancing.OK,
		})
	}
	return v
}

// newServer returns a server of the zone peerage.test. Its log goes to events, if that
// is not nil.
func newServer(t testing.TB, events slog.Handler) *Server {
	var records strings.Builder
	records.WriteString("@ MX 10 mail\nmail A 192.0.2.25\n")
	for i := range 100 {
		fmt.Fprintf(&records, "big TXT a-text-that-makes-it-large-%d\n", i)
	}
	for i := range 40 {
		fmt.Fprintf(&records, "medium A 192.0.2.%d\n", i)
	}
	z, err := zone.New(zone.Config{
		Origin: "peerage.test", Nodes: []balancing.NodeID{"n1", "n2", "n3"}, Hosts: []string{"www.peerage.test"},
		Records: records.String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if events == nil {
		events = slog.DiscardHandler
	}
	view := testView()
	s := New(Config{View: func() *balancing.View { return view }, Log: slog.New(events)})
	s.SetZones([]*zone.Zone{z})
	return s
}

// events is a log that a test can wait on.
type events struct {
	slog.Handler
	c chan string
}

func newEvents() *events { return &events{slog.DiscardHandler, make(chan string, 1000)} }

func (e *events) Enabled(context.Context, slog.Level) bool { return true }

func (e *events) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "addr" {
			line += " " + a.Value.String()
		}
		return true
	})
	e.c <- line
	return nil
}

func (e *events) wait(want string) {
	for got := range e.c {
		if got == want {
			return
		}
	}
}

// run runs s, listening on addrs, until the test ends, and returns where it listens.
func run(t *testing.T, s *Server, e *events, addrs ...netip.Addr) []netip.AddrPort {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	s.Listen(addrs, nil)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if c := s.Counters(); c.Conns != 0 || len(s.Listening()) != 0 {
			t.Errorf("after Run: %d connections, listening on %v", c.Conns, s.Listening())
		}
	})
	for _, a := range addrs {
		e.wait("DNS address opened " + a.String())
	}
	return s.Listening()
}

// exchange asks a question over network, with the library's client.
func exchange(t *testing.T, network string, at netip.AddrPort, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	r, _, err := c.Exchange(m, at.String())
	if err != nil {
		t.Fatalf("%s %s over %s: %v", name, dns.Type(qtype), network, err)
	}
	return r
}

var loopback = netip.MustParseAddr("127.0.0.1")

func TestAnswersOverUDPAndTCP(t *testing.T) {
	e := newEvents()
	s := newServer(t, e)
	at := run(t, s, e, loopback)[0]
	for _, network := range []string{"udp", "tcp"} {
		r := exchange(t, network, at, "www.peerage.test.", dns.TypeA)
		if len(r.Answer) != 3 || !r.Authoritative || !r.RecursionDesired || r.RecursionAvailable {
			t.Errorf("%s: got %v", network, r)
		}
		if r := exchange(t, network, at, "www.example.com.", dns.TypeA); r.Rcode != dns.RcodeRefused {
			t.Errorf("%s: a foreign name: got %v", network, r)
		}
	}
	if r := exchange(t, "udp", at, "big.peerage.test.", dns.TypeTXT); !r.Truncated || len(r.Answer) != 0 {
		t.Errorf("udp: got %v, want TC and no records", r)
	}
	if r := exchange(t, "tcp", at, "big.peerage.test.", dns.TypeTXT); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("tcp: got %d records, want 100", len(r.Answer))
	}
	c := s.Counters()
	if c.UDP != 3 || c.TCP != 3 || c.Truncated != 1 || c.Replies["NOERROR"] != 4 || c.Replies["REFUSED"] != 2 {
		t.Errorf("counters: got %+v", c)
	}
}

func TestEachQuestionTurnsTheAddresses(t *testing.T) {
	e := newEvents()
	at := run(t, newServer(t, e), e, loopback)[0]
	first := map[string]bool{}
	for range 3 {
		r := exchange(t, "udp", at, "www.peerage.test.", dns.TypeA)
		exchange(t, "udp", at, "www.peerage.test.", dns.TypeAAAA) // as a browser does: must not undo it
		first[r.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 3 {
		t.Errorf("three questions: first were %v, want three different", first)
	}
}

func TestPipelinedTCPIsAnsweredInOrder(t *testing.T) {
	e := newEvents()
	at := run(t, newServer(t, e), e, loopback)[0]
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []byte
	for i := range 50 {
		m := new(dns.Msg).SetQuestion("www.peerage.test.", dns.TypeA)
		m.Id = uint16(i)
		wire, _ := m.Pack()
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(wire))), wire...)
	}
	// In pieces that end anywhere, the middle of a length included.
	for piece := range slices.Chunk(all, 41) {
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	dc := dns.Conn{Conn: c}
	for i := range 50 {
		r, err := dc.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if int(r.Id) != i || len(r.Answer) != 3 {
			t.Fatalf("reply %d: got %v", i, r)
		}
	}
}

func TestRandomBytesChangeNothing(t *testing.T) {
	e := newEvents()
	s := newServer(t, e)
	at := run(t, s, e, loopback)[0]
	c, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	random := rand.NewChaCha8([32]byte{1})
	for i := range 2000 {
		junk := make([]byte, i%100)
		random.Read(junk)
		if _, err := c.Write(junk); err != nil {
			t.Fatal(err)
		}
		if i%50 != 0 {
			continue
		}
		tc, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		tc.Write(junk)
		tc.Close()
		for _, network := range []string{"udp", "tcp"} {
			if r := exchange(t, network, at, "www.peerage.test.", dns.TypeA); len(r.Answer) != 3 {
				t.Errorf("%s: got %v", network, r)
			}
		}
	}
	counted := s.Counters()
	for _, why := range []string{"short", "response", "malformed"} {
		if counted.Dropped[why] == 0 {
			t.Errorf("nothing was dropped as %s: %v", why, counted.Dropped)
		}
	}
}

func TestAddressesComeAndGoWhileOthersAreAsked(t *testing.T) {
	e := newEvents()
	s := newServer(t, e)
	vip := netip.MustParseAddr("127.0.0.77")
	at := run(t, s, e, loopback)[0]
	for range 3 {
		s.Listen([]netip.Addr{loopback, vip}, nil)
		e.wait("DNS address opened 127.0.0.77")
		both := s.Listening()
		if len(both) != 2 || both[0] != at || both[1].Addr() != vip {
			t.Fatalf("listening on %v, want %s and %s", both, at, vip)
		}
		for _, network := range []string{"udp", "tcp"} {
			for _, a := range both {
				if r := exchange(t, network, a, "www.peerage.test.", dns.TypeA); len(r.Answer) != 3 {
					t.Errorf("%s %s: got %v", network, a, r)
				}
			}
		}
		open, err := net.Dial("tcp", both[1].String())
		if err != nil {
			t.Fatal(err)
		}
		s.Listen([]netip.Addr{loopback}, nil)
		e.wait("DNS address closed 127.0.0.77")
		if _, err := open.Read(make([]byte, 1)); err == nil {
			t.Error("a connection to the address outlived it")
		}
		open.Close()
		if got := s.Listening(); !slices.Equal(got, []netip.AddrPort{at}) {
			t.Errorf("listening on %v, want %s", got, at)
		}
		exchange(t, "udp", at, "www.peerage.test.", dns.TypeA)
	}
}

// TestStandby: an address that the node may come to hold is answered on at once, and closes
// its connections when it goes.
func TestStandby(t *testing.T) {
	vip := netip.MustParseAddr("127.0.0.79")
	e := newEvents()
	s := newServer(t, e)
	at := run(t, s, e, loopback)[0]
	s.c.Port = at.Port()
	standby := []netip.Addr{vip, loopback}
	s.Listen([]netip.Addr{loopback}, standby)
	atVIP := netip.AddrPortFrom(vip, at.Port())
	dial := func() (open net.Conn) {
		for open == nil {
			open, _ = net.Dial("tcp", atVIP.String())
		}
		t.Cleanup(func() { open.Close() })
		return open
	}
	for range 3 {
		dial() // until the standby is open
		if r := exchange(t, "udp", atVIP, "www.peerage.test.", dns.TypeA); len(r.Answer) != 3 {
			t.Errorf("on standby: got %v", r)
		}
		if got := s.Listening(); !slices.Equal(got, []netip.AddrPort{at}) {
			t.Errorf("listening on %v, want %s", got, at)
		}
		s.Listen([]netip.Addr{loopback, vip}, standby)
		e.wait("DNS address opened 127.0.0.79")
		if got := s.Listening(); !slices.Equal(got, []netip.AddrPort{at, atVIP}) {
			t.Errorf("listening on %v, want %s and %s", got, at, atVIP)
		}
		open := dial()
		exchange(t, "tcp", atVIP, "www.peerage.test.", dns.TypeA) // has been accepted after it
		s.Listen([]netip.Addr{loopback}, standby)
		e.wait("DNS address closed 127.0.0.79")
		if _, err := open.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a connection to the address ends with %v", err)
		}
	}
	s.Listen([]netip.Addr{loopback}, nil)
	for {
		open, err := net.Dial("tcp", atVIP.String())
		if err != nil {
			break
		}
		open.Close()
	}
}

// TestAddressInUseIsTakenWhenItIsFree: a peer on the same machine lets go of a VIP late.
func TestAddressInUseIsTakenWhenItIsFree(t *testing.T) {
	vip := netip.MustParseAddr("127.0.0.78")
	holder, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	e := newEvents()
	s := newServer(t, e)
	s.c.Port = holder.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	run(t, s, e)
	s.Listen([]netip.Addr{vip}, nil)
	e.wait("DNS address not opened 127.0.0.78")
	holder.Close()
	e.wait("DNS address opened 127.0.0.78")
	exchange(t, "udp", s.Listening()[0], "www.peerage.test.", dns.TypeA)
}

// TestAddressIsBoundBeforeTheKernelHasIt: 192.0.2.0/24 is nobody's (RFC 5737).
func TestAddressIsBoundBeforeTheKernelHasIt(t *testing.T) {
	e := newEvents()
	run(t, newServer(t, e), e, netip.MustParseAddr("192.0.2.11"))
}

func TestZonesAreSwappedWhole(t *testing.T) {
	e := newEvents()
	s := newServer(t, e)
	at := run(t, s, e, loopback)[0]
	other, err := zone.New(zone.Config{Origin: "example.test", Nodes: []balancing.NodeID{"n1"}, Records: "www A 192.0.2.99"})
	if err != nil {
		t.Fatal(err)
	}
	s.SetZones([]*zone.Zone{other})
	if r := exchange(t, "udp", at, "www.peerage.test.", dns.TypeA); r.Rcode != dns.RcodeRefused {
		t.Errorf("the old zone: got %v", r)
	}
	if r := exchange(t, "udp", at, "www.example.test.", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("the new zone: got %v", r)
	}
}
