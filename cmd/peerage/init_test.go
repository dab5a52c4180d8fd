package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"peerage/appliance/node"
)

// peerage runs the program and returns what it says and its exit status.
func peerage(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// good is peerage with a use that must succeed.
func good(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, exit := peerage(t, args...)
	if exit != 0 || stderr != "" {
		t.Fatalf("peerage %s: exit status %d\n%s", strings.Join(args, " "), exit, stderr)
	}
	return stdout
}

// runNode starts a node and ends it with the test.
func runNode(t *testing.T, config string) {
	t.Helper()
	cmd := exec.Command(binary, "run", "--config", config)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("peerage run --config %s: %v\n%s", config, err, log.String())
		}
	})
}

func nodeStatus(t *testing.T, dir string) *node.Status {
	t.Helper()
	stdout, _, exit := peerage(t, "status", "--json", "--dir", dir)
	if exit != 0 {
		return nil // it does not answer yet
	}
	st := new(node.Status)
	if err := json.Unmarshal([]byte(stdout), st); err != nil {
		t.Fatal(err)
	}
	return st
}

// holdsAll reports whether the node at dir says that all of the VIPs are held by the nodes
// that they belong to.
func holdsAll(t *testing.T, dir string, vips int) bool {
	t.Helper()
	st := nodeStatus(t, dir)
	if st == nil || len(st.VIPs) != vips {
		return false
	}
	for _, v := range st.VIPs {
		if v.Holder != v.Home {
			return false
		}
	}
	return true
}

// edit replaces one part of a file.
func edit(t *testing.T, path, before, after string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), before); n != 1 {
		t.Fatalf("%s has %q %d times, want once", path, before, n)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), before, after, 1)), info.Mode()); err != nil {
		t.Fatal(err)
	}
}

// TestInit sets a node up as its help says, and then does what the command prints: up to
// the second node.
func TestInit(t *testing.T) {
	dir := t.TempDir()
	config, data := filepath.Join(dir, "etc", "node.yaml"), filepath.Join(dir, "n1")
	args := []string{"init", "--host", "www.init.test", "--interface", "lo", "--address", "127.0.0.31", "--vip", "127.0.0.41", "--high-ports", "--config", config, "--data-dir", data}
	told := good(t, args...)
	document := filepath.Join(data, "site.yaml")

	for path, mode := range map[string]fs.FileMode{
		config: 0o644, filepath.Join(dir, "etc", "ca.pem"): 0o644, document: 0o644,
		filepath.Join(data, "site.key"): 0o600, filepath.Join(data, "ca.sealed"): 0o600, filepath.Join(data, "www", "index.html"): 0o644,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want mode %v", path, info, err, mode)
		}
		if !strings.Contains(told, "  "+path+"  ") {
			t.Errorf("%s is not told of:\n%s", path, told)
		}
	}
	if out := good(t, "site", "check", "--node", config, document); !strings.Contains(out, "good: site init.test, 1 nodes, 1 routes") {
		t.Errorf("site check: %s", out)
	}
	if out := good(t, "site", "show", "--config", config); !strings.Contains(out, "vips: [127.0.0.41]") || !strings.Contains(out, "zone: init.test") {
		t.Errorf("site show:\n%s", out)
	}
	if _, stderr, exit := peerage(t, args...); exit != 1 || !strings.Contains(stderr, "there is a node already: "+config+" exists") || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("second init: exit status %d\n%s", exit, stderr)
	}

	t.Run("the printed lines work as they stand", func(t *testing.T) {
		runNode(t, config)
		eventually(t, "n1 holds its VIP", func() bool { return holdsAll(t, data, 1) })
		lines := regexp.MustCompile(`(?m)^  (peerage|curl) .*$`).FindAllString(told, -1)
		if len(lines) != 4 {
			t.Fatalf("%d lines to try, want 4:\n%s", len(lines), told)
		}
		for i, want := range []string{"good: site init.test", "", "127.0.0.41  n1", "<h1>It works</h1>"} {
			line := strings.Replace(strings.TrimSpace(lines[i]), "peerage", binary, 1)
			if want == "" { // it runs already
				continue
			}
			if out := sh(t, line); !strings.Contains(out, want) {
				t.Errorf("%s\n%s\nwant %q", line, out, want)
			}
		}
		m := new(dns.Msg).SetQuestion("www.init.test.", dns.TypeA)
		if reply, err := dns.Exchange(m, "127.0.0.41:8053"); err != nil || len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "\t127.0.0.41") {
			t.Errorf("DNS: %v, %v, want 127.0.0.41", reply, err)
		}
		if _, stderr, exit := peerage(t, "run", "--config", config); exit != 1 || !strings.Contains(stderr, "another process uses it") {
			t.Errorf("the same node twice: exit status %d\n%s", exit, stderr)
		}
		if _, stderr, exit := peerage(t, args...); exit != 1 || !strings.Contains(stderr, "there is a node already") {
			t.Errorf("init beside a node that runs: exit status %d\n%s", exit, stderr)
		}
	})

	t.Run("the document is there to be edited", func(t *testing.T) {
		edit(t, document, "balancing: {light: 50, margin: 20}", "balancing: {light: 60, margin: 20}")
		runNode(t, config)
		eventually(t, "the site follows the file", func() bool {
			st := nodeStatus(t, data)
			return st != nil && st.View.Settings.Light == 60 && st.Agreed.Document.Head.Number == 2
		})
	})
}

