package site

import (
	"errors"
	"fmt"
	"slices"

	"peerage/balancing"
)

// AddNode returns the document in text with one node more. The rest of the text stays as
// it is, comments and all.
func AddNode(text string, name balancing.NodeID, n Node) (string, error) {
	if !name.Valid() {
		return "", fmt.Errorf("add node %s: not a name; %s", quote(string(name)), nodeNameRule)
	}
	return edit(text, fmt.Sprintf("add node %s", name), func(d *Document) error {
		if _, ok := d.Nodes[name]; ok {
			return errors.New("the document has a node of that name already; choose another name")
		}
		if n.Capacity == 0 {
			n.Capacity = 1
		}
		d.Nodes[name] = n
		return nil
	}, func(e *editor) { e.addNode(name, n) })
}

// RemoveNode returns the document in text without the node: neither below 'nodes', nor in
// the lists of routes, nor below 'by_node' of a back-end. A comment just above an entry
// that is removed goes with it; the rest of the text stays as it is.
func RemoveNode(text string, name balancing.NodeID) (string, error) {
	return edit(text, fmt.Sprintf("remove node %s", name), func(d *Document) error {
		if _, ok := d.Nodes[name]; !ok {
			return unknownNode(d, name)
		}
		if len(d.Nodes) == 1 {
			return errors.New("it is the last node of the site")
		}
		delete(d.Nodes, name)
		for i := range d.Routes {
			r := &d.Routes[i]
			if slices.Equal(r.Nodes, []balancing.NodeID{name}) {
				return fmt.Errorf("it alone serves the route for %s; name another node there, or remove the route, first", quote(r.Host+r.Path))
			}
			r.Nodes = slices.DeleteFunc(r.Nodes, func(id balancing.NodeID) bool { return id == name })
		}
		for key, b := range d.Backends {
			delete(b.ByNode, name)
			if len(b.ByNode) == 0 {
				b.ByNode = nil
			}
			d.Backends[key] = b
		}
		return nil
	}, func(e *editor) { e.removeNode(name) })
}

// RenameNode returns the document in text with the node under another name, wherever it
// is named. The text of 'records' is not looked at.
func RenameNode(text string, old, new balancing.NodeID) (string, error) {
	if !new.Valid() {
		return "", fmt.Errorf("rename node %s to %s: not a name; %s", old, quote(string(new)), nodeNameRule)
	}
	return edit(text, fmt.Sprintf("rename node %s to %s", old, new), func(d *Document) error {
		n, ok := d.Nodes[old]
		if !ok {
			return unknownNode(d, old)
		}
		if _, ok := d.Nodes[new]; ok {
			return errors.New("the document has a node of that name already; choose another name")
		}
		delete(d.Nodes, old)
		d.Nodes[new] = n
		for _, r := range d.Routes {
			if i := slices.Index(r.Nodes, old); i >= 0 {
				r.Nodes[i] = new
			}
		}
		for _, b := range d.Backends {
			if servers, ok := b.ByNode[old]; ok {
				delete(b.ByNode, old)
				b.ByNode[new] = servers
			}
		}
		return nil
	}, func(e *editor) { e.renameNode(old, new) })
}

func unknownNode(d *Document, name balancing.NodeID) error {
	var known []string
	for _, id := range d.NodeIDs() {
		known = append(known, string(id))
	}
	return fmt.Errorf("no node %s; %s", quote(string(name)), suggest(string(name), "nodes", known))
}

// edit changes text by way of the tree that the parser makes of it, and holds what comes
// out against what want makes of the document. So a place that was misjudged is an error
// and not a broken site.
func edit(text, what string, want func(*Document) error, change func(*editor)) (string, error) {
	const path = "site.yaml"
	wanted, err := ParseDocument(path, []byte(text))
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if err := want(wanted); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	e := newEditor(text)
	e.root = newReport(path).parse([]byte(text), MaxDocument) // not nil: it was parsed above
	change(e)
	changed, err := e.result()
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	got, err := ParseDocument(path, []byte(changed))
	canonical := wanted.String()
	if err != nil {
		// Is it the change itself, or how the text was changed?
		if _, why := ParseDocument(path, []byte(canonical)); why != nil {
			return "", fmt.Errorf("%s: the site would not be whole:\n%w", what, why)
		}
	} else if got.String() == canonical {
		return changed, nil
	}
	return "", fmt.Errorf("%s: the text is written in a way that is not understood here; edit it by hand, and apply it with 'peerage site apply'", what)
}
