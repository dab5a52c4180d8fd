package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
)

type siteDiffCmd struct {
	at
	From string `arg:"" help:"A file, or the number or id of a revision."`
	To   string `arg:"" optional:"" help:"A second revision. Default: the one in force."`
	JSON bool   `name:"json" help:"Print as JSON."`
}

func (siteDiffCmd) Help() string {
	return `A file is compared with the revision that it was made from, and what applying it would
touch is listed below: listeners, open connections, VIPs, clients that are pinned.

Examples:
  peerage site diff site.yaml
  peerage site diff 11 12
  peerage site diff 11`
}

func (c siteDiffCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.From); err == nil && c.To == "" {
		a, _, err := readApply(c.From)
		if err != nil {
			return err
		}
		p, err := client.Plan(ctx, a)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(s.out, p)
		}
		printPlan(s.out, p)
		return nil
	}
	if !revisionRef.MatchString(c.From) {
		return wrongUse{fmt.Errorf("%s: there is no such file, and it is no number or id of a revision", c.From)}
	}
	diff, err := client.Diff(ctx, c.From, c.To)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, map[string]string{"diff": diff})
	}
	_, err = io.WriteString(s.out, diff)
	return err
}

// revisionRef is how revisions are named.
var revisionRef = regexp.MustCompile(`^(head|\d+|[0-9a-f]{8,32})$`)

// readApply reads and checks a site document that is to be applied.
func readApply(file string) (a node.Apply, from placement, err error) {
	in := io.Reader(os.Stdin)
	name := "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return a, from, err
		}
		defer f.Close()
		in, name = f, file
	}
	b, err := io.ReadAll(io.LimitReader(in, revision.MaxText+1<<10))
	if err != nil {
		return a, from, err
	}
	// Checked with its first line, so that the lines of the problems are those of the file.
	if _, err := site.ParseDocument(name, b); err != nil {
		return a, from, err
	}
	a.Base, a.Text = cutBase(string(b))
	a.User = userName()
	cut := strings.Count(string(b), "\n") - strings.Count(a.Text, "\n")
	return a, placement{name, cut}, nil
}

// placement says where a document that nodes look at has come from.
type placement struct {
	file string
	cut  int // lines at its beginning that were not sent
}

// placeOf is how a node names a place in the document.
var placeOf = regexp.MustCompile(`\bsite document:(\d+):(\d+)\b`)

// inFile returns an error of a node with the places as they are in the file.
func (p placement) inFile(err error) error {
	in := func(text, file string) string {
		return placeOf.ReplaceAllStringFunc(text, func(place string) string {
			m := placeOf.FindStringSubmatch(place)
			line, err := strconv.Atoi(m[1])
			if err != nil {
				return place
			}
			return fmt.Sprintf("%s:%d:%s", file, line+p.cut, m[2])
		})
	}
	e, ok := errors.AsType[*node.StepError](err)
	if !ok {
		return err
	}
	placed := *e
	placed.Text = in(e.Text, p.file)
	if e.Detail != nil {
		quoted, _ := json.Marshal(p.file) // no string is refused
		placed.Detail = json.RawMessage(in(string(e.Detail), string(quoted[1:len(quoted)-1])))
	}
	return &placed
}

func printPlan(w io.Writer, p *node.Plan) {
	if p.Diff == "" {
		fmt.Fprintf(w, "No difference to %s.\n", &p.Base)
		return
	}
	fmt.Fprintf(w, "%s\n", p.Diff)
	if len(p.Effects) == 0 {
		fmt.Fprintf(w, "Effects: %s.\n", site.NoEffect)
		return
	}
	fmt.Fprintln(w, "Effects:")
	for _, e := range p.Effects {
		fmt.Fprintf(w, "  %s: %s\n", e.Touches, e.Text)
	}
}

