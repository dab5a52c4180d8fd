package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"peerage/appliance/node"
	"peerage/appliance/revision"
	"peerage/appliance/site"
)

type siteCmd struct {
	Check    siteCheckCmd    `cmd:"" help:"Check a site document, and say all that is wrong with it."`
	Show     siteShowCmd     `cmd:"" help:"Print the site document: the one in force, or an earlier revision."`
	Schema   siteSchemaCmd   `cmd:"" help:"Print the JSON schema of the site document: every key explained."`
	Diff     siteDiffCmd     `cmd:"" help:"Show what a file, or a revision, would change, and what that touches."`
	Apply    siteApplyCmd    `cmd:"" help:"Change the site document on all nodes: checked by all, tried on one, then everywhere."`
	Confirm  siteConfirmCmd  `cmd:"" help:"Keep a change that would be rolled back by itself."`
	Rollback siteRollbackCmd `cmd:"" help:"Bring an earlier revision back."`
	History  siteHistoryCmd  `cmd:"" help:"List the revisions of the site document."`
	Dismiss  siteDismissCmd  `cmd:"" help:"Take a revision off the list of conflicts."`
}

type siteCheckCmd struct {
	File       string `arg:"" type:"existingfile" help:"The site document."`
	Node       string `type:"existingfile" help:"Node file whose public interface must carry the VIPs. Default: any interface of this machine."`
	AnyNetwork bool   `help:"The file is for another machine: do not compare the VIPs with the interfaces here."`
}

func (siteCheckCmd) Help() string {
	return `Each problem is one line: file, line, column, the key, what is wrong, what would be right.

Examples:
  peerage site check site.yaml
  peerage site check --any-network site.yaml`
}

func (c siteCheckCmd) Run(s *streams) error {
	doc, err := site.LoadDocument(c.File)
	if err != nil {
		return err
	}
	if !c.AnyNetwork {
		var interfaces []string
		if c.Node != "" {
			nf, err := site.LoadNode(c.Node)
			if err != nil {
				return err
			}
			interfaces = []string{nf.Interfaces.Public}
		}
		nets, err := site.LocalNetworks(interfaces...)
		if err != nil {
			return err
		}
		if problems := doc.CheckInterfaces(nets); len(problems) > 0 {
			return problems
		}
	}
	fmt.Fprintf(s.out, "%s: good: site %s, %d nodes, %d routes\n", c.File, doc.Site, len(doc.Nodes), len(doc.Routes))
	return nil
}

// at names the node that is asked.
type at struct {
	Dir string `type:"path" help:"Data directory of a node, or directory of a demo. Default: /var/lib/peerage, else the running demo."`
}

func (a at) client(ctx context.Context) (node.Client, error) {
	dir, err := findNode(ctx, a.Dir)
	return node.Client(dir), err
}

// userName is who types the command.
func userName() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "operator"
}

// baseLine is how 'site show' says which revision it prints, for 'site apply' to read.
const baseLine = "# revision "

var baseOf = regexp.MustCompile(`^# revision (\d+) ([0-9a-f]{32})\n`)

// cutBase takes the first line off a document that 'site show' has printed, and returns
// the revision that it names, or "".
func cutBase(text string) (base, rest string) {
	m := baseOf.FindStringSubmatch(text)
	if m == nil {
		return "", text
	}
	return m[2], text[len(m[0]):]
}

type siteShowCmd struct {
	at
	Revision string `arg:"" optional:"" help:"Number or id of a revision. Default: the one in force."`
	Config   string `type:"path" help:"Node file of a node that does not run: print the document that it would start with."`
	Defaults bool   `help:"Fill in the defaults, and leave the comments out."`
	JSON     bool   `name:"json" help:"Print the revision as JSON."`
}

func (siteShowCmd) Help() string {
	return `The first line names the revision. Leave it there when you edit the text: 'site apply' then
notices if somebody else has changed the document meanwhile.

Examples:
  peerage site show > site.yaml
  peerage site show 12
  peerage site show --defaults`
}

