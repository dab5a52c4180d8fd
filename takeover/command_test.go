package takeover_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"peerage/takeover"
	"peerage/takeover/linktest"
)

// TestCommand runs a real program, which fails at first.
func TestCommand(t *testing.T) {
	dir := t.TempDir()
	said, ok := filepath.Join(dir, "said"), filepath.Join(dir, "ok")
	path := filepath.Join(dir, "move")
	script := "#!/bin/sh\necho \"$*\" >> " + said + "\n[ -e " + ok + " ] || { echo not today; exit 3; }\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	c := takeover.WithCommand(linktest.NewLAN(0).Host("n1"), path, slog.New(slog.NewTextHandler(&log, nil)))
	lines := func() []string {
		b, _ := os.ReadFile(said)
		return strings.Fields(strings.ReplaceAll(string(b), " ", "="))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	wait := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if got := strings.Join(lines(), " "); got == want {
				return
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("said: got %q, want %q", lines(), want)
			}
		}
	}
	vip := netip.MustParseAddr("192.0.2.11")
	for range 3 { // renewals are no news
		if err := c.Add(t.Context(), vip); err != nil {
			t.Fatal(err)
		}
	}
	wait("claim=192.0.2.11")
	if err := os.WriteFile(ok, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wait("claim=192.0.2.11 claim=192.0.2.11") // again, for it failed
	if err := c.Remove(t.Context(), vip); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wait("claim=192.0.2.11 claim=192.0.2.11 release=192.0.2.11")
	if !strings.Contains(log.String(), `output="not today"`) {
		t.Errorf("log:\n%s", &log)
	}
}
