package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/balancing/sim"
)

type simCmd struct {
	Scenario string   `default:"base" help:"The site and its visitors; the other flags change it. See below."`
	Rule     []string `placeholder:"RULE" help:"A row of the table; may be given several times. See below. Default: ideal, split, dns, patent, damped, damped+dns, damped+dns+relay."`

	Nodes     *int           `placeholder:"N" help:"How many nodes, 1 to 512."`
	Cores     *int           `placeholder:"N" help:"Cores of a node."`
	Load      *float64       `placeholder:"PERCENT" help:"Offered load, in per cent of the site's capacity."`
	Session   *float64       `placeholder:"N" help:"Mean number of requests of a visit."`
	RTT       *time.Duration `name:"rtt" placeholder:"TIME" help:"Round trip between clients and nodes."`
	Addresses *int           `placeholder:"N" help:"Addresses in an answer of the DNS, 1 to 8."`
	DNSHelps  bool           `name:"dns-helps" help:"The DNS leaves overloaded nodes out of its answers."`
	Relay     bool           `help:"At bursts, a node lets a peer do a single request."`
	Pinned    *float64       `placeholder:"SHARE" help:"Share of the visits that enter a stateful path, 0 to 1."`

	Light    *float64          `placeholder:"PERCENT" help:"First level L1 of the rule."`
	Margin   *float64          `placeholder:"POINTS" help:"Second level L2 of the rule."`
	Below    *float64          `placeholder:"PERCENT" help:"Level of rule below, up to which a peer is given work."`
	Choice   *balancing.Choice `placeholder:"CHOICE" help:"Target of the damped rule: headroom or least."`
	Cooldown *time.Duration    `placeholder:"TIME" help:"For how long a redirected client is left alone; 0 for the letter of the patent."`
	Period   *time.Duration    `placeholder:"TIME" help:"Between two reports of a node."`
	Loss     *float64          `placeholder:"SHARE" help:"Share of the reports that are lost, 0 to 1."`
	Tau      *time.Duration    `placeholder:"TIME" help:"Time constant of the load measure."`
	Measure  *sim.Measure      `placeholder:"MEASURE" help:"What a node calls its load: pressure, utilisation or requests."`

	Seed    *uint64   `placeholder:"N" help:"Of the random numbers: the same seed gives the same run."`
	Seconds *float64  `placeholder:"N" help:"How long is measured."`
	Sweep   []float64 `placeholder:"LOADS" help:"Offered loads to try one after the other, as 30,50,70,90."`
	SVG     string    `name:"svg" type:"path" placeholder:"FILE" help:"Draw the load of the nodes over time, or with --sweep the p99 against the load."`
	JSON    bool      `name:"json" help:"Print the results as JSON."`
}

func (simCmd) Help() string {
	return `Simulates a site in virtual time, with the rule that the nodes ship, and compares it with
other ways to balance. Nothing is opened or sent.

Scenarios: ` + strings.Join(sim.ScenarioNames(), ", ") + `.

Rules: damped, patent, below, rotate, two-choices (redirects by the nodes); dns (round
robin, nothing else), split (every visit to a random node), proxy and proxy-two (a central
proxy: least connections, better of two), ideal (knows all, costs nothing). Behind it may
stand what helps: +dns (four addresses in an answer, none of an overloaded node),
+relay, +h3.

Columns: response times are the clients'; regretted are redirects whose target was as
loaded as the sender when the client came; bounced, those back to a node that had sent the
client away; over is the share of seconds with more than two requests per core.

Examples:
  peerage sim
  peerage sim --scenario oneshot --rule ideal --rule damped --rule damped+dns+relay
  peerage sim --nodes 4 --load 90 --svg load.svg
  peerage sim --sweep 30,50,70,80,90,95 --seconds 20 --svg sweep.svg`
}

