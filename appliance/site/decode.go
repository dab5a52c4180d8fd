package site

import (
	"errors"
	"iter"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// decode fills the struct that into points to from the tree at root, and notes the place
// of each value. It reports whether the file is of the right kind at all.
func (r *report) decode(root *yaml.Node, into any) bool {
	v := reflect.ValueOf(into).Elem()
	setDefaults(v)
	if !r.plain(root, "") {
		return false
	}
	if root.Kind != yaml.MappingNode {
		r.badValue("", "%s; want keys and values, such as 'site: example'", describe(root))
		return false
	}
	r.structure(root, v, "")
	return true
}

// value decodes n into v, which has its default already.
func (r *report) value(n *yaml.Node, v reflect.Value, path string, f field) {
	switch {
	case !r.plain(n, path):
	case n.Kind == yaml.ScalarNode && n.ShortTag() == nullTag:
		r.badValue(path, "no value; write %s%s", wanted(v.Type()), f.orNot())
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		setDefaults(v.Elem())
		r.value(n, v.Elem(), path, f)
	case n.Kind == yaml.ScalarNode && isScalar(v):
		err := setNode(v, n)
		if errors.Is(err, strconv.ErrRange) && f.bounds() != "" {
			r.badValue(path, "%s is out of range; want %s", shown(n.Value), f.bounds())
		} else if err != nil {
			r.badValue(path, "%v", err)
		} else if why := f.outside(v); why != "" {
			r.badValue(path, "%s", why)
		}
	case n.Kind == yaml.SequenceNode && v.Kind() == reflect.Slice:
		r.list(n, v, path, f)
	case n.Kind == yaml.MappingNode && v.Kind() == reflect.Map:
		r.mapping(n, v, path, f)
	case n.Kind == yaml.MappingNode && v.Kind() == reflect.Struct && len(fieldsOf(v.Type())) > 0:
		r.structure(n, v, path)
	default:
		r.badValue(path, "%s; want %s", describe(n), wanted(v.Type()))
	}
}

// plain reports whether n is written in the part of YAML that is understood here.
// Anchors, aliases, merge keys and tags are not: what a file says must be seen where it
// says it, and a small file must stay small.
func (r *report) plain(n *yaml.Node, path string) bool {
	at := place{n.Line, n.Column}
	why := ""
	switch {
	case n.Kind == yaml.AliasNode:
		why = "an alias, *" + n.Value + "; write the value out"
	case n.Anchor != "":
		why = "an anchor, &" + n.Anchor + "; leave it out, for nothing can refer to it"
	case n.Style&yaml.TaggedStyle != 0:
		why = "a tag, " + n.Tag + "; leave it out"
	default:
		return true
	}
	r.failed[path] = true
	r.badAt(at, path, "%s", why)
	return false
}

func (r *report) list(n *yaml.Node, v reflect.Value, path string, f field) {
	if !r.counted(len(n.Content), path, f) || len(n.Content) == 0 {
		return
	}
	s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		at := item(path, i)
		r.places[at] = place{c.Line, c.Column}
		if e := s.Index(i); e.Kind() == reflect.Struct {
			setDefaults(e)
		}
		r.value(c, s.Index(i), at, field{})
	}
	v.Set(s)
}

func (r *report) mapping(n *yaml.Node, v reflect.Value, path string, f field) {
	if !r.counted(len(n.Content)/2, path, f) || len(n.Content) == 0 {
		return
	}
	m := reflect.MakeMap(v.Type())
	for key, c := range r.pairs(n, path, nil) {
		e := reflect.New(v.Type().Elem()).Elem()
		if e.Kind() == reflect.Struct {
			setDefaults(e)
		}
		r.value(c, e, below(path, key), field{})
		m.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
	}
	v.Set(m)
}

func (r *report) structure(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	known := make([]string, len(fields))
	byKey := map[string]field{}
	for i, f := range fields {
		known[i] = f.key
		byKey[f.key] = f
	}
	for key, c := range r.pairs(n, path, known) {
		f := byKey[key]
		r.value(c, v.Field(f.index), below(path, key), f)
	}
	for _, f := range fields {
		if at := below(path, f.key); f.required && !r.given(at) {
			r.badValue(at, "missing; write %s", f.sample(v.Field(f.index).Type()))
		}
	}
}

// counted reports whether a list or mapping holds as many values as it may.
func (r *report) counted(n int, path string, f field) bool {
	least, most := number(f.min), number(f.max)
	switch {
	case f.max != "" && n > most:
		r.badValue(path, "%d entries; at most %d are allowed", n, most)
	case n < least:
		r.badValue(path, "empty; write at least %d%s", least, f.orNot())
	default:
		return true
	}
	return false
}

// pairs walks over the keys of a mapping and their values, and notes their places. It
// leaves out keys that are given twice, and those that are not known; nil stands for any.
//
// A value that fills several lines has the place of its key, for that is where a reader
// looks first.
func (r *report) pairs(n *yaml.Node, path string, known []string) iter.Seq2[string, *yaml.Node] {
	return func(yield func(string, *yaml.Node) bool) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, c := n.Content[i], n.Content[i+1]
			key, ok := r.key(k, path, known)
			if !ok {
				continue
			}
			at := place{k.Line, k.Column}
			if c.Kind == yaml.ScalarNode && c.ShortTag() != nullTag {
				at = place{c.Line, c.Column}
			}
			r.places[below(path, key)] = at
			if !yield(key, c) {
				return
			}
		}
	}
}

func (r *report) key(k *yaml.Node, path string, known []string) (string, bool) {
	at := place{k.Line, k.Column}
	switch {
	case k.Kind != yaml.ScalarNode && k.Kind != yaml.AliasNode:
		r.badAt(at, path, "a key is a %s; a key is one word", kindNames[k.Kind])
		return "", false
	case !r.plain(k, path):
		return "", false
	case k.ShortTag() == mergeTag:
		r.badAt(at, path, "a merge key, <<; write the keys out")
		return "", false
	}
	here := below(path, k.Value)
	if known != nil && !slices.Contains(known, k.Value) {
		r.badAt(at, here, "unknown key; %s", suggest(k.Value, "keys here", known))
		return "", false
	}
	if first, ok := r.places[here]; ok {
		r.badAt(at, here, "given twice, in line %d too; leave one of them out", first.line)
		return "", false
	}
	return k.Value, true
}

// Tags that the YAML parser gives by itself.
const (
	nullTag   = "!!null"
	mergeTag  = "!!merge"
	stringTag = "!!str"
	intTag    = "!!int"
	floatTag  = "!!float"
	boolTag   = "!!bool"
)

var kindNames = map[yaml.Kind]string{yaml.MappingNode: "mapping", yaml.SequenceNode: "list", yaml.ScalarNode: "single value"}

// describe says what n is.
func describe(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return "a " + kindNames[n.Kind]
	}
	if strings.TrimSpace(n.Value) == "" {
		return "an empty text"
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return quote(n.Value)
	}
	return shown(n.Value)
}
