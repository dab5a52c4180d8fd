package dnsserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// pack returns a question as a message, after change has seen it.
func pack(t testing.TB, name string, qtype uint16, change func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 0x1234
	if change != nil {
		change(m)
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func edns(size uint16, do bool) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, do) }
}

func TestReply(t *testing.T) {
	const host = "www.peerage.test."
	set := func(at int, b ...byte) []byte {
		wire := pack(t, host, dns.TypeA, nil)
		copy(wire[at:], b)
		return wire
	}
	foreign := func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS; m.SetEdns0(1232, false) }
	for _, c := range []struct {
		name string
		msg  []byte
		want string // flags and counts as replyText writes them; empty for no reply
	}{
		{"nothing", nil, ""},
		{"eleven octets", make([]byte, 11), ""},
		{"a response", set(2, 0x80), ""},
		{"a header alone", make([]byte, 12), "FORMERR"},
		{"opcode NOTIFY", set(2, 4<<3|1), "NOTIMP rd"},
		{"opcode UPDATE", set(2, 5<<3), "NOTIMP"},
		{"opcode 15", set(2, 15<<3), "NOTIMP"},
		{"no question", set(5, 0), "FORMERR rd"},
		{"two questions", set(5, 2), "FORMERR rd"},
		{"an answer in it", set(7, 1), "FORMERR rd"},
		{"an authority in it", set(9, 1), "FORMERR rd"},
		{"cut short", set(0)[:20], "FORMERR rd"},
		{"octets behind the end", append(set(0), 0), "FORMERR rd"},
		{"a question by pointer", set(12, 0xc0, 0x0c), "FORMERR rd"},
		{"a label of a reserved type", set(12, 0x41), "FORMERR rd"},
		{"a name of 256 octets", slices.Concat(set(0)[:12], bytes.Repeat(append([]byte{63}, make([]byte, 63)...), 4), []byte{0, 0, 1, 0, 1}), "FORMERR rd"},
		{"no EDNS", pack(t, host, dns.TypeA, nil), "NOERROR aa rd qd=1 an=3"},
		{"EDNS", pack(t, host, dns.TypeA, edns(4096, false)), "NOERROR aa rd qd=1 an=3 edns=1232"},
		{"EDNS with DO", pack(t, host, dns.TypeA, edns(4096, true)), "NOERROR aa rd qd=1 an=3 edns=1232 do"},
		{"EDNS with a flag and an option of tomorrow", pack(t, host, dns.TypeA, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().SetZ(1)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}}
		}), "NOERROR aa rd qd=1 an=3 edns=1232"},
		{"EDNS version 1", pack(t, host, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true); m.IsEdns0().SetVersion(1) }), "BADVERS rd qd=1 edns=1232 do"},
		{"two OPTs", pack(t, host, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(1232, false) }), "FORMERR rd"},
		{"an OPT with an owner", pack(t, host, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().Hdr.Name = "a." }), "FORMERR rd"},
		{"an option cut short", func() []byte {
			wire := pack(t, host, dns.TypeA, func(m *dns.Msg) {
				m.SetEdns0(1232, false)
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}}
			})
			wire[len(wire)-2] = 9 // its length
			return wire
		}(), "FORMERR rd"},
		{"missing name", pack(t, "nothing.peerage.test.", dns.TypeA, nil), "NXDOMAIN aa rd qd=1 ns=1"},
		{"foreign name", pack(t, "example.com.", dns.TypeA, nil), "REFUSED rd qd=1"},
		{"foreign name, EDNS", pack(t, "example.com.", dns.TypeA, edns(1232, false)), "REFUSED rd qd=1 edns=1232 ede=20"},
		{"the root", pack(t, ".", dns.TypeNS, nil), "REFUSED rd qd=1"},
		{"class CH", pack(t, "version.bind.", dns.TypeTXT, foreign), "REFUSED rd qd=1 edns=1232 ede=20"},
		{"AXFR", pack(t, "peerage.test.", dns.TypeAXFR, nil), "REFUSED rd qd=1"},
		{"IXFR", pack(t, "peerage.test.", dns.TypeIXFR, func(m *dns.Msg) {
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "peerage.test.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: "."}}
		}), "REFUSED rd qd=1"},
		{"too large without EDNS", pack(t, "medium.peerage.test.", dns.TypeA, nil), "NOERROR aa tc rd qd=1"},
		{"size below 512 stands for 512", pack(t, "medium.peerage.test.", dns.TypeA, edns(100, false)), "NOERROR aa tc rd qd=1 edns=1232"},
		{"fits with EDNS", pack(t, "medium.peerage.test.", dns.TypeA, edns(1232, false)), "NOERROR aa rd qd=1 an=40 edns=1232"},
		{"too large with EDNS", pack(t, "big.peerage.test.", dns.TypeTXT, edns(65535, false)), "NOERROR aa tc rd qd=1 edns=1232"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, nil)
			got := ""
			if wire, rcode := s.reply(make([]byte, 4096), c.msg, false); wire != nil {
				got = replyText(t, c.msg, wire)
				if !strings.HasPrefix(got, rcodeName(rcode)) {
					t.Errorf("rcode %d goes with %q", rcode, got)
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// replyText unpacks a reply to msg and describes it.
func replyText(t *testing.T, msg, wire []byte) string {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("the reply %x to %x: %v", wire, msg, err)
	}
	if !bytes.Equal(msg[:2], wire[:2]) || !m.Response || m.RecursionAvailable {
		t.Fatalf("the header %x of the reply to %x", wire[:12], msg)
	}
	if len(m.Question) > 0 {
		at := headerSize
		if !skipName(msg, &at, false) || !bytes.Equal(msg[12:at+4], wire[12:at+4]) {
			t.Fatalf("the question of the reply %x to %x", wire, msg)
		}
	}
	var b strings.Builder
	opt := m.IsEdns0()
	b.WriteString(rcodeName(m.Rcode))
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, " aa"}, {m.Truncated, " tc"}, {m.RecursionDesired, " rd"}} {
		if f.set {
			b.WriteString(f.name)
		}
	}
	for i, name := range []string{" qd=", " an=", " ns="} {
		if n := binary.BigEndian.Uint16(wire[4+2*i:]); n > 0 {
			b.WriteString(name + fmt.Sprint(n))
		}
	}
	if opt != nil {
		b.WriteString(" edns=" + fmt.Sprint(opt.UDPSize()))
		if opt.Do() {
			b.WriteString(" do")
		}
		for _, o := range opt.Option {
			b.WriteString(" ede=" + fmt.Sprint(o.(*dns.EDNS0_EDE).InfoCode))
		}
	}
	return b.String()
}

