package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"peerage/balancing/keys"
)

// ReadSiteKey reads the site key from its file, which may lie anywhere; while the site
// changes over, the new key and below it the old one. A file that anyone but its owner can
// read is refused.
func ReadSiteKey(path string) (*keys.Ring, error) {
	r, err := readSiteKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: 'peerage init' makes it for the first node, every other node needs a copy", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func readSiteKey(path string) (*keys.Ring, error) {
	b, info, err := read(os.OpenFile(path, readOnly, 0))
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("others may read it (mode %#o): take that away with 'chmod 600 %s'; if they may have done so, the site needs a new key", perm, path)
	}
	return keys.ParseRing(string(b))
}

// WriteSiteKey writes a new file for a site key, for its owner alone. What is there
// already stays: the error is [fs.ErrExist] then.
func WriteSiteKey(path string, key keys.Key) error {
	if key.Empty() {
		return fmt.Errorf("write %s: no site key is given", path)
	}
	return Create(path, []byte(key.Reveal()+"\n"), 0o600)
}
