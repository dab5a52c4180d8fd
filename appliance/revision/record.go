package revision

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// version is that of the values that this software writes. A value of a later version is
// kept as it is; what it says is not looked at further than its number and parent.
const version = 1

// maxNumber keeps the numbers of revisions within what every reader of JSON can hold.
const maxNumber = 1 << 40

// Keys of the table.
const (
	revPrefix   = "rev/"   // rev/<id>: a record
	phasePrefix = "phase/" // phase/<id>/<name>: a phase that the revision has reached
	nodePrefix  = "node/"  // node/<id>/<node>: what a node says of the revision
)

// Names of phases.
const (
	phaseProposed  = "proposed"
	phaseCanary    = "canary"
	phaseAll       = "all"
	phaseConfirmed = "confirmed"
	phaseWithdrawn = "withdrawn"
	phaseDismissed = "dismissed" // a conflict that somebody has dealt with
)

func revKey(id ID) string             { return revPrefix + string(id) }
func phaseKey(id ID, n string) string { return phasePrefix + string(id) + "/" + n }
func nodeKey(id ID, n balancing.NodeID) string {
	return nodePrefix + string(id) + "/" + string(n)
}

// record is a revision as it is stored. Its text is there in one of two forms.
type record struct {
	V             int           `json:"v"`
	Number        int           `json:"number"`
	Parent        ID            `json:"parent,omitempty"`
	Text          string        `json:"text,omitempty"`
	Packed        []byte        `json:"packed,omitempty"` // deflated
	Author        string        `json:"author"`
	Comment       string        `json:"comment,omitempty"`
	Made          cluster.Stamp `json:"made"`
	ConfirmWithin int64         `json:"confirm_within_ms,omitempty"`
	Signer        string        `json:"signer"`
	Signature     []byte        `json:"signature"`

	textSum [sha256.Size]byte // see digest
}

// phase says who has brought a revision to a phase, and when.
type phase struct {
	Who      string           `json:"who"`
	When     cluster.Stamp    `json:"when"`
	Reason   string           `json:"reason,omitempty"`
	Deadline cluster.Stamp    `json:"deadline,omitempty"` // proposed, canary: the next phase is there by then, or never
	Canary   balancing.NodeID `json:"canary,omitempty"`
}

// word is what one node says of a revision.
type word struct {
	Vote     vote          `json:"vote,omitempty"`
	Problems string        `json:"problems,omitempty"` // why not
	Against  ID            `json:"against,omitempty"`  // it has voted for that one
	Applying cluster.Stamp `json:"applying,omitempty"` // it has begun to make it so
	Applied  cluster.Stamp `json:"applied,omitempty"`
	Settled  cluster.Stamp `json:"settled,omitempty"` // and has passed its own check
	Failed   cluster.Stamp `json:"failed,omitempty"`  // it could not
	Why      string        `json:"why,omitempty"`
	Saw      []sight       `json:"saw,omitempty"`
}

// sight is a peer that turned sick with a revision.
type sight struct {
	Node balancing.NodeID `json:"node"`
	At   cluster.Stamp    `json:"at"`
}

type vote string

const (
	yes vote = "yes"
	no  vote = "no"
)

// TableConfig returns the configuration of the table that holds the history of the site
// called name. Whose signature counts is for verify to say: that of any node which is or
// was of the site.
func TableConfig(name string, verify func(signer string, msg, sig []byte) bool) cluster.TableConfig {
	return cluster.TableConfig{
		Name:     "site",
		MaxItems: 20_000,
		MaxValue: MaxText*3/2 + 8<<10, // a text that does not pack, in base64
		MaxBytes: maxBytes,
		Check:    func(key string, value []byte) error { return check(name, verify, key, value) },
	}
}

// check vets a value of the table; its errors repeat nothing of it. Kinds of keys that are not known pass: they are those
// of a later version.
func check(name string, verify func(signer string, msg, sig []byte) bool, key string, value []byte) error {
	kind, id, rest, err := splitKey(key)
	switch {
	case err != nil:
		return err
	case kind == revPrefix:
		return checkRecord(name, verify, id, value)
	case kind == "" && len(value) > 4*maxSays:
		return fmt.Errorf("site table: %s: a value of %d octets; the most is %d", key, len(value), 4*maxSays)
	case kind == phasePrefix:
		_, err = parse[phase](key, value)
	case kind == nodePrefix && !balancing.NodeID(rest).Valid():
		err = fmt.Errorf("site table: %s: not the name of a node", key)
	case kind == nodePrefix:
		_, err = parse[word](key, value)
	}
	return err
}

func splitKey(key string) (kind string, id ID, rest string, err error) {
	for _, kind := range []string{revPrefix, phasePrefix, nodePrefix} {
		tail, ok := strings.CutPrefix(key, kind)
		if !ok {
			continue
		}
		name, rest, more := strings.Cut(tail, "/")
		if !ID(name).Valid() || more != (kind != revPrefix) || more && (rest == "" || strings.Contains(rest, "/")) {
			return "", "", "", fmt.Errorf("site table: %s: not a key of this kind", key)
		}
		return kind, ID(name), rest, nil
	}
	return "", "", "", nil
}

