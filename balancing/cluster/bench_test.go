package cluster

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

func BenchmarkPut(b *testing.B) {
	for name, path := range map[string]string{"disk": filepath.Join(b.TempDir(), "cluster.db"), "memory": ""} {
		b.Run(name, func(b *testing.B) {
			_, table := openDisk(b, path)
			value := make([]byte, 200)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if err := table.Put(fmt.Sprintf("key%d", n%1000), value, time.Time{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func filled(b *testing.B, items int) *Table {
	t := newTable(b, "node1", TableConfig{})
	all := map[string][]byte{}
	for n := range items {
		all[fmt.Sprintf("key%06d", n)] = make([]byte, 200)
	}
	if err := t.PutAll(all); err != nil {
		b.Fatal(err)
	}
	return t
}

func BenchmarkMerge(b *testing.B) {
	from := filled(b, 1000)
	part := bytes.Join(from.Snapshot(), nil)
	if len(from.Snapshot()) != 1 {
		b.Fatal("more than a part")
	}
	b.Run("news=1000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if news, err := newTable(b, "node2", TableConfig{}).Merge(part); news == nil || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("news=0", func(b *testing.B) {
		to := newTable(b, "node2", TableConfig{})
		merge(b, to, from)
		b.ReportAllocs()
		for b.Loop() {
			if news, err := to.Merge(part); news != nil || err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDigest(b *testing.B) {
	t := filled(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		t.Digest()
	}
}

func BenchmarkSummary(b *testing.B) {
	t := filled(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		t.since(t.summary())
	}
}

func BenchmarkGet(b *testing.B) {
	t := filled(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		t.Get("key000500")
	}
}

func BenchmarkItems(b *testing.B) {
	t := filled(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		t.Items("key0001")
	}
}
