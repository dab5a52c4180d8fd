// Package membership says who belongs to a site, and lets nodes in and out: their
// identities, the tokens that they join with, and the rotation of the site key.
//
// Start with [Identity], what a node is known by, and [Registry], which knows those of all.
// [Tokens] and [JoinHandler] let a new node in, [Join] is its side of that. [Rotation]
// changes the site over to a new key without the loss of anything that the old one sealed,
// and ends removals that were left half done.
// All of it is kept in three replicated tables ([MembersTable], [TokensTable],
// [KeysTable]), in which every entry is signed by who wrote it, and every decision is made
// by each node alone from what it has of them.
//
// A node that holds the site key is trusted: it can say anything, the signatures only tell
// who did. What keeps a node out once it was removed is a new site key that it has no box
// for.
//
// No secret is ever in a log, an error or a table: tokens are kept as hashes, site keys in
// boxes that only the node can open that they are for (HPKE, RFC 9180, with
// MLKEM768-X25519, so that what is recorded today stays closed).
//
// Nothing here starts a goroutine. [Rotation.Run] owns the site key ring; what else is
// exported is safe for concurrent use.
package membership

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"

	"peerage/balancing/cluster"
)

// The replicated tables of this package.
var (
	MembersTable = cluster.TableConfig{Name: "members", MaxItems: 8192, MaxValue: 8 << 10, MaxBytes: 32 << 20, Check: checkMembers}
	TokensTable  = cluster.TableConfig{Name: "tokens", MaxItems: 8192, MaxValue: 4 << 10, MaxBytes: 16 << 20, Check: checkTokens}
	// A generation has a box of some 1,600 octets for each of up to 512 nodes.
	KeysTable = cluster.TableConfig{Name: "keys", MaxItems: 16384, MaxValue: 1 << 20, MaxBytes: 32 << 20, Check: checkKeys}
)

// envelope is the value of an entry: what is signed, just as it was signed, lest fields
// that a later version adds are lost.
type envelope struct {
	Signed json.RawMessage `json:"signed"`
	Key    []byte          `json:"key"` // Ed25519, of who signed
	Sig    []byte          `json:"sig"`
}

// errEntry tells nothing of the entry.
var errEntry = errors.New("entry not understood, or not signed by who it says")

// maxLater bounds an entry of a kind that this version does not know.
const maxLater = 4 << 10

// checkLater vets an entry of a kind that a later version has added. Nothing is made of it,
// but it is kept and passed on: were it refused, the nodes of two versions could never agree.
func checkLater(key string, value []byte) error {
	if !cluster.ValidKey(key) || len(value) > maxLater {
		return errEntry
	}
	return nil
}

// domain keeps the uses of one signing key apart.
type domain string

func (d domain) message(signed []byte) []byte {
	return append([]byte("peerage "+string(d)+"\x00"), signed...)
}

// seal returns v as a signed entry.
func (i *Identity) seal(d domain, v any) []byte {
	signed, err := json.Marshal(v)
	if err != nil {
		panic("membership: entry cannot be encoded: " + err.Error()) // only for types that JSON has none for
	}
	b, err := json.Marshal(envelope{signed, i.public.Sign, i.Sign(d.message(signed))})
	if err != nil {
		panic("membership: entry cannot be encoded: " + err.Error())
	}
	return b
}

// open reads an entry and verifies its signature; it returns the key that it was made with.
func open(d domain, value []byte, into any) (ed25519.PublicKey, error) {
	var e envelope
	if json.Unmarshal(value, &e) != nil || len(e.Key) != ed25519.PublicKeySize || !ed25519.Verify(e.Key, d.message(e.Signed), e.Sig) {
		return nil, errEntry
	}
	if json.Unmarshal(e.Signed, into) != nil {
		return nil, errEntry
	}
	return e.Key, nil
}
