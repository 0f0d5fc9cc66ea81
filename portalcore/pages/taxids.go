package pages

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/text/collate"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// taxIDs is GET /details/tax-ids: the customer's tax ids, and the form for
// another one.
func (v *visit) taxIDs() { v.showTaxIDs(http.StatusOK, "", nil) }

// taxID is GET /tax-id/{id}: one of them, to be replaced or removed.
func (v *visit) taxID() { v.showTaxIDs(http.StatusOK, v.arg, nil) }

// entered is what a form for a tax id held, and what was wrong with it.
type entered struct {
	choice, value, version string
	errs                   []templates.FieldError
}

// showTaxIDs draws the page with the form for the tax id with that id, or for a
// new one where it is "".
func (v *visit) showTaxIDs(status int, id string, was *entered) {
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("payment", snap)
	if !ok {
		return
	}
	cus := &l.acct.Customer
	body := &templates.TaxIDs{IDs: cus.TaxIDs, Permit: l.permitCustomer(policy.UpdateTaxIDs)}
	path, version := templates.PathTaxIDs, cus.Version
	if id != "" {
		i := slices.IndexFunc(cus.TaxIDs, func(t billing.TaxID) bool { return t.ID == id })
		if i < 0 {
			v.notFound()
			return
		}
		body.Editing = &cus.TaxIDs[i]
		body.Choice, body.Value = choiceOf(body.Editing.Type, body.Editing.Country), body.Editing.Value
		path = templates.PathTaxID + id
	}
	country := cus.Address.Country
	if body.Editing != nil && body.Editing.Country != "" {
		country = body.Editing.Country
	}
	body.Own = choices(country, "")
	body.Others = choices("", l.locale(cus.Locale))
	if body.Choice == "" && len(body.Own) > 0 {
		body.Choice = body.Own[0].Value
	}
	if was != nil {
		body.Choice, body.Value, body.Errors, version = was.choice, was.value, was.errs, was.version
	}
	var err error
	if body.Confirm, err = l.newForm(path, version); err == nil && body.Editing != nil {
		body.Remove, err = l.newForm(path, version, templates.Field{Name: templates.FieldRemove, Value: "1"})
	}
	if err != nil {
		v.failed(err)
		return
	}
	l.undated()
	l.page.BackTo = "payment"
	l.page.Body = body
	l.show(status)
}

// saveTaxID is POST /details/tax-ids and POST /tax-id/{id}.
func (v *visit) saveTaxID() {
	if v.arg != "" {
		snap, ok := v.account()
		if !ok {
			return
		}
		if !slices.ContainsFunc(snap.Account.Customer.TaxIDs, func(t billing.TaxID) bool { return t.ID == v.arg }) {
			v.notFound()
			return
		}
	}
	change := billing.TaxIDChange{Remove: v.arg}
	was := &entered{choice: v.form[templates.FieldTaxIDType], version: v.form[templates.FieldVersion]}
	if v.arg == "" || v.form[templates.FieldRemove] == "" {
		c := check{form: v.form}
		was.value = c.text(templates.FieldTaxIDValue, billing.MaxTaxID, true)
		kind, ok := taxIDType(was.choice)
		if !ok {
			c.wrong(templates.FieldTaxIDType, "tax_id_type", nil)
		} else if len(c.errs) == 0 {
			if change.Value, ok = billing.CheckTaxID(kind.Type, was.value); !ok {
				c.wrong(templates.FieldTaxIDValue, "tax_id", map[string]any{"name": kind.Name, "example": kind.Example})
			}
		}
		change.Type, was.errs = kind.Type, c.errs
	}
	if len(was.errs) == 0 {
		i, err := v.do(billing.Action{Kind: billing.UpdateTaxID, TaxID: &change})
		var invalid *act.InvalidError
		var refused *act.RefusedError
		switch {
		case errors.As(err, &invalid):
			was.errs = []templates.FieldError{fieldError(templates.FieldTaxIDValue, "invalid", nil)}
		case errors.As(err, &refused) && refused.Code == "tax_id_invalid":
			was.errs = []templates.FieldError{{Field: templates.FieldTaxIDValue, Key: "tax_id_refused"}}
		default:
			href := templates.PathTaxIDs
			if v.arg != "" {
				href = templates.PathTaxID + v.arg
			}
			v.settled(i, err, href)
			return
		}
	}
	v.showTaxIDs(http.StatusUnprocessableEntity, v.arg, was)
}

// choiceOf names a type of tax id in a country: one type, such as "eu_vat",
// looks different in each.
func choiceOf(kind, country string) string { return kind + ":" + country }

// taxIDType is the type that a choice names.
func taxIDType(choice string) (billing.TaxIDType, bool) {
	kind, country, _ := strings.Cut(choice, ":")
	for _, t := range billing.TaxIDTypes("") {
		if t.Type == kind && t.Country == country {
			return t, true
		}
	}
	return billing.TaxIDType{}, false
}

// choices are the types of a country, in its order, or those of all countries,
// by the countries' names in a language.
func choices(country, locale string) []templates.TaxIDChoice {
	if country == "" && locale == "" {
		return nil
	}
	var out []templates.TaxIDChoice
	for _, t := range billing.TaxIDTypes(country) {
		out = append(out, templates.TaxIDChoice{Value: choiceOf(t.Type, t.Country), Country: t.Country, Name: t.Name})
	}
	if country != "" {
		return out
	}
	tag := language.Make(locale)
	names := display.Regions(tag)
	if names == nil {
		names = display.English.Regions()
	}
	nameOf := func(c templates.TaxIDChoice) string {
		if r, err := language.ParseRegion(c.Country); err == nil {
			return names.Name(r)
		}
		return ""
	}
	c := collate.New(tag)
	slices.SortStableFunc(out, func(a, b templates.TaxIDChoice) int { return c.CompareString(nameOf(a), nameOf(b)) })
	return out
}
