package node

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"peerage/balancing"
)

// A server looks at what it depends on, so that it can say what it cannot serve (patent,
// summary: each module diagnoses its own server), and what an operator should see to. What
// it cannot serve its peers do; a server that cannot even answer itself sends no token, and
// its node is sick.

// leastFree is the part of the data directory's disk that should be free, in per cent.
const leastFree = 5

// diagnose returns the routes that cannot be served here now, and what is amiss.
func (s *server) diagnose() (unable []balancing.RouteID, amiss []string) {
	g := s.current.Load()
	down := map[string]bool{}
	for name, servers := range g.origins.status() {
		well := 0
		for _, b := range servers {
			if b.Up {
				well++
			}
		}
		switch {
		case well == 0:
			down[name] = true
			amiss = append(amiss, fmt.Sprintf("back-end %s: none of its %d servers is well", name, len(servers)))
		case well < len(servers):
			amiss = append(amiss, fmt.Sprintf("back-end %s: %d of its %d servers are not well", name, len(servers)-well, len(servers)))
		}
	}
	for i, r := range g.rules {
		if d := &g.doc.Routes[i]; d.Static == nil && down[d.Backend] && len(unable) < balancing.MaxUnable {
			unable = append(unable, balancing.RouteIDOf(r.Host, r.Path))
		}
	}
	if free, err := freeSpace(s.nodeFile.DataDir); err != nil {
		amiss = append(amiss, fmt.Sprintf("data directory: %v", err))
	} else if free < leastFree {
		amiss = append(amiss, fmt.Sprintf("data directory: only %.1f %% of its disk are free", free))
	}
	amiss = append(amiss, s.member.amiss()...)
	slices.Sort(amiss)
	return unable, amiss
}

// freeSpace returns the part of a directory's file system that is free, in per cent.
func freeSpace(dir string) (float64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	if st.Blocks == 0 {
		return 100, nil // a file system without a size
	}
	return 100 * float64(st.Bavail) / float64(st.Blocks), nil
}
