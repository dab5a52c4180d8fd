package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"peerage/appliance/demo"
	"peerage/appliance/node"
	"peerage/appliance/state"
	"peerage/balancing"
)

type statusCmd struct {
	Dir   string        `type:"path" help:"Data directory of a node, or directory of a demo. Default: /var/lib/peerage, else the running demo."`
	JSON  bool          `name:"json" help:"Print everything that the node knows, as JSON."`
	Watch bool          `help:"Print again whenever something changed, until Ctrl-C."`
	Every time.Duration `hidden:"" default:"500ms"`
}

func (statusCmd) Help() string {
	return `Asks a node on this machine what it knows of its site.

Examples:
  peerage status
  peerage status --dir /tmp/site/n2 --json
  peerage status --watch`
}

func (c statusCmd) Run(ctx context.Context, s *streams) error {
	last := ""
	for {
		st, err := readStatus(ctx, c.Dir)
		if err != nil && !c.Watch {
			return err
		}
		var b strings.Builder
		switch {
		case err != nil:
			fmt.Fprintln(&b, err)
		case c.JSON:
			e := json.NewEncoder(&b)
			if !c.Watch {
				e.SetIndent("", "  ")
			}
			if err := e.Encode(st); err != nil {
				return err
			}
		default:
			printStatus(&b, st)
		}
		if now := b.String(); now != last {
			last = now
			if _, err := io.WriteString(s.out, now); err != nil {
				return err
			}
		}
		if !c.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
	}
}

// readStatus asks the node that [findNode] finds.
func readStatus(ctx context.Context, dir string) (*node.Status, error) {
	found, err := findNode(ctx, dir)
	if err != nil {
		return nil, err
	}
	return node.Client(found).Status(ctx)
}

// findNode returns the data directory of the first node that answers of those that dir,
// or the absence of it, names.
func findNode(ctx context.Context, dir string) (string, error) {
	dirs := []string{dir}
	if dir == "" {
		dirs = []string{usualData}
		dir = demo.Latest()
	}
	if dir != "" {
		dirs = append(dirs, nodesOf(dir)...)
	}
	var first error
	for _, d := range dirs {
		err := answers(ctx, d)
		if err == nil {
			return d, nil
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) { // or a killed node left it behind
			err = stuck(d)
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		first = fmt.Errorf("no node runs in %s, and no demo; start one with 'peerage run' or 'peerage demo', or name its directory with --dir", dirs[0])
	}
	return "", first
}

// answers reports why no node answers at a data directory, nil if one does.
func answers(ctx context.Context, dir string) error {
	_, err := os.Stat(filepath.Join(dir, node.SocketName))
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: ask as root, or as the user that the node runs as", err)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = node.Client(dir).Settings(ctx)
	return err
}

// stuck reports that a node runs whose server does not, nil if no node runs.
func stuck(dir string) error {
	pid := state.Holder(dir)
	if pid == 0 {
		return nil
	}
	where := "where its standard error goes ('journalctl -u peerage', if systemd runs it)"
	if log, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid)); err == nil {
		if info, err := os.Stat(log); err == nil && info.Mode().IsRegular() {
			where = log
		}
	}
	return fmt.Errorf("the node of %s runs, as process %d, but its server does not: it is just starting, or it cannot. Its log says why: %s", dir, pid, where)
}

// nodesOf returns the directories of a demo's nodes below dir.
func nodesOf(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "n[1-9]"))
	slices.Sort(all)
	return all
}

