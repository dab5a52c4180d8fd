package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Entry says which address of the site a visitor begins at. The zero value leaves it to
// the DNS: each visitor asks, and takes the first address of the answer.
type Entry struct {
	// Zipf, if above 0, gives the k-th address in numerical order a share of 1/k^Zipf.
	Zipf float64

	// To, if not empty, are the addresses and their shares, in place of the DNS.
	To []Share
}

// Share is the weight of an address.
type Share struct {
	Address netip.Addr
	Weight  float64
}

// maxAddresses of a site that are kept apart.
const maxAddresses = 64

// ParseSkew reads "zipf=1.2".
func ParseSkew(s string) (Entry, error) {
	v, ok := strings.CutPrefix(s, "zipf=")
	x, err := strconv.ParseFloat(v, 64)
	if !ok || err != nil || !(x > 0 && x <= 10) {
		return Entry{}, fmt.Errorf("%q: want zipf= and an exponent above 0 and up to 10", s)
	}
	return Entry{Zipf: x}, nil
}

// ParseShare reads "127.0.0.21=60". Without a weight it is 1.
func ParseShare(s string) (Share, error) {
	a, w, weighted := strings.Cut(s, "=")
	share := Share{Weight: 1}
	var err error
	if share.Address, err = netip.ParseAddr(a); err != nil {
		return Share{}, fmt.Errorf("%q: want ADDRESS or ADDRESS=WEIGHT", s)
	}
	if weighted {
		if share.Weight, err = strconv.ParseFloat(w, 64); err != nil || !(share.Weight > 0 && share.Weight <= 1e6) {
			return Share{}, fmt.Errorf("%q: want a weight above 0 and up to a million", s)
		}
	}
	return share, nil
}

// addresses are those of the site that visitors begin at, with their shares.
type addresses struct {
	all  []netip.Addr
	upTo []float64 // the shares, summed up
}

// siteAddresses returns the addresses that visitors are spread over, or nil where each
// asks the DNS for itself. It looks the site up in any case: a site that cannot be found
// or must not be loaded is told of at once.
func (g *generator) siteAddresses(ctx context.Context) (*addresses, error) {
	shares := slices.Clone(g.Entry.To)
	if len(shares) == 0 {
		found, err := g.lookup(ctx, g.URL.Hostname())
		if err != nil {
			return nil, err
		}
		slices.SortFunc(found, netip.Addr.Compare)
		for k, a := range found {
			shares = append(shares, Share{a, math.Pow(float64(k+1), -g.Entry.Zipf)})
		}
	}
	if len(shares) > maxAddresses {
		return nil, fmt.Errorf("%s has %d addresses: %d are the most", g.URL.Hostname(), len(shares), maxAddresses)
	}
	a := new(addresses)
	sum := 0.0
	for _, s := range shares {
		if err := allowed(s.Address); err != nil {
			return nil, err
		}
		sum += s.Weight
		a.all = append(a.all, s.Address)
		a.upTo = append(a.upTo, sum)
	}
	if len(g.Entry.To) == 0 && g.Entry.Zipf == 0 {
		return nil, nil
	}
	return a, nil
}

func (a *addresses) draw(r *rand.Rand) netip.Addr {
	x := r.Float64() * a.upTo[len(a.upTo)-1]
	return a.all[min(sort.SearchFloat64s(a.upTo, x), len(a.all)-1)]
}

// errForeign says that an address is not of the lab.
var errForeign = errors.New("is neither a loopback nor a private address; load is for the lab and the demo only")

// labNetworks are those of the lab. They are for documentation: nobody has them, and no router
// passes them on (RFC 5737, RFC 3849).
var labNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}

// allowed returns an error unless load may be sent to a.
func allowed(a netip.Addr) error {
	a = a.Unmap()
	if a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || slices.ContainsFunc(labNetworks, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	return fmt.Errorf("%v %w", a, errForeign)
}

// lookup finds the addresses of a host, in the order in which they should be tried.
type lookup func(ctx context.Context, host string) ([]netip.Addr, error)

// resolver returns a lookup that asks a DNS server; the zero value stands for the
// system's.
func resolver(server netip.AddrPort) (lookup, error) {
	r := net.DefaultResolver
	if server.IsValid() {
		if err := allowed(server.Addr()); err != nil {
			return nil, fmt.Errorf("DNS server %w", err)
		}
		r = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, server.String())
		}}
	}
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		if a, err := netip.ParseAddr(host); err == nil {
			return []netip.Addr{a}, nil
		}
		found, err := r.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", host, err)
		}
		for i := range found {
			found[i] = found[i].Unmap()
		}
		return found, nil
	}, nil
}
