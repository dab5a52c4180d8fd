package site

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"peerage/balancing"
	"peerage/tls/certs"
)

// structs calls f with every struct of the configuration below t.
func structs(t reflect.Type, f func(reflect.Type)) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		structs(t.Elem(), f)
	case reflect.Struct:
		fields := fieldsOf(t)
		if len(fields) == 0 {
			return
		}
		f(t)
		for _, x := range fields {
			structs(t.Field(x.index).Type, f)
		}
	}
}

// TestEveryKeyIsExplained reads the comments, which are the manual.
func TestEveryKeyIsExplained(t *testing.T) {
	source, err := os.ReadFile("nodefile.go")
	if err != nil {
		t.Fatal(err)
	}
	for text, root := range map[string]reflect.Type{manual: reflect.TypeFor[Document](), string(source): reflect.TypeFor[NodeFile]()} {
		comments, err := commentsOf(text)
		if err != nil {
			t.Fatal(err)
		}
		structs(root, func(s reflect.Type) {
			if c := comments[comment{s.Name(), ""}]; !strings.HasSuffix(c, ".") {
				t.Errorf("%s: comment %q", s, c)
			}
			for _, f := range fieldsOf(s) {
				if c := comments[comment{s.Name(), s.Field(f.index).Name}]; !strings.HasSuffix(c, ".") {
					t.Errorf("%s.%s: comment %q", s, f.key, c)
				}
			}
		})
	}
}

// TestEveryKeyIsBounded keeps files small in memory, and the tags readable.
func TestEveryKeyIsBounded(t *testing.T) {
	for _, root := range []reflect.Type{reflect.TypeFor[Document](), reflect.TypeFor[NodeFile]()} {
		structs(root, func(s reflect.Type) {
			v := reflect.New(s).Elem()
			setDefaults(v) // panics if a default cannot be read
			for _, f := range fieldsOf(s) {
				x := v.Field(f.index)
				switch k := x.Kind(); {
				case k == reflect.Slice || k == reflect.Map:
					if number(f.max) < 1 {
						t.Errorf("%s.%s: no most", s, f.key)
					}
				case x.Type() == durationType, namesOf(x.Type()) == nil && (x.CanInt() || x.CanUint() || x.CanFloat()):
					if f.min == "" || f.max == "" {
						t.Errorf("%s.%s: no range", s, f.key)
					} else if why := f.outside(x); f.hasDefault && why != "" {
						t.Errorf("%s.%s: default %s", s, f.key, why)
					}
				}
			}
		})
	}
}

// TestBoundsAreThoseOfThePackages holds the numbers in tags and comments against the
// constants that they stand for.
func TestBoundsAreThoseOfThePackages(t *testing.T) {
	most := func(s reflect.Type, key string) int {
		for _, f := range fieldsOf(s) {
			if f.key == key {
				return number(f.max)
			}
		}
		return 0
	}
	document := reflect.TypeFor[Document]()
	for _, c := range []struct {
		what      string
		got, want int
	}{
		{"nodes", most(document, "nodes"), balancing.MaxNodes},
		{"nodes of a route", most(reflect.TypeFor[Route](), "nodes"), balancing.MaxNodes},
		{"nodes of a back-end", most(reflect.TypeFor[Backend](), "by_node"), balancing.MaxNodes},
		{"vips", most(reflect.TypeFor[Node](), "vips"), balancing.MaxVIPs},
	} {
		if c.got != c.want {
			t.Errorf("%s: at most %d, want %d", c.what, c.got, c.want)
		}
	}
	comments, err := commentsOf(manual)
	if err != nil {
		t.Fatal(err)
	}
	for field, bound := range map[string]int{"Site": certs.MaxSite, "Nodes": balancing.MaxNodeID} {
		if c := comments[comment{"Document", field}]; !strings.Contains(c, fmt.Sprintf("to %d ", bound)) {
			t.Errorf("comment on %s does not say 'to %d': %s", field, bound, c)
		}
	}
}

// TestSchema holds the schema against the structs.
func TestSchema(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	if got, want := root["$schema"], "https://json-schema.org/draft/2020-12/schema"; got != want {
		t.Errorf("$schema is %v, want %s", got, want)
	}
	comments, err := commentsOf(manual)
	if err != nil {
		t.Fatal(err)
	}
	var check func(path string, s map[string]any, typ reflect.Type)
	check = func(path string, s map[string]any, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer:
			check(path, s, typ.Elem())
			return
		case reflect.Slice:
			check(path+"[]", s["items"].(map[string]any), typ.Elem())
			return
		case reflect.Map:
			check(path+".*", s["additionalProperties"].(map[string]any), typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		fields := fieldsOf(typ)
		if len(fields) == 0 {
			return
		}
		if s["additionalProperties"] != false {
			t.Errorf("%s: other keys are allowed", path)
		}
		properties := s["properties"].(map[string]any)
		if len(properties) != len(fields) {
			t.Errorf("%s: %d keys, want %d", path, len(properties), len(fields))
		}
		for _, f := range fields {
			p, ok := properties[f.key].(map[string]any)
			if !ok {
				t.Errorf("%s.%s: missing", path, f.key)
				continue
			}
			want := comments[comment{typ.Name(), typ.Field(f.index).Name}]
			if got, _ := p["description"].(string); !strings.HasPrefix(got, want) {
				t.Errorf("%s.%s: explained as %q, want %q", path, f.key, got, want)
			}
			if _, ok := p["default"]; ok != f.hasDefault {
				t.Errorf("%s.%s: default %v", path, f.key, p["default"])
			}
			check(path+"."+f.key, p, typ.Field(f.index).Type)
		}
	}
	check("", root, reflect.TypeFor[Document]())

	find := func(path ...string) map[string]any {
		s := root
		for _, key := range path {
			s = s[key].(map[string]any)
		}
		return s
	}
	keys := []string{"properties", "balancing", "properties"}
	for _, c := range []struct {
		key  string
		want map[string]any
	}{
		{"light", map[string]any{"type": "number", "minimum": 0.0, "maximum": 1000.0, "default": 50.0}},
		{"rule", map[string]any{"type": "string", "default": "damped"}},
		{"choice", map[string]any{"type": "string", "enum": []any{"headroom", "least"}, "default": "headroom"}},
		{"period", map[string]any{"type": "string", "default": "500ms"}},
	} {
		got := find(append(keys, c.key)...)
		for k, want := range c.want {
			if !reflect.DeepEqual(got[k], want) {
				t.Errorf("balancing.%s: %s is %v, want %v", c.key, k, got[k], want)
			}
		}
	}
}
