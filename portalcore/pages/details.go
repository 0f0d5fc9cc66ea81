package pages

import (
	"cmp"
	"errors"
	"net/http"
	"net/mail"
	"slices"
	"strings"
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
var sections = []string{
	templates.FieldName, templates.FieldEmail, templates.FieldPhone, sectionAddress, sectionInvoiceFields, sectionLanguage,
}

const (
	sectionAddress       = "address"
	sectionInvoiceFields = "invoice-fields"
	sectionLanguage      = "language"
)

// purchaseOrder is the name under which the number of a purchase order is
// printed on invoices: a field like the others to the provider, and one of its
// own on the page.
const purchaseOrder = "PO number"

// Limits of the fields, in characters: within what providers take (Stripe:
// name 256, e-mail 512, phone 20).
const (
	maxName   = 150
	maxEmail  = 254 // RFC 5321, section 4.5.3.1.3, without the angle brackets
	maxPhone  = 20
	maxLine   = 200
	maxCity   = 100
	maxPostal = 20
	// Stripe's invoice_settings.custom_fields.
	maxFieldName  = 40
	maxFieldValue = 140
)

func (v *visit) section() string { return strings.TrimPrefix(v.r.URL.Path, templates.PathDetails) }

// details is GET /details/{section}.
func (v *visit) details() {
	snap, ok := v.account()
	if !ok {
		return
	}
	if l, ok := v.look("payment", snap); ok {
		l.showDetails(http.StatusOK, &templates.Details{Values: l.acct.Customer}, l.acct.Customer.Version)
	}
}

// showDetails draws the form with body's values and errors.
func (l *look) showDetails(status int, body *templates.Details, version string) {
	f, err := l.newForm(templates.PathDetails+l.section(), version)
	if err != nil {
		l.failed(err)
		return
	}
	locale := l.locale(l.acct.Customer.Locale)
	body.Section, body.Confirm, body.Permit = l.section(), f, l.permitCustomer(policy.UpdateDetails)
	switch body.Section {
	case sectionAddress:
		body.Countries = l.countries[locale]
		body.Address = addressInputs(body.Values.Address, l.acct.Customer.Address, locale)
		body.Confirm.Hidden = append(body.Confirm.Hidden, templates.Field{Name: templates.FieldFormCountry, Value: body.Values.Address.Country})
	case sectionInvoiceFields:
		body.PurchaseOrder, body.Fields = splitFields(body.Values.InvoiceFields)
	case sectionLanguage:
		body.Languages = invoiceLanguages(body.Values.Locale)
	}
	l.undated()
	l.page.BackTo = "payment"
	l.page.Body = body
	l.show(status)
}

// saveDetails is POST /details/{section}.
func (v *visit) saveDetails() {
	snap, ok := v.account()
	if !ok {
		return
	}
	c := check{form: v.form, locale: v.locale(snap.Account.Customer.Locale), current: snap.Account.Customer}
	d, values := c.details(v.section())
	switched := v.section() == sectionAddress && v.form[templates.FieldFormCountry] != values.Address.Country
	if len(c.errs) == 0 && !switched {
		i, err := v.do(billing.Action{Kind: billing.UpdateDetails, Details: &d})
		var invalid *act.InvalidError
		if !errors.As(err, &invalid) {
			v.settled(i, err, templates.PathDetails+v.section())
			return
		}
		c.wrong(invalid.Field, invalid.Code, invalid.Args)
	}
	body := &templates.Details{Values: values, Errors: c.errs}
	status := http.StatusUnprocessableEntity
	if switched && (isCountry(values.Address.Country) || values.Address.Country == "" && len(c.errs) == 0) {
		// Another country asks for other things: they are shown before they are
		// asked for.
		body.Errors, body.Switched, status = nil, true, http.StatusOK
	}
	if l, ok := v.look("payment", snap); ok {
		// The entries stay; the version too, so that a change made meanwhile is
		// still noticed.
		l.showDetails(status, body, v.form[templates.FieldVersion])
	}
}

// addressInputs are the inputs of an address in the order of its country, and
// after them those that the country has no use for and that hold something. The
// list of a country's regions takes in what is stored now.
func addressInputs(a, stored billing.Address, locale string) []templates.AddressInput {
	form := billing.AddressFormOf(a.Country, locale)
	var out []templates.AddressInput
	add := func(field billing.AddressField, asked bool) {
		in := templates.AddressInput{Required: asked && form.Requires(field)}
		switch field {
		case billing.FieldLines:
			second := templates.AddressInput{Name: templates.FieldLine2, Label: templates.FieldLine2, Autocomplete: "billing address-line2", Value: a.Line2}
			in.Name, in.Label, in.Autocomplete, in.Value = templates.FieldLine1, templates.FieldLine1, "billing address-line1", a.Line1
			out = append(out, in, second)
			return
		case billing.FieldCity:
			in.Name, in.Label, in.Autocomplete, in.Value = templates.FieldCity, labelOf(templates.FieldCity, form.CityName), "billing address-level2", a.City
		case billing.FieldState:
			in.Name, in.Label, in.Autocomplete, in.Value = templates.FieldState, labelOf(templates.FieldState, form.StateName), "billing address-level1", a.State
			if asked {
				in.Regions = form.Regions
			}
			if len(in.Regions) > 0 && a.Country == stored.Country && stored.State != "" && regionKey(in.Regions, stored.State) == "" {
				in.Regions = append([]billing.AddressRegion{{Key: stored.State, Name: stored.State}}, in.Regions...)
			}
		case billing.FieldPostalCode:
			in.Name, in.Label, in.Autocomplete, in.Value = templates.FieldPostalCode, labelOf(templates.FieldPostalCode, form.PostalName), "billing postal-code", a.PostalCode
			if asked {
				in.Example = form.PostalExample
			}
		}
		out = append(out, in)
	}
	for _, field := range form.Fields {
		add(field, true)
	}
	for _, rest := range []struct {
		field billing.AddressField
		value string
	}{{billing.FieldCity, a.City}, {billing.FieldState, a.State}, {billing.FieldPostalCode, a.PostalCode}} {
		if rest.value != "" && !form.Asks(rest.field) && a.Country == stored.Country {
			add(rest.field, false)
		}
	}
	return out
}

func labelOf(field, name string) string {
	if name == "" {
		return field
	}
	return field + "." + name
}

// regionKey finds a region by its key or its name, or "".
func regionKey(regions []billing.AddressRegion, s string) string {
	for _, r := range regions {
		if strings.EqualFold(r.Key, s) || strings.EqualFold(r.Name, s) {
			return r.Key
		}
	}
	return ""
}

// splitFields takes the purchase order's number out of the fields that are
// printed on invoices.
func splitFields(all []billing.InvoiceField) (order string, others []billing.InvoiceField) {
	found := false
	for _, f := range all {
		if !found && strings.EqualFold(f.Name, purchaseOrder) {
			order, found = f.Value, true
			continue
		}
		others = append(others, f)
	}
	for len(others) < billing.MaxInvoiceFields-1 {
		others = append(others, billing.InvoiceField{})
	}
	return order, others
}

// invoiceTags are the languages that invoices can be in: the locales of
// Stripe's hosted pages and documents (docs.stripe.com/js/appendix/supported_locales).
var invoiceTags = []string{
	"ar", "bg", "cs", "da", "de", "el", "en", "en-GB", "es", "es-419", "et", "fi", "fil", "fr", "fr-CA", "he", "hr", "hu", "id", "it", "ja", "ko", "lt",
	"lv", "ms", "mt", "nb", "nl", "pl", "pt", "pt-BR", "ro", "ru", "sk", "sl", "sv", "th", "tr", "vi", "zh", "zh-HK", "zh-TW",
}

// invoiceLanguages lists them by their own names; what is stored now is among
// them.
func invoiceLanguages(current string) []templates.Language {
	tags := invoiceTags
	if current != "" && !slices.Contains(tags, current) && validLanguage(current) {
		tags = append(slices.Clone(tags), current)
	}
	out := make([]templates.Language, len(tags))
	for i, tag := range tags {
		out[i] = templates.Language{Tag: tag, Name: cmp.Or(display.Self.Name(language.Make(tag)), tag)}
	}
	c := collate.New(language.Und)
	slices.SortFunc(out, func(a, b templates.Language) int { return c.CompareString(a.Name, b.Name) })
	return out
}

func validLanguage(tag string) bool {
	_, err := language.Parse(tag)
	return err == nil && len(tag) <= 35 // RFC 5646, section 4.4.1
}

// check reads entries and notes what is wrong with them.
type check struct {
	form    form
	locale  string           // of the page
	current billing.Customer // as things are stored
	errs    []templates.FieldError
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
	case strings.ContainsFunc(s, act.Unprintable):
		c.wrong(field, "invalid", nil)
	}
	return s
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
	case sectionAddress:
		values.Address = c.address()
		d.Address = &values.Address
	case sectionInvoiceFields:
		values.InvoiceFields = c.invoiceFields()
		d.InvoiceFields = &values.InvoiceFields
	case sectionLanguage:
		values.Locale = c.text(templates.FieldLocale, 35, false)
		if values.Locale != "" && values.Locale != c.current.Locale && !slices.Contains(invoiceTags, values.Locale) {
			c.wrong(templates.FieldLocale, "invalid", nil)
		}
		d.Locale = &values.Locale
	}
	return d, values
}

