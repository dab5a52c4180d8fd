package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"peerage/balancing/keys"
	"peerage/tls/certs"
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

// WriteSiteKey writes a new file for the site key, for its owner alone. What is there
// already stays: the error is [fs.ErrExist] then.
func WriteSiteKey(path string, ring *keys.Ring) error {
	return Create(path, []byte(ring.Reveal()), 0o600)
}

// ReplaceSiteKey puts another ring in the place of the one that the site key file holds, and
// seals the local CA with it. The two must have a key in common, as they have at each step
// of a rotation: whenever the power fails, what is on disk opens the CA.
func (d *Dir) ReplaceSiteKey(path string, was, ring *keys.Ring) error {
	for _, s := range d.siteKeySteps(path, was, ring) {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// siteKeySteps are the steps of ReplaceSiteKey. The power may fail between any two.
func (d *Dir) siteKeySteps(path string, was, ring *keys.Ring) []func() error {
	var ca *certs.CA
	var common *keys.Ring
	return []func() error{
		func() (err error) {
			if common, err = commonKey(was, ring); err != nil {
				return fmt.Errorf("write %s: %w", path, err)
			}
			ca, err = LoadCA(d.root.Name(), was)
			return err
		},
		func() error { return d.replaceCA(ca, common) },
		func() error { return Replace(path, []byte(ring.Reveal()), 0o600) },
		func() error { return d.replaceCA(ca, ring) },
	}
}

// commonKey returns a ring of one key that both rings have.
func commonKey(a, b *keys.Ring) (*keys.Ring, error) {
	for _, k := range b.Keys() {
		if slices.ContainsFunc(a.Keys(), k.Equal) {
			return keys.NewRing(k)
		}
	}
	return nil, errors.New("the new site key ring has no key of the old one, and could not open the local CA")
}
