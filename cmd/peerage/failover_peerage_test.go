package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"peerage/appliance/node"
)

// peerageSite is a site of Peerage.
type peerageSite struct{ *lan }

func newPeerageSite(l *lan, period time.Duration) *peerageSite {
	l.setUp()
	for _, n := range l.nodes {
		path := filepath.Join(n.data(), "site.yaml")
		writeFile(l.t, path, edited(l.t, readFile(l.t, path), "measure: requests", fmt.Sprintf("measure: requests, period: %v", period)), 0o644)
		n.run(l.t, binary, "site", "check", path)
	}
	return &peerageSite{l}
}

func (s *peerageSite) start(n *lanNode)        { n.start() }
func (s *peerageSite) stop(n *lanNode)         { n.signal(syscall.SIGTERM) }
func (s *peerageSite) awaitEnd(n *lanNode)     { n.awaitEnd() }
func (s *peerageSite) daemon(n *lanNode) []int { return []int{n.cmd.Process.Pid} }
func (s *peerageSite) question() question      { return hostQuestion(s.t) }

func (s *peerageSite) service(n *lanNode) []int {
	s.t.Helper()
	var st *node.Status
	eventually(s.t, n.name+" answers", func() bool {
		st = n.status()
		return st != nil
	})
	return []int{st.ServerPID}
}

func (s *peerageSite) atHome() bool {
	for _, n := range s.nodes {
		st := n.status()
		if st == nil || st.Guard == nil || !st.Guard.Takeover.Fenced {
			return false
		}
		for _, vip := range n.vips {
			if !slices.Contains(st.Listening, vip) || !slices.Equal(s.holders(vip), []string{n.name}) {
				return false
			}
		}
	}
	return true
}
