package edge

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"peerage/balancing"
)

// recorder watches the answer go by: it notes status and size, lets before change the
// head of an origin's answer at the last moment, and does not wait for ever for the
// client.
type recorder struct {
	http.ResponseWriter
	rc      http.ResponseController // of ResponseWriter
	before  func(status int, h http.Header)
	status  int
	bytes   int64
	flushed bool
	out     pace
	body    *patientBody // nil without a body
}

// start makes w record the answer to r. It returns r with a body that does not wait for
// ever for the client either.
func (w *recorder) start(to http.ResponseWriter, r *http.Request) *http.Request {
	w.ResponseWriter, w.rc = to, *http.NewResponseController(to)
	w.out.proto, w.out.rc, w.out.set = r.ProtoMajor, &w.rc, (*http.ResponseController).SetWriteDeadline
	return w.patient(r)
}

func (w *recorder) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.out.begin()
		defer w.out.end()
	} else if w.status == 0 {
		w.head(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) head(status int) {
	w.status = status
	if w.before != nil {
		w.before(status, w.Header())
	}
}

// buffered is how much of an answer can be written without waiting for the client: all
// three servers hold that much back until the handler returns.
const buffered = 2 << 10

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.flushed || w.bytes+int64(len(b)) > buffered {
		w.out.begin()
		defer w.out.end()
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom copies with a buffer that is used again.
func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	buf := copyBuffers.Get()
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, src, buf)
}

// unanswered breaks off a request that was given up because its client seemed to be gone: a
// client that has only closed its own side must not take silence for success.
func (w *recorder) unanswered(r *http.Request) {
	if w.status == 0 && r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

// Hijack hands the connection over to a tunnel.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.status == 0 {
		w.head(http.StatusSwitchingProtocols)
	}
	w.out.finish()
	return w.rc.Hijack()
}

// FlushError sends what is there, head first.
func (w *recorder) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.flushed = true
	w.out.begin()
	defer w.out.end()
	return w.rc.Flush()
}

// Unwrap lets http.ResponseController find the rest.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// finish is called when the handler returns. It leaves a deadline for net/http to send
// what is buffered; for the rest of an unread body there is one already.
func (w *recorder) finish() {
	w.out.last()
	if w.body != nil {
		w.body.pace.finish()
	}
}

// copyBuffers are the buffers that bodies are copied through.
var copyBuffers bufferPool

