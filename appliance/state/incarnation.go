package state

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const incarnationFile = "incarnation"

// NextIncarnation returns a number that is greater than at every start before, and keeps
// it. It is the milliseconds since 1970 at now, or one more than the last if that is
// more: a clock that was set back does no harm, nor does a directory that is made anew
// while the clock goes right.
//
// What is no number counts as no file: the clock then heals it, which is better than a
// node that does not start.
func (d *Dir) NextIncarnation(now time.Time) (uint64, error) {
	b, _, err := read(d.root.OpenFile(incarnationFile, readOnly, 0))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTooLarge) {
		return 0, fmt.Errorf("read %s: %w", filepath.Join(d.root.Name(), incarnationFile), err)
	}
	last, _ := parseIncarnation(b) // 0 if there is none
	next := max(last+1, uint64(max(now.UnixMilli(), 0)))
	if err := replace(d.root, incarnationFile, formatIncarnation(next), 0o600); err != nil {
		return 0, err
	}
	return next, nil
}

// maxIncarnation is beyond what any clock can have given: a greater number is damage.
// The console's JavaScript holds numbers up to it.
const maxIncarnation = 1<<53 - 1

func parseIncarnation(b []byte) (n uint64, ok bool) {
	text, ok := strings.CutSuffix(string(b), "\n")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > maxIncarnation || strconv.FormatUint(n, 10) != text {
		return 0, false
	}
	return n, true
}

func formatIncarnation(n uint64) []byte { return fmt.Appendln(nil, n) }
