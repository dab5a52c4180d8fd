package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"peerage/balancing"
)

// A redirect moves a client for good, and so cannot level what is over in a moment. At a
// burst this node asks two peers how busy they are at this instant, and has a free one do
// the single request. The rule is in package balancing.
const (
	busyPath = "/.well-known/peerage/busy" // on the relay link only

	// busyWait is how long the answers may take: a request that could have been served
	// meanwhile must not wait for help.
	busyWait = 10 * time.Millisecond

	// maxAsking bounds the requests that ask at a time. A burst is when there are many, and
	// those that do not ask are served here.
	maxAsking = 32
)

// burst has a peer do the request if this node is too busy for it just now, and the peer
// is free.
func (s *Server) burst(r *http.Request, x *exchange) {
	if !x.site.Bursts || !x.decision.Helps() || r.Header.Get("Upgrade") != "" || s.c.Meter.Now() < balancing.BurstBusy {
		return
	}
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.busyWait)
	defer cancel()
	one, two := x.view.Helpers(&x.request)
	type answer struct {
		from balancing.NodeID
		busy float64
	}
	answers := make(chan answer, 2)
	asked := 0
	for _, id := range []balancing.NodeID{one, two} {
		if n := x.view.Node(id); n != nil && relayAddr(n).IsValid() {
			asked++
			go func() { answers <- answer{id, s.relay.busy(ctx, n)} }() // ends with ctx
		}
	}
	best := answer{busy: balancing.BurstFree}
	for range asked {
		if a := <-answers; a.busy >= 0 && (a.busy < best.busy || a.busy == best.busy && best.from == "") {
			best = a
		}
	}
	if best.from != "" {
		x.decision = balancing.Decision{Action: balancing.Relay, Peer: best.from, Reason: balancing.ReasonBurst}
	}
}

// busy asks a peer how busy it is at this instant, as a part of its capacity; negative if
// it does not say.
func (rl *relay) busy(ctx context.Context, n *balancing.Node) float64 {
	busy, err := rl.askBusy(context.WithValue(ctx, relayPeer{}, n))
	if err != nil {
		return -1
	}
	return busy
}

func (rl *relay) askBusy(ctx context.Context) (float64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://peer"+busyPath, nil)
	if err != nil {
		return 0, err
	}
	resp, err := rl.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 32))
	if err != nil {
		return 0, err
	}
	busy, err := strconv.ParseFloat(string(text), 64)
	if err == nil && (resp.StatusCode != http.StatusOK || !(busy >= 0)) {
		err = errors.New("peer does not say how busy it is")
	}
	return busy, err
}

// serveBusy tells a peer how busy this node is.
func (s *Server) serveBusy(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(w, "%.3f", s.c.Meter.Now())
}
