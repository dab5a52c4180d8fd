package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing"
	"peerage/balancing/cluster"
)

// This file is what an operator can do to a site at any of its nodes: change the document,
// let nodes in, take them out, and replace the site key.

const (
	sitePath     = "/v1/site"
	historyPath  = sitePath + "/history"
	revisionPath = sitePath + "/revision"
	diffPath     = sitePath + "/diff"
	planPath     = sitePath + "/plan"
	applyPath    = sitePath + "/apply"
	confirmPath  = sitePath + "/confirm"
	rollbackPath = sitePath + "/rollback"
	dismissPath  = sitePath + "/dismiss"
	tokensPath   = "/v1/tokens"
	keysPath     = "/v1/keys"
	rotatePath   = keysPath + "/rotate"
	removePath   = "/v1/nodes/remove"
	renamePath   = "/v1/nodes/rename"
	leavePath    = "/v1/leave"
	databasePath = "/v1/database"
)

// Apply is a change of the site document that an operator wants.
type Apply struct {
	Text string `json:"text"`
	// Base is the revision that the text was made from, as 'peerage site show' has it in the
	// first line; "" is the one in force.
	Base          string           `json:"base,omitempty"`
	User          string           `json:"user"`
	Comment       string           `json:"comment,omitempty"`
	ConfirmWithin time.Duration    `json:"confirm_within,omitempty"`
	Canary        balancing.NodeID `json:"canary,omitempty"`
	CanaryFor     time.Duration    `json:"canary_for,omitempty"`
}

// Plan is what a change of the site document would do.
type Plan struct {
	Base    revision.Revision `json:"base"` // without text
	Diff    string            `json:"diff"`
	Effects []site.Effect     `json:"effects"`
}

// Reference names a revision, and who does something with it.
type Reference struct {
	Revision string `json:"revision,omitempty"` // number, id or its beginning; "" for the one in force, or before that
	User     string `json:"user"`
}

// TokenReference names a join token, and who does something with it.
type TokenReference struct {
	ID   string `json:"id"` // as [membership.TokenInfo] has it
	User string `json:"user"`
}

// NewToken is a wish for a join token.
type NewToken struct {
	Name balancing.NodeID `json:"name,omitempty"`
	Life time.Duration    `json:"life,omitempty"`
	User string           `json:"user"`
}

// NodeChange takes a node out of the site, or gives it another name.
type NodeChange struct {
	Name balancing.NodeID `json:"name"`
	To   balancing.NodeID `json:"to,omitempty"`
	User string           `json:"user"`
}

// Rotate replaces the site key.
type Rotate struct {
	Force bool `json:"force,omitempty"` // do not wait for nodes that are off-line
}

// Step is one line of a lengthy answer.
type Step struct {
	Text   string          `json:"text,omitempty"`   // for people
	Event  any             `json:"event,omitempty"`  // the same, for programs
	Result json.RawMessage `json:"result,omitempty"` // in the last line, if all went well
	Err    string          `json:"err,omitempty"`    // in the last line, if not
	Detail any             `json:"detail,omitempty"` // of Err, for programs
}

