package site

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"peerage/balancing"
)

// manual is the source of the comments that explain each key.
//
//go:embed document.go
var manual string

// Schema returns the JSON schema (draft 2020-12) of the site document, for editors and
// for readers: every key explained.
func Schema() ([]byte, error) {
	comments, err := commentsOf(manual)
	if err != nil {
		return nil, fmt.Errorf("read the manual: %w", err)
	}
	r := jsonschema.Reflector{
		Anonymous:                  true,
		DoNotReference:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true, // and there are none: see annotate
		Mapper:                     scalarSchema,
		LookupComment:              func(t reflect.Type, field string) string { return comments[comment{t.Name(), field}] },
	}
	t := reflect.TypeFor[Document]()
	s := r.ReflectFromType(t)
	s.Title = "Peerage site document"
	annotate(s, t)
	return json.MarshalIndent(s, "", "  ")
}

// comment names a type, or one of its fields.
type comment struct{ typeName, field string }

// commentsOf returns the comments on the structs in Go source, each as one line.
func commentsOf(source string) (map[comment]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	comments := map[comment]string{}
	for _, d := range file.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range decl.Specs {
			t, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			comments[comment{t.Name.Name, ""}] = oneLine(decl.Doc.Text())
			s, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range s.Fields.List {
				for _, name := range f.Names {
					comments[comment{t.Name.Name, name.Name}] = oneLine(f.Doc.Text())
				}
			}
		}
	}
	return comments, nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// scalarSchema returns the schema of a type that is written as a single value but is not
// one for the schema's library, else nil.
func scalarSchema(t reflect.Type) *jsonschema.Schema {
	switch {
	case t == durationType:
		return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
	case t == addrType:
		return &jsonschema.Schema{Type: "string", AnyOf: []*jsonschema.Schema{{Format: "ipv4"}, {Format: "ipv6"}}}
	case t == prefixType:
		return &jsonschema.Schema{Type: "string", Pattern: "^[0-9a-fA-F:.]+/[0-9]{1,3}$"}
	case namesOf(t) != nil:
		s := &jsonschema.Schema{Type: "string"}
		for _, name := range namesOf(t) {
			s.Enum = append(s.Enum, name)
		}
		return s
	}
	return nil
}

// annotate adds to the schema of t what the tags of its fields say.
func annotate(s *jsonschema.Schema, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer:
		annotate(s, t.Elem())
	case reflect.Slice:
		annotate(s.Items, t.Elem())
	case reflect.Map:
		if t.Key() == reflect.TypeFor[balancing.NodeID]() {
			most := uint64(balancing.MaxNodeID)
			s.PropertyNames = &jsonschema.Schema{Pattern: "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", MaxLength: &most}
		}
		annotate(s.AdditionalProperties, t.Elem())
	case reflect.Struct:
		for _, f := range fieldsOf(t) {
			p, _ := s.Properties.Get(f.key)
			f.describe(p)
			annotate(p, t.Field(f.index).Type)
			if f.required {
				s.Required = append(s.Required, f.key)
			}
		}
	}
}

// describe adds to the schema of a field what its tags say.
func (f field) describe(s *jsonschema.Schema) {
	if f.hasDefault {
		s.Default = f.literal(s.Type, f.def)
	}
	switch s.Type {
	case "integer", "number":
		s.Minimum, s.Maximum = json.Number(f.min), json.Number(f.max)
	case "array":
		s.MinItems, s.MaxItems = limit(f.min), limit(f.max)
	case "object":
		s.MinProperties, s.MaxProperties = limit(f.min), limit(f.max)
	case "string":
		if bounds := f.bounds(); bounds != "" { // a duration: no keyword can say it
			s.Description += " Range: " + bounds + "."
		}
		if f.example != "" {
			s.Examples = []any{f.example}
		}
	}
}

// literal returns the JSON value of a default.
func (field) literal(kind, text string) any {
	switch kind {
	case "boolean":
		return text == "true"
	case "integer", "number":
		return json.Number(text)
	}
	return text
}

func limit(text string) *uint64 {
	if text == "" {
		return nil
	}
	n := uint64(number(text))
	return &n
}

// JSONSchemaExtend says that a route serves from one thing.
func (Route) JSONSchemaExtend(s *jsonschema.Schema) {
	s.OneOf = []*jsonschema.Schema{{Required: []string{"static"}}, {Required: []string{"backend"}}}
}

// JSONSchemaExtend says that a back-end has servers.
func (Backend) JSONSchemaExtend(s *jsonschema.Schema) {
	s.AnyOf = []*jsonschema.Schema{{Required: []string{"servers"}}, {Required: []string{"by_node"}}}
}
