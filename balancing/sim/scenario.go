package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
)

// Measure is what a node calls its load.
type Measure uint8

const (
	Pressure    Measure = iota // jobs running and waiting for each core
	Utilisation                // busy cores: saturates at 100 %
	Requests                   // requests in progress against Scenario.Full
)

var measureNames = names[Measure]{Pressure: "pressure", Utilisation: "utilisation", Requests: "requests"}

func (m Measure) String() string { return measureNames.of(m) }

// MarshalText writes the measure's name.
func (m Measure) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a measure's name.
func (m *Measure) UnmarshalText(b []byte) (err error) {
	*m, err = measureNames.parse(string(b), "measure")
	return err
}

// Balance is who chooses the node of a request.
type Balance uint8

const (
	Redirects   Balance = iota // each node for what it gets, by Scenario.Policy
	DNS                        // round-robin DNS, and nothing else
	Split                      // nobody: each visit goes to a node at random, by no cache
	Ideal                      // somebody who knows all queues at this instant, at no cost
	ProxyLeast                 // a central proxy, by least connections
	ProxyChoice                // a central proxy, the better of two nodes at random
)

var balanceNames = names[Balance]{
	Redirects: "redirects", DNS: "dns", Split: "split", Ideal: "ideal", ProxyLeast: "proxy", ProxyChoice: "proxy-two",
}

func (b Balance) String() string { return balanceNames.of(b) }

// MarshalText writes the name.
func (b Balance) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads a name.
func (b *Balance) UnmarshalText(text []byte) (err error) {
	*b, err = balanceNames.parse(string(text), "way to balance")
	return err
}

// names are the words for the values of a small enumeration.
type names[E ~uint8] []string

func (n names[E]) of(e E) string {
	if int(e) < len(n) {
		return n[e]
	}
	return fmt.Sprintf("unknown(%d)", uint8(e))
}

func (n names[E]) parse(s, what string) (E, error) {
	if i := slices.Index(n, s); i >= 0 {
		return E(i), nil
	}
	return 0, fmt.Errorf("%q is no %s; there are %s", s, what, strings.Join(n, ", "))
}

// Scenario is a site, what its visitors do, and who balances. Start from [Base] or
// [Named].
type Scenario struct {
	Name string `json:"name"`
	Seed uint64 `json:"seed"`

	// The nodes.

	Nodes     int     `json:"nodes"`
	Cores     int     `json:"cores"`      // of each node
	FCFS      bool    `json:"fcfs"`       // a core finishes a request before it takes another; else all share
	SlowShare float64 `json:"slow_share"` // of the nodes, those with the highest numbers
	SlowSpeed float64 `json:"slow_speed"` // of their cores, where 1 is usual

	// The visitors.

	Load      float64       `json:"load"`       // offered, in per cent of the site's capacity
	Service   time.Duration `json:"service"`    // mean CPU time of a request on a usual core
	Law       Law           `json:"law"`        // of the service times
	Spread    float64       `json:"spread"`     // σ of the logarithm, for law Lognormal
	Session   float64       `json:"session"`    // mean number of requests of a visit
	FixedSize bool          `json:"fixed_size"` // all visits have Session requests; else geometric
	Think     time.Duration `json:"think"`      // mean pause of a client after an answer
	RTT       time.Duration `json:"rtt"`        // between client and node
	Handshake time.Duration `json:"handshake"`  // CPU time of a TLS handshake
	H3        bool          `json:"h3"`         // a new connection takes one round trip, not two
	Pinned    float64       `json:"pinned"`     // share of visits that enter a stateful path after their first request

	// The DNS.

	Resolvers int           `json:"resolvers"` // caches, each used by a share of the clients
	Zipf      float64       `json:"zipf"`      // exponent of the shares; 0 for equal ones
	TTL       time.Duration `json:"ttl"`
	Addresses int           `json:"addresses"` // in an answer; clients take one at random
	DNSHelps  bool          `json:"dns_helps"` // answers leave out nodes above L1 and the mean

	// Who balances.

	Balance  Balance          `json:"balance"`
	Policy   balancing.Policy `json:"policy"`   // of Balance Redirects
	Cooldown time.Duration    `json:"cooldown"` // for which a redirected client is left alone
	Fade     time.Duration    `json:"fade"`     // time constant of the ledgers
	Relay    bool             `json:"relay"`    // at bursts, a node lets a peer do a single request

	// What the nodes know of one another.

	Period       time.Duration `json:"period"`        // between two reports
	Loss         float64       `json:"loss"`          // share of reports that a peer misses
	OfflineAfter int           `json:"offline_after"` // periods of silence that make a node off-line
	Tau          time.Duration `json:"tau"`           // time constant of the load; 0 for the bare load
	Measure      Measure       `json:"measure"`
	Full         float64       `json:"full"` // requests in progress per core that are 100 %, for measure Requests

	// What goes wrong. Times count from the start of the run.

	Flash   float64       `json:"flash"` // share of new visits that a link leads to the first node
	FlashAt time.Duration `json:"flash_at"`
	Dies    time.Duration `json:"dies"`    // when the last node dies; 0 for never
	Returns time.Duration `json:"returns"` // and comes back; 0 for never

	Cold     bool          `json:"cold"`     // the site starts without visitors, and fills while it is measured
	WarmUp   time.Duration `json:"warm_up"`  // before anything is measured
	Measured time.Duration `json:"measured"` // after that
}

