package templates

import (
	"fmt"
	"html/template"
	"regexp"

	"github.com/shopspring/decimal"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

var iconID = regexp.MustCompile(`<symbol id="([a-z0-9-]+)"`)

// icons returns a function that draws an icon of the sprite. An icon is
// decoration: a word always stands beside it.
func icons(path string, sprite []byte) func(string) (template.HTML, error) {
	byName := map[string]template.HTML{}
	for _, m := range iconID.FindAllSubmatch(sprite, -1) {
		name := string(m[1])
		byName[name] = template.HTML(`<svg class="icon icon-` + name + `" width="20" height="20" aria-hidden="true" focusable="false"><use href="` + //nolint:gosec // both are ours
			path + "#" + name + `"/></svg>`)
	}
	return func(name string) (template.HTML, error) {
		svg, ok := byName[name]
		if !ok {
			return "", fmt.Errorf("icons.svg has no icon %q", name)
		}
		return svg, nil
	}
}

// dict makes a map of pairs, to hand several values to a part.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict takes pairs")
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		k, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: key %v is no string", pairs[i])
		}
		m[k] = pairs[i+1]
	}
	return m, nil
}

// totalRate is an amount per the period of p.
func totalRate(m billing.Money, p billing.Price) rate {
	return rate{decimal.NewFromInt(m.Amount), m.Currency, p.Interval, p.IntervalCount}
}

// monthly is n of a yearly price by the month, rounded to the digits that the
// currency is written with: a comparison, never a charge.
func monthly(p billing.Price, n int64) (exactly, error) {
	if p.Interval != billing.Year {
		return exactly{}, fmt.Errorf("monthly: price %s is not billed by the year", p.ID)
	}
	months := decimal.NewFromInt(12 * int64(max(p.IntervalCount, 1)))
	return exactly{p.UnitAmount.Mul(decimal.NewFromInt(n)).DivRound(months, 0), p.Currency}, nil
}

// fieldInputs names the inputs of a row of InvoiceFieldInputs, and the row,
// from 1.
type fieldInputs struct {
	Name, Value string
	Number      int
}

// fieldName is what the field of that name is called on its page.
func (l *local) fieldName(field string) (words, error) {
	for n := range billing.MaxInvoiceFields {
		switch name, value := InvoiceFieldInputs(n); field {
		case name:
			return l.fieldWords("field.field_name", "number", n+1)
		case value:
			return l.fieldWords("field.field_value", "number", n+1)
		}
	}
	if key := "field." + field; l.messages.has(key) {
		return l.fieldWords(key)
	}
	return l.fieldWords("field.other")
}

func (l *local) fieldWords(key string, pairs ...any) (words, error) {
	s, err := l.say(key, false, pairs...)
	return words(s), err
}

// languageName is a language (BCP 47) by its own name, or the tag.
func languageName(tag string) string {
	if t, err := language.Parse(tag); err == nil {
		if name := display.Self.Name(t); name != "" {
			return name
		}
	}
	return tag
}

// pathOf names the pages' own paths, and the fields of their forms, for
// templates.
func pathOf(name string) (string, error) {
	p, ok := map[string]string{
		"overview": PathOverview, "plan": PathPlan, "payment": PathPayment, "invoices": PathInvoices,
		"add_method": PathAddMethod, "details": PathDetails, "tax_ids": PathTaxIDs, "tax_id": PathTaxID, "enter": PathEnter, "sign_out": PathSignOut, "devices": PathDevices, "pay": PathPay, "subscriptions": PathPlans,
		"usage": PathUsage, "balance": PathBalance,
	}[name]
	if !ok {
		return "", fmt.Errorf("no path %q", name)
	}
	return p, nil
}
