package load

import (
	"context"
	"math"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"testing"
	"time"
)

func TestEntry(t *testing.T) {
	at := netip.MustParseAddr
	find := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{at("127.0.0.3"), at("127.0.0.1"), at("127.0.0.2")}, nil // in rotation
	}
	for _, test := range []struct {
		name  string
		entry Entry
		want  map[string]float64
	}{
		{"zipf", Entry{Zipf: 1}, map[string]float64{"127.0.0.1": 6. / 11, "127.0.0.2": 3. / 11, "127.0.0.3": 2. / 11}},
		{"to", Entry{To: []Share{{at("10.0.0.2"), 60}, {at("10.0.0.1"), 25}, {at("10.0.0.3"), 15}}}, map[string]float64{"10.0.0.2": 0.6, "10.0.0.1": 0.25, "10.0.0.3": 0.15}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := &generator{Config: Config{URL: &url.URL{Host: "example.com"}, Entry: test.entry}, lookup: find}
			a, err := g.siteAddresses(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			const n = 20_000
			got := map[string]float64{}
			rnd := rand.New(rand.NewPCG(1, 2))
			for range n {
				got[a.draw(rnd).String()] += 1. / n
			}
			for k, want := range test.want {
				if math.Abs(got[k]-want) > 0.02 {
					t.Errorf("%s is drawn %.3f of the times, want %.3f", k, got[k], want)
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("drawn: %v", got)
			}
		})
	}
	g := &generator{Config: Config{URL: &url.URL{Host: "example.com"}}, lookup: find}
	if a, err := g.siteAddresses(t.Context()); a != nil || err != nil {
		t.Errorf("without a skew: %v, %v; want each visitor to ask for itself", a, err)
	}
}

func TestParseEntry(t *testing.T) {
	if e, err := ParseSkew("zipf=1.2"); err != nil || e.Zipf != 1.2 {
		t.Errorf("zipf=1.2: %+v, %v", e, err)
	}
	for _, s := range []string{"", "1.2", "zipf=", "zipf=-1", "zipf=0", "zipf=NaN", "zipf=99", "even=1"} {
		if e, err := ParseSkew(s); err == nil {
			t.Errorf("%q is taken for %+v", s, e)
		}
	}
	for s, want := range map[string]Share{
		"127.0.0.21=60": {netip.MustParseAddr("127.0.0.21"), 60},
		"::1=0.5":       {netip.MustParseAddr("::1"), 0.5},
		"10.0.0.1":      {netip.MustParseAddr("10.0.0.1"), 1},
	} {
		if got, err := ParseShare(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "n1=60", "127.0.0.21=", "127.0.0.21=0", "127.0.0.21=-1", "127.0.0.21=NaN", "127.0.0.21=1e9"} {
		if got, err := ParseShare(s); err == nil {
			t.Errorf("%q is taken for %+v", s, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var h histogram
	for i := 1; i <= 1000; i++ {
		h.add(time.Duration(i) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.9: 900 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.quantile(q); math.Abs(float64(got)/float64(want)-1) > growth {
			t.Errorf("quantile %v is %v, want %v within %v %%", q, got, want, 100*growth)
		}
	}
	if got := h.mean(); got != 500500*time.Microsecond {
		t.Errorf("mean is %v, want 500.5ms", got)
	}
	h.add(0)
	h.add(time.Hour) // beyond the last bucket
	if h.most != time.Hour || h.total != 1002 {
		t.Errorf("most %v of %d", h.most, h.total)
	}
	var none histogram
	if none.quantile(0.99) != 0 || none.mean() != 0 {
		t.Error("no times have a quantile or a mean")
	}
}
