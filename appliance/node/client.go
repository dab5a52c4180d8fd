package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/balancing"
)

// Client asks the node on this machine whose data directory it is.
type Client string

// do sends a request to the control socket.
func (c Client) do(ctx context.Context, method, path string, body any) (*http.Response, func(), error) {
	socket := filepath.Join(string(c), SocketName)
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		t.CloseIdleConnections()
		if errors.Is(err, syscall.ENOENT) {
			err = errors.New("no node runs there")
		}
		return nil, nil, fmt.Errorf("ask the node at %s: %w", c, err)
	}
	done := func() {
		resp.Body.Close()
		t.CloseIdleConnections()
	}
	// What is told in steps tells its error in the last of them.
	if resp.StatusCode != http.StatusOK && resp.Header.Get("Content-Type") != stepsType {
		defer done()
		why, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return nil, nil, errors.New(string(bytes.TrimSpace(why)))
	}
	return resp, done, nil
}

// call sends a request, and reads the answer into out.
func (c Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, done, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer done()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("ask the node at %s: %w", c, err)
	}
	return nil
}

var errInterrupted = errors.New("interrupted; what the node has begun it ends by itself, or takes back: 'peerage status' shows it")

// StepError is what ended a lengthy work.
type StepError struct {
	Text   string
	Detail json.RawMessage // for programs; may be nil
}

func (e *StepError) Error() string { return e.Text }

// follow sends a request whose answer is one [Step] a line.
func (c Client) follow(ctx context.Context, path string, body any, step func(Step), out any) error {
	resp, done, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer done()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		var s struct {
			Step
			Detail json.RawMessage `json:"detail"`
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return fmt.Errorf("ask the node at %s: %w", c, err)
		}
		switch {
		case s.Err != "":
			return &StepError{s.Err, s.Detail}
		case s.Result != nil:
			return json.Unmarshal(s.Result, out)
		}
		if step != nil {
			step(s.Step)
		}
	}
	err = lines.Err()
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the node at %s ended while it worked: %w", c, err)
}

// Status is what the node knows.
func (c Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	return st, c.call(ctx, http.MethodGet, statusPath, nil, st)
}

// Settings is how the site balances now.
func (c Client) Settings(ctx context.Context) (s balancing.Settings, err error) {
	return s, c.call(ctx, http.MethodGet, balancingPath, nil, &s)
}

// ChangeSettings changes the settings of the whole site that changes names, by their keys
// in JSON, and returns those that count from now on.
func (c Client) ChangeSettings(ctx context.Context, changes map[string]any) (s balancing.Settings, err error) {
	return s, c.call(ctx, http.MethodPatch, balancingPath, changes, &s)
}

// ResetSettings goes back to those of the site document.
func (c Client) ResetSettings(ctx context.Context) (s balancing.Settings, err error) {
	return s, c.call(ctx, http.MethodDelete, balancingPath, nil, &s)
}

// Site is what the node knows of the site document.
func (c Client) Site(ctx context.Context) (st revision.Status, err error) {
	return st, c.call(ctx, http.MethodGet, sitePath, nil, &st)
}

// History lists the revisions of the site document, the newest first, without text.
func (c Client) History(ctx context.Context) (all []revision.Entry, err error) {
	return all, c.call(ctx, http.MethodGet, historyPath, nil, &all)
}

// Revision returns a revision with its text; "" is the one in force.
func (c Client) Revision(ctx context.Context, ref string) (r revision.Revision, err error) {
	return r, c.call(ctx, http.MethodGet, revisionPath+"?"+url.Values{"revision": {ref}}.Encode(), nil, &r)
}

// Diff returns what differs between two revisions.
func (c Client) Diff(ctx context.Context, from, to string) (diff string, err error) {
	return diff, c.call(ctx, http.MethodGet, diffPath+"?"+url.Values{"from": {from}, "to": {to}}.Encode(), nil, &diff)
}

// Plan says what a change of the site document would do.
func (c Client) Plan(ctx context.Context, a Apply) (p *Plan, err error) {
	return p, c.call(ctx, http.MethodPost, planPath, a, &p)
}

// Apply changes the site document, and tells each step.
func (c Client) Apply(ctx context.Context, a Apply, step func(Step)) (r revision.Revision, err error) {
	return r, c.follow(ctx, applyPath, a, step, &r)
}

// Confirm ends the trial of the revision in force.
func (c Client) Confirm(ctx context.Context, ref Reference) (r revision.Revision, err error) {
	return r, c.call(ctx, http.MethodPost, confirmPath, ref, &r)
}

// Dismiss takes a revision off the list of conflicts.
func (c Client) Dismiss(ctx context.Context, ref Reference) error {
	return c.call(ctx, http.MethodPost, dismissPath, ref, new(struct{}))
}

// Rollback brings an earlier revision back, and tells each step.
func (c Client) Rollback(ctx context.Context, ref Reference, step func(Step)) (r revision.Revision, err error) {
	return r, c.follow(ctx, rollbackPath, ref, step, &r)
}

// Tokens lists the join tokens.
func (c Client) Tokens(ctx context.Context) (all []membership.TokenInfo, err error) {
	return all, c.call(ctx, http.MethodGet, tokensPath, nil, &all)
}

// CreateToken returns the text of a new join token.
func (c Client) CreateToken(ctx context.Context, n NewToken) (text string, err error) {
	return text, c.call(ctx, http.MethodPost, tokensPath, n, &text)
}

// RevokeToken makes a join token worthless.
func (c Client) RevokeToken(ctx context.Context, ref TokenReference) error {
	return c.call(ctx, http.MethodDelete, tokensPath, ref, new(struct{}))
}

// Keys is how the site key stands.
func (c Client) Keys(ctx context.Context) (st membership.Status, err error) {
	return st, c.call(ctx, http.MethodGet, keysPath, nil, &st)
}

// Rotate replaces the site key, and tells each step.
func (c Client) Rotate(ctx context.Context, r Rotate, step func(Step)) (st membership.Status, err error) {
	return st, c.follow(ctx, rotatePath, r, step, &st)
}

// RemoveNode takes a node out of the site, and tells each step.
func (c Client) RemoveNode(ctx context.Context, n NodeChange, step func(Step)) (st membership.Status, err error) {
	return st, c.follow(ctx, removePath, n, step, &st)
}

// RenameNode gives a node another name, and tells each step.
func (c Client) RenameNode(ctx context.Context, n NodeChange, step func(Step)) (r revision.Revision, err error) {
	return r, c.follow(ctx, renamePath, n, step, &r)
}

// Leave takes the node itself out of the site, and tells each step. When it returns without
// an error the site document does not have the node any more; the node ends then.
func (c Client) Leave(ctx context.Context, n NodeChange, step func(Step)) error {
	return c.follow(ctx, leavePath, n, step, new(struct{}))
}

// Database writes a consistent copy of what the nodes agree on.
func (c Client) Database(ctx context.Context, w io.Writer) error {
	resp, done, err := c.do(ctx, http.MethodGet, databasePath, nil)
	if err != nil {
		return err
	}
	defer done()
	_, err = io.Copy(w, resp.Body)
	return err
}
