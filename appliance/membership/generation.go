package membership

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
)

// The keys of the keys table. A generation is one site key; <gen> is its number, of ten
// digits, and the ID of its key, for two sides of a partition may both make one:
//
//	gen/<gen>                 it was made; the key, in a box for each member
//	box/<gen>/<fingerprint>   the key in a box for who became a member meanwhile
//	use/<gen>                 all that are live can open with it: seal with it
//	retired/<key id>          all seal with a later one: open nothing but pins with it
//	force/<gen>               do not wait for nodes that are off-line
//	ring/<node>               the ring that the node has stored
//
// What a node has is told once it is durable, and everything else follows from that.
const (
	genPrefix     = "gen/"
	boxPrefix     = "box/"
	usePrefix     = "use/"
	retiredPrefix = "retired/"
	forcePrefix   = "force/"
	ringPrefix    = "ring/"
)

const (
	domainGeneration domain = "site key generation"
	domainBox        domain = "site key box"
	domainUse        domain = "site key use"
	domainRetired    domain = "site key retired"
	domainForce      domain = "site key force"
	domainRing       domain = "site key ring"
)

// entries of the keys table, as they are signed.
type (
	genEntry struct {
		V      int               `json:"v"`
		Number uint64            `json:"number"`
		ID     string            `json:"id"` // of the key
		By     balancing.NodeID  `json:"by"`
		After  []string          `json:"after"` // IDs of the keys before it, as who made it had them
		Boxes  map[string][]byte `json:"boxes"` // by the fingerprint of who can open it
	}
	boxEntry struct {
		V   int    `json:"v"`
		Gen string `json:"gen"`
		For string `json:"for"` // fingerprint
		Box []byte `json:"box"`
	}
	stepEntry struct { // use, retired and force
		V       int              `json:"v"`
		Subject string           `json:"subject"` // <gen> or <key id>
		By      balancing.NodeID `json:"by"`
	}
	ringEntry struct {
		V     int              `json:"v"`
		Node  balancing.NodeID `json:"node"`
		Seals string           `json:"seals"`
		Opens []string         `json:"opens"` // all that it opens everything with
	}
)

// genName is the <gen> of a generation.
func genName(number uint64, id string) string { return fmt.Sprintf("%010d/%s", number, id) }

const maxGeneration = 9_999_999_999

// validGen reports whether s is the name of a generation.
func validGen(s string) bool {
	number, id, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 64)
	return ok && err == nil && validKeyID(id) && genName(n, id) == s && n <= maxGeneration
}

func validKeyID(s string) bool { return isHex(s, 8) }

// validKeyIDs reports whether they can be those of a ring.
func validKeyIDs(ids []string) bool {
	return len(ids) <= 2 && !slices.ContainsFunc(ids, func(id string) bool { return !validKeyID(id) })
}

func validFingerprint(s string) bool { return isHex(s, 32) }

