//go:build !race

// The race detector itself crashes now and then under as many goroutines as these.

package cluster

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSixtyFourMembersConverge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := newCluster(t, 64)
		all := c.startAll()
		defer c.stopAll()
		t.Logf("64 members after %v", c.members(63, time.Minute))
		put(t, all[0].table, "small", "v")
		t.Logf("a small change everywhere after %v", c.converge(5*time.Second))
		put(t, all[1].table, "large", strings.Repeat("v", 5_000))
		t.Logf("a large change everywhere after %v", c.converge(5*time.Second))

		c.partition(func(i int) int { return i % 2 })
		time.Sleep(5 * time.Second)
		put(t, all[0].table, "even", "1")
		put(t, all[1].table, "odd", "1")
		put(t, all[0].table, "both", "even")
		time.Sleep(time.Second)
		put(t, all[1].table, "both", "odd")
		if err := all[2].table.Delete("small"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(14 * time.Second)
		c.partition(whole)
		t.Logf("converged %v after a partition of 20 s has healed", c.converge(20*time.Second))
		if got, want := strings.Fields(live(all[5].table)), []string{"both=odd", "even=1", "odd=1"}; !slices.Equal(slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "large") }), want) {
			t.Errorf("got %v, want %v", got, want)
		}
		t.Logf("%v of cluster life", time.Since(start))
	})
}
