package fence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSaysWhatTheKernelLacks(t *testing.T) {
	denied := func(index int) error { return &kernelError{index: index, errno: unix.EPERM} }
	unsupported := &kernelError{index: 1, errno: unix.EOPNOTSUPP}
	for _, c := range []struct {
		owned, plain error
		want         string
	}{
		{denied(0), denied(0), "CAP_NET_ADMIN"},
		{denied(1), nil, "another process"},
		{unsupported, unsupported, "CONFIG_NF_TABLES_NETDEV"},
		{&kernelError{index: 1, errno: unix.EINVAL}, nil, "Linux 5.12"},
		{errors.New("broken"), errors.New("broken"), "CONFIG_NF_TABLES_NETDEV"},
	} {
		got := cannotOwn(c.owned, c.plain)
		if !strings.Contains(got.Error(), c.want) {
			t.Errorf("with an owner %v, without %v: got %q, want %q in it", c.owned, c.plain, got, c.want)
		}
	}
}

// FuzzParse feeds what the kernel could say to all that reads it.
func FuzzParse(f *testing.F) {
	c := Config{Device: "eth0", Reports: "eth1", Mark: 1, VIPs: many(4), Lease: maxLease}
	vips := c.keys()
	for _, t := range []table{standingTable(c), ownedTable(c)} {
		for _, m := range append(t.ruleChanges(state{}, true), t.vipChanges(state{}, vips)...) {
			f.Add([]byte(m.body))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var again attrs
		err := walk(data, func(kind uint16, value []byte) error {
			again = again.bytes(kind, value)
			return nil
		})
		if err == nil {
			checkAgain(t, data, again)
		}
		keys := make(map[string]bool)
		_ = parseElements(data, keys)
		for k := range keys {
			if !bytes.Contains(data, []byte(k)) {
				t.Errorf("key %x is nowhere in %x", k, data)
			}
		}
		_, _, _, _ = parseChain(data)
		_, _, _ = parseRule(data)
		parseError(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Flags: unix.NLM_F_ACK_TLVS}, Data: data})
	})
}

// checkAgain compares attributes with what they were read from, but for the flags of their
// kinds and the octets that fill them up.
func checkAgain(t *testing.T, data []byte, again attrs) {
	t.Helper()
	list := func(b []byte) (all []string) {
		_ = walk(b, func(kind uint16, value []byte) error {
			all = append(all, fmt.Sprintf("%d %x", kind, value))
			return nil
		})
		return all
	}
	if got, want := list(again), list(data); !slices.Equal(got, want) {
		t.Errorf("attributes: got %q, want %q", got, want)
	}
}

func TestAttributesAreReadAsWritten(t *testing.T) {
	c := Config{Device: "eth0", Reports: "eth1", Mark: 1, VIPs: many(2*elementsPerMessage + 8), Lease: maxLease}
	table, want := standingTable(c), c.keys()
	got := keySets{vips4: make(map[string]bool), vips6: make(map[string]bool)}
	for _, m := range table.vipChanges(state{}, want) {
		set := ""
		if err := walk(m.body, func(kind uint16, value []byte) error {
			if kind == unix.NFTA_SET_ELEM_LIST_SET {
				set = text(value)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := parseElements(m.body, got[set]); err != nil {
			t.Fatal(err)
		}
	}
	for set := range want {
		if !maps.Equal(got[set], want[set]) {
			t.Errorf("%s: %d elements, want %d, or others", set, len(got[set]), len(want[set]))
		}
	}
	for _, chain := range table.chains {
		_, name, p, err := parseChain(table.addChain(chain).body)
		if err != nil || name != chain.name || p.place != chain.place {
			t.Errorf("chain: got %s %v, %v; want %s %v", name, p.place, err, chain.name, chain.place)
		}
	}
}

func TestCutAttributesAreAnError(t *testing.T) {
	whole := attrs(nil).text(1, "eth").u32(2, 7)
	for n := range whole {
		err := walk(whole[:n], func(uint16, []byte) error { return nil })
		if boundary := n == 0 || n == 8; (err == nil) != boundary {
			t.Errorf("%d of %d octets: got error %v", n, len(whole), err)
		}
	}
	long := binary.NativeEndian.AppendUint16(nil, 65535)
	if walk(append(long, 1, 0), func(uint16, []byte) error { return nil }) == nil {
		t.Error("an attribute that is longer than all of them: got no error")
	}
}
