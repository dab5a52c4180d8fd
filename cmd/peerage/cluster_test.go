package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
)

// grown is a site on loopback that grows as an operator lets it: the first node by init,
// each further one by a token.
type grown struct {
	t     testing.TB
	dir   string
	nodes []*grownNode
}

type grownNode struct {
	t     testing.TB
	name  string
	dir   string
	cmd   *exec.Cmd
	log   *os.File
	ended chan error
}

func (n *grownNode) config() string      { return filepath.Join(n.dir, "node.yaml") }
func (n *grownNode) data() string        { return filepath.Join(n.dir, "data") }
func (n *grownNode) client() node.Client { return node.Client(n.data()) }

const grownHost = "www.example.test"

func newGrown(t testing.TB) *grown {
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	g := &grown{t: t, dir: t.TempDir()}
	n := g.node("n1")
	n.must("init", "--host", grownHost, "--interface", "lo", "--address", g.address(n), "--vip", g.vip(n), "--high-ports",
		"--config", n.config(), "--data-dir", n.data())
	n.start()
	return g
}

// node makes room for one more.
func (g *grown) node(name string) *grownNode {
	g.t.Helper()
	n := &grownNode{t: g.t, name: name, dir: filepath.Join(g.dir, name)}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		g.t.Fatal(err)
	}
	g.nodes = append(g.nodes, n)
	g.t.Cleanup(n.stop)
	return n
}

func (g *grown) address(n *grownNode) string {
	return fmt.Sprintf("127.0.1.%d", 1+slices.Index(g.nodes, n))
}

func (g *grown) vip(n *grownNode) string {
	return fmt.Sprintf("127.0.1.%d", 101+slices.Index(g.nodes, n))
}

// join lets a node in, by a token of the first, and starts it.
func (g *grown) join(name string) *grownNode {
	g.t.Helper()
	n := g.node(name)
	n.must(g.joining(n, g.token("--name", name))...)
	n.start()
	return n
}

func (g *grown) token(args ...string) string {
	g.t.Helper()
	out := g.nodes[0].must(append([]string{"token", "create", "--dir", g.nodes[0].data()}, args...)...)
	return strings.TrimSpace(out)
}

func (g *grown) joining(n *grownNode, token string) []string {
	return []string{
		"join", "--token", token, "--name", n.name, "--interface", "lo", "--host-address", g.address(n), "--vip", g.vip(n),
		"--config", n.config(), "--data-dir", n.data(),
	}
}

// awaitWhole waits until all nodes see each other serve, hold their own VIPs, and serve the
// same revision.
func (g *grown) awaitWhole() {
	g.t.Helper()
	eventually(g.t, "all nodes serve, with one document", func() bool {
		head := revision.ID("")
		for _, n := range g.nodes {
			st := n.status()
			if st == nil || st.Agreed.Document.Head == nil || len(st.View.Nodes) != len(g.nodes) {
				return false
			}
			if head == "" {
				head = st.Agreed.Document.Head.ID
			}
			if st.Agreed.Document.Running != head || len(st.Agreed.Members) != len(g.nodes) {
				return false
			}
			for _, v := range st.VIPs {
				if v.Holder != v.Home {
					return false
				}
			}
		}
		return true
	})
}

