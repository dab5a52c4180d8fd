package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"peerage/balancing/keys"
)

// ReadSiteKey reads a site key from its file, which may lie anywhere. A file that anyone
// but its owner can read is refused.
func ReadSiteKey(path string) (keys.Key, error) {
	k, err := readSiteKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: 'peerage init' makes it for the first node, every other node needs a copy", err)
	}
	if err != nil {
		return keys.Key{}, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}

func readSiteKey(path string) (keys.Key, error) {
	b, info, err := read(os.OpenFile(path, readOnly, 0))
	if err != nil {
		return keys.Key{}, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return keys.Key{}, fmt.Errorf("others may read it (mode %#o): take that away with 'chmod 600 %s'; if they may have done so, the site needs a new key", perm, path)
	}
	return keys.Parse(string(b))
}

// WriteSiteKey writes a new file for a site key, for its owner alone. What is there
// already stays: the error is [fs.ErrExist] then.
func WriteSiteKey(path string, key keys.Key) error {
	if key.Empty() {
		return fmt.Errorf("write %s: no site key is given", path)
	}
	return Create(path, []byte(key.Reveal()+"\n"), 0o600)
}
