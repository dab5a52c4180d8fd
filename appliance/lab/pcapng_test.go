package lab

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// readPcapng reads back what [pcapng] writes.
func readPcapng(t *testing.T, b []byte) (frames []captured, names []string) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 12 {
			t.Fatalf("%d octets are left: no block", len(b))
		}
		kind, length := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if length%4 != 0 || length < 12 || int(length) > len(b) || binary.LittleEndian.Uint32(b[length-4:]) != length {
			t.Fatalf("a block of type %#x has %d octets, of %d", kind, length, len(b))
		}
		body := b[8 : length-4]
		b = b[length:]
		switch kind {
		case interfaceBlock:
			names = append(names, string(options(t, body[8:])[interfaceName]))
		case packetBlock:
			n := int(binary.LittleEndian.Uint32(body[12:]))
			flags := options(t, body[20+(n+3)/4*4:])[packetFlags]
			frames = append(frames, captured{
				number:   int(binary.LittleEndian.Uint32(body)),
				at:       time.Unix(0, int64(uint64(binary.LittleEndian.Uint32(body[4:]))<<32|uint64(binary.LittleEndian.Uint32(body[8:])))),
				outgoing: binary.LittleEndian.Uint32(flags) == directionOutgoing,
				length:   int(binary.LittleEndian.Uint32(body[16:])),
				data:     slices.Clone(body[20 : 20+n]),
			})
		}
	}
	return frames, names
}

func options(t *testing.T, b []byte) map[uint16][]byte {
	t.Helper()
	all := map[uint16][]byte{}
	for {
		if len(b) < 4 {
			t.Fatal("the options have no end")
		}
		code, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if code == endOption {
			return all
		}
		all[code] = b[4 : 4+n]
		b = b[4+(n+3)/4*4:]
	}
}

// FuzzPcapng: what is written is read back.
func FuzzPcapng(f *testing.F) {
	f.Add("n1", []byte("a frame"), int64(1_700_000_000_123_456_789), true)
	f.Add("", []byte{}, int64(0), false)
	f.Fuzz(func(t *testing.T, name string, data []byte, ns int64, outgoing bool) {
		if len(name) > 1<<15 || len(data) > maxCaptured {
			return
		}
		var b bytes.Buffer
		p, err := newPcapng(&b, []string{name, "other"})
		must(t, err)
		want := captured{1, time.Unix(0, ns), outgoing, len(data) + 5, data}
		must(t, p.frame(want))
		must(t, p.end(0, want.at, 1, 2))
		must(t, p.w.Flush())
		if int64(b.Len()) != p.size {
			t.Errorf("%d octets, and it says %d", b.Len(), p.size)
		}
		frames, names := readPcapng(t, b.Bytes())
		if !slices.Equal(names, []string{name, "other"}) || len(frames) != 1 {
			t.Fatalf("got %d frames on %q", len(frames), names)
		}
		if got := frames[0]; got.number != 1 || !got.at.Equal(want.at) || got.outgoing != outgoing || got.length != want.length || !bytes.Equal(got.data, data) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}
