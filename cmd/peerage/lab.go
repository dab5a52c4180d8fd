package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"peerage/appliance/lab"
)

type labCmd struct {
	Up        labUpCmd        `cmd:"" help:"Make a LAN of network namespaces with a site on it."`
	Down      labDownCmd      `cmd:"" help:"Take it down, and remove all that was made."`
	Status    labStatusCmd    `cmd:"" help:"Show machines, processes, VIPs, and what is broken."`
	Exec      labExecCmd      `cmd:"" help:"Run a program on a machine of the lab."`
	Cut       labCutCmd       `cmd:"" help:"Cut a machine off from its networks."`
	Partition labPartitionCmd `cmd:"" help:"Part the machines into groups that do not reach each other."`
	Delay     labDelayCmd     `cmd:"" help:"Delay what a machine sends, or lose some of it."`
	Heal      labHealCmd      `cmd:"" help:"Take back what was cut, parted and delayed."`
	Kill      labKillCmd      `cmd:"" help:"Kill a node, its guard or its server."`
	Stop      labStopCmd      `cmd:"" help:"Have a node leave in order."`
	Start     labStartCmd     `cmd:"" help:"Start a node that was killed or stopped."`
	Freeze    labFreezeCmd    `cmd:"" help:"Freeze a node, its guard or its server."`
	Thaw      labThawCmd      `cmd:"" help:"Let a frozen node go on."`
	Capture   labCaptureCmd   `cmd:"" help:"Record what passes a machine or a network."`

	Keep  labKeepCmd  `cmd:"" hidden:""`
	Reap  labReapCmd  `cmd:"" hidden:""`
	Enter labEnterCmd `cmd:"" hidden:""`
}

func (labCmd) Help() string {
	return `A lab is a real LAN on this machine: each node is a network namespace with a 'peerage run' in
it, and so are a client, a router and what is behind it. VIPs are real addresses that move by
ARP and neighbour discovery. Break it, and watch. It needs root, or a kernel that lets users
make user namespaces; nothing leaves it, and nothing of it stays. docs/lab.md is a guided
tour.

Examples:
  peerage lab up
  peerage lab exec client curl -i https://www.peerage.test/whoami
  peerage lab kill n1
  peerage lab status
  peerage lab down`
}

// labAt says which lab is meant.
type labAt struct {
	Dir string `type:"path" placeholder:"DIR" help:"Directory of the lab. Default: /run/peerage-lab as root, else peerage-lab in $$XDG_RUNTIME_DIR or a temporary one of this user."`
}

func (a *labAt) dir() string {
	if a.Dir != "" {
		return a.Dir
	}
	return lab.DefaultDir()
}

func (a *labAt) client() lab.Client { return lab.Client(a.dir()) }

// labUse makes wrong use of what a lab calls so.
func labUse(err error) error {
	if _, ok := errors.AsType[*lab.UseError](err); ok {
		return wrongUse{err}
	}
	return err
}

type labUpCmd struct {
	labAt
	Nodes      int           `default:"3" help:"How many nodes, 1 to 9."`
	Period     time.Duration `default:"500ms" help:"Time between two reports of a node, 50ms to 10s."`
	IPv6       bool          `name:"ipv6" help:"IPv6 on the public network too, and a second VIP for each node."`
	Foreground bool          `help:"Stay until Ctrl-C, which takes the lab down."`
}

func (labUpCmd) Help() string {
	return `Makes the LAN, starts the nodes, and says when the site serves. The lab then runs in the
background until 'peerage lab down'. As root its namespaces are known to 'ip netns' as pg-n1,
pg-client and so on; otherwise it lies in a user namespace, and 'peerage lab exec' is the way
in.

Examples:
  peerage lab up
  peerage lab up --nodes 5 --ipv6 --period 100ms
  peerage lab up --foreground --dir /tmp/lab`
}