func (s *server) operate(mux *http.ServeMux) {
	m := s.member
	mux.HandleFunc("GET "+sitePath, func(w http.ResponseWriter, _ *http.Request) { answer(w, m.agent.Status()) })
	mux.HandleFunc("GET "+historyPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, m.agent.History()) })
	mux.HandleFunc("GET "+revisionPath, func(w http.ResponseWriter, r *http.Request) {
		x, err := m.agent.Get(r.FormValue("revision"))
		answerOr(w)(x, mostly(http.StatusBadRequest, err))
	})
	mux.HandleFunc("GET "+diffPath, func(w http.ResponseWriter, r *http.Request) {
		x, err := m.agent.Diff(r.FormValue("from"), r.FormValue("to"))
		answerOr(w)(x, mostly(http.StatusBadRequest, err))
	})
	mux.HandleFunc("POST "+planPath, take(func(_ context.Context, a Apply) (any, error) { return s.plan(a) }))
	mux.HandleFunc("POST "+applyPath, steps(s.apply))
	mux.HandleFunc("POST "+confirmPath, take(func(_ context.Context, r Reference) (any, error) {
		x, err := m.agent.Confirm(r.Revision, s.author(r.User))
		return x, mostly(http.StatusConflict, err)
	}))
	mux.HandleFunc("POST "+dismissPath, take(func(_ context.Context, r Reference) (any, error) {
		return struct{}{}, mostly(http.StatusConflict, m.agent.Dismiss(r.Revision, s.author(r.User)))
	}))
	mux.HandleFunc("POST "+rollbackPath, steps(func(ctx context.Context, r Reference, step func(Step)) (any, error) {
		x, err := m.agent.Rollback(ctx, r.Revision, revision.Options{Author: s.author(r.User)}, revisionSteps(step))
		return x, mostly(http.StatusConflict, err)
	}))
	mux.HandleFunc("GET "+tokensPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, m.tokens.List()) })
	mux.HandleFunc("POST "+tokensPath, take(s.createToken))
	mux.HandleFunc("DELETE "+tokensPath, take(func(_ context.Context, r TokenReference) (any, error) {
		return struct{}{}, m.tokens.Revoke(r.ID, s.author(r.User))
	}))
	mux.HandleFunc("GET "+keysPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, m.rotation.Status()) })
	mux.HandleFunc("POST "+rotatePath, steps(s.rotate))
	mux.HandleFunc("GET "+vipsPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.vips()) })
	mux.HandleFunc("POST "+movePath, steps(s.moveVIP))
	mux.HandleFunc("POST "+drainPath, steps(s.drainNode))
	mux.HandleFunc("POST "+removePath, steps(s.removeNode))
	mux.HandleFunc("POST "+renamePath, steps(s.renameNode))
	mux.HandleFunc("POST "+leavePath, steps(s.leave))
	mux.HandleFunc("GET "+databasePath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour)) // it goes to a disk that may be slow
		if _, err := m.store.WriteTo(w); err != nil {
			s.log.Warn("copy of the cluster database cut short", "err", err)
			panic(http.ErrAbortHandler) // so that the client sees it
		}
	})
}

// createToken makes a join token, unless it could never be used.
func (s *server) createToken(_ context.Context, n NewToken) (any, error) {
	if _, ok := s.member.registry.Member(n.Name); ok {
		return nil, faultf(http.StatusConflict, "create a token: %s is a node of the site: choose another name, or remove that node first ('peerage node remove %[1]s'). To put it on new hardware, take its backup there ('peerage backup', 'peerage restore')", n.Name)
	}
	t, err := s.member.tokens.Create(membership.TokenOptions{Name: n.Name, Life: n.Life, User: s.author(n.User)})
	if err != nil {
		return nil, err
	}
	return t.Text(), nil
}

// author is who an operator is to the site.
func (s *server) author(user string) string {
	if user == "" {
		user = "operator"
	}
	return user + "@" + string(s.nodeFile.Name)
}

// maxBody bounds what an operator sends: a site document, as JSON has it.
const maxBody = 4 << 20

// take reads the body as a T, has f act on it and answers with what f returns.
func take[T any](f func(context.Context, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x, err := body[T](w, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answerOr(w)(f(r.Context(), x))
	}
}

func body[T any](w http.ResponseWriter, r *http.Request) (x T, err error) {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	return x, d.Decode(&x)
}

func answerOr(w http.ResponseWriter) func(any, error) {
	return func(x any, err error) {
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		answer(w, x)
	}
}

// steps is [take] for what takes a while: the answer is one [Step] a line. The status is
// that of an error only before the first step.
func steps[T any](f func(context.Context, T, func(Step)) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x, err := body[T](w, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c := http.NewResponseController(w)
		c.SetWriteDeadline(time.Time{}) // a canary may take an hour
		c.SetReadDeadline(time.Time{})
		w.Header().Set("Content-Type", stepsType)
		e := json.NewEncoder(w)
		began := false
		tell := func(s Step) {
			began = true
			e.Encode(s)
			c.Flush()
		}
		result, err := f(r.Context(), x, tell)
		if err != nil {
			if !began {
				w.WriteHeader(statusOf(err))
			}
			tell(Step{Err: err.Error(), Detail: detail(err)})
			return
		}
		b, err := json.Marshal(result)
		if err != nil {
			tell(Step{Err: err.Error()})
			return
		}
		tell(Step{Result: b})
	}
}

// stepsType is the content type of steps.
const stepsType = "application/x-ndjson"

// detail returns what a program can make of an error.
func detail(err error) any {
	if c, ok := errors.AsType[*revision.Conflict](err); ok {
		return c
	}
	if r, ok := errors.AsType[*revision.Refused](err); ok {
		return r
	}
	if w, ok := errors.AsType[*revision.Withdrawn](err); ok {
		return w
	}
	if r, ok := errors.AsType[*revision.RolledBack](err); ok {
		return r
	}
	return nil
}

func revisionSteps(step func(Step)) func(revision.Event) {
	return func(e revision.Event) { step(Step{Text: e.Text, Event: e}) }
}

// plan says what a document would do in the place of its base.
func (s *server) plan(a Apply) (*Plan, error) {
	base, err := s.member.agent.Get(a.Base)
	if err != nil {
		return nil, mostly(http.StatusBadRequest, err)
	}
	was, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(base.Text))
	if err != nil {
		return nil, err
	}
	doc, err := site.ParseDocument(s.nodeFile.SiteFile, []byte(a.Text))
	if err != nil {
		return nil, err
	}
	p := &Plan{
		Base: *base, Effects: site.Effects(was, doc),
		Diff: site.Diff(base.Text, a.Text, base.String(), "your document"),
	}
	p.Base.Text = ""
	return p, nil
}

