package pages

import (
	"cmp"
	"errors"
	"net/http"
	"net/mail"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/collate"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// sections are the parts of the billing details, one form each.
var sections = []string{templates.FieldName, templates.FieldEmail, templates.FieldPhone, "address"}

// Limits of the fields, in characters: within what providers take (Stripe:
// name 256, e-mail 512, phone 20).
const (
	maxName   = 150
	maxEmail  = 254 // RFC 5321, section 4.5.3.1.3, without the angle brackets
	maxPhone  = 20
	maxLine   = 200
	maxCity   = 100
	maxPostal = 20
)

func (v *visit) section() string { return strings.TrimPrefix(v.r.URL.Path, templates.PathDetails) }

// details is GET /details/{section}.
func (v *visit) details() {
	snap, ok := v.account()
	if !ok {
		return
	}
	if l, ok := v.look("payment", snap); ok {
		l.showDetails(http.StatusOK, l.acct.Customer, l.acct.Customer.Version, nil)
	}
}

func (l *look) showDetails(status int, values billing.Customer, version string, errs []templates.FieldError) {
	f, err := l.newForm(templates.PathDetails+l.section(), version)
	if err != nil {
		l.failed(err)
		return
	}
	l.undated()
	l.page.BackTo = "payment"
	l.page.Body = &templates.Details{
		Section: l.section(), Values: values, Countries: l.countries[l.locale(l.acct.Customer.Locale)],
		Confirm: f, Errors: errs, Permit: l.permitCustomer(policy.UpdateDetails),
	}
	l.show(status)
}

// saveDetails is POST /details/{section}.
func (v *visit) saveDetails() {
	c := check{form: v.form}
	d, values := c.details(v.section())
	if len(c.errs) == 0 {
		i, err := v.do(billing.Action{Kind: billing.UpdateDetails, Details: &d})
		var invalid *act.InvalidError
		if !errors.As(err, &invalid) {
			v.settled(i, err, templates.PathDetails+v.section())
			return
		}
		c.wrong(invalid.Field, invalid.Code, invalid.Args)
	}
	snap, ok := v.account()
	if !ok {
		return
	}
	if l, ok := v.look("payment", snap); ok {
		// The entries stay; the version too, so that a change made meanwhile is
		// still noticed.
		l.showDetails(http.StatusUnprocessableEntity, values, v.form[templates.FieldVersion], c.errs)
	}
}

// check reads entries and notes what is wrong with them.
type check struct {
	form form
	errs []templates.FieldError
}

func (c *check) wrong(field, key string, args map[string]any) {
	c.errs = append(c.errs, fieldError(field, key, args))
}

// text reads one line of text without control characters.
func (c *check) text(field string, limit int, required bool) string {
	s := strings.TrimSpace(c.form[field])
	switch {
	case s == "" && required:
		c.wrong(field, "required", nil)
	case utf8.RuneCountInString(s) > limit:
		c.wrong(field, "too_long", map[string]any{"count": limit})
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || invisible(r) }):
		c.wrong(field, "invalid", nil)
	}
	return s
}

// invisible are the characters that turn the direction of text around or break
// lines: on an invoice they show something else than what was entered.
func invisible(r rune) bool {
	return r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 || r == utf8.RuneError
}

func (c *check) details(section string) (billing.Details, billing.Customer) {
	var d billing.Details
	var values billing.Customer
	switch section {
	case templates.FieldName:
		values.Name = c.text(templates.FieldName, maxName, true)
		d.Name = &values.Name
	case templates.FieldEmail:
		values.Email = c.text(templates.FieldEmail, maxEmail, true)
		if len(c.errs) == 0 && !isEmail(values.Email) {
			c.wrong(templates.FieldEmail, "email", nil)
		}
		d.Email = &values.Email
	case templates.FieldPhone:
		values.Phone = c.text(templates.FieldPhone, maxPhone, false)
		if len(c.errs) == 0 && !isPhone(values.Phone) {
			c.wrong(templates.FieldPhone, "phone", nil)
		}
		d.Phone = &values.Phone
	case "address":
		values.Address = billing.Address{
			Line1: c.text(templates.FieldLine1, maxLine, true), Line2: c.text(templates.FieldLine2, maxLine, false),
			City: c.text(templates.FieldCity, maxCity, false), State: c.text(templates.FieldState, maxCity, false),
			PostalCode: c.text(templates.FieldPostalCode, maxPostal, false),
			Country:    c.text(templates.FieldCountry, 2, true),
		}
		if len(values.Address.Country) == 2 && !isCountry(values.Address.Country) {
			c.wrong(templates.FieldCountry, "country", nil)
		}
		d.Address = &values.Address
	}
	return d, values
}

// isEmail reports whether s is one plain address with a domain that has a dot,
// and nothing else: no name, no comment, no quotes.
func isEmail(s string) bool {
	if len(s) > maxEmail || strings.ContainsAny(s, " \t\"(),:;<>[\\]") {
		return false
	}
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s {
		return false
	}
	domain := s[strings.LastIndexByte(s, '@')+1:]
	dot := strings.LastIndexByte(domain, '.')
	return dot > 0 && dot < len(domain)-1
}

func isPhone(s string) bool {
	digits := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c == '+' && i == 0, c == ' ', c == '-', c == '(', c == ')', c == '.', c == '/':
		default:
			return false
		}
	}
	return s == "" || digits >= 3
}

// countryCodes are the countries of ISO 3166-1, and Kosovo, whose code is in use
// though ISO has none for it.
var countryCodes = func() []string {
	var codes []string
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			code := string([]rune{a, b})
			r, err := language.ParseRegion(code)
			// ParseRegion takes withdrawn codes for what followed them, and has
			// regions of CLDR's own, which have no number.
			if err != nil || r.String() != code || r.Canonicalize() != r || !r.IsCountry() || r.M49() == 0 {
				continue
			}
			if display.English.Regions().Name(r) != "" {
				codes = append(codes, code)
			}
		}
	}
	return codes
}()

func isCountry(code string) bool {
	_, ok := slices.BinarySearch(countryCodes, code)
	return ok
}

// countriesIn lists the countries by their names in a language, in the order
// of that language.
func countriesIn(locale string) []templates.Country {
	tag := language.Make(locale)
	names := display.Regions(tag)
	if names == nil {
		tag, names = language.English, display.English.Regions()
	}
	out := make([]templates.Country, 0, len(countryCodes))
	for _, code := range countryCodes {
		r := language.MustParseRegion(code)
		out = append(out, templates.Country{Code: code, Name: cmp.Or(names.Name(r), code)})
	}
	c := collate.New(tag)
	slices.SortFunc(out, func(a, b templates.Country) int { return c.CompareString(a.Name, b.Name) })
	return out
}
