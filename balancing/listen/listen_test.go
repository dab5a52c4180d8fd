package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	host = netip.MustParseAddr("192.0.2.1")
	vip1 = netip.MustParseAddr("192.0.2.11")
	vip2 = netip.MustParseAddr("192.0.2.12")
)

// told is what the endpoints were told, a word each; the log adds its lines.
type told struct {
	mu    sync.Mutex
	words []string
}

func (w *told) say(format string, a ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.words = append(w.words, fmt.Sprintf(format, a...))
}

// take returns what was told since the last time, in the order of the alphabet: that of
// addresses is none.
func (w *told) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.words)
	text := strings.Join(w.words, ", ")
	w.words = nil
	return text
}

func (w *told) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), " err=")
	w.say("%s", strings.ReplaceAll(strings.TrimPrefix(text, "msg="), `"`, ""))
	return len(line), nil
}

type endpoint struct {
	*told
	addr netip.Addr
	open bool

	lack   sync.Mutex
	err    error // of Open
	serves bool  // in spite of it
}

func (e *endpoint) lacks(err error, serves bool) {
	e.lack.Lock()
	defer e.lack.Unlock()
	e.err, e.serves = err, serves
}

func (e *endpoint) Open() (bool, error) {
	e.lack.Lock()
	defer e.lack.Unlock()
	if e.err != nil {
		return e.serves, e.err
	}
	if !e.open {
		e.open = true
		e.say("open %s", e.addr)
	}
	return true, nil
}

func (e *endpoint) Hold(held bool) { e.say("hold %s %v", e.addr, held) }
func (e *endpoint) Close()         { e.say("close %s", e.addr) }

// rig runs listeners of such endpoints, in a bubble, and returns them by address.
func rig(t *testing.T) (*Listeners[*endpoint], map[netip.Addr]*endpoint, *told) {
	w := &told{}
	made := map[netip.Addr]*endpoint{vip2: {addr: vip2, err: errors.New("in use")}}
	l := New(Config[*endpoint]{
		What: "place",
		New: func(a netip.Addr) *endpoint {
			if made[a] == nil {
				made[a] = &endpoint{addr: a}
			}
			made[a].told = w
			return made[a]
		},
		Retry: time.Second,
		Log: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}})),
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		l.Run(ctx)
		l.Close()
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		if len(l.Serving()) > 0 {
			t.Error("something serves after Close")
		}
	})
	return l, made, w
}

func (l *Listeners[E]) at() (addrs []netip.Addr) {
	for _, e := range l.Serving() {
		addrs = append(addrs, any(e).(*endpoint).addr)
	}
	return addrs
}

func TestEndpointsFollowTheAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, w := rig(t)
		for _, step := range []struct {
			held, standby []netip.Addr
			want          string
			serving       []netip.Addr
		}{
			{[]netip.Addr{host}, []netip.Addr{vip1}, "hold 192.0.2.1 true, open 192.0.2.1, open 192.0.2.11, place opened addr=192.0.2.1", []netip.Addr{host}},
			{[]netip.Addr{vip1, host}, []netip.Addr{vip1}, "hold 192.0.2.11 true, place opened addr=192.0.2.11", []netip.Addr{host, vip1}},
			{[]netip.Addr{vip1, host}, []netip.Addr{vip1}, "", []netip.Addr{host, vip1}},
			{[]netip.Addr{host}, []netip.Addr{vip1}, "hold 192.0.2.11 false, place closed addr=192.0.2.11", []netip.Addr{host}},
			{[]netip.Addr{host, vip1}, nil, "hold 192.0.2.11 true, place opened addr=192.0.2.11", []netip.Addr{host, vip1}},
			{[]netip.Addr{vip1}, nil, "close 192.0.2.1, place closed addr=192.0.2.1", []netip.Addr{vip1}},
			{nil, []netip.Addr{vip1}, "hold 192.0.2.11 false, place closed addr=192.0.2.11", nil},
			{nil, nil, "close 192.0.2.11", nil},
		} {
			l.Listen(step.held, step.standby)
			synctest.Wait()
			if got := w.take(); got != step.want {
				t.Errorf("held %v, standby %v: %q, want %q", step.held, step.standby, got, step.want)
			}
			if got := l.at(); !slices.Equal(got, step.serving) {
				t.Errorf("held %v, standby %v: %v serve, want %v", step.held, step.standby, got, step.serving)
			}
		}
	})
}

// What cannot be had is tried again, and is in the log once.
func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, made, w := rig(t)
		l.Listen([]netip.Addr{vip2}, nil)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if got, want := w.take(), "hold 192.0.2.12 true, place not opened addr=192.0.2.12"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		made[vip2].lacks(errors.New("in use"), true) // a part of it can be had
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := w.take(), "place opened addr=192.0.2.12"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		made[vip2].lacks(nil, true)
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := w.take(), "open 192.0.2.12"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		made[vip2].lacks(errors.New("gone again"), false)
		l.Look()
		synctest.Wait()
		if got, want := w.take(), "place closed addr=192.0.2.12, place not opened addr=192.0.2.12"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		l.Listen(nil, nil)
		synctest.Wait()
		if got, want := w.take(), "close 192.0.2.12"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// Whoever names addresses does not wait, and need not keep the slice.
func TestListenNeverBlocks(t *testing.T) {
	l := New(Config[*endpoint]{})
	addrs := []netip.Addr{host}
	for range 100 {
		l.Listen([]netip.Addr{vip2}, nil)
		l.Look()
	}
	l.Listen(addrs, nil)
	addrs[0] = vip1
	if got := l.wanted(); len(got) != 1 || !got[host] {
		t.Errorf("wanted %v, want %s to be held", got, host)
	}
}

// 192.0.2.0/24 and 2001:db8::/32 are nobody's (RFC 5737, RFC 3849).
func TestFreebind(t *testing.T) {
	for _, a := range []netip.Addr{vip1, netip.MustParseAddr("2001:db8::11")} {
		at := netip.AddrPortFrom(a, 0).String()
		l, err := Freebind.Listen(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		c, err := Freebind.ListenPacket(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
