package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"peerage/balancing"
)

var changed = balancing.Settings{
	Version: 1_790_000_000_123, Base: 7, Period: time.Second,
	Policy: balancing.Policy{Light: 60.5, Margin: 10, Below: 40, Rule: balancing.Rotate, Choice: balancing.Least},
}

func TestSettingsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	for step, want := range []balancing.Settings{{}, changed} {
		d, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Settings(); err != nil || got != want {
			t.Errorf("step %d: %+v, %v, want %+v", step, got, err, want)
		}
		if err := d.SaveSettings(changed); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
}

func TestDamagedSettingsAreNone(t *testing.T) {
	path := t.TempDir()
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, text := range []string{"", "{", `{"version":1,"light":5000}`, string(make([]byte, maxFile+1))} {
		if err := os.WriteFile(filepath.Join(path, settingsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Settings(); err != nil || got != (balancing.Settings{}) {
			t.Errorf("%.40q: %+v, %v, want none", text, got, err)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"version":1,"base":2,"light":50,"margin":20,"below":50,"rule":"damped","choice":"least","period":500000000}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := parseSettings(b); s != (balancing.Settings{}) && s.Check() != nil {
			t.Errorf("%q is taken for %+v", b, s)
		}
	})
}
