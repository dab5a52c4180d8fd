package takeover

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	commandTimeout = 30 * time.Second // for one run
	commandRetry   = 5 * time.Second  // before the next, if it failed
	commandOutput  = 1 << 10          // octets of its output that are logged
)

// CommandLink is a [Link] that has a program told of each VIP that comes and goes, for
// networks where an address moves by a call of their API. The program is run in the
// background: what it does, a claim does not wait for.
type CommandLink struct {
	Link
	path string
	log  *slog.Logger

	changed chan struct{} // capacity 1

	mu     sync.Mutex
	here   map[netip.Addr]bool // VIPs, as the link has them
	told   map[netip.Addr]bool // as the program was last told with success
	unsure map[netip.Addr]bool // that it was told of since, without: it may have done it or not
}

// WithCommand returns l so that the program at path is run, while Run does, as
//
//	path claim|release VIP
//
// for each VIP that was added or removed: once it has exited with 0, else again every 5 s,
// with the newest of the two words. It has 30 s. Of its environment only PATH is passed on.
func WithCommand(l Link, path string, log *slog.Logger) *CommandLink {
	return &CommandLink{
		Link: l, path: path, log: log, changed: make(chan struct{}, 1),
		here: map[netip.Addr]bool{}, told: map[netip.Addr]bool{}, unsure: map[netip.Addr]bool{},
	}
}

// Addrs implements [Link]. What the kernel has taken away is gone for the program too.
func (c *CommandLink) Addrs(ctx context.Context) ([]netip.Addr, error) {
	on, err := c.Link.Addrs(ctx)
	if err != nil {
		return on, err
	}
	c.mu.Lock()
	var gone []netip.Addr
	for vip, here := range c.here {
		if here && !slices.Contains(on, vip) {
			gone = append(gone, vip)
		}
	}
	c.mu.Unlock()
	for _, vip := range gone {
		c.note(vip, false)
	}
	return on, nil
}

// Add implements [Link].
func (c *CommandLink) Add(ctx context.Context, vip netip.Addr) error {
	err := c.Link.Add(ctx, vip)
	if err == nil {
		c.note(vip, true)
	}
	return err
}

// Remove implements [Link].
func (c *CommandLink) Remove(ctx context.Context, vip netip.Addr) error {
	err := c.Link.Remove(ctx, vip)
	if err == nil {
		c.note(vip, false)
	}
	return err
}

func (c *CommandLink) note(vip netip.Addr, here bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, known := c.here[vip]; known && was == here {
		return
	}
	c.here[vip] = here
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Run runs the program as often as needed until ctx ends. What was removed just before is
// still told.
func (c *CommandLink) Run(ctx context.Context) error {
	retry := time.NewTimer(commandRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			c.tellAll(context.WithoutCancel(ctx))
			return nil
		case <-c.changed:
		case <-retry.C:
		}
		if !c.tellAll(ctx) {
			retry.Reset(commandRetry)
		}
	}
}

// tellAll tells the program of what it does not know, and reports whether it took all.
func (c *CommandLink) tellAll(ctx context.Context) bool {
	type news struct {
		vip  netip.Addr
		here bool
	}
	var all []news
	c.mu.Lock()
	for vip, here := range c.here {
		if c.told[vip] != here || c.unsure[vip] {
			all = append(all, news{vip, here})
		}
	}
	c.mu.Unlock()
	taken := true
	for _, n := range all {
		word := "release"
		if n.here {
			word = "claim"
		}
		err := c.run(ctx, word, n.vip)
		c.mu.Lock()
		if c.unsure[n.vip] = err != nil; err == nil {
			c.told[n.vip] = n.here
		}
		c.mu.Unlock()
		taken = taken && err == nil
	}
	return taken
}

func (c *CommandLink) run(ctx context.Context, word string, vip netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, word, vip.String())
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // and what it has started
	cmd.WaitDelay = time.Second
	output := &capped{most: commandOutput}
	cmd.Stdout, cmd.Stderr = output, output
	began := time.Now()
	err := cmd.Run()
	if err != nil {
		c.log.Error("vip command failed", "command", c.path, "word", word, "vip", vip, "err", err, "output", output.String())
		return err
	}
	c.log.Info("vip command done", "command", c.path, "word", word, "vip", vip, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// capped keeps the beginning of what is written to it.
type capped struct {
	bytes.Buffer
	most int
}

func (c *capped) Write(b []byte) (int, error) {
	c.Buffer.Write(b[:min(len(b), c.most-c.Len())])
	return len(b), nil
}

func (c *capped) String() string {
	return strings.TrimSpace(strings.ToValidUTF8(c.Buffer.String(), "?"))
}
