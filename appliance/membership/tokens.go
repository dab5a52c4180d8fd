package membership

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
)

// Lives of tokens.
const (
	TokenLife    = time.Hour
	MaxTokenLife = 7 * 24 * time.Hour

	// tokenKept is how long a token is remembered once it is over, so that a late use of
	// it gets the answer that fits.
	tokenKept = 30 * 24 * time.Hour
)

// The keys of the tokens table: "<id>" for a token, and below it what became of it. Each is
// written once, so that no two nodes can write over each other.
const (
	usedSuffix    = "/used"
	revokedSuffix = "/revoked"
)

const (
	domainToken   domain = "token"
	domainUsed    domain = "token used"
	domainRevoked domain = "token revoked"
)

// tokenEntry is what the site knows of a token: all but the secret.
type tokenEntry struct {
	V       int              `json:"v"`
	ID      string           `json:"id"`
	Hash    []byte           `json:"hash"`
	Issuer  balancing.NodeID `json:"issuer"`
	Name    balancing.NodeID `json:"name,omitempty"`
	User    string           `json:"user,omitempty"`
	Expires time.Time        `json:"expires"`
}

// tokenEnd says what became of a token.
type tokenEnd struct {
	V    int              `json:"v"`
	ID   string           `json:"id"`
	Node balancing.NodeID `json:"node"` // that joined with it, or that it was revoked on
	User string           `json:"user,omitempty"`
}

func checkTokens(key string, value []byte) error {
	var id string
	var err error
	switch base, suffix, _ := strings.Cut(key, "/"); suffix {
	case "":
		var e tokenEntry
		_, err = open(domainToken, value, &e)
		id = e.ID
	case usedSuffix[1:], revokedSuffix[1:]:
		d := domainUsed
		if suffix == revokedSuffix[1:] {
			d = domainRevoked
		}
		var e tokenEnd
		if _, err = open(d, value, &e); e.ID == base {
			id = key
		}
	default: // of a later version
		if err = checkLater(key, value); err == nil {
			id = key
		}
	}
	if b, bad := hex.DecodeString(key[:min(len(key), 2*tokenID)]); err != nil || id != key || bad != nil || len(b) != tokenID {
		return errEntry
	}
	return nil
}

// Tokens makes join tokens on this node, and knows those of all.
type Tokens struct {
	c TokensConfig
	// Capacity 1: held over a redemption, so that of one token there is never more than one.
	turn chan struct{}
}

// TokensConfig says what tokens are made of.
type TokensConfig struct {
	Self        balancing.NodeID
	Identity    *Identity
	Table       *cluster.Table          // of [TokensTable]
	Site        string                  // name of the site
	Fingerprint string                  // of the local CA
	Addresses   func() []netip.AddrPort // where this node lets others join
}

// NewTokens returns the tokens of the site.
func NewTokens(c TokensConfig) *Tokens { return &Tokens{c, make(chan struct{}, 1)} }

// TokenOptions say what a token is good for.
type TokenOptions struct {
	Name balancing.NodeID // of the node that may join; "" for any
	Life time.Duration    // 0 is [TokenLife], at most [MaxTokenLife]
	User string           // who asks for it
}

// Create makes a token. Its text is not kept anywhere. What cannot be is a [Refusal].
func (t *Tokens) Create(o TokenOptions) (*Token, error) {
	if o.Life == 0 {
		o.Life = TokenLife
	}
	addresses := t.c.Addresses()
	switch {
	case o.Life < time.Minute || o.Life > MaxTokenLife:
		return nil, refuse(ReasonRequest, "create a token: a life of %v; give it between a minute and %v", o.Life, MaxTokenLife)
	case o.Name != "" && !o.Name.Valid():
		return nil, refuse(ReasonName, "create a token: the name is not that of a node: up to %d lower-case letters, digits and inner hyphens", balancing.MaxNodeID)
	case len(addresses) == 0:
		return nil, refuse(ReasonBusy, "create a token: this node has no address that another could reach it at")
	}
	var id [tokenID]byte
	rand.Read(id[:])
	token := &Token{
		ID: hex.EncodeToString(id[:]), Site: t.c.Site, Issuer: t.c.Self, Name: o.Name,
		Addresses: addresses[:min(len(addresses), maxTokenAddresses)], Fingerprint: strings.ToLower(t.c.Fingerprint),
		Expires: time.Now().Add(o.Life).Truncate(time.Second), secret: newSecret(),
	}
	// As it will be read: what cannot be is not given out.
	if _, err := ParseToken(token.Text()); err != nil {
		return nil, errors.New("create a token: the name of the site, or the fingerprint of the local CA, does not fit into one")
	}
	e := tokenEntry{1, token.ID, token.hash(), t.c.Self, o.Name, o.User, token.Expires}
	if err := t.c.Table.Put(token.ID, t.c.Identity.seal(domainToken, e), token.Expires.Add(tokenKept)); err != nil {
		return nil, fmt.Errorf("create a token: %w", err)
	}
	return token, nil
}

// TokenState is what became of a token.
type TokenState string

// States of a token.
const (
	TokenOpen    TokenState = "open"
	TokenUsed    TokenState = "used"
	TokenRevoked TokenState = "revoked"
	TokenExpired TokenState = "expired"
)

// TokenInfo is a token as everyone may see it.
type TokenInfo struct {
	ID      string           `json:"id"`
	Issuer  balancing.NodeID `json:"issuer"`
	Name    balancing.NodeID `json:"name,omitempty"`
	User    string           `json:"user,omitempty"`
	Created time.Time        `json:"created"`
	Expires time.Time        `json:"expires"`
	State   TokenState       `json:"state"`
	Node    balancing.NodeID `json:"node,omitempty"` // that joined with it
	At      time.Time        `json:"at,omitzero"`    // when it was used or revoked

	hash []byte
}

