package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Capture bounds, and what a capture is limited to that says nothing else.
const (
	MaxCaptureTime  = 24 * time.Hour
	MaxCaptureSize  = 16 << 30 // octets
	CaptureTime     = 10 * time.Minute
	CaptureSize     = 256 << 20 // octets
	captureBuffer   = 8 << 20   // octets that the kernel keeps for a reader who is slow
	captureOverhead = 2 << 10   // octets beside the frames: of a block, and of those at the end
)

// Limits ends a capture.
type Limits struct {
	For  time.Duration `json:"for"`  // up to MaxCaptureTime; 0 for CaptureTime
	Size int64         `json:"size"` // octets, up to MaxCaptureSize; 0 for CaptureSize
}

func (m *Limits) fill() error {
	if m.For == 0 {
		m.For = CaptureTime
	}
	if m.Size == 0 {
		m.Size = CaptureSize
	}
	if m.For < 0 || m.For > MaxCaptureTime {
		return useErrorf("a capture of %v: it lasts at most %v", m.For, MaxCaptureTime)
	}
	if m.Size < 0 || m.Size > MaxCaptureSize {
		return useErrorf("a capture of %d octets: it has at most %d", m.Size, int64(MaxCaptureSize))
	}
	return nil
}

// Captured says what a capture has got.
type Captured struct {
	Frames  uint64 `json:"frames"`
	Dropped uint64 `json:"dropped"` // that came faster than they could be written
	Octets  int64  `json:"octets"`  // written
	Full    bool   `json:"full"`    // it has ended because of its size
}

// Capture writes what passes to w, as pcapng, until ctx ends or a limit is reached. Of a
// machine that is what it sends and receives on all its networks. Of a network it is what
// each machine there sends, once, on an interface that bears the machine's name; whether or
// not the switch passes it on.
func (l *Lab) Capture(ctx context.Context, where string, w io.Writer, limits Limits) (Captured, error) {
	if err := limits.fill(); err != nil {
		return Captured{}, err
	}
	in, links, err := l.captureAt(where)
	if err != nil {
		return Captured{}, err
	}
	var file *os.File
	c := &capture{numbers: map[int]int{}, sent: in != l.lan}
	names := slices.Sorted(maps.Keys(links))
	err = in.do(func() (err error) {
		for i, name := range names {
			ifi, err := net.InterfaceByName(links[name])
			if err != nil {
				return err
			}
			c.numbers[ifi.Index] = i
		}
		file, err = listenToAll()
		return err
	})
	if err != nil {
		return Captured{}, fmt.Errorf("capture at %s: %w", where, err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(ctx, limits.For)
	defer cancel()
	defer context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Unix(1, 0)) })()
	if c.out, err = newPcapng(w, names); err == nil {
		err = c.run(file, limits.Size)
	}
	if err != nil {
		return c.got, fmt.Errorf("capture at %s: %w", where, err)
	}
	return c.got, nil
}

// captureAt returns the namespace to listen in, and the links there by the names that they
// get.
func (l *Lab) captureAt(where string) (*namespace, map[string]string, error) {
	links := map[string]string{}
	if where == Public || where == Internal {
		for _, m := range l.machines {
			if p := m.port(where); p != nil {
				links[m.Name] = p.plug
			}
		}
		return l.lan, links, nil
	}
	m, err := l.Machine(where)
	if err != nil {
		return nil, nil, useErrorf("%q is neither a machine of the lab (%s) nor a network (%s, %s)", where, list(l.machines), Public, Internal)
	}
	for _, p := range m.ports {
		links[p.network] = p.link
	}
	return m.ns, links, nil
}

// listenToAll returns a socket that reads what passes all interfaces of this thread's
// namespace.
func listenToAll() (*os.File, error) {
	protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	// Beyond the limit for users only as root of the machine: then so much the better.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
	}
	return os.NewFile(uintptr(fd), "capture"), nil
}

// capture is a capture in progress.
type capture struct {
	numbers map[int]int // of the interfaces in the file, by the kernel's index
	sent    bool        // take what leaves too
	out     *pcapng
	got     Captured

	frames [maxCaptured]byte
	oob    [128]byte
}

// run writes frames until the deadline of the file, or until so much is written.
func (c *capture) run(file *os.File, size int64) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	received := make([]uint64, len(c.numbers))
	for {
		f, ok, err := c.next(raw)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		if ok && c.out.size+int64(len(f.data))+captureOverhead > size {
			c.got.Full = true
			break
		}
		if ok {
			received[f.number]++
			c.got.Frames++
			if err := c.out.frame(f); err != nil {
				return err
			}
		}
	}
	control(file, func(fd int) error {
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			c.got.Dropped = uint64(st.Drops)
		}
		return err
	})
	for i, n := range received {
		if err := c.out.end(i, time.Now(), n, c.got.Dropped); err != nil {
			return err
		}
	}
	c.got.Octets = c.out.size
	return c.out.w.Flush()
}

// next waits for a frame. It is not ok if it is not wanted.
func (c *capture) next(raw interface {
	Read(func(uintptr) bool) error
},
) (f captured, ok bool, err error) {
	var (
		n, oobn int
		from    unix.Sockaddr
		got     error
	)
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, from, got = unix.Recvmsg(int(fd), c.frames[:], c.oob[:], unix.MSG_TRUNC)
		if errors.Is(got, unix.EAGAIN) {
			c.out.w.Flush() // who reads along wants to see it; a failure shows with the next frame
			return false
		}
		return true
	})
	if err != nil {
		return f, false, err
	}
	link, isLink := from.(*unix.SockaddrLinklayer)
	if errors.Is(got, unix.ENETDOWN) || errors.Is(got, unix.EINTR) { // a link that goes may come back
		return f, false, nil
	}
	if got != nil || !isLink {
		return f, false, os.NewSyscallError("recvmsg", got)
	}
	number, wanted := c.numbers[link.Ifindex]
	outgoing := link.Pkttype == unix.PACKET_OUTGOING
	if !wanted || outgoing && !c.sent {
		return f, false, nil
	}
	return captured{number, stamp(c.oob[:oobn]), outgoing, n, c.frames[:min(n, len(c.frames))]}, true, nil
}

// stamp returns the time at which the kernel has got a frame.
func stamp(oob []byte) time.Time {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range all {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}
