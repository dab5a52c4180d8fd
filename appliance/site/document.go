package site

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/heartbeat"
	"peerage/balancing/meter"
	"peerage/edge/route"
	"peerage/takeover"
)

// The comments on the types and fields of this file are the manual of the site document:
// Schema prints them. So they speak of keys, not of Go. The tags are those of type field;
// what a tag says, the comment need not repeat.

// Document is a site document, the same on all nodes of a site. It is YAML; durations are
// written with a unit, as in 500ms, 2s or 12h.
type Document struct {
	// Name of the site: 1 to 45 letters, digits and inner hyphens, dots and underscores.
	// Reports, pins and the local CA bear it, so that two sites cannot be mixed up.
	Site string `yaml:"site" required:"true" example:"example"`

	// Public host names that the site serves, in lower case. What names no host, or names
	// one by an address, is for the first.
	Hosts []string `yaml:"hosts" required:"true" min:"1" max:"100" example:"[www.example.com]"`

	// How the name is made under which one node is reached for a host; redirects lead
	// there. It holds {node} and ends in .{host}. These names need DNS records (the site's
	// own zone has them) and are in the certificates.
	NodeNames string `yaml:"node_names" default:"{node}.{host}"`

	// The nodes of the site by name: up to 32 lower-case letters, digits and inner hyphens.
	Nodes map[balancing.NodeID]Node `yaml:"nodes" required:"true" min:"1" max:"512" example:"{n1: {vips: [192.0.2.11]}}"`

	// When a node sends work to a lighter one, and how the nodes tell each other of their
	// load.
	Balancing Balancing `yaml:"balancing"`

	// How nodes stand in for one that is silent.
	Takeover Takeover `yaml:"takeover"`

	// How the nodes keep what they agree on.
	Cluster Cluster `yaml:"cluster"`

	// What is served under which path. The longest path that fits wins; of two routes for
	// the same path, the one for that very host. A path that no route fits is not found.
	Routes []Route `yaml:"routes" required:"true" min:"1" max:"1000" example:"[{path: /, backend: app}]"`

	// Servers on the internal network, by the name that routes call them.
	Backends map[string]Backend `yaml:"backends" max:"1000"`

	// The zone that the nodes answer DNS questions for. Without it they answer none.
	DNS *DNS `yaml:"dns"`

	// Proxies in front of the nodes that say for whom they ask.
	Proxies Proxies `yaml:"proxies"`

	// What one node bears at a time.
	Limits Limits `yaml:"limits"`

	// How a node leaves.
	Drain Drain `yaml:"drain"`

	// What is written down.
	Logs Logs `yaml:"logs"`

	source *source // of a document that was read
}

// source is where a document was read from.
type source struct {
	file   string
	places map[string]place
}

// NodeIDs returns the names of the nodes, sorted.
func (d *Document) NodeIDs() []balancing.NodeID { return slices.Sorted(maps.Keys(d.Nodes)) }

// NodeName returns the name under which the node called id is reached for host.
func (d *Document) NodeName(id balancing.NodeID, host string) string {
	return strings.NewReplacer("{node}", string(id), "{host}", host).Replace(d.NodeNames)
}

// Node is a node of the site.
type Node struct {
	// Host address of the node: where unicast reports reach it before it was heard. Needed
	// where reports do not go by multicast.
	Address netip.Addr `yaml:"address" example:"192.0.2.1"`

	// Host address of the node on the internal network, if that is another: where peers
	// relay to.
	Internal netip.Addr `yaml:"internal" example:"10.0.0.1"`

	// Virtual IPs that belong to the node, v4 and v6. While the node is silent its peers
	// answer for them. They lie in a network of the public interface.
	VIPs []netip.Addr `yaml:"vips" max:"32" example:"[192.0.2.11, '2001:db8::11']"`

	// Size of the node relative to the others: one with 2.0 takes twice the work of one
	// with 1.0 before both count as equally loaded.
	Capacity float64 `yaml:"capacity" default:"1" min:"0.01" max:"1000"`
}