func (c labUpCmd) Run(ctx context.Context, s *streams) error {
	began := time.Now()
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	conf := lab.Config{Nodes: c.Nodes, Period: c.Period, IPv6: c.IPv6, Dir: c.dir(), Binary: binary}
	if os.Geteuid() == 0 {
		conf.Names = lab.NetnsDir
	}
	running, err := lab.Up(ctx, conf, !c.Foreground)
	if err != nil {
		return labUse(err)
	}
	st, err := c.client().Status(ctx)
	if err != nil {
		return err
	}
	printLabReady(s.out, st, time.Since(began), c.command())
	if !c.Foreground {
		return nil
	}
	return running.Wait(ctx)
}

// command returns the line that runs a verb for this lab.
func (a *labAt) command() func(rest string) string {
	name := os.Args[0]
	if wd, err := os.Getwd(); err == nil && filepath.IsAbs(name) {
		if rel, err := filepath.Rel(wd, name); err == nil && !strings.HasPrefix(rel, "..") {
			name = rel
		}
	}
	return func(rest string) string {
		verb, rest, _ := strings.Cut(rest, " ")
		if a.Dir != "" {
			verb += " --dir " + shellWord(a.Dir)
		}
		return strings.TrimSpace(shellWord(name) + " lab " + verb + " " + rest)
	}
}

func printLabReady(w io.Writer, st *lab.Status, took time.Duration, command func(string) string) {
	fmt.Fprintf(w, "Peerage lab, ready after %v. To remove it:\n  %s\n\n", took.Round(100*time.Millisecond), command("down"))
	printLabMachines(w, st)
	vip := st.VIPs[0]
	fmt.Fprintf(w, "\n  site   %s on each VIP, to all machines of the lab\n  DNS    each VIP is a name server\n  files  %s (%s is the CA; each node has node.log and access.log)\n\nTry:\n",
		st.URL, st.Dir, filepath.Base(st.CA))
	for _, t := range []struct{ what, line string }{
		{"a page; X-Bank names the node that serves", "exec client curl -i " + st.URL + "whoami"},
		{"the site's own DNS; ask again and the order turns", fmt.Sprintf("exec client dig +short @%s %s", vip.Address, lab.Host)},
		{"the same from beyond the router", "exec world curl -s " + st.URL + "whoami"},
		{"see who holds and answers what, until Ctrl-C", "status --watch"},
		{vip.Home + " dies: a peer answers for " + vip.Address.String(), "kill " + vip.Home},
		{"... it is back, and gets its VIP again", "start " + vip.Home},
		{"a node hangs, and its kernel does not", "freeze " + vip.Home},
		{"... and goes on", "thaw " + vip.Home},
		{"somebody pulls a cable", "cut " + vip.Home + " --how cable --network public"},
		{"... and plugs it in again", "heal"},
		{"record what the machines say to each other", "capture public lab.pcapng --for 10s"},
		{"a shell on a machine", "exec " + vip.Home},
	} {
		fmt.Fprintf(w, "\n  # %s\n  %s\n", t.what, command(t.line))
	}
}

func printLabMachines(w io.Writer, st *lab.Status) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MACHINE\tNAMESPACE\tADDRESSES\tGUARD\tSERVER")
	for _, m := range st.Machines {
		name := m.Namespace
		if name == "" {
			name = "-"
		}
		guard, server := "", ""
		if m.Node != nil {
			guard, server = labProcess(m.Node, lab.Guard), labProcess(m.Node, lab.Server)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.Name, name, labAddresses(m.Addresses), guard, server)
	}
	t.Flush()
	fmt.Fprintln(w)
	fmt.Fprintln(t, "VIP\tHOME\tON THE INTERFACE OF\tANSWERED BY")
	for _, v := range st.VIPs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Address, v.Home, labNames(v.Kernel), labNames(v.Answers))
	}
	t.Flush()
}

// maxLabAddresses bounds the addresses of a machine in a table: the back-ends have one for
// each node.
const maxLabAddresses = 3

func labAddresses(all []netip.Addr) string {
	var b strings.Builder
	for i, a := range all {
		if i == maxLabAddresses {
			fmt.Fprintf(&b, " and %d more", len(all)-i)
			break
		}
		fmt.Fprintf(&b, " %s", a)
	}
	return strings.TrimSpace(b.String())
}

func labNames(all []string) string {
	if len(all) == 0 {
		return "nobody"
	}
	return strings.Join(all, ", ")
}

