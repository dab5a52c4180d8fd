package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"peerage/balancing"
	"peerage/balancing/heartbeat"
	"peerage/balancing/keys"
)

// settingsGuard is a guard that can be asked to change settings, and no more.
func settingsGuard(t *testing.T) *guard {
	t.Helper()
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	g := &guard{log: slog.New(slog.DiscardHandler)}
	self := netip.MustParseAddr("127.0.0.1")
	g.exchange, err = heartbeat.New(heartbeat.Config{
		Self: "n1", Address: self, Nodes: []heartbeat.Peer{{ID: "n1", Address: self, Capacity: 1}},
		Site: "test", Sealer: ring.Sealer(keys.LabelReport), Exchange: heartbeat.Unicast, OfflineAfter: 3,
		Document: balancing.Settings{Policy: balancing.Policy{Light: 70, Margin: 20, Below: 50}, Period: 500 * time.Millisecond, Base: 7},
		Log:      g.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestSettingsOfTwoAtOnce changes settings from several sides at the same time: none of
// them may undo what another has done.
func TestSettingsOfTwoAtOnce(t *testing.T) {
	g := settingsGuard(t)
	for i := range 100 {
		var all sync.WaitGroup
		for _, key := range []string{"light", "margin", "below"} {
			all.Go(func() {
				if took := g.set(set{ID: 9, Patch: fmt.Appendf(nil, `{%q: %d}`, key, i+1)}); took.Err != "" || took.ID != 9 || took.Version == 0 {
					t.Errorf("%s: %+v", key, took)
				}
			})
		}
		all.Wait()
		s, want := g.exchange.View().Settings, balancing.Load(i+1)
		if s.Light != want || s.Margin != want || s.Below != want {
			t.Fatalf("three changes to %v at once have made %+v", want, s)
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	g := settingsGuard(t)
	was := g.exchange.View().Settings
	for _, patch := range []string{`{"light": 2000}`, `{"light": 60, "margn": 3}`, `{"light": 60, "margin": "x"}`, `[]`, ``} {
		if took := g.set(set{Patch: []byte(patch)}); took.Err == "" || g.exchange.View().Settings != was {
			t.Errorf("%s: %+v, settings %+v", patch, took, g.exchange.View().Settings)
		}
	}
	if took := g.set(set{Patch: []byte(`{"light": 60}`)}); took.Err != "" || g.exchange.View().Settings.Light != 60 {
		t.Errorf("light 60: %+v", took)
	}
	took := g.set(set{Reset: true})
	if now := g.exchange.View().Settings; took.Err != "" || now.Policy != was.Policy || now.Version != took.Version || now.Base != was.Base {
		t.Errorf("reset: %+v, settings %+v", took, now)
	}
}
