package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/keys"
)

// What a guard goes by changes while it runs: its server, a member of the cluster, tells
// it. The guard looks at a change for itself, writes it down, follows it, and then says so;
// or it says why not, and nothing has changed.

// following is the site document and the site key that a guard goes by.
type following struct {
	lock sync.Mutex
	text string // of doc
	doc  *site.Document
	ring *keys.Ring
}

func (f *following) goBy(text string, doc *site.Document, ring *keys.Ring) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.text, f.doc, f.ring = text, doc, ring
}

func (f *following) document() *site.Document {
	f.lock.Lock()
	defer f.lock.Unlock()
	return f.doc
}

func (f *following) both() (string, *site.Document, *keys.Ring) {
	f.lock.Lock()
	defer f.lock.Unlock()
	return f.text, f.doc, f.ring
}

func (f *following) beginning() *beginning {
	text, _, ring := f.both()
	return &beginning{SiteKey: ring.Reveal(), Document: text}
}

// asked is a change, and the server that wants it.
type asked struct {
	change
	by *channel
}

// maxChanges is how many changes may wait; a server asks for one after another.
const maxChanges = 4

// Why a node ends by itself.
var (
	errRenamed = errors.New("the node has another name now")
	errRemoved = errors.New("the node was removed from the site")
)

// ask has a change made. It does not wait: the disk may be slow, and the health tokens
// must not be.
func (g *guard) ask(by *channel, c change) {
	select {
	case g.changes <- asked{c, by}:
	default:
		by.send(toServer{Took: &took{ID: c.ID, Err: "the guard has too much to do"}})
	}
}

// takeChanges makes changes until ctx ends.
func (g *guard) takeChanges(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-g.changes:
			g.makeChange(a)
		}
	}
}

// makeChange makes one, unless the server that wants it is gone: the next one begins with
// what counts now, and would not hear of it.
func (g *guard) makeChange(a asked) {
	g.changing.Lock()
	defer g.changing.Unlock()
	g.mu.Lock()
	present := g.server == a.by
	g.mu.Unlock()
	if !present {
		return
	}
	answer := &took{ID: a.ID}
	if err := g.take(a.change, a.late); err != nil {
		g.log.Warn("change refused", "err", err)
		answer.Err = err.Error()
	}
	if err := a.by.send(toServer{Took: answer}); err != nil {
		a.by.close() // it must not wait for what it will never hear; the next one begins with what counts
	}
}

var errLate = errors.New("the disk of the data directory is too slow: the change took too long, and was taken back")

// late reports whether the server does not wait for the change any more.
func (c *change) late() bool { return !c.Until.IsZero() && time.Now().After(c.Until) }

// take makes a change, unless it is late: before it is begun, or when the disk is done.
func (g *guard) take(c change, late func() bool) error {
	switch {
	case late():
		return errLate
	case c.Name != "":
		if err := g.rename(c.Name, c.Document); err != nil {
			return err
		}
		g.end(errRenamed)
		return nil
	case c.Leave != "":
		g.end(fmt.Errorf("%w: %s", errRemoved, c.Leave))
		return nil
	}
	if c.SiteKey != "" {
		if err := g.takeKey(c.SiteKey, late); err != nil {
			return err
		}
	}
	if c.Document != "" {
		return g.takeDocument(c.Document, late)
	}
	return nil
}

// rename writes down that this node has another name, which it has in that document.
func (g *guard) rename(name balancing.NodeID, document string) error {
	nf := *g.nodeFile
	nf.Name = name
	if _, err := parseDocument(&nf, document); err != nil {
		return err
	}
	was, _, _ := g.both()
	for n, step := range g.renameSteps(name, document) {
		err := step()
		if err == nil {
			continue
		}
		if n > 0 {
			err = errors.Join(err, state.Replace(g.nodeFile.SiteFile, []byte(was), 0o644), g.dir.EndRenaming())
		}
		return err
	}
	return nil
}

// renameSteps are the steps of rename. The power may fail between any two: finishRenaming
// then takes the rest.
func (g *guard) renameSteps(name balancing.NodeID, document string) []func() error {
	return []func() error{
		func() error { return g.dir.BeginRenaming(name) },
		func() error { return state.Replace(g.nodeFile.SiteFile, []byte(document), 0o644) },
		func() error { return renameNode(g.path, name) },
	}
}

