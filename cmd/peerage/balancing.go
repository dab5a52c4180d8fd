package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"peerage/appliance/node"
	"peerage/balancing"
)

type balancingCmd struct {
	Show  balancingShowCmd  `cmd:"" help:"Show the levels, the rule and the period that count now."`
	Set   balancingSetCmd   `cmd:"" help:"Change some of them, on all nodes at once."`
	Reset balancingResetCmd `cmd:"" help:"Go back to those of the site document."`
}

// asked says which node is asked, and how its answer is shown.
type asked struct {
	Dir  string `type:"path" help:"Data directory of a node, or directory of a demo. Default: /var/lib/peerage, else the running demo."`
	JSON bool   `name:"json" help:"Print JSON."`
}

type balancingShowCmd struct{ asked }

func (c balancingShowCmd) Run(ctx context.Context, s *streams) error {
	dir, err := findNode(ctx, c.Dir)
	if err != nil {
		return err
	}
	settings, err := node.Client(dir).Settings(ctx)
	if err != nil {
		return err
	}
	return c.print(s.out, settings)
}

type balancingSetCmd struct {
	asked
	Changes map[string]string `arg:"" placeholder:"KEY=VALUE" help:"light, margin, below (per cent), rule, choice, period."`
}

func (balancingSetCmd) Help() string {
	return `The change takes effect at once on this node, and on the others with its next report,
which goes out early. It outlives a restart of the nodes, and ends when these keys are
changed in the site document. 'peerage site schema' explains them.

  light   up to this load a node keeps all its work (L1)
  margin  by how much a peer must be lighter to be sent work (L2)
  below   under rule 'below', the load up to which a peer is sent work
  rule    damped, patent, below, rotate, two-choices
  choice  headroom, least: of rule 'damped'
  period  time between two reports, such as 500ms

Examples:
  peerage balancing set light=60
  peerage balancing set rule=patent margin=10 period=250ms`
}

// levels are the settings that are numbers.
var levels = []string{"light", "margin", "below"}

func (c balancingSetCmd) Run(ctx context.Context, s *streams) error {
	changes := map[string]any{}
	for key, value := range c.Changes {
		switch {
		case slices.Contains(levels, key):
			n, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
			if err != nil {
				return wrongUse{fmt.Errorf("%s=%s: want a number of per cent, such as %s=60", key, value, key)}
			}
			changes[key] = n
		case key == "rule" || key == "choice":
			changes[key] = value
		case key == "period":
			d, err := time.ParseDuration(value)
			if err != nil {
				return wrongUse{fmt.Errorf("period=%s: want a duration with a unit, such as period=500ms", value)}
			}
			changes[key] = d
		default:
			return wrongUse{fmt.Errorf("%s: there is no such setting; want light, margin, below, rule, choice or period", key)}
		}
	}
	dir, err := findNode(ctx, c.Dir)
	if err != nil {
		return err
	}
	settings, err := node.Client(dir).ChangeSettings(ctx, changes)
	if err != nil {
		return fmt.Errorf("change %s: %w", strings.Join(slices.Sorted(maps.Keys(changes)), ", "), err)
	}
	return c.print(s.out, settings)
}

type balancingResetCmd struct{ asked }

func (c balancingResetCmd) Run(ctx context.Context, s *streams) error {
	dir, err := findNode(ctx, c.Dir)
	if err != nil {
		return err
	}
	settings, err := node.Client(dir).ResetSettings(ctx)
	if err != nil {
		return err
	}
	return c.print(s.out, settings)
}

func (a asked) print(w io.Writer, s balancing.Settings) error {
	if a.JSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "light\t%v\tup to this load a node keeps all its work (L1)\n", s.Light)
	fmt.Fprintf(t, "margin\t%v\tby how much a peer must be lighter (L2)\n", s.Margin)
	fmt.Fprintf(t, "below\t%v\tunder rule 'below', the load up to which a peer is sent work\n", s.Below)
	fmt.Fprintf(t, "rule\t%v\twhat a node above light does\n", s.Rule)
	fmt.Fprintf(t, "choice\t%v\tof rule 'damped'\n", s.Choice)
	fmt.Fprintf(t, "period\t%v\tbetween two reports\n", s.Period)
	if s.Version == 0 {
		fmt.Fprintf(t, "since\t-\tas in the site document\n")
	} else {
		fmt.Fprintf(t, "since\t%s\tset while the site ran\n", time.UnixMilli(int64(s.Version)).Format("2006-01-02 15:04:05 MST"))
	}
	return t.Flush()
}
