package node

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchdogTime is after what silence of the guard the hardware resets the machine: when
	// the leases of its VIPs are long over, and nothing else has helped.
	watchdogTime = 15 * time.Second
	watchdogPat  = time.Second
)

// watchdog is a hardware watchdog (Linux kernel, Documentation/watchdog/watchdog-api).
type watchdog struct {
	file *os.File
	tick *time.Ticker
	next time.Time
	fail string // why it could not be told last, "" if it was
	log  *slog.Logger
}

// openWatchdog opens the device at path, which runs from then on.
func openWatchdog(path string, log *slog.Logger) (*watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w: name a device such as /dev/watchdog0 that nobody else uses, or take 'watchdog' out of the node file", err)
	}
	// The kernel's own time may be anything. A device that has a fixed one is as good.
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(watchdogTime.Seconds())); err != nil {
		log.Warn("time of the watchdog not set", "device", path, "err", err)
	}
	return &watchdog{file: f, tick: time.NewTicker(watchdogPat), log: log}, nil
}

// due tells when to pat it at the latest: a guard may have nothing else to do for long.
func (w *watchdog) due() <-chan time.Time {
	if w == nil {
		return nil
	}
	return w.tick.C
}

// pat tells the hardware, now and then, that the guard is alive.
func (w *watchdog) pat(now time.Time) {
	if w == nil || now.Before(w.next) {
		return
	}
	w.next = now.Add(watchdogPat)
	w.tell("\x00")
}

// close tells the hardware that the guard ends in order: nothing is to be reset.
func (w *watchdog) close() {
	if w == nil {
		return
	}
	w.tick.Stop()
	w.tell("V")
	w.file.Close()
}

func (w *watchdog) tell(word string) {
	text := ""
	if _, err := w.file.WriteString(word); err != nil {
		text = err.Error()
	}
	if text != w.fail {
		if w.fail = text; text != "" {
			w.log.Error("watchdog not told", "err", text)
		}
	}
}
