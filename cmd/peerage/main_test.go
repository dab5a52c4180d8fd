package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// binary is the program under test, built as it ships but for the race detector.
var binary string

// TestMain runs the tests in a network namespace of their own, so that a demo's fixed
// ports are free whatever else runs on the machine, and no test can reach out; and in a
// mount namespace, so that a test can have a small disk. No
// privileges are needed: the namespace comes with a user namespace.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		const inside = "PEERAGE_TEST_NAMESPACE"
		if os.Getenv(inside) == "" {
			cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
			cmd.Env = append(os.Environ(), inside+"=1")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
				Pdeathsig:   syscall.SIGKILL,
			}
			err := cmd.Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return exit.ExitCode()
			}
			if err == nil {
				return 0
			}
			fmt.Fprintln(os.Stderr, "no network namespace for the tests, running without:", err)
		} else if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback in the namespace:", err)
			return 1
		}
		dir, err := os.MkdirTemp("", "peerage-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		os.Setenv("XDG_RUNTIME_DIR", dir) // where a running demo is noted
		binary = filepath.Join(dir, "peerage")
		args := []string{"build", "-o", binary}
		if underRace() {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build peerage: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// underRace reports whether this test was built with the race detector.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
