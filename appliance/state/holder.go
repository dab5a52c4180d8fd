package state

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLocks bounds how much of the kernel's list of locks is read, in octets.
const maxLocks = 4 << 20

// Holder returns the ID of the process that holds the lock of [Open] on the directory at
// path, 0 if none does. It only looks: to try the lock would keep out a node that starts.
// Where the kernel does not tell, as on file systems that give their files another device
// number than the locks have (Btrfs), it is 0 as well.
func Holder(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	st := info.Sys().(*syscall.Stat_t)
	return holderIn(io.LimitReader(f, maxLocks), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
}

// holderIn looks for the lock on a file in a list as proc_locks(5) shows it.
func holderIn(locks io.Reader, file string) int {
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
		f := strings.Fields(lines.Text())
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue // also who waits for one: 1: -> FLOCK
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
