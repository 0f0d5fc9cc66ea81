package stripetest

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/stripe/stripe-mock/embedded"
)

// Stripe sends every member of an object that its OpenAPI description calls
// required, those it has no use for too: as null, as an empty list, as false.
// The ledger knows what the portal is about, so what is missing is filled in
// from the description: with null wherever that is allowed, else with the
// emptiest value that is. A client that only works because a member is absent
// fails here as it would at Stripe.

// schema is the part of an OpenAPI schema that says what must be there.
type schema struct {
	AnyOf      []*schema          `json:"anyOf"`
	Enum       []any              `json:"enum"`
	Items      *schema            `json:"items"`
	Nullable   bool               `json:"nullable"`
	Properties map[string]*schema `json:"properties"`
	Ref        string             `json:"$ref"`
	Required   []string           `json:"required"`
	Type       string             `json:"type"`
}

// description is Stripe's OpenAPI description, each schema read when it is
// first asked for.
type description struct {
	raw map[string]json.RawMessage

	mu   sync.Mutex
	read map[string]*schema
}

var described = sync.OnceValue(func() *description {
	var all struct {
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(embedded.OpenAPISpec, &all); err != nil {
		panic("stripetest: Stripe's description cannot be read: " + err.Error()) // it is embedded
	}
	return &description{raw: all.Components.Schemas, read: map[string]*schema{}}
})

// named returns the schema with that name, nil where there is none.
func (d *description) named(name string) *schema {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s, ok := d.read[name]; ok {
		return s
	}
	var s *schema
	if raw, ok := d.raw[name]; ok {
		if err := json.Unmarshal(raw, &s); err != nil {
			panic("stripetest: the schema " + name + " cannot be read: " + err.Error())
		}
	}
	d.read[name] = s
	return s
}

func (d *description) follow(s *schema) *schema {
	for s != nil && s.Ref != "" {
		s = d.named(strings.TrimPrefix(s.Ref, "#/components/schemas/"))
	}
	return s
}

// complete fills in what is missing in an answer: in each object that names its
// kind, wherever it is.
func (d *description) complete(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			d.complete(x)
		}
	case map[string]any:
		if kind, _ := v["object"].(string); kind != "" && kind != "list" {
			if v["deleted"] == true {
				kind = "deleted_" + kind
			}
			if s := d.named(kind); s != nil {
				d.fill(v, s)
				return
			}
		}
		for _, x := range v {
			d.complete(x)
		}
	}
}

// fill fills in what v lacks of s.
func (d *description) fill(v any, s *schema) {
	s = d.follow(s)
	if s == nil {
		return
	}
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			d.fill(x, s.Items)
		}
	case map[string]any:
		if len(s.AnyOf) > 0 {
			d.fill(v, d.branch(v, s))
			return
		}
		for _, k := range s.Required {
			if _, ok := v[k]; !ok {
				v[k] = d.empty(s.Properties[k])
			}
		}
		for k, x := range v {
			if p := s.Properties[k]; p != nil {
				d.fill(x, p)
			}
		}
	}
}

// branch is the alternative of s that v is: that of its kind, else the first
// object.
func (d *description) branch(v map[string]any, s *schema) *schema {
	var first *schema
	for _, one := range s.AnyOf {
		one = d.follow(one)
		if one == nil || one.Type != "object" {
			continue
		}
		if first == nil {
			first = one
		}
		if kind := one.Properties["object"]; kind != nil && slices.Contains(kind.Enum, v["object"]) {
			return one
		}
	}
	return first
}

// empty is the emptiest value that fits s.
func (d *description) empty(s *schema) any {
	if s == nil || s.Nullable {
		return nil
	}
	if s = d.follow(s); s == nil || s.Nullable {
		return nil
	}
	switch {
	case len(s.AnyOf) > 0:
		return d.empty(s.AnyOf[0])
	case len(s.Enum) > 0:
		return s.Enum[0]
	}
	switch s.Type {
	case "array":
		return []any{}
	case "boolean":
		return false
	case "integer", "number":
		return 0
	case "object":
		o := map[string]any{}
		d.fill(o, s)
		return o
	}
	return ""
}

// completed is the JSON of an answer with all that must be there.
func completed(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	// What handlers build is of many types; as JSON it is of a few.
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	var whole any
	if err := dec.Decode(&whole); err != nil {
		return nil, err
	}
	described().complete(whole)
	return json.Marshal(whole)
}