func printStatus(w io.Writer, st *node.Status) {
	fmt.Fprintf(w, "site %s, seen by %s\n\n", st.Site, st.Node)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATE\tLOAD\tADDRESS\tHOLDS\tHEARD")
	for i := range st.View.Nodes {
		n := &st.View.Nodes[i]
		state, load := n.State.String(), n.Load.String()
		if !n.Online {
			state, load = "off-line", "-"
		} else if n.State == 0 {
			state = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, state, load, text(n.Address), holds(n), heard(st, n))
	}
	t.Flush()
	fmt.Fprintln(w)
	fmt.Fprintln(t, "VIP\tHOME\tHOLDER")
	for _, v := range st.VIPs {
		holder := string(v.Holder)
		switch {
		case holder == "":
			holder = "nobody"
		case v.Moved != nil && v.Holder == v.Moved.Node:
			holder += " (moved)"
		case v.Holder != v.Home:
			holder += " (stands in)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", v.Address, v.Home, holder)
	}
	t.Flush()
	printOrders(w, st)
	if st.Agreed != nil {
		printAgreed(w, st)
	}
	if st.Guard != nil {
		for _, a := range st.Guard.Amiss {
			fmt.Fprintf(w, "\n%s is degraded: %s\n", st.Node, a)
		}
	}
}

// printOrders shows what operators have decided.
func printOrders(w io.Writer, st *node.Status) {
	var all []string
	for _, v := range st.VIPs {
		if v.Moved != nil {
			all = append(all, fmt.Sprintf("%s is ordered %s", v.Address, orderText(v.Moved)))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(st.Drained)) {
		o := st.Drained[id]
		all = append(all, fmt.Sprintf("%s is ordered to drain%s", id, strings.TrimPrefix(orderText(&o), "to "+string(id))))
	}
	if len(all) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(all, "\n"))
	}
}

// printAgreed shows what the nodes agree on, and who does not follow.
func printAgreed(w io.Writer, st *node.Status) {
	d, k := &st.Agreed.Document, &st.Agreed.Key
	if d.Head == nil {
		fmt.Fprintln(w, "\nsite document: not heard of yet")
		return
	}
	fmt.Fprintf(w, "\nsite document: revision %d (%s) by %s, %s", d.Head.Number, d.Head.ID.Short(), d.Head.Author, d.Head.State)
	if !d.Head.ConfirmBy.IsZero() {
		fmt.Fprintf(w, "; rolled back at %s unless confirmed", d.Head.ConfirmBy.Local().Format(time.TimeOnly))
	} else if d.Head.Comment != "" {
		fmt.Fprintf(w, ": %s", oneLine(d.Head.Comment))
	}
	fmt.Fprintln(w)
	for _, n := range d.Nodes {
		if n.ID == d.Head.ID || st.View.Node(n.Node) == nil {
			continue
		}
		fmt.Fprintf(w, "  %s serves revision %d", n.Node, n.Number)
		if n.Failed != "" {
			fmt.Fprintf(w, ": %s", oneLine(n.Failed))
		}
		fmt.Fprintln(w)
	}
	for _, p := range d.Pending {
		fmt.Fprintf(w, "  revision %d (%s) by %s: %s\n", p.Number, p.ID.Short(), p.Author, p.State)
	}
	for _, c := range d.Conflicts {
		fmt.Fprintf(w, "  revision %d (%s) by %s was made apart from it: see 'peerage site history'\n", c.Number, c.ID.Short(), c.Author)
	}
	fmt.Fprintf(w, "site key: %s, %s", k.Key, k.Phase)
	if len(k.Waiting) > 0 {
		fmt.Fprintf(w, ", waiting for %s", join(k.Waiting))
	}
	if len(k.Departed) > 0 {
		fmt.Fprintf(w, ", known to %s, out of the site now, until it is replaced", join(k.Departed))
	}
	fmt.Fprintln(w)
}

func text(a interface{ IsValid() bool }) string {
	if !a.IsValid() {
		return "-"
	}
	return fmt.Sprint(a)
}

func holds(n *balancing.Node) string {
	if !n.Online || len(n.Held) == 0 {
		return "-"
	}
	var all []string
	for _, a := range n.Held {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

func heard(st *node.Status, n *balancing.Node) string {
	switch {
	case n.ID == st.Node:
		return "itself"
	case n.Heard.IsZero():
		return "never"
	case n.Online && n.ByMulticast:
		return "now, by multicast"
	case n.Online:
		return "now, by unicast"
	}
	return time.Since(n.Heard).Round(time.Second).String() + " ago"
}