type bufferPool struct{ p sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.p.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(buf []byte) { b.p.Put(&buf) }

// refuse answers with an error of our own.
func (w *recorder) refuse(status int, why string) {
	w.Header().Set("Cache-Control", "no-store")
	w.short(status, why)
}

// refused answers a request that was not accepted.
func (w *recorder) refused(err error) {
	status := http.StatusBadRequest
	if e, ok := errors.AsType[*errRefused](err); ok {
		status = e.status
	}
	if status == http.StatusMethodNotAllowed { // RFC 9110 15.5.6
		w.Header().Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	w.refuse(status, err.Error())
}

// short answers with one line of text.
func (w *recorder) short(status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write([]byte(text + "\n"))
}

// counters are what the server counts. Each is written by atomic addition only.
type counters struct {
	byAction    map[string]*atomic.Uint64 // filled once
	byReason    map[string]*atomic.Uint64 // filled once
	byProtocol  map[string]*atomic.Uint64 // filled once
	relays      map[string]*atomic.Uint64 // by reason; filled once
	byStatus    [6]atomic.Uint64          // by class
	refused     atomic.Uint64
	plain       atomic.Uint64
	badPins     atomic.Uint64
	pinsSet     atomic.Uint64
	pinsCleared atomic.Uint64
	steers      atomic.Uint64
}

func newCounters() *counters {
	c := &counters{
		byAction:   map[string]*atomic.Uint64{},
		byReason:   map[string]*atomic.Uint64{},
		byProtocol: map[string]*atomic.Uint64{"h1": {}, "h2": {}, "h3": {}, "relay": {}},
		relays:     map[string]*atomic.Uint64{},
	}
	for _, r := range balancing.Reasons() {
		c.byReason[r.String()] = new(atomic.Uint64)
		c.relays[r.String()] = new(atomic.Uint64)
	}
	for a := balancing.Here; a <= balancing.Unavailable; a++ {
		c.byAction[a.String()] = new(atomic.Uint64)
	}
	return c
}

// Counters is a copy of what the server has counted since it started.
type Counters struct {
	Requests    uint64            `json:"requests"`
	Actions     map[string]uint64 `json:"actions"`   // what became of the requests
	Reasons     map[string]uint64 `json:"reasons"`   // and why
	Protocols   map[string]uint64 `json:"protocols"` // h1, h2, h3, relay
	Statuses    map[string]uint64 `json:"statuses"`  // 1xx to 5xx
	Refused     uint64            `json:"refused"`   // not for us, or not understood
	Plain       uint64            `json:"plain_http"`
	BadPins     uint64            `json:"bad_pins"` // forged, garbled or too old
	PinsSet     uint64            `json:"pins_set"`
	PinsCleared uint64            `json:"pins_cleared"`
	Relays      map[string]uint64 `json:"relays"` // by this node to a peer, and why
	Steers      uint64            `json:"steers"` // answers that offered a peer
}

// Counters returns what has been counted so far.
func (s *Server) Counters() Counters {
	c := s.counters
	out := Counters{
		Actions:     loadAll(c.byAction),
		Reasons:     loadAll(c.byReason),
		Protocols:   loadAll(c.byProtocol),
		Statuses:    map[string]uint64{},
		Refused:     c.refused.Load(),
		Plain:       c.plain.Load(),
		BadPins:     c.badPins.Load(),
		PinsSet:     c.pinsSet.Load(),
		PinsCleared: c.pinsCleared.Load(),
		Relays:      loadAll(c.relays),
		Steers:      c.steers.Load(),
	}
	for i := range c.byStatus {
		if n := c.byStatus[i].Load(); n > 0 {
			out.Statuses[strconv.Itoa(i)+"xx"] = n
		}
	}
	for _, n := range out.Protocols {
		out.Requests += n
	}
	return out
}

// loadAll leaves out what never happened.
func loadAll(m map[string]*atomic.Uint64) map[string]uint64 {
	out := map[string]uint64{}
	for k, v := range m {
		if n := v.Load(); n > 0 {
			out[k] = n
		}
	}
	return out
}

func protocol(r *http.Request, x *exchange) string {
	switch {
	case x.relayed != "":
		return "relay"
	case r.ProtoMajor == 1:
		return "h1"
	case r.ProtoMajor == 2:
		return "h2"
	}
	return "h3"
}

// logged counts a finished request and writes its line in the access log. The query is
// left out: it may hold what is nobody's business.
func (s *Server) logged(w *recorder, r *http.Request, x *exchange) {
	proto := protocol(r, x)
	c := s.counters
	c.byProtocol[proto].Add(1)
	if w.status == 0 {
		w.status = 499 // the client went away before an answer
	}
	c.byStatus[min(w.status/100, 5)].Add(1)
	d := x.decision
	switch {
	case x.health:
		return
	case d.Action == 0:
		c.refused.Add(1)
	default:
		c.byAction[d.Action.String()].Add(1)
		c.byReason[d.Reason.String()].Add(1)
	}
	if d.Action == balancing.Relay {
		c.relays[d.Reason.String()].Add(1)
	}
	ctx := context.Background()
	if !s.c.AccessLog.Enabled(ctx, slog.LevelInfo) {
		return
	}
	a := make([]slog.Attr, 0, 15)
	a = append(a,
		slog.String("client", r.RemoteAddr), slog.String("proto", proto), slog.String("method", r.Method),
		slog.String("host", x.asked()), slog.String("path", cmp.Or(x.path, r.URL.EscapedPath())),
		slog.Int("status", w.status), slog.Int64("bytes", w.bytes),
		slog.Duration("dur", time.Since(x.start)))
	if d.Action != 0 {
		a = append(a, slog.String("decision", d.Action.String()), slog.String("reason", d.Reason.String()))
	}
	if d.Peer != "" {
		a = append(a, slog.String("peer", string(d.Peer)))
	}
	if x.steer != "" {
		a = append(a, slog.String("steer", string(x.steer)))
	}
	if x.relayed != "" {
		a = append(a, slog.String("from", string(x.relayed)))
	}
	if x.request.Owner != "" {
		a = append(a, slog.String("pin", string(x.request.Owner)))
	}
	s.c.AccessLog.LogAttrs(ctx, slog.LevelInfo, "request", a...)
}
