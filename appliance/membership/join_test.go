package membership

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"peerage/balancing"
	"peerage/balancing/cluster"
	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// host is a node that lets others join.
type host struct {
	registry *Registry
	tokens   *Tokens
	ring     *keys.Ring
	ca       *certs.CA
	config   JoinConfig
	journal  *journal
	admitted []NewNode
	admit    error // what Admit returns
}

func newHost(t testing.TB, name balancing.NodeID, path string) *host {
	t.Helper()
	id := newIdentity(t)
	store := openStore(t, path)
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.NewRing(keys.Generate())
	if err != nil {
		t.Fatal(err)
	}
	h := &host{registry: NewRegistry(openTable(t, store, name, MembersTable), name, id), ring: ring, ca: ca, journal: new(journal)}
	if err := h.registry.Register("1.0"); err != nil {
		t.Fatal(err)
	}
	h.tokens = NewTokens(TokensConfig{
		Self: name, Identity: id, Table: openTable(t, store, name, TokensTable), Site: "test", Fingerprint: ca.Fingerprint(),
		Addresses: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7948")} },
	})
	h.config = JoinConfig{
		Tokens: h.tokens, Registry: h.registry, CA: ca, Log: h.journal.log(),
		Ring: func() (*keys.Ring, error) { return h.ring, nil },
		Admit: func(_ context.Context, n NewNode) (string, error) {
			if h.admit != nil {
				return "", h.admit
			}
			h.admitted = append(h.admitted, n)
			return "site: test\n", nil
		},
	}
	return h
}

func (h *host) token(t testing.TB, o TokenOptions) *Token {
	t.Helper()
	token, err := h.tokens.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// ask sends a request to the handler without a network.
func (h *host) ask(t testing.TB, body []byte) (status int, answer []byte) {
	t.Helper()
	w := httptest.NewRecorder()
	JoinHandler(h.config).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, JoinPath, strings.NewReader(string(body))))
	return w.Code, w.Body.Bytes()
}

