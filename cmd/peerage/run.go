package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"peerage/appliance/node"
)

type runCmd struct {
	Config string `type:"path" default:"/etc/peerage/node.yaml" help:"The node file."`
	Log    string `enum:"text,json" default:"text" help:"Form of the log on standard error: text or json."`
	Debug  bool   `help:"Log what is of interest to a developer too."`
	Role   string `hidden:"" enum:"guard,server" default:"guard"`
}

func (runCmd) Help() string {
	return `Runs two processes: a small guard, which exchanges the load reports and holds the VIPs,
and its child, the server (HTTP, TLS, QUIC, DNS). As root the guard claims VIPs on the
public interface; on loopback no privileges are needed.

SIGTERM and Ctrl-C leave in order: the VIPs go to the peers, work in progress ends.

Exit status: 0 it was stopped, 1 it failed, 2 wrong use, 3 it is no node of the site any more:
it was removed, or has left. Then it is of no use to start it again (systemd:
RestartPreventExitStatus=3).

Examples:
  peerage run
  peerage run --config /tmp/site/n2/node.yaml --log json`
}

func (c runCmd) Run(ctx context.Context, s *streams) error {
	level := slog.LevelInfo
	if c.Debug {
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(s.err, options)
	if c.Log == "json" {
		h = slog.NewJSONHandler(s.err, options)
	}
	var err error
	if c.Role == "server" {
		err = node.Serve(ctx, c.Config, slog.New(h))
	} else {
		err = node.Run(ctx, c.Config, slog.New(h), "run", "--role", "server", "--config", c.Config, "--log", c.Log, fmt.Sprintf("--debug=%t", c.Debug))
	}
	if errors.Is(err, node.ErrRemoved) {
		err = fmt.Errorf("%w\nto make this machine a node again, remove %s and the data directory that it names, with care for pages in it, and join with a new token ('peerage token create' on a node of the site, 'peerage join' here)", err, c.Config)
	}
	return err
}
