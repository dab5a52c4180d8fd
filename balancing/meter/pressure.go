package meter

import (
	"os"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// newPressure returns a function that says how many goroutines run or wait for a CPU, for
// each CPU that Go uses. Below saturation it is the utilisation; above it goes on to grow,
// as a load must. The goroutine that asks does not count.
func newPressure() func() float64 {
	s := []metrics.Sample{
		{Name: "/sched/goroutines/running:goroutines"},
		{Name: "/sched/goroutines/runnable:goroutines"},
		{Name: "/sched/gomaxprocs:threads"},
	}
	return func() float64 {
		metrics.Read(s)
		busy := float64(s[0].Value.Uint64() + s[1].Value.Uint64())
		return max(0, busy-1) / float64(s[2].Value.Uint64())
	}
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// machine reads how much of the machine's CPU time is used, by whatever process.
type machine struct{ busy, total uint64 }

// share returns the part that was used since the last call, 0 to 1.
func (m *machine) share() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	busy, total := parseStat(string(text))
	defer func() { m.busy, m.total = busy, total }()
	if m.total == 0 || total <= m.total || busy < m.busy {
		return 0
	}
	return float64(busy-m.busy) / float64(total-m.total)
}

// parseStat reads the first line of /proc/stat, see proc_stat(5): user, nice, system,
// idle, iowait, irq, softirq, steal; what follows is part of the first two.
func parseStat(text string) (busy, total uint64) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 5 || fields[0] != "cpu" {
		return 0, 0
	}
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, 0
		}
		total += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy, total
}
