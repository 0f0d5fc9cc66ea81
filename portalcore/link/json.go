package link

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth  = 8   // objects and arrays inside each other
	maxValues = 256 // members and elements, in all
)

// parseObject reads data as one JSON object and nothing else, in the one way
// that no two parsers can read differently: valid UTF-8, no lone surrogates,
// no NUL, no member twice at any depth. Numbers stay as json.Number. A member
// whose name is one of known must be written exactly so: a spelling in other
// case or with escapes is refused, since other parsers would take it for the
// known one, and since ignoring "Permissions" would widen rights.
//
// The result goes into a map because encoding/json matches the fields of a
// struct without regard to case. The reason is "" or completes a sentence that
// begins with what was read.
func parseObject(data []byte, known []string) (m map[string]any, reason string) {
	if !utf8.Valid(data) {
		return nil, "is not valid UTF-8"
	}
	// json.Valid holds the grammar and the end of input, both of which
	// Decoder.Token is lax about.
	if !json.Valid(data) {
		return nil, "is not one JSON object"
	}
	if reason := checkEscapes(data); reason != "" {
		return nil, reason
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, "is not one JSON object"
	}
	r := objectReader{data: data, dec: d, known: known}
	if m = r.object(1); r.reason != "" {
		return nil, r.reason
	}
	return m, ""
}

type objectReader struct {
	data   []byte
	dec    *json.Decoder
	known  []string
	values int
	reason string
}

// fail keeps the first reason; the callers unwind as soon as there is one.
func (r *objectReader) fail(reason string) {
	if r.reason == "" {
		r.reason = reason
	}
}

func (r *objectReader) object(depth int) map[string]any {
	m := make(map[string]any)
	for r.dec.More() {
		start := r.dec.InputOffset()
		t, err := r.dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			r.fail("is not one JSON object")
			return nil
		}
		if _, dup := m[name]; dup {
			r.fail("has a member twice")
			return nil
		}
		if depth == 1 && !r.spelled(name, r.data[start:r.dec.InputOffset()]) {
			r.fail("has a known member in another spelling")
			return nil
		}
		m[name] = r.value(depth)
		if r.reason != "" {
			return nil
		}
	}
	r.close()
	return m
}

func (r *objectReader) array(depth int) []any {
	a := []any{}
	for r.dec.More() {
		a = append(a, r.value(depth))
		if r.reason != "" {
			return nil
		}
	}
	r.close()
	return a
}

func (r *objectReader) close() {
	if _, err := r.dec.Token(); err != nil {
		r.fail("is not one JSON object")
	}
}

func (r *objectReader) value(depth int) any {
	if r.values++; r.values > maxValues {
		r.fail("has too many members")
		return nil
	}
	t, err := r.dec.Token()
	if err != nil {
		r.fail("is not one JSON object")
		return nil
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t
	}
	if depth >= maxDepth {
		r.fail("is nested too deeply")
		return nil
	}
	if delim == '{' {
		return r.object(depth + 1)
	}
	return r.array(depth + 1)
}

// spelled says whether a name that some parser could take for a known member
// is written exactly as that member. raw is the name's source, with the
// comma and the white space before it.
func (r *objectReader) spelled(name string, raw []byte) bool {
	for _, k := range r.known {
		if strings.EqualFold(name, k) {
			return bytes.HasSuffix(raw, []byte(strconv.Quote(k)))
		}
	}
	return true
}

// checkEscapes refuses \u0000 and surrogates without their other half, which
// encoding/json turns into U+FFFD without a word. data is valid JSON.
func checkEscapes(data []byte) (reason string) {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++ // a backslash is never the last byte of valid JSON
		if data[i] != 'u' {
			continue
		}
		r := hex4(data[i+1:])
		i += 4
		switch {
		case r == 0:
			return "has a NUL"
		case r >= 0xDC00 && r <= 0xDFFF:
			return "has a lone surrogate"
		case r >= 0xD800 && r <= 0xDBFF:
			low := data[i+1:]
			if len(low) < 6 || low[0] != '\\' || low[1] != 'u' {
				return "has a lone surrogate"
			}
			if l := hex4(low[2:]); l < 0xDC00 || l > 0xDFFF {
				return "has a lone surrogate"
			}
			i += 6
		}
	}
	return ""
}

func hex4(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b[:4]), 16, 32) // four hex digits, as data is valid JSON
	return n
}
