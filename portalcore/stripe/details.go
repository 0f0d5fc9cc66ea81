package stripe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// metaReference is the metadata key of a customer under which the vendor keeps
// an id of its own.
const metaReference = "portal_reference"

type taxID struct {
	Object       string               `json:"object"`
	ID           string               `json:"id"`
	Created      stamp                `json:"created"`
	Customer     expandable[struct{}] `json:"customer"`
	Type         string               `json:"type"`
	Country      string               `json:"country"`
	Value        string               `json:"value"`
	Verification *struct {
		Status string `json:"status"`
		Name   string `json:"verified_name"`
	} `json:"verification"`
}

func (t *taxID) convert() billing.TaxID {
	out := billing.TaxID{ID: t.ID, Type: t.Type, Country: t.Country, Value: t.Value, Created: t.Created.time()}
	if t.Verification != nil {
		out.Status, out.VerifiedName = billing.TaxIDStatus(t.Verification.Status), t.Verification.Name
	}
	return out
}

// taxIDs are the customer's, oldest first; Stripe's list is newest first.
func (c *customer) taxIDs() []billing.TaxID {
	var out []billing.TaxID
	for i := range slices.Backward(c.TaxIDs.Data) {
		out = append(out, c.TaxIDs.Data[i].convert())
	}
	slices.SortStableFunc(out, func(a, b billing.TaxID) int { return a.Created.Compare(b.Created) })
	return out
}

// taxIDSteps are a new tax id and then the end of the old one, so that the
// customer is never without.
func taxIDSteps(c *customer, change *billing.TaxIDChange) ([]billing.Step, error) {
	if change == nil || change.Remove == "" && change.Type == "" || (change.Type == "") != (change.Value == "") {
		return nil, refused("invalid_request", "tax_id", errors.New("neither a tax id to remove nor one to add"))
	}
	if len(change.Type) > 40 || len(change.Value) > billing.MaxTaxID {
		return nil, refused("tax_id_invalid", "value", errors.New("the tax id is too long"))
	}
	have := c.taxIDs()
	if change.Remove != "" && !slices.ContainsFunc(have, func(t billing.TaxID) bool { return t.ID == change.Remove }) {
		return nil, notFound(change.Remove)
	}
	var steps []billing.Step
	if change.Type != "" {
		var before []string
		for _, t := range have {
			before = append(before, t.ID)
		}
		steps = append(steps, newStep(stepTaxIDCreate, c.ID, form{{"type", change.Type}, {"value", change.Value}}, params{
			TaxID: &billing.TaxIDChange{Type: change.Type, Value: change.Value}, TaxIDsBefore: before,
		}))
	}
	if change.Remove != "" {
		steps = append(steps, newStep(stepTaxIDDelete, change.Remove, nil, params{Customer: c.ID}))
	}
	return steps, nil
}

// added returns the tax id that a tax_id.create step brought.
func (c *customer) added(par params) (billing.TaxID, bool) {
	if par.TaxID == nil {
		return billing.TaxID{}, false
	}
	normal := func(v string) string {
		if n, ok := billing.CheckTaxID(par.TaxID.Type, v); ok {
			return n
		}
		return v
	}
	all := c.taxIDs()
	i := slices.IndexFunc(all, func(t billing.TaxID) bool {
		return t.Type == par.TaxID.Type && normal(t.Value) == normal(par.TaxID.Value) && !slices.Contains(par.TaxIDsBefore, t.ID)
	})
	if i < 0 {
		return billing.TaxID{}, false
	}
	return all[i], true
}

// hasTaxID reports whether the customer still has a tax id.
func (p *Provider) hasTaxID(ctx context.Context, customerID, id string) (bool, error) {
	var t taxID
	_, err := p.get(ctx, &t, nil, "customers", customerID, "tax_ids", id)
	switch {
	case billing.FaultOf(err) == billing.NotFound:
		return false, nil
	case err != nil:
		return false, err
	case t.Object != "tax_id" || t.ID != id || t.Customer.ID != customerID:
		return false, notFound(id)
	}
	return true, nil
}

