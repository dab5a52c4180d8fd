package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// contestant is a product that moves VIPs, on the machines of a LAN.
type contestant interface {
	start(n *lanNode)         // the daemon, and what serves, if it does not run
	stop(n *lanNode)          // the daemon, in order; returns at once
	awaitEnd(n *lanNode)      // of a daemon that was stopped or killed
	daemon(n *lanNode) []int  // the processes that move VIPs, first the one that watches the others
	service(n *lanNode) []int // the processes that serve
	atHome() bool             // each VIP is with its home, which serves, and with nobody else
	question() question       // that its service answers
}

// contestants take part in turns, each with a LAN of its own.
var contestants = []struct {
	name, test string
	join       func(*lan) contestant
}{
	{"Peerage, 500 ms", "peerage-500ms", func(l *lan) contestant { return newPeerageSite(l, 500*time.Millisecond) }},
	{"keepalived, 1 s", "keepalived-1s", func(l *lan) contestant { return newKeepalivedSite(l, 2, "1") }},
	{"Peerage, 50 ms", "peerage-50ms", func(l *lan) contestant { return newPeerageSite(l, 50*time.Millisecond) }},
	{"keepalived, 0.1 s", "keepalived-100ms", func(l *lan) contestant { return newKeepalivedSite(l, 3, "0.1") }},
}

// failures are what befalls the holder of a VIP. Begin returns what mends it.
var failures = []struct {
	name  string
	begin func(*failover) (end func())
}{
	{"power loss", func(f *failover) func() {
		// Nothing passes any more, though all goes on on the machine.
		f.isolate(f.holder.name, public, true)
		f.isolate(f.holder.name, internal, true)
		return func() {
			f.isolate(f.holder.name, public, false)
			f.isolate(f.holder.name, internal, false)
		}
	}},
	{"cable pulled", func(f *failover) func() {
		f.cable(f.holder.name, public, false)
		return func() { f.cable(f.holder.name, public, true) }
	}},
	{"partition", func(f *failover) func() {
		// It is alone on its side; the gateway and the client are on the other.
		f.move(f.holder.name, public, bridgeOf(apart(public)))
		return func() { f.move(f.holder.name, public, bridgeOf(public)) }
	}},
	{"kill -9 of the daemon", func(f *failover) func() { return f.kill(f.site.daemon(f.holder)) }},
	{"kill -9 of all", func(f *failover) func() {
		return f.kill(slices.Concat(f.site.daemon(f.holder), f.site.service(f.holder)))
	}},
	{"daemon frozen", func(f *failover) func() { return f.freeze(f.site.daemon(f.holder)) }},
	{"all frozen", func(f *failover) func() {
		return f.freeze(slices.Concat(f.site.daemon(f.holder), f.site.service(f.holder)))
	}},
	{"stopped in order", func(f *failover) func() {
		f.site.stop(f.holder)
		return f.restart
	}},
}

const (
	failedFor = 4 * time.Second // keepalived at its default has taken over by then
	healedFor = 8 * time.Second
	idleFor   = 20 * time.Second

	// What is seen of a failure does not count if the client was late by more than tooLate,
	// for then it sees outages that there are not, or if some process waited for a CPU in
	// more than tooBusy per cent of the time. Then it is tried again, this often at most.
	tooLate = 50 * time.Millisecond
	tooBusy = 40
	tries   = 3

	// stillDouble is long enough for the watchers to see who answers.
	stillDouble = 3 * watchGap

	// longestPhase is that of the longest timer of a contestant: a fault comes at any point
	// of it.
	longestPhase = time.Second
)

// failover is a LAN whose holder of a VIP fails.
type failover struct {
	*lan
	site         contestant
	holder       *lanNode
	here, beyond *watcher // with the client, and apart from it
}

// outcome is what was seen of one failure. Times are in milliseconds.
type outcome struct {
	Contestant string `json:"contestant"`
	Fault      string `json:"fault"`

	Address   float64 `json:"address_ms"`     // longest time without an echo of the VIP
	Service   float64 `json:"service_ms"`     // and without an answer of the service on it
	Double    float64 `json:"double_ms"`      // for so long two stations answered ARP for it
	Endless   bool    `json:"endless"`        // and still did so when the failure was mended
	HealLost  float64 `json:"heal_ms"`        // the service did not answer in the 8 s after that
	HealDark  float64 `json:"heal_dark_ms"`   // longest part of it
	HealTwo   float64 `json:"heal_double_ms"` // two answered ARP then
	Late      float64 `json:"late_ms"`        // longest time in which this machine did not let the client ask
	Waited    float64 `json:"waited_percent"` // of the time in which some process of this machine waited for a CPU
	Load      float64 `json:"load"`           // of this machine
	Discarded bool    `json:"discarded"`      // it does not count: see tooLate

	CPU float64 `json:"cpu_percent,omitempty"` // of one core, of an idle node; then it is nothing else

	At     time.Time `json:"at"`               // when it failed
	DarkAt time.Time `json:"dark_at,omitzero"` // when the service fell silent for the longest time
	HealAt time.Time `json:"heal_at,omitzero"` // and when it did in the 8 s after the failure
	Log    []string  `json:"log,omitempty"`    // of the nodes of Peerage, from then on
}

