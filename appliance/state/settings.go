package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"peerage/balancing"
)

const settingsFile = "settings.json"

// Settings returns what was last kept by [Dir.SaveSettings], or the zero Settings. What
// cannot be understood counts as nothing: the node then goes by its site document until a
// peer tells it the newest again.
func (d *Dir) Settings() (balancing.Settings, error) {
	b, _, err := read(d.root.OpenFile(settingsFile, readOnly, 0))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errTooLarge):
		return balancing.Settings{}, nil
	case err != nil:
		return balancing.Settings{}, fmt.Errorf("read %s: %w", filepath.Join(d.root.Name(), settingsFile), err)
	}
	return parseSettings(b), nil
}

func parseSettings(b []byte) balancing.Settings {
	var s balancing.Settings
	if json.Unmarshal(b, &s) != nil || s.Check() != nil {
		return balancing.Settings{}
	}
	return s
}

// SaveSettings keeps settings that were changed while the site ran.
func (d *Dir) SaveSettings(s balancing.Settings) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replace(d.root, settingsFile, append(b, '\n'), 0o600)
}
