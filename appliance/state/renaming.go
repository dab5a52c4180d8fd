package state

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"peerage/balancing"
)

// renamingFile is there while a node takes another name, which is in two files: the node
// file and the site document. If the power fails between them, neither alone tells that.
const renamingFile = "renaming"

// BeginRenaming notes that the node takes another name.
func (d *Dir) BeginRenaming(to balancing.NodeID) error {
	return replace(d.root, renamingFile, []byte(to+"\n"), 0o600)
}

// Renaming returns the name that the node was about to take when it ended, or "".
func (d *Dir) Renaming() (balancing.NodeID, error) {
	b, _, err := read(d.root.OpenFile(renamingFile, readOnly, 0))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errTooLarge):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read %s: %w", filepath.Join(d.root.Name(), renamingFile), err)
	}
	if to := balancing.NodeID(strings.TrimSpace(string(b))); to.Valid() {
		return to, nil
	}
	return "", nil
}

// EndRenaming forgets that the node takes another name.
func (d *Dir) EndRenaming() error {
	if err := d.root.Remove(renamingFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(d.root.Open("."))
}
