package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"peerage/appliance/node"
	"peerage/balancing"
)

// TestNodesLeave has nodes leave, or not be let go, and tokens made for names that are taken.
func TestNodesLeave(t *testing.T) {
	g := newGrown(t)
	n1 := g.nodes[0]
	if why := n1.refused("leave", "--dir", n1.data()); !strings.Contains(why, "no peer is on-line") {
		t.Errorf("the only node of a site leaves: %s", why)
	}
	n2 := g.join("n2")
	g.awaitWhole()

	why := n1.refused("token", "create", "--name", "n2", "--dir", n1.data())
	for _, word := range []string{"n2 is a node of the site", "node remove n2", "peerage restore"} {
		if !strings.Contains(why, word) {
			t.Errorf("a token for a node that is there is refused with %q, want %q", why, word)
		}
	}

	// Its peer cannot take it out, and it says why.
	n1.must("site", "apply", n1.file(n1.shown()+"drain: {grace: 4s}\n"), "--confirm-within", "1h", "--dir", n1.data())
	why = n2.refused("leave", "--dir", n2.data())
	for _, word := range []string{"n2 is still a node of the site", "peerage site confirm"} {
		if !strings.Contains(why, word) {
			t.Errorf("it is not let go with %q, want %q", why, word)
		}
	}
	n1.must("site", "confirm", "--dir", n1.data())
	g.awaitWhole()

	out := n2.must("leave", "--dir", n2.data())
	if !strings.Contains(out, "asking n1") || !strings.Contains(out, "out of its site") {
		t.Errorf("leave says %s", out)
	}
	if _, ok := n1.document().Nodes["n2"]; ok {
		t.Error("it has left, and the site document has it")
	}
	if code := n2.awaitEnd(); code != 3 {
		t.Errorf("it ends with status %d, want 3", code)
	}
	g.nodes = g.nodes[:1]
	eventually(t, "n1 has replaced the site key", func() bool {
		st, err := n1.client().Keys(t.Context())
		return err == nil && st.Generation == 1 && len(st.Departed) == 0
	})
	// Its name is free, also for one that is not removed any more.
	g.token("--name", "n2")
}

// TestControlStatuses asks a node for what it cannot do, and looks at the HTTP status.
func TestControlStatuses(t *testing.T) {
	g := newGrown(t)
	n1 := g.nodes[0]
	g.awaitWhole()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(n1.data(), node.SocketName))
	}}}
	defer client.CloseIdleConnections()
	text, err := n1.client().Revision(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, body string
		want               int
		says               string
	}{
		{"GET", "/v1/site/revision?revision=99", "", 404, "not in the history"},
		{"GET", "/v1/site/diff?from=head&to=0123456789abcdef", "", 404, "not in the history"},
		{"POST", "/v1/site/plan", "{", 400, ""},
		{"POST", "/v1/site/plan", `{"other": 1}`, 400, "other"},
		{"POST", "/v1/site/plan", `{"text": "site: [", "user": "u"}`, 400, ""},
		{"POST", "/v1/site/apply", `{"text": "hosts: []\n", "user": "u"}`, 400, "hosts"},
		{"POST", "/v1/site/apply", `{"text": "x", "base": "77", "user": "u"}`, 404, "not in the history"},
		{"POST", "/v1/site/apply", fmt.Sprintf(`{"text": %q, "user": "u"}`, text.Text), 409, "nothing to change"},
		{"POST", "/v1/site/confirm", `{"revision": "77", "user": "u"}`, 404, "not in the history"},
		{"POST", "/v1/site/dismiss", `{"revision": "1", "user": "u"}`, 409, "not a conflict"},
		{"POST", "/v1/site/rollback", `{"user": "u"}`, 409, "nothing before"},
		{"POST", "/v1/tokens", `{"life": 1, "user": "u"}`, 400, "a life of"},
		{"POST", "/v1/tokens", `{"name": "N 1", "user": "u"}`, 400, "not that of a node"},
		{"POST", "/v1/tokens", `{"name": "n1", "user": "u"}`, 409, "n1 is a node"},
		{"DELETE", "/v1/tokens", `{"id": "0123456789abcdef", "user": "u"}`, 404, "token list"},
		{"DELETE", "/v1/tokens", `{"revision": "0123456789abcdef", "user": "u"}`, 400, "revision"},
		{"POST", "/v1/nodes/remove", `{"name": "n1", "user": "u"}`, 400, "peerage leave"},
		{"POST", "/v1/nodes/remove", `{"name": "n9", "user": "u"}`, 404, "no node n9"},
		{"POST", "/v1/nodes/rename", `{"name": "n9", "to": "n8", "user": "u"}`, 404, "n9"},
		{"POST", "/v1/leave", `{"user": "u"}`, 503, "no peer is on-line"},
		{"PATCH", "/v1/balancing", `{"light": -1}`, 400, ""},
		{"GET", "/v1/nothing", "", 404, ""},
		{"PUT", "/v1/site", "", 405, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://node"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want || !strings.Contains(string(b), c.says) {
			t.Errorf("%s %s %.60s: %d %s, want %d with %q", c.method, c.path, c.body, resp.StatusCode, b, c.want, c.says)
		}
	}
	// The command line tells the reason, whether steps were to be told or not.
	for _, args := range [][]string{{"site", "show", "99"}, {"node", "remove", "n9"}} {
		why := n1.refused(append(args, "--dir", n1.data())...)
		if !strings.HasPrefix(why, "peerage: ") || strings.Contains(why, "404") || strings.Contains(why, "{") {
			t.Errorf("%v: %s", args, why)
		}
	}
}