// address reads an address by the form of its country. What the country does
// not ask for stays as it is stored, as long as the country does.
func (c *check) address() billing.Address {
	a := billing.Address{Country: c.text(templates.FieldCountry, 2, true)}
	if len(a.Country) == 2 && !isCountry(a.Country) {
		c.wrong(templates.FieldCountry, "country", nil)
	}
	f := billing.AddressFormOf(a.Country, c.locale)
	a.Line1 = c.text(templates.FieldLine1, maxLine, f.Requires(billing.FieldLines))
	a.Line2 = c.text(templates.FieldLine2, maxLine, false)
	a.City = c.text(templates.FieldCity, maxCity, f.Requires(billing.FieldCity))
	a.State = c.text(templates.FieldState, maxCity, f.Requires(billing.FieldState))
	a.PostalCode = c.text(templates.FieldPostalCode, maxPostal, f.Requires(billing.FieldPostalCode))
	a = f.Normal(a)
	if f.Asks(billing.FieldState) && len(f.Regions) > 0 && a.State != "" && (a.State != c.current.Address.State || a.Country != c.current.Address.Country) {
		if key := regionKey(f.Regions, a.State); key != "" {
			a.State = key
		} else {
			c.wrong(templates.FieldState, "state", nil)
		}
	}
	if a.PostalCode != "" && len(a.PostalCode) <= maxPostal && f.Asks(billing.FieldPostalCode) && !f.PostalCodeFits(a.PostalCode) {
		c.wrong(templates.FieldPostalCode, "postal_code_form", map[string]any{"example": f.PostalExample})
	}
	return a
}

// invoiceFields reads the purchase order's number and the fields of the
// customer's own. A row with neither name nor value is none.
func (c *check) invoiceFields() []billing.InvoiceField {
	out := []billing.InvoiceField{}
	if order := c.text(templates.FieldPurchaseOrder, maxFieldValue, false); order != "" {
		out = append(out, billing.InvoiceField{Name: purchaseOrder, Value: order})
	}
	for n := range billing.MaxInvoiceFields - 1 {
		name, value := templates.InvoiceFieldInputs(n)
		f := billing.InvoiceField{Name: c.text(name, maxFieldName, false), Value: c.text(value, maxFieldValue, false)}
		switch {
		case f.Name == "" && f.Value == "":
			continue
		case f.Name == "":
			c.wrong(name, "field_name", nil)
		case f.Value == "":
			c.wrong(value, "field_value", nil)
		case slices.ContainsFunc(out, func(o billing.InvoiceField) bool { return strings.EqualFold(o.Name, f.Name) }):
			c.wrong(name, "field_twice", nil)
		}
		out = append(out, f)
	}
	return out
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
