package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What follows is about the machine that the measurement runs on.

// processTime is the time on a CPU that the threads of a process have had, to the nanosecond:
// utime and stime count hundredths of a second.
func processTime(t *testing.T, pid int) (spent time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %d: %v", pid, threads)
	}
	for _, name := range threads {
		var ns int64
		if _, err := fmt.Sscan(readFile(t, name), &ns); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		spent += time.Duration(ns)
	}
	return spent
}

// machineLoad is how many processes wanted to run during the last minute.
func machineLoad(t *testing.T) (load float64) {
	t.Helper()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	return float64(info.Loads[0]) / (1 << 16) // SI_LOAD_SHIFT
}

// Before a failure the machine has so long to become so quiet.
const (
	quietWithin = 5 * time.Minute
	quiet       = 25 // per cent, as tooBusy
)

// awaitQuiet waits until other programs leave the machine to this one, but not for ever.
func awaitQuiet(t *testing.T) {
	const look = 2 * time.Second
	for deadline := time.Now().Add(quietWithin); time.Now().Before(deadline); {
		before := waitedForCPU()
		pause(t.Context(), look)
		if waitedForCPU()-before < look*quiet/100 {
			return
		}
	}
}

// waitedForCPU is the time so far in which some process of this machine waited for a CPU; 0
// if the kernel does not count it.
func waitedForCPU() time.Duration {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0
	}
	some, _, _ := strings.Cut(string(text), "\n")
	_, total, _ := strings.Cut(some, "total=")
	us, _ := strconv.ParseInt(total, 10, 64)
	return time.Duration(us) * time.Microsecond
}

// schedule gives the calling thread a priority, if it may, and nothing to what it starts.
func schedule(policy, priority uint32) {
	unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
}