// Balancing rules who serves a request.
type Balancing struct {
	// Time between two reports of a node.
	Period time.Duration `yaml:"period" default:"500ms" min:"50ms" max:"10s" step:"1ms"`

	// Load, in per cent of its capacity, up to and including which a node keeps all its
	// work (L1 of the patent).
	Light balancing.Load `yaml:"light" default:"50" min:"0" max:"1000"`

	// By how many per cent of capacity a peer must be lighter to be sent work (L2).
	Margin balancing.Load `yaml:"margin" default:"20" min:"1" max:"1000"`

	// What a node above light does: 'damped' sends away what exceeds the mean of the site,
	// and keeps books of it; 'patent' sends all that can be sent to the lightest peer that
	// is lighter by margin; 'below' sends it to a peer whose load is not above 'below',
	// 'rotate' to the peers that are lighter by margin in turn, and 'two-choices' to the
	// lighter of two of them drawn at random.
	Rule balancing.Rule `yaml:"rule" default:"damped"`

	// Load, in per cent of its capacity, up to and including which a peer is given work
	// under the rule 'below'; without meaning under any other.
	Below balancing.Load `yaml:"below" default:"50" min:"0" max:"1000"`

	// Which of the lighter peers is chosen under the rule 'damped': 'headroom' draws one, the more likely the more
	// room it has; 'least' takes the lightest.
	Choice balancing.Choice `yaml:"choice" default:"headroom"`

	// What the load of a node is made of: 'cpu' is the pressure on its CPUs, with the
	// requests in progress as a guard; 'requests' the number of those alone; 'weighted' that
	// number with each request weighed by what its route costs.
	Measure meter.Measure `yaml:"measure" default:"cpu"`

	// How many requests in progress are a load of 100 per cent on a node of capacity 1.
	Full int `yaml:"full" default:"200" min:"1" max:"1000000"`

	// How load may move a client to a lighter node: 'redirect' tells it to go there where it
	// can follow, 'quiet' only offers the other node for its later requests, under the same
	// URL (Alt-Svc), 'none' leaves it where it is. Pins and dedicated paths are not asked.
	Move balancing.Move `yaml:"move" default:"redirect"`

	// Whether a node that is very busy for a moment may have a single request done by a peer
	// that is free just then. It carries the request there; the client does not notice.
	Bursts bool `yaml:"bursts" default:"false"`

	// How reports travel: 'multicast', 'unicast' to each peer, 'query' for unicast with each
	// peer asked for its report, or 'auto' for multicast where the interface carries it, with
	// unicast to those whom it does not reach.
	Exchange heartbeat.Mode `yaml:"exchange" default:"auto"`

	// The network that reports go over: 'public' is that of the clients, 'internal' the other
	// one, where nobody else hears them.
	Channel Channel `yaml:"channel" default:"public"`

	// Periods without a report after which a node counts as off-line. After one and a quarter
	// it is asked directly.
	OfflineAfter int `yaml:"offline_after" default:"2" min:"2" max:"20"`
}

// Channel is a network that reports go over.
type Channel uint8

const (
	PublicChannel Channel = iota
	InternalChannel
)

var channelNames = []string{PublicChannel: "public", InternalChannel: "internal"}

func (c Channel) String() string {
	if int(c) >= len(channelNames) {
		return fmt.Sprintf("channel(%d)", uint8(c))
	}
	return channelNames[c]
}

// MarshalText writes the channel's name.
func (c Channel) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a channel's name.
func (c *Channel) UnmarshalText(b []byte) error {
	i := slices.Index(channelNames, string(b))
	if i < 0 {
		return fmt.Errorf("%q is not a network of a node: public or internal", b)
	}
	*c = Channel(i)
	return nil
}