func (s *server) apply(ctx context.Context, a Apply, step func(Step)) (any, error) {
	if s.member.agent.Head() == nil {
		return nil, errNoHead
	}
	base := revision.ID("")
	if a.Base != "" {
		r, err := s.member.agent.Get(a.Base)
		if err != nil {
			return nil, mostly(http.StatusBadRequest, err)
		}
		base = r.ID
	}
	r, err := s.member.agent.Apply(ctx, a.Text, revision.Options{
		Base: base, Author: s.author(a.User), Comment: a.Comment, ConfirmWithin: a.ConfirmWithin,
		Canary: a.Canary, CanaryFor: a.CanaryFor,
	}, revisionSteps(step))
	return brief(r, mostly(http.StatusBadRequest, err))
}

// brief is a revision without its text.
func brief(r *revision.Revision, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	b := *r
	b.Text = ""
	return &b, nil
}

func (s *server) rotate(ctx context.Context, r Rotate, step func(Step)) (any, error) {
	return s.member.rotation.Rotate(ctx, membership.RotateOptions{Force: r.Force}, func(e membership.Event) {
		text := fmt.Sprintf("new key %s: %s", e.Key, e.Phase)
		if len(e.Waiting) > 0 {
			text += ", waiting for " + strings.Join(names(e.Waiting), ", ")
		}
		step(Step{Text: text, Event: e})
	})
}

// later has f run after this, one after another; false if too much waits already.
func (s *server) later(f func(context.Context)) bool {
	select {
	case s.jobs <- f:
		return true
	default:
		return false
	}
}

// work does what [server.later] has put off, until ctx ends.
func (s *server) work(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-s.jobs:
			f(ctx)
		}
	}
}

// SiteStatus is what a node knows of what its site agrees on.
type SiteStatus struct {
	Document revision.Status   `json:"document"`
	Key      membership.Status `json:"key"`
	Members  []MemberStatus    `json:"members"`
	Peers    []cluster.Info    `json:"peers"` // as gossip sees them
	Counters cluster.Counters  `json:"counters"`

	// Digests of the tables, by name: nodes that have the same ones have the same tables.
	Digests map[string]string `json:"digests"`
}

// MemberStatus is a node that the site knows.
type MemberStatus struct {
	Name     balancing.NodeID `json:"name"`
	Identity string           `json:"identity"` // fingerprint
	By       balancing.NodeID `json:"by"`       // that admitted it
	Since    time.Time        `json:"since"`
}

func (m *member) status() *SiteStatus {
	st := &SiteStatus{
		Document: m.agent.Status(), Key: m.rotation.Status(), Peers: m.cluster.Members(), Counters: m.cluster.Counters(),
		Digests: map[string]string{},
	}
	for _, t := range m.tables {
		d := t.Digest()
		st.Digests[t.Name()] = hex.EncodeToString(d[:8])
	}
	for _, x := range m.registry.Members() {
		st.Members = append(st.Members, MemberStatus{x.Name, x.Fingerprint(), x.By, x.Since})
	}
	return st
}
