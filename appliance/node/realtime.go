package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// realtimePriority is that of the guard's threads among the real-time ones: the lowest but
// for the kernel's own, and enough to be on time beside a busy server.
const realtimePriority = 10

// beOnTime makes the guard's reports leave on time on a busy machine: its threads, and
// those that they start, go before all ordinary ones, and its memory stays where it is.
// Without the rights for that it goes on as it is.
func beOnTime(log *slog.Logger) {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.Debug("memory of the guard not locked", "err", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		if tid, convErr := strconv.Atoi(t.Name()); convErr == nil && err == nil {
			err = schedule(tid, unix.SCHED_FIFO, realtimePriority)
		}
	}
	if err != nil {
		log.Info("guard has no real-time priority", "err", err, "reason", "on a very busy machine its reports may come late")
	}
}

// beOrdinary takes the priority from the calling thread, which must be locked: what it
// starts has none.
func beOrdinary() error { return schedule(0, unix.SCHED_NORMAL, 0) }

// ordinarily runs f, which starts processes, on a thread that has no priority to pass on. It
// is the last that the calling goroutine does: the thread ends with it.
func ordinarily(ctx context.Context, f func(context.Context) error) error {
	runtime.LockOSThread()
	if err := beOrdinary(); err != nil {
		return err
	}
	return f(ctx)
}

func schedule(tid int, policy, priority uint32) error {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("schedule thread %d: %w", tid, err)
	}
	return nil
}
