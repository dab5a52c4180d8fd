package lab

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	return control(f, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	}) == nil
}

// OpenTerminal makes a pseudo-terminal: a program has the slave, and whoever has the master
// is its screen and keyboard.
func OpenTerminal() (master, slave *os.File, err error) {
	const mode = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Open("/dev/ptmx", mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	var number uint32
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	if err == nil {
		number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), mode, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return master, slave, nil
}

// Raw has a terminal pass on each key as it is, until restore is called.
func Raw(f *os.File) (restore func() error, err error) {
	var was *unix.Termios
	err = control(f, func(fd int) (err error) {
		if was, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return err
		}
		raw := *was // as cfmakeraw of termios(3) does
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
	})
	return func() error {
		return control(f, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, was) })
	}, err
}

// CopySize gives one terminal the size of another.
func CopySize(to, from *os.File) error {
	var size *unix.Winsize
	err := control(from, func(fd int) (err error) {
		size, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		return err
	})
	if err != nil {
		return err
	}
	return control(to, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
}

// control calls f with the descriptor of a file, which stays as it is: [os.File.Fd] would
// make it a blocking one.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// screen shows the terminal of a program at this process's own.
type screen struct{ master, slave *os.File }

func newScreen() (*screen, error) {
	master, slave, err := OpenTerminal()
	return &screen{master, slave}, err
}

// show connects the terminals while f runs.
func (s *screen) show(f func() error) error {
	defer s.master.Close()
	defer s.slave.Close()
	CopySize(s.master, os.Stdin) // one without a size is good as well
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	restore, err := Raw(os.Stdin)
	if err != nil {
		return err
	}
	defer restore()
	// What waits for a key cannot be interrupted; it ends with the process.
	go io.Copy(s.master, os.Stdin)
	done := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() { io.Copy(os.Stdout, s.master) })
	showing.Go(func() {
		for {
			select {
			case <-resized:
				CopySize(s.master, os.Stdin)
			case <-done:
				return
			}
		}
	})
	err = f()
	close(done)
	// The rest of what the program has written is there already, and then comes the end,
	// unless somebody whom it has left behind keeps the terminal open.
	s.slave.Close()
	s.master.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	showing.Wait()
	return err
}
