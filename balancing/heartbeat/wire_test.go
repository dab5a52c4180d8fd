package heartbeat

import (
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"peerage/balancing"
	"peerage/balancing/keys"
)

// TestReportOfVersion1 opens a report that a node of version 1 has sealed with the site key
// 00 01 02 …. It is never written anew: nodes of different versions must hear each other.
func TestReportOfVersion1(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "report-v1.txt"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.ParseRing("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(Config{
		Self: "n2", Address: hostOf(2), Nodes: []Peer{{ID: "n1", Address: hostOf(1)}, {ID: "n2", Address: hostOf(2)}},
		Sealer: ring.Sealer(keys.LabelReport), Site: "test", Document: document, OfflineAfter: 3, Exchange: Unicast,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &report{
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
	got, err := x.unseal(sealed)
	if diff := cmp.Diff(want, got, compare); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}
