package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"peerage/appliance/load"
)

func TestLoadOfTheDemo(t *testing.T) {
	d := startDemo(t)

	t.Run("the examples work as they stand", func(t *testing.T) {
		t.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH"))
		examples := 0
		for line := range strings.Lines(loadCmd{}.Help()) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "peerage load ") {
				continue
			}
			examples++
			if out := sh(t, line+" --for 2s --session 3 --think 100ms"); !strings.Contains(out, "127.0.0.2") {
				t.Errorf("%s\n%s\nwant the nodes that answered", line, out)
			}
		}
		if examples < 3 {
			t.Errorf("%d examples", examples)
		}
	})

	t.Run("overload is redirected, and the redirected stay", func(t *testing.T) {
		// Some 40 requests in progress at n1, of which 20 are 100 %: the letter of the
		// patent sends all away, and each visitor once.
		r := d.load(t, page+"/slow?for=500ms", "--to", "127.0.0.21", "--sessions", "40", "--session", "4", "--fixed",
			"--think", "1ms", "--warm", "3s", "--for", "3s")
		if r.Failed() > 0 || r.Requests == 0 || r.Status["2xx"] != r.Requests || r.TurnedAway > 0 {
			t.Errorf("result %+v, want good answers only", r)
		}
		if r.Redirects == 0 || r.Handshakes <= r.Visitors {
			t.Errorf("%d redirects, %d handshakes of %d visitors; want some redirected, with a handshake more", r.Redirects, r.Handshakes, r.Visitors)
		}
		served := map[string]int{}
		for _, n := range r.Nodes {
			served[n.Node] = n.Requests
		}
		if served["n2"] == 0 || served["n3"] == 0 {
			t.Errorf("served by %+v, want n2 and n3 to have a part", r.Nodes)
		}
	})

	t.Run("pinned visitors stay", func(t *testing.T) {
		r := d.load(t, page+"/banking/", "--rate", "100", "--session", "5", "--think", "50ms", "--for", "2s", "--http", "1")
		// The bank answers 409 to a session that it does not know.
		if r.Failed() > 0 || r.Requests == 0 || r.Status["2xx"] != r.Requests || len(r.Nodes) != 3 {
			t.Errorf("result %+v, want good answers of all three nodes", r)
		}
	})

	t.Run("Ctrl-C ends with what there is", func(t *testing.T) {
		cmd := exec.Command(binary, "load", page+"/", "--for", "10m", "--rate", "200", "--session", "2", "--think", "1ms")
		var out bytes.Buffer
		cmd.Stdout = &out
		progress, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		if _, err := progress.Read(line); err != nil || !bytes.Contains(line, []byte("requests")) {
			t.Errorf("first line of progress: %q, %v", line, err)
		}
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "interrupted") || !strings.Contains(out.String(), "p99") {
			t.Errorf("after Ctrl-C: %v\n%s", err, &out)
		}
	})
}

// load runs the command and returns its result.
func (d *running) load(t *testing.T, url string, flags ...string) *load.Result {
	t.Helper()
	var out, errs bytes.Buffer
	if status := run(append([]string{"load", url, "--json"}, flags...), &out, &errs); status != 0 {
		t.Fatalf("peerage load %s %s: status %d\n%s", url, strings.Join(flags, " "), status, &errs)
	}
	var r load.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	return &r
}

func TestLoadRefusesWhatIsNotOfTheLab(t *testing.T) {
	for _, test := range []struct {
		status int
		want   string
		args   []string
	}{
		{1, "203.0.113.1 is neither a loopback nor a private address", []string{"https://203.0.113.1/"}},
		{1, "203.0.113.1 is neither", []string{"https://www.example.com/", "--to", "203.0.113.1"}},
		{1, "DNS server 203.0.113.1", []string{"https://www.example.com/", "--dns", "203.0.113.1:53"}},
		{2, "want https://", []string{"http://127.0.0.1/"}},
		{2, "give one of them", []string{"https://127.0.0.1/", "--rate", "1", "--sessions", "1"}},
		{2, "at most 10m0s", []string{"https://127.0.0.1/", "--for", "11m"}},
		{2, "want zipf=", []string{"https://127.0.0.1/", "--skew", "even"}},
		{2, "want ADDRESS", []string{"https://127.0.0.1/", "--to", "n1"}},
		{2, "--dns n1", []string{"https://127.0.0.1/", "--dns", "n1"}},
		{2, "no certificate", []string{"https://127.0.0.1/", "--ca", "/dev/null"}},
		{2, "must be one of", []string{"https://127.0.0.1/", "--http", "4"}},
	} {
		var out, errs bytes.Buffer
		status := run(append([]string{"load", "--for", "1s"}, test.args...), &out, &errs)
		if status != test.status || !strings.Contains(errs.String(), test.want) || out.Len() > 0 {
			t.Errorf("load %s: status %d, %q; want %d and %q", strings.Join(test.args, " "), status, errs.String(), test.status, test.want)
		}
	}
}
