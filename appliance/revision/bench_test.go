package revision

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkStatus is with a full history of a document of some size, and with a conflict:
// then all texts are compared.
func BenchmarkStatus(b *testing.B) {
	store, table := newTable(b, "n1")
	a := New(Config{Self: "n1", Name: "example", Table: table, Clock: store.Clock(), Running: firstText})
	h := &history{name: "example", entries: map[ID]*entry{}}
	var routes strings.Builder
	for i := range 600 {
		fmt.Fprintf(&routes, "  - {path: /%x/, backend: b%d}\n", i*i, i%7)
	}
	add := func(number int, parent ID, more string) ID {
		r := &record{V: version, Number: number, Parent: parent, Author: "alice@n1", Made: store.Clock().Now()}
		text := routes.String() + more
		id := idOf(r.sum("example", text))
		r.put(text)
		e := &entry{record: parseItem(revKey(id), encode(r)).as.(*record), id: id, parent: h.entries[parent]}
		e.phases = map[string]*phase{phaseAll: {Who: "n1", When: r.Made}}
		h.entries[id] = e
		return id
	}
	var last, middle ID
	for n := range Kept {
		last = add(n+1, last, fmt.Sprintf("# %d\n", n))
		if n == Kept/2 {
			middle = last
		}
	}
	add(Kept/2+2, middle, "# apart\n")
	a.latest, a.digest = h, table.Digest()
	for b.Loop() {
		if s := a.Status(); len(s.Conflicts) != 1 {
			b.Fatalf("%d conflicts", len(s.Conflicts))
		}
	}
}
