package cluster

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// writerEnv makes the test binary a process that writes until it is killed.
const writerEnv = "CLUSTER_TEST_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		write(path)
	}
	os.Exit(m.Run())
}

// write prints the number of each value when it has been acknowledged.
func write(path string) {
	s, err := OpenStore(path)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	table, err := s.Table("node1", TableConfig{Name: "test"})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for n := len(table.Items("")); ; n++ {
		value := bytes.Repeat([]byte{byte(n)}, 1+n%5000)
		if err := table.Put(fmt.Sprintf("k%06d", n), value, time.Time{}); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(n, uint64(table.store.Clock().mark()))
	}
}

func openDisk(t testing.TB, path string) (*Store, *Table) {
	t.Helper()
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	table, err := s.Table("node1", TableConfig{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return s, table
}

// Whatever was acknowledged before the process was killed is there afterwards.
func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	most, all := 0, 0
	var mark Stamp
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), writerEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The first round dies while the file is made, or soon after.
		time.AfterFunc(time.Duration(rand.IntN(20+round*40))*time.Millisecond, func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var n int
			var s uint64
			if _, err := fmt.Sscan(lines.Text(), &n, &s); err != nil {
				if strings.HasPrefix(lines.Text(), "error") {
					t.Fatal(lines.Text())
				}
				continue // cut off by the kill
			}
			most, mark, all = n+1, Stamp(s), all+1
		}
		cmd.Wait()

		s, table := openDisk(t, path)
		items := table.Items("")
		// One more may have been on the disk, but not acknowledged.
		if len(items) != most && len(items) != most+1 {
			t.Fatalf("round %d: %d items are there, %d were acknowledged", round, len(items), most)
		}
		for n, i := range items {
			if i.Key != fmt.Sprintf("k%06d", n) || !bytes.Equal(i.Value, bytes.Repeat([]byte{byte(n)}, 1+n%5000)) {
				t.Fatalf("round %d: item %d is not what was put", round, n)
			}
		}
		if now := s.Clock().mark(); now < mark {
			t.Fatalf("round %d: the clock went back from %v to %v", round, mark, now)
		}
		most = len(items)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d writes acknowledged in 8 lives", all)
	if all == 0 {
		t.Error("no write was acknowledged")
	}
}

func TestStoreIsTheSameAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	s, table := openDisk(t, path)
	put(t, table, "a", "1")
	put(t, table, "b", "2")
	if err := table.Put("c", []byte("3"), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := table.Put("past", nil, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete("a"); err != nil {
		t.Fatal(err)
	}
	put(t, table, "d", "4")
	if err := table.Drop("d"); err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(time.Now().UnixMilli())
	if err := s.mark(now.Add(-time.Hour), now); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := OpenStore(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: got %v", err)
	}
	digest, clock := table.Digest(), s.Clock().mark()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := table.Put("e", nil, time.Time{}); err == nil {
		t.Error("a closed store has taken a write")
	}
	if got, want := live(table), "b=2 c=3"; got != want {
		t.Errorf("after a write that failed: got %q, want %q", got, want)
	}
	s, table = openDisk(t, path)
	if table.Digest() != digest || live(table) != "b=2 c=3" {
		t.Errorf("after a restart: got %q", live(table))
	}
	if got := s.Clock().Now(); got <= clock {
		t.Errorf("after a restart the clock gives %v, before it was %v", got, clock)
	}
	if seen, ran := s.times(); !seen.Equal(now.Add(-time.Hour)) || !ran.Equal(now) {
		t.Errorf("times: got %v, %v", seen, ran)
	}
	put(t, table, "f", "6") // what has gone goes from the file too
	if len(table.gone) != 0 {
		t.Errorf("%d keys are still in the file", len(table.gone))
	}
}

func TestDamagedFileIsPutAsideAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	aside := path + damagedSuffix
	s, table := openDisk(t, path)
	for n := range 200 {
		put(t, table, fmt.Sprintf("k%03d", n), strings.Repeat("value ", 100))
	}
	s.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	garbage := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{1}).Read(garbage)
	tests := map[string][]byte{
		"empty":                    {},
		"garbage":                  garbage,
		"text":                     []byte("This is no file of ours.\n"),
		"cut in the first page":    good[:1000],
		"cut after the meta pages": good[:8192],
		"cut in the middle":        good[:len(good)/2],
		"zeros behind":             append(bytes.Clone(good[:8192]), make([]byte, len(good)-8192)...),
		"garbage behind":           append(bytes.Clone(good[:8192]), append(garbage, make([]byte, len(good))...)[:len(good)-8192]...),
	}
	flipped := bytes.Clone(good)
	flipped[bytes.LastIndex(flipped, []byte("value "))] ^= 1
	for n := 0; n < len(flipped); n++ { // in all copies of the page, for only one is in use
		i := bytes.Index(flipped[n:], []byte("value "))
		if i < 0 {
			break
		}
		n += i
		flipped[n] ^= 1
	}
	tests["bits flipped"] = flipped
	for name, content := range tests {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, table := openDisk(t, path)
		if s.aside != aside || len(table.Items("")) != 0 {
			t.Errorf("%s: put aside as %q, and has %d items", name, s.aside, len(table.Items("")))
		}
		if now, err := os.ReadFile(aside); err != nil || !bytes.Equal(now, content) {
			t.Errorf("%s: the file has changed: %v", name, err)
		}
		put(t, table, "k", "v")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, table = openDisk(t, path)
		if got := live(table); s.aside != "" || got != "k=v" {
			t.Errorf("%s: the new file has %q; put aside as %q", name, got, s.aside)
		}
		s.Close()
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, table := openDisk(t, path); len(table.Items("")) != 200 {
		t.Error("the good file is not good any more")
	}
}

// Damage that no reading shows is found by a write. The file is used no more from then on.
func TestDamageThatAWriteFinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	s, table := openDisk(t, path)
	for n := range 200 {
		put(t, table, fmt.Sprintf("k%03d", n), "v")
	}
	s.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const leaf, flags, overflow = 2, 8, 12 // of the head of a page of bbolt
	for page := range slices.Chunk(b, os.Getpagesize()) {
		if binary.NativeEndian.Uint16(page[flags:]) == leaf {
			binary.NativeEndian.PutUint32(page[overflow:], 1000)
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, table = openDisk(t, path)
	if s.aside != "" || len(table.Items("")) != 200 {
		t.Fatalf("the damage is found by reading: put aside as %q", s.aside)
	}
	for range 2 {
		if err := table.Put("k", nil, time.Time{}); !errors.Is(err, errDamaged) {
			t.Errorf("a write gets %v, want %v", err, errDamaged)
		}
	}
	s.Close()
	s, table = openDisk(t, path)
	if s.aside != path+damagedSuffix || len(table.Items("")) != 0 {
		t.Errorf("started anew: put aside as %q, and has %d items", s.aside, len(table.Items("")))
	}
	put(t, table, "k", "v")
}

// What a later version wrote is not damaged: who goes back to an earlier one loses nothing.
func TestFileOfALaterVersionStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	s, table := openDisk(t, path)
	put(t, table, "k", "v")
	later := (&Item{Key: "k", Node: "n"}).append(nil)
	later[0] |= 1 << 7 // a flag that there is none of
	later = binary.BigEndian.AppendUint32(later, crc32.Checksum(later, castagnoli))
	err := s.update(func(tx *bbolt.Tx) error { return tx.Bucket(table.bucket).Put([]byte("k"), later) })
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenStore(path); err != nil || s.aside != "" {
		t.Fatalf("put aside as %q, %v", s.aside, err)
	}
	defer s.Close()
	if _, err := s.Table("node1", TableConfig{Name: "test"}); !errors.Is(err, errLater) {
		t.Errorf("got %v, want %v", err, errLater)
	}
	if _, err := s.Table("node1", TableConfig{Name: "another"}); err != nil {
		t.Errorf("another table: %v", err)
	}
}
