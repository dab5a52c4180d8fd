package node

import (
	"strings"
	"testing"
	"time"
)

// TestTwinIsAmiss has reports under this node's own name come in, that another has sent.
func TestTwinIsAmiss(t *testing.T) {
	f := &facts{}
	now := time.Unix(1000, 0)
	amiss := func() bool { return strings.Contains(strings.Join(f.amiss(now), "\n"), "another node runs under") }
	count := uint64(0)
	for _, c := range []struct {
		what  string
		after time.Duration
		heard uint64
		want  bool
	}{
		{"nothing yet", 0, 0, false},
		{"what an earlier start has sent", 100 * time.Millisecond, 2, false},
		{"and nothing after", 5 * time.Second, 0, false},
		{"a single one, later", 20 * time.Second, 1, false},
		{"another node reports", 500 * time.Millisecond, 1, false},
		{"and goes on", 2 * time.Second, 4, false},
		{"and goes on for long", 500 * time.Millisecond, 1, true},
		{"it is stopped just now", 9 * time.Second, 0, true},
		{"it is gone", time.Second, 0, false},
		{"it is back", time.Minute, 1, false},
	} {
		now = now.Add(c.after)
		count += c.heard
		f.twins.count(now, count)
		if got := amiss(); got != c.want {
			t.Errorf("%s: amiss %t, want %t", c.what, got, c.want)
		}
	}
}