// Base is the site that everything is compared with: 16 nodes at 80 % whose DNS sends a
// sixth of all clients to one of them.
func Base() Scenario {
	return Scenario{
		Name: "base", Seed: 1,
		Nodes: 16, Cores: 8, SlowSpeed: 1,
		Load: 80, Service: 10 * time.Millisecond, Spread: 1.8,
		Session: 10, Think: time.Second, RTT: 40 * time.Millisecond, Handshake: 500 * time.Microsecond,
		Resolvers: 200, Zipf: 1, TTL: time.Minute, Addresses: 1,
		Policy: balancing.DefaultPolicy, Cooldown: 10 * time.Second, Fade: 2 * time.Second,
		Period: 500 * time.Millisecond, OfflineAfter: 3, Tau: time.Second, Full: 64,
		WarmUp: 15 * time.Second, Measured: 40 * time.Second,
	}
}

// named are the scenarios that differ from [Base], in the order in which they are listed.
var named = []struct {
	name   string
	change func(*Scenario)
}{
	{"base", func(*Scenario) {}},
	{"half", func(s *Scenario) { s.Load = 50 }},
	{"busy", func(s *Scenario) { s.Load = 90 }},
	{"four", func(s *Scenario) { s.SetNodes(4) }},
	{"many", func(s *Scenario) { s.SetNodes(64) }},
	{"oneshot", func(s *Scenario) { s.Session = 1 }},
	{"chatty", func(s *Scenario) { s.Session, s.Think = 100, 100*time.Millisecond }},
	{"long", func(s *Scenario) { s.Session, s.Think = 60, 500*time.Millisecond }},
	{"hetero", func(s *Scenario) { s.SlowShare, s.SlowSpeed, s.Load = 0.25, 0.5, 70 }},
	{"flash", func(s *Scenario) { s.Flash, s.FlashAt, s.Load = 0.4, 30*time.Second, 70 }},
	{"fcfs", func(s *Scenario) { s.FCFS = true }},
	{"slowreports", func(s *Scenario) { s.Period = 2 * time.Second }},
	{"mild", func(s *Scenario) { s.Zipf = 0.5 }},
	{"small", func(s *Scenario) { s.Cores, s.Load = 2, 70 }},
	{"even", func(s *Scenario) { s.Resolvers, s.Zipf, s.TTL = 1, 0, 0 }},
	{"lossy", func(s *Scenario) { s.Loss = 0.3 }},
	{"pinned", func(s *Scenario) { s.Pinned = 0.5 }},
	{"death", func(s *Scenario) { s.Dies, s.Returns = 25*time.Second, 40*time.Second }},
}

// suiteSize is how many of named are the suite over which a rule is judged as a whole.
// The others probe one thing each.
const suiteSize = 14

// Suite returns the scenarios over which a rule is judged as a whole.
func Suite() []Scenario {
	var all []Scenario
	for _, n := range named[:suiteSize] {
		s, _ := Named(n.name)
		all = append(all, s)
	}
	return all
}

// ScenarioNames returns what [Named] knows.
func ScenarioNames() []string {
	var all []string
	for _, n := range named {
		all = append(all, n.name)
	}
	return all
}

// Named returns the scenario called name.
func Named(name string) (Scenario, error) {
	for _, n := range named {
		if n.name == name {
			s := Base()
			s.Name = name
			n.change(&s)
			return s, nil
		}
	}
	return Scenario{}, fmt.Errorf("%q is no scenario; there are %s", name, strings.Join(ScenarioNames(), ", "))
}

// SetNodes changes the number of nodes, and that of the resolvers in step, so that the
// biggest of them stays a burden.
func (s *Scenario) SetNodes(n int) {
	s.Nodes = n
	s.Resolvers = n * 25 / 2
}