func isHex(s string, n int) bool {
	return len(s) == n && !strings.ContainsFunc(s, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
}

// checkKeys vets an entry: that it is signed, and says what its key says.
func checkKeys(key string, value []byte) error {
	prefix, rest, _ := strings.Cut(key, "/")
	step := func(d domain, valid func(string) bool) bool {
		var e stepEntry
		_, err := open(d, value, &e)
		return err == nil && e.Subject == rest && valid(rest)
	}
	ok := false
	switch prefix + "/" {
	case genPrefix:
		var e genEntry
		_, err := open(domainGeneration, value, &e)
		ok = err == nil && genName(e.Number, e.ID) == rest && validGen(rest) && validKeyIDs(e.After)
	case boxPrefix:
		var e boxEntry
		_, err := open(domainBox, value, &e)
		ok = err == nil && e.Gen+"/"+e.For == rest && validGen(e.Gen) && validFingerprint(e.For)
	case usePrefix:
		ok = step(domainUse, validGen)
	case retiredPrefix:
		ok = step(domainRetired, validKeyID)
	case forcePrefix:
		ok = step(domainForce, validGen)
	case ringPrefix:
		var e ringEntry
		_, err := open(domainRing, value, &e)
		ok = err == nil && string(e.Node) == rest && e.Node.Valid() && validKeyID(e.Seals) && validKeyIDs(e.Opens)
	default:
		return checkLater(key, value)
	}
	if !ok {
		return errEntry
	}
	return nil
}

// boxInfo binds a box to what it is for.
func boxInfo(gen, fingerprint string) string {
	return "peerage site key\x00" + gen + "\x00" + fingerprint
}

func sealKey(p Public, gen string, k keys.Key) ([]byte, error) {
	return p.Seal(boxInfo(gen, p.Fingerprint()), []byte(k.Reveal()))
}

// openKey opens a box for this node. The key must be the one that the generation names.
func openKey(id *Identity, gen string, box []byte) (keys.Key, error) {
	b, err := id.Open(boxInfo(gen, id.Public().Fingerprint()), box)
	if err != nil {
		return keys.Key{}, err
	}
	k, err := keys.Parse(string(b))
	if err != nil || !strings.HasSuffix(gen, "/"+k.ID()) {
		return keys.Key{}, errBox
	}
	return k, nil
}

// generation is one as far as this node knows it.
type generation struct {
	genEntry
	name  string // <gen>
	stamp cluster.Stamp
	boxes [][]byte        // for this node
	boxed map[string]bool // the fingerprints that have one
	mine  bool            // this node has the key, or can have it
	used  bool
	force bool
}

// ledger is what the keys table says.
type ledger struct {
	gens    []*generation // the oldest first
	retired map[string]time.Time
	rings   map[balancing.NodeID]ringEntry
}

// record is an entry of the table, parsed.
type record struct {
	prefix, subject string
	signer          string // its key
	stamp           cluster.Stamp
	gen             genEntry
	box             boxEntry
	ring            ringEntry
}

// parseRecords reads the table, in the order of the prefixes, so that what belongs to a
// generation comes after it.
func parseRecords(table *cluster.Table) []record {
	all := []record{}
	for _, prefix := range []string{genPrefix, boxPrefix, usePrefix, forcePrefix, retiredPrefix, ringPrefix} {
		for _, i := range table.Items(prefix) {
			var e envelope
			r := record{prefix: prefix, subject: i.Key[len(prefix):], stamp: i.Stamp}
			err := json.Unmarshal(i.Value, &e)
			if r.signer = string(e.Key); err == nil {
				switch prefix {
				case genPrefix:
					err = json.Unmarshal(e.Signed, &r.gen)
				case boxPrefix:
					err = json.Unmarshal(e.Signed, &r.box)
				case ringPrefix:
					err = json.Unmarshal(e.Signed, &r.ring)
				}
			}
			if err == nil { // always: it was vetted
				all = append(all, r)
			}
		}
	}
	return all
}

// readLedger makes sense of the table. A generation, and a box of it, counts only if a
// member made it; what members did who have left since stays done. A node speaks for itself
// alone.
func readLedger(records []record, registry *Registry, self Public, has func(keyID string) bool) ledger {
	l := ledger{retired: map[string]time.Time{}, rings: map[balancing.NodeID]ringEntry{}}
	byName := map[string]*generation{}
	signers := registry.signers()
	mine := self.Fingerprint()
	for _, r := range records {
		member, known := signers[r.signer]
		g := byName[r.subject]
		switch r.prefix {
		case genPrefix:
			if !member && !has(r.gen.ID) {
				continue
			}
			g := &generation{genEntry: r.gen, name: r.subject, stamp: r.stamp, boxed: map[string]bool{}}
			for f, box := range r.gen.Boxes {
				g.boxed[f] = true
				if f == mine {
					g.boxes = append(g.boxes, box)
				}
			}
			l.gens = append(l.gens, g)
			byName[r.subject] = g
		case boxPrefix:
			if g := byName[r.box.Gen]; g != nil && member {
				g.boxed[r.box.For] = true
				if r.box.For == mine {
					g.boxes = append(g.boxes, r.box.Box)
				}
			}
		case usePrefix:
			if g != nil && known {
				g.used = true
			}
		case forcePrefix:
			if g != nil && known {
				g.force = true
			}
		case retiredPrefix:
			if known {
				l.retired[r.subject] = r.stamp.Time()
			}
		case ringPrefix:
			if m, ok := registry.Member(r.ring.Node); ok && string(m.Sign) == r.signer {
				l.rings[r.ring.Node] = r.ring
			}
		}
	}
	slices.SortFunc(l.gens, func(a, b *generation) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.ID, b.ID))
	})
	for _, g := range l.gens {
		g.mine = len(g.boxes) > 0 || has(g.ID)
	}
	return l
}

// rank orders keys by their generations: the greater, the later. The key that the site
// began with is of none.
func (l *ledger) rank(id string) int {
	return slices.IndexFunc(l.gens, func(g *generation) bool { return g.ID == id })
}

// latest is the newest generation that this node has the key of, or can have it; nil if
// there was no rotation yet.
func (l *ledger) latest() *generation {
	for _, g := range slices.Backward(l.gens) {
		if g.mine {
			return g
		}
	}
	return nil
}
