package revision

import (
	"crypto/ed25519"
	"testing"
	"time"

	"peerage/balancing/cluster"
)

// TestTheTimeToConfirmDoesNotDependOnClocks has a revision come into force at a node whose
// clock is behind by more than the time there is to confirm it.
func TestTheTimeToConfirmDoesNotDependOnClocks(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, net *network) {
		n1 := net.nodes["n1"]
		then := cluster.StampOf(time.Now().Add(-20 * time.Second))
		r := &record{
			V: version, Number: 2, Parent: n1.agent.Head().ID, Author: "alice@n1", Made: then, Signer: "n1",
			ConfirmWithin: (10 * time.Second).Milliseconds(),
		}
		sum := r.sum("example", "x\n")
		r.put("x\n")
		r.Signature = ed25519.Sign(keyOf("n1"), signed(sum))
		id := idOf(sum)
		err := n1.table.PutAll(map[string][]byte{revKey(id): encode(r), phaseKey(id, phaseAll): encode(phase{Who: "n1", When: then})})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		net.want("x\n")
		for id, n := range net.nodes {
			s := n.agent.Status()
			if left := time.Until(s.Head.ConfirmBy); s.Head.State != OnTrial || left < 900*time.Millisecond || left > 1100*time.Millisecond {
				t.Errorf("%s: %s left, %+v", id, left, s.Head)
			}
		}
		time.Sleep(2 * time.Second)
		net.want(firstText)
	})
}

// TestARestartDoesNotProlongTheTimeToConfirm has the only node of a site start anew while a
// change waits to be confirmed.
func TestARestartDoesNotProlongTheTimeToConfirm(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, net *network) {
		net.mustApply("n1", "x\n", Options{ConfirmWithin: time.Minute})
		time.Sleep(40 * time.Second)
		net.start("n1", net.nodes["n1"].kill(), "x\n")
		time.Sleep(10 * time.Second)
		net.want("x\n")
		time.Sleep(15 * time.Second)
		net.want(firstText)
	})
}
