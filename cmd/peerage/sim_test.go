package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"peerage/balancing/sim"
)

// small are flags for a simulation that takes a moment.
var small = []string{"sim", "--nodes", "3", "--cores", "2", "--seconds", "2"}

func simulated(t *testing.T, flags ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	args := append(append([]string{}, small...), flags...)
	if status := run(args, &out, &errs); status != 0 {
		t.Fatalf("peerage %s: status %d\n%s", strings.Join(args, " "), status, &errs)
	}
	return out.String()
}

func TestSimPrintsARowForEachRule(t *testing.T) {
	flags := []string{"--rule", "ideal", "--rule", "patent", "--rule", "damped+relay", "--seed", "7", "--load", "70"}
	out := simulated(t, flags...)
	for _, want := range []string{"scenario base, 3 nodes × 2 cores, 70 % offered", "seed 7", "\n  ideal ", "\n  patent ", "\n  damped+relay "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if again := simulated(t, flags...); again != out {
		t.Errorf("the same seed gave another table:\n%s\n%s", out, again)
	}
}

func TestSimSweepsAndDraws(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sweep.svg")
	out := simulated(t, "--rule", "dns,damped", "--sweep", "30,60", "--json", "--svg", file, "--scenario", "oneshot", "--light", "40", "--pinned", "0.5")
	var sweeps []sim.Sweep
	if err := json.Unmarshal([]byte(out), &sweeps); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if len(sweeps) != 2 || sweeps[1].Load != 60 || len(sweeps[1].Rows) != 2 {
		t.Fatalf("sweeps are %+v", sweeps)
	}
	r := sweeps[1].Rows[1]
	if r.Method != "damped" || r.P99 <= 0 || r.Scenario.Policy.Light != 40 || r.Scenario.Session != 1 || r.Scenario.Load != 60 {
		t.Errorf("row is %+v", r)
	}
	if svg, err := os.ReadFile(file); err != nil || !bytes.Contains(svg, []byte("offered load")) {
		t.Errorf("chart: %v, %d octets", err, len(svg))
	}
	one := filepath.Join(t.TempDir(), "load.svg")
	simulated(t, "--rule", "damped", "--svg", one)
	if svg, err := os.ReadFile(one); err != nil || !bytes.Contains(svg, []byte("Load of each node over time")) {
		t.Errorf("chart: %v, %d octets", err, len(svg))
	}
}

func TestSimRefusesNonsense(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--scenario", "nowhere"}, "oneshot"}, // the words that there are
		{[]string{"--rule", "fair"}, "ideal"},
		{[]string{"--rule", "damped+luck"}, "relay"},
		{[]string{"--nodes", "0"}, "nodes 0"},
		{[]string{"--sweep", "50,0"}, "load 0"},
		{[]string{"--choice", "any"}, "choice"},
		{[]string{"--measure", "mood"}, "pressure"},
	} {
		var out, errs bytes.Buffer
		if status := run(append([]string{"sim"}, c.flags...), &out, &errs); status != 2 || !strings.Contains(errs.String(), c.want) || out.Len() > 0 {
			t.Errorf("%v: status %d, %q, want 2 and a word of %q", c.flags, status, &errs, c.want)
		}
	}
}
