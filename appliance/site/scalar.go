package site

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	addrType     = reflect.TypeFor[netip.Addr]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isText reports whether t reads itself from text.
func isText(t reflect.Type) bool { return reflect.PointerTo(t).Implements(textType) }

// isScalar reports whether v is written as a single value.
func isScalar(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice:
		return isText(v.Type())
	}
	return true
}

// setNode sets v to what the scalar n says.
func setNode(v reflect.Value, n *yaml.Node) error {
	tag := n.ShortTag()
	asText := v.Type() == durationType || isText(v.Type()) || v.Kind() == reflect.String
	switch {
	case asText && tag == stringTag:
	case v.Type() == durationType && tag == intTag && decimal.MatchString(n.Value):
		return fmt.Errorf("%s has no unit; write a duration such as %ss or 500ms", n.Value, n.Value)
	case v.Kind() == reflect.String && !isText(v.Type()):
		return fmt.Errorf("%s is not a text; put it in quotes if it is meant as one", shown(n.Value))
	case v.Kind() == reflect.Bool && tag == boolTag:
	case v.CanInt() && v.Type() != durationType && tag == intTag:
	case v.CanUint() && !asText && tag == intTag:
	case v.CanFloat() && (tag == intTag || tag == floatTag):
	default:
		return fmt.Errorf("%s; want %s", describe(n), wanted(v.Type()))
	}
	return setText(v, n.Value)
}

// decimal is how numbers are written here: YAML's other ways, such as 010 for eight,
// mean one thing to one reader and another to the next.
var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$`)

// setText sets v to what text says. The error says what would be right.
func setText(v reflect.Value, text string) error {
	if isText(v.Type()) {
		if text != "" && v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)) == nil {
			return nil
		}
		if names := namesOf(v.Type()); names != nil {
			return fmt.Errorf("%s is not known; %s", quote(text), suggest(text, "values", names))
		}
		return fmt.Errorf("%s is not right; want %s", quote(text), wanted(v.Type()))
	}
	if v.Type() == durationType {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%s is not a duration; write a number and a unit, such as 500ms, 2s, 10m or 12h", quote(text))
		}
		v.SetInt(int64(d))
		return nil
	}
	var err error
	switch {
	case v.Kind() == reflect.String:
		v.SetString(text)
		return nil
	case v.Kind() == reflect.Bool:
		v.SetBool(text == "true" || text == "True" || text == "TRUE")
		return nil
	case !decimal.MatchString(text):
		err = errors.New("not decimal")
	case v.CanInt():
		var n int64
		if n, err = strconv.ParseInt(text, 10, v.Type().Bits()); err == nil {
			v.SetInt(n)
		}
	case v.CanUint():
		var n uint64
		if n, err = strconv.ParseUint(text, 10, v.Type().Bits()); err == nil {
			v.SetUint(n)
		}
	default:
		var x float64
		if x, err = strconv.ParseFloat(text, 64); err == nil && math.IsInf(x, 0) {
			err = strconv.ErrRange
		} else if err == nil {
			v.SetFloat(x)
		}
	}
	switch {
	case errors.Is(err, strconv.ErrRange):
		return fmt.Errorf("%s: %w; want %s", shown(text), strconv.ErrRange, wanted(v.Type()))
	case err != nil:
		return fmt.Errorf("%s is not written as a decimal number; want %s", shown(text), wanted(v.Type()))
	}
	return nil
}

// setDefaults gives the fields of the struct v their defaults.
func setDefaults(v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	for _, f := range fieldsOf(v.Type()) {
		x := v.Field(f.index)
		if !f.hasDefault {
			setDefaults(x)
		} else if err := setText(x, f.def); err != nil {
			panic(fmt.Sprintf("default of %s.%s: %v", v.Type(), f.key, err))
		}
	}
}

// outside says why v is not a value that f takes, "" if it is.
func (f field) outside(v reflect.Value) string {
	limit := func(text string) reflect.Value {
		l := reflect.New(v.Type()).Elem()
		if err := setText(l, text); err != nil {
			panic(fmt.Sprintf("bounds of %s: %v", f.key, err))
		}
		return l
	}
	switch {
	case f.min != "" && compare(v, limit(f.min)) < 0, f.max != "" && compare(v, limit(f.max)) > 0:
		return fmt.Sprintf("%s is out of range; want %s", textOf(v), f.bounds())
	case f.step != "" && v.Int()%limit(f.step).Int() != 0:
		return fmt.Sprintf("%s is too exact; want %s", textOf(v), f.bounds())
	}
	return ""
}

func compare(a, b reflect.Value) int {
	switch {
	case a.CanInt():
		return cmp.Compare(a.Int(), b.Int())
	case a.CanUint():
		return cmp.Compare(a.Uint(), b.Uint())
	}
	return cmp.Compare(a.Float(), b.Float())
}

// textOf returns the scalar v as [setText] reads it.
func textOf(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return durationText(x)
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("text of a %s: %v", v.Type(), err))
		}
		return string(text)
	}
	if v.CanFloat() {
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
	return fmt.Sprint(v.Interface())
}

// durationText writes 12h, where the standard library writes 12h0m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-len("0s")]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-len("0m")]
	}
	return s
}

// namesOf returns the values of a type that counts them from 0 and has a name for each;
// nil for any other type.
func namesOf(t reflect.Type) []string {
	if t.Kind() != reflect.Uint8 || !isText(t) {
		return nil
	}
	var names []string
	for i := range uint64(math.MaxUint8) {
		v := reflect.New(t).Elem()
		v.SetUint(i)
		name := textOf(v)
		if v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(name)) != nil {
			break
		}
		names = append(names, name)
	}
	return names
}

// wanted says what a value of type t looks like.
func wanted(t reflect.Type) string {
	switch {
	case t == durationType:
		return "a duration such as 500ms or 2s"
	case t == addrType:
		return "an IP address such as 192.0.2.11 or 2001:db8::11"
	case t == prefixType:
		return "a network such as 10.0.0.0/24 or 2001:db8::/48"
	case t == reflect.TypeFor[Addresses]():
		return "an IP address such as 192.0.2.1, or one for each network as in {public: 192.0.2.1, internal: 10.0.0.1}"
	case namesOf(t) != nil:
		return "one of " + strings.Join(namesOf(t), ", ")
	}
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.Struct, reflect.Map:
		return "keys and values, as in {key: value}"
	case reflect.Slice:
		return "a list, as in [one, two]"
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	}
	if t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 {
		return fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-t.Bits()))
	}
	return "a whole number"
}

// number reads a bound of how many; no bound is 0.
func number(text string) int {
	n, err := strconv.Atoi(cmp.Or(text, "0"))
	if err != nil {
		panic("not a number of entries: " + text)
	}
	return n
}

// sample shows how a missing key is written.
func (f field) sample(t reflect.Type) string {
	if f.example == "" {
		return "'" + f.key + ":' and " + wanted(t)
	}
	return "for example '" + f.key + ": " + f.example + "'"
}
