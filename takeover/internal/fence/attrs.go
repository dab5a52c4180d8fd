package fence

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// attrs are netlink attributes, encoded. Its methods append one each. The numbers of
// nf_tables are in network byte order.
type attrs []byte

func (a attrs) bytes(kind uint16, value []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, value...)
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}

func (a attrs) nest(kind uint16, inner attrs) attrs { return a.bytes(kind|unix.NLA_F_NESTED, inner) }
func (a attrs) text(kind uint16, s string) attrs    { return a.bytes(kind, append([]byte(s), 0)) }

func (a attrs) u32(kind uint16, v uint32) attrs {
	return a.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (a attrs) u64(kind uint16, v uint64) attrs {
	return a.bytes(kind, binary.BigEndian.AppendUint64(nil, v))
}

var errShort = errors.New("cut short by the kernel")

// walk calls each for the attributes in b, until it returns an error.
func walk(b []byte, each func(kind uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return errShort
		}
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := each(kind, b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	if len(b) != 0 {
		return errShort
	}
	return nil
}

// text is a value that is a string, which ends with a zero byte.
func text(value []byte) string {
	s, _, _ := bytes.Cut(value, []byte{0})
	return string(s)
}
