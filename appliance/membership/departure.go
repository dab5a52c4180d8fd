package membership

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// A node is removed in three steps: the site document loses it, then its identity is taken
// from the members, then the site gets a key that it does not know. One node takes all
// three; should it die in between, the others take those that are left:
//
//	announced ──document──▶ out of it ──Remove──▶ no member ──Rotate──▶ knows no key in use
//
// What they go by are the announcement, in the members table, and the stamps and boxes of
// the keys table: a key that was made after the removal, and with no box for the identity,
// is not known to it. One that was renamed is a member still.

// leavingPrefix begins the keys of announcements, "-leaving/<name>/<fingerprint>".
const leavingPrefix = "-leaving/"

const domainLeaving domain = "member leaving"

const (
	// patience is for how long a removal is left to the node that was asked for it.
	patience = absence

	// turn is by how much later than the node before it, by name, each node begins: one is
	// enough, and any will do. Two that begin at once do no harm.
	turn = 10 * time.Second

	// announcementLife bounds for how long an announcement counts. One whose node stays in the
	// site document, for its removal came to nothing, does not hit it much later.
	announcementLife = 24 * time.Hour
)

// leaving announces that an identity is to be removed once the site document has lost it.
type leaving struct {
	V           int              `json:"v"`
	Name        balancing.NodeID `json:"name"`
	Fingerprint string           `json:"fingerprint"`
	By          balancing.NodeID `json:"by"`
}

func leavingKey(name balancing.NodeID, fingerprint string) string {
	return leavingPrefix + string(name) + "/" + fingerprint
}

// checkLeaving vets an announcement.
func checkLeaving(key string, value []byte) error {
	var l leaving
	if _, err := open(domainLeaving, value, &l); err != nil || !l.Name.Valid() || leavingKey(l.Name, l.Fingerprint) != key {
		return errEntry
	}
	return nil
}

// departure is an identity that was removed, or is to be.
type departure struct {
	nodeName
	asked   time.Time     // when its removal began
	removed cluster.Stamp // 0: not yet
}

// AnnounceRemoval says that a node is about to be removed, before the site document loses
// it. If nobody calls [Registry.Remove] then, a [Rotation] does.
func (r *Registry) AnnounceRemoval(name balancing.NodeID) error {
	for _, m := range r.read().had[name] {
		if !r.is(&m) {
			continue
		}
		l := leaving{V: 1, Name: name, Fingerprint: m.Fingerprint(), By: r.self}
		if err := r.table.Put(leavingKey(l.Name, l.Fingerprint), r.id.seal(domainLeaving, l), time.Now().Add(announcementLife)); err != nil {
			return err
		}
	}
	return nil
}

// RetractRemoval takes [Registry.AnnounceRemoval] back: the site document keeps the node.
func (r *Registry) RetractRemoval(name balancing.NodeID) error {
	for _, i := range r.table.Items(leavingPrefix + string(name) + "/") {
		if err := r.table.Delete(i.Key); err != nil {
			return err
		}
	}
	return nil
}

// departures returns the identities that were removed, and those that are to be.
func (r *Registry) departures() []departure { return r.read().departures }

