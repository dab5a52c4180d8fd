package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"peerage/appliance/site"
	"peerage/balancing/keys"
	"peerage/balancing/meter"
	"peerage/dnsserver"
	"peerage/edge"
)

// turning is a server that can turn to other documents: its guard agrees to all of them.
type turning struct {
	*server
	dir  string // with the directories that are served
	ring *keys.Ring
	deaf atomic.Bool // the guard does not answer
}

func newTurning(t testing.TB, text string) *turning {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "node.yaml")
	nf, err := site.ParseNode(path, []byte("name: n1\ndata_dir: "+dir+"\ninterfaces: {public: lo}\naddress: 127.0.0.1\n"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r := &turning{dir: dir, ring: ring, server: &server{nodeFile: nf, log: log, ring: ring, renewed: make(chan struct{}, 1)}}
	doc := r.document(t, text)
	r.meter = meter.New(meterConfig(nf, doc))
	r.view.Store(firstView(nf, doc))
	first, err := newGeneration(nf, doc, ring, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	r.current.Store(first)
	r.access = newAccessLog(nf, doc.Logs.Access)
	t.Cleanup(r.access.close)
	r.edge = edge.New(edge.Config{Self: "n1", View: r.view.Load, Meter: r.meter, Keys: ring, AccessLog: r.access.logger(), Log: log}, first.site)
	r.dns = dnsserver.New(dnsserver.Config{View: r.view.Load, Log: log})

	// No socket pair: a bubble does not wait for those.
	a, b := net.Pipe()
	ours := &channel{conn: a, in: bufio.NewScanner(a), out: json.NewEncoder(a)}
	theirs := &channel{conn: b, in: bufio.NewScanner(b), out: json.NewEncoder(b)}
	theirs.in.Buffer(nil, maxMessage)
	r.guard = ours
	var guard sync.WaitGroup
	guard.Go(func() {
		for {
			var m toGuard
			if theirs.receive(&m) != nil {
				return
			}
			if m.Change != nil && !r.deaf.Load() {
				r.wishes.answered(took{ID: m.Change.ID})
			}
		}
	})
	t.Cleanup(func() {
		ours.close()
		guard.Wait()
		theirs.close()
	})
	return r
}

// document reads a text in which DIR is the directory of the test.
func (r *turning) document(t testing.TB, text string) *site.Document {
	t.Helper()
	doc, err := site.ParseDocument("site.yaml", []byte(strings.ReplaceAll(text, "DIR", r.dir)))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func (r *turning) to(t testing.TB, text string) {
	t.Helper()
	if err := r.turnTo(t.Context(), text, r.document(t, text)); err != nil {
		t.Fatal(err)
	}
}

// open returns how many descriptors of this process are open on what lies in the directory.
func (r *turning) open(t testing.TB) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, r.dir) {
			n++
		}
	}
	return n
}

// bubbleRoutines returns how many goroutines are in a bubble: those in which the runtime
// cleans up come and go, and are in none.
func bubbleRoutines() int {
	b := make([]byte, 1<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), ", synctest bubble ")
}

const turningText = "site: example\nhosts: [www.example.com]\nnodes: {n1: {address: 127.0.0.1}}\n"

// TestTurnsLeaveNothingBehind turns a server many times, one turn on the heels of the
// other: no directory, log file or health check of a generation that has gone may stay.
func TestTurnsLeaveNothingBehind(t *testing.T) {
	generation := func(n int) string {
		return turningText + fmt.Sprintf(`routes:
  - {path: /, static: {dir: DIR}}
  - {path: /own/, static: {dir: DIR, index: i%d.html}}
  - {path: /app/, backend: app}
backends: {app: {servers: ['http://127.0.0.1:%d'], health: {path: /, every: 1h}}}
logs: {access: a%d.log}
`, n, 1+n, n%3)
	}
	const turns = 200
	synctest.Test(t, func(t *testing.T) {
		r := newTurning(t, generation(0))
		ctx, end := context.WithCancel(t.Context())
		var keeper sync.WaitGroup
		line := func() { r.access.logger().Info("request") }
		line()
		began := r.open(t)
		for i := range turns / 2 { // before it gets to look, as on a busy machine
			r.to(t, generation(i))
			line()
		}
		keeper.Go(func() { r.keepOrigins(ctx) })
		synctest.Wait()
		routines := bubbleRoutines()
		for i := range turns / 2 {
			r.to(t, generation(turns/2+i))
			line()
			time.Sleep(retireAfter / 5) // never a pause as long as that
			if n := r.open(t) - began; i > 20 && n > 10 {
				t.Fatalf("%d descriptors more are open after %d turns", n, turns/2+i)
			}
		}
		time.Sleep(2 * retireAfter)
		if n := r.open(t); n > began {
			t.Errorf("%d descriptors are open after %d turns, %d were before", n, turns, began)
		}
		if n := bubbleRoutines(); n > routines {
			t.Errorf("%d goroutines after %d turns, %d before", n, turns, routines)
		}
		// The old pool and the old directory are one generation's, and gone with it.
		if p := r.current.Load().origins.pools["app"]; p.Status()[0].URL != fmt.Sprintf("http://127.0.0.1:%d", turns) {
			t.Errorf("requests go to %+v", p.Status())
		}
		end()
		keeper.Wait()
	})
}

