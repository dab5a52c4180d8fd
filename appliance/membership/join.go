package membership

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// JoinPath is where a node asks to be let in, by POST.
const JoinPath = "/join"

const (
	maxJoinRequest = 64 << 10
	// A site document, with JSON's six octets for each of it at worst, and the rest.
	maxJoinAnswer = 6*site.MaxDocument + 1<<20
	joinTimeout   = 30 * time.Second
)

// Want is what the node that joins is to be.
type Want struct {
	Name     balancing.NodeID // "" for the one that the token names
	Address  netip.Addr       // host address
	Internal netip.Addr       // that of the internal network, if it is another
	VIPs     []netip.Addr
	Capacity float64 // 0 for 1
	Version  string  // of the software
}

// joinRequest is what is sent to [JoinPath], as JSON.
type joinRequest struct {
	V        int              `json:"v"`
	Token    string           `json:"token"`
	Name     balancing.NodeID `json:"name"`
	Member   json.RawMessage  `json:"member"` // its own entry of the members table, signed
	Address  netip.Addr       `json:"address"`
	Internal netip.Addr       `json:"internal,omitzero"`
	VIPs     []netip.Addr     `json:"vips,omitempty"`
	Capacity float64          `json:"capacity,omitempty"`
	Time     time.Time        `json:"time"` // by the clock of who joins
}

// joinAnswer is what comes back, as JSON in a box for the identity that asked.
type joinAnswer struct {
	V        int              `json:"v"`
	Site     string           `json:"site"`
	Name     balancing.NodeID `json:"name"`
	Ring     string           `json:"ring"`
	CACert   string           `json:"ca_cert"`
	CAKey    []byte           `json:"ca_key"`
	Document string           `json:"document"`

	Common json.RawMessage `json:"common,omitempty"` // see [JoinConfig]
}

// joinInfo binds an answer to who asked.
func joinInfo(token *Token, name balancing.NodeID) string {
	return "peerage join\x00" + token.ID + "\x00" + string(name)
}

// JoinConfig is what a node needs to let others in.
type JoinConfig struct {
	Tokens   *Tokens
	Registry *Registry
	CA       *certs.CA
	// Ring returns the site key ring for a node that joins now, see [Rotation.RingForJoin].
	Ring func() (*keys.Ring, error)
	// Admit adds the node to the site document, and returns the document with it. It takes a
	// node that is in it already, just so.
	Admit func(ctx context.Context, n NewNode) (document string, err error)
	// Common is what the files of all nodes have in common, such as ports; it becomes JSON.
	Common any
	// Ready is closed once this node has heard from its peers: before that it may not know
	// which tokens were used. Nil for at once.
	Ready <-chan struct{}
	Log   *slog.Logger
}

// NewNode is a node that is to be added to the site document.
type NewNode struct {
	Name     balancing.NodeID
	Address  netip.Addr
	Internal netip.Addr // the zero Addr for the same
	VIPs     []netip.Addr
	Capacity float64
}

// JoinHandler lets nodes in. It is to be served with [certs.JoinConfig]: whoever asks has
// nothing but a token.
func JoinHandler(c JoinConfig) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+JoinPath, func(w http.ResponseWriter, r *http.Request) {
		box, err := c.join(r)
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			c.Log.Warn("join refused", "reason", string(refusal.Reason), "client", r.RemoteAddr)
			status := http.StatusForbidden
			if refusal.Reason == ReasonBusy {
				status = http.StatusServiceUnavailable
			}
			b, _ := json.Marshal(refusal)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(status)
			w.Write(append(b, '\n'))
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(box)
	})
	return mux
}

// parseJoin reads a request. No error tells any of it.
func parseJoin(b []byte) (*joinRequest, error) {
	var q joinRequest
	switch {
	case json.Unmarshal(b, &q) != nil:
		return nil, refuse(ReasonRequest, "the request to join is not understood")
	case q.V != 1:
		return nil, refuse(ReasonRequest, "the node that joins runs a version of Peerage that this one does not understand: bring both to the same one")
	case !q.Name.Valid():
		return nil, refuse(ReasonName, "the name is not that of a node: up to %d lower-case letters, digits and inner hyphens", balancing.MaxNodeID)
	case q.Name == certs.JoinNode:
		return nil, refuse(ReasonName, "no node can be called %s: choose another name", certs.JoinNode)
	case len(q.VIPs) > 32, !(q.Capacity >= 0 && q.Capacity <= 1000): // as in the site document; and no NaN
		return nil, refuse(ReasonRequest, "the request to join asks for more than a node can have: up to 32 VIPs and a capacity of up to 1000")
	}
	return &q, nil
}