// List returns the tokens of the last weeks, the newest first.
func (t *Tokens) List() []TokenInfo {
	var all []TokenInfo
	for _, i := range t.c.Table.Items("") {
		if info, ok := t.info(i); ok {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b TokenInfo) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return all
}

func (t *Tokens) info(i cluster.Item) (info TokenInfo, ok bool) {
	var v envelope
	var e tokenEntry
	if strings.Contains(i.Key, "/") || json.Unmarshal(i.Value, &v) != nil || json.Unmarshal(v.Signed, &e) != nil {
		return TokenInfo{}, false
	}
	info = TokenInfo{ID: e.ID, Issuer: e.Issuer, Name: e.Name, User: e.User, Created: i.Stamp.Time(), Expires: e.Expires, State: TokenOpen, hash: e.Hash}
	if used, ok := t.c.Table.Get(e.ID + usedSuffix); ok {
		var end tokenEnd
		if json.Unmarshal(used.Value, &v) == nil && json.Unmarshal(v.Signed, &end) == nil {
			info.Node = end.Node
		}
		info.State, info.At = TokenUsed, used.Stamp.Time()
	} else if revoked, ok := t.c.Table.Get(e.ID + revokedSuffix); ok {
		info.State, info.At = TokenRevoked, revoked.Stamp.Time()
	} else if !time.Now().Before(e.Expires) {
		info.State = TokenExpired
	}
	return info, true
}

// Revoke makes a token void, by its ID. It is a [Refusal] if there is none, or it was used.
func (t *Tokens) Revoke(id, user string) error {
	i, ok := t.c.Table.Get(id)
	info, known := t.info(i)
	switch {
	case !ok || !known:
		return refuse(ReasonUnknown, "revoke a token: there is none of that ID; 'peerage token list' shows them")
	case info.State == TokenUsed:
		return refuse(ReasonUsed, "revoke token %s: %s has joined with it: remove that node", id, info.Node)
	}
	return t.end(id+revokedSuffix, domainRevoked, tokenEnd{1, id, t.c.Self, user}, info.Expires)
}

func (t *Tokens) end(key string, d domain, e tokenEnd, expires time.Time) error {
	return t.c.Table.Put(key, t.c.Identity.seal(d, e), expires.Add(tokenKept))
}

// Reason is why a node is not let in, or something else about members is not done.
type Reason string

// Reasons of a refusal.
const (
	ReasonDamaged  Reason = "damaged"
	ReasonUnknown  Reason = "unknown"
	ReasonExpired  Reason = "expired"
	ReasonUsed     Reason = "used"
	ReasonRevoked  Reason = "revoked"
	ReasonSite     Reason = "other site"
	ReasonIssuer   Reason = "other node"
	ReasonName     Reason = "wrong name"
	ReasonTaken    Reason = "name taken"
	ReasonClock    Reason = "clock"
	ReasonBusy     Reason = "not now"
	ReasonRequest  Reason = "request"
	ReasonDocument Reason = "site document" // it does not take the node
)

// Refusal is an answer to a node that is not let in, or to an operator. Its text is one
// sentence for the operator.
type Refusal struct {
	Reason Reason `json:"reason"`
	Text   string `json:"error"`
}

func (r *Refusal) Error() string { return r.Text }

func refuse(why Reason, format string, args ...any) *Refusal {
	return &Refusal{why, fmt.Sprintf(format, args...)}
}

// vet says why a token does not let a node called name in, or returns what is known of it.
// That it was used, revoked or is over is told only to who has the whole of it.
func (t *Tokens) vet(text string, name balancing.NodeID) (TokenInfo, *Refusal) {
	token, err := ParseToken(text)
	if err != nil {
		return TokenInfo{}, refuse(ReasonDamaged, "%v", err)
	}
	switch {
	case token.Site != t.c.Site:
		return TokenInfo{}, refuse(ReasonSite, "this join token is for another site: this is site %s", t.c.Site)
	case token.Issuer != t.c.Self:
		return TokenInfo{}, refuse(ReasonIssuer, "this join token was made on another node, %s: join there, or have one made on %s", token.Issuer, t.c.Self)
	}
	i, ok := t.c.Table.Get(token.ID)
	info, known := t.info(i)
	if !ok || !known || subtle.ConstantTimeCompare(info.hash, token.hash()) != 1 {
		if !time.Now().Before(token.Expires) {
			return TokenInfo{}, expired(token.Expires)
		}
		return TokenInfo{}, refuse(ReasonUnknown, "this join token is not known on %s: it was not made here, or has been altered; 'peerage token create' makes a new one", t.c.Self)
	}
	switch {
	case info.State == TokenUsed:
		return info, refuse(ReasonUsed, "this join token was used on %s, by %s: each lets one node in, once; 'peerage token create' makes a new one", stamp(info.At), info.Node)
	case info.State == TokenRevoked:
		return info, refuse(ReasonRevoked, "this join token was revoked on %s; 'peerage token create' makes a new one", stamp(info.At))
	case info.State == TokenExpired:
		return info, expired(info.Expires)
	case info.Name != "" && info.Name != name:
		return info, refuse(ReasonName, "this join token is for a node called %s: join under that name, or have a token made for this one", info.Name)
	}
	return info, nil
}

func expired(at time.Time) *Refusal {
	return refuse(ReasonExpired, "this join token expired on %s; 'peerage token create' makes a new one", stamp(at))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// use marks a token as used, durably.
func (t *Tokens) use(info TokenInfo, by balancing.NodeID) error {
	return t.end(info.ID+usedSuffix, domainUsed, tokenEnd{V: 1, ID: info.ID, Node: by}, info.Expires)
}
