package sim

import (
	"cmp"
	"math"
	"time"
)

// never is later than everything that happens.
const never = time.Duration(math.MaxInt64)

// kind says what happens in an event.
type kind uint8

const (
	visitStarts    kind = iota // of the next client
	requestArrives             // of a client, at the node that it talks to
	reportDue                  // of a node, by its period
	reportArrives              // of a node, at all its peers
	silenceJudged              // whether a node has been silent to a peer for too long
	nodeDies
	nodeReturns
	nodeReady // a returned node has listened for long enough
	secondEnds
)

type event struct {
	kind   kind
	node   int32
	peer   int32 // the node that judges the silence
	client int32
}

// queue is a priority queue: a binary heap in which what has the same key comes out in
// the order in which it went in, so that a run can be repeated.
type queue[K cmp.Ordered, T any] struct {
	items []item[K, T]
	order uint64
}

type item[K cmp.Ordered, T any] struct {
	key   K
	order uint64
	value T
}

func (a *item[K, T]) before(b *item[K, T]) bool {
	return a.key < b.key || a.key == b.key && a.order < b.order
}

func (q *queue[K, T]) len() int { return len(q.items) }

func (q *queue[K, T]) push(key K, value T) {
	q.order++
	x := item[K, T]{key, q.order, value}
	q.items = append(q.items, x)
	i := len(q.items) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !x.before(&q.items[up]) {
			break
		}
		q.items[i] = q.items[up]
		i = up
	}
	q.items[i] = x
}

// pop takes out the first item of a queue that is not empty.
func (q *queue[K, T]) pop() T {
	first := q.items[0].value
	end := len(q.items) - 1
	x := q.items[end]
	q.items = q.items[:end]
	if end == 0 {
		return first
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= end {
			break
		}
		if down+1 < end && q.items[down+1].before(&q.items[down]) {
			down++
		}
		if !q.items[down].before(&x) {
			break
		}
		q.items[i] = q.items[down]
		i = down
	}
	q.items[i] = x
	return first
}

// departures knows at which node a job ends next. That changes with each job that comes
// or goes, so it is not kept among the events but in a tournament of the nodes.
type departures struct {
	at     []time.Duration // by node; never for an idle one
	winner []int32         // by place in the tree: winner[1] is the first of all
}

func newDepartures(nodes int) *departures {
	leaves := 1
	for leaves < nodes {
		leaves *= 2
	}
	d := &departures{at: make([]time.Duration, leaves), winner: make([]int32, 2*leaves)}
	for i := range leaves {
		d.at[i] = never
		d.winner[leaves+i] = int32(i)
	}
	for i := range leaves { // those that stand for no node too: they must lose
		d.set(i, never)
	}
	return d
}

// set says when the next job of node ends.
func (d *departures) set(node int, at time.Duration) {
	d.at[node] = at
	for i := (len(d.at) + node) / 2; i >= 1; i /= 2 {
		a, b := d.winner[2*i], d.winner[2*i+1]
		if d.at[b] < d.at[a] {
			a = b
		}
		d.winner[i] = a
	}
}

// first returns the node whose job ends next, and when.
func (d *departures) first() (node int, at time.Duration) {
	i := d.winner[1]
	return int(i), d.at[i]
}
