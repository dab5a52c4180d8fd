package heartbeat

import (
	"bytes"
	"encoding/hex"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"peerage/balancing"
)

var compare = cmp.Options{
	cmp.AllowUnexported(report{}),
	cmpopts.EquateComparable(netip.Addr{}),
}

func addrs(text ...string) (all []netip.Addr) {
	for _, a := range text {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func fullReport() *report {
	return &report{
		node: "n1", incarnation: 1 << 40, sequence: 7, sent: time.UnixMilli(1_790_000_000_123), period: 500 * time.Millisecond,
		state: balancing.OK, load: 251.37, address: netip.MustParseAddr("192.0.2.1"),
		held: addrs("192.0.2.11", "192.0.2.12", "2001:db8::11"), deaf: true,
		internal: netip.MustParseAddr("10.0.0.1"), capacity: 1.5, debit: 2, shed: 3, unable: []balancing.RouteID{7, 1 << 31},
		version: "v1.2.3", ask: true,
		settings: balancing.Settings{
			Version: 99, Base: 0xabcd, Period: time.Second,
			Policy: balancing.Policy{Light: 55.5, Margin: 10, Below: 40, Rule: balancing.Rotate, Choice: balancing.Least},
		},
	}
}

func TestReportSurvivesTheWire(t *testing.T) {
	largest := fullReport()
	largest.node = balancing.NodeID(strings.Repeat("n", balancing.MaxNodeID))
	largest.address = netip.MustParseAddr("2001:db8::1")
	largest.internal = largest.address
	largest.version = strings.Repeat("v", balancing.MaxVersion)
	for i := len(largest.unable); i < balancing.MaxUnable; i++ {
		largest.unable = append(largest.unable, balancing.RouteID(i))
	}
	largest.held = nil
	for i := range balancing.MaxHeld {
		largest.held = append(largest.held, netip.AddrFrom16([16]byte{0: 0x20, 15: byte(i)}))
	}
	small := &report{node: "a", sent: time.UnixMilli(0), period: balancing.MinPeriod, state: balancing.Joining}
	for name, want := range map[string]*report{"full": fullReport(), "smallest": small, "largest": largest} {
		text := want.appendTo(nil)
		if len(text) > maxPlain {
			t.Errorf("%s: %d octets, want at most %d", name, len(text), maxPlain)
		}
		got, err := parseReport(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("%s: (-sent +read)\n%s", name, diff)
		}
	}
}

// TestWireFormat fixes the bytes: nodes of different versions must understand each other.
func TestWireFormat(t *testing.T) {
	const want = "01" +
		"010002" + "6e31" + // node n1
		"020008" + "0000010000000000" + // incarnation
		"030008" + "0000000000000007" + // sequence
		"040008" + "000001a0c4506c7b" + // sent
		"050004" + "000001f4" + // period 500 ms
		"060001" + "02" + // ok
		"070004" + "00006231" + // 251.37 %
		"080004" + "c0000201" +
		"090008" + "c000020bc000020c" +
		"0a0010" + "20010db8000000000000000000000011" +
		"0b0000" +
		"0c0004" + "0a000001" +
		"0d0004" + "000005dc" + // capacity 1.5
		"0e0004" + "000000c8" + // debit
		"0f0004" + "0000012c" + // shed
		"100008" + "0000000780000000" +
		"110006" + "76312e322e33" +
		"12001e" + "0000000000000063" + "0000abcd" + "000015ae" + "000003e8" + "00000fa0" + "03" + "01" + "000003e8" +
		"130000"
	if got := hex.EncodeToString(fullReport().appendTo(nil)); got != want {
		t.Errorf("report is\n%s\nwant\n%s", got, want)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	text := append(fullReport().appendTo(nil), 200, 0, 3, 'n', 'e', 'w')
	got, err := parseReport(text)
	if diff := cmp.Diff(fullReport(), got, compare); err != nil || diff != "" {
		t.Errorf("with a field of a later version: %v\n%s", err, diff)
	}
}

func TestMalformedReports(t *testing.T) {
	good := fullReport().appendTo(nil)
	edit := func(f func(r *report)) []byte {
		r := fullReport()
		f(r)
		return r.appendTo(nil)
	}
	for name, text := range map[string][]byte{
		"empty":                  nil,
		"other version":          append([]byte{2}, good[1:]...),
		"field twice":            append(append([]byte{}, good...), tagAsk, 0, 0),
		"without its node":       append([]byte{1}, good[1+fieldHead+2:]...),
		"name of a node":         edit(func(r *report) { r.node = "N1" }),
		"no name":                edit(func(r *report) { r.node = "" }),
		"period":                 edit(func(r *report) { r.period = 0 }),
		"state":                  edit(func(r *report) { r.state = 99 }),
		"no state":               edit(func(r *report) { r.state = 0 }),
		"address for everybody":  edit(func(r *report) { r.address = netip.MustParseAddr("0.0.0.0") }),
		"address of a group":     edit(func(r *report) { r.address = netip.MustParseAddr("ff02::1") }),
		"settings out of bounds": edit(func(r *report) { r.settings.Margin = 0 }),
		"unknown rule":           edit(func(r *report) { r.settings.Rule = 99 }),
		"too many routes":        edit(func(r *report) { r.unable = make([]balancing.RouteID, balancing.MaxUnable+1) }),
		"version":                edit(func(r *report) { r.version = "\xff" }),
		"mapped VIP":             edit(func(r *report) { r.held = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")} }),
	} {
		if r, err := parseReport(text); err == nil {
			t.Errorf("%s: read as %+v, want an error", name, r)
		}
	}
	needs := bytes.Index(good, []byte{tagAddress, 0, 4}) // up to the load
	for n := range good {
		if _, err := parseReport(good[:n]); err == nil && n < needs {
			t.Errorf("cut to %d octets: no error", n)
		}
	}
}

func TestLoadOnTheWire(t *testing.T) {
	for load, want := range map[balancing.Load]balancing.Load{
		0: 0, 12.345: 12.35, -1: 0, 250: 250,
		balancing.Load(math.NaN()): 0, balancing.Load(math.Inf(1)): math.MaxUint32 / 100.0,
	} {
		r := fullReport()
		r.load = load
		got, err := parseReport(r.appendTo(nil))
		if err != nil || math.Abs(float64(got.load-want)) > 0.005 {
			t.Errorf("load %v arrives as %v, %v, want %v", load, got.load, err, want)
		}
	}
}

// FuzzReport holds the parser to this: it never fails but by an error, what it takes is
// within the bounds, and is written as it was read.
func FuzzReport(f *testing.F) {
	f.Add(fullReport().appendTo(nil))
	f.Add((&report{node: "a", sent: time.UnixMilli(0), period: balancing.MinPeriod, state: balancing.Joining}).appendTo(nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseReport(text)
		if err != nil {
			return
		}
		if !r.node.Valid() || !r.state.Valid() || len(r.held) > balancing.MaxHeld || r.period < balancing.MinPeriod || r.period > balancing.MaxPeriod {
			t.Fatalf("out of bounds: %+v", r)
		}
		again, err := parseReport(r.appendTo(nil))
		if diff := cmp.Diff(r, again, compare); err != nil || diff != "" {
			t.Fatalf("read again: %v\n%s", err, diff)
		}
	})
}

func BenchmarkReportWrite(b *testing.B) {
	r := fullReport()
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = r.appendTo(out[:0])
	}
}

func BenchmarkReportRead(b *testing.B) {
	text := fullReport().appendTo(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseReport(text); err != nil {
			b.Fatal(err)
		}
	}
}