// parse reads what is said in few words of a revision.
func parse[T any](key string, value []byte) (*T, error) {
	if len(value) > 4*maxSays {
		return nil, fmt.Errorf("site table: %s: a value of %d octets; the most is %d", key, len(value), 4*maxSays)
	}
	v := new(T)
	if json.Unmarshal(value, v) != nil { // whose error would repeat some of it
		return nil, fmt.Errorf("site table: %s: not what its key says", key)
	}
	return v, nil
}

var errUnsigned = errors.New("no node of the site has signed it so")

func checkRecord(name string, verify func(signer string, msg, sig []byte) bool, id ID, value []byte) error {
	r, err := parseRecord(id, value)
	if err != nil {
		return err
	}
	if r.V > version {
		if !verify(r.Signer, signedLater(r.V, id), r.Signature) {
			return fmt.Errorf("site revision %s: %w", id.Short(), errUnsigned)
		}
		return nil
	}
	text, err := r.text()
	if err != nil {
		return fmt.Errorf("site revision %s: %w", id.Short(), err)
	}
	sum := r.sum(name, text)
	switch {
	case r.fault(text) != "":
		return fmt.Errorf("site revision %s: out of bounds", id.Short())
	case idOf(sum) != id:
		return fmt.Errorf("site revision %s: its content is that of another revision, or of another site", id.Short())
	case !verify(r.Signer, signed(sum), r.Signature):
		return fmt.Errorf("site revision %s: %w", id.Short(), errUnsigned)
	}
	return nil
}

func parseRecord(id ID, value []byte) (*record, error) {
	r := new(record)
	if json.Unmarshal(value, r) != nil || r.V < version || r.Number < 1 || r.Number > maxNumber || r.Parent != "" && !r.Parent.Valid() {
		return nil, fmt.Errorf("site revision %s: not a revision", id.Short())
	}
	return r, nil
}

// fault says what keeps r from being a revision, "" if nothing does.
func (r *record) fault(text string) string {
	switch {
	case len(text) > MaxText:
		return fmt.Sprintf("the document is longer than %d octets; make it shorter", MaxText)
	case text == "" || !utf8.ValidString(text):
		return "the document is empty or not UTF-8"
	case r.Author == "" || len(r.Author) > maxWord || !printable(r.Author):
		return fmt.Sprintf("author %q; write 1 to %d octets of text", r.Author, maxWord)
	case len(r.Comment) > maxNote || !printable(r.Comment):
		return fmt.Sprintf("the comment is longer than %d octets, or is not one line of text", maxNote)
	case r.ConfirmWithin < 0 || r.ConfirmWithin > maxConfirm.Milliseconds():
		return fmt.Sprintf("the time to confirm is out of range; write 1s to %s", maxConfirm)
	}
	return ""
}

// printable reports whether s can be shown on a terminal, within a line.
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(c rune) bool { return !unicode.IsGraphic(c) }) < 0
}

// sum returns the hash of all that the revision says.
func (r *record) sum(name, text string) [sha256.Size]byte {
	h := sha256.New()
	number := func(n uint64) {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
	number(uint64(r.V))
	number(uint64(r.Number))
	number(uint64(r.Made))
	number(uint64(r.ConfirmWithin))
	for _, s := range []string{name, string(r.Parent), text, r.Author, r.Comment} {
		number(uint64(len(s)))
		io.WriteString(h, s)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func idOf(sum [sha256.Size]byte) ID { return ID(hex.EncodeToString(sum[:16])) }

// signed returns what a node signs: no signature that it gives for another purpose can be
// taken for one of a revision.
func signed(sum [sha256.Size]byte) []byte {
	return append([]byte("peerage site revision\x00"), sum[:]...)
}

// signedLater returns what a node signs of a revision in a later version, in place of
// [signed]: whoever cannot read the revision can see at least that a node has made one of
// that name. Later versions must keep to it, and to the keys number, parent and made.
func signedLater(v int, id ID) []byte {
	return fmt.Appendf(nil, "peerage site revision %d\x00%s", v, id)
}

// packFrom is the size from which on a text is deflated.
const packFrom = 512

// digest notes the hash of the text. Two nodes of different software may pack a text
// differently, and to unpack all of the history again and again would take long.
func (r *record) digest() {
	if text, err := r.text(); err == nil {
		r.textSum = sha256.Sum256([]byte(text))
	}
}

// put stores text in the shorter of the two forms.
func (r *record) put(text string) {
	r.Text, r.Packed = text, nil
	if len(text) < packFrom {
		return
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		return
	}
	io.WriteString(w, text)
	if w.Close() == nil {
		r.Text, r.Packed = "", b.Bytes()
	}
}

func (r *record) text() (string, error) {
	if len(r.Packed) == 0 {
		return r.Text, nil
	}
	if r.Text != "" {
		return "", errors.New("two texts in one revision")
	}
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(r.Packed)), MaxText+1))
	if err != nil {
		return "", fmt.Errorf("unpack the document: %w", err)
	}
	return string(text), nil
}

func (r *record) confirmWithin() time.Duration {
	return time.Duration(r.ConfirmWithin) * time.Millisecond
}