// run runs the program, and returns what it printed.
func (n *grownNode) run(args ...string) (out, errs string, err error) {
	cmd := exec.Command(binary, args...)
	var o, e strings.Builder
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

func (n *grownNode) must(args ...string) string {
	n.t.Helper()
	out, errs, err := n.run(args...)
	if err != nil {
		n.t.Fatalf("peerage %s\n%v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// refused runs the program, which must fail, and returns why it says it does.
func (n *grownNode) refused(args ...string) string {
	n.t.Helper()
	out, errs, err := n.run(args...)
	if err == nil {
		n.t.Fatalf("peerage %s\nwas not refused:\n%s%s", strings.Join(args, " "), out, errs)
	}
	return errs
}

func (n *grownNode) start() {
	n.t.Helper()
	var err error
	if n.log, err = os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(binary, "run", "--config", n.config())
	n.cmd.Stderr = n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.ended = make(chan error, 1)
	if err := onThread(n.cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	go func() { n.ended <- n.cmd.Wait() }()
	eventually(n.t, n.name+" answers", func() bool { return n.status() != nil })
}

// kill ends the guard at once, and with it the server.
func (n *grownNode) kill() {
	n.cmd.Process.Kill()
	<-n.ended
	n.cmd = nil
	n.log.Close()
}

func (n *grownNode) stop() {
	if d := os.Getenv("KEEPLOGS"); d != "" {
		exec.Command("cp", filepath.Join(n.dir, "node.log"), filepath.Join(d, n.name+".log")).Run()
	}
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	<-n.ended
	n.cmd = nil
	n.log.Close()
	if n.t.Failed() {
		n.t.Logf("log of %s:\n%s", n.name, readFile(n.t, n.log.Name()))
	}
}

// awaitEnd waits for a node that ends by itself, and returns its exit status.
func (n *grownNode) awaitEnd() int {
	n.t.Helper()
	select {
	case <-n.ended:
		code := n.cmd.ProcessState.ExitCode()
		n.cmd = nil
		n.log.Close()
		return code
	case <-time.After(time.Minute):
		n.t.Fatalf("%s has not ended", n.name)
		return 0
	}
}

// document is the site document in force, as the node knows it.
func (n *grownNode) document() *site.Document {
	n.t.Helper()
	doc, err := site.ParseDocument("site.yaml", []byte(n.shown()))
	if err != nil {
		n.t.Fatal(err)
	}
	return doc
}

func (n *grownNode) status() *node.Status {
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Second)
	defer cancel()
	st, err := n.client().Status(ctx)
	if err != nil {
		return nil
	}
	return st
}

// shown is the document as the node prints it for editing.
func (n *grownNode) shown() string { return n.must("site", "show", "--dir", n.data()) }

// file writes a text to a file, and returns its name.
func (n *grownNode) file(text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, "edit.yaml")
	writeFile(n.t, path, text, 0o600)
	return path
}

// TestSiteGrows is the life of a site from its first node on, by the commands that an
// operator has.
func TestSiteGrows(t *testing.T) {
	g := newGrown(t)
	n1 := g.nodes[0]

	// Tokens that let nobody in.
	n2 := g.node("n2")
	token := g.token()
	for _, c := range []struct{ what, token, want string }{
		{"cut short", token[:len(token)-4], "token"},
		{"of another kind", "pgj9." + token[5:], "token"},
		{"for another node", g.token("--name", "n9"), "n9"},
	} {
		if why := n2.refused(g.joining(n2, c.token)...); !strings.Contains(why, c.want) {
			t.Errorf("a token %s: refused with %q, want something of %q", c.what, why, c.want)
		}
	}
	id := regexp.MustCompile(`(?m)^([0-9a-f]+) .* n9 +open`).FindStringSubmatch(n1.must("token", "list", "--dir", n1.data()))
	if id == nil {
		t.Fatal("the token for n9 is not listed")
	}
	n1.must("token", "revoke", id[1], "--dir", n1.data())

	// Two more nodes come, the second while the first is there.
	n2.must(g.joining(n2, token)...)
	n2.start()
	if why := n2.refused("join", "--token", token, "--name", "n7", "--interface", "lo", "--host-address", "127.0.1.7",
		"--config", filepath.Join(g.dir, "n7.yaml"), "--data-dir", filepath.Join(g.dir, "n7")); !strings.Contains(why, "used") {
		t.Errorf("a token that was used: refused with %q", why)
	}
	n3 := g.join("n3")
	g.awaitWhole()

	t.Run("change", func(t *testing.T) {
		stale := n2.shown()
		text := stale + "drain: {grace: 4s}\n"
		out := n2.must("site", "apply", n2.file(text), "-m", "shorter", "--dir", n2.data())
		if !strings.Contains(out, "+drain: {grace: 4s}") || !strings.Contains(out, "no listener and no connection is touched") {
			t.Errorf("apply does not say what it does:\n%s", out)
		}
		g.awaitWhole()
		if !strings.Contains(n3.shown(), "grace: 4s") || !strings.Contains(readFile(t, filepath.Join(n3.data(), "site.yaml")), "grace: 4s") {
			t.Error("n3 does not show the change")
		}
		why := n1.refused("site", "apply", n1.file(stale+"drain: {grace: 9s}\n"), "--dir", n1.data())
		if !strings.Contains(why, "+drain: {grace: 4s}") || !strings.Contains(why, "+drain: {grace: 9s}") {
			t.Errorf("a change from an old base is not refused with both differences: %s", why)
		}
		why = n1.refused("site", "apply", n1.file(n1.shown()+"dran: {}\n"), "--dir", n1.data())
		if !strings.Contains(why, "edit.yaml:") {
			t.Errorf("a document with a mistake is not refused with its place: %s", why)
		}
		// Only n2 lacks the directory.
		odd := filepath.Join(n1.dir, "odd")
		if err := os.MkdirAll(odd, 0o755); err != nil {
			t.Fatal(err)
		}
		why = n1.refused("site", "apply", n1.file(strings.Replace(n1.shown(), "\nroutes:\n", "\nroutes:\n  - path: /odd/\n    static: {dir: "+filepath.Join(odd, "none")+"}\n", 1)), "--dir", n1.data())
		if !strings.Contains(why, "none") {
			t.Errorf("a directory that is missing is not named: %s", why)
		}

		// Rolled back by itself, and by hand.
		n3.must("site", "apply", n3.file(n3.shown()+"limits: {requests: 77}\n"), "--confirm-within", "1s", "--dir", n3.data())
		eventually(t, "a change that nobody confirms is rolled back everywhere", func() bool {
			for _, n := range g.nodes {
				if strings.Contains(readFile(t, filepath.Join(n.data(), "site.yaml")), "requests: 77") {
					return false
				}
			}
			return true
		})
		n3.must("site", "apply", n3.file(n3.shown()+"limits: {requests: 78}\n"), "--confirm-within", "1h", "--dir", n3.data())
		n1.must("site", "confirm", "--dir", n1.data())
		g.awaitWhole()
		n2.must("site", "rollback", "--dir", n2.data())
		g.awaitWhole()
		var history []revision.Entry
		if err := json.Unmarshal([]byte(n1.must("site", "history", "--json", "--dir", n1.data())), &history); err != nil {
			t.Fatal(err)
		}
		if len(history) < 7 {
			t.Errorf("the history has %d revisions", len(history))
		}
	})

	t.Run("key", func(t *testing.T) {
		before := readFile(t, filepath.Join(n1.data(), "site.key"))
		out := n1.must("key", "rotate", "--dir", n1.data())
		if !strings.Contains(out, "steady") {
			t.Errorf("rotate says %s", out)
		}
		after := readFile(t, filepath.Join(n1.data(), "site.key"))
		if after == before {
			t.Error("the site key is the same after its rotation")
		}
		for _, n := range g.nodes {
			if readFile(t, filepath.Join(n.data(), "site.key")) != after {
				t.Errorf("%s has another ring of site keys than n1", n.name)
			}
		}
		g.awaitWhole()
	})

	t.Run("one of two is enough", func(t *testing.T) {
		n3.kill()
		n2.kill()
		eventually(t, "n1 is alone", func() bool {
			st := n1.status()
			return st != nil && st.View.Nodes[1].State != balancing.OK || !st.View.Nodes[1].Online && !st.View.Nodes[2].Online
		})
		n1.must("site", "apply", n1.file(n1.shown()+"limits: {requests: 99}\n"), "--dir", n1.data())
		n2.start()
		n3.start()
		g.awaitWhole()
		if !strings.Contains(n3.shown(), "requests: 99") {
			t.Error("n3 has not caught up")
		}
	})

	t.Run("hardware", func(t *testing.T) {
		backup := filepath.Join(g.dir, "n2.backup")
		pass := n2.file("correct horse")
		n2.must("backup", backup, "--config", n2.config(), "--passphrase", pass)
		if b, err := os.ReadFile(backup); err != nil || bytes.Contains(b, []byte(strings.TrimSpace(readFile(t, filepath.Join(n2.data(), "site.key"))))) {
			t.Errorf("the backup shows the site key: %v", err)
		}
		n2.kill()
		n1.must("site", "apply", n1.file(strings.Replace(n1.shown(), "requests: 99", "requests: 100", 1)), "--dir", n1.data())
		if err := os.RemoveAll(n2.data()); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(n2.config()); err != nil {
			t.Fatal(err)
		}
		n2.must("restore", backup, "--config", n2.config(), "--passphrase", pass)
		n2.start()
		g.awaitWhole()
		if !strings.Contains(n2.shown(), "requests: 100") {
			t.Error("what was restored does not know what has changed since")
		}
	})

	t.Run("name", func(t *testing.T) {
		n1.must("node", "rename", "n3", "n4", "--dir", n1.data())
		eventually(t, "n3 is back as n4", func() bool {
			st := n3.status()
			return st != nil && st.Node == "n4" && st.View.Me().State == balancing.OK
		})
		g.awaitWhole()
	})

	t.Run("removal of a dead node", func(t *testing.T) {
		n5 := g.join("n5")
		g.awaitWhole()
		n5.kill()
		g.nodes = slices.DeleteFunc(g.nodes, func(n *grownNode) bool { return n == n5 })
		n1.must("node", "remove", "n5", "--dir", n1.data())
		n5.start()
		if code := n5.awaitEnd(); code != 3 || !strings.Contains(readFile(t, n5.log.Name()), "the peers refuse it") {
			t.Errorf("a node that was removed while it was down ends with status %d, want 3", code)
		}
		g.awaitWhole()
	})

	t.Run("removal", func(t *testing.T) {
		old := readFile(t, filepath.Join(n1.data(), "site.key"))
		n1.must("node", "remove", "n4", "--dir", n1.data())
		code, log := n3.awaitEnd(), readFile(t, filepath.Join(n3.dir, "node.log"))
		if code != 3 || !strings.Contains(log, "removed from the site") || !strings.Contains(log, "join with a new token") {
			t.Errorf("the node that was removed ends with status %d, want 3, and the log\n%s", code, log)
		}
		g.nodes = slices.DeleteFunc(g.nodes, func(n *grownNode) bool { return n == n3 })
		g.awaitWhole()
		if readFile(t, filepath.Join(n1.data(), "site.key")) == old {
			t.Error("the site has the key still that the node knows")
		}
		if strings.Contains(readFile(t, filepath.Join(n3.data(), "site.key")), strings.Fields(readFile(t, filepath.Join(n1.data(), "site.key")))[0]) {
			t.Error("the node that was removed has learned the new key")
		}
		n2.must("leave", "--dir", n2.data())
		if _, ok := n1.document().Nodes["n2"]; ok {
			t.Error("n2 says that it has left, and is in the site document")
		}
		if code := n2.awaitEnd(); code != 3 {
			t.Errorf("the node that has left ends with status %d, want 3", code)
		}
		g.nodes = slices.DeleteFunc(g.nodes, func(n *grownNode) bool { return n == n2 })
		g.awaitWhole()
	})

	// No secret in any log.
	for _, name := range []string{"n1", "n2", "n3"} {
		log := readFile(t, filepath.Join(g.dir, name, "node.log"))
		for _, key := range []string{"site.key", "node.key"} {
			for _, n := range []string{"n1", "n2", "n3"} {
				for secret := range strings.FieldsSeq(readFile(t, filepath.Join(g.dir, n, "data", key))) {
					if len(secret) > 30 && strings.Contains(log, secret) {
						t.Errorf("the log of %s shows the %s of %s", name, key, n)
					}
				}
			}
		}
		if strings.Contains(log, strings.TrimPrefix(token, "pgj1.")) {
			t.Errorf("the log of %s shows a token", name)
		}
	}
}
