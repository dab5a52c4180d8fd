package revision

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"peerage/balancing"
)

var (
	// ErrUnchanged is that a text is the head's already.
	ErrUnchanged = errors.New("nothing to change")

	// ErrUnknown is that the history has no such revision.
	ErrUnknown = errors.New("not in the history")
)

// Conflict is the error for a change that was made from a revision which is not the head
// any more, or beside another one. Nothing was changed.
type Conflict struct {
	Base   *Revision `json:"base"`   // without text
	Theirs *Revision `json:"theirs"` // without text; the other change
	// Pending is whether the other change is still being tried.
	Pending  bool   `json:"pending"`
	BaseDiff string `json:"theirs_diff"` // base to theirs
	YourDiff string `json:"yours_diff"`  // base to yours
}

func (c *Conflict) Error() string {
	var b strings.Builder
	what := "is in force since"
	if c.Pending {
		what = "is being applied just now"
	}
	fmt.Fprintf(&b, "your change was made from %s, and %s by %s %s; nothing was changed\n", c.Base, c.Theirs, c.Theirs.Author, what)
	fmt.Fprintf(&b, "put your change into the newest document ('peerage site show'), and apply it again\n\nwhat %s has changed:\n%s\nwhat you have changed:\n%s", c.Theirs.Author, c.BaseDiff, c.YourDiff)
	return b.String()
}

// Refused is the error for a text that a node would not take. Nothing was changed.
type Refused struct {
	Node     balancing.NodeID `json:"node"`
	Problems string           `json:"problems"`
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s refuses the document; nothing was changed. Mend what it says, and apply it again:\n%s", r.Node, r.Problems)
}

// Withdrawn is the error for a change that did not come into force: no node serves it now.
type Withdrawn struct {
	Revision *Revision `json:"revision"` // without text
	Reason   string    `json:"reason"`
}

func (w *Withdrawn) Error() string {
	return fmt.Sprintf("%s was withdrawn, and is served nowhere: %s", w.Revision, w.Reason)
}

// RolledBack is the error for a change that came into force, and was rolled back on all
// nodes.
type RolledBack struct {
	Revision *Revision `json:"revision"` // without text
	Reason   string    `json:"reason"`
}

func (r *RolledBack) Error() string {
	return fmt.Sprintf("%s was rolled back on all nodes: %s", r.Revision, r.Reason)
}

// Unconfirmed is the error for a change while another one waits for its confirmation.
type Unconfirmed struct {
	Revision *Revision `json:"revision"` // without text
	By       time.Time `json:"by"`
}

func (u *Unconfirmed) Error() string {
	return fmt.Sprintf("%s by %s waits until %s to be confirmed; run 'peerage site confirm' or 'peerage site rollback' first",
		u.Revision, u.Revision.Author, u.By.Format(time.RFC3339))
}
