package bank

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProcessorIsShared(t *testing.T) {
	type job struct{ starts, work, ends time.Duration }
	const ms = time.Millisecond
	for _, test := range []struct {
		name string
		jobs []job
	}{
		{"one alone", []job{{0, 40 * ms, 40 * ms}}},
		{"no work", []job{{0, 0, 0}}},
		{"a core each", []job{{0, 40 * ms, 40 * ms}, {10 * ms, 40 * ms, 50 * ms}}},
		{"four on two cores", []job{{0, 10 * ms, 20 * ms}, {0, 10 * ms, 20 * ms}, {0, 10 * ms, 20 * ms}, {0, 10 * ms, 20 * ms}}},
		{"the short one frees its share", []job{{0, 10 * ms, 15 * ms}, {0, 20 * ms, 25 * ms}, {0, 20 * ms, 25 * ms}}},
		// All three have done 4 ms at 6 ms, when a fourth makes the rate a half.
		{"one more slows down the others", []job{{0, 10 * ms, 18 * ms}, {0, 10 * ms, 18 * ms}, {0, 10 * ms, 18 * ms}, {6 * ms, 8 * ms, 20 * ms}}},
		{"again after a rest", []job{{0, 10 * ms, 10 * ms}, {time.Second, 10 * ms, time.Second + 10*ms}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProcessor(2)
				began := time.Now()
				var all sync.WaitGroup
				for i, j := range test.jobs {
					all.Go(func() {
						time.Sleep(j.starts)
						if err := p.work(t.Context(), j.work); err != nil {
							t.Error(err)
						}
						if got := time.Since(began).Round(10 * time.Microsecond); got != j.ends {
							t.Errorf("job %d ended at %v, want %v", i, got, j.ends)
						}
					})
				}
				all.Wait()
			})
		})
	}
}

func TestProcessorLetsGoOfWhoLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessor(1)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			if err := p.work(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("work of somebody who left: %v", err)
			}
		})
		// It has half of the core for 10 ms, then all of it.
		if err := p.work(t.Context(), 20*time.Millisecond); err != nil {
			t.Error(err)
		}
		if got := time.Since(began).Round(10 * time.Microsecond); got != 25*time.Millisecond {
			t.Errorf("the other ended after %v, want 25ms", got)
		}
		all.Wait()
		if len(p.jobs) != 0 {
			t.Errorf("%d jobs are left", len(p.jobs))
		}
	})
}

func TestProcessorIsBounded(t *testing.T) {
	p := newProcessor(1)
	for range maxWorking {
		if _, err := p.begin(time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.begin(time.Hour); !errors.Is(err, errBusy) {
		t.Errorf("one more: %v, want %v", err, errBusy)
	}
	p.timer.Stop()
}

// TestProcessorIsTheQueueOfTheTextbooks compares the mean time at a shared core with
// theory: service / (1 - utilisation).
func TestProcessorIsTheQueueOfTheTextbooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const service, utilisation, n = 40 * time.Millisecond, 0.7, 100_000
		p := newProcessor(1)
		rnd := rand.New(rand.NewPCG(1, 2))
		var (
			all sync.WaitGroup
			mu  sync.Mutex
			sum time.Duration
		)
		for range n {
			time.Sleep(time.Duration(float64(service) / utilisation * rnd.ExpFloat64()))
			d := time.Duration(float64(service) * rnd.ExpFloat64())
			all.Go(func() {
				began := time.Now()
				if err := p.work(t.Context(), d); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				sum += time.Since(began)
			})
		}
		all.Wait()
		got, want := sum.Seconds()/n, service.Seconds()/(1-utilisation)
		if math.Abs(got/want-1) > 0.05 {
			t.Errorf("mean time %.4f s, want %.4f s within 5 %%", got, want)
		}
	})
}

func TestWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := New(Config{Name: "n1"})
		for _, test := range []struct {
			query string
			want  int
			most  time.Duration
		}{
			{"?for=40ms", http.StatusOK, 40 * time.Millisecond},
			{"?for=40ms&law=exponential", http.StatusOK, 800 * time.Millisecond},
			{"", http.StatusBadRequest, 0},
			{"?for=1h", http.StatusBadRequest, 0},
			{"?for=-1s", http.StatusBadRequest, 0},
			{"?for=40ms&law=murphy", http.StatusBadRequest, 0},
		} {
			began := time.Now()
			w := httptest.NewRecorder()
			bank.ServeHTTP(w, httptest.NewRequest("GET", "/work"+test.query, nil))
			took := time.Since(began).Round(time.Millisecond)
			if w.Code != test.want || took > test.most || test.want == http.StatusOK && took == 0 && !strings.Contains(test.query, "law") {
				t.Errorf("/work%s: %d after %v, want %d after at most %v", test.query, w.Code, took, test.want, test.most)
			}
		}
	})
}
