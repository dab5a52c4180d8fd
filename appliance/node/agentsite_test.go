package node

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"peerage/appliance/site"
	"peerage/balancing/nstest"
)

// TestRoomOnAFullDisk writes to a disk of one MiB.
func TestRoomOnAFullDisk(t *testing.T) {
	if !nstest.Inside() {
		nstest.Rerun(t)
		return
	}
	dir := t.TempDir()
	runtime.LockOSThread() // it is the only one that sees the disk, and ends with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("no mounts of our own: %v", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("no disk of our own: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	a := agentSite{&server{nodeFile: &site.NodeFile{Name: "n1", DataDir: dir}}}
	document, without := siteOf("n1", "n2"), siteOf("n2", "n3")
	long := document + "# " + strings.Repeat("x", 512<<10) + "\n"
	if err := a.Room(document); err != nil {
		t.Errorf("there is room: %v", err)
	}
	if err := a.Room(long); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "n1 cannot store") {
		t.Errorf("there is no room for a long one: got %v", err)
	}
	if err := os.WriteFile(dir+"/ballast", make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if err := a.Room(document); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "stop that node") {
		t.Errorf("the disk is full: got %v", err)
	}
	if err := a.Room(without); err != nil {
		t.Errorf("a node that is taken out of the site need not store that: %v", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}
