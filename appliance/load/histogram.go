package load

import (
	"math"
	"time"
)

const (
	shortest = 10 * time.Microsecond // of the first bucket
	growth   = 0.01                  // from a bucket to the next: the error of a quantile
	buckets  = 1700                  // up to four minutes
)

// histogram counts response times in buckets of equal ratio.
type histogram struct {
	counts [buckets]uint32
	total  int
	sum    time.Duration
	most   time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.total++
	h.sum += d
	h.most = max(h.most, d)
	i := int(math.Log(float64(max(d, shortest))/float64(shortest)) / growth)
	h.counts[min(i, buckets-1)]++
}

// quantile returns the time that the share q of all did not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	rest := int(math.Ceil(q * float64(h.total)))
	for i, n := range h.counts {
		if rest -= int(n); rest <= 0 && n > 0 {
			return min(h.most, time.Duration(float64(shortest)*math.Exp((float64(i)+0.5)*growth)))
		}
	}
	return 0
}

func (h *histogram) mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return h.sum / time.Duration(h.total)
}

// round leaves three digits or so of a time.
func round(d time.Duration) time.Duration {
	switch {
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}