// try has a new node ask with a token, and returns why it is not let in.
func (h *host) try(t testing.TB, token *Token, name balancing.NodeID) error {
	t.Helper()
	id := newIdentity(t)
	body, err := newJoinRequest(id, token, Want{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	status, answer := h.ask(t, body)
	if status != http.StatusOK {
		return parseRefusal("test", status, answer)
	}
	_, err = openAnswer(id, token, name, answer)
	return err
}

func wantRefusal(t testing.TB, err error, why Reason, words ...string) {
	t.Helper()
	r, ok := errors.AsType[*Refusal](err)
	if !ok || r.Reason != why {
		t.Errorf("%v, want a refusal because of %s", err, why)
		return
	}
	wantError(t, err, words...)
}

// serve lets others join h on loopback, over TLS as the edge does it.
func (h *host) serve(t *testing.T) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(JoinHandler(h.config))
	s.TLS = certs.JoinConfig(h.ca)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// closedPort is an address that nobody answers at.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestJoin(t *testing.T) {
	h := newHost(t, "n1", "")
	at := h.serve(t)
	h.tokens.c.Addresses = func() []netip.AddrPort { return []netip.AddrPort{closedPort(t), at} }
	token := h.token(t, TokenOptions{Name: "n2", User: "root"})
	want := Want{Address: netip.MustParseAddr("192.0.2.2"), Internal: netip.MustParseAddr("10.0.0.2"), VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.12")}, Capacity: 2, Version: "1.0"}
	got, err := Join(t.Context(), "", token.Text(), want)
	if err != nil {
		t.Fatal(err)
	}
	if got.Site != "test" || got.Name != "n2" || got.Document != "site: test\n" || got.Ring.Reveal() != h.ring.Reveal() ||
		got.CA.String() != h.ca.String() || string(got.CA.MarshalKey()) != string(h.ca.MarshalKey()) {
		t.Errorf("admitted as %v", got)
	}
	id, err := NewIdentity(got.NodeKey)
	if err != nil || !h.registry.Known("n2", id.Signer().Public()) {
		t.Errorf("the site does not know the identity that it got, %v", err)
	}
	if m, _ := h.registry.Member("n2"); m.By != "n1" || m.Version != "1.0" {
		t.Errorf("the member is %v", m)
	}
	if n := h.admitted; len(n) != 1 || n[0].Name != "n2" || n[0].Address != want.Address || n[0].Internal != want.Internal || n[0].VIPs[0] != want.VIPs[0] || n[0].Capacity != 2 {
		t.Errorf("asked the document to take %v", n)
	}
	if info := h.tokens.List(); len(info) != 1 || info[0].State != TokenUsed || info[0].Node != "n2" || info[0].User != "root" {
		t.Errorf("tokens: %v", info)
	}
	again, err := Join(t.Context(), at.String(), token.Text(), want)
	wantRefusal(t, err, ReasonUsed, "was used on", "by n2")
	if again != nil {
		t.Error("admitted twice")
	}
	_, err = Join(t.Context(), closedPort(t).String(), token.Text(), want)
	wantError(t, err, "n1 cannot be reached", "connection refused")
	secret := token.secret()
	h.journal.silent(t, token.Text(), string(secret[:]), got.Ring.Keys()[0].Reveal(), got.NodeKey.Reveal(), string(h.ca.MarshalKey()))
	if !strings.Contains(h.journal.b.String(), "node joined") {
		t.Error("nothing was logged at all")
	}
}

func TestJoinTrustsTheSiteOfTheTokenAlone(t *testing.T) {
	h, mallory := newHost(t, "n1", ""), newHost(t, "n1", "")
	token := h.token(t, TokenOptions{Name: "n2"})
	_, err := Join(t.Context(), mallory.serve(t).String(), token.Text(), Want{})
	wantError(t, err, "it is another one")
}

func TestTokenRefusals(t *testing.T) {
	for _, test := range []struct {
		name string
		why  Reason
		try  func(t *testing.T, h *host) error
		want []string
	}{
		{"expired", ReasonExpired, func(t *testing.T, h *host) error {
			token := h.token(t, TokenOptions{})
			time.Sleep(TokenLife + time.Second)
			return h.try(t, token, "n2")
		}, []string{"expired on", "UTC"}},
		{"expired a year ago", ReasonExpired, func(t *testing.T, h *host) error {
			token := h.token(t, TokenOptions{})
			time.Sleep(365 * 24 * time.Hour)
			if got := h.tokens.List(); len(got) > 0 {
				t.Errorf("remembered for ever: %v", got)
			}
			return h.try(t, token, "n2")
		}, []string{"expired on"}},
		{"used", ReasonUsed, func(t *testing.T, h *host) error {
			token := h.token(t, TokenOptions{})
			if err := h.try(t, token, "n2"); err != nil {
				t.Fatal(err)
			}
			return h.try(t, token, "n3")
		}, []string{"was used on", "by n2"}},
		{"revoked", ReasonRevoked, func(t *testing.T, h *host) error {
			token := h.token(t, TokenOptions{})
			if err := h.tokens.Revoke(token.ID, "root"); err != nil {
				t.Fatal(err)
			}
			return h.try(t, token, "n2")
		}, []string{"was revoked on"}},
		{"forged: another secret", ReasonUnknown, func(t *testing.T, h *host) error {
			token := *h.token(t, TokenOptions{})
			token.secret = newSecret()
			return h.try(t, &token, "n2")
		}, []string{"not known on n1", "altered"}},
		{"forged: a longer life", ReasonUnknown, func(t *testing.T, h *host) error {
			token := *h.token(t, TokenOptions{})
			token.Expires = token.Expires.Add(time.Hour)
			return h.try(t, &token, "n2")
		}, []string{"not known on n1"}},
		{"forged: another name", ReasonUnknown, func(t *testing.T, h *host) error {
			token := *h.token(t, TokenOptions{Name: "n3"})
			token.Name = "n2"
			return h.try(t, &token, "n2")
		}, []string{"not known on n1"}},
		{"made up", ReasonUnknown, func(t *testing.T, h *host) error {
			token := *h.token(t, TokenOptions{})
			token.ID = "0011223344556677"
			return h.try(t, &token, "n2")
		}, []string{"not known on n1"}},
		{"another site", ReasonSite, func(t *testing.T, h *host) error {
			token := *h.token(t, TokenOptions{})
			token.Site = "other"
			return h.try(t, &token, "n2")
		}, []string{"another site", "site test"}},
		{"made on another node", ReasonIssuer, func(t *testing.T, h *host) error {
			other := newHost(t, "n7", "")
			token := other.token(t, TokenOptions{})
			exchange(t, h.tokens.c.Table, other.tokens.c.Table)
			return h.try(t, token, "n2")
		}, []string{"another node, n7", "join there"}},
		{"wrong name", ReasonName, func(t *testing.T, h *host) error {
			return h.try(t, h.token(t, TokenOptions{Name: "n3"}), "n2")
		}, []string{"a node called n3"}},
		{"no name", ReasonName, func(t *testing.T, h *host) error {
			return h.try(t, h.token(t, TokenOptions{}), "N 2")
		}, []string{"not that of a node"}},
		{"a name that is taken otherwise", ReasonName, func(t *testing.T, h *host) error {
			return h.try(t, h.token(t, TokenOptions{}), "join")
		}, []string{"called join"}},
		{"a node of that name is there", ReasonTaken, func(t *testing.T, h *host) error {
			return h.try(t, h.token(t, TokenOptions{}), "n1")
		}, []string{"has a node n1 already"}},
		{"clock behind", ReasonClock, func(t *testing.T, h *host) error {
			id, token := newIdentity(t), h.token(t, TokenOptions{})
			body, err := newJoinRequest(id, token, Want{Name: "n2"})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
			return parseRefusal("", 403, second(h.ask(t, body)))
		}, []string{"2m0s behind", "set it"}},
		{"not ready", ReasonBusy, func(t *testing.T, h *host) error {
			h.config.Ready = make(chan struct{})
			return h.try(t, h.token(t, TokenOptions{}), "n2")
		}, []string{"just started"}},
		{"a new site key on its way", ReasonBusy, func(t *testing.T, h *host) error {
			h.config.Ring = func() (*keys.Ring, error) { return nil, errors.New("a new site key is on its way") }
			return h.try(t, h.token(t, TokenOptions{}), "n2")
		}, []string{"on its way"}},
		{"the document does not take it", ReasonDocument, func(t *testing.T, h *host) error {
			h.admit = errors.New("nodes.n2.vips: 192.0.2.11 is that of n1 too")
			return h.try(t, h.token(t, TokenOptions{}), "n2")
		}, []string{"does not take the node", "192.0.2.11"}},
		{"another's identity", ReasonRequest, func(t *testing.T, h *host) error {
			body, err := newJoinRequest(newIdentity(t), h.token(t, TokenOptions{}), Want{Name: "n2"})
			if err != nil {
				t.Fatal(err)
			}
			var q joinRequest
			if err := json.Unmarshal(body, &q); err != nil {
				t.Fatal(err)
			}
			// Signed by someone else than the one whose keys it holds.
			q.Member = newIdentity(t).seal(domainMember, Member{V: 1, Name: "n2", Public: newIdentity(t).Public()})
			if body, err = json.Marshal(q); err != nil {
				t.Fatal(err)
			}
			return parseRefusal("", 403, second(h.ask(t, body)))
		}, []string{"does not prove"}},
		{"no request", ReasonRequest, func(t *testing.T, h *host) error {
			return parseRefusal("", 403, second(h.ask(t, []byte("hello"))))
		}, []string{"not understood"}},
		{"too long", ReasonRequest, func(t *testing.T, h *host) error {
			return parseRefusal("", 403, second(h.ask(t, make([]byte, maxJoinRequest+1))))
		}, []string{"too long"}},
		{"of a later version", ReasonRequest, func(t *testing.T, h *host) error {
			return parseRefusal("", 403, second(h.ask(t, []byte(`{"v":2}`))))
		}, []string{"version"}},
		{"no token", ReasonDamaged, func(t *testing.T, h *host) error {
			body := fmt.Sprintf(`{"v":1,"token":"x","name":"n2","time":%q}`, time.Now().Format(time.RFC3339))
			return parseRefusal("", 403, second(h.ask(t, []byte(body))))
		}, []string{"no join token"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, "n1", "")
				err := test.try(t, h)
				wantRefusal(t, err, test.why, test.want...)
				if _, in := h.registry.Member("n2"); in && test.why != ReasonUsed {
					t.Error("let in all the same")
				}
				// What could not have been helped by another token does not cost this one.
				for _, info := range h.tokens.List() {
					if info.State == TokenUsed && test.why != ReasonUsed {
						t.Error("the token is used up")
					}
				}
			})
		})
	}
}

