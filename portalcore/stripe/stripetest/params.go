package stripetest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-mock/param"

	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// kind is the type of a parameter.
type kind int

const (
	text    kind = iota // a string; "" only where clear is set
	integer             // an int64
	boolean
	enum   // one of the values
	hash   // fields
	array  // a list of elem, indexed or with []
	strmap // a hash with any keys, whose values are strings
	expand // an array of the properties named in values
)

// spec says what a parameter may be.
type spec struct {
	kind   kind
	clear  bool // "" is taken, and unsets
	values []string
	fields map[string]*spec
	elem   *spec
}

var (
	str      = &spec{kind: text}
	clearStr = &spec{kind: text, clear: true}
	num      = &spec{kind: integer}
	flag     = &spec{kind: boolean}
	strs     = &spec{kind: array, elem: str}
	metadata = &spec{kind: strmap}
)

func oneOf(values ...string) *spec { return &spec{kind: enum, values: values} }
func obj(fields map[string]*spec) *spec {
	return &spec{kind: hash, fields: fields}
}

// expands is the parameter expand of an endpoint that can expand these
// properties and no others.
func expands(properties ...string) *spec {
	return &spec{kind: expand, values: properties, elem: str}
}

func invalid(code, param, format string, args ...any) *sandbox.Error {
	return &sandbox.Error{Status: http.StatusBadRequest, Type: sandbox.InvalidRequest, Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
}

// args are a request's parameters, checked: string, int64, bool, []any,
// args and map[string]string.
type args map[string]any

func (a args) str(name string) string { s, _ := a[name].(string); return s }
func (a args) strp(name string) *string {
	if s, ok := a[name].(string); ok {
		return &s
	}
	return nil
}
func (a args) num(name string) int64 { n, _ := a[name].(int64); return n }
func (a args) nump(name string) *int64 {
	if n, ok := a[name].(int64); ok {
		return &n
	}
	return nil
}

func (a args) flagp(name string) *bool {
	if b, ok := a[name].(bool); ok {
		return &b
	}
	return nil
}
func (a args) args(name string) args  { x, _ := a[name].(args); return x }
func (a args) list(name string) []any { l, _ := a[name].([]any); return l }
func (a args) has(name string) bool   { _, ok := a[name]; return ok }
func (a args) at(name string) (t time.Time) {
	if n := a.num(name); n != 0 {
		t = time.Unix(n, 0).UTC()
	}
	return t
}

func (a args) strs(name string) []string {
	var out []string
	for _, x := range a.list(name) {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
func (a args) meta() map[string]string { m, _ := a["metadata"].(map[string]string); return m }

// parse reads and checks the parameters of r. As at Stripe an unknown one
// refuses the call.
func parse(r *http.Request, s map[string]*spec) (args, *sandbox.Error) {
	raw, err := param.ParseParams(r)
	if err != nil {
		return nil, invalid("parameter_invalid", "", "The parameters cannot be read.")
	}
	v, e := check(raw, obj(s), "")
	if e != nil {
		return nil, e
	}
	return v.(args), nil
}

func check(v any, s *spec, name string) (any, *sandbox.Error) {
	in := func(field string) string {
		if name == "" {
			return field
		}
		return name + "[" + field + "]"
	}
	if v == "" && !s.clear && s.kind != strmap {
		return nil, invalid("parameter_invalid_empty", name, "You passed an empty string for '%s'. We assume empty values are an attempt to unset a parameter; however '%s' cannot be unset.", name, name)
	}
	if v == "" && s.clear {
		return "", nil
	}
	switch s.kind {
	case hash, strmap:
		m, ok := v.(map[string]any)
		if !ok {
			return nil, invalid("", name, "Invalid object")
		}
		if s.kind == strmap {
			out := map[string]string{}
			for k, x := range m {
				t, ok := x.(string)
				if !ok || k == "" || len(k) > 40 || len(t) > 500 {
					return nil, invalid("", in(k), "Metadata keys have at most 40 characters, values 500.")
				}
				out[k] = t
			}
			return out, nil
		}
		out := args{}
		for k, x := range m {
			f, ok := s.fields[k]
			if !ok {
				return nil, invalid("parameter_unknown", in(k), "Received unknown parameter: %s", in(k))
			}
			y, e := check(x, f, in(k))
			if e != nil {
				return nil, e
			}
			out[k] = y
		}
		return out, nil
	case array, expand:
		var l []any
		switch x := v.(type) {
		case []any:
			l = x
		case map[string]any:
			keys := make([]int, 0, len(x))
			for k := range x {
				n, err := strconv.Atoi(k)
				if err != nil || n < 0 {
					return nil, invalid("", name, "Invalid array")
				}
				keys = append(keys, n)
			}
			slices.Sort(keys)
			for _, k := range keys {
				l = append(l, x[strconv.Itoa(k)])
			}
		default:
			return nil, invalid("", name, "Invalid array")
		}
		out := make([]any, 0, len(l))
		for i, x := range l {
			y, e := check(x, s.elem, in(strconv.Itoa(i)))
			if e != nil {
				return nil, e
			}
			out = append(out, y)
		}
		if s.kind == expand {
			return expansionsOf(out, s.values)
		}
		return out, nil
	}
	t, ok := v.(string)
	if !ok {
		return nil, invalid("", name, "Invalid string: %s", name)
	}
	switch s.kind {
	case integer:
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil {
			return nil, invalid("parameter_invalid_integer", name, "Invalid integer: %s", t)
		}
		return n, nil
	case boolean:
		if t != "true" && t != "false" {
			return nil, invalid("", name, "Invalid boolean: %s", t)
		}
		return t == "true", nil
	case enum:
		if !slices.Contains(s.values, t) {
			return nil, invalid("", name, "Invalid %s: must be one of %s", name, strings.Join(s.values, ", "))
		}
	case text:
		if len(t) > 5000 {
			return nil, invalid("", name, "Invalid string: %s is too long", name)
		}
	}
	return t, nil
}

// expansions are what a call asked to expand.
type expansions map[string]bool

// expansions are what the call asked to expand.
func (a args) expansions() expansions { x, _ := a["expand"].(expansions); return x }

func expansionsOf(asked []any, can []string) (any, *sandbox.Error) {
	out := expansions{}
	for _, v := range asked {
		x := v.(string)
		if strings.Count(x, ".") > 3 {
			return nil, invalid("", "expand", "You cannot expand more than 4 levels of a property. Property: %s", x)
		}
		if !slices.Contains(can, x) {
			return nil, invalid("", "expand", "This property cannot be expanded (%s).", x)
		}
		for parts := strings.Split(x, "."); len(parts) > 0; parts = parts[:len(parts)-1] {
			out[strings.Join(parts, ".")] = true
		}
	}
	return out, nil
}

// paged adds the parameters of a list whose objects can expand properties.
func paged(m map[string]*spec, properties ...string) map[string]*spec {
	maps.Copy(m, map[string]*spec{"limit": num, "starting_after": str, "ending_before": str, "expand": expands(properties...)})
	return m
}

// cut reads which page of a list is wanted.
func cut(a args) (limit int, after, before string, e *sandbox.Error) {
	limit = 10
	if n := a.nump("limit"); n != nil {
		if *n < 1 || *n > 100 {
			return 0, "", "", invalid("parameter_invalid_integer", "limit", "The limit is 1 to 100.")
		}
		limit = int(*n)
	}
	after, before = a.str("starting_after"), a.str("ending_before")
	if after != "" && before != "" {
		return 0, "", "", invalid("parameters_exclusive", "ending_before", "You may only specify one of these parameters: starting_after, ending_before.")
	}
	return limit, after, before, nil
}

// page cuts one page out of all, newest first.
func page[T any](all []T, id func(T) string, a args) ([]T, bool, *sandbox.Error) {
	limit, after, before, e := cut(a)
	if e != nil {
		return nil, false, e
	}
	find := func(name, want string) (int, *sandbox.Error) {
		i := slices.IndexFunc(all, func(x T) bool { return id(x) == want })
		if i < 0 {
			return 0, invalid("resource_missing", name, "No such object: '%s'", want)
		}
		return i, nil
	}
	switch {
	case after != "":
		i, e := find("starting_after", after)
		if e != nil {
			return nil, false, e
		}
		all = all[i+1:]
	case before != "":
		i, e := find("ending_before", before)
		if e != nil {
			return nil, false, e
		}
		all = all[:i]
		if len(all) > limit {
			return all[len(all)-limit:], true, nil
		}
		return all, false, nil
	}
	if len(all) > limit {
		return all[:limit], true, nil
	}
	return all, false, nil
}
