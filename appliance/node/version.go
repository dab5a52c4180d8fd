package node

import (
	"runtime/debug"

	"peerage/balancing"
)

// Version returns the version that was built: a tag, or the commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "commit " + s.Value[:12]
		}
	}
	return "development"
}

// shortVersion is the version as a report has room for it.
func shortVersion() string {
	v := Version()
	return v[:min(len(v), balancing.MaxVersion)]
}