func second(_ int, b []byte) []byte { return b }

// TestJoinAfterARefusal: a mistake can be corrected with the same token.
func TestJoinAfterARefusal(t *testing.T) {
	h := newHost(t, "n1", "")
	token := h.token(t, TokenOptions{})
	h.admit = errors.New("no")
	if err := h.try(t, token, "n2"); err == nil {
		t.Fatal("no error")
	}
	h.admit = nil
	if err := h.try(t, token, "n2"); err != nil {
		t.Errorf("second attempt: %v", err)
	}
}

func TestOneTokenLetsOneNodeIn(t *testing.T) {
	h := newHost(t, "n1", filepath.Join(t.TempDir(), "cluster.db"))
	token := h.token(t, TokenOptions{})
	var all sync.WaitGroup
	var in, used atomic.Int32
	for n := range 16 {
		all.Go(func() {
			err := h.try(t, token, balancing.NodeID(fmt.Sprintf("m%d", n)))
			switch r, ok := errors.AsType[*Refusal](err); {
			case err == nil:
				in.Add(1)
			case ok && r.Reason == ReasonUsed:
				used.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if in.Load() != 1 || used.Load() != 15 || len(h.registry.Members()) != 2 {
		t.Errorf("%d let in, %d refused; members %v", in.Load(), used.Load(), memberNames(h.registry.Members()))
	}
}

func TestUsedTokenStaysUsedAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.db")
	store, err := cluster.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t)
	h := newHost(t, "n1", "")
	h.tokens.c.Table, h.tokens.c.Identity = openTable(t, store, "n1", TokensTable), id
	token, open := h.token(t, TokenOptions{}), h.token(t, TokenOptions{})
	if err := h.try(t, token, "n2"); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	h.tokens.c.Table = openTable(t, openStore(t, path), "n1", TokensTable)
	wantRefusal(t, h.try(t, token, "n3"), ReasonUsed, "by n2")
	if err := h.try(t, open, "n4"); err != nil {
		t.Errorf("with the other one: %v", err)
	}
}

func TestTokenThatCannotBeMarkedIsNotRedeemed(t *testing.T) {
	store, err := cluster.OpenStore(filepath.Join(t.TempDir(), "cluster.db"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, "n1", "")
	h.tokens.c.Table = openTable(t, store, "n1", TokensTable)
	token := h.token(t, TokenOptions{})
	if err := store.Close(); err != nil { // as a full disk
		t.Fatal(err)
	}
	wantRefusal(t, h.try(t, token, "n2"), ReasonBusy, "cannot keep that the join token was used")
	if _, in := h.registry.Member("n2"); in {
		t.Error("let in all the same")
	}
}

func TestCreateTokenRefuses(t *testing.T) {
	h := newHost(t, "n1", "")
	for name, test := range map[string]struct {
		o    TokenOptions
		want string
	}{
		"too long a life": {TokenOptions{Life: MaxTokenLife + 1}, "168h"},
		"negative life":   {TokenOptions{Life: -1}, "a life of"},
		"bad name":        {TokenOptions{Name: "N"}, "not that of a node"},
	} {
		_, err := h.tokens.Create(test.o)
		if wantError(t, err, test.want); err == nil {
			t.Error(name)
		}
	}
	h.tokens.c.Addresses = func() []netip.AddrPort { return nil }
	_, err := h.tokens.Create(TokenOptions{})
	wantError(t, err, "no address")
	wantError(t, h.tokens.Revoke("0011223344556677", ""), "none of that ID")
	token := func() *Token {
		h.tokens.c.Addresses = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:7948")} }
		return h.token(t, TokenOptions{Life: MaxTokenLife})
	}()
	if err := h.try(t, token, "n2"); err != nil {
		t.Fatal(err)
	}
	wantError(t, h.tokens.Revoke(token.ID, ""), "n2 has joined with it")
}

func TestTokenText(t *testing.T) {
	h := newHost(t, "n1", "")
	token := h.token(t, TokenOptions{Name: "n2"})
	got, err := ParseToken(" " + token.Text() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got.Text() != token.Text() || got.Site != "test" || got.Issuer != "n1" || got.Name != "n2" || got.Fingerprint != h.ca.Fingerprint() || !got.Expires.Equal(token.Expires) || got.secret() != token.secret() || got.Addresses[0] != token.Addresses[0] {
		t.Errorf("comes back as %+v", got)
	}
	text := token.Text()
	for i := range text {
		for _, bad := range []string{text[:i], text[:i] + "!" + text[i+1:], text[:i] + flip(text[i]) + text[i+1:]} {
			if _, err := ParseToken(bad); err == nil {
				t.Fatalf("octet %d: %q is taken", i, bad)
			} else if len(bad) > 20 && strings.Contains(err.Error(), bad[10:20]) {
				t.Fatalf("the error tells the token: %v", err)
			}
		}
	}
	_, err = ParseToken(strings.Repeat("x", 100))
	wantError(t, err, "no join token", "peerage token create")
	_, err = ParseToken(text[:40])
	wantError(t, err, "damaged", "copy the whole")
	secret := token.secret()
	b, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprintf("%v %+v %#v %s %x", token, token, token, token, token), string(b), fmt.Sprintf("%+v %#v", *token, *token), fmt.Sprintf("%x", *token)} {
		if strings.Contains(out, text[20:40]) || strings.Contains(out, fmt.Sprintf("%x", secret[:6])) || strings.Contains(out, strings.Trim(fmt.Sprint(secret[:6]), "[]")) {
			t.Errorf("the secret is in %q", out)
		}
	}
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// TestTokenIsNotInTheTable looks for the secret in what is replicated.
func TestTokenIsNotInTheTable(t *testing.T) {
	h := newHost(t, "n1", "")
	token := h.token(t, TokenOptions{})
	secret := token.secret()
	for _, part := range h.tokens.c.Table.Snapshot() {
		if strings.Contains(string(part), string(secret[:])) || strings.Contains(string(part), base64.StdEncoding.EncodeToString(secret[:])) || strings.Contains(string(part), token.Text()[len(tokenMark):]) {
			t.Error("the secret is in the table")
		}
	}
}

// TestAnswersThatAreNone has a server that answers something else.
func TestAnswersThatAreNone(t *testing.T) {
	h := newHost(t, "n1", "")
	token := h.token(t, TokenOptions{Name: "n2"})
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"another service": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", 404) }, "HTTP status 404"},
		"no box":          {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, "not for this node"},
		"a wild text": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(403)
			json.NewEncoder(w).Encode(Refusal{ReasonUsed, "two\nlines\x1b[2J"})
		}, "two lines [2J"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
		}, "lost on its way"},
		"nothing": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "lost on its way"},
	} {
		s := httptest.NewUnstartedServer(test.answer)
		s.TLS = certs.JoinConfig(h.ca)
		s.StartTLS()
		_, err := Join(t.Context(), s.Listener.Addr().String(), token.Text(), Want{})
		if wantError(t, err, test.want); err == nil {
			t.Error(name)
		}
		s.Close()
	}
	_, err := Join(t.Context(), "", "hello", Want{})
	wantError(t, err, "no join token")
	_, err = Join(t.Context(), "no address", h.token(t, TokenOptions{}).Text(), Want{Name: "n2"})
	wantError(t, err, "no address")
	_, err = Join(t.Context(), "", h.token(t, TokenOptions{}).Text(), Want{})
	wantError(t, err, "how this one is to be called")
}

