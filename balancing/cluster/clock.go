package cluster

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// MaxAhead is how far ahead of the wall clock of a node a stamp of a peer may be.
const MaxAhead = time.Minute

var (
	// ErrClock is that an item was refused, because it is stamped by more than
	// [MaxAhead] ahead of this node's clock.
	ErrClock = errors.New("stamped ahead of this node's clock")

	// ErrOwnClock is that this node writes nothing, because its clock differs by more
	// than [MaxAhead] from those of its peers.
	ErrOwnClock = errors.New("this node's clock and those of its peers differ")
)

// errSkew is [ErrOwnClock] for what an operator can do: of two clocks that differ, neither
// node can tell which is wrong.
func errSkew(peer string, by time.Duration) error {
	word := "ahead of"
	if by < 0 {
		word = "behind"
	}
	return fmt.Errorf("%w by more than %v, so it writes nothing: that of %s is %v %s it, and one of the two is wrong; run NTP on both nodes, then try again",
		ErrOwnClock, MaxAhead, peer, by.Abs().Round(time.Second), word)
}

// Stamp is a reading of a hybrid logical clock: milliseconds since 1970 << 16 | counter.
type Stamp uint64

const counterBits = 16

// StampOf returns the least stamp of an instant, which is 0 before 1970.
func StampOf(t time.Time) Stamp { return Stamp(max(0, t.UnixMilli())) << counterBits }

// Time returns when the stamp was given, to the millisecond.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> counterBits)) }

// Clock is a hybrid logical clock (Kulkarni et al. 2014): close to the wall clock, but
// each stamp is greater than all that it has given or seen. It is safe for concurrent use.
type Clock struct {
	mu   sync.Mutex
	last Stamp
	off  error // [ErrOwnClock] while the wall clock differs from those of the peers
}

// NewClock returns a clock that gives stamps greater than last.
func NewClock(last Stamp) *Clock { return &Clock{last: last} }

// Now returns a new stamp.
func (c *Clock) Now() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The counter may overflow into the milliseconds: still greater, and soon caught up.
	c.last = max(c.last+1, StampOf(time.Now()))
	return c.last
}

// Observe makes what follows greater than s. It is [ErrClock] if s is more than
// [MaxAhead] ahead of the wall clock, and then s is not taken into account.
func (c *Clock) Observe(s Stamp) error {
	if s > horizon() {
		return ErrClock
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, s)
	return nil
}

// horizon is the greatest stamp that is taken from a peer now.
func horizon() Stamp { return StampOf(time.Now().Add(MaxAhead)) }

func (c *Clock) mark() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// set moves the clock, back too.
func (c *Clock) set(last Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
}

// check is [ErrOwnClock] if this node must write nothing.
func (c *Clock) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// setOff says how the wall clock differs from those of the peers; nil: it does not.
func (c *Clock) setOff(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = why
}
