package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Event is something that happened in the demo's site.
type Event struct {
	Time  time.Time      `json:"time"`
	Node  string         `json:"node,omitempty"` // the node that tells it; "" for the demo itself
	Event string         `json:"event"`          // the log message, a constant
	Attrs map[string]any `json:"attrs,omitempty"`
	Text  string         `json:"-"` // for people
}

// shown are the messages of the nodes that are events; the rest stays in their logs.
var shown = map[string]func(a map[string]any) string{
	"state": func(a map[string]any) string {
		if why, ok := a["amiss"].([]any); ok {
			return fmt.Sprintf("is %v: %v", a["state"], why)
		}
		return fmt.Sprintf("is %v", a["state"])
	},
	"peer online": func(a map[string]any) string { return fmt.Sprintf("hears %v", a["peer"]) },
	"peer silent": func(a map[string]any) string {
		return fmt.Sprintf("has not heard %v for too long: off-line", a["peer"])
	},
	"peer left":         func(a map[string]any) string { return fmt.Sprintf("was told by %v that it leaves", a["peer"]) },
	"vip claimed":       func(a map[string]any) string { return fmt.Sprintf("answers for %v (%v)", a["vip"], a["reason"]) },
	"vip released":      func(a map[string]any) string { return fmt.Sprintf("has let go of %v%s", a["vip"], to(a["peer"])) },
	"vip claim failed":  func(a map[string]any) string { return fmt.Sprintf("cannot claim %v: %v", a["vip"], a["err"]) },
	"address conflict":  func(a map[string]any) string { return fmt.Sprintf("finds somebody else at %v", a["vip"]) },
	"server ended":      func(a map[string]any) string { return fmt.Sprintf("lost its server (%v), starts another", a["err"]) },
	"self-check failed": func(a map[string]any) string { return fmt.Sprintf("fails its own check: %v", a["err"]) },

	"site document served":      func(a map[string]any) string { return fmt.Sprintf("serves %v", a["rev"]) },
	"site document rolled back": func(a map[string]any) string { return fmt.Sprintf("has rolled back %v: %v", a["rev"], a["reason"]) },
	"site key ring changed": func(a map[string]any) string {
		return fmt.Sprintf("seals with key %v, opens with %v", a["seals"], a["opens"])
	},
}

func to(peer any) string {
	if s, ok := peer.(string); ok && s != "" {
		return " to " + s
	}
	return ""
}

// runNode starts the node p and shows its events until it has ended. When ctx ends, so
// does the node.
func (d *Demo) runNode(ctx context.Context, p *process, started chan<- error) {
	log, err := os.OpenFile(filepath.Join(p.dir, "node.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		started <- err
		return
	}
	defer log.Close()
	cmd := exec.Command(d.c.Binary, "run", "--config", p.nodeFile(), "--log", "json")
	// A group of its own, so that Ctrl-C at the terminal reaches the demo alone, which
	// then ends the nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		started <- fmt.Errorf("start %s: %w", p.id, err)
		return
	}
	p.pid.Store(int64(cmd.Process.Pid))
	started <- nil

	var following sync.WaitGroup
	following.Go(func() { d.follow(p, io.TeeReader(stderr, log)) })
	ended := make(chan struct{})
	following.Go(func() {
		select {
		case <-ended:
		case <-ctx.Done():
			cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				cmd.Process.Kill()
			}
		}
	})
	state, err := cmd.Process.Wait()
	close(ended)
	following.Wait()
	if ctx.Err() == nil {
		how := "ended"
		if err == nil {
			how = state.String()
		}
		e := Event{
			Time: time.Now(), Node: string(p.id), Event: "node ended",
			Attrs: map[string]any{"how": how, "restart": d.restart(p)},
			Text:  fmt.Sprintf("is gone (%s); start it again with\n    %s", how, d.restart(p)),
		}
		if err == nil && state.ExitCode() == 1 {
			e.Text = fmt.Sprintf("has ended by itself; %s says why", log.Name())
		}
		d.show <- e
	}
}

// restart returns the line that starts p again.
func (d *Demo) restart(p *process) string {
	return fmt.Sprintf("%s run --config %s", short(d.c.Binary), p.nodeFile())
}

// short returns the path of a program as one would type it here.
func short(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

// follow shows the events among the lines of a node's log.
func (d *Demo) follow(p *process, r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		var m map[string]any
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		msg, _ := m["msg"].(string)
		text, ok := shown[msg]
		if !ok && m["level"] != "ERROR" {
			continue
		}
		e := Event{Time: time.Now(), Node: string(p.id), Event: msg, Attrs: m}
		if t, err := time.Parse(time.RFC3339Nano, fmt.Sprint(m["time"])); err == nil {
			e.Time = t
		}
		for _, k := range []string{"time", "msg", "level", "node"} {
			delete(m, k)
		}
		if ok {
			e.Text = text(m)
		} else {
			e.Text = fmt.Sprintf("%s: %v", msg, m)
		}
		d.show <- e
	}
}

