package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"text/tabwriter"
	"time"

	"peerage/appliance/node"
	"peerage/balancing"
)

type vipCmd struct {
	List   vipListCmd   `cmd:"" help:"List the virtual IPs: where they belong, who holds them, and why."`
	Move   vipMoveCmd   `cmd:"" help:"Have another node hold a virtual IP."`
	Return vipReturnCmd `cmd:"" help:"Let a virtual IP go back to where it belongs."`
}

type vipListCmd struct {
	at
	JSON bool `name:"json" help:"Print as JSON."`
}

func (c vipListCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	all, err := client.VIPs(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, all)
	}
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VIP\tHOME\tHELD BY\tWHY\tMOVED")
	for _, v := range all {
		why := v.Reason.String()
		if v.Leaving {
			why += ", goes to " + string(v.Plan) + " when clients have their answers"
		}
		if v.Amiss != "" {
			why += "; " + v.Amiss
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.Address, v.Home, cmp.Or(string(v.Holder), "nobody"), why, orderText(v.Moved))
	}
	return t.Flush()
}

// orderText says who has given an order, and until when it counts.
func orderText(o *node.Order) string {
	if o == nil {
		return "-"
	}
	text := "to " + string(o.Node)
	if o.By != "" {
		text += " by " + o.By
	}
	if !o.Until.IsZero() {
		text += " until " + o.Until.Local().Format(time.DateTime)
	}
	if o.Reason != "" {
		text += ": " + o.Reason
	}
	return text
}

// order are the flags of an order.
type order struct {
	For    time.Duration `placeholder:"TIME" help:"The order ends by itself after this time, such as 2h. Default: when it is taken back."`
	Reason string        `placeholder:"TEXT" help:"Why; other operators see it."`
}

type vipMoveCmd struct {
	at
	order
	VIP  netip.Addr       `arg:"" help:"The virtual IP."`
	To   balancing.NodeID `arg:"" help:"The node that is to hold it."`
	JSON bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (vipMoveCmd) Help() string {
	return `The holder tells its clients there to go, answers what they have asked already, and gives the
address up; the other node announces it in the same instant. The order counts on all nodes, and
as long as the node serves: if it does not, the VIP goes where it would go without the order.

Examples:
  peerage vip move 192.0.2.11 n2
  peerage vip move 192.0.2.11 n2 --for 2h --reason "new switch at n1"
  peerage vip return 192.0.2.11`
}

func (c vipMoveCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	err = client.MoveVIP(ctx, node.MoveVIP{VIP: c.VIP, To: c.To, For: c.For, Reason: c.Reason, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, struct{}{}, err, func() { fmt.Fprintf(s.out, "%s is to be at %s.\n", c.VIP, c.To) })
}

type vipReturnCmd struct {
	at
	VIP  netip.Addr `arg:"" help:"The virtual IP."`
	JSON bool       `name:"json" help:"Print each step as one line of JSON."`
}

func (c vipReturnCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	err = client.MoveVIP(ctx, node.MoveVIP{VIP: c.VIP, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, struct{}{}, err, func() { fmt.Fprintf(s.out, "%s is where it belongs.\n", c.VIP) })
}

type nodeDrainCmd struct {
	at
	order
	Name balancing.NodeID `arg:"" help:"The node."`
	JSON bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (nodeDrainCmd) Help() string {
	return `The node takes no new work: its virtual IPs go to its peers when its clients have their answers,
and DNS names it no more. It goes on running, also after a restart, until 'peerage node
undrain'. When the command is done the node can be stopped, or worked on: that is maintenance.

Examples:
  peerage node drain n2 --reason "memory upgrade"
  peerage node drain n2 --for 1h
  peerage node undrain n2`
}

func (c nodeDrainCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	err = client.DrainNode(ctx, node.DrainNode{Name: c.Name, For: c.For, Reason: c.Reason, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, struct{}{}, err, func() {
		fmt.Fprintf(s.out, "%s is drained. 'peerage node undrain %[1]s' lets it work again.\n", c.Name)
	})
}

type nodeUndrainCmd struct {
	at
	Name balancing.NodeID `arg:"" help:"The node."`
	JSON bool             `name:"json" help:"Print each step as one line of JSON."`
}

func (c nodeUndrainCmd) Run(ctx context.Context, s *streams) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	err = client.DrainNode(ctx, node.DrainNode{Name: c.Name, End: true, User: userName()}, showStep(s.out, c.JSON))
	return finish(s.out, c.JSON, struct{}{}, err, func() { fmt.Fprintf(s.out, "%s works again.\n", c.Name) })
}
