package site

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"peerage/dnsserver/zone"
)

// zone builds the zone as the DNS server will: all that can be wrong with it shows there.
func (c *checker) zone() {
	d := c.doc
	if d.DNS == nil || !c.sound("dns", "hosts", "nodes", "node_names") {
		return
	}
	z := zone.Config{
		Origin: d.DNS.Zone, TTL: d.DNS.TTL, Serial: d.DNS.Serial, Records: d.DNS.Records,
		Hosts: d.Hosts, Nodes: d.NodeIDs(),
	}
	for _, host := range d.Hosts {
		for _, id := range z.Nodes {
			z.NodeNames = append(z.NodeNames, zone.NodeName{Name: d.NodeName(id, host), Node: id})
		}
	}
	_, err := zone.New(z)
	if err == nil {
		return
	}
	for mistake := range strings.SplitSeq(err.Error(), "\n") {
		c.zoneMistake(mistake)
	}
}

// otherLine is how package zone names the other party to a conflict.
var otherLine = regexp.MustCompile(`\bline [0-9]{1,9}\b`)

// zoneMistake notes one line of what package zone says: "zone Z: what is wrong", or
// "zone Z, line N of its records: what is wrong".
func (c *checker) zoneMistake(text string) {
	const mend = "; mend the record, or leave it out"
	before, what, ok := strings.Cut(text, " of its records: ")
	_, number, numbered := strings.Cut(before, ", line ")
	line, err := strconv.Atoi(number)
	if !ok || !numbered || err != nil {
		c.bad("dns.zone", "%s; change the zone, or the name that is not right", strings.TrimPrefix(text, "zone "))
		return
	}
	if at, ok := c.recordPlace(line); ok {
		what = otherLine.ReplaceAllStringFunc(what, func(s string) string {
			n, err := strconv.Atoi(strings.TrimPrefix(s, "line "))
			if err != nil {
				return s
			}
			return "line " + strconv.Itoa(at.line-line+n)
		})
		c.badAt(at, "dns.records", "%s", what+mend)
		return
	}
	c.bad("dns.records", "line %d of the records: %s", line, what+mend)
}

// recordPlace translates a line of the records into a place of the file. That can be
// done if they are a literal block, the usual case: it begins in the line after its
// indicator.
func (c *checker) recordPlace(line int) (place, bool) {
	n := c.root
	for _, key := range []string{"dns", "records"} {
		if n = lookUp(n, key); n == nil {
			return place{}, false
		}
	}
	if n.Style&yaml.LiteralStyle == 0 {
		return place{}, false
	}
	at := place{n.Line + line, 1}
	i := 0
	for l := range bytes.Lines(c.text) {
		if i++; i == at.line {
			at.column += len(l) - len(bytes.TrimLeft(l, " "))
			break
		}
	}
	return at, true
}

// lookUp returns the value of a key in a mapping, nil if there is none.
func lookUp(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
