package membership

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"peerage/appliance/state"
)

// Identity is what a node is known by: a key that signs, and one that opens boxes. Both
// derive from the node key by HKDF-SHA256 (RFC 5869). However it is printed, no secret
// shows. It is immutable.
type Identity struct {
	// Functions, because fmt looks through everything else.
	seed   func() state.NodeKey
	sign   func() ed25519.PrivateKey
	box    func() hpke.PrivateKey
	public Public
}

// Public is the part of an identity that everyone may know.
type Public struct {
	Sign ed25519.PublicKey `json:"ed25519"`
	Box  []byte            `json:"hpke"` // MLKEM768-X25519
}

// Fingerprint names the identity: 32 hexadecimal digits.
func (p Public) Fingerprint() string {
	h := sha256.New()
	io.WriteString(h, "peerage identity\x00")
	h.Write(p.Sign)
	h.Write(p.Box)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// valid reports whether both keys can be used.
func (p Public) valid() bool {
	if len(p.Sign) != ed25519.PublicKeySize {
		return false
	}
	_, err := hpke.MLKEM768X25519().NewPublicKey(p.Box)
	return err == nil
}

// LoadOrCreateIdentity reads the identity of the node, and makes one if it has none yet.
func LoadOrCreateIdentity(dir *state.Dir) (*Identity, error) {
	k, err := dir.NodeKey()
	if err != nil {
		return nil, err
	}
	return NewIdentity(k)
}

// NewIdentity derives the identity from a node key.
func NewIdentity(k state.NodeKey) (*Identity, error) {
	if k.Empty() {
		return nil, errors.New("identity: no node key is given")
	}
	seed := k.Octets()
	derive := func(label string) []byte {
		b, err := hkdf.Key(sha256.New, seed[:], []byte("peerage"), label, 32)
		if err != nil {
			panic("derive identity: " + err.Error()) // only for lengths that HKDF cannot give
		}
		return b
	}
	sign := ed25519.NewKeyFromSeed(derive("identity sign"))
	box, err := hpke.MLKEM768X25519().NewPrivateKey(derive("identity box"))
	if err != nil {
		return nil, errors.New("identity: the node key gives no key to open boxes with")
	}
	return &Identity{
		seed:   func() state.NodeKey { return k },
		sign:   func() ed25519.PrivateKey { return sign },
		box:    func() hpke.PrivateKey { return box },
		public: Public{sign.Public().(ed25519.PublicKey), box.PublicKey().Bytes()},
	}, nil
}

// Public returns what others may know of it.
func (i *Identity) Public() Public { return i.public }

// NodeKey returns what the identity derives from, for its file.
func (i *Identity) NodeKey() state.NodeKey { return i.seed() }

// Sign signs a message, which must begin with what it is for.
func (i *Identity) Sign(message []byte) []byte { return ed25519.Sign(i.sign(), message) }

// Signer returns the signing key for the certificate of the node, without a way to print it.
func (i *Identity) Signer() crypto.Signer { return signer{i.sign} }

type signer struct{ key func() ed25519.PrivateKey }

func (s signer) Public() crypto.PublicKey { return s.key().Public() }

func (s signer) Sign(rand io.Reader, message []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.key().Sign(rand, message, o)
}

// Seal returns a box that only the owner of p can open, and only for the same info.
func (p Public) Seal(info string, plain []byte) ([]byte, error) {
	k, err := hpke.MLKEM768X25519().NewPublicKey(p.Box)
	if err != nil {
		return nil, errors.New("seal a box: the identity has no valid key for it")
	}
	return hpke.Seal(k, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info), plain)
}

// errBox tells nothing of the box.
var errBox = errors.New("the box is not for this node, or it is damaged")

// Open opens a box for this node.
func (i *Identity) Open(info string, box []byte) ([]byte, error) {
	b, err := hpke.Open(i.box(), hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info), box)
	if err != nil {
		return nil, errBox
	}
	return b, nil
}

// String is the fingerprint.
func (i *Identity) String() string { return "identity " + i.public.Fingerprint() }

// Format writes [Identity.String] whatever the verb.
func (i *Identity) Format(f fmt.State, _ rune)   { io.WriteString(f, i.String()) }
func (i *Identity) LogValue() slog.Value         { return slog.StringValue(i.String()) }
func (i *Identity) MarshalText() ([]byte, error) { return []byte(i.String()), nil }
