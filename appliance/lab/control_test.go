package lab

import (
	"net"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// connect returns the two ends of a connection to a control socket.
func connect(t *testing.T) (clientEnd, keeperEnd *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		must(t, err)
		f.Close()
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func TestRequestArrives(t *testing.T) {
	for _, length := range []int{1, 100_000} { // in one piece, and in many
		c, k := connect(t)
		r, w, err := os.Pipe()
		must(t, err)
		defer r.Close()
		want := &request{Do: doExec, Where: "n1", Command: &Command{Args: []string{strings.Repeat("x", length)}, Terminal: true}}
		sent := make(chan error, 1)
		go func() { sent <- send(c, want, []*os.File{w, r, w}) }()
		got, files, _, err := readRequest(k)
		must(t, err)
		must(t, <-sent)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if len(files) != 3 {
			t.Fatalf("got %d files, want 3", len(files))
		}
		must(t, w.Close())
		if _, err := files[2].WriteString("it is the one"); err != nil {
			t.Error(err)
		}
		var b [100]byte
		if n, err := files[1].Read(b[:]); err != nil || string(b[:n]) != "it is the one" {
			t.Errorf("read %q, %v", b[:n], err)
		}
		for _, f := range files {
			f.Close()
		}
	}
}

func TestRequestIsBounded(t *testing.T) {
	c, k := connect(t)
	go func() {
		c.Write([]byte(`{"do":"`))
		for err := error(nil); err == nil; {
			_, err = c.Write(make([]byte, 64<<10))
		}
	}()
	if _, _, _, err := readRequest(k); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a request without end: %v", err)
	}
	k.Close()
}

// FuzzRequest: whatever arrives is a request or an error.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"do":"cut","where":"n1","network":"both","how":"cable"}` + "\n"))
	f.Add([]byte(`{"do":"partition","groups":[["n1"],null]}` + "\n9\n"))
	f.Add([]byte("{}"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 { // what a socket takes at a time
			return
		}
		c, k := connect(t)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		c.Close()
		q, files, r, err := readRequest(k)
		if (q == nil) == (err == nil) || (r == nil) == (err == nil) || len(files) > 0 {
			t.Errorf("request %v, %d files, reader %v, error %v", q, len(files), r, err)
		}
	})
}