func TestReplyEchoesTheLetterCase(t *testing.T) {
	s := newServer(t, nil)
	const name = "wWw.PeeRAGE.TesT."
	wire, _ := s.reply(make([]byte, 4096), pack(t, name, dns.TypeA, nil), false)
	var m dns.Msg
	if err := m.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	if m.Question[0].Name != name || m.Answer[0].Header().Name != name {
		t.Errorf("got %v", &m)
	}
}

func TestCountersTellWhatWasDropped(t *testing.T) {
	s := newServer(t, nil)
	s.reply(nil, make([]byte, 5), false)
	s.reply(nil, append([]byte{0, 0, 0x80}, make([]byte, 20)...), false)
	if c := s.Counters(); c.Dropped["short"] != 1 || c.Dropped["response"] != 1 {
		t.Errorf("got %+v", c)
	}
}

// FuzzQuery: whatever comes in, a reply is a well-formed message with the ID and, unless
// it is a header alone, the question of the query; and it fits where it goes.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"www.peerage.test.", "WWW.peerage.TEST.", "nothing.peerage.test.", `a\.b\255.peerage.test.`, ".", "example.com."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeANY, dns.TypeAXFR, dns.TypeOPT} {
			f.Add(pack(f, name, qtype, nil), false)
			f.Add(pack(f, name, qtype, edns(1232, true)), true)
		}
	}
	f.Add(pack(f, "big.peerage.test.", dns.TypeTXT, edns(512, false)), false)
	s := newServer(f, nil)
	buf := make([]byte, 4096)
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		wire, _ := s.reply(buf, msg, tcp)
		if wire == nil {
			if len(msg) >= headerSize && msg[2]&0x80 == 0 {
				t.Errorf("no reply to %x", msg)
			}
			return
		}
		if !tcp && len(wire) > maxUDP {
			t.Errorf("%d octets over UDP", len(wire))
		}
		text := replyText(t, msg, wire)
		if len(wire) > headerSize && !strings.Contains(text, "qd=1") {
			t.Errorf("no question in %q", text)
		}
	})
}

func BenchmarkReply(b *testing.B) {
	s := newServer(b, nil)
	buf := make([]byte, 4096)
	for _, c := range []struct {
		name string
		msg  []byte
	}{
		{"host A", pack(b, "www.peerage.test.", dns.TypeA, edns(1232, false))},
		{"NXDOMAIN", pack(b, "nothing.peerage.test.", dns.TypeA, edns(1232, false))},
		{"REFUSED", pack(b, "example.com.", dns.TypeA, edns(1232, false))},
		{"FORMERR", make([]byte, 12)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.reply(buf, c.msg, false)
			}
		})
	}
}
