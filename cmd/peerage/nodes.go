package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"peerage/appliance/membership"
	"peerage/appliance/node"
	"peerage/appliance/setup"
	"peerage/appliance/site"
	"peerage/balancing"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a token with which one node can join the site."`
	List   tokenListCmd   `cmd:"" help:"List the tokens, and what became of them."`
	Revoke tokenRevokeCmd `cmd:"" help:"Make a token worthless."`
}

type tokenCreateCmd struct {
	at
	Name balancing.NodeID `placeholder:"NODE" help:"The token is for a node of that name alone. Default: any that is free."`
	Life time.Duration    `default:"1h" help:"How long it is good for; at most 168h."`
	JSON bool             `name:"json" help:"Print as JSON."`
}

func (tokenCreateCmd) Help() string {
	return `The token is shown once. Whoever has it can join the site, and then knows all its secrets: give
it to the new node over a channel that you trust. It is good for one node, and only at the
node that made it.

Examples:
  peerage token create
  peerage token create --name n3 --life 10m`
}

func (c tokenCreateCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	text, err := client.CreateToken(ctx, node.NewToken{Name: c.Name, Life: c.Life, User: userName()})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, map[string]string{"token": text})
	}
	fmt.Fprintf(s.out, "%s\n", text)
	name := ""
	if c.Name == "" {
		name = " --name NODE"
	}
	fmt.Fprintf(s.err, "Good for one node, for %s. On the new node:\n  peerage join --token TOKEN%s --vip ADDR\n", brief(c.Life), name)
	return nil
}

type tokenListCmd struct {
	at
	JSON bool `name:"json" help:"Print as JSON."`
}

func (c tokenListCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	all, err := client.Tokens(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, all)
	}
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TOKEN\tMADE BY\tAT\tFOR\tSTATE\tUNTIL")
	for _, k := range all {
		state := string(k.State)
		if k.Node != "" {
			state += " by " + string(k.Node)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, cmp.Or(k.User, "-"), k.Issuer, cmp.Or(string(k.Name), "any"), state, k.Expires.Local().Format(time.DateTime))
	}
	return t.Flush()
}

type tokenRevokeCmd struct {
	at
	ID string `arg:"" help:"As 'peerage token list' has it."`
}

func (c tokenRevokeCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	if err := client.RevokeToken(ctx, node.TokenReference{ID: c.ID, User: userName()}); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "It opens nothing any more.")
	return nil
}

type joinCmd struct {
	At        string           `arg:"" name:"address" optional:"" help:"Address and port of the node that made the token. Default: as the token has it."`
	Token     string           `required:"" placeholder:"TOKEN" help:"As 'peerage token create' has printed it, or '-' to read it from standard input."`
	Name      balancing.NodeID `placeholder:"NODE" help:"Name of this node. Default: the one that the token is for."`
	VIP       []netip.Addr     `name:"vip" placeholder:"ADDR" help:"Virtual IP of this node: a free address of the interface's network. Repeat it for more."`
	Interface string           `placeholder:"NAME" help:"Network interface that clients come in on. Default: that of --address, else that of the default route."`
	Address   netip.Addr       `name:"host-address" placeholder:"ADDR" help:"Host address of this node there. Default: the first one."`
	Internal  string           `placeholder:"NAME" help:"Network interface of the internal network, if it is another."`
	IAddress  netip.Addr       `name:"internal-address" placeholder:"ADDR" help:"Host address of this node there. Default: the first one."`
	Capacity  float64          `default:"1" help:"Size of the node relative to the others."`
	Config    string           `type:"path" default:"/etc/peerage/node.yaml" help:"The node file to write."`
	DataDir   string           `type:"path" default:"/var/lib/peerage" help:"Directory of what the node writes."`
}

func (joinCmd) Help() string {
	return `Asks the node that made the token to let this one in. It adds this node to the site document
and hands over what a node needs: document, site key and local CA. They are written here, and
nothing is overwritten. Start the node with 'peerage run' afterwards; it takes its VIPs when
it knows all that its peers know.

Directories that routes serve files from are not copied: bring them yourself.

Examples:
  peerage join --token pgj1.... --vip 192.0.2.12
  peerage join 192.0.2.1:7948 --token - --name n2 < token.txt`
}

