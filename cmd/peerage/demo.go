package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"peerage/appliance/demo"
)

type demoCmd struct {
	Nodes int           `default:"3" help:"How many nodes, 1 to 9."`
	Dir   string        `type:"path" help:"Directory for the demo's files, kept at the end. Default: a temporary one, removed at the end."`
	For   time.Duration `help:"End by itself after this long, for example 20s. Default: on Ctrl-C."`
	JSON  bool          `name:"json" help:"Write the events as JSON lines on standard output."`
}

func (demoCmd) Help() string {
	return `Three node processes n1, n2, n3 with the addresses 127.0.0.11 to .13 and the VIPs
127.0.0.21 to .23 serve www.peerage.test over HTTPS (HTTP/1.1, 2 and 3) on port 8443
and its DNS on port 8053. When they are ready, lines to try are printed; afterwards one
line for each event. Kill a node with kill -9 and watch.

Examples:
  peerage demo
  peerage demo --nodes 5 --for 60s
  peerage demo --json --dir /tmp/site | jq .event`
}

func (c demoCmd) Run(ctx context.Context, s *streams) error {
	if c.Nodes < 1 || c.Nodes > demo.MaxNodes {
		return wrongUse{fmt.Errorf("--nodes %d: a demo has 1 to %d nodes", c.Nodes, demo.MaxNodes)}
	}
	if c.For < 0 {
		return wrongUse{fmt.Errorf("--for %v: must not be negative", c.For)}
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	var ending atomic.Bool
	show := func(e demo.Event) {
		if e.Event == "ending" {
			ending.Store(true)
		}
		if ending.Load() && e.Quiet() {
			return
		}
		fmt.Fprintln(s.out, e.Line())
	}
	if c.JSON {
		out := json.NewEncoder(s.out)
		show = func(e demo.Event) { out.Encode(e) }
	}
	return demo.Run(ctx, demo.Config{Nodes: c.Nodes, Dir: c.Dir, For: c.For, Binary: binary, Show: show})
}
