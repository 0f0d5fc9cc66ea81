package act

import (
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// The longest texts that are taken, in characters: within what providers take
// (Stripe's limits where it names them). Pages may be narrower.
const (
	maxName       = 256
	maxEmail      = 254 // RFC 5321, section 4.5.3.1.3, without the angle brackets
	maxPhone      = 20
	maxLine       = 200
	maxFieldName  = 40
	maxFieldValue = 140
	maxTaxID      = 64
)

// unread reports whether a part of the account that the action is judged by was
// not read.
func unread(a billing.Action, acct *billing.Account) bool {
	switch a.Kind {
	case billing.SetDefaultPaymentMethod, billing.RemovePaymentMethod, billing.PayInvoices:
		if acct.Missing(billing.SectionPaymentMethods) {
			return true
		}
	}
	return (len(a.Invoices) > 0 || a.Kind == billing.RemovePaymentMethod) && acct.Missing(billing.SectionDebts)
}

// owned is ownership: everything that an action names is the customer's. It
// returns the subscription that the action is about, nil where it names none.
func owned(a billing.Action, acct *billing.Account) (*billing.Subscription, error) {
	var sub *billing.Subscription
	names := a.Subscription != ""
	switch a.Kind {
	case billing.ChangePlan, billing.DropPending, billing.Cancel, billing.Resume:
		names = true
	}
	if names {
		var ok bool
		if sub, ok = acct.Subscription(a.Subscription); !ok {
			return nil, ErrNotFound
		}
	}
	switch a.Kind {
	case billing.SetDefaultPaymentMethod, billing.RemovePaymentMethod, billing.PayInvoices:
		if a.Kind == billing.PayInvoices && a.PaymentMethod == "" {
			break
		}
		if _, ok := acct.PaymentMethod(a.PaymentMethod); !ok {
			return nil, ErrNotFound
		}
	case billing.UpdateTaxID:
		if t := a.TaxID; t != nil && t.Remove != "" && !slices.ContainsFunc(acct.Customer.TaxIDs, func(id billing.TaxID) bool { return id.ID == t.Remove }) {
			return nil, ErrNotFound
		}
	}
	for _, id := range a.Invoices {
		is := func(v billing.Invoice) bool { return v.ID == id }
		if slices.ContainsFunc(acct.Debts, is) {
			continue
		}
		if slices.ContainsFunc(acct.Invoices, is) {
			return nil, &InvalidError{Field: "invoices", Code: "not_open"}
		}
		return nil, ErrNotFound
	}
	return sub, nil
}

// sense checks what an action that is no change of plan asks for. What it names
// is the customer's.
func sense(a billing.Action, acct *billing.Account) error {
	switch a.Kind {
	case billing.AddPaymentMethod:
		switch a.Use {
		case billing.UseSubscription:
			if sub, ok := acct.Subscription(a.Subscription); !ok || sub.Ended() {
				return ErrNotFound
			}
		case billing.UseEverything, billing.UseNothing:
			if a.Subscription != "" {
				return &InvalidError{Field: "use", Code: "invalid"}
			}
		default:
			return &InvalidError{Field: "use", Code: "invalid"}
		}
	case billing.SetDefaultPaymentMethod:
		if sub, ok := acct.Subscription(a.Subscription); ok && sub.Ended() {
			return ErrNotFound
		}
	case billing.UpdateDetails:
		return sensibleDetails(a.Details)
	case billing.UpdateTaxID:
		return sensibleTaxID(a.TaxID)
	}
	return nil
}

// sensibleInvoices checks the list of invoices that an action names, before it is
// looked up.
func sensibleInvoices(a billing.Action, acct *billing.Account) error {
	wrong := func(code string, args map[string]any) error {
		return &InvalidError{Field: "invoices", Code: code, Args: args}
	}
	switch {
	case a.Kind == billing.PayInvoices && len(a.Invoices) == 0:
		return wrong("required", nil)
	case a.Kind != billing.PayInvoices && a.Kind != billing.AddPaymentMethod && len(a.Invoices) > 0:
		return wrong("invalid", nil)
	case len(a.Invoices) > billing.MaxPay:
		return wrong("too_many", map[string]any{"Max": billing.MaxPay})
	}
	for n, id := range a.Invoices {
		if slices.Contains(a.Invoices[:n], id) {
			return wrong("twice", nil)
		}
		// Money is on its way already: who pays again pays twice.
		if slices.ContainsFunc(acct.Debts, func(v billing.Invoice) bool { return v.ID == id && v.Processing }) {
			return wrong("processing", nil)
		}
	}
	return nil
}

// text checks one line of text.
func text(field, s string, limit int, required bool) error {
	switch {
	case required && strings.TrimSpace(s) == "":
		return &InvalidError{Field: field, Code: "required"}
	case utf8.RuneCountInString(s) > limit:
		return &InvalidError{Field: field, Code: "too_long", Args: map[string]any{"Count": limit}}
	case !utf8.ValidString(s), strings.ContainsFunc(s, Unprintable):
		return &InvalidError{Field: field, Code: "invalid"}
	}
	return nil
}

// Unprintable reports whether r is a control character or Invisible.
func Unprintable(r rune) bool { return unicode.IsControl(r) || Invisible(r) }

// Invisible reports whether r turns the direction of text around or breaks
// lines: on an invoice it shows something else than what was entered.
func Invisible(r rune) bool {
	return r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 || r == utf8.RuneError
}

func sensibleDetails(d *billing.Details) error {
	if d == nil || *d == (billing.Details{}) {
		return &InvalidError{Field: "details", Code: "nothing_changes"}
	}
	type line struct {
		field    string
		value    *string
		limit    int
		required bool
	}
	lines := []line{{"name", d.Name, maxName, true}, {"email", d.Email, maxEmail, true}, {"phone", d.Phone, maxPhone, false}, {"locale", d.Locale, maxFieldName, false}}
	if a := d.Address; a != nil {
		lines = append(lines, line{"line1", &a.Line1, maxLine, false}, line{"line2", &a.Line2, maxLine, false}, line{"city", &a.City, maxLine, false},
			line{"state", &a.State, maxLine, false}, line{"postal_code", &a.PostalCode, maxFieldName, false}, line{"country", &a.Country, 2, false})
	}
	if d.InvoiceFields != nil {
		if len(*d.InvoiceFields) > billing.MaxInvoiceFields {
			return &InvalidError{Field: "invoice_fields", Code: "too_many", Args: map[string]any{"Max": billing.MaxInvoiceFields}}
		}
		for n := range *d.InvoiceFields {
			f, name := &(*d.InvoiceFields)[n], "invoice_field_"+strconv.Itoa(n+1)
			lines = append(lines, line{name + "_name", &f.Name, maxFieldName, true}, line{name + "_value", &f.Value, maxFieldValue, true})
		}
	}
	for _, l := range lines {
		if l.value == nil {
			continue
		}
		if err := text(l.field, *l.value, l.limit, l.required); err != nil {
			return err
		}
	}
	if d.Email != nil {
		if a, err := mail.ParseAddress(*d.Email); err != nil || a.Address != *d.Email {
			return &InvalidError{Field: "email", Code: "invalid"}
		}
	}
	if a := d.Address; a != nil && a.Country != "" {
		if len(a.Country) != 2 || strings.ContainsFunc(a.Country, func(r rune) bool { return r < 'A' || r > 'Z' }) {
			return &InvalidError{Field: "country", Code: "invalid"}
		}
	}
	if d.Locale != nil && *d.Locale != "" {
		if _, err := language.Parse(*d.Locale); err != nil {
			return &InvalidError{Field: "locale", Code: "invalid"}
		}
	}
	return nil
}

// sensibleTaxID checks the form of the change; what a tax id of a type looks
// like is checked where it is entered, and by the provider.
func sensibleTaxID(t *billing.TaxIDChange) error {
	switch {
	case t == nil || *t == billing.TaxIDChange{}:
		return &InvalidError{Field: "tax_id", Code: "nothing_changes"}
	case t.Type == "" && t.Value == "":
		return nil
	case t.Type == "":
		return &InvalidError{Field: "tax_id_type", Code: "required"}
	case len(t.Type) > maxFieldName || strings.ContainsFunc(t.Type, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }):
		return &InvalidError{Field: "tax_id_type", Code: "invalid"}
	}
	return text("tax_id", t.Value, maxTaxID, true)
}