// join lets one node in, and returns the answer in a box. Its errors are refusals.
func (c *JoinConfig) join(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxJoinRequest+1))
	if err != nil || len(b) > maxJoinRequest {
		return nil, refuse(ReasonRequest, "the request to join was cut off, or is too long")
	}
	q, err := parseJoin(b)
	if err != nil {
		return nil, err
	}
	self := c.Tokens.c.Self
	busy := refuse(ReasonBusy, "%s cannot let a node in just now: it is busy with another; try again", self)
	if c.Ready != nil {
		select {
		case <-c.Ready:
		default:
			return nil, refuse(ReasonBusy, "%s has just started and has not heard from its peers: try again in a few seconds", self)
		}
	}
	select {
	case c.Tokens.turn <- struct{}{}:
		defer func() { <-c.Tokens.turn }()
	case <-r.Context().Done():
		return nil, busy
	}
	info, refusal := c.Tokens.vet(q.Token, q.Name)
	if refusal != nil {
		return nil, refusal
	}
	public, err := c.check(q)
	if err != nil {
		return nil, err
	}
	ring, err := c.Ring()
	if err != nil {
		return nil, refuse(ReasonBusy, "%s cannot let a node in just now: %v", self, err)
	}
	document, err := c.Admit(r.Context(), NewNode{q.Name, q.Address, q.Internal, q.VIPs, q.Capacity})
	if err != nil {
		return nil, refuse(ReasonDocument, "the site document does not take the node: %v", err)
	}
	// Used, and known to be so after a loss of power, before a secret leaves the node.
	if err := c.Tokens.use(info, q.Name); err != nil {
		return nil, refuse(ReasonBusy, "%s cannot keep that the join token was used: %v", self, err)
	}
	key := memberKey(q.Name, public)
	if err := c.Registry.admit(key, q.Member); err != nil {
		return nil, refuse(ReasonBusy, "%s cannot keep the identity of the node: %v; have a new join token made", self, err)
	}
	token, err := ParseToken(q.Token)
	if err != nil {
		return nil, refuse(ReasonDamaged, "%v", err)
	}
	common, err := json.Marshal(c.Common)
	if err != nil {
		return nil, refuse(ReasonBusy, "%s cannot encode its answer", self)
	}
	answer, err := json.Marshal(joinAnswer{1, c.Tokens.c.Site, q.Name, ring.Reveal(), string(c.CA.CertPEM()), c.CA.MarshalKey(), document, common})
	if err != nil {
		return nil, refuse(ReasonBusy, "%s cannot encode its answer", self)
	}
	box, err := public.Seal(joinInfo(token, q.Name), answer)
	if err != nil {
		return nil, refuse(ReasonRequest, "%v", err)
	}
	c.Log.Info("node joined", "node", string(q.Name))
	return box, nil
}

// check looks at what does not depend on the token, and returns the identity of who asks.
func (c *JoinConfig) check(q *joinRequest) (Public, error) {
	if skew := time.Until(q.Time); skew.Abs() > cluster.MaxAhead {
		return Public{}, refuse(ReasonClock, "the clock of the node that joins is %s off, by that of %s: set it, and try again", describeSkew(skew), c.Tokens.c.Self)
	}
	var m Member
	signed, err := open(domainMember, q.Member, &m)
	if err != nil || m.Name != q.Name || !signed.Equal(m.Sign) || checkMembers(memberKey(m.Name, m.Public), q.Member) != nil {
		return Public{}, refuse(ReasonRequest, "the request to join does not prove the identity of the node")
	}
	if _, taken := c.Registry.Member(q.Name); taken {
		return Public{}, refuse(ReasonTaken, "the site has a node %s already: remove that one first, or choose another name", q.Name)
	}
	return m.Public, nil
}

func describeSkew(d time.Duration) string {
	word := "ahead"
	if d < 0 {
		word = "behind"
	}
	return fmt.Sprintf("%v %s, and so", d.Abs().Round(time.Second), word)
}

// Admission is all that a node of the site starts from.
type Admission struct {
	Site     string
	Name     balancing.NodeID
	Ring     *keys.Ring
	CA       *certs.CA
	Document string
	NodeKey  state.NodeKey
	Common   json.RawMessage // as [JoinConfig] has it
}

