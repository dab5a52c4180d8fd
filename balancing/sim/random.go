package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// stream is a source of random numbers that can be exchanged under a [rand.Rand]: each
// client has a small one of its own, so that the same visitors with the same wishes come
// whatever the rule, and rules can be compared on few samples.
type stream struct{ *rand.PCG }

// newRand returns a generator for one purpose of a run.
func newRand(seed, purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, purpose)) }

// Law is the distribution of the service times.
type Law uint8

const (
	Lognormal   Law = iota // heavy-tailed: most are short, a few very long
	Exponential            // that of the textbooks
	Constant
)

var lawNames = names[Law]{Lognormal: "lognormal", Exponential: "exponential", Constant: "constant"}

func (l Law) String() string { return lawNames.of(l) }

// MarshalText writes the law's name.
func (l Law) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a law's name.
func (l *Law) UnmarshalText(b []byte) (err error) {
	*l, err = lawNames.parse(string(b), "law")
	return err
}

// draw returns a random service time of the given mean, in seconds.
func (l Law) draw(r *rand.Rand, mean, spread float64) float64 {
	switch l {
	case Exponential:
		return mean * r.ExpFloat64()
	case Constant:
		return mean
	}
	return mean * math.Exp(spread*r.NormFloat64()-spread*spread/2)
}

// pause returns an exponentially distributed time.
func pause(r *rand.Rand, mean time.Duration) time.Duration {
	return time.Duration(float64(mean) * r.ExpFloat64())
}

// geometric returns a number of at least 1 with the given mean, without memory.
func geometric(r *rand.Rand, mean float64) int {
	if mean <= 1 {
		return 1
	}
	return 1 + int(math.Log(1-r.Float64())/math.Log(1-1/mean))
}

// shares are the parts that the resolvers have of all clients, summed up.
type shares []float64

// zipf returns the shares of n resolvers of which the k-th has one of 1/k^s.
func zipf(n int, s float64) shares {
	sums := make(shares, n)
	total := 0.0
	for k := range sums {
		total += math.Pow(float64(k+1), -s)
		sums[k] = total
	}
	for k := range sums {
		sums[k] /= total
	}
	return sums
}

func (s shares) draw(r *rand.Rand) int {
	i, _ := slices.BinarySearch(s, r.Float64())
	return min(i, len(s)-1)
}
