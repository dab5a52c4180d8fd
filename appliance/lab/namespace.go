package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNamespace is the network namespace of the thread that opens it.
const threadNamespace = "/proc/thread-self/ns/net"

// namespace is a network namespace.
type namespace struct {
	file *os.File // keeps it, and is the way in
	name string   // path of its name; "" for none
}

// newNamespace makes a namespace of the lab with that id, whose loopback is up. With a path
// it gets a name there, as 'ip netns add' gives it.
func newNamespace(id, path string) (*namespace, error) {
	n := &namespace{}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w%s", err, hint(err))
		}
		if n.file, err = os.Open(threadNamespace); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Before it has a name, so that nobody ever takes it for another's.
		if err := errors.Join(netlink.LinkSetAlias(lo, mark+id), netlink.LinkSetUp(lo)); err != nil {
			return err
		}
		if path != "" {
			if err := giveName(id, path); err != nil {
				return err
			}
			n.name = path
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// hint says what is missing when the kernel does not let us.
func hint(err error) string {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		return "; a lab needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, or a kernel that lets users make user namespaces" +
			" (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
	}
	return ""
}

// close lets go of the namespace: it ends with the last process in it.
func (n *namespace) close() error {
	if n == nil || n.file == nil {
		return nil
	}
	err := n.file.Close()
	if n.name != "" {
		err = errors.Join(err, removeName(n.name))
	}
	return err
}

// stat tells the namespace from others, while it is open.
func (n *namespace) stat() (fs.FileInfo, error) {
	if n == nil || n.file == nil {
		return nil, fs.ErrClosed
	}
	return n.file.Stat()
}

// do runs f on a thread in the namespace. What f opens stays there.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

// enter moves this thread into the namespace.
func (n *namespace) enter() error {
	return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
}

// onThread runs f on a thread of its own that ends with f, so that nobody else meets what f
// has done to its namespace.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// giveName makes the namespace of this thread known at path. Should the power fail half-way,
// the file there says whose it is.
func giveName(id, path string) error {
	if err := shareNames(filepath.Dir(path)); err != nil {
		return fmt.Errorf("prepare %s for names of namespaces: %w", filepath.Dir(path), err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		name := filepath.Base(path)
		return fmt.Errorf("the namespace %s is there already: another lab runs, with another --dir; or 'ip netns delete %s' removes what one has left behind", name, name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(mark + id)
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Mount(threadNamespace, path, "none", unix.MS_BIND, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("name a namespace %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// isNameOf reports whether what is at path was put there by the lab with that id.
func isNameOf(id, path string) (is bool) {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	n := &namespace{file: f}
	err = n.do(func() error {
		lo, err := netlink.LinkByName("lo")
		is = err == nil && lo.Attrs().Alias == mark+id
		return err
	})
	if errors.Is(err, unix.EINVAL) { // no namespace
		b, err := io.ReadAll(io.LimitReader(f, 100))
		is = err == nil && string(b) == mark+id
	}
	return is
}

// shareNames makes dir a mount of its own whose names all see, as 'ip netns' wants to find
// it: else it would lay another one over the names that are there.
func shareNames(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// removeName takes a name of the lab back. It is no error if there is none.
func removeName(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // that is a name without a namespace
		return fmt.Errorf("remove the name %s: %w", path, err)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// starter starts processes in namespaces. The kernel kills each of them when the thread
// ends that started it; so one thread starts all, and lives as long as the lab.
type starter struct {
	jobs chan func()
	done chan struct{}
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func()), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *starter) run() {
	defer close(s.done)
	runtime.LockOSThread() // and never unlock
	for job := range s.jobs {
		job()
	}
}

// start starts cmd in the namespace.
func (s *starter) start(n *namespace, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error)
	s.jobs <- func() {
		err := n.enter()
		if err == nil {
			err = cmd.Start()
		}
		result <- err
	}
	return <-result
}

// close ends the thread, and every process that it has started.
func (s *starter) close() {
	close(s.jobs)
	<-s.done
}