type siteApplyCmd struct {
	at
	File          string           `arg:"" help:"The site document, or '-' for standard input."`
	Comment       string           `short:"m" help:"What the change is for."`
	ConfirmWithin time.Duration    `placeholder:"TIME" help:"Roll back by itself unless 'peerage site confirm' comes within this time."`
	Base          string           `placeholder:"REVISION" help:"The revision that the file was made from. Default: the one in its first line, else the one in force."`
	Canary        balancing.NodeID `placeholder:"NODE" help:"The node that serves it first. Default: the one that is asked."`
	CanaryFor     time.Duration    `placeholder:"TIME" help:"How long that node must be well with it. Default: 300ms."`
	DryRun        bool             `help:"Only say what it would change and touch."`
	Yes           bool             `short:"y" help:"Do not ask when listeners or connections are touched."`
	JSON          bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (siteApplyCmd) Help() string {
	return `Every node that is on-line checks the document, and that it has room for it; one of them
serves it first; if that node stays well, all do. For 30 s, or until it is confirmed, the site
watches: if a node fails with it or turns sick, all nodes go back by themselves. Nodes that are
off-line catch up when they are back.

If somebody else has changed the document since you took your copy, nothing is changed, and
both differences are shown.

Examples:
  peerage site apply site.yaml -m "new shop host"
  peerage site apply site.yaml --confirm-within 5m
  peerage site apply site.yaml --dry-run`
}

func (c siteApplyCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	a, from, err := readApply(c.File)
	if err != nil {
		return err
	}
	a.Base = cmp.Or(c.Base, a.Base)
	a.Comment, a.ConfirmWithin, a.Canary, a.CanaryFor = c.Comment, c.ConfirmWithin, c.Canary, c.CanaryFor
	p, err := client.Plan(ctx, a)
	if err != nil {
		return err
	}
	switch {
	case c.JSON && c.DryRun:
		return printJSON(s.out, p)
	case !c.JSON:
		printPlan(s.out, p)
	}
	if c.DryRun {
		return nil
	}
	if !c.JSON && !c.Yes && len(p.Effects) > 0 && c.File != "-" && isTerminal(os.Stdin) {
		if !ask(s, "Apply it? [y/N] ") {
			return errors.New("nothing was changed")
		}
	}
	r, err := client.Apply(ctx, a, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, r, from.inFile(err), func() {
		fmt.Fprintf(s.out, "Revision %d is in force.\n", r.Number)
		if r.ConfirmWithin > 0 {
			fmt.Fprintf(s.out, "It is rolled back in %s unless you run 'peerage site confirm'.\n", brief(r.ConfirmWithin))
		}
	})
}

// isTerminal reports whether somebody sits in front of f.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func ask(s *streams, question string) bool {
	fmt.Fprint(s.out, question)
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes"
}

// showStep prints the steps of a lengthy work.
func showStep(w io.Writer, asJSON bool) func(node.Step) {
	return func(st node.Step) {
		if asJSON {
			json.NewEncoder(w).Encode(st)
			return
		}
		fmt.Fprintf(w, "  %s\n", st.Text)
	}
}

// finish prints the result of a lengthy work, or returns its error.
func finish(w io.Writer, asJSON bool, result any, err error, done func()) error {
	if asJSON {
		line := map[string]any{"result": result}
		if err != nil {
			line = map[string]any{"err": err.Error()}
			if e, ok := errors.AsType[*node.StepError](err); ok && e.Detail != nil {
				line["detail"] = e.Detail
			}
		}
		if e := json.NewEncoder(w).Encode(line); e != nil {
			return e
		}
	}
	if err == nil && !asJSON {
		done()
	}
	return err
}

type siteConfirmCmd struct {
	at
	Revision string `arg:"" optional:"" help:"Number or id of the revision. Default: the one in force."`
	JSON     bool   `name:"json" help:"Print as JSON."`
}

func (c siteConfirmCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	r, err := client.Confirm(ctx, node.Reference{Revision: c.Revision, User: userName()})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, r)
	}
	fmt.Fprintf(s.out, "Revision %d stays.\n", r.Number)
	return nil
}

type siteRollbackCmd struct {
	at
	Revision string `arg:"" optional:"" help:"Number or id of the revision to bring back. Default: the one before the one in force."`
	JSON     bool   `name:"json" help:"Print each step as one line of JSON."`
}

func (siteRollbackCmd) Help() string {
	return `The earlier text becomes a new revision, so that nothing is lost: it can be rolled back too.

Examples:
  peerage site rollback
  peerage site rollback 11`
}

func (c siteRollbackCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	r, err := client.Rollback(ctx, node.Reference{Revision: c.Revision, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, r, err, func() {
		fmt.Fprintf(s.out, "Revision %d is in force: %s.\n", r.Number, cmp.Or(r.Comment, "by "+r.Author))
	})
}