func labProcess(n *lab.NodeState, role lab.What) string {
	i := slices.IndexFunc(n.Processes, func(p lab.Process) bool { return p.Role == role })
	switch {
	case i >= 0 && n.Processes[i].Frozen:
		return fmt.Sprintf("%d, frozen", n.Processes[i].PID)
	case i >= 0:
		return strconv.Itoa(n.Processes[i].PID)
	case role == lab.Guard:
		return n.Ended
	}
	return ""
}

type labDownCmd struct{ labAt }

func (labDownCmd) Help() string {
	return `Ends the nodes and removes namespaces and files. It clears away, too, what is left of a lab that
was killed.

Examples:
  peerage lab down
  peerage lab down --dir /tmp/lab`
}

func (c labDownCmd) Run(ctx context.Context, s *streams) error {
	if err := lab.Down(ctx, c.dir()); err != nil {
		return labUse(err)
	}
	fmt.Fprintln(s.out, "The lab is gone.")
	return nil
}

type labStatusCmd struct {
	labAt
	Watch bool          `help:"Print again whenever something has changed, until Ctrl-C."`
	JSON  bool          `name:"json" help:"Print as JSON."`
	Every time.Duration `hidden:"" default:"250ms"`
}

func (labStatusCmd) Help() string {
	return `Shows what the kernels say, and not what the nodes say of themselves ('peerage status --dir
DIR' shows that): the processes of each node, on whose interface each VIP is, and who answers
when the client asks the LAN for it. More than one that answers is a fault of the site.

Examples:
  peerage lab status
  peerage lab status --watch
  peerage lab status --json | jq '.vips[] | {address, answers}'`
}