func (c joinCmd) Run(ctx context.Context, s *streams) error {
	token := c.Token
	if token == "-" {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, 8<<10))
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(b))
	}
	t, err := membership.ParseToken(token)
	if err != nil {
		return wrongUse{err}
	}
	if c.Name == "" && t.Name == "" {
		return wrongUse{errors.New("the token is for no particular node: say with --name how this one is to be called")}
	}
	place, err := setup.FindPlace(setup.Place{Interface: c.Interface, Address: c.Address}, c.VIP)
	if err != nil {
		return wrongUse{fmt.Errorf("%w; --interface and --host-address say where clients come in", err)}
	}
	var inner setup.Place
	if c.Internal != "" || c.IAddress.IsValid() {
		if inner, err = setup.FindPlace(setup.Place{Interface: c.Internal, Address: c.IAddress}, c.VIP); err != nil {
			return wrongUse{fmt.Errorf("%w; --internal and --internal-address say where the internal network is", err)}
		}
	}
	n := setup.Joined{Place: place, Inner: inner, NodePath: c.Config, DataDir: c.DataDir}
	// Before the token is used up.
	if err := n.Free(t.Fingerprint); err != nil {
		return fmt.Errorf("%w\nnothing was changed; name other places with --config and --data-dir, or remove what is left of an earlier node", err)
	}
	fmt.Fprintln(s.err, "asking to be let in ...")
	a, err := membership.Join(ctx, c.At, token, membership.Want{
		Name: c.Name, Address: place.Address, Internal: inner.Address, VIPs: c.VIP, Capacity: c.Capacity, Version: node.Version(),
	})
	if err != nil {
		return err
	}
	f, err := n.Files(a)
	if err == nil {
		err = setup.Write(f)
	}
	if err != nil {
		return fmt.Errorf("%w\nthe site has %s now, and this machine does not: on another node, run 'peerage node remove %[2]s' before you try again", err, a.Name)
	}
	dir := ""
	if c.DataDir != usualData {
		dir = " --dir " + shellWord(c.DataDir)
	}
	fmt.Fprintf(s.out, "%s is a node of the site %s.\n", a.Name, a.Site)
	if err := tellMissing(s.out, a.Document); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "\nNext:\n  peerage run%s\n  peerage status%s\n", configFlag(c.Config), dir)
	return err
}

// tellMissing names the directories that a node needs to serve, and that are not here.
func tellMissing(w io.Writer, document string) error {
	doc, err := site.ParseDocument("site.yaml", []byte(document))
	if err != nil {
		return err
	}
	var missing []string
	for i := range doc.Routes {
		st := doc.Routes[i].Static
		if st == nil || slices.Contains(missing, st.Dir) {
			continue
		}
		if _, err := os.Stat(st.Dir); err != nil {
			missing = append(missing, st.Dir)
		}
	}
	if len(missing) > 0 {
		_, err = fmt.Fprintf(w, "\nBefore you start it, bring the files that the site serves:\n  %s\n", strings.Join(missing, "\n  "))
	}
	return err
}

type nodeCmd struct {
	Remove nodeRemoveCmd `cmd:"" help:"Take a node out of the site, dead or alive, and replace the site key."`
	Rename nodeRenameCmd `cmd:"" help:"Give a node another name."`

	Drain   nodeDrainCmd   `cmd:"" aliases:"maintenance" help:"Have a node take no new work, and give up its virtual IPs."`
	Undrain nodeUndrainCmd `cmd:"" help:"Let a node work again."`
}