// TestFailover measures how fast VIPs move when their holder fails, and how cleanly:
// Peerage beside keepalived, in turns, on the same machine. It asserts nothing but that
// the contestants run; 'make bench-failover' makes a table and a chart of it.
//
// PEERAGE_FAILOVER says how often each failure happens, PEERAGE_FAILOVER_JSON in which file
// each outcome is noted, a line of JSON each: those that are there already count with the new
// ones. PEERAGE_FAILOVER_CHART is the file for the chart.
func TestFailover(t *testing.T) {
	text := os.Getenv("PEERAGE_FAILOVER")
	if text == "" {
		t.Skip("takes an hour and more: make bench-failover")
	}
	rounds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	notes := os.Getenv("PEERAGE_FAILOVER_JSON")
	outcomes := readOutcomes(t, notes)
	note := func(o outcome) {
		outcomes = append(outcomes, o)
		if notes != "" {
			appendOutcome(t, notes, o)
		}
	}
	for round := range rounds {
		t.Run(fmt.Sprintf("round-%d", round+1), func(t *testing.T) {
			for _, c := range contestants {
				t.Run(c.test, func(t *testing.T) { compete(t, c.name, c.join, round == 0, note) })
			}
		})
	}
	if err := failoverTables(os.Stdout, outcomes); err != nil {
		t.Fatal(err)
	}
	if name := os.Getenv("PEERAGE_FAILOVER_CHART"); name != "" {
		var chart strings.Builder
		if err := failoverChart(&chart, outcomes); err != nil {
			t.Fatal(err)
		}
		writeFile(t, name, chart.String(), 0o644)
	}
}

// readOutcomes returns those that are noted in a file; none if there is no file.
func readOutcomes(t *testing.T, name string) (all []outcome) {
	t.Helper()
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(bufio.NewReader(f))
	for d.More() {
		var o outcome
		if err := d.Decode(&o); err != nil {
			t.Fatalf("%s: %v; remove it to begin anew", name, err)
		}
		all = append(all, o)
	}
	return all
}

