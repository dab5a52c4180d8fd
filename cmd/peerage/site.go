package main

import (
	"errors"
	"fmt"
	"os"

	"peerage/appliance/site"
)

type siteCmd struct {
	Check  siteCheckCmd  `cmd:"" help:"Check a site document, and say all that is wrong with it."`
	Show   siteShowCmd   `cmd:"" help:"Print the site document of this node, defaults filled in."`
	Schema siteSchemaCmd `cmd:"" help:"Print the JSON schema of the site document: every key explained."`
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

type siteShowCmd struct {
	Config string `type:"path" default:"/etc/peerage/node.yaml" help:"The node file."`
}

func (c siteShowCmd) Run(s *streams) error {
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
	_, err = fmt.Fprint(s.out, doc)
	return err
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
