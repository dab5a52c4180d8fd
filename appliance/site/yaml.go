package site

import (
	"bytes"
	"errors"
	"io"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

const (
	// maxDepth is how deep a file may be nested. What is known needs less than half.
	maxDepth = 24

	// maxSeparators bounds what the YAML parser makes of a file: it takes a hundred octets
	// and more for each value, and values are parted by these. A zone of the largest size
	// fits several times.
	maxSeparators = 500_000
	separators    = "\n\r,[{"
)

// parse returns the one value that text holds, or nil after noting why there is none.
func (r *report) parse(text []byte, most int) *yaml.Node {
	start := place{1, 1}
	r.places[""] = start
	if len(text) > most {
		r.badAt(start, "", "the file is longer than %d octets; make it shorter", most)
		return nil
	}
	parts := 0
	for _, c := range []byte(separators) {
		parts += bytes.Count(text, []byte{c})
	}
	if parts > maxSeparators {
		r.badAt(start, "", "more than %d lines, commas and opening brackets; make it shorter", maxSeparators)
		return nil
	}
	if at, why := unreadable(text); why != "" {
		r.badAt(at, "", "%s", why)
		return nil
	}
	limits := loaderlimits.New(loaderlimits.DepthValue(maxDepth))
	loader, err := yaml.NewLoader(bytes.NewReader(text), yaml.WithPlugin(limits))
	if err != nil {
		r.badAt(start, "", "%v", err)
		return nil
	}
	var doc, second yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0:
		r.badAt(start, "", "the file is empty; 'peerage demo' shows a whole site in its directory")
		return nil
	case err != nil:
		r.badYAML(err)
		return nil
	}
	switch err := loader.Load(&second); {
	case errors.Is(err, io.EOF):
		return doc.Content[0]
	case err != nil:
		r.badYAML(err)
	default:
		r.badAt(place{second.Line, second.Column}, "", "a second YAML document begins here; one file holds one")
	}
	return nil
}

// badYAML notes an error of the YAML parser.
func (r *report) badYAML(err error) {
	at, text := place{1, 1}, err.Error()
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		text = e.Message
		if e.ContextMsg != "" {
			text += " (" + e.ContextMsg + ")"
		}
		if e.Mark.Line > 0 {
			at = place{e.Mark.Line, e.Mark.Column}
		}
	}
	r.badAt(at, "", "not YAML: %s; look at quotes, brackets and indentation (spaces, no tabs)", text)
}

// unreadable looks for the first character that no text has. The YAML parser would find
// it too, but does not say where.
func unreadable(text []byte) (at place, why string) {
	at = place{1, 1}
	for i := 0; i < len(text); {
		c, size := utf8.DecodeRune(text[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			return at, "not UTF-8; save the file in that encoding"
		case c < ' ' && c != '\t' && c != '\n' && c != '\r', c == 0x7f:
			return at, "a control character; remove it, or write it as an escape between double quotes"
		case c == '\n':
			at = place{at.line + 1, 0}
		}
		at.column++
		i += size
	}
	return at, ""
}
