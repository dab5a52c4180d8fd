package pin

import (
	"encoding/binary"
	"math"
	"net/http"
	"strconv"
	"time"

	"peerage/balancing"
)

// Hop marks a client that was redirected a moment ago, so that it is not redirected
// again (patent S210).
type Hop struct {
	Target balancing.NodeID
	At     time.Time      // in whole seconds
	Load   balancing.Load // of the sender, in hundredths of a per cent; the target can tell whether the redirect was worth it
}

const (
	hopName = prefix + "hop"
	hopLife = 10 * time.Second
	// The clocks of nodes may differ by this much before they set no pins any more.
	clockError = 30 * time.Second
)

// HopCookie returns the value of the Set-Cookie header that marks a client of host. The
// mark lasts for 10 s.
func (r *Ring) HopCookie(host string, h Hop) string {
	return hopName + "=" + r.sealHop(h) + "; Max-Age=" + strconv.Itoa(int(hopLife/time.Second)) + attributes("/", host)
}

// FindHop returns the client's hop marker from the headers of a request, or a [Reason]
// why it has none.
func (r *Ring) FindHop(h http.Header, now time.Time) (Hop, error) {
	var err error = Absent
	for value := range values(h, hopName) {
		hop, why := r.openHop(value, now)
		if why == nil {
			return hop, nil
		}
		err = why
	}
	return Hop{}, err
}

func (r *Ring) sealHop(h Hop) string {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.cookie = append(s.cookie[:0], hopName...)
	s.plain = append(s.plain[:0], version)
	s.plain = appendSeconds(s.plain, h.At)
	load := math.Round(float64(h.Load) * 100)
	s.plain = binary.BigEndian.AppendUint32(s.plain, uint32(min(max(load, 0), math.MaxUint32)))
	s.plain = append(s.plain, h.Target...)
	return r.seal(s)
}

func (r *Ring) openHop(value string, now time.Time) (Hop, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.cookie = append(s.cookie[:0], hopName...)
	if err := r.open(s, value, hopHead, now); err != nil {
		return Hop{}, err
	}
	h := Hop{
		Target: balancing.NodeID(s.plain[hopHead:]),
		At:     seconds(s.plain[1:]),
		Load:   balancing.Load(binary.BigEndian.Uint32(s.plain[5:])) / 100,
	}
	switch age := now.Sub(h.At); {
	case !h.Target.Valid():
		return Hop{}, Garbled
	case age > hopLife+time.Second || age < -clockError: // whole seconds: it was set up to one later
		return Hop{}, Expired
	}
	return h, nil
}
