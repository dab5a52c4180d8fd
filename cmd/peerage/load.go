package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"peerage/appliance/demo"
	"peerage/appliance/load"
)

type loadCmd struct {
	URL string `arg:"" help:"What to ask for, as https://www.peerage.test:8443/."`

	Rate     float64       `placeholder:"N" help:"Requests a second, on average. Default: 50."`
	Sessions float64       `placeholder:"N" help:"Visitors a second, in place of --rate."`
	Session  float64       `default:"10" placeholder:"N" help:"Requests of a visitor, on average."`
	Fixed    bool          `help:"All visitors make as many requests; else the number is geometric."`
	Think    time.Duration `default:"1s" help:"Pause of a visitor after an answer, on average."`
	For      time.Duration `default:"10s" help:"How long is measured, at most 10m."`
	Warm     time.Duration `help:"For how long visitors come before that."`
	Clients  int           `default:"1000" help:"Visitors at a time; who comes when there are so many is turned away."`
	HTTP     int           `name:"http" default:"2" enum:"1,2,3" help:"HTTP version, 1, 2 or 3."`

	DNS  string   `name:"dns" placeholder:"ADDR:PORT" help:"DNS server for all names, such as the site's own. Default: the system's."`
	Skew string   `xor:"entry" placeholder:"zipf=S" help:"Address k of the site gets a share of 1/k^S of the visitors, in place of what the DNS gives them."`
	To   []string `xor:"entry" placeholder:"ADDR=WEIGHT" help:"Addresses that visitors begin at, and their shares, in place of the DNS."`
	CA   string   `name:"ca" type:"path" placeholder:"FILE" help:"Certificates to trust (PEM), in place of the system's."`

	Seed *uint64 `placeholder:"N" help:"Of the visitors' times and wishes. Default: a random one, which is told."`
	JSON bool    `name:"json" help:"Print the result as JSON."`
}

func (loadCmd) Help() string {
	return `Sends visitors to a site of the lab: they come at random times, each with cookies and TLS
connections of its own, make some requests with pauses in between, and follow redirects to
node names as a browser does. Only loopback and private addresses are ever connected to.

A running demo is known: CA and DNS server need not be given for it. A site fills slowly:
the rate is reached when the first visitors have made all their requests, so let --warm be
some times what a visit takes. Progress goes to standard error; Ctrl-C ends early and
prints what there is.

Examples, with 'peerage demo' in another terminal:
  peerage load https://www.peerage.test:8443/
  peerage load https://www.peerage.test:8443/banking/ --rate 200 --session 30 --http 3
  peerage load 'https://www.peerage.test:8443/work?for=40ms' --skew zipf=1.2 --rate 240 --for 30s
  peerage load 'https://www.peerage.test:8443/slow?for=500ms' --to 127.0.0.21=6,127.0.0.22=1 --json`
}

func (c loadCmd) Run(ctx context.Context, s *streams) error {
	config, err := c.config()
	if err == nil {
		err = config.Check()
	}
	if err != nil {
		return wrongUse{err}
	}
	config.Progress = func(p load.Progress) { fmt.Fprintln(s.err, p) }
	r, err := load.Run(ctx, config)
	if err != nil {
		return err
	}
	if c.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = r.Table(s.out)
	}
	if err == nil && r.Requests == 0 && r.Failed() > 0 {
		err = errors.New("no request was answered")
	}
	return err
}

func (c loadCmd) config() (load.Config, error) {
	config := load.Config{
		Rate: c.Rate, Session: c.Session, Fixed: c.Fixed, Think: c.Think,
		HTTP: c.HTTP, Warm: c.Warm, For: c.For, Clients: c.Clients, Seed: rand.Uint64N(1 << 32),
	}
	set(&config.Seed, c.Seed)
	switch {
	case c.Rate != 0 && c.Sessions != 0:
		return config, errors.New("--rate and --sessions say the same: give one of them")
	case c.Sessions != 0:
		config.Rate = c.Sessions * c.Session
	case c.Rate == 0:
		config.Rate = 50
	}
	var err error
	if config.URL, err = url.Parse(c.URL); err != nil {
		return config, err
	}
	if c.Skew != "" {
		if config.Entry, err = load.ParseSkew(c.Skew); err != nil {
			return config, fmt.Errorf("--skew %w", err)
		}
	}
	for _, to := range c.To {
		share, err := load.ParseShare(to)
		if err != nil {
			return config, fmt.Errorf("--to %w", err)
		}
		config.Entry.To = append(config.Entry.To, share)
	}
	if c.DNS != "" {
		if config.DNS, err = netip.ParseAddrPort(c.DNS); err != nil {
			return config, fmt.Errorf("--dns %s: want ADDRESS:PORT", c.DNS)
		}
	}
	ca := c.CA
	if dir := demo.Latest(); dir != "" && config.URL.Hostname() == demo.Host {
		if ca == "" {
			ca = filepath.Join(dir, "ca.pem")
		}
		if c.DNS == "" {
			config.DNS = netip.MustParseAddrPort("127.0.0.11:8053")
		}
	}
	if ca == "" {
		return config, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return config, fmt.Errorf("--ca: %w", err)
	}
	config.Roots = x509.NewCertPool()
	if !config.Roots.AppendCertsFromPEM(pem) {
		return config, fmt.Errorf("--ca %s: there is no certificate in it", ca)
	}
	return config, nil
}