func (c siteShowCmd) Run(ctx context.Context, s *streams) error {
	if c.Config != "" {
		return c.showFile(s.out)
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	r, err := client.Revision(ctx, c.Revision)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, r)
	}
	text := r.Text
	if c.Defaults {
		doc, err := site.ParseDocument("site.yaml", []byte(r.Text))
		if err != nil {
			return err
		}
		text = doc.String()
	}
	_, err = fmt.Fprintf(s.out, "%s%d %s\n%s", baseLine, r.Number, r.ID, text)
	return err
}

func (c siteShowCmd) showFile(w io.Writer) error {
	nf, err := site.LoadNode(c.Config)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w\nname the node file with --config; 'peerage init' makes a first one", err)
	}
	if err != nil {
		return err
	}
	doc, err := site.LoadDocument(nf.SiteFile)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(w, doc)
	return err
}

func printJSON(w io.Writer, x any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(x)
}

type siteSchemaCmd struct{}

func (siteSchemaCmd) Run(s *streams) error {
	schema, err := site.Schema()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s\n", schema)
	return err
}

type siteHistoryCmd struct {
	at
	Limit int  `short:"n" default:"20" help:"How many, the newest first; 0 for all that are kept."`
	JSON  bool `name:"json" help:"Print as JSON."`
}

func (siteHistoryCmd) Help() string {
	return `At least the last 100 revisions are kept. A 'conflict' was put into force on one side of a
partition while the other side had another: compare it ('site diff ID'), put what you want
of it into the present document, and take it off the list with 'site dismiss ID'. The side
counts that has kept more changes; what was rolled back on one side undoes nothing that was
done on the other.`
}

func (c siteHistoryCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	all, err := client.History(ctx)
	if err != nil {
		return err
	}
	shown := all
	if c.Limit > 0 && len(all) > c.Limit {
		shown = all[:c.Limit]
	}
	if c.JSON {
		return printJSON(s.out, shown)
	}
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "REVISION\tID\tMADE\tBY\tSTATE\tCOMMENT")
	for _, e := range shown {
		made := "-"
		if !e.Made.IsZero() {
			made = e.Made.Local().Format(time.DateTime)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", e.Number, e.ID.Short(), made, e.Author, stateOf(&e), oneLine(e.Comment))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	printApart(s.out, all)
	return nil
}

// printApart says what can be done about conflicts: of several revisions on one side of a
// partition the last stands for all.
func printApart(w io.Writer, all []revision.Entry) {
	built := map[revision.ID]bool{}
	for _, e := range all {
		if e.State == revision.Apart {
			built[e.Parent] = true
		}
	}
	for _, e := range all {
		if e.State != revision.Apart || built[e.ID] {
			continue
		}
		id := e.ID.Short()
		fmt.Fprintf(w, "\nRevision %d (%s) by %s was made apart from the one in force:\n", e.Number, id, e.Author)
		fmt.Fprintf(w, "  peerage site diff %s      # what differs; put what you want of it into 'peerage site show'\n", id)
		fmt.Fprintf(w, "  peerage site rollback %s  # or bring it back as it is\n", id)
		fmt.Fprintf(w, "  peerage site dismiss %s   # or take it off this list\n", id)
	}
}

func stateOf(e *revision.Entry) string {
	state := string(e.State)
	switch {
	case !e.ConfirmBy.IsZero():
		state += " until " + e.ConfirmBy.Local().Format(time.TimeOnly)
	case e.State == revision.InForce: // the reason is that of the one that it has rolled back
	case strings.HasPrefix(e.Reason, "by "):
		state += " " + oneLine(e.Reason)
	case e.Reason != "":
		state += ": " + oneLine(e.Reason)
	}
	return state
}

// brief is a duration without the parts that are zero: 1h, 5m, 90s.
func brief(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// oneLine is a text as a table has room for it.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > 80 {
		text = string(r[:79]) + "…"
	}
	return text
}

type siteDismissCmd struct {
	at
	Revision string `arg:"" help:"Id of the revision."`
}

func (c siteDismissCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	if err := client.Dismiss(ctx, node.Reference{Revision: c.Revision, User: userName()}); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "It is no conflict any more, and stays in the history.")
	return nil
}
