package pin

import (
	"testing"
	"time"

	"peerage/balancing/keys"
)

// TestRotationLosesNoPin: whatever pin a node has set at one stage of a change of the site
// key, every node at that stage, the one before or the one after finds it, and in the end
// the old ones are found until their time is over. The cookie keeps its name throughout.
func TestRotationLosesNoPin(t *testing.T) {
	k1, k2 := keys.Generate(), keys.Generate()
	until := start.Add(bank.MaxLife)
	ring := func(newest keys.Key, older ...keys.Key) *keys.Ring {
		r, err := keys.NewRing(newest, older...)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	var stages []*Ring
	for _, r := range []*keys.Ring{
		ring(k1), ring(k1, k2), ring(k2, k1),
		ring(k2).WithPast(keys.Past{Key: k1, Until: until}),
	} {
		stages = append(stages, NewRing(r.PinSealer(start), "example"))
	}
	name := stages[0].Name("bank")
	find := func(r *Ring, value string, at time.Time) error {
		p, err := r.Find(header("a=b", name+"="+value), Rule{Name: "bank"}, at)
		if err == nil && !p.equal(pinA) {
			t.Errorf("Find = %+v, want %+v", p, pinA)
		}
		return err
	}
	for i, from := range stages {
		if got := from.Name("bank"); got != name {
			t.Errorf("stage %d: the cookie is called %s, at first %s", i, got, name)
		}
		value := from.Seal("bank", pinA)
		for j, to := range stages[max(0, i-1):] {
			if err := find(to, value, start); err != nil {
				t.Errorf("set at stage %d, %d stages on from the one before: %v", i, j, err)
			}
		}
	}
	first, last := stages[0].Seal("bank", pinA), stages[3]
	if err := find(last, first, until.Add(-time.Second)); err != nil {
		t.Errorf("a second before the end: %v", err)
	}
	if err := find(last, first, until); err != Foreign {
		t.Errorf("at the end: %v, want %v", err, Foreign)
	}
	if err := find(last, stages[2].Seal("bank", pinA), until); err != nil {
		t.Errorf("sealed with the new key, at the end of the old one: %v", err)
	}
}
