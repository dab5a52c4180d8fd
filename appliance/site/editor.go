package site

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"peerage/balancing"
)

// editor changes a YAML text at places that the parser knows.
type editor struct {
	text    string
	newline string
	root    *yaml.Node
	lines   []int // where each line begins
	splices []splice
}

// splice puts text in place of what lies between two offsets.
type splice struct {
	from, to int
	text     string
}

func newEditor(text string) *editor {
	e := &editor{text: text, newline: "\n", lines: []int{0}}
	for i, c := range []byte(text) {
		if c == '\n' {
			e.lines = append(e.lines, i+1)
		}
	}
	if strings.Contains(text, "\r\n") {
		e.newline = "\r\n"
	}
	return e
}

func (e *editor) replace(from, to int, text string) {
	e.splices = append(e.splices, splice{from, to, text})
}

// result returns the text with all splices made.
func (e *editor) result() (string, error) {
	slices.SortStableFunc(e.splices, func(a, b splice) int { return cmp.Compare(a.from, b.from) })
	var b strings.Builder
	at := 0
	for _, s := range e.splices {
		if s.from < at || s.to < s.from || s.to > len(e.text) {
			return "", errors.New("two changes meet in one place; edit the text by hand, and apply it with 'peerage site apply'")
		}
		b.WriteString(e.text[at:s.from])
		b.WriteString(s.text)
		at = s.to
	}
	b.WriteString(e.text[at:])
	return b.String(), nil
}

// offset returns where n begins.
func (e *editor) offset(n *yaml.Node) int {
	at := e.lines[min(max(n.Line, 1), len(e.lines))-1]
	for range n.Column - 1 { // columns count characters
		_, size := utf8.DecodeRuneInString(e.text[at:])
		at += size
	}
	return at
}

// line returns line i, from 1, without its end, and where the next one begins.
func (e *editor) line(i int) (text string, next int) {
	next = len(e.text)
	if i < len(e.lines) {
		next = e.lines[i]
	}
	return strings.TrimRight(e.text[e.lines[i-1]:next], "\r\n"), next
}