// TestInitWithoutVIP is the shortest use, and serves on the host address.
func TestInitWithoutVIP(t *testing.T) {
	dir := t.TempDir()
	config, data := filepath.Join(dir, "it's here", "node.yaml"), filepath.Join(dir, "a b")
	told := good(t, "init", "--host", "www.init.test", "--address", "127.0.0.33", "--high-ports", "--config", config, "--data-dir", data)
	if !strings.Contains(told, "make www.init.test known with the address 127.0.0.33") {
		t.Errorf("nothing about DNS:\n%s", told)
	}
	runNode(t, config)
	eventually(t, "the node answers", func() bool { return nodeStatus(t, data) != nil })
	curl := regexp.MustCompile(`(?m)^  curl .*$`).FindString(told)
	if out := sh(t, curl); !strings.Contains(out, "<h1>It works</h1>") {
		t.Errorf("%s\n%s", curl, out)
	}
}

func TestInitWrongUses(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		args []string
		want string // on standard error
	}{
		{"no host", []string{"--interface", "lo"}, "missing flags: --host"},
		{"host not in canonical form", []string{"--interface", "lo", "--host", "WWW.Init.test"}, "hosts[0]: "},
		{"host no name", []string{"--interface", "lo", "--host", "a b"}, "hosts[0]: "},
		{"the same host twice", []string{"--interface", "lo", "--host", "www.init.test", "--host", "www.init.test"}, "hosts[1]: "},
		{"no such interface", []string{"--host", "www.init.test", "--interface", "nosuch0"}, "nosuch0: not on this machine, which has lo"},
		{"no such address", []string{"--host", "www.init.test", "--address", "203.0.113.9"}, "203.0.113.9: not on this machine"},
		{"address elsewhere", []string{"--host", "www.init.test", "--interface", "lo", "--address", "203.0.113.9"}, "203.0.113.9: not on lo, which has 127.0.0.1"},
		{"address no address", []string{"--host", "www.init.test", "--address", "localhost"}, "--address"},
		{"VIP no address", []string{"--host", "www.init.test", "--interface", "lo", "--vip", "127.0.0"}, "--vip"},
		{"VIP of another network", []string{"--host", "www.init.test", "--interface", "lo", "--vip", "203.0.113.9"}, "nodes.n1.vips[0]: 203.0.113.9 lies in no network here"},
		{"VIP is the host address", []string{"--host", "www.init.test", "--interface", "lo", "--address", "127.0.0.1", "--vip", "127.0.0.1"}, "--vip 127.0.0.1: the host address cannot move"},
		{"zone without VIP", []string{"--host", "www.init.test", "--interface", "lo", "--zone", "init.test"}, "add --vip"},
		{"zone no name", []string{"--host", "www.init.test", "--interface", "lo", "--vip", "127.0.0.41", "--zone", "a..b"}, "dns.zone: "},
		{"files and back-end", []string{"--host", "www.init.test", "--interface", "lo", "--static", dir, "--backend", "http://10.0.0.21:8080"}, "can't be used together"},
		{"files that are not there", []string{"--host", "www.init.test", "--interface", "lo", "--static", "/nosuch"}, "/nosuch"},
		{"back-end no URL", []string{"--host", "www.init.test", "--interface", "lo", "--backend", "10.0.0.21:8080"}, "backends.app.servers[0]: "},
		{"node no name", []string{"--host", "www.init.test", "--interface", "lo", "--name", "N 1"}, "N 1"},
		{"site no name", []string{"--host", "www.init.test", "--interface", "lo", "--site", "-"}, "site: "},
		{"site name too long", []string{"--host", "www.init.test", "--interface", "lo", "--site", strings.Repeat("x", 46)}, "1 to 45"},
		{"unknown flag", []string{"--host", "www.init.test", "--nosuch"}, "--nosuch"},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := t.TempDir()
			args := append([]string{"init", "--config", filepath.Join(at, "node.yaml"), "--data-dir", filepath.Join(at, "data")}, test.args...)
			stdout, stderr, exit := peerage(t, args...)
			if exit != 2 || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("exit status %d, want 2 and %q\n%s%s", exit, test.want, stdout, stderr)
			}
			if left, _ := os.ReadDir(at); len(left) > 0 {
				t.Errorf("%s was written", left[0].Name())
			}
		})
	}
}

// TestInitFindsTheInterface gives the namespace a network with a way out.
func TestInitFindsTheInterface(t *testing.T) {
	if os.Getenv("PEERAGE_TEST_NAMESPACE") == "" {
		t.Skip("no network namespace")
	}
	at := t.TempDir()
	args := []string{"init", "--host", "www.example.co.uk", "--vip", "192.0.2.11", "--config", filepath.Join(at, "node.yaml"), "--data-dir", filepath.Join(at, "data")}
	if _, stderr, exit := peerage(t, args...); exit != 2 || !strings.Contains(stderr, "no default route") || !strings.Contains(stderr, "--interface") {
		t.Errorf("without a default route: exit status %d\n%s", exit, stderr)
	}

	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "out1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Skip("no pair of interfaces: ", err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	peer, err := netlink.LinkByName("out1")
	if err != nil {
		t.Fatal(err)
	}
	vip, host := netlink.Addr{IPNet: prefix("192.0.2.11/32")}, netlink.Addr{IPNet: prefix("192.0.2.5/24")}
	if err := errors.Join(
		netlink.LinkSetUp(link), netlink.LinkSetUp(peer),
		netlink.AddrAdd(link, &vip), netlink.AddrAdd(link, &host), // the VIP was left behind
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.IPv4(192, 0, 2, 1)}),
	); err != nil {
		t.Fatal(err)
	}
	told := good(t, args...)
	for _, want := range []string{
		"node n1 of the site example.co.uk, host address 192.0.2.5 on out0",
		"--resolve www.example.co.uk:443:192.0.2.11 https://www.example.co.uk/",
		"delegate it to n1.example.co.uk",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("no %q in:\n%s", want, told)
		}
	}
}

func prefix(text string) *net.IPNet {
	p := netip.MustParsePrefix(text)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
