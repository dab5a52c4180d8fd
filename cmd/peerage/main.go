// Command peerage is a node of a Peerage site, and the means to set one up and to look
// at it: the daemon, the command line and the demo are one binary.
//
// Exit status: 0 done, 1 failed, 2 wrong use, 3 of 'peerage run' if this is no node of its
// site any more.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"peerage/appliance/demo"
	"peerage/appliance/node"
	"peerage/appliance/site"
)

type cli struct {
	Demo      demoCmd      `cmd:"" help:"Run a whole site on loopback: no privileges, no configuration."`
	Lab       labCmd       `cmd:"" help:"Run a whole site on a real LAN of network namespaces, and break it."`
	Init      initCmd      `cmd:"" help:"Set up the first node of a new site."`
	Join      joinCmd      `cmd:"" help:"Make this machine a further node of a site."`
	Run       runCmd       `cmd:"" help:"Run this node until SIGTERM or Ctrl-C."`
	Status    statusCmd    `cmd:"" help:"Show the nodes, their load, and who answers for which VIP."`
	Site      siteCmd      `cmd:"" help:"Check, show, explain and change the site document."`
	Balancing balancingCmd `cmd:"" help:"Show and change how the site balances, while it runs."`
	Token     tokenCmd     `cmd:"" help:"Make and revoke the tokens with which nodes join."`
	VIP       vipCmd       `cmd:"" name:"vip" help:"Show virtual IPs, and move them."`
	Node      nodeCmd      `cmd:"" help:"Drain nodes, take them out of the site, and rename them."`
	Leave     leaveCmd     `cmd:"" help:"Take this node out of its site."`
	Key       keyCmd       `cmd:"" help:"Replace the site key."`
	Backup    backupCmd    `cmd:"" help:"Write all that this node is into a file."`
	Restore   restoreCmd   `cmd:"" help:"Make a node again from its backup."`
	Sim       simCmd       `cmd:"" help:"Simulate a site, and compare ways to balance it."`
	Load      loadCmd      `cmd:"" help:"Send visitors to a site of the lab, and tell what they meet."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// wrongUse is an error that the caller can mend by typing something else.
type wrongUse struct{ error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings as parameters.
func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("peerage"),
		kong.Description("Peerage is an edge server that terminates TLS, balances by redirect among equal nodes, and needs no balancer in front.\n\nTry it: peerage demo"),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "peerage:", err)
		return 1
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "peerage: %v\nSee 'peerage --help'.\n", err)
		return 2
	}
	ctx, stop := demo.Interrupted(context.Background())
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	k.Bind(&streams{stdout, stderr})
	err = k.Run()
	if err == nil {
		return 0
	}
	if problems, ok := errors.AsType[site.Problems](err); ok {
		fmt.Fprintln(stderr, problems) // each line begins with its place, for editors
		return 1
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	fmt.Fprintln(stderr, "peerage:", err)
	if _, ok := errors.AsType[wrongUse](err); ok {
		return 2
	}
	if errors.Is(err, node.ErrRemoved) {
		return 3
	}
	return 1
}

// streams are where a command writes.
type streams struct{ out, err io.Writer }