// SetMethod says who balances, in words such as "ideal", "patent" or "damped+dns+relay":
// a [Balance] or a rule of [balancing.Policy], and then what helps it: "dns" for four
// addresses in an answer without overloaded nodes, "relay" for the relay of single
// requests, "h3" for cheap connections.
func (s *Scenario) SetMethod(method string) error {
	first, helps, _ := strings.Cut(method, "+")
	if err := s.Balance.UnmarshalText([]byte(first)); err != nil || s.Balance == Redirects {
		s.Balance = Redirects
		if err := s.Policy.Rule.UnmarshalText([]byte(first)); err != nil {
			return fmt.Errorf("method %q: %w, and not one of %s", method, err, strings.Join(balanceNames[1:], ", "))
		}
	}
	for help := range strings.SplitSeq(helps, "+") {
		switch help {
		case "":
		case "dns":
			s.Addresses, s.DNSHelps = max(s.Addresses, 4), true
		case "relay":
			s.Relay = true
		case "h3":
			s.H3 = true
		default:
			return fmt.Errorf("method %q: %q is no help; there are dns, relay, h3", method, help)
		}
	}
	return nil
}

// String says what is simulated, in a line.
func (s Scenario) String() string { return s.title(true) }

// title is String, with or without the offered load.
func (s Scenario) title(load bool) string {
	d := fmt.Sprintf("scenario %s, %d nodes × %d cores", s.Name, s.Nodes, s.Cores)
	if load {
		d += fmt.Sprintf(", %g %% offered", s.Load)
	}
	return d + fmt.Sprintf(", reports every %v, seed %d", s.Period, s.Seed)
}

// maxAddresses of an answer.
const maxAddresses = 8

// Validate reports everything that makes no sense.
func (s *Scenario) Validate() error {
	var errs []error
	check := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	share := func(x float64) bool { return x >= 0 && x <= 1 }
	check(s.Nodes >= 1 && s.Nodes <= balancing.MaxNodes, "nodes %d: want 1 to %d", s.Nodes, balancing.MaxNodes)
	check(s.Cores >= 1 && s.Cores <= 1024, "cores %d: want 1 to 1024", s.Cores)
	check(share(s.SlowShare) && s.SlowSpeed > 0, "slow nodes: share %v at speed %v: want a share of 0 to 1 and a speed above 0", s.SlowShare, s.SlowSpeed)
	check(s.Load > 0 && s.Load <= 500, "load %v: want more than 0 and at most 500 per cent", s.Load)
	check(s.Service > 0 && s.Spread >= 0, "service %v with spread %v: want a time above 0 and a spread of at least 0", s.Service, s.Spread)
	check(s.Session >= 1 && s.Session <= 1e6, "session %v: want 1 to a million requests", s.Session)
	check(s.Think >= 0 && s.RTT >= 0 && s.Handshake >= 0, "think %v, rtt %v, handshake %v: must not be negative", s.Think, s.RTT, s.Handshake)
	check(share(s.Pinned) && share(s.Loss) && share(s.Flash), "pinned %v, loss %v, flash %v: want shares of 0 to 1", s.Pinned, s.Loss, s.Flash)
	check(s.Resolvers >= 1 && s.Zipf >= 0 && s.TTL >= 0, "%d resolvers, zipf %v, ttl %v: want at least one, the others not negative", s.Resolvers, s.Zipf, s.TTL)
	check(s.Addresses >= 1 && s.Addresses <= maxAddresses, "addresses %d: want 1 to %d", s.Addresses, maxAddresses)
	check(s.Policy.Light >= 0 && s.Policy.Margin >= 0, "light %v, margin %v: must not be negative", float64(s.Policy.Light), float64(s.Policy.Margin))
	check(s.Period >= 10*time.Millisecond && s.OfflineAfter >= 1, "period %v, off-line after %d: want at least 10ms and 1", s.Period, s.OfflineAfter)
	check(s.Tau >= 0 && s.Fade > 0 && s.Cooldown >= 0 && s.Full > 0, "tau %v, fade %v, cooldown %v, full %v: want none negative, fade and full above 0", s.Tau, s.Fade, s.Cooldown, s.Full)
	check(s.Dies == 0 || s.Nodes >= 2, "a node dies: want at least 2 nodes")
	check(s.Dies >= 0 && (s.Returns == 0 || s.Returns > s.Dies && s.Dies > 0), "dies %v, returns %v: a node returns after it has died", s.Dies, s.Returns)
	check(s.WarmUp >= 0 && s.Measured >= time.Second, "warm-up %v, measured %v: want at least a second measured", s.WarmUp, s.Measured)
	return errors.Join(errs...)
}
