package site

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v4"
)

// String returns the document as YAML, defaults filled in. The text reads back as an
// equal document.
func (d *Document) String() string {
	text, err := yaml.Dump(encode(reflect.ValueOf(d).Elem()), yaml.WithLineWidth(-1))
	if err != nil {
		return fmt.Sprintf("# the document of site %q cannot be written: %v\n", d.Site, err)
	}
	return string(text)
}

// encode returns v as a tree. A field without a default that has its zero value is left
// out: that is what its absence means.
func encode(v reflect.Value) *yaml.Node {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch {
	case isScalar(v):
		return encodeScalar(v)
	case v.Kind() == reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, encode(v.Index(i)))
		}
		if v.Len() > 0 && n.Content[0].Kind == yaml.ScalarNode {
			n.Style = yaml.FlowStyle
		}
		return n
	case v.Kind() == reflect.Map:
		entries := map[string]reflect.Value{}
		for k, e := range v.Seq2() {
			entries[k.String()] = e
		}
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, k := range slices.Sorted(maps.Keys(entries)) {
			n.Content = append(n.Content, encodeScalar(reflect.ValueOf(k)), encode(entries[k]))
		}
		return n
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fieldsOf(v.Type()) {
		if x := v.Field(f.index); f.hasDefault || f.required || !x.IsZero() {
			n.Content = append(n.Content, encodeScalar(reflect.ValueOf(f.key)), encode(x))
		}
	}
	return n
}

func encodeScalar(v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: textOf(v), Tag: stringTag}
	switch {
	case isText(v.Type()) || v.Type() == durationType:
	case v.Kind() == reflect.Bool:
		n.Tag = boolTag
	case v.CanInt(), v.CanUint():
		n.Tag = intTag
	case v.CanFloat():
		n.Tag = "" // 1 reads as well as 1.0 does
	}
	return n
}
