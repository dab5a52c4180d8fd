package site

import (
	"fmt"
	"strings"
)

// maxGuess is the length of the longest word that a suggestion is made for, in octets.
const maxGuess = 64

// suggest says which of the known words was meant, or if none is near which there are.
// kind is their plural.
func suggest(word, kind string, known []string) string {
	best, least := "", min(2, len(word)/2)+1
	if len(word) <= maxGuess {
		for _, k := range known {
			if d := distance(strings.ToLower(word), k); d < least {
				best, least = k, d
			}
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean '%s'?", best)
	case len(known) == 0:
		return "there are no " + kind
	case len(known) > maxList:
		return fmt.Sprintf("there are %d %s, such as %s", len(known), kind, strings.Join(known[:maxList], ", "))
	}
	return fmt.Sprintf("the %s are %s", kind, strings.Join(known, ", "))
}

// maxList is how many words an error names.
const maxList = 20

// distance is the number of letters to insert, remove or replace that make b of a
// (Levenshtein); two letters swapped count as one (Damerau).
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			differ := 1
			if a[i] == b[j] {
				differ = 0
			}
			row[j+1] = min(last[j]+differ, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
