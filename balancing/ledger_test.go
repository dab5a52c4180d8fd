package balancing

import (
	"fmt"
	"math"
	"testing"
	"time"
)

func TestLedgerBooksFade(t *testing.T) {
	v := site(t, "a:90 b:10 c:10")
	l := NewLedger(2 * time.Second)
	now := time.Unix(1000, 0)
	for range 9 {
		l.Served(now, -1) // nine clients make 90 %
	}
	l.Redirected(now, DefaultPolicy, v, "b", false)
	l.Redirected(now, DefaultPolicy, v, "c", true)

	near := func(what string, got, want Load) {
		t.Helper()
		if math.Abs(float64(got-want)) > 0.01 {
			t.Errorf("%s = %v, want %v", what, got, want)
		}
	}
	b := l.Books(now, v)
	near("debit of a client in mid-visit", b.Debit, 10)
	near("shed of a client at its first request", b.Shed, 10)
	near("credit of b", b.Credit[1]*b.Worth, 10)
	near("credit of this node", b.Credit[0]*b.Worth, 0)

	b = l.Books(now.Add(2*time.Second), v)
	near("debit after one time constant", b.Debit, Load(10/math.E))
	near("credit after one time constant", b.Credit[2]*b.Worth, Load(10/math.E))

	b = l.Books(now.Add(time.Minute), v)
	if b.Credit != nil || b.Debit > 0.01 {
		t.Errorf("books after a minute = %+v, want them empty", b)
	}
}

func TestLedgerAssumesThatOthersSendAsWell(t *testing.T) {
	v := site(t, "a:90 b:10 c:90 d:90 e:90")
	l := NewLedger(2 * time.Second)
	now := time.Unix(1000, 0)
	l.Served(now, -1)
	l.Redirected(now, DefaultPolicy, v, "b", true)
	if b := l.Books(now, v); math.Abs(float64(b.Credit[1]*b.Worth-180)) > 1e-9 {
		got := b.Credit[1] * b.Worth
		t.Errorf("credit of b with four senders = %v, want 90 × √4", got)
	}
}

// TestLedgerFollowsTheSite: the credits are those of nodes, not of places in a view.
func TestLedgerFollowsTheSite(t *testing.T) {
	l := NewLedger(2 * time.Second)
	now := time.Unix(1000, 0)
	l.Served(now, -1)
	l.Redirected(now, Policy{Light: 100, Margin: 20}, site(t, "a:90 c:10 d:10"), "c", false)
	old := l.Books(now, site(t, "a:90 c:10 d:10"))
	l.Redirected(now, Policy{Light: 100, Margin: 20}, site(t, "a:90 c:10 d:10"), "d", false)
	if old.Credit[2] != 0 {
		t.Error("books that were handed out have changed")
	}
	b := l.Books(now, site(t, "a:90 b:10 c:10"))
	if b.Credit[1] != 0 || math.Abs(float64(b.Credit[2]*b.Worth-90)) > 1e-9 || len(b.Credit) != 3 {
		t.Errorf("credits of a, b, c = %v times %v, want those of c alone", b.Credit, b.Worth)
	}
}

// TestLedgerOutlivesIdleness: nothing overflows or goes to nothing after a week, or when
// the clock is set back.
func TestLedgerOutlivesIdleness(t *testing.T) {
	v := site(t, "a:90 b:10")
	l := NewLedger(2 * time.Second)
	now := time.Unix(1_000_000, 0)
	for _, step := range []time.Duration{0, time.Minute, 101 * time.Second, 7 * 24 * time.Hour, -time.Hour, time.Hour} {
		now = now.Add(step)
		for range 9 {
			l.Served(now, -1)
		}
		l.Redirected(now, DefaultPolicy, v, "b", false)
		b := l.Books(now, v)
		if c := b.Credit[1] * b.Worth; c < 1 || c > 50 || b.Debit < 1 || b.Debit > 50 {
			t.Errorf("after %v: %+v", step, b)
		}
	}
}

func BenchmarkLedger(b *testing.B) {
	for _, nodes := range []int{3, 16, 512} {
		v := &View{}
		for i := range nodes {
			v.Nodes = append(v.Nodes, Node{ID: NodeID(fmt.Sprintf("n%03d", i)), Online: true, State: OK, Capacity: 1, Load: Load(i % 40)})
		}
		v.Self = v.Nodes[0].ID
		v.Nodes[0].Load = 90
		l := NewLedger(0)
		now := time.Unix(1000, 0)
		for i := range nodes {
			l.Redirected(now, DefaultPolicy, v, v.Nodes[i].ID, false)
		}
		b.Run(fmt.Sprintf("served/nodes=%d", nodes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Microsecond)
				l.Served(now, time.Millisecond)
			}
		})
		b.Run(fmt.Sprintf("books/nodes=%d", nodes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Microsecond)
				l.Books(now, v)
			}
		})
	}
}
