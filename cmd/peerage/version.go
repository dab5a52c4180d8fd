package main

import (
	"fmt"
	"runtime"

	"peerage/appliance/node"
)

type versionCmd struct{}

func (versionCmd) Run(s *streams) error {
	_, err := fmt.Fprintf(s.out, "peerage %s, %s %s/%s\n", node.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
