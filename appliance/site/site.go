// Package site is the configuration of a node: the node file, which says who this node
// is, and the site document, which says what all nodes of a site serve together.
//
// Start with [Document]; the comments on its fields, and those on [NodeFile], are the
// manual. [ParseDocument] and [ParseNode] read YAML strictly: a key that is not known or
// given twice, a value of the wrong type or out of range, a reference to something that
// is not there are all found at once, each a [Problem] with its place, what is wrong and
// what would be right. Nothing is guessed and nothing is clamped. [Schema] turns the
// document's comments into a JSON schema for editors.
//
// The package opens no socket and starts no goroutine. What was read must not be changed:
// a document stands for the file that it came from.
package site

import (
	"io"
	"os"
)

// Bounds of the two files, in octets.
const (
	MaxNodeFile = 1 << 20
	MaxDocument = 1 << 20 // all nodes keep every revision of it
)

// LoadDocument reads the site document at path. What is wrong with it is an error of type
// [Problems].
func LoadDocument(path string) (*Document, error) {
	text, err := load(path, MaxDocument)
	if err != nil {
		return nil, err
	}
	return ParseDocument(path, text)
}

// ParseDocument reads a site document from text; path is where it lies, for errors.
func ParseDocument(path string, text []byte) (*Document, error) {
	r := newReport(path)
	doc := new(Document)
	if root := r.parse(text, MaxDocument); root != nil && r.decode(root, doc) {
		c := checker{report: r, doc: doc, text: text, root: root}
		c.check()
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	doc.source = &source{file: path, places: r.places}
	return doc, nil
}

// LoadNode reads the node file at path. What is wrong with it is an error of type
// [Problems].
func LoadNode(path string) (*NodeFile, error) {
	text, err := load(path, MaxNodeFile)
	if err != nil {
		return nil, err
	}
	return ParseNode(path, text)
}

// ParseNode reads a node file from text; path is where it lies, for errors.
func ParseNode(path string, text []byte) (*NodeFile, error) {
	r := newReport(path)
	nf := new(NodeFile)
	if root := r.parse(text, MaxNodeFile); root != nil && r.decode(root, nf) {
		checkNode(r, nf)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	nf.derive()
	return nf, nil
}

// load reads a file, but no more of it than is needed to see that it is too long.
func load(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(most)+1))
}
