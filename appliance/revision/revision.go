// Package revision changes the site document on all nodes at once, and remembers every
// text that it ever had.
//
// Start with [Agent]: Apply proposes a text, has every node that is on-line check it, lets
// one node serve it for a moment, and then all; Confirm and Rollback end what is on trial.
//
// The history is a table of values that are only ever added, so merging in any order gives
// the same; and what follows from it, the head above all, is a pure function of the table
// and the time (type history), but that each node counts the time to confirm from when it
// heard of a revision. So nodes that know the same do the same, without a leader,
// and in both halves of a partition. No revision that was applied is lost: of two that were
// made apart the one that more changes have led to is the head, not counting those that were
// rolled back; the other is listed as a conflict.
//
// The life of a revision, by the keys that the table has of it:
//
//	proposed ──votes──▶ canary ──one node is well──▶ all ──▶ confirmed
//	   │                   │                          │
//	   ▼                   ▼                          ▼ a node fails or turns sick, or
//	withdrawn: refused, failed, or the                  nobody confirms in time
//	proposer has not gone on in time                 rolled back, by a new revision
//
// Only the proposer writes canary, all and withdrawn. Where it falls silent the time that
// it gave itself runs out, and everybody goes on as if it had withdrawn. Where it is gone for
// a few seconds, the canary withdraws in its place, and so does whoever proposes something
// else. Should it have written 'all' after all, that counts.
//
// The package must never put a text into force that this node's own check refuses, nor
// trust a text that no node of the site has signed. [Agent.Run] owns the goroutine.
package revision

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/cluster"
)

// Bounds of the history.
const (
	Kept    = 200              // revisions that are kept
	MaxText = site.MaxDocument // octets of a document

	maxWord  = 200 // octets of an author
	maxNote  = 4 << 10
	maxSays  = 16 << 10 // octets of what a node says of a revision
	maxBytes = 64 << 20 // of the table
	keepText = 48 << 20 // octets of revisions from which on fewer than Kept are kept
	keepVote = 8        // revisions below the head whose votes are kept
)

// The times of a change.
const (
	voteWithin   = 3 * time.Second  // nodes check a proposal
	applyWithin  = 20 * time.Second // a node makes a document so
	settleWithin = 5 * time.Second  // a node passes its own check after that
	spare        = 3 * time.Second  // that a proposer has beyond what its steps may take
	canaryFor    = 300 * time.Millisecond
	watchFor     = 30 * time.Second // a node that fails or turns sick brings the old document back
	sickFor      = time.Second      // a peer must be sick to count
	allWithin    = 15 * time.Second // Apply waits for the nodes, in the end

	maxConfirm = 24 * time.Hour
	maxCanary  = time.Hour
)

// ID names a revision by its content: 32 hexadecimal digits.
type ID string

// Valid reports whether id can be that of a revision.
func (id ID) Valid() bool {
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(id) == 32
}

// Short returns the part of id that people are shown.
func (id ID) Short() string { return string(id[:min(8, len(id))]) }

// Revision is one text of the site document. It is never changed.
type Revision struct {
	ID     ID     `json:"id"`
	Number int    `json:"number"` // one more than that of its parent
	Parent ID     `json:"parent,omitempty"`
	Author string `json:"author"`
	// Comment is what its author says of it.
	Comment string    `json:"comment,omitempty"`
	Made    time.Time `json:"made,omitzero"` // the first revision of a site has no time
	// ConfirmWithin is the time after which it is rolled back unless somebody confirms it;
	// 0 is never.
	ConfirmWithin time.Duration `json:"confirm_within,omitempty"`
	Signer        string        `json:"signer"` // the node that vouches for it
	Text          string        `json:"text,omitempty"`
}

func (r *Revision) String() string { return fmt.Sprintf("revision %d (%s)", r.Number, r.ID.Short()) }

// Site is this node, as its agent changes it.
type Site interface {
	// Check says why this node could not serve the document: what is wrong with it, or does
	// not fit the node. Its error is shown as it is.
	Check(text string) error

	// Room says why this node could not store a document that has passed Check: it tries. A
	// node that is not in the document need not store it. Its error is shown as it is.
	Room(text string) error

	// Apply makes the document so, all of it or nothing, and returns when the node serves
	// it.
	Apply(ctx context.Context, r *Revision) error

	// Live returns the peers that are on-line by their reports.
	Live() []balancing.NodeID

	// Gone reports whether a peer seems to have died, or to be cut off. One that only takes no
	// part, as it joins, drains or is sick, is not gone.
	Gone(id balancing.NodeID) bool

	// Well reports whether a node, this one or a peer, is on-line and neither sick nor
	// joining.
	Well(id balancing.NodeID) bool

	// Settled reports whether this node has passed its own health check since the last
	// Apply.
	Settled() bool
}

// Options say how a change is made.
type Options struct {
	// Base is the revision that the text was made from; "" is the head.
	Base ID `json:"base,omitempty"`

	// Author is who makes the change, as in alice@n1.
	Author string `json:"author"`

	Comment string `json:"comment,omitempty"`

	// ConfirmWithin rolls the change back unless somebody confirms it by then; at most 24
	// hours, 0 is never.
	ConfirmWithin time.Duration `json:"confirm_within,omitempty"`

	// Canary is the node that serves the text first; "" is this one, or if it is not well a
	// peer.
	Canary balancing.NodeID `json:"canary,omitempty"`

	// CanaryFor is how long it must be well with it: 300 ms at least, and without a word;
	// the most is an hour.
	CanaryFor time.Duration `json:"canary_for,omitempty"`
}

// Event is a step of a change, for whoever waits for it.
type Event struct {
	Kind EventKind        `json:"event"`
	Node balancing.NodeID `json:"node,omitempty"`
	Text string           `json:"text"` // one sentence; of a refusal, all problems
}

// EventKind is what has happened.
type EventKind string

const (
	Proposed      EventKind = "proposed"       // to the nodes that are on-line
	Voted         EventKind = "voted"          // a node would take it
	CanaryChosen  EventKind = "canary"         // a node serves it first
	CanaryApplied EventKind = "canary-applied" // and does so now
	ForAll        EventKind = "all"            // it is in force: all nodes serve it from now on
	Applied       EventKind = "applied"        // a node serves it
	Missing       EventKind = "missing"        // a node does not serve it yet
)

// Config is what an agent is made of.
type Config struct {
	Self  balancing.NodeID
	Name  string         // of the site
	Table *cluster.Table // as [TableConfig] says
	Clock *cluster.Clock // of the same store
	Site  Site

	// Sign signs with the identity of the node.
	Sign func(msg []byte) []byte

	// Running is the text of the document that the node was started with.
	Running string

	Log *slog.Logger
}
