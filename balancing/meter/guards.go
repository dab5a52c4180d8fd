package meter

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Guards are what may run short besides the CPU of this process, in per cent of what
// there is.
type Guards struct {
	Machine float64 `json:"machine"` // CPU time of the whole machine
	Memory  float64 `json:"memory"`  // time in which some process waited for memory, times ten
	Files   float64 `json:"files"`   // file descriptors
	Network float64 `json:"network"` // bits a second of the interface, the busier direction
}

// worst leaves out the machine's CPU time: it is for measure [CPU] to look at.
func (g Guards) worst() float64 { return max(g.Memory, g.Files, g.Network) }

// newGuards returns a function that is to be called about once a second. What cannot be
// read counts as nothing.
func newGuards(ifname string) func() Guards {
	cpu := new(machine)
	nic := &nic{dir: filepath.Join("/sys/class/net", ifname)}
	if ifname == "" {
		nic = nil
	}
	calls := 0
	var g Guards
	return func() Guards {
		g.Machine += (100*cpu.share() - g.Machine) * 0.63 // smoothed over Tau, like the rest
		g.Memory = memory()
		g.Network = nic.use(time.Now())
		if calls++; calls%5 == 1 { // a list as long as there are connections
			g.Files = files()
		}
		return g
	}
}

// memory reads the pressure on memory, which is in per cent of the time. A tenth of the
// time is as much as a server bears.
func memory() float64 {
	text, err := os.ReadFile("/proc/pressure/memory")
	if err != nil {
		return 0
	}
	return 10 * parsePressure(string(text))
}

// parsePressure reads avg10 of the line "some" of a pressure file of the kernel.
func parsePressure(text string) float64 {
	line, _, _ := strings.Cut(text, "\n")
	for f := range strings.FieldsSeq(line) {
		if avg, ok := strings.CutPrefix(f, "avg10="); ok && strings.HasPrefix(line, "some ") {
			n, err := strconv.ParseFloat(avg, 64)
			if err != nil || !(n >= 0 && n <= 100) {
				return 0
			}
			return n
		}
	}
	return 0
}

func files() float64 {
	var limit syscall.Rlimit
	d, err := os.Open("/proc/self/fd")
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur == 0 {
		return 0
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return 100 * float64(len(names)) / float64(limit.Cur)
}

// nic reads how much of an interface's speed is used.
type nic struct {
	dir    string
	rx, tx uint64
	at     time.Time
}

func (n *nic) use(now time.Time) float64 {
	if n == nil {
		return 0
	}
	speed := number(filepath.Join(n.dir, "speed")) // Mbit/s
	rx, tx := number(filepath.Join(n.dir, "statistics/rx_bytes")), number(filepath.Join(n.dir, "statistics/tx_bytes"))
	passed := now.Sub(n.at).Seconds()
	moved := float64(max(rx-min(rx, n.rx), tx-min(tx, n.tx)))
	first := n.at.IsZero()
	n.rx, n.tx, n.at = rx, tx, now
	if first || speed == 0 || passed <= 0 {
		return 0
	}
	return 100 * moved * 8 / passed / (float64(speed) * 1e6)
}

// number reads a file that holds a number, 0 if it does not.
func number(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
