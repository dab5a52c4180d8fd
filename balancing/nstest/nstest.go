// Package nstest runs a test in a network namespace of its own, where it is root over the
// network and can reach nothing else. It needs no privileges but that to make user
// namespaces.
package nstest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const variable = "PEERAGE_TEST_IN_NAMESPACE"

// Inside reports whether this process is in a namespace made by [Rerun].
func Inside() bool { return os.Getenv(variable) != "" }

// Rerun runs the calling test again, in a child process that has a namespace, and reports
// what came of it. It skips t if the kernel makes no namespace for us.
func Rerun(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("this kernel makes no user and network namespaces for us: %v", err)
	}
	err = cmd.Wait()
	switch {
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, &out)
	case strings.Contains(out.String(), "--- SKIP"):
		t.Skipf("in the namespace:\n%s", &out)
	}
	t.Logf("in the namespace:\n%s", &out)
}