type nodeRemoveCmd struct {
	at
	Name balancing.NodeID `arg:"" help:"The node."`
	JSON bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (nodeRemoveCmd) Help() string {
	return `The node goes out of the site document, its peers do not talk to it any more, and the site gets
a new key, which the node does not learn. If it runs, it ends. Its VIPs are gone with it: give
them to another node first if clients use them. A node takes itself out with 'peerage leave'.`
}

func (c nodeRemoveCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	st, err := client.RemoveNode(ctx, node.NodeChange{Name: c.Name, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, st, err, func() { fmt.Fprintf(s.out, "%s is out of the site.\n", c.Name) })
}

type nodeRenameCmd struct {
	at
	Name balancing.NodeID `arg:"" help:"The node."`
	To   balancing.NodeID `arg:"" help:"Its new name."`
	JSON bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (nodeCmd) Help() string { return "'peerage status' lists the nodes, 'peerage join' adds one." }

func (nodeRenameCmd) Help() string {
	return `The node leaves for a moment, as when it is stopped in order, and comes back under the new name.
Clients that are pinned to it are pinned anew.`
}

func (c nodeRenameCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	r, err := client.RenameNode(ctx, node.NodeChange{Name: c.Name, To: c.To, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, r, err, func() { fmt.Fprintf(s.out, "%s is called %s.\n", c.Name, c.To) })
}

type leaveCmd struct {
	at
	JSON bool `name:"json" help:"Print each step as one line of JSON."`
}

func (leaveCmd) Help() string {
	return `A peer takes this node out of the site document and replaces the site key; this node then ends in
order, with exit status 3. The command returns when the document does not have it any more, or
says why it still has. To stop it for a while only, end 'peerage run' (SIGTERM).`
}

func (c leaveCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	err = client.Leave(ctx, node.NodeChange{User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, struct{}{}, err, func() { fmt.Fprintln(s.out, "The node is out of its site, and ends.") })
}

type keyCmd struct {
	Rotate keyRotateCmd `cmd:"" help:"Replace the site key, without the loss of a request, a pin or a session."`
	Status keyStatusCmd `cmd:"" help:"Show how the site key stands."`
}

type keyRotateCmd struct {
	at
	Force bool `help:"Do not wait for nodes that are off-line: they fetch the new key when they are back, or have to join anew."`
	JSON  bool `name:"json" help:"Print each step as one line of JSON."`
}

func (keyRotateCmd) Help() string {
	return `The new key is handed to every node, sealed to it; then all seal with it; then the old one opens
nothing any more but the pins of clients, until those are over. Nodes that are off-line keep
the old key good until they are back.`
}

func (c keyRotateCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	st, err := client.Rotate(ctx, node.Rotate{Force: c.Force}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, st, err, func() { printKeys(s.out, &st) })
}

type keyStatusCmd struct {
	at
	JSON bool `name:"json" help:"Print as JSON."`
}

func (c keyStatusCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	st, err := client.Keys(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, st)
	}
	printKeys(s.out, &st)
	return nil
}

func printKeys(w io.Writer, st *membership.Status) {
	fmt.Fprintf(w, "site key %s, generation %d: %s\n", st.Key, st.Generation, st.Phase)
	if len(st.Waiting) > 0 {
		fmt.Fprintf(w, "waiting for %s\n", join(st.Waiting))
	}
	if len(st.Absent) > 0 {
		fmt.Fprintf(w, "off-line, and without it: %s\n", join(st.Absent))
	}
	if len(st.Departed) > 0 {
		fmt.Fprintf(w, "known to %s, out of the site now: it is replaced within a minute or so\n", join(st.Departed))
	}
	for _, p := range st.Past {
		fmt.Fprintf(w, "key %s opens pins until %s\n", p.Key, p.Until.Local().Format(time.DateTime))
	}
}

func join[T ~string](all []T) string {
	var b []string
	for _, x := range all {
		b = append(b, string(x))
	}
	return strings.Join(b, ", ")
}

type backupCmd struct {
	File       string `arg:"" type:"path" help:"The file to write."`
	Config     string `type:"path" default:"/etc/peerage/node.yaml" help:"The node file."`
	Passphrase string `type:"existingfile" placeholder:"FILE" help:"File with a passphrase that seals the backup."`
}

func (backupCmd) Help() string {
	return `Writes all that this node is into one file, so that other hardware can take its place. It holds
the secrets of the site: seal it with --passphrase, or keep it as safe as the node. The node
may run meanwhile. Directories that routes serve files from, and logs, are not in it.

Examples:
  peerage backup n2.backup --passphrase pass.txt
  peerage restore n2.backup --passphrase pass.txt`
}

func (c backupCmd) Run(ctx context.Context, s *streams) error {
	pass, err := readPassphrase(c.Passphrase)
	if err != nil {
		return err
	}
	o := setup.BackupOptions{NodePath: c.Config, Passphrase: pass}
	nf, err := site.LoadNode(c.Config)
	if err != nil {
		return err
	}
	client := node.Client(nf.DataDir)
	if _, err := client.Settings(ctx); err == nil {
		o.DB = func(w io.Writer) error { return client.Database(ctx, w) }
	}
	if err := setup.Backup(c.File, o); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%s holds the node, and its secrets.\n", c.File)
	return nil
}

type restoreCmd struct {
	File       string `arg:"" type:"existingfile" help:"The backup."`
	Config     string `type:"path" default:"/etc/peerage/node.yaml" help:"The node file to write. The data directory is as in the backup."`
	Passphrase string `type:"existingfile" placeholder:"FILE" help:"File with the passphrase, if it was sealed with one."`
	Force      bool   `help:"Overwrite the node that is there."`
}

func (restoreCmd) Help() string {
	return `Makes the node again, on this machine or on other hardware. Stop the old one first: there must never
be two of it. However old the backup is, the node learns what its peers know before it
serves, and brings nothing back that was deleted. Directories that routes serve files from
are not in a backup: bring them yourself.

Examples:
  peerage restore n2.backup --passphrase pass.txt`
}

func (c restoreCmd) Run(s *streams) error {
	pass, err := readPassphrase(c.Passphrase)
	if err != nil {
		return err
	}
	err = setup.Restore(c.File, setup.RestoreOptions{NodePath: c.Config, Passphrase: pass, Force: c.Force})
	switch {
	case errors.Is(err, setup.ErrExists):
		return fmt.Errorf("%w; nothing was changed; --force overwrites it", err)
	case errors.Is(err, setup.ErrPassphrase) && pass == "":
		return fmt.Errorf("%s is sealed with a passphrase: name the file that has it with --passphrase", c.File)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "The node is there again. Start it:\n  peerage run%s\n", configFlag(c.Config))
	return nil
}

func readPassphrase(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	pass := strings.TrimRight(string(b), "\r\n")
	if pass == "" {
		return "", fmt.Errorf("%s: the passphrase is empty", file)
	}
	return pass, nil
}