func (c simCmd) Run(ctx context.Context, s *streams) error {
	scenario, err := c.scenario()
	if err != nil {
		return wrongUse{err}
	}
	methods := c.Rule
	if len(methods) == 0 {
		methods = []string{"ideal", "split", "dns", "patent", "damped", "damped+dns", "damped+dns+relay"}
	}
	loads := c.Sweep
	slices.Sort(loads)
	if len(loads) == 0 {
		loads = []float64{scenario.Load}
	}
	var all []sim.Scenario
	for _, load := range loads {
		for _, m := range methods {
			one := scenario
			one.Load = load
			if err := one.SetMethod(m); err != nil {
				return wrongUse{err}
			}
			if err := one.Validate(); err != nil {
				return wrongUse{err}
			}
			all = append(all, one)
		}
	}
	results, err := simulate(ctx, s.err, all)
	if err != nil {
		return err
	}
	var sweeps []sim.Sweep
	for i, load := range loads {
		sweeps = append(sweeps, sim.Sweep{Load: load, Rows: sim.Rows(methods, results[i*len(methods):(i+1)*len(methods)])})
	}
	if c.SVG != "" {
		if err := c.draw(sweeps); err != nil {
			return err
		}
	}
	if c.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(sweeps)
	}
	for i, sw := range sweeps {
		if i > 0 {
			fmt.Fprintln(s.out)
		}
		fmt.Fprintf(s.out, "%s, %g s measured\n\n", sw.Rows[0].Scenario, scenario.Measured.Seconds())
		if err := sim.Table(s.out, sw.Rows); err != nil {
			return err
		}
	}
	return nil
}

// scenario returns the named scenario with what the flags change.
func (c simCmd) scenario() (sim.Scenario, error) {
	s, err := sim.Named(c.Scenario)
	if err != nil {
		return s, fmt.Errorf("--scenario: %w", err)
	}
	if c.Nodes != nil {
		s.SetNodes(*c.Nodes)
	}
	set(&s.Cores, c.Cores)
	set(&s.Load, c.Load)
	set(&s.Session, c.Session)
	set(&s.RTT, c.RTT)
	set(&s.Addresses, c.Addresses)
	s.DNSHelps = s.DNSHelps || c.DNSHelps
	s.Relay = s.Relay || c.Relay
	set(&s.Pinned, c.Pinned)
	if c.Light != nil {
		s.Policy.Light = balancing.Load(*c.Light)
	}
	if c.Margin != nil {
		s.Policy.Margin = balancing.Load(*c.Margin)
	}
	if c.Below != nil {
		s.Policy.Below = balancing.Load(*c.Below)
	}
	set(&s.Policy.Choice, c.Choice)
	set(&s.Cooldown, c.Cooldown)
	set(&s.Period, c.Period)
	set(&s.Loss, c.Loss)
	set(&s.Tau, c.Tau)
	set(&s.Measure, c.Measure)
	set(&s.Seed, c.Seed)
	if c.Seconds != nil {
		s.Measured = time.Duration(*c.Seconds * float64(time.Second))
	}
	return s, nil
}

func set[T any](field, flag *T) {
	if flag != nil {
		*field = *flag
	}
}

// simulate runs all scenarios, several at a time, and says on progress what is done if it
// takes long.
func simulate(ctx context.Context, progress io.Writer, all []sim.Scenario) ([]*sim.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make([]*sim.Result, len(all))
	places := make(chan struct{}, runtime.GOMAXPROCS(0))
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards done and progress
		done    int
	)
	began := time.Now()
	for i := range all {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			r, err := sim.Run(ctx, all[i], nil)
			if err != nil {
				cancel(err)
				return
			}
			results[i] = r
			mu.Lock()
			defer mu.Unlock()
			if done++; time.Since(began) > 2*time.Second && done < len(all) {
				fmt.Fprintf(progress, "peerage: %d of %d runs are done\n", done, len(all))
			}
		})
	}
	running.Wait()
	return results, context.Cause(ctx)
}

// draw writes the chart that suits the results.
func (c simCmd) draw(sweeps []sim.Sweep) error {
	f, err := os.Create(c.SVG)
	if err != nil {
		return err
	}
	if len(sweeps) > 1 {
		err = sim.SweepChart(f, sweeps)
	} else {
		err = sim.LoadChart(f, sweeps[0].Rows)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("draw %s: %w", c.SVG, err)
	}
	return nil
}
