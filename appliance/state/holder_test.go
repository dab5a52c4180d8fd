package state

import (
	"os"
	"strings"
	"testing"
)

func TestHolder(t *testing.T) {
	path := t.TempDir()
	if got := Holder(path); got != 0 {
		t.Errorf("nobody has opened it, and %d holds it", got)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := Holder(path); got != os.Getpid() {
		t.Errorf("process %d holds it, want %d", got, os.Getpid())
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := Holder(path); got != 0 {
		t.Errorf("it is closed, and %d holds it", got)
	}
	if got := Holder(path + "/none"); got != 0 {
		t.Errorf("%d holds what is not there", got)
	}
}

func TestHolderIn(t *testing.T) {
	const list = `1: POSIX  ADVISORY  WRITE 11 08:01:5 0 EOF
2: FLOCK  ADVISORY  WRITE 12 08:01:55 0 EOF
3: FLOCK  ADVISORY  WRITE 13 08:01:5 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 08:01:6 0 EOF
4: FLOCK  ADVISORY  WRITE 0 08:01:7 0 EOF
5: FLOCK
`
	for file, want := range map[string]int{"08:01:5": 13, "08:01:55": 12, "08:01:6": 0, "08:01:7": 0, "": 0} {
		if got := holderIn(strings.NewReader(list), file); got != want {
			t.Errorf("%q is held by %d, want %d", file, got, want)
		}
	}
}