func FuzzToken(f *testing.F) {
	h := newHost(f, "n1", "")
	f.Add(h.token(f, TokenOptions{Name: "n2"}).Text())
	f.Add(tokenMark)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		// The checksum would keep the fuzzer out.
		body, err := tokenEncoding.DecodeString(strings.TrimPrefix(text, tokenMark))
		if err == nil {
			text = tokenMark + tokenEncoding.EncodeToString(append(body, checksum(body)...))
		}
		token, err := ParseToken(text)
		if err == nil && token.Text() != strings.TrimSpace(text) {
			t.Errorf("%q is a second spelling of %q", text, token.Text())
		}
	})
}

func FuzzJoinRequest(f *testing.F) {
	h := newHost(f, "n1", "")
	body, err := newJoinRequest(fixedIdentity(f), h.token(f, TokenOptions{}), Want{Name: "n2"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"v":1,"name":"n2","member":{"signed":{},"key":"","sig":""}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		status, answer := h.ask(t, body)
		if status == http.StatusOK && h.tokens.List()[0].State != TokenUsed {
			t.Error("let in without a token")
		}
		if status != http.StatusOK && parseRefusal("", status, answer) == nil {
			t.Errorf("answers %q", answer)
		}
	})
}

func FuzzJoinAnswer(f *testing.F) {
	h := newHost(f, "n1", "")
	id, token := fixedIdentity(f), h.token(f, TokenOptions{Name: "n2"})
	plain, err := json.Marshal(joinAnswer{1, "test", "n2", h.ring.Reveal(), string(h.ca.CertPEM()), h.ca.MarshalKey(), "site: test\n", nil})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseAnswer(id, token, "n2", plain); err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(id, token, "n2", b)
		if err == nil && (a.CA.Fingerprint() != token.Fingerprint || a.Name != "n2" || a.Ring == nil) {
			t.Errorf("taken: %v", a)
		}
		openAnswer(id, token, "n2", b)
		if parseRefusal("", 403, b) == nil {
			t.Error("no error")
		}
	})
}

func FuzzTokens(f *testing.F) {
	id := fixedIdentity(f)
	const token = "0011223344556677"
	f.Add(token, id.seal(domainToken, tokenEntry{V: 1, ID: token, Issuer: "n1"}))
	f.Add(token+usedSuffix, id.seal(domainUsed, tokenEnd{V: 1, ID: token, Node: "n1"}))
	f.Add(token+revokedSuffix, id.seal(domainRevoked, tokenEnd{V: 1, ID: token, Node: "n1"}))
	f.Add("x", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if checkTokens(key, value) == nil && !cluster.ValidKey(key) {
			t.Errorf("%q is no key", key)
		}
	})
}
