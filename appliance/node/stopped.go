package node

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// watchStops calls stopped, until gone is closed, whenever the child process has been
// stopped or goes on: the kernel tells its parent at once.
func watchStops(pid int, gone <-chan struct{}, stopped func(bool)) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	for {
		select {
		case <-gone:
			return
		case <-signals:
		}
		for {
			var info unix.Siginfo
			err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WCONTINUED|unix.WNOHANG, nil)
			if err != nil || info.Signo == 0 {
				break
			}
			stopped(info.Code != cldContinued)
		}
	}
}

// cldContinued is the code of the signal for a child that goes on (waitid(2)).
const cldContinued = 6