// Settings returns what of it can be changed while the site runs.
func (b *Balancing) Settings() balancing.Settings {
	s := balancing.Settings{
		Policy: balancing.Policy{Light: b.Light, Margin: b.Margin, Below: b.Below, Rule: b.Rule, Choice: b.Choice},
		Period: b.Period,
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%v %v %v %v %v %v", s.Light, s.Margin, s.Below, s.Rule, s.Choice, s.Period)
	s.Base = h.Sum32()
	return s
}

// Cluster rules how the nodes keep what they agree on.
type Cluster struct {
	// How far apart the nodes are: 'lan' for one place, 'wan' for several, with more patience.
	// A change counts for a node from its next start on.
	Distance cluster.Distance `yaml:"distance" default:"lan"`
}

// Takeover rules how VIPs of a silent node stay answered.
type Takeover struct {
	// Whether peers answer for the VIPs of a node that is off-line.
	Enabled bool `yaml:"enabled" default:"true"`

	// How long a node that is back must have been well before its stand-ins give its VIPs
	// back, so that a node that comes and goes does not take its clients along.
	HoldDown time.Duration `yaml:"hold_down" default:"5s" min:"0s" max:"1h"`

	// What a node does that cannot tell whether its peers are dead or it is cut off from
	// them: 'gateway' has it give up all VIPs when neither a peer nor a witness answers,
	// 'majority' also when it hears no more than half of the nodes, itself among them, and
	// 'serve' has each part of the site serve.
	Partition takeover.Partition `yaml:"partition" default:"gateway"`

	// Hosts on the LAN of the public interfaces, such as a router, that answer as long as a
	// node is not cut off. Without any, the default gateways are asked.
	Witness []netip.Addr `yaml:"witness" max:"8" example:"[192.0.2.1]"`
}

// Route says how the requests for a part of the site are served: by 'static' or by
// 'backend', one of them.
type Route struct {
	// One of the hosts that the route is for; without it the route is for all.
	Host string `yaml:"host" example:"www.example.com"`

	// Path that the route is for, in canonical form. One that ends in a slash is for all
	// below it too, one that ends in a star for all that begin so, any other for itself
	// only. 'none' is for requests that name no path: the bare / that browsers ask for when a
	// URL has none, and OPTIONS *. It goes before a route for /.
	Path string `yaml:"path" required:"true" example:"/app/"`

	// Files to serve.
	Static *Static `yaml:"static"`

	// Name of the back-end to serve from.
	Backend string `yaml:"backend" example:"app"`

	// Nodes that alone serve the path (a dedicated path); without it all nodes do.
	Nodes []balancing.NodeID `yaml:"nodes" min:"1" max:"512" example:"[n1, n2]"`

	// What happens on a dedicated path while all its nodes are off-line: 'spill' serves it
	// on any node, 'refuse' answers 503.
	WhenDown WhenDown `yaml:"when_down" default:"spill"`

	// How load may move a client of this route, in place of what 'balancing' says.
	Move *balancing.Move `yaml:"move"`

	// Makes the path stateful: a client that has passed the entry stays on its node.
	Stateful *Stateful `yaml:"stateful"`
}

// Static says which files a route serves.
type Static struct {
	// Directory of the files, an absolute path, the same on all nodes that serve the route.
	Dir string `yaml:"dir" required:"true" example:"/srv/www"`

	// Name of the file that stands for its directory.
	Index string `yaml:"index" default:"index.html"`

	// Whether to list a directory that has no such file.
	Listing bool `yaml:"listing" default:"false"`

	// Whether to serve NAME.br, NAME.zst or NAME.gz in place of NAME to clients that take
	// it.
	Precompressed bool `yaml:"precompressed" default:"false"`
}

// Stateful rules a path under which a client stays on its node.
type Stateful struct {
	// Path within the route up to and including which a client may be sent to another
	// node. Below it the client is pinned. Without it, it is the path of the route.
	Entry string `yaml:"entry" example:"/banking/"`

	// Where a pin binds: 'path' is below the entry, 'site' is everywhere on the host.
	Scope route.Scope `yaml:"scope" default:"path"`

	// Paths that end the stay. They may lie anywhere on the site.
	Exit []string `yaml:"exit" max:"100" example:"[/banking/logout]"`

	// What happens to a pinned client whose node is off-line: 'repin' serves it on another
	// node and pins it there, 'restart' sends it back to the entry, 'fail' answers 503
	// until the node is back.
	OnOwnerLoss balancing.OwnerLoss `yaml:"on_owner_loss" default:"repin"`

	// Whether a pinned client keeps its node when it comes to the entry again.
	EntryKeepsPin bool `yaml:"entry_keeps_pin" default:"true"`

	// How long a pinned client may be silent before its stay ends; 0s is for ever.
	Idle time.Duration `yaml:"idle" default:"0s" min:"0s" max:"8760h"`

	// How long a stay may last at most; 0s is for ever.
	MaxLife time.Duration `yaml:"max_life" default:"12h" min:"0s" max:"8760h"`
}

// Backend is a group of servers that are good for the same requests. It has servers, or
// by_node for every node.
type Backend struct {
	// Servers for all nodes: http or https, host and port.
	Servers []string `yaml:"servers" min:"1" max:"100" example:"['http://10.0.0.21:8080']"`

	// Servers that belong to one node, in place of the others: a back-end whose state lives
	// beside its node.
	ByNode map[balancing.NodeID][]string `yaml:"by_node" max:"512" example:"{n1: ['http://127.0.0.1:8080']}"`

	// Checks that take a server out while it is not well. Without them a server is left
	// alone for a moment when it refuses a connection.
	Health *Health `yaml:"health"`
}

// Health says how the servers of a back-end are checked.
type Health struct {
	// Path that a healthy server answers with a status of 2xx or 3xx.
	Path string `yaml:"path" required:"true" example:"/healthz"`

	// Time between two checks of a server.
	Every time.Duration `yaml:"every" default:"2s" min:"100ms" max:"1h"`

	// Time that an answer may take.
	Timeout time.Duration `yaml:"timeout" default:"1s" min:"10ms" max:"1m"`

	// Good checks in a row that bring a server back.
	Rise int `yaml:"rise" default:"2" min:"1" max:"100"`

	// Bad checks in a row that take a server out.
	Fall int `yaml:"fall" default:"3" min:"1" max:"100"`
}

// DNS is the zone of the site. The nodes add by themselves what they know best: SOA, NS,
// and the addresses of hosts and node names.
type DNS struct {
	// Name of the zone. Each node is a name server of it, {node}.{zone}.
	Zone string `yaml:"zone" required:"true" example:"example.com"`

	// How long others may keep the records that the nodes add, and those below whose own
	// text says nothing else.
	TTL time.Duration `yaml:"ttl" default:"20s" min:"1s" max:"24h" step:"1s"`

	// Serial number of the zone, for the SOA. Make it greater with each change.
	Serial uint32 `yaml:"serial" default:"1" min:"0" max:"4294967295"`

	// Further records, one a line, as in a zone file (RFC 1035 section 5).
	Records string `yaml:"records" example:"mail A 192.0.2.25"`
}

// Drain rules how a node leaves.
type Drain struct {
	// How long work in progress has to end when a node leaves.
	Grace time.Duration `yaml:"grace" default:"30s" min:"0s" max:"1h"`
}

// Proxies are believed when they say for whom they ask.
type Proxies struct {
	// Networks that they ask from. From anywhere else, what a request says of its client is
	// taken out.
	Trusted []netip.Prefix `yaml:"trusted" max:"100" example:"[10.0.0.0/24]"`

	// Whether clients behind them can reach the node names, so that they can be sent there.
	// If not, nodes carry their requests to each other in place of it.
	Redirect bool `yaml:"redirect" default:"false"`

	// Whether they begin each TCP connection with the header of the PROXY protocol, version
	// 1 or 2. A connection of theirs without it is then refused.
	Protocol bool `yaml:"protocol" default:"false"`
}

// Limits are what one node bears at a time.
type Limits struct {
	// Requests in progress beyond which a node refuses new ones with 503. Clients that are
	// pinned to it have a quarter more, and those that are redirected are not refused. 0 is no
	// limit.
	Requests int `yaml:"requests" default:"20000" min:"0" max:"10000000"`
}

// Logs says what is written down.
type Logs struct {
	// Where a line is written for each request: the name of a file in the data directory
	// that ends in .log, '-' for standard output, or 'off'.
	Access string `yaml:"access" default:"access.log"`
}

// WhenDown says what becomes of a dedicated path while all its nodes are off-line.
type WhenDown uint8

const (
	Spill  WhenDown = iota // any node serves it
	Refuse                 // 503
)

var whenDownNames = [...]string{Spill: "spill", Refuse: "refuse"}

func (w WhenDown) String() string {
	if int(w) >= len(whenDownNames) {
		return fmt.Sprintf("when_down(%d)", uint8(w))
	}
	return whenDownNames[w]
}

// MarshalText writes the name.
func (w WhenDown) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads the name.
func (w *WhenDown) UnmarshalText(b []byte) error {
	for i, name := range whenDownNames {
		if name == string(b) {
			*w = WhenDown(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not a value of when_down: spill or refuse", b)
}
