package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing/cluster"
)

// fault is an error of which the control API tells what kind it is, as an HTTP status.
type fault struct {
	status int
	error
}

func (f *fault) Unwrap() error { return f.error }

func faultf(status int, format string, args ...any) error {
	return &fault{status, fmt.Errorf(format, args...)}
}

// mostly gives the status of an error that says nothing more precise itself.
func mostly(status int, err error) error {
	if err == nil {
		return nil
	}
	return &fault{status, err}
}

// statusOf returns the HTTP status of an error: 400 for what was asked, 404 for a revision,
// node or token that is not there, 409 for what is at odds with what others did, 503 for
// what this node cannot do just now, and 500 for all else.
func statusOf(err error) int {
	if r, ok := errors.AsType[*membership.Refusal](err); ok {
		return statusOfReason(r.Reason)
	}
	if is[*revision.Conflict](err) || is[*revision.Unconfirmed](err) || errors.Is(err, revision.ErrUnchanged) || errors.Is(err, membership.ErrUnfinished) {
		return http.StatusConflict
	}
	if is[*revision.Refused](err) || is[site.Problems](err) {
		return http.StatusBadRequest
	}
	if is[*revision.Withdrawn](err) || errors.Is(err, cluster.ErrOwnClock) || errors.Is(err, cluster.ErrFull) || errors.Is(err, errGuardGone) || errors.Is(err, context.DeadlineExceeded) {
		return http.StatusServiceUnavailable
	}
	if errors.Is(err, revision.ErrUnknown) {
		return http.StatusNotFound
	}
	if is[syscall.Errno](err) { // of the disk, as a rule
		return http.StatusInternalServerError
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f.status
	}
	return http.StatusInternalServerError
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func statusOfReason(r membership.Reason) int {
	switch r {
	case membership.ReasonUnknown:
		return http.StatusNotFound
	case membership.ReasonUsed, membership.ReasonTaken:
		return http.StatusConflict
	case membership.ReasonBusy, membership.ReasonClock:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}
