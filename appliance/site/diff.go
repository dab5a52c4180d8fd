package site

import (
	"fmt"

	"github.com/aymanbagabas/go-udiff"
)

// Diff returns what differs between two texts in the unified form, with three lines of
// context; "" if they are equal.
func Diff(a, b, nameA, nameB string) string {
	text, err := udiff.ToUnified(nameA, nameB, a, udiff.Lines(a, b), udiff.DefaultContextLines)
	if err != nil { // cannot be: the edits are those of a
		return fmt.Sprintf("--- %s\n+++ %s\n(the difference cannot be shown: %v)\n", nameA, nameB, err)
	}
	return text
}
