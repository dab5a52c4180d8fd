package balancing

import (
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
	near("credit of b", b.Credit[1], 10)
	near("credit of this node", b.Credit[0], 0)

	b = l.Books(now.Add(2*time.Second), v)
	near("debit after one time constant", b.Debit, Load(10/math.E))
	near("credit after one time constant", b.Credit[2], Load(10/math.E))

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
	if got := l.Books(now, v).Credit[1]; got != 180 {
		t.Errorf("credit of b with four senders = %v, want 90 × √4", got)
	}
}
