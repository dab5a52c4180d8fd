package edge

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long a client may keep one read of its body or one write to it
// waiting. The timeouts of http.Server are for whole requests, and would end honest
// slow clients and long streams as well.
const patience = time.Minute

// pace cuts off a client that keeps one direction of a request waiting. begin and end
// go around each read or write, finish around the whole.
type pace struct {
	proto int // HTTP version
	rc    *http.ResponseController
	set   func(*http.ResponseController, time.Time) error // the deadline of this direction

	mu    sync.Mutex
	over  bool      // the handler has returned: set is not ours any more
	armed time.Time // when set was last called
	timer *time.Timer
}

func (p *pace) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
	case p.proto != 2:
		p.arm()
	case p.timer == nil:
		// On HTTP/2 a deadline ends the stream even if nothing waits for it, and a
		// stream may be quiet for as long as it likes.
		p.timer = time.AfterFunc(patience, p.cut)
	default:
		p.timer.Reset(patience)
	}
}

func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
}

// arm puts the deadline off; once a second is often enough.
func (p *pace) arm() {
	if now := time.Now(); now.Sub(p.armed) >= time.Second {
		p.armed = now
		p.set(p.rc, now.Add(patience))
	}
}

func (p *pace) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.set(p.rc, time.Unix(1, 0))
	}
}

// finish is called when the handler returns, or gives the connection away.
func (p *pace) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
}

// last is finish, with the deadline put off once more.
func (p *pace) last() {
	p.mu.Lock()
	if !p.over {
		p.arm()
	}
	p.mu.Unlock()
	p.finish()
}

// patientBody is the body of a request whose client may not keep its reader waiting.
type patientBody struct {
	io.ReadCloser
	pace pace
	ends atomic.Bool // nothing more comes
}

// patient returns r with such a body. It is a copy: net/http looks at the type of the
// body in its own to see whether the client waits for 100 (Continue).
func (w *recorder) patient(r *http.Request) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	w.body = &patientBody{
		ReadCloser: r.Body,
		pace:       pace{proto: r.ProtoMajor, rc: &w.rc, set: (*http.ResponseController).SetReadDeadline},
	}
	if r.ProtoMajor == 1 {
		w.body.pace.arm() // net/http reads by itself what no handler wants
		w.out.arm()       // and writes 100 (Continue)
	}
	r = r.WithContext(r.Context())
	r.Body = w.body
	return r
}

func (b *patientBody) Read(p []byte) (int, error) {
	if b.ends.Load() {
		// From here on net/http reads the connection, with no deadline, to notice
		// when the client goes away.
		return b.ReadCloser.Read(p)
	}
	b.pace.begin()
	n, err := b.ReadCloser.Read(p)
	b.pace.end()
	if err != nil {
		b.ends.Store(true)
	}
	return n, err
}