// ready is the event that tells a newcomer what there is and what to try.
func (d *Demo) ready() Event {
	type row struct {
		Node    string `json:"node"`
		Address string `json:"address"`
		VIP     string `json:"vip"`
		PID     int64  `json:"pid"`
	}
	var rows []row
	for _, p := range d.nodes {
		rows = append(rows, row{string(p.id), p.address.String(), p.vip.String(), p.pid.Load()})
	}
	first, victim := d.nodes[0], d.nodes[min(1, len(d.nodes)-1)]
	curl := fmt.Sprintf("curl --cacert %s/ca.pem --resolve %s:%d:%s", d.dir, Host, portHTTPS, first.vip)
	page := fmt.Sprintf("https://%s:%d", Host, portHTTPS)
	try := []struct{ what, line string }{
		{"a page", fmt.Sprintf("%s %s/", curl, page)},
		{"the site's own DNS; ask again and the order turns", fmt.Sprintf("dig @%s -p %d %s +short", first.address, portDNS, Host)},
		{"who holds what", fmt.Sprintf("%s status --dir %s", short(d.c.Binary), d.dir)},
		{"load n1 beyond L1 for 10 s ...", fmt.Sprintf("for i in $(seq 40); do %s -s -o /dev/null '%s/slow?for=10s' & done", curl, page)},
		{"... and see it send new requests to a lighter node", fmt.Sprintf("%s -s -o /dev/null -w '%%{http_code} %%{redirect_url}\\n' %s/", curl, page)},
		{"kill " + string(victim.id) + "; its VIP is answered by a peer within 2 s", fmt.Sprintf("kill -9 %d", victim.pid.Load())},
		{"start " + string(victim.id) + " again; it has its VIP back within 5 s", d.restart(victim)},
		{"change L1 on all nodes at once", fmt.Sprintf("%s balancing set light=30 --dir %s", short(d.c.Binary), d.dir)},
		{"change the site document while the nodes serve: each checks it, one tries it, then all follow", fmt.Sprintf(
			"%[1]s site show --dir %[2]s | sed 's/light: 50/light: 40/' > %[2]s/edited.yaml; %[1]s site apply --dir %[2]s -m lighter %[2]s/edited.yaml",
			short(d.c.Binary), d.dir)},
		{"who has changed what, and back again", fmt.Sprintf("%[1]s site history --dir %[2]s; %[1]s site rollback --dir %[2]s", short(d.c.Binary), d.dir)},
		{"replace the site key, without the loss of a request or a session", fmt.Sprintf("%s key rotate --dir %s", short(d.c.Binary), d.dir)},
		{"look at the bank; the pages say which node answers, and what to try", d.browser(page)},
	}
	var b strings.Builder
	took := time.Since(d.began).Round(10 * time.Millisecond)
	fmt.Fprintf(&b, "\nPeerage demo: %d nodes, ready after %v. Ctrl-C ends it.\n\n", len(rows), took)
	fmt.Fprintf(&b, "  node  address       home VIP      pid\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "  %-4s  %-12s  %-12s  %d\n", r.Node, r.Address, r.VIP, r.PID)
	}
	fmt.Fprintf(&b, "\n  site   %s/  HTTP/1.1, HTTP/2 and HTTP/3 on each VIP; HTTP on %d\n", page, portHTTP)
	fmt.Fprintf(&b, "  DNS    zone %s on port %d of each address\n", Zone, portDNS)
	fmt.Fprintf(&b, "  files  %s (the CA is ca.pem; each node has node.log and access.log)\n\nTry, in another terminal:\n", d.dir)
	for _, t := range try {
		fmt.Fprintf(&b, "\n  # %s\n  %s\n", t.what, t.line)
	}
	lines := make([]string, len(try))
	for i, t := range try {
		lines[i] = t.line
	}
	return Event{
		Time: time.Now(), Event: "ready", Text: b.String(),
		Attrs: map[string]any{"nodes": rows, "dir": d.dir, "ca": filepath.Join(d.dir, "ca.pem"), "url": page + "/", "try": lines, "took": took.String()},
	}
}

// browser returns the line that opens the site in a browser of its own, which finds the
// names without the DNS of this machine.
func (d *Demo) browser(page string) string {
	rules := []string{fmt.Sprintf("MAP %s %s", Host, d.nodes[0].vip)}
	for _, p := range d.nodes {
		rules = append(rules, fmt.Sprintf("MAP %s.%s %s", p.id, Host, p.vip))
	}
	return fmt.Sprintf("chromium --user-data-dir=%s --ignore-certificate-errors --host-resolver-rules='%s' %s/",
		filepath.Join(d.dir, "browser"), strings.Join(rules, ", "), page)
}

// Line returns e as one line for people, or as the block that it is.
func (e Event) Line() string {
	if e.Node == "" {
		return e.Text
	}
	return fmt.Sprintf("%s  %-3s %s", e.Time.Format("15:04:05.000"), e.Node, e.Text)
}

// quiet are events that say nothing new while a demo ends.
var quiet = []string{"vip released", "vip claimed", "vip claim failed", "peer left", "peer silent", "state"}

// Quiet reports whether e is of no interest once the demo is ending.
func (e Event) Quiet() bool { return slices.Contains(quiet, e.Event) }
