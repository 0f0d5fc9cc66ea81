package billing

import (
	_ "embed"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// AddressField is a part of an Address that a country's form asks for.
type AddressField string

// The fields of an address. Lines stands for Line1 and Line2.
const (
	FieldLines      AddressField = "lines"
	FieldCity       AddressField = "city"
	FieldState      AddressField = "state"
	FieldPostalCode AddressField = "postal_code"
)

// AddressForm is how a country writes its addresses, as Google's address
// service knows it (github.com/google/libaddressinput).
type AddressForm struct {
	// Fields are those that the country uses, in the order in which it writes
	// them.
	Fields []AddressField
	// Required are those without which nothing arrives.
	Required []AddressField
	// Regions are the values of FieldState where there is a closed list, in the
	// country's order.
	Regions []AddressRegion
	// StateName, CityName and PostalName are the service's words for what the
	// country calls them: "county", "post_town", "eircode"; "" for the usual
	// word.
	StateName, CityName, PostalName string
	// PostalExample is a postal code as the country writes it, or "".
	PostalExample string

	lines  []string // the format's lines, without name and organisation
	postal func() *regexp.Regexp
	upper  string
}

// AddressRegion is a state, province, county …
type AddressRegion struct {
	Key  string // as it is written in an address
	Name string
}

//go:embed postal.json
var postalData []byte

// postalEntry is a country's record in postal.json. Formats and lists of fields
// are in the service's letters: A street, C city, S state, Z postal code.
type postalEntry struct {
	Format  string      `json:"format"`
	Latin   string      `json:"latin"`
	Lang    string      `json:"lang"`
	Require string      `json:"require"`
	Upper   string      `json:"upper"`
	Postal  string      `json:"postal"`
	Example string      `json:"example"`
	State   string      `json:"state_name"`
	City    string      `json:"city_name"`
	Zip     string      `json:"postal_name"`
	Regions [][3]string `json:"regions"` // key, name, Latin name
}

var postalTable = sync.OnceValue(func() map[string]*postalEntry {
	var t map[string]*postalEntry
	if err := json.Unmarshal(postalData, &t); err != nil {
		panic("billing: postal.json cannot be read: " + err.Error()) // it is embedded
	}
	return t
})

type formKey struct {
	country string
	local   bool
}

// forms holds every AddressForm that was asked for; there are two for each
// country at most.
var forms sync.Map // formKey -> *AddressForm

// AddressFormOf returns the form of a country (ISO 3166-1 alpha-2, upper case)
// for somebody who reads language (BCP 47): those who read the country's own
// language write addresses its way, the others in Latin letters where the two
// differ. A country that is not known has the service's general form.
func AddressFormOf(country, language string) *AddressForm {
	e := postalTable()[country]
	if e == nil {
		country, e = "ZZ", postalTable()["ZZ"]
	}
	base, _, _ := strings.Cut(language, "-")
	lang, _, _ := strings.Cut(e.Lang, "-")
	key := formKey{country, e.Latin == "" || lang != "" && base == lang}
	if f, ok := forms.Load(key); ok {
		return f.(*AddressForm)
	}
	f, _ := forms.LoadOrStore(key, e.form(key.local))
	return f.(*AddressForm)
}

var addressLetters = map[byte]AddressField{'A': FieldLines, 'C': FieldCity, 'S': FieldState, 'Z': FieldPostalCode}

func (e *postalEntry) form(local bool) *AddressForm {
	f := &AddressForm{StateName: e.State, CityName: e.City, PostalName: e.Zip, PostalExample: e.Example, upper: e.Upper}
	format, require := e.Format, e.Require
	if !local {
		format = e.Latin
	}
	if format == "" { // the country has no form of its own
		general := postalTable()["ZZ"]
		format = general.Format
		if require == "" {
			require = general.Require
		}
	}
	for line := range strings.SplitSeq(format, "%n") {
		used := false
		for i := 0; i+1 < len(line); i++ {
			if line[i] != '%' {
				continue
			}
			if field, ok := addressLetters[line[i+1]]; ok {
				used = true
				if !slices.Contains(f.Fields, field) {
					f.Fields = append(f.Fields, field)
				}
			}
		}
		if used {
			f.lines = append(f.lines, line)
		}
	}
	for i := range len(require) {
		if field, ok := addressLetters[require[i]]; ok && slices.Contains(f.Fields, field) {
			f.Required = append(f.Required, field)
		}
	}
	if slices.Contains(f.Fields, FieldState) {
		for _, r := range e.Regions {
			key, name := r[0], r[1]
			if !local && r[2] != "" {
				key, name = r[2], r[2]
			}
			if name == "" {
				name = key
			}
			f.Regions = append(f.Regions, AddressRegion{Key: key, Name: name})
		}
	}
	if e.Postal != "" {
		// The service's patterns are not anchored.
		f.postal = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)^(?:` + e.Postal + `)$`) })
	}
	return f
}

// Normal returns a as the country writes it: codes that it writes in capitals
// are in capitals.
func (f *AddressForm) Normal(a Address) Address {
	if strings.Contains(f.upper, "Z") {
		a.PostalCode = strings.ToUpper(a.PostalCode)
	}
	return a
}

// Asks reports whether the country's form has the field.
func (f *AddressForm) Asks(field AddressField) bool { return slices.Contains(f.Fields, field) }

// Requires reports whether an address of the country needs the field.
func (f *AddressForm) Requires(field AddressField) bool { return slices.Contains(f.Required, field) }

// PostalCodeFits reports whether code has the form of the country's postal
// codes. It always does where the country has none, or no form of it is known.
func (f *AddressForm) PostalCodeFits(code string) bool {
	return f.postal == nil || f.postal().MatchString(code)
}

// Lines writes an address as the country does, without name and country: lines
// from the top. What the country's form has no place for comes last, so that
// nothing that is known is left out.
func (f *AddressForm) Lines(a Address) []string {
	value := map[AddressField]string{FieldCity: a.City, FieldState: a.State, FieldPostalCode: a.PostalCode}
	var out []string
	for _, line := range f.lines {
		if strings.Contains(line, "%A") {
			for _, s := range []string{a.Line1, a.Line2} {
				if s != "" {
					out = append(out, s)
				}
			}
			// A line of its own wherever it stands in the format: streets are long.
			if line = strings.Replace(line, "%A", "", 1); strings.Trim(line, " ,-") == "" {
				continue
			}
			line = strings.Trim(line, " ,-")
		}
		if s := fillLine(line, value); s != "" {
			out = append(out, s)
		}
	}
	for _, field := range []AddressField{FieldCity, FieldState, FieldPostalCode} {
		if v := value[field]; v != "" && !f.Asks(field) {
			out = append(out, v)
		}
	}
	return out
}

// fillLine fills a line of a format in. What stands between two fields is
// written where both are there, what stands before the first where that is.
func fillLine(line string, value map[AddressField]string) string {
	var b strings.Builder
	between := ""
	for i := 0; i < len(line); i++ {
		if line[i] != '%' || i+1 == len(line) {
			between += line[i : i+1]
			continue
		}
		i++
		field, ok := addressLetters[line[i]]
		v := value[field]
		if !ok || v == "" {
			between = "" // it stood before what is not there
			continue
		}
		b.WriteString(between)
		b.WriteString(v)
		between = ""
	}
	return b.String()
}