func appendOutcome(t *testing.T, name string, o outcome) {
	t.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// compete lets everything befall one contestant once.
func compete(t *testing.T, name string, join func(*lan) contestant, idle bool, note func(outcome)) {
	l := newLAN(t, 3)
	l.addRouter()
	l.ordinaryClient()
	f := &failover{lan: l, site: join(l), holder: l.nodes[0]}
	for _, n := range l.nodes {
		f.site.start(n)
	}
	f.awaitHome()
	if idle {
		note(outcome{Contestant: name, CPU: f.idle(), At: time.Now(), Load: machineLoad(t)})
	}
	l.bridge(apart(public))
	f.here = l.newWatcher("here", "2001:db8::fc", public)
	f.beyond = l.newWatcher("beyond", "2001:db8::fd", apart(public))
	for _, c := range failures {
		t.Run(c.name, func(t *testing.T) {
			for range tries {
				awaitQuiet(t)
				o := f.try(t, c.begin)
				o.Contestant, o.Fault = name, c.name
				o.Discarded = o.Late > milliseconds(tooLate) || o.Waited > tooBusy
				note(o)
				t.Logf("dark: address %.0f ms, service %.0f ms; two answer %.0f ms; afterwards %.0f ms lost, two answer %.0f ms; client late by %.0f ms, CPU waited for %.0f %%",
					o.Address, o.Service, o.Double, o.HealLost, o.HealTwo, o.Late, o.Waited)
				f.awaitHome()
				if !o.Discarded {
					break
				}
			}
		})
	}
}

// try lets the holder fail at a random point of the contestants' timers, and mends it.
func (f *failover) try(t *testing.T, begin func(*failover) func()) (o outcome) {
	vip := f.holder.vips[0]
	f.forget(vip)
	waited, began := waitedForCPU(), time.Now()
	address, service := f.ask(t, vip, echoRequest()), f.ask(t, vip, f.site.question())
	pause(t.Context(), rand.N(longestPhase))
	o.Load = machineLoad(t)
	marks := f.marks()
	o.At = time.Now()
	end := begin(f)
	pause(t.Context(), failedFor)
	a, s := address(), service()
	o.Address, o.Service = milliseconds(a.outage), milliseconds(s.outage)
	mended := time.Now()
	o.Double = milliseconds(f.double(span{from: o.At, to: mended}))
	o.Endless = f.double(span{from: mended.Add(-stillDouble), to: mended}) > 0

	service = f.ask(t, vip, f.site.question())
	mended = time.Now()
	end()
	pause(t.Context(), healedFor)
	h := service()
	o.HealLost, o.HealDark = milliseconds(h.lost), milliseconds(h.outage)
	o.DarkAt, o.HealAt = s.began, h.began
	o.HealTwo = milliseconds(f.double(span{from: mended, to: time.Now()}))
	o.Late = milliseconds(max(a.stall, s.stall, h.stall))
	o.Waited = 100 * (waitedForCPU() - waited).Seconds() / time.Since(began).Seconds()
	o.Log = f.events(marks)
	return o
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// kill ends processes, first those that the first one watches: it must not see them die. It
// returns what starts them anew.
func (f *failover) kill(pids []int) func() {
	f.signal(pids[:1], syscall.SIGSTOP)
	f.signal(pids[1:], syscall.SIGKILL)
	f.signal(pids[:1], syscall.SIGKILL)
	return f.restart
}

// freeze stops processes, and returns what lets them go on.
func (f *failover) freeze(pids []int) func() {
	f.signal(pids, syscall.SIGSTOP)
	f.t.Cleanup(func() { // if it comes to nothing else, for what is frozen cannot be ended
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	return func() { f.signal(pids, syscall.SIGCONT) }
}

func (f *failover) signal(pids []int, s syscall.Signal) {
	f.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil {
			f.t.Fatalf("signal %v to process %d: %v", s, pid, err)
		}
	}
}

// restart starts the holder, which ends or has ended.
func (f *failover) restart() {
	f.site.awaitEnd(f.holder)
	f.site.start(f.holder)
}

func (f *failover) awaitHome() {
	f.t.Helper()
	eventually(f.t, "each VIP is at home, and nowhere else", f.site.atHome)
}

// double returns for how long two stations answered ARP for the VIP, wherever they are.
func (f *failover) double(in span) time.Duration {
	var runs []stretch
	for _, w := range []*watcher{f.here, f.beyond} {
		w.mu.Lock()
		runs = append(runs, w.seen[f.holder.vips[0]].runs...)
		w.mu.Unlock()
	}
	return overlap(runs, in)
}

// overlap returns how much of a span at least two stations answered in.
func overlap(runs []stretch, in span) (total time.Duration) {
	times := []time.Time{in.from, in.to}
	for _, r := range runs {
		times = append(times, r.from, r.to)
	}
	slices.SortFunc(times, time.Time.Compare)
	for i, from := range times[1:] {
		from, to := times[i], from
		if from.Before(in.from) || to.After(in.to) {
			continue
		}
		var stations []string
		for _, r := range runs {
			if !r.from.After(from) && !r.to.Before(to) && !slices.Contains(stations, r.station) {
				stations = append(stations, r.station)
			}
		}
		if len(stations) > 1 {
			total += to.Sub(from)
		}
	}
	return total
}

// ordinaryClient gives the client the timers that Linux comes with.
func (l *lan) ordinaryClient() {
	l.t.Helper()
	err := l.client.do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/neigh/"+public+"/base_reachable_time_ms", []byte("30000"), 0)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// forget has the client forget who has a VIP: what was left wrong by one failure is not
// counted twice.
func (f *failover) forget(vip fmt.Stringer) {
	f.t.Helper()
	err := f.client.do(func() error {
		ifi, err := netlink.LinkByName(public)
		if err != nil {
			return err
		}
		all, err := netlink.NeighList(ifi.Attrs().Index, netlink.FAMILY_V4)
		for _, e := range all {
			if e.IP.String() == vip.String() {
				err = errors.Join(err, netlink.NeighDel(&e))
			}
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// idle returns how much of a core the daemon of a node takes that has nothing to do, and
// the process that serves where that is part of the product.
func (f *failover) idle() float64 {
	pids := f.site.daemon(f.holder)
	if _, ok := f.site.(*peerageSite); ok {
		pids = append(pids, f.site.service(f.holder)...)
	}
	spent := func() (all time.Duration) {
		for _, pid := range pids {
			all += processTime(f.t, pid)
		}
		return all
	}
	before := spent()
	pause(f.t.Context(), idleFor)
	return 100 * (spent() - before).Seconds() / idleFor.Seconds()
}