func (c labStatusCmd) Run(ctx context.Context, s *streams) error {
	last := ""
	for {
		st, err := c.client().Status(ctx)
		if err != nil {
			if c.Watch && ctx.Err() != nil {
				return nil
			}
			return err
		}
		var b strings.Builder
		if c.JSON {
			e := json.NewEncoder(&b)
			if !c.Watch {
				e.SetIndent("", "  ")
			}
			err = e.Encode(st)
		} else {
			printLabStatus(&b, st)
		}
		if err != nil {
			return err
		}
		if now := b.String(); now != last {
			if last != "" && !c.JSON {
				fmt.Fprintf(s.out, "\n%s\n", time.Now().Format("15:04:05.000"))
			}
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

func printLabStatus(w io.Writer, st *lab.Status) {
	printLabMachines(w, st)
	for _, f := range st.Faults {
		fmt.Fprintf(w, "\nbroken: %s", f)
	}
	if len(st.Faults) > 0 {
		fmt.Fprintln(w)
	}
}

type labExecCmd struct {
	labAt
	Machine string   `arg:"" help:"n1, n2, ..., client, router, world or app."`
	Command []string `arg:"" optional:"" passthrough:"" help:"Program and arguments. Default: a shell."`
}

func (labExecCmd) Help() string {
	return `The program runs on the network of that machine and with the files of this one. It finds the
site by name, and trusts its CA if it heeds SSL_CERT_FILE or CURL_CA_BUNDLE. Its exit status is
that of this command; 127 if there is no such program. As root, 'ip netns exec pg-client ...' is
another way.

Examples:
  peerage lab exec client curl -i https://www.peerage.test/
  peerage lab exec n1 ip address
  peerage lab exec router ping -c 3 192.0.2.21
  peerage lab exec client`
}

func (c labExecCmd) Run(_ context.Context, _ *streams) error {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		c.Command = c.Command[1:]
	}
	if len(c.Command) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		c.Command = []string{shell}
	}
	// Signals are for the program, whose end is the end of this.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	status, err := c.client().Exec(context.Background(), c.Machine, c.Command, signals)
	if err != nil {
		return labUse(err)
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// exitStatus is that of a program which was run, and has said itself what is wrong.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

type labCutCmd struct {
	labAt
	Machine string  `arg:"" help:"The machine to cut off."`
	Network string  `default:"both" enum:"public,internal,both" help:"public, internal or both."`
	How     lab.How `default:"switch" enum:"cable,switch,router" help:"cable: both ends lose the carrier. switch: nothing passes, and the carrier stays. router: nothing passes between the machine and the router."`
}

func (labCutCmd) Help() string {
	return `What was cut before at that machine and network is replaced. 'router' concerns the public network
alone.

Examples:
  peerage lab cut n1
  peerage lab cut n1 --network public --how cable
  peerage lab cut n2 --how router
  peerage lab cut router`
}

func (c labCutCmd) Run(ctx context.Context) error {
	return labUse(c.client().Cut(ctx, c.Machine, c.Network, c.How))
}

type labPartitionCmd struct {
	labAt
	Groups []string `arg:"" help:"Machines that go on reaching each other, such as n1,n2. Those that are not named are one more group."`
}

func (labPartitionCmd) Help() string {
	return `On both networks. The back-ends are on the machine app, and the router is what a node looks for
when it hears nobody: name them with the group that is to keep them. 'peerage lab heal' ends it.

Examples:
  peerage lab partition n1
  peerage lab partition n1,n2 n3,client,router,app`
}

func (c labPartitionCmd) Run(ctx context.Context) error {
	var groups [][]string
	for _, g := range c.Groups {
		groups = append(groups, strings.Split(g, ","))
	}
	return labUse(c.client().Partition(ctx, groups))
}

type labDelayCmd struct {
	labAt
	Machine string        `arg:"" help:"The machine whose packets it is about."`
	Latency time.Duration `arg:"" help:"How much longer they take, such as 20ms; 0s for no longer."`
	Loss    percentage    `placeholder:"PERCENT" help:"How many of them are lost, such as 1%."`
}

// percentage is a number of per cent, with or without the sign.
type percentage float64

func (p *percentage) UnmarshalText(b []byte) error {
	f, err := strconv.ParseFloat(strings.TrimSuffix(string(b), "%"), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Errorf("%q is no percentage; write 1%% or 0.5%%", b)
	}
	*p = percentage(f)
	return nil
}

func (labDelayCmd) Help() string {
	return `It is about what the machine sends on the public network; what it receives is left alone. It
replaces the delay before. The kernel must have netem (the module sch_netem).

Examples:
  peerage lab delay n1 20ms
  peerage lab delay n1 0s --loss 1%
  peerage lab heal n1`
}

func (c labDelayCmd) Run(ctx context.Context) error {
	return labUse(c.client().Delay(ctx, c.Machine, lab.Delay{Latency: c.Latency, Loss: float64(c.Loss)}))
}

type labHealCmd struct {
	labAt
	Machine string `arg:"" optional:"" help:"Heal what was cut and delayed there. Default: everywhere, and partitions too."`
}

func (labHealCmd) Help() string {
	return `Examples:
  peerage lab heal
  peerage lab heal n1`
}

func (c labHealCmd) Run(ctx context.Context) error {
	return labUse(c.client().Heal(ctx, c.Machine))
}

type labKillCmd struct {
	labAt
	Node string   `arg:"" help:"The node."`
	What lab.What `default:"all" enum:"all,guard,server" help:"all, guard or server."`
}

func (labKillCmd) Help() string {
	return `By SIGKILL. A server does not outlive its guard; a guard starts another server. The kernel of the
machine lives on: 'peerage lab cut NODE' is more like a failure of power.

Examples:
  peerage lab kill n1
  peerage lab kill n1 --what server`
}

func (c labKillCmd) Run(ctx context.Context) error {
	return labUse(c.client().Kill(ctx, c.Node, c.What))
}

type labStopCmd struct {
	labAt
	Node string `arg:"" help:"The node."`
}

func (labStopCmd) Help() string {
	return `By SIGTERM: it hands its VIPs over, and ends its work. The command returns when it has ended.

Example:
  peerage lab stop n1`
}

func (c labStopCmd) Run(ctx context.Context) error {
	return labUse(c.client().Stop(ctx, c.Node))
}

type labStartCmd struct {
	labAt
	Node string `arg:"" help:"The node."`
}

func (labStartCmd) Help() string {
	return `Example:
  peerage lab start n1`
}

func (c labStartCmd) Run(ctx context.Context) error {
	return labUse(c.client().Start(ctx, c.Node))
}

type labFreezeCmd struct {
	labAt
	Node string   `arg:"" help:"The node."`
	What lab.What `default:"all" enum:"all,guard,server" help:"all, guard or server."`
}

func (labFreezeCmd) Help() string {
	return `By SIGSTOP, as a process that hangs. The kernel of the machine goes on, and answers for the
addresses that it has.

Examples:
  peerage lab freeze n1
  peerage lab freeze n1 --what guard`
}

func (c labFreezeCmd) Run(ctx context.Context) error {
	return labUse(c.client().Freeze(ctx, c.Node, c.What))
}

type labThawCmd struct {
	labAt
	Node string `arg:"" help:"The node."`
}

func (labThawCmd) Help() string {
	return `Example:
  peerage lab thaw n1`
}

func (c labThawCmd) Run(ctx context.Context) error {
	return labUse(c.client().Thaw(ctx, c.Node))
}

type labCaptureCmd struct {
	labAt
	What []string      `arg:"" name:"where> <file" help:"A machine, or one of the networks public and internal; without it, public. The file is overwritten; '-' is standard output."`
	For  time.Duration `default:"10m" help:"End by itself after this long, at most 24h."`
	Size int64         `default:"256" placeholder:"MB" help:"End by itself when the file has so many MB, at most 16384."`
}

func (labCaptureCmd) Help() string {
	return `Writes pcapng, which Wireshark and tcpdump read, until Ctrl-C. Of a network it is what each
machine there sends, on an interface that bears the machine's name, whether or not the switch
passes it on. The station addresses begin with 02:00, and go on with the machine's IPv4 address.
02:00:00:00:00:fe is 'peerage lab status', which asks who has the VIPs.

Examples:
  peerage lab capture public lab.pcapng --for 10s
  peerage lab capture n1 n1.pcapng
  peerage lab capture public - | wireshark -k -i -`
}

func (c labCaptureCmd) Run(ctx context.Context, s *streams) error {
	where, path := lab.Public, c.What[0]
	switch len(c.What) {
	case 1:
	case 2:
		where, path = c.What[0], c.What[1]
	default:
		return wrongUse{errors.New("name a machine or a network, and a file")}
	}
	f, err := os.Stdout, error(nil)
	if path != "-" {
		if f, err = os.Create(path); err != nil {
			return err
		}
		defer f.Close()
	}
	got, err := c.client().Capture(ctx, where, f, lab.Limits{For: c.For, Size: c.Size << 20})
	if err != nil {
		if path != "-" {
			if info, e := f.Stat(); e == nil && info.Size() == 0 {
				os.Remove(path)
			}
		}
		return labUse(err)
	}
	fmt.Fprintf(s.err, "%d frames, %d octets", got.Frames, got.Octets)
	if got.Dropped > 0 {
		fmt.Fprintf(s.err, "; %d more came faster than they could be written", got.Dropped)
	}
	if got.Full {
		fmt.Fprintf(s.err, "; ended at %d MB, --size allows more", c.Size)
	}
	fmt.Fprintln(s.err)
	return nil
}

// The processes of a lab that nobody starts by hand.

type labKeepCmd struct {
	Dir string `required:"" type:"path"`
}

func (c labKeepCmd) Run(ctx context.Context) error { return lab.Keep(ctx, c.Dir) }

type labReapCmd struct {
	Dir string `required:"" type:"path"`
}

func (c labReapCmd) Run() error { return lab.Reap(c.Dir) }

type labEnterCmd struct {
	Dir     string   `required:"" type:"path"`
	Command []string `arg:"" passthrough:""`
}

func (c labEnterCmd) Run(ctx context.Context, s *streams) error {
	signal.Reset() // from now on they are for the program
	if ctx.Err() != nil {
		return exitStatus(128 + int(syscall.SIGTERM))
	}
	status, err := lab.Enter(c.Dir, c.Command)
	fmt.Fprintln(s.err, "peerage lab:", err)
	return exitStatus(status)
}