// value returns what a mapping has under key, and the key; nil if it has nothing.
func value(m *yaml.Node, key string) (k, v *yaml.Node) {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// routeNodes returns the lists of nodes of the routes.
func (e *editor) routeNodes() []*yaml.Node {
	var lists []*yaml.Node
	if _, routes := value(e.root, "routes"); routes != nil {
		for _, r := range routes.Content {
			if _, list := value(r, "nodes"); list != nil {
				lists = append(lists, list)
			}
		}
	}
	return lists
}

// backends returns the back-ends that have servers by node.
func (e *editor) backends() []*yaml.Node {
	var all []*yaml.Node
	if _, backends := value(e.root, "backends"); backends != nil {
		for i := 1; i < len(backends.Content); i += 2 {
			if _, by := value(backends.Content[i], "by_node"); by != nil {
				all = append(all, backends.Content[i])
			}
		}
	}
	return all
}

func (e *editor) addNode(name balancing.NodeID, n Node) {
	_, nodes := value(e.root, "nodes")
	last := len(nodes.Content) - 2
	if isFlow(nodes) {
		e.addFlow(nodes, nodes.Content[last], scalar(string(name))+": "+flowNode(n))
		return
	}
	key, like := nodes.Content[last], nodes.Content[last+1]
	lines := []string{e.indentOf(key) + scalar(string(name)) + ":"}
	if fields := nodeFields(n); isFlow(like) || len(like.Content) == 0 || len(fields) == 0 {
		lines[0] += " " + flowNode(n)
	} else {
		for _, f := range fields {
			lines = append(lines, e.indentOf(like.Content[0])+f)
		}
	}
	end := e.blockEnd(key)
	before := ""
	if end > 0 && e.text[end-1] != '\n' {
		before = e.newline
	}
	e.replace(end, end, before+strings.Join(lines, e.newline)+e.newline)
}

// addFlow adds an entry to a mapping between brackets, behind the one with the key last.
func (e *editor) addFlow(m, last *yaml.Node, entry string) {
	at := e.flowEnd(e.offset(last))
	if m.Content[0].Line == m.Line {
		e.replace(at, at, ", "+entry)
		return
	}
	// A line for each entry: the new one comes below the comment of the one before it,
	// and ends in a comma if that does.
	next := len(e.text)
	if i := strings.IndexByte(e.text[at:], '\n'); i >= 0 {
		next = at + i + 1
	}
	rest := strings.TrimLeft(e.text[at:next], " \t")
	tail, comma := strings.CutPrefix(rest, ",")
	switch tail = strings.TrimSpace(tail); {
	case tail != "" && tail[0] != '#':
		e.replace(at, at, ","+e.newline+e.indentOf(last)+entry)
		return
	case comma:
		entry += ","
	default:
		e.replace(at, at, ",")
	}
	e.replace(next, next, e.indentOf(last)+entry+e.newline)
}

func (e *editor) removeNode(name balancing.NodeID) {
	_, nodes := value(e.root, "nodes")
	e.removePair(nodes, string(name))
	for _, list := range e.routeNodes() {
		e.removeItem(list, string(name))
	}
	for _, b := range e.backends() {
		_, by := value(b, "by_node")
		switch k, _ := value(by, string(name)); {
		case k == nil:
		case len(by.Content) == 2:
			e.removePair(b, "by_node")
		default:
			e.removePair(by, string(name))
		}
	}
}

func (e *editor) renameNode(old, new balancing.NodeID) {
	_, nodes := value(e.root, "nodes")
	key, _ := value(nodes, string(old))
	names := []*yaml.Node{key}
	for _, list := range e.routeNodes() {
		for _, n := range list.Content {
			if n.Value == string(old) {
				names = append(names, n)
			}
		}
	}
	for _, b := range e.backends() {
		_, by := value(b, "by_node")
		if k, _ := value(by, string(old)); k != nil {
			names = append(names, k)
		}
	}
	for _, n := range names {
		at := e.offset(n)
		switch quoted := n.Style & (yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle); {
		case quoted != 0:
			if i := strings.IndexByte(e.text[at+1:], e.text[at]); i >= 0 {
				e.replace(at+1, at+1+i, string(new))
			}
		case strings.HasPrefix(e.text[at:], string(old)):
			e.replace(at, at+len(old), scalar(string(new)))
		}
	}
}

func isFlow(n *yaml.Node) bool { return n.Style&yaml.FlowStyle != 0 }

// indentOf returns the blanks that bring a line to the column of n.
func (e *editor) indentOf(n *yaml.Node) string { return strings.Repeat(" ", n.Column-1) }

// removePair removes key from the mapping m.
func (e *editor) removePair(m *yaml.Node, key string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		switch k := m.Content[i]; {
		case k.Value != key:
		case isFlow(m):
			e.removeFlow(m, k, i+2 < len(m.Content))
		default:
			e.removeLines(k, e.blockEnd(k))
		}
	}
}

// removeItem removes the item with that value from the list l.
func (e *editor) removeItem(l *yaml.Node, item string) {
	for i, n := range l.Content {
		switch {
		case n.Value != item:
		case isFlow(l):
			e.removeFlow(l, n, i+1 < len(l.Content))
		default:
			_, next := e.line(n.Line)
			e.removeLines(n, next)
		}
	}
}

// removeLines removes whole lines, from that of n to the one that begins at end, and the
// comment just above.
func (e *editor) removeLines(n *yaml.Node, end int) {
	at := n.Line
	own, _ := e.line(at)
	for at > 1 {
		above, _ := e.line(at - 1)
		if !strings.HasPrefix(strings.TrimLeft(above, " "), "#") || indent(above) != indent(own) {
			break
		}
		at--
	}
	e.replace(e.lines[at-1], end, "")
}