// TestAGuardThatDoesNotAnswer has the guard answer after the server has said that nothing was
// changed: if it goes by the change nevertheless, the server ends, so that the next one
// begins with that.
func TestAGuardThatDoesNotAnswer(t *testing.T) {
	document := turningText + "routes: [{path: /, static: {dir: DIR}}]\n"
	for name, c := range map[string]struct {
		err   string // of the late answer
		twice bool
		ends  bool
	}{
		"never":             {err: "", ends: false},
		"late and refuses":  {err: "too late", twice: true},
		"late and has done": {twice: true, ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newTurning(t, document)
				was := r.current.Load()
				r.deaf.Store(true)
				next := document + "limits: {requests: 77}\n"
				err := r.turnTo(t.Context(), next, r.document(t, next))
				if err == nil || !strings.Contains(err.Error(), "not answered") || r.current.Load() != was {
					t.Errorf("got %v; turned: %v", err, r.current.Load() != was)
				}
				if c.twice {
					r.wishes.answered(took{ID: 1, Err: c.err})
					r.wishes.answered(took{ID: 1, Err: c.err}) // answered once: the second is nobody's
					if n := len(r.wishes.open); n > 0 {
						t.Errorf("%d wishes are open", n)
					}
				}
				r.deaf.Store(false)
				err = r.turnTo(t.Context(), next, r.document(t, next))
				if c.ends != errors.Is(err, errGuardGone) || !c.ends && err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

// TestALateAnswerToSettingsEndsNothing: those the guard and the server need not agree on.
func TestALateAnswerToSettingsEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTurning(t, turningText+"routes: [{path: /, static: {dir: DIR}}]\n")
		if _, err := r.askGuard(t.Context(), func(id uint64) toGuard { return toGuard{Set: &set{ID: id}} }); err == nil {
			t.Error("answered")
		}
		r.wishes.answered(took{ID: 1, Version: 7})
		if err := r.guard.send(toGuard{Ask: true}); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkTurn measures what a change of the document costs a server, but for the guard's
// disk: parsing it, and making the next generation.
func BenchmarkTurn(b *testing.B) {
	text := func(levels int) string {
		var t strings.Builder
		t.WriteString(turningText)
		fmt.Fprintf(&t, "balancing: {light: %d}\nroutes:\n  - {path: /, static: {dir: DIR}}\n", levels)
		for i := range 999 {
			fmt.Fprintf(&t, "  - {path: /r%d/, backend: b%d}\n", i, i%100)
		}
		t.WriteString("backends:\n")
		for i := range 100 {
			fmt.Fprintf(&t, "  b%d: {servers: ['http://10.0.%d.1:80', 'http://10.0.%d.2:80'], health: {path: /}}\n", i, i, i)
		}
		return t.String()
	}
	r := newTurning(b, text(50))
	var docs [2]*site.Document
	var texts [2]string
	for i := range docs {
		texts[i] = text(51 + i)
		docs[i] = r.document(b, texts[i])
	}
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.document(b, texts[0])
		}
	})
	b.Run("turn", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := r.turnTo(b.Context(), texts[i%2], docs[i%2]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := r.turnToRing(b.Context(), r.ring); err != nil {
				b.Fatal(err)
			}
		}
	})
}
