package main

import (
	endian "encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// question is what a client asks of a VIP, many times.
type question struct {
	network, port string // of [net.Dial]; no port for ICMP
	packet        []byte
	number        int // where in it its number lies, two octets
	finish        func(packet []byte)
	answers       func(packet []byte) (number uint16, ok bool)
}

// askEvery is the pause between two questions.
const askEvery = 5 * time.Millisecond

// echoRequest is for the kernel that has the VIP: nobody else need live on the machine.
func echoRequest() question {
	id := uint16(rand.N(math.MaxUint16))
	packet := endian.BigEndian.AppendUint16([]byte{byte(ipv4.ICMPTypeEcho), 0, 0, 0}, id)
	return question{
		network: "ip4:icmp", packet: append(packet, 0, 0), number: 6,
		finish: func(p []byte) {
			p[2], p[3] = 0, 0
			endian.BigEndian.PutUint16(p[2:], checksum(p))
		},
		answers: func(p []byte) (uint16, bool) {
			h, err := ipv4.ParseHeader(p)
			if err != nil || len(p) < h.Len {
				return 0, false
			}
			m, err := icmp.ParseMessage(ipv4.ICMPTypeEchoReply.Protocol(), p[h.Len:])
			if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
				return 0, false
			}
			e, ok := m.Body.(*icmp.Echo)
			if !ok || e.ID != int(id) {
				return 0, false
			}
			return uint16(e.Seq), true
		},
	}
}

// checksum is that of the Internet (RFC 1071), of an even number of octets.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(endian.BigEndian.Uint16(b[i:]))
	}
	for sum > math.MaxUint16 {
		sum = sum>>16 + sum&math.MaxUint16
	}
	return ^uint16(sum)
}

// hostQuestion is for the DNS server of a node.
func hostQuestion(t *testing.T) question {
	t.Helper()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(lanHost + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return question{network: "udp4", port: "53", packet: packet, answers: leading}
}

// echoQuestion is for [serveEcho].
func echoQuestion() question {
	return question{network: "udp4", port: echoPort, packet: make([]byte, 32), answers: leading}
}

func leading(p []byte) (uint16, bool) {
	if len(p) < 2 {
		return 0, false
	}
	return endian.BigEndian.Uint16(p), true
}

// answered is what came of the questions.
type answered struct {
	outage time.Duration // longest time between two that were answered
	began  time.Time     // when it began
	lost   time.Duration // askEvery for each that was not
	stall  time.Duration // longest time between two that were asked
}

// ask has the client ask a VIP every 5 ms, until the returned function is called.
func (l *lan) ask(t *testing.T, vip netip.Addr, q question) (end func() answered) {
	t.Helper()
	to := vip.String()
	if q.port != "" {
		to = net.JoinHostPort(to, q.port)
	}
	c, err := l.dial(t.Context(), q.network, to)
	if err != nil {
		t.Fatal(err)
	}
	a := &questions{at: map[uint16]time.Time{}}
	stop := make(chan struct{})
	stall := make(chan time.Duration, 1)
	var tasks sync.WaitGroup
	tasks.Go(func() { stall <- askAway(c, q, a, stop) })
	tasks.Go(func() {
		b := make([]byte, 1500)
		for {
			n, err := c.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if number, ok := q.answers(b[:n]); ok && err == nil { // an error is a host's word that nobody is there
				a.answered(number, time.Now())
			}
		}
	})
	finish := sync.OnceValue(func() answered {
		close(stop)
		late := <-stall
		<-time.After(dnsPatience) // the last answers are under way
		c.Close()
		tasks.Wait()
		r := answered{outage: a.outage(), lost: time.Duration(len(a.at)) * askEvery, stall: late}
		for i, at := range append(a.good[1:], a.last) { // in order, now
			if at.Sub(a.good[i]) == r.outage {
				r.began = a.good[i]
			}
		}
		return r
	})
	t.Cleanup(func() { finish() })
	return finish
}

// askAway asks until it is told to stop, and returns the longest time between two questions.
func askAway(c net.Conn, q question, a *questions, stop <-chan struct{}) (stall time.Duration) {
	// On a thread that goes before others, if it may: a client that is late sees outages
	// that there are not. It must not end, for the kernel ends with it what it once started
	// (PDEATHSIG): nodes, perhaps.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	schedule(unix.SCHED_FIFO, 5)
	defer schedule(unix.SCHED_NORMAL, 0)
	last := time.Now()
	for number := uint16(0); ; number++ {
		now := time.Now()
		stall, last = max(stall, now.Sub(last)), now
		endian.BigEndian.PutUint16(q.packet[q.number:], number)
		if q.finish != nil {
			q.finish(q.packet)
		}
		a.ask(number, now)
		c.Write(q.packet)
		select {
		case <-stop:
			return stall
		default:
		}
		// Not a timer of Go: other threads, which are ordinary, would wake this one up.
		nap := unix.NsecToTimespec(int64(askEvery - time.Since(now)))
		if nap.Nano() > 0 {
			unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &nap, nil)
		}
	}
}