// TestStatusOfANodeWhoseServerDoesNotStart has a document name a directory that is missing.
func TestStatusOfANodeWhoseServerDoesNotStart(t *testing.T) {
	g := newGrown(t)
	n1 := g.nodes[0]
	n1.kill()
	if why := n1.refused("status", "--dir", n1.data()); !strings.Contains(why, "no node runs") {
		t.Errorf("of a node that was killed status says %q", why)
	}
	path := filepath.Join(n1.data(), "site.yaml")
	missing := filepath.Join(n1.dir, "missing")
	edit(t, path, "\nroutes:\n", "\nroutes:\n  - path: /odd/\n    static: {dir: "+missing+"}\n")
	log, err := os.OpenFile(filepath.Join(n1.dir, "node.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(binary, "run", "--config", n1.config())
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := onThread(cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}()
	eventually(t, "the server has failed", func() bool { return strings.Contains(readFile(t, log.Name()), missing) })
	why := n1.refused("status", "--dir", n1.data())
	for _, word := range []string{"runs, as process " + fmt.Sprint(cmd.Process.Pid), "its server does not", log.Name()} {
		if !strings.Contains(why, word) {
			t.Errorf("status says %q, want %q", why, word)
		}
	}
}

// TestCopiedDisk starts a node a second time, from a copy of its files at another address.
func TestCopiedDisk(t *testing.T) {
	g := newGrown(t)
	n1, n2 := g.nodes[0], g.join("n2")
	g.awaitWhole()
	n2.kill()
	os.Remove(filepath.Join(n2.data(), node.SocketName)) // CopyFS takes files alone
	copied := &grownNode{t: t, name: "n2", dir: filepath.Join(g.dir, "copied")}
	if err := os.CopyFS(copied.dir, os.DirFS(n2.dir)); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{".", "site.key", "node.key", "ca.key"} { // CopyFS does not keep modes
		path := filepath.Join(copied.data(), secret)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		mode := os.FileMode(0o600)
		if secret == "." {
			mode = 0o700
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, copied.config(), g.address(n2), "127.0.1.9")
	edit(t, copied.config(), n2.data(), copied.data())
	n2.start()
	g.awaitWhole()
	copied.start()
	t.Cleanup(copied.stop)
	for _, n := range []*grownNode{n1, copied} {
		eventually(t, n.name+" shows that two nodes run as n2", func() bool {
			st := n.status()
			return st != nil && st.Guard != nil && strings.Contains(strings.Join(st.Guard.Amiss, "\n"), "two nodes run as n2")
		})
	}
	out := n1.must("status", "--dir", n1.data())
	if !strings.Contains(out, "n1 is degraded: two nodes run as n2, at ") || !strings.Contains(out, "127.0.1.9") {
		t.Errorf("status shows\n%s", out)
	}
	if st := n1.status(); st.View.Me().State != balancing.Degraded {
		t.Errorf("n1 is %v", st.View.Me().State)
	}
}
