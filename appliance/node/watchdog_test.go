package node

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchdog reads from a pipe what a device would get.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDWR, 0) // so that neither side waits for the other
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var log bytes.Buffer
	w, err := openWatchdog(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log.Bytes(), []byte("time of the watchdog not set")) {
		t.Errorf("a pipe has no time to be set: log %s", &log)
	}
	now := time.Unix(1000, 0)
	for range 25 { // 2.4 s
		w.pat(now)
		now = now.Add(100 * time.Millisecond)
	}
	w.close()
	got := make([]byte, 4)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "\x00\x00\x00V" {
		t.Errorf("told %q, %v; want three pats and the end", got, err)
	}
	if _, err := openWatchdog(path+"-none", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no device: got no error")
	}
	(*watchdog)(nil).pat(now) // who has none
	(*watchdog)(nil).close()
}