// finishRenaming ends a renaming that a loss of power has cut short: if the site document
// has the new name, and not the old one, the node file gets it too.
func finishRenaming(path string, nf *site.NodeFile, dir *state.Dir) (*site.NodeFile, error) {
	name, err := dir.Renaming()
	if err != nil || name == "" {
		return nf, err
	}
	text, err := os.ReadFile(nf.SiteFile)
	if err != nil {
		return nf, err
	}
	// What cannot be understood is for who starts the node to say.
	if doc, err := site.ParseDocument(nf.SiteFile, text); err == nil {
		_, old := doc.Nodes[nf.Name]
		if _, fresh := doc.Nodes[name]; fresh && !old {
			if err := renameNode(path, name); err != nil {
				return nf, err
			}
			if nf, err = loadNode(path); err != nil {
				return nil, err
			}
		}
	}
	return nf, dir.EndRenaming()
}

// end has the node leave.
func (g *guard) end(why error) {
	select {
	case g.ends <- why:
	default: // it leaves already
	}
}

func (g *guard) takeDocument(text string, late func() bool) error {
	was, _, ring := g.both()
	if text == was {
		return nil
	}
	doc, err := parseDocument(g.nodeFile, text)
	if err != nil {
		return err
	}
	if err := state.Replace(g.nodeFile.SiteFile, []byte(text), 0o644); err != nil {
		return err
	}
	if err := g.reconfigure(doc, ring, late); err != nil {
		return errors.Join(err, state.Replace(g.nodeFile.SiteFile, []byte(was), 0o644))
	}
	g.goBy(text, doc, ring)
	g.mu.Lock()
	g.facts.holdDown = doc.Takeover.HoldDown
	g.mu.Unlock()
	g.log.Info("site document changed", "nodes", len(doc.Nodes), "routes", len(doc.Routes))
	return nil
}

// reconfigure has the reports go by a document and a ring of site keys, if it is not late.
func (g *guard) reconfigure(doc *site.Document, ring *keys.Ring, late func() bool) error {
	if late() {
		return errLate
	}
	return g.exchange.Reconfigure(g.reports(doc, ring))
}

func (g *guard) takeKey(text string, late func() bool) error {
	_, doc, was := g.both()
	ring, err := keys.ParseRing(text)
	if err != nil {
		return err
	}
	if ring.Reveal() == was.Reveal() {
		return nil
	}
	if err := g.dir.ReplaceSiteKey(g.nodeFile.SiteKeyFile, was, ring); err != nil {
		return err
	}
	if err := g.reconfigure(doc, ring, late); err != nil {
		return errors.Join(err, g.dir.ReplaceSiteKey(g.nodeFile.SiteKeyFile, ring, was))
	}
	document, doc, _ := g.both()
	g.goBy(document, doc, ring)
	g.log.Info("site key changed", "seals", ring.Keys()[0].ID(), "keys", len(ring.Keys()))
	return nil
}

// parseDocument reads a site document as it would be on this node, and says what is wrong
// with it here.
func parseDocument(nf *site.NodeFile, text string) (*site.Document, error) {
	doc, err := site.ParseDocument(nf.SiteFile, []byte(text))
	if err != nil {
		return nil, err
	}
	return doc, suits(nf, doc)
}

// suits says whether this node can be one of doc's.
func suits(nf *site.NodeFile, doc *site.Document) error {
	if _, ok := doc.Nodes[nf.Name]; !ok {
		return fmt.Errorf("%s: node %s is not one of the site's nodes; add it below 'nodes', or mend 'name' in its node file", nf.SiteFile, nf.Name)
	}
	nets, err := site.LocalNetworks(nf.Interfaces.Public)
	if err != nil {
		return err
	}
	if problems := doc.CheckInterfaces(nets); len(problems) > 0 {
		return problems
	}
	return nil
}

var nameLine = regexp.MustCompile(`(?m)^name:[ \t]*[^ \t#\r\n]+`)

// renameNode writes another name into a node file.
func renameNode(path string, name balancing.NodeID) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	renamed := nameLine.ReplaceAll(text, []byte("name: "+string(name)))
	nf, err := site.ParseNode(path, renamed)
	if err == nil && nf.Name != name {
		err = fmt.Errorf("%s: its name could not be changed to %s; write it by hand, and start the node again", path, name)
	}
	if err != nil {
		return err
	}
	return state.Replace(path, renamed, info.Mode().Perm())
}
