package node

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// nicest is the nice value of the guard's threads: of what the processor has to give, they get
// nearly all that they ask for, and they ask for little. A real-time class would be on time to a
// few ms more on a saturated machine, and could bring it to a halt by a single mistake.
const nicest = -20

// shortSlice has a thread that wakes run soon (Linux 6.12 and newer; ignored before).
const shortSlice = 100 * time.Microsecond

// beOnTime makes the guard's reports leave on time on a busy machine: its threads, and
// those that they start, go before others, and its memory stays where it is. Without the
// rights for that it goes on as it is.
func beOnTime(log *slog.Logger) {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.Debug("memory of the guard not locked", "err", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		if tid, convErr := strconv.Atoi(t.Name()); convErr == nil && err == nil {
			err = schedule(tid, nicest)
		}
	}
	if err != nil {
		log.Info("guard has no priority", "err", err, "reason", "on a very busy machine its reports may come late")
	}
}

// ordinarily runs f, which starts a process, on the calling thread, which must be locked,
// without a priority that it would pass on.
func ordinarily(f func() error) error {
	before, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		err = schedule(0, 0)
	}
	if err != nil {
		return err
	}
	defer unix.SchedSetAttr(0, before, 0) // what it had it may have again
	return f()
}

func schedule(tid int, nice int32) error {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: nice}
	if nice < 0 {
		a.Runtime = uint64(shortSlice)
	}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("schedule thread %d: %w", tid, err)
	}
	return nil
}