// removeFlow removes an entry that begins with n from a collection between brackets.
func (e *editor) removeFlow(in, n *yaml.Node, more bool) {
	from := e.offset(n)
	to := e.flowEnd(from)
	tail, _, _ := strings.Cut(e.text[to:], "\n")
	tail = strings.TrimSpace(strings.TrimPrefix(strings.TrimLeft(tail, " \t"), ","))
	if before := e.text[e.lines[n.Line-1]:from]; strings.TrimSpace(before) == "" && (tail == "" || tail[0] == '#') {
		next := len(e.text)
		if i := strings.IndexByte(e.text[to:], '\n'); i >= 0 {
			next = to + i + 1
		}
		e.removeLines(n, next)
		return
	}
	if more { // with the comma, up to the next entry
		if i := strings.IndexByte(e.text[to:], ','); i >= 0 {
			to += i + 1
		}
		for to < len(e.text) && (e.text[to] == ' ' || e.text[to] == '\t') {
			to++
		}
	} else { // with the comma before it, if there is one
		start := strings.TrimRight(e.text[:from], " \t\r\n")
		if s, ok := strings.CutSuffix(start, ","); ok && len(s) >= e.offset(in) {
			from = len(s)
		}
	}
	e.replace(from, to, "")
}

// blockEnd returns where the lines of an entry of a block mapping end, which begins with
// key: at the first that is not deeper. What stands between two entries, comments and
// empty lines, is the next one's.
func (e *editor) blockEnd(key *yaml.Node) int {
	depth := key.Column - 1
	_, end := e.line(key.Line)
	for i := key.Line + 1; i <= len(e.lines); i++ {
		text, next := e.line(i)
		body := strings.TrimLeft(text, " \t")
		switch {
		case body == "":
			continue // perhaps between two lines of the entry
		case body[0] == '#':
			if indent(text) <= depth {
				continue
			}
		case indent(text) < depth, indent(text) == depth && !strings.ContainsAny(body[:1], "-]}"):
			return end
		}
		end = next
	}
	return end
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// flowEnd returns where an entry ends that begins at offset at within brackets: before
// the comma or the bracket that ends it, and before blanks.
func (e *editor) flowEnd(at int) int {
	depth, fresh := 0, true // fresh: a scalar would begin here
	end := at
	for i := at; i < len(e.text); i++ {
		c := e.text[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			continue
		case c == '#' && i > at && strings.ContainsRune(" \t\n", rune(e.text[i-1])):
			if j := strings.IndexByte(e.text[i:], '\n'); j >= 0 {
				i += j
				continue
			}
			return end
		case fresh && (c == '"' || c == '\''):
			for i++; i < len(e.text) && e.text[i] != c; i++ {
				if c == '"' && e.text[i] == '\\' {
					i++
				}
			}
			fresh = false
		case c == '[' || c == '{':
			depth++
			fresh = true
		case c == ']' || c == '}':
			if depth--; depth < 0 {
				return end
			}
			fresh = false
		case c == ',':
			if depth == 0 {
				return end
			}
			fresh = true
		default:
			fresh = c == ':'
		}
		end = min(i+1, len(e.text))
	}
	return end
}

// nodeFields returns what is not the default of a node, a line each.
func nodeFields(n Node) []string {
	var fields []string
	for _, f := range []struct {
		key  string
		addr netip.Addr
	}{{"address", n.Address}, {"internal", n.Internal}} {
		if f.addr.IsValid() {
			fields = append(fields, f.key+": "+scalar(f.addr.String()))
		}
	}
	if len(n.VIPs) > 0 {
		list := make([]string, len(n.VIPs))
		for i, vip := range n.VIPs {
			list[i] = scalar(vip.String())
		}
		fields = append(fields, "vips: ["+strings.Join(list, ", ")+"]")
	}
	if n.Capacity != 1 {
		fields = append(fields, fmt.Sprintf("capacity: %v", n.Capacity))
	}
	return fields
}

func flowNode(n Node) string { return "{" + strings.Join(nodeFields(n), ", ") + "}" }

// scalar returns s as YAML reads it as a text, within brackets too.
func scalar(s string) string {
	root := newReport("").parse([]byte("["+s+"]"), MaxDocument)
	if root == nil || len(root.Content) != 1 || root.Content[0].Value != s || root.Content[0].ShortTag() != stringTag {
		return "'" + s + "'"
	}
	return s
}
