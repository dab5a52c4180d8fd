package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"
	"testing"

	"peerage/appliance/membership"
	"peerage/appliance/revision"
	"peerage/appliance/site"
	"peerage/balancing/cluster"
)

func TestStatusOfErrors(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "cluster.db", Err: syscall.ENOSPC}
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), 500},
		{fmt.Errorf("write table site: %w", full), 500},
		{mostly(http.StatusConflict, fmt.Errorf("confirm: %w", full)), 500},
		{mostly(http.StatusConflict, errors.New("confirm: nothing to confirm")), 409},
		{mostly(http.StatusBadRequest, fmt.Errorf("apply: %w", new(revision.Conflict))), 409},
		{mostly(http.StatusBadRequest, fmt.Errorf("apply: %w", new(revision.Unconfirmed))), 409},
		{mostly(http.StatusBadRequest, fmt.Errorf("apply: %w", revision.ErrUnchanged)), 409},
		{mostly(http.StatusConflict, fmt.Errorf("apply: %w", new(revision.Refused))), 400},
		{mostly(http.StatusBadRequest, fmt.Errorf("apply: %w", &revision.Withdrawn{Revision: new(revision.Revision)})), 503},
		{mostly(http.StatusConflict, fmt.Errorf("find: %w", revision.ErrUnknown)), 404},
		{fmt.Errorf("plan: %w", site.Problems{{}}), 400},
		{mostly(http.StatusBadRequest, fmt.Errorf("table: %w", cluster.ErrOwnClock)), 503},
		{fmt.Errorf("table: %w", cluster.ErrFull), 503},
		{fmt.Errorf("rotate: %w", membership.ErrUnfinished), 409},
		{fmt.Errorf("rotate: %w", context.DeadlineExceeded), 503},
		{&membership.Refusal{Reason: membership.ReasonUnknown}, 404},
		{&membership.Refusal{Reason: membership.ReasonUsed}, 409},
		{&membership.Refusal{Reason: membership.ReasonTaken}, 409},
		{&membership.Refusal{Reason: membership.ReasonBusy}, 503},
		{&membership.Refusal{Reason: membership.ReasonName}, 400},
		{fmt.Errorf("n2 is still a node of the site: %w", faultf(404, "n1: no")), 404},
		{errNoHead, 503},
		{errGuardGone, 503},
	} {
		if got := statusOf(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	if mostly(http.StatusConflict, nil) != nil {
		t.Error("no error has become one")
	}
}
