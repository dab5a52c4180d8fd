package state

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// NodeKeyFile is the name of the node's own secret in its data directory. No other node
// has it.
const NodeKeyFile = "node.key"

// NodeKeySize is the length of a node key, in octets.
const NodeKeySize = 32

// NodeKey is the secret that the identity of a node is derived from. Whatever prints it
// prints "[node key]"; only [NodeKey.Reveal] and [NodeKey.Octets] tell it.
type NodeKey struct {
	// A function, for the reason that keys.Key has one: fmt cannot look into it.
	octets func() [NodeKeySize]byte
}

// NewNodeKey returns a new node key.
func NewNodeKey() NodeKey {
	var b [NodeKeySize]byte
	rand.Read(b[:])
	return hideNodeKey(b)
}

func hideNodeKey(b [NodeKeySize]byte) NodeKey {
	return NodeKey{func() [NodeKeySize]byte { return b }}
}

var nodeKeyEncoding = base64.RawURLEncoding.Strict()

// ParseNodeKey reads the text form of a node key: 43 characters of base64url. White space
// around it is ignored. The error does not tell any of the text.
func ParseNodeKey(text string) (NodeKey, error) {
	text = strings.TrimSpace(text)
	if want := nodeKeyEncoding.EncodedLen(NodeKeySize); len(text) != want {
		return NodeKey{}, fmt.Errorf("node key: %d characters, want %d of base64url", len(text), want)
	}
	b, err := nodeKeyEncoding.DecodeString(text)
	if err != nil || len(b) != NodeKeySize { // it leaves out line ends within the text
		return NodeKey{}, errors.New("node key: not base64url")
	}
	k := hideNodeKey([NodeKeySize]byte(b))
	if k.Empty() {
		return NodeKey{}, errors.New("node key: all zero")
	}
	return k, nil
}

// Reveal returns the text form of the key, as [ParseNodeKey] reads it.
func (k NodeKey) Reveal() string {
	b := k.Octets()
	return nodeKeyEncoding.EncodeToString(b[:])
}

// Octets returns the key itself.
func (k NodeKey) Octets() [NodeKeySize]byte {
	if k.octets == nil {
		return [NodeKeySize]byte{}
	}
	return k.octets()
}

// Empty reports whether k is no key at all.
func (k NodeKey) Empty() bool {
	b, zero := k.Octets(), [NodeKeySize]byte{}
	return subtle.ConstantTimeCompare(b[:], zero[:]) == 1
}

const hiddenNodeKey = "[node key]"

// MarshalText returns "[node key]", for what is encoded may well be logged.
func (NodeKey) MarshalText() ([]byte, error) { return []byte(hiddenNodeKey), nil }

func (NodeKey) String() string             { return hiddenNodeKey }
func (NodeKey) GoString() string           { return hiddenNodeKey }
func (NodeKey) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenNodeKey) }
func (NodeKey) LogValue() slog.Value       { return slog.StringValue(hiddenNodeKey) }

// SaveNodeKey writes the node key. One that is there already stays: the error is
// [fs.ErrExist] then, for the peers know the node by it.
func (d *Dir) SaveNodeKey(k NodeKey) error {
	if k.Empty() {
		return fmt.Errorf("write %s: no node key is given", filepath.Join(d.root.Name(), NodeKeyFile))
	}
	return create(d.root, NodeKeyFile, []byte(k.Reveal()+"\n"), 0o600)
}

// LoadNodeKey reads the node key from the data directory, which it does not lock. If there
// is none, the error is [fs.ErrNotExist]. A file that others can read is refused.
func LoadNodeKey(dataDir string) (NodeKey, error) {
	path := filepath.Join(dataDir, NodeKeyFile)
	b, info, err := read(os.OpenFile(path, readOnly, 0))
	if err != nil {
		return NodeKey{}, fmt.Errorf("read %s: %w", path, err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return NodeKey{}, fmt.Errorf("read %s: others may read it (mode %#o): take that away with 'chmod 600 %s'; if they may have done so, remove the node from the site and let it join anew", path, perm, path)
	}
	k, err := ParseNodeKey(string(b))
	if err != nil {
		return NodeKey{}, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}

// NodeKey returns the node key, and makes one if there is none yet.
func (d *Dir) NodeKey() (NodeKey, error) {
	k, err := LoadNodeKey(d.root.Name())
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k = NewNodeKey()
	return k, d.SaveNodeKey(k)
}
