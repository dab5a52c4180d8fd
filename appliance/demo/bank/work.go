package bank

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// Cores is how many cores the processor of a bank has, which the work of /work is done
// on. It is an emulation: it takes time, and no CPU.
const Cores = 4

// maxWorking bounds the requests that a processor works on at a time.
const maxWorking = 10_000

// work keeps a core busy for the time that ?for asks for, the mean of random times with
// ?law=exponential. Beside [bank.slow], which holds a request for a time whatever else
// there is, it takes the longer the more requests are in progress, as a node does that
// is short of CPU.
func work(p *processor) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		d, err := time.ParseDuration(q.Get("for"))
		law := q.Get("law")
		if err != nil || d < 0 || d > maxSlow || law != "" && law != "exponential" {
			http.Error(w, fmt.Sprintf("say ?for=40ms, or any time up to %v, and if it is the mean of random times &law=exponential", maxSlow), http.StatusBadRequest)
			return
		}
		if law != "" {
			d = min(time.Duration(float64(d)*rand.ExpFloat64()), 20*d)
		}
		switch err := p.work(r.Context(), d); {
		case errors.Is(err, errBusy):
			w.Header().Set("Retry-After", "1")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case err == nil:
			writeText(w, fmt.Sprintf("%v of work done\n", d))
		}
	}
}

var errBusy = fmt.Errorf("the processor works on %d requests, and takes no more", maxWorking)

// processor emulates one whose cores all jobs share, as the threads of a real one do. A
// job runs on one core at a time, so up to as many jobs as there are cores do not feel
// each other.
//
// Each job in progress advances at the same rate, so one number says how far: done. A job
// ends when done reaches the value that it had at the job's start, plus the job's work. A
// timer that fires late only delays the news: jobs end at the times when they must have
// ended.
type processor struct {
	cores int

	mu    sync.Mutex
	jobs  jobs
	done  time.Duration // work that a job in progress since the beginning would have got
	at    time.Time     // when done was that
	timer *time.Timer   // for the end of the first job; nil before there was one
}

func newProcessor(cores int) *processor { return &processor{cores: cores} }

// job is work in progress.
type job struct {
	end   time.Duration // of its work, in terms of processor.done
	place int           // in the heap; -1 when it has left that
	ended chan struct{} // closed at the end
}

// work returns when the work is done, which takes that long or longer, or ctx is over.
func (p *processor) work(ctx context.Context, d time.Duration) error {
	j, err := p.begin(d)
	if err != nil {
		return err
	}
	select {
	case <-j.ended:
		return nil
	case <-ctx.Done():
		p.abandon(j)
		return ctx.Err()
	}
}

func (p *processor) begin(d time.Duration) (*job, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(time.Now())
	if len(p.jobs) >= maxWorking {
		return nil, errBusy
	}
	j := &job{end: p.done + d, ended: make(chan struct{})}
	heap.Push(&p.jobs, j)
	p.advance(p.at) // a job of no work ends here
	p.wake()
	return j, nil
}

func (p *processor) abandon(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(time.Now())
	if j.place >= 0 {
		heap.Remove(&p.jobs, j.place)
	}
	p.wake()
}

// tick is called by the timer.
func (p *processor) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(time.Now())
	p.wake()
}

// sharers is by how many jobs a core is shared.
func (p *processor) sharers() float64 { return max(1, float64(len(p.jobs))/float64(p.cores)) }

// advance brings all work up to now. p.mu is held.
func (p *processor) advance(now time.Time) {
	for len(p.jobs) > 0 {
		first := p.jobs[0]
		takes := time.Duration(float64(first.end-p.done) * p.sharers())
		if p.at.Add(takes).After(now) {
			p.done += time.Duration(float64(now.Sub(p.at)) / p.sharers())
			p.at = now
			return
		}
		p.at = p.at.Add(takes)
		p.done = first.end
		heap.Pop(&p.jobs)
		close(first.ended)
	}
	p.done, p.at = 0, now
}

// wake sets the timer for the end of the first job. p.mu is held.
func (p *processor) wake() {
	if len(p.jobs) == 0 {
		if p.timer != nil {
			p.timer.Stop()
		}
		return
	}
	in := time.Duration(float64(p.jobs[0].end-p.done)*p.sharers()) + 1 // rounded up
	if p.timer == nil {
		p.timer = time.AfterFunc(in, p.tick)
	} else {
		p.timer.Reset(in)
	}
}

// jobs is a heap by their ends.
type jobs []*job

func (h jobs) Len() int           { return len(h) }
func (h jobs) Less(i, j int) bool { return h[i].end < h[j].end }
func (h jobs) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *jobs) Push(x any) {
	j := x.(*job)
	j.place = len(*h)
	*h = append(*h, j)
}

func (h *jobs) Pop() any {
	last := len(*h) - 1
	j := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	j.place = -1
	return j
}
