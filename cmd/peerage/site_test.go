package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"peerage/appliance/node"
	"peerage/appliance/revision"
)

const smallSite = `site: example
hosts: [www.example.com]
nodes: {n1: {address: 127.0.0.1}}
routes: [{path: /, backend: app}]
backends: {app: {servers: ['http://127.0.0.1:1']}}
`

// TestPlacesOfAProblemAreThoseOfTheFile has a node refuse a document that came without the
// line by which 'site show' names the revision.
func TestPlacesOfAProblemAreThoseOfTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ name, text, want string }{
		{"shown.yaml", baseLine + "12 0123456789abcdef0123456789abcdef\n" + smallSite, "shown.yaml:4:8: nodes.n1"},
		{"written.yaml", smallSite, "written.yaml:3:8: nodes.n1"},
		{`a "b".yaml`, baseLine + "12 0123456789abcdef0123456789abcdef\n" + smallSite, `a "b".yaml:4:8: nodes.n1`},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		a, from, err := readApply(path)
		if err != nil || a.Text != smallSite {
			t.Fatalf("%s: read %q, %v", c.name, a.Text, err)
		}
		r := &revision.Refused{Node: "n2", Problems: "site document:3:8: nodes.n1: no such interface\nsite document:40:1: more"}
		detail, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		e, ok := errors.AsType[*node.StepError](from.inFile(&node.StepError{Text: r.Error(), Detail: detail}))
		if !ok || !strings.Contains(e.Text, c.want) || strings.Contains(e.Text, "site document") {
			t.Errorf("%s: got %v", c.name, e)
		}
		var told revision.Refused
		if err := json.Unmarshal(e.Detail, &told); err != nil || told.Node != "n2" || !strings.Contains(told.Problems, c.want) {
			t.Errorf("%s: detail %s, %v", c.name, e.Detail, err)
		}
		if e, ok := errors.AsType[*node.StepError](from.inFile(&node.StepError{Text: "why"})); !ok || e.Text != "why" || e.Detail != nil {
			t.Errorf("%s: without a place: %+v", c.name, e)
		}
		if err := from.inFile(os.ErrExist); err != os.ErrExist {
			t.Errorf("%s: another error: %v", c.name, err)
		}
		if err := from.inFile(nil); err != nil {
			t.Errorf("%s: no error: %v", c.name, err)
		}
	}
}

// TestHistoryTellsTheWayOutOfAConflict names the last revision of the side that does not
// count, and no other.
func TestHistoryTellsTheWayOutOfAConflict(t *testing.T) {
	id := func(c string) revision.ID { return revision.ID(strings.Repeat(c, 32)) }
	entry := func(number int, id, parent revision.ID, s revision.State) revision.Entry {
		return revision.Entry{Revision: revision.Revision{ID: id, Number: number, Parent: parent, Author: "bob@n4"}, State: s}
	}
	var b bytes.Buffer
	printApart(&b, []revision.Entry{
		entry(3, id("c"), id("b"), revision.InForce), entry(3, id("e"), id("d"), revision.Apart),
		entry(2, id("b"), id("a"), revision.Past), entry(2, id("d"), id("a"), revision.Apart), entry(1, id("a"), "", revision.Past),
	})
	out := b.String()
	for _, want := range []string{"Revision 3 (eeeeeeee) by bob@n4", "site diff eeeeeeee ", "site rollback eeeeeeee ", "site dismiss eeeeeeee "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "dddd") || strings.Contains(out, "bbbb") {
		t.Errorf("more than the last of one side:\n%s", out)
	}
}