// deleteTaxID carries out a tax_id.delete step. A DELETE takes no key: it is
// done where the tax id is gone, whoever took it away. Whose it was is in the
// step, which Preview made after it had read it.
func (p *Provider) deleteTaxID(ctx context.Context, customerID string, step billing.Step, par params) (billing.Result, error) {
	done := billing.Result{State: billing.Done, Object: step.Object}
	if par.Customer != customerID {
		return billing.Result{}, notFound(step.Object)
	}
	has, err := p.hasTaxID(ctx, customerID, step.Object)
	if err != nil {
		return billing.Result{}, beforeSending(err)
	}
	if !has {
		return done, nil
	}
	u, ok := path("customers", customerID, "tax_ids", step.Object)
	if !ok {
		return billing.Result{}, notFound(step.Object)
	}
	a, err := p.send(ctx, "DELETE", u, "", "")
	if err != nil {
		return billing.Result{}, executeFault(nil, err)
	}
	if a.status/100 != 2 {
		if fault := executeFault(a, nil); billing.CodeOf(fault) != "resource_missing" {
			return billing.Result{}, fault
		}
		return done, nil
	}
	var gone struct {
		ID      string `json:"id"`
		Deleted bool   `json:"deleted"`
	}
	if err := a.decode(&gone); err != nil || gone.ID != step.Object || !gone.Deleted {
		return billing.Result{}, executeFault(a, errors.Join(err, errors.New("the answer does not show that the tax id is gone")))
	}
	return done, nil
}

// fieldsForm replaces the custom fields of invoices.
func fieldsForm(f *form, fields []billing.InvoiceField) error {
	if len(fields) > billing.MaxInvoiceFields {
		return refused("invalid_request", "invoice_fields", fmt.Errorf("at most %d", billing.MaxInvoiceFields))
	}
	if len(fields) == 0 {
		f.add("invoice_settings[custom_fields]", "")
	}
	for i, x := range fields {
		if !x.Valid() {
			return refused("invalid_request", "invoice_fields", errors.New("a field is empty, too long or has control characters"))
		}
		at := "invoice_settings[custom_fields][" + itoa(int64(i)) + "]"
		f.add(at+"[name]", x.Name)
		f.add(at+"[value]", x.Value)
	}
	return nil
}

// maxFound is how many customers a search returns.
const maxFound = 20

// Search implements billing.Provider. A reference is looked for in the
// metadata, where Stripe's index may be a minute late; an id of Stripe's
// ("cus_…") is read. What Stripe finds counts where it is exactly what was
// asked for.
func (p *Provider) Search(ctx context.Context, q billing.CustomerQuery) ([]billing.Customer, error) {
	var l list[customer]
	f := form{{"limit", itoa(maxFound)}}
	f.expand("data.tax_ids")
	fits := func(s string, limit int) bool {
		return len(s) <= limit && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
	}
	found := []billing.Customer{}
	var match func(*customer) bool
	var err error
	switch {
	case q.Email != "":
		if !fits(q.Email, 512) {
			return found, nil
		}
		match = func(c *customer) bool { return c.Email == q.Email }
		_, err = p.get(ctx, &l, append(form{{"email", q.Email}}, f...), "customers")
	case strings.HasPrefix(q.Reference, "cus_"):
		c, err := p.Find(ctx, q.Reference)
		if err == nil {
			return append(found, c), nil
		}
		if billing.FaultOf(err) != billing.NotFound {
			return nil, err
		}
		fallthrough
	case q.Reference != "":
		if !fits(q.Reference, 500) {
			return found, nil
		}
		match = func(c *customer) bool { return c.Metadata[metaReference] == q.Reference }
		query := "metadata['" + metaReference + "']:'" + quoteSearch.Replace(q.Reference) + "'"
		_, err = p.get(ctx, &l, append(form{{"query", query}}, f...), "customers", "search")
	default:
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(l.Data, func(a, b customer) int { return b.Created.time().Compare(a.Created.time()) })
	for i := range l.Data {
		if c := &l.Data[i]; !c.Deleted && match(c) {
			found = append(found, c.convert())
		}
	}
	return found, nil
}

// quoteSearch escapes a value between quotes of Stripe's search query language
// (docs.stripe.com/search#search-query-language).
var quoteSearch = strings.NewReplacer(`\`, `\\`, `'`, `\'`)
