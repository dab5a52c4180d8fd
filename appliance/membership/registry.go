package membership

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// The keys of the members table: "<name>/<fingerprint>" for each identity that a name had,
// and "-removed/<name>/<fingerprint>" for those that it has no more. No name begins with a
// hyphen; what else does, but for [leavingPrefix], is of a later version. Neither is ever
// deleted, for what a node signed while it was a member stays signed.
const (
	removedPrefix = "-removed/"
	otherPrefix   = "-"
)

const (
	domainMember  domain = "member"
	domainRemoved domain = "member removed"
)

// Member is a node of the site as the others know it.
type Member struct {
	V    int              `json:"v"`
	Name balancing.NodeID `json:"name"`
	Public
	By      balancing.NodeID `json:"by"`      // who admitted it; itself for one that began with copies of the files
	Version string           `json:"version"` // of the software at that time

	Since time.Time `json:"-"`
	stamp cluster.Stamp
}

// removal says that a name has an identity no more.
type removal struct {
	V           int              `json:"v"`
	Name        balancing.NodeID `json:"name"`
	Fingerprint string           `json:"fingerprint"`
	By          balancing.NodeID `json:"by"`
	To          balancing.NodeID `json:"to,omitempty"` // its name from now on; "" if it left the site
}

func memberKey(name balancing.NodeID, p Public) string { return string(name) + "/" + p.Fingerprint() }

func removedKey(name balancing.NodeID, fingerprint string) string {
	return removedPrefix + string(name) + "/" + fingerprint
}

// checkMembers vets an entry. Who joins signs for itself, and so shows that it has the key;
// one that is renamed has shown it before.
func checkMembers(key string, value []byte) error {
	if strings.HasPrefix(key, removedPrefix) {
		var r removal
		if _, err := open(domainRemoved, value, &r); err != nil || !r.Name.Valid() || removedKey(r.Name, r.Fingerprint) != key {
			return errEntry
		}
		return nil
	}
	if strings.HasPrefix(key, leavingPrefix) {
		return checkLeaving(key, value)
	}
	if strings.HasPrefix(key, otherPrefix) {
		return checkLater(key, value)
	}
	var m Member
	if _, err := open(domainMember, value, &m); err != nil || !m.Name.Valid() || !m.valid() || memberKey(m.Name, m.Public) != key {
		return errEntry
	}
	return nil
}

// Registry knows the identities of all nodes.
type Registry struct {
	table *cluster.Table
	self  balancing.NodeID
	id    *Identity

	mu     sync.Mutex
	digest [32]byte // of the table that roll is of
	roll   *roll
}

// roll is the table, parsed. It is immutable.
type roll struct {
	members []Member                      // by name
	had     map[balancing.NodeID][]Member // every identity that a name ever had
	signers map[string]bool               // their signing keys: whether one is a member's

	departures []departure
}

// NewRegistry returns what the members table, of [MembersTable], says. Self is the node
// that id belongs to.
func NewRegistry(table *cluster.Table, self balancing.NodeID, id *Identity) *Registry {
	return &Registry{table: table, self: self, id: id}
}

var (
	// ErrRemoved says that this node was removed from the site.
	ErrRemoved = errors.New("this node was removed from the site")

	// ErrOtherIdentity says that the peers know a name by another identity.
	ErrOtherIdentity = errors.New("the site knows the node by another identity")
)

// Members returns the members, by name.
func (r *Registry) Members() []Member { return slices.Clone(r.read().members) }

// Member returns the member of that name: of several identities the one that had it first.
func (r *Registry) Member(name balancing.NodeID) (Member, bool) {
	all := r.read().members
	i, ok := slices.BinarySearchFunc(all, name, func(m Member, name balancing.NodeID) int { return cmp.Compare(m.Name, name) })
	if !ok {
		return Member{}, false
	}
	return all[i], true
}

// read returns the table as it is now.
func (r *Registry) read() *roll {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.table.Digest(); r.roll == nil || d != r.digest {
		r.roll, r.digest = r.parse(), d // what changed meanwhile changes the digest
	}
	return r.roll
}

func (r *Registry) parse() *roll {
	all := &roll{had: map[balancing.NodeID][]Member{}, signers: map[string]bool{}}
	first := map[balancing.NodeID]Member{}
	for _, i := range r.table.Items("") {
		m, ok := parseMember(i)
		if !ok {
			continue
		}
		is := r.is(&m)
		if old, there := first[m.Name]; is && (!there || m.before(&old)) {
			first[m.Name] = m
		}
		all.had[m.Name] = append(all.had[m.Name], m)
		all.signers[string(m.Sign)] = all.signers[string(m.Sign)] || is
	}
	for _, name := range slices.Sorted(maps.Keys(first)) {
		all.members = append(all.members, first[name])
	}
	all.departures = r.parseDepartures(all)
	return all
}

// is reports whether a name has not lost that identity since it got it.
func (r *Registry) is(m *Member) bool {
	removed, ok := r.table.Get(removedKey(m.Name, m.Fingerprint()))
	return !ok || removed.Stamp < m.stamp // one may get its name back
}

// before reports whether m had the name before o.
func (m *Member) before(o *Member) bool {
	return cmp.Or(cmp.Compare(m.stamp, o.stamp), cmp.Compare(m.Fingerprint(), o.Fingerprint())) < 0
}

// parseMember reads an item that was vetted before.
func parseMember(i cluster.Item) (m Member, ok bool) {
	if strings.HasPrefix(i.Key, otherPrefix) || !parseSigned(i, &m) {
		return Member{}, false
	}
	m.Since, m.stamp = i.Stamp.Time(), i.Stamp
	return m, true
}

