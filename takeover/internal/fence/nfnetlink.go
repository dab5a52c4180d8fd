package fence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// conn is a netlink socket to nf_tables. The kernel does all that a request asks for
// within the system call that sends it, so an answer is there at once or never comes, and
// nothing here waits.
type conn struct {
	fd  int
	seq uint32
	rx  []byte
}

const (
	// rxSize holds the largest datagram that the kernel makes of a dump.
	rxSize = 64 << 10
	// txSize holds the largest transaction: four times maxVIPs addresses.
	txSize = 4 << 20
)

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	c := &conn{fd: fd, rx: make([]byte, rxSize)}
	// Beyond the limit of the system if we may; else up to it.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, txSize) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, txSize)
	}
	err = errors.Join(err,
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

// message is one request: its kind, an NFT_MSG, and what it is about.
type message struct {
	kind  uint16
	flags uint16
	body  attrs
}

// kernelError is what the kernel said of one message.
type kernelError struct {
	index int // of the message in its transaction, from 1; 0 is all of it
	errno syscall.Errno
	text  string // the kernel's own, "" if it gave none
}

func (e *kernelError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.errno, e.text)
}

func (e *kernelError) Unwrap() error { return e.errno }

// transact carries out all of the messages, or none of them.
func (c *conn) transact(msgs []message) error {
	if len(msgs) == 0 {
		return nil
	}
	first := c.seq + 1
	b := c.append(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, m := range msgs {
		if i == len(msgs)-1 {
			m.flags |= unix.NLM_F_ACK // of the last alone; errors come unasked
		}
		b = c.append(b, nftables|m.kind, m.flags, unix.NFPROTO_NETDEV, 0, m.body)
	}
	last := c.seq
	b = c.append(b, unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		if errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("%w: raise net.core.wmem_max to %d", err, txSize/2)
		}
		return err
	}
	var failure error
	done := false
	err := c.receive(func(m syscall.NetlinkMessage) {
		if m.Header.Type != unix.NLMSG_ERROR || m.Header.Seq-first > last-first {
			return
		}
		if e := parseError(m); e != nil && failure == nil {
			e.index = int(m.Header.Seq - first)
			failure = e
		}
		done = done || m.Header.Seq == last
	})
	switch {
	case failure != nil:
		return failure
	case err != nil:
		return err
	case !done:
		return errors.New("the kernel did not answer")
	}
	return nil
}

// request asks for something, and calls each for every message of the answer.
func (c *conn) request(m message, each func(body []byte) error) error {
	b := c.append(nil, nftables|m.kind, m.flags, unix.NFPROTO_NETDEV, 0, m.body)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var failure error
	err := c.receive(func(m syscall.NetlinkMessage) {
		switch {
		case failure != nil || m.Header.Seq != c.seq || m.Header.Type == unix.NLMSG_DONE:
		case m.Header.Type == unix.NLMSG_ERROR:
			if e := parseError(m); e != nil {
				failure = e
			}
		case len(m.Data) < nfgenmsgLen:
			failure = errShort
		default:
			failure = each(m.Data[nfgenmsgLen:])
		}
	})
	return errors.Join(failure, err)
}

// receive calls each for every message that is there.
func (c *conn) receive(each func(syscall.NetlinkMessage)) error {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.rx, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(c.rx[:n])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			each(m)
		}
	}
}

const (
	nftables    = unix.NFNL_SUBSYS_NFTABLES << 8
	nfgenmsgLen = 4 // struct nfgenmsg: family, version, resource
)

// append appends a message to b: struct nlmsghdr, struct nfgenmsg, attributes.
func (c *conn) append(b []byte, kind, flags uint16, family byte, resource uint16, body attrs) []byte {
	c.seq++
	native := binary.NativeEndian
	b = native.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+nfgenmsgLen+len(body)))
	b = native.AppendUint16(b, kind)
	b = native.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = native.AppendUint32(b, c.seq)
	b = native.AppendUint32(b, 0) // to the kernel
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, body...)
}

// parseError returns what an acknowledgement says, nil if it is no error.
func parseError(m syscall.NetlinkMessage) *kernelError {
	// struct nlmsgerr: errno, and the header that the message had; then attributes.
	const header = 4 + unix.NLMSG_HDRLEN
	if len(m.Data) < header {
		return &kernelError{errno: unix.EBADMSG}
	}
	errno := -int32(binary.NativeEndian.Uint32(m.Data))
	if errno == 0 {
		return nil
	}
	e := &kernelError{errno: syscall.Errno(errno)}
	if m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 {
		_ = walk(m.Data[header:], func(kind uint16, value []byte) error {
			if kind == unix.NLMSGERR_ATTR_MSG {
				e.text = text(value)
			}
			return nil
		})
	}
	return e
}
