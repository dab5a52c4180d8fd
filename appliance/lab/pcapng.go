package lab

import (
	"bufio"
	"encoding/binary"
	"io"
	"time"
)

// pcapng writes frames in the form of draft-ietf-opsawg-pcapng, which Wireshark and tcpdump
// read.
type pcapng struct {
	w    *bufio.Writer
	size int64 // octets so far
}

// Block types and option codes of the draft, sections 4.1 to 4.6.
const (
	sectionBlock    = 0x0a0d0d0a
	interfaceBlock  = 1
	statisticsBlock = 5
	packetBlock     = 6

	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	endOption         = 0
	interfaceName     = 2
	packetFlags       = 2
	applicationName   = 4
	framesReceived    = 4
	framesDropped     = 5
	resolution        = 9
	nanoseconds       = 9 // 10 to the power of -9
	directionIncoming = 1
	directionOutgoing = 2
)

// maxCaptured bounds what is kept of a frame: no frame on a virtual wire is longer.
const maxCaptured = 256 << 10

// newPcapng begins a section with the interfaces of that names.
func newPcapng(w io.Writer, names []string) (*pcapng, error) {
	p := &pcapng{w: bufio.NewWriterSize(w, 64<<10)}
	b := binary.LittleEndian.AppendUint32(nil, byteOrderMagic)
	b = binary.LittleEndian.AppendUint32(b, 1)          // version 1.0
	b = binary.LittleEndian.AppendUint64(b, ^uint64(0)) // of unknown length
	b = option(b, applicationName, []byte("peerage lab"))
	if err := p.block(sectionBlock, option(b, endOption, nil)); err != nil {
		return nil, err
	}
	for _, name := range names {
		b := binary.LittleEndian.AppendUint32(nil, linkEthernet)
		b = binary.LittleEndian.AppendUint32(b, maxCaptured)
		b = option(b, interfaceName, []byte(name))
		b = option(b, resolution, []byte{nanoseconds})
		if err := p.block(interfaceBlock, option(b, endOption, nil)); err != nil {
			return nil, err
		}
	}
	return p, p.w.Flush()
}

// captured is a frame.
type captured struct {
	number   int // of the interface
	at       time.Time
	outgoing bool
	length   int // of the whole frame
	data     []byte
}

func (p *pcapng) frame(c captured) error {
	b := binary.LittleEndian.AppendUint32(nil, uint32(c.number))
	b = appendTime(b, c.at)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.length))
	b = pad(append(b, c.data...))
	flags := uint32(directionIncoming)
	if c.outgoing {
		flags = directionOutgoing
	}
	b = option(b, packetFlags, binary.LittleEndian.AppendUint32(nil, flags))
	return p.block(packetBlock, option(b, endOption, nil))
}

// end writes how much was captured on an interface, and how much the reader was too slow
// for.
func (p *pcapng) end(number int, at time.Time, received, dropped uint64) error {
	b := appendTime(binary.LittleEndian.AppendUint32(nil, uint32(number)), at)
	b = option(b, framesReceived, binary.LittleEndian.AppendUint64(nil, received))
	b = option(b, framesDropped, binary.LittleEndian.AppendUint64(nil, dropped))
	return p.block(statisticsBlock, option(b, endOption, nil))
}

func (p *pcapng) block(kind uint32, body []byte) error {
	length := uint32(len(body) + 12)
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, length)
	b = append(b, body...)
	b = binary.LittleEndian.AppendUint32(b, length)
	p.size += int64(len(b))
	_, err := p.w.Write(b)
	return err
}

// appendTime appends a time as two halves of a count, the higher one first.
func appendTime(b []byte, at time.Time) []byte {
	ns := uint64(at.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(ns))
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// pad fills up to a multiple of four octets.
func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