// Known reports whether key is the signing key of the member of that name.
func (r *Registry) Known(name balancing.NodeID, key crypto.PublicKey) bool {
	k, ok := key.(ed25519.PublicKey)
	m, known := r.Member(name)
	return ok && known && m.Sign.Equal(k)
}

// Verify reports whether the node called signer signed a message, now or in the time when
// it was a member.
func (r *Registry) Verify(signer string, message, sig []byte) bool {
	return slices.ContainsFunc(r.read().had[balancing.NodeID(signer)], func(m Member) bool {
		return ed25519.Verify(m.Sign, message, sig)
	})
}

// signers returns the signing keys of all members, and of those that were members once:
// true for the members.
func (r *Registry) signers() map[string]bool { return r.read().signers }

// Register makes this node a member if its name has no identity yet: it holds the site key,
// so somebody gave it to it. One that is a member under another name takes that off: it was
// renamed, and the site document has not followed, or has gone back. It is to be called once
// the node has heard from its peers.
func (r *Registry) Register(version string) error {
	mine := r.id.Public().Fingerprint()
	switch m, ok := r.Member(r.self); {
	case ok && m.Fingerprint() == mine:
		return nil
	case ok:
		return fmt.Errorf("%w: %s is %s there, and has %s in its data directory: put the right node.key back, or remove %[2]s from the site and let it join anew", ErrOtherIdentity, r.self, m.Fingerprint(), mine)
	}
	if i, ok := r.table.Get(removedKey(r.self, mine)); ok {
		if now := r.nameOf(mine); now != "" {
			return r.Rename(now, r.self)
		}
		return fmt.Errorf("%w on %s, by %s: let it join anew with a token", ErrRemoved, i.Stamp.Time().UTC().Format(time.DateTime), i.Node)
	}
	key, value := r.id.entry(r.self, r.self, version)
	return r.table.Put(key, value, time.Time{})
}

// entry is the identity as a member of that name.
func (i *Identity) entry(name, by balancing.NodeID, version string) (key string, value []byte) {
	m := Member{V: 1, Name: name, Public: i.public, By: by, Version: version}
	return memberKey(name, m.Public), i.seal(domainMember, m)
}

// admit makes a node a member that asks for it with an entry that it has signed.
func (r *Registry) admit(key string, value []byte) error {
	return r.table.Put(key, value, time.Time{})
}

// Remove takes a node out of the members. It keeps the site key that it has: rotate that
// afterwards.
func (r *Registry) Remove(name balancing.NodeID) error {
	items := map[string][]byte{}
	r.remove(items, name, "")
	if len(items) == 0 {
		return refuse(ReasonUnknown, "remove %s: no member of the site", name)
	}
	return r.table.PutAll(items)
}

// remove collects what takes every identity of a name away.
func (r *Registry) remove(items map[string][]byte, name, to balancing.NodeID) {
	for _, m := range r.read().had[name] {
		if r.is(&m) {
			items[removedKey(name, m.Fingerprint())] = r.id.seal(domainRemoved, removal{V: 1, Name: name, Fingerprint: m.Fingerprint(), By: r.self, To: to})
		}
	}
}

// nameOf returns the name of the member that has an identity, or "".
func (r *Registry) nameOf(fingerprint string) balancing.NodeID {
	for _, m := range r.read().members {
		if m.Fingerprint() == fingerprint {
			return m.Name
		}
	}
	return ""
}

// OwnName returns the one of names that is this node's: the one that it has, or else one
// that it had before it was renamed, and that is nobody else's. It is "" if there is none,
// and for a node that was removed.
func (r *Registry) OwnName(names []balancing.NodeID) balancing.NodeID {
	mine := r.id.Public().Fingerprint()
	now := r.nameOf(mine)
	if now == "" || slices.Contains(names, now) {
		return now
	}
	for _, name := range names {
		_, taken := r.Member(name)
		had := slices.ContainsFunc(r.read().had[name], func(m Member) bool { return m.Fingerprint() == mine })
		if had && !taken {
			return name
		}
	}
	return ""
}

// Rename gives a member another name. The node takes it when its node file says so. One
// that has it already, because the rest of its renaming was cut short, may be renamed again.
func (r *Registry) Rename(from, to balancing.NodeID) error {
	m, ok := r.Member(from)
	switch {
	case !ok && r.renamedTo(from, to):
		return nil
	case !ok:
		return refuse(ReasonUnknown, "rename %s: no member of the site", from)
	case !to.Valid():
		return refuse(ReasonName, "rename %s: the new name is not that of a node: up to %d lower-case letters, digits and inner hyphens", from, balancing.MaxNodeID)
	}
	if _, taken := r.Member(to); taken {
		return refuse(ReasonTaken, "rename %s: there is a node %s already", from, to)
	}
	items := map[string][]byte{}
	r.remove(items, from, to)
	m.Name, m.By = to, r.self
	items[memberKey(to, m.Public)] = r.id.seal(domainMember, m)
	return r.table.PutAll(items)
}

// Renamed reports whether the name is an earlier one of a member, which may not know of its
// new one yet.
func (r *Registry) Renamed(name balancing.NodeID) bool { return r.renamedTo(name, "") }

// renamedTo reports whether a member was called name before it was called to, or anything if
// that is "".
func (r *Registry) renamedTo(name, to balancing.NodeID) bool {
	for _, i := range r.table.Items(removedPrefix + string(name) + "/") {
		var gone removal
		if !parseSigned(i, &gone) || gone.To == "" || to != "" && gone.To != to {
			continue
		}
		if m, ok := r.Member(gone.To); ok && m.Fingerprint() == gone.Fingerprint {
			return true
		}
	}
	return false
}

// Watch returns a channel that gets a value after each change; see [cluster.Table.Watch].
func (r *Registry) Watch() <-chan struct{} { return r.table.Watch() }