// Join asks the node that made a token to be let into its site. Address is where, or "" for
// the addresses that the token holds. What it returns an error for is not let in, but for
// the rare case that the answer was lost; the error says so.
func Join(ctx context.Context, address, tokenText string, want Want) (*Admission, error) {
	token, err := ParseToken(tokenText)
	if err != nil {
		return nil, err
	}
	if want.Name == "" {
		want.Name = token.Name
	}
	if want.Name == "" {
		return nil, errors.New("join: the token is for no particular node: say how this one is to be called")
	}
	id, err := NewIdentity(state.NewNodeKey())
	if err != nil {
		return nil, err
	}
	body, err := newJoinRequest(id, token, want)
	if err != nil {
		return nil, err
	}
	addresses := []string{address}
	if address == "" {
		addresses = nil
		for _, a := range token.Addresses {
			addresses = append(addresses, a.String())
		}
	}
	var unreached []error
	for _, a := range addresses {
		box, err := postJoin(ctx, a, certs.JoinClient(token.Fingerprint), body)
		if _, ok := errors.AsType[*net.OpError](err); ok && isDial(err) {
			unreached = append(unreached, err) // it may have another address
			continue
		}
		if err != nil {
			return nil, err
		}
		return openAnswer(id, token, want.Name, box)
	}
	return nil, fmt.Errorf("join site %s: %s cannot be reached: %w", token.Site, token.Issuer, errors.Join(unreached...))
}

func newJoinRequest(id *Identity, token *Token, want Want) ([]byte, error) {
	_, member := id.entry(want.Name, token.Issuer, want.Version)
	return json.Marshal(joinRequest{
		V: 1, Token: token.Text(), Name: want.Name, Member: member, Address: want.Address, Internal: want.Internal,
		VIPs: want.VIPs, Capacity: want.Capacity, Time: time.Now(),
	})
}

// isDial reports whether no connection came about, so that nothing was sent.
func isDial(err error) bool {
	o, ok := errors.AsType[*net.OpError](err)
	return ok && o.Op == "dial"
}

func postJoin(ctx context.Context, address string, tlsConfig *tls.Config, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+JoinPath, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("join at %s: not an address and a port", address)
	}
	r.Host = certs.JoinName
	r.Header.Set("Content-Type", "application/json")
	r.GetBody = nil // never sent twice
	var sent atomic.Bool
	r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(i httptrace.WroteRequestInfo) { sent.Store(i.Err == nil) },
	}))
	resp, err := transport.RoundTrip(r)
	switch {
	case err != nil && sent.Load():
		return nil, lost(address)
	case err != nil:
		if o, ok := errors.AsType[*net.OpError](err); ok && o.Op == "remote error" {
			return nil, fmt.Errorf("join at %s: %w; nodes join at the port of the relay, 7948 as a rule", address, err)
		}
		return nil, fmt.Errorf("join at %s: %w", address, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinAnswer+1))
	if err != nil || len(b) > maxJoinAnswer {
		return nil, lost(address)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, parseRefusal(address, resp.StatusCode, b)
	}
	return b, nil
}

// lost is the error for an answer that has not come, or not as a whole: the node may well
// have been let in.
func lost(address string) error {
	return fmt.Errorf("join at %s: the answer was lost on its way: if 'peerage status' shows the node there, remove it; have a new join token made", address)
}

// parseRefusal reads why a node was not let in. What it shows is bounded, and printable.
func parseRefusal(address string, status int, b []byte) error {
	var r Refusal
	if json.Unmarshal(b, &r) != nil || r.Text == "" || len(r.Text) > 4096 {
		return fmt.Errorf("join at %s: answered with HTTP status %d and no reason: is that the port of a node?", address, status)
	}
	r.Text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, r.Text)
	return &r
}

// openAnswer reads an answer, and checks that its parts fit each other.
func openAnswer(id *Identity, token *Token, name balancing.NodeID, box []byte) (*Admission, error) {
	plain, err := id.Open(joinInfo(token, name), box)
	if err != nil {
		return nil, fmt.Errorf("join: answer not understood: %w", err)
	}
	return parseAnswer(id, token, name, plain)
}

func parseAnswer(id *Identity, token *Token, name balancing.NodeID, plain []byte) (*Admission, error) {
	var a joinAnswer
	if json.Unmarshal(plain, &a) != nil || a.V != 1 || a.Name != name || a.Site != token.Site {
		return nil, errors.New("join: answer not understood: bring both nodes to the same version of Peerage")
	}
	ring, err := keys.ParseRing(a.Ring)
	if err != nil {
		return nil, fmt.Errorf("join: answer: %w", err)
	}
	ca, err := certs.LoadCA([]byte(a.CACert), a.CAKey)
	if err != nil {
		return nil, fmt.Errorf("join: answer: %w", err)
	}
	if ca.Fingerprint() != token.Fingerprint {
		return nil, errors.New("join: answer: the local CA is not the one that the token names")
	}
	return &Admission{a.Site, a.Name, ring, ca, a.Document, id.NodeKey(), a.Common}, nil
}