// parseDepartures finds them in the table, of which the rest is parsed.
func (r *Registry) parseDepartures(all *roll) (list []departure) {
	present := map[string]balancing.NodeID{}
	for name, had := range all.had {
		for _, m := range had {
			if r.is(&m) {
				present[m.Fingerprint()] = name
			}
		}
	}
	asked := map[string]time.Time{}
	for _, i := range r.table.Items(leavingPrefix) {
		var l leaving
		if !parseSigned(i, &l) {
			continue
		}
		asked[l.Fingerprint] = i.Stamp.Time()
		if present[l.Fingerprint] == l.Name {
			list = append(list, departure{nodeName: nodeName{l.Name, l.Fingerprint}, asked: i.Stamp.Time()})
		}
	}
	last := map[string]departure{} // by fingerprint: one may have had several names
	renamed := map[string]bool{}
	for _, i := range r.table.Items(removedPrefix) {
		var gone removal
		if !parseSigned(i, &gone) || last[gone.Fingerprint].removed > i.Stamp {
			continue
		}
		d := departure{nodeName{gone.Name, gone.Fingerprint}, i.Stamp.Time(), i.Stamp}
		if at, ok := asked[gone.Fingerprint]; ok && at.Before(d.asked) {
			d.asked = at
		}
		last[gone.Fingerprint], renamed[gone.Fingerprint] = d, gone.To != ""
	}
	for f, d := range last {
		if _, ok := present[f]; !ok && !renamed[f] {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b departure) int { return strings.Compare(a.fingerprint, b.fingerprint) })
	return list
}

// parseSigned reads an item that was vetted before.
func parseSigned(i cluster.Item, into any) bool {
	var e envelope
	return json.Unmarshal(i.Value, &e) == nil && json.Unmarshal(e.Signed, into) == nil
}

// strip takes identities away from their names.
func (r *Registry) strip(all []departure) error {
	items := map[string][]byte{}
	for _, d := range all {
		items[removedKey(d.name, d.fingerprint)] = r.id.seal(domainRemoved, removal{V: 1, Name: d.name, Fingerprint: d.fingerprint, By: r.self})
	}
	return r.table.PutAll(items)
}

// departed returns the identities that have left and know the key that the site goes over
// to, or seals with.
func (s *situation) departed() (list []departure) {
	for _, d := range s.departures {
		if n := len(s.gens); d.removed > 0 && (n == 0 || s.gens[n-1].boxed[d.fingerprint] || s.gens[n-1].stamp < d.removed) {
			list = append(list, d)
		}
	}
	return list
}

// unremoved returns the identities that are members still, although the site document has
// lost them by way of a removal.
func (s *situation) unremoved() (list []departure) {
	for _, d := range s.departures {
		if d.removed == 0 && !slices.Contains(s.nodes, d.name) {
			list = append(list, d)
		}
	}
	return list
}

// overdue returns those whose removal somebody else should have ended, and it is this
// node's turn to.
func (s *situation) overdue(all []departure) (list []departure) {
	after := patience + time.Duration(slices.IndexFunc(s.waits, func(n nodeName) bool { return n.name == s.self }))*turn
	for _, d := range all {
		// A node that has just started may not have heard yet what the others did meanwhile.
		if s.member && s.now.Sub(d.asked) >= after && s.now.Sub(s.began) >= after {
			list = append(list, d)
		}
	}
	return list
}

// end says how to go on with removals that were left half done.
func (s *situation) end(p *plan) {
	if p.strip = s.overdue(s.unremoved()); len(p.strip) > 0 {
		return
	}
	p.shut = s.overdue(s.departed())
	if phase, _ := s.phase(); len(p.shut) == 0 || phase == PhaseSteady {
		return
	}
	// A key at a time: a ring has no room for more.
	p.shut = nil
	if last := s.gens[len(s.gens)-1]; !last.force {
		p.force = last
	}
}

// end goes on with removals that were left half done.
func (r *Rotation) end(p plan) (again bool, err error) {
	switch {
	case len(p.strip) > 0:
		r.c.Log.Warn("removal of a node was left half done: it is no member from now on", "peers", names(namesOf(p.strip)))
		return true, r.c.Registry.strip(p.strip)
	case p.force != nil:
		return true, r.force(p.force)
	case len(p.shut) > 0:
		r.c.Log.Warn("removal of a node was left half done: the site key that it knows is replaced", "peers", names(namesOf(p.shut)))
		_, err := r.begin(RotateOptions{Force: true})
		return true, err
	}
	return false, nil
}

func namesOf(list []departure) (names []balancing.NodeID) {
	for _, d := range list {
		names = append(names, d.name)
	}
	return names
}
