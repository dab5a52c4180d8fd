package site

import (
	"strings"
	"testing"
)

func TestEffects(t *testing.T) {
	const base = `site: example
hosts: [www.example.com]
nodes:
  n1: {address: 192.0.2.1, vips: [192.0.2.11]}
  n2: {address: 192.0.2.2, vips: [192.0.2.12]}
routes:
  - {path: /, static: {dir: /srv/www}}
  - {path: /bank/, backend: bank, stateful: {exit: [/bank/out]}}
backends: {bank: {servers: ['http://10.0.0.21:8080']}}
dns: {zone: example.com}
`
	for _, c := range []struct {
		name  string
		edits []string // old, new, ...
		want  string   // a line for each
	}{
		{"nothing", nil, ""},
		{"how requests are served", []string{"dir: /srv/www", "dir: /srv/new", "hosts: [www.example.com]", "hosts: [www.example.com, example.com]\nlimits: {requests: 7}"}, ""},
		{"when load moves clients", []string{"site:", "balancing: {light: 60, period: 1s, offline_after: 4}\nsite:"}, ""},
		{
			"VIPs are swapped, lost and found",
			[]string{"vips: [192.0.2.11]", "vips: [192.0.2.12, 192.0.2.13]", ", vips: [192.0.2.12]}", "}"},
			`vips: nobody answers for VIP 192.0.2.11 any more: n1 gives it up, and connections to it end within 30s
vips: VIP 192.0.2.12 moves from n2 to n1: connections to it end within 30s
vips: n1 begins to answer for VIP 192.0.2.13`,
		},
		{"takeover off", []string{"site:", "takeover: {enabled: false}\nsite:"}, "vips: nodes give up the VIPs that they hold for silent peers"},
		{
			"a node goes, another comes, a third moves",
			[]string{"n2: {address: 192.0.2.2, vips: [192.0.2.12]}", "n3: {internal: 10.0.0.3}", "192.0.2.1,", "192.0.2.7,"},
			`vips: nobody answers for VIP 192.0.2.12 any more: n2 gives it up, and connections to it end within 30s
connections: peers reach n1 at 192.0.2.7, no longer at 192.0.2.1: their links to it are opened anew
connections: n2 is no longer a node of the site: its peers close their links to it, and what it serves by then ends within 30s
connections: n3 becomes a node of the site: its peers expect its reports, and open links to it`,
		},
		{"no zone", []string{"dns: {zone: example.com}\n", ""}, "listeners: the nodes no longer answer DNS questions: UDP and TCP sockets are closed"},
		{"another zone", []string{"zone: example.com", "zone: example.net"}, "listeners: the nodes answer DNS questions for example.net, no longer for example.com"},
		{
			"reports another way",
			[]string{"site:", "balancing: {exchange: unicast}\nsite:"},
			"listeners: sockets for reports are opened anew: 'unicast' on the public network in place of 'auto' on the public one",
		},
		{
			"reports over another network",
			[]string{"site:", "balancing: {channel: internal}\nsite:"},
			`listeners: sockets for reports are opened anew: 'auto' on the internal network in place of 'auto' on the public one
listeners: a node that has changed to the internal network and one that has not do not hear each other: if that lasts for 1s, each takes the other for off-line`,
		},
		{
			"proxies with a header",
			[]string{"site:", "proxies: {trusted: [10.0.0.0/8], protocol: true}\nsite:"},
			"listeners: new connections of trusted proxies must begin with the header of the PROXY protocol; open ones stay",
		},
		{"another back-end", []string{"10.0.0.21", "10.0.0.22"}, "connections: connections to the servers of back-end bank are opened anew as their requests end"},
		{
			"no stays",
			[]string{", stateful: {exit: [/bank/out]}", ""},
			"stays: clients that stay on a node below /bank/ are no longer bound to it",
		},
		{
			"wider stays",
			[]string{"exit: [/bank/out]", "scope: site"},
			"stays: clients that stay on a node below /bank/ begin anew: where a stay binds has changed",
		},
		{
			"other distances",
			[]string{"site:", "cluster: {distance: wan}\nsite:"},
			"restart: 'cluster.distance: wan' counts for a node from its next start on; until then it goes on with 'lan'",
		},
		{
			"another site",
			[]string{"site: example", "site: other"},
			"restart: the site is called other, no longer example: its nodes no longer hear those with the old document, and all must be set up anew",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, err := ParseDocument("old", []byte(base))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.NewReplacer(c.edits...).Replace(base)
			doc, err := ParseDocument("new", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range Effects(old, doc) {
				got = append(got, string(e.Touches)+": "+e.Text)
			}
			if s := strings.Join(got, "\n"); s != c.want {
				t.Errorf("got\n%s\nwant\n%s", s, c.want)
			}
			if back := Effects(doc, old); (len(back) == 0) != (c.want == "") && c.name != "no stays" && c.name != "how requests are served" {
				t.Errorf("the way back: %v", back)
			}
		})
	}
}
