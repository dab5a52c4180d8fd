package site

import (
	"reflect"
	"strings"
)

// field is a key of the configuration, as the tags of its struct field describe it.
//
//	yaml      the key
//	default   the value if the key is missing, as it would be written
//	required  "true": the key must be there
//	min, max  bounds of a number or duration; of a list or mapping, how many it may hold
//	step      what a duration must be a multiple of
//	example   a value for the schema, and for the error if the key is missing
type field struct {
	index          int
	key            string
	def            string
	hasDefault     bool
	required       bool
	min, max, step string
	example        string
}

// fieldsOf returns the keys of a struct; none for a struct that is a value, such as an
// address.
func fieldsOf(t reflect.Type) []field {
	var fs []field
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		key := tag.Get("yaml")
		if key == "" || key == "-" {
			continue
		}
		f := field{
			index: i, key: key, required: tag.Get("required") == "true",
			min: tag.Get("min"), max: tag.Get("max"), step: tag.Get("step"), example: tag.Get("example"),
		}
		f.def, f.hasDefault = tag.Lookup("default")
		fs = append(fs, f)
	}
	return fs
}

// orNot says that a value need not be there, if so.
func (f field) orNot() string {
	if f.required {
		return ""
	}
	return ", or leave the key out"
}

// bounds says in words which values a field takes, "" if any.
func (f field) bounds() string {
	var b strings.Builder
	switch {
	case f.min != "" && f.max != "":
		b.WriteString(f.min + " to " + f.max)
	case f.min != "":
		b.WriteString("at least " + f.min)
	case f.max != "":
		b.WriteString("at most " + f.max)
	}
	if f.step != "" {
		b.WriteString(", in steps of " + f.step)
	}
	return b.String()
}
