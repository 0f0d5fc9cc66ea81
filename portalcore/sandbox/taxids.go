package sandbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// TaxID is Stripe's tax_id of a customer.
type TaxID struct {
	ID       string              `json:"id"`
	Created  time.Time           `json:"created"`
	Customer string              `json:"customer"`
	Type     string              `json:"type"`
	Country  string              `json:"country"`
	Value    string              `json:"value"`
	Status   billing.TaxIDStatus `json:"status"` // "" where no office is asked
	// VerifiedName is the customer's name when it was verified.
	VerifiedName string `json:"verified_name"`
}

// MaxTaxIDs is how many tax ids a customer can have, as at Stripe.
const MaxTaxIDs = 5

// How long the sandbox's tax office takes, in ledger time: for an answer, and
// until it is given up.
const (
	TaxOfficeAnswers = 10 * time.Second
	TaxOfficeSilent  = time.Hour
)

// taxOffice is what the sandbox's tax office says about a value, and when. It
// is asked about European, British and Australian ids. As with Stripe's magic
// values (docs.stripe.com/billing/customer/tax-ids) the digits decide: all 0 is
// verified, all 1 is unverified, all 2 stays pending; all 3, the sandbox's own,
// is unavailable. Every other one is verified.
func taxOffice(t *TaxID) (billing.TaxIDStatus, time.Duration) {
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, t.Value)
	switch {
	case digits == "":
	case strings.Trim(digits, "1") == "":
		return billing.TaxIDUnverified, TaxOfficeAnswers
	case strings.Trim(digits, "2") == "":
		return billing.TaxIDPending, 0
	case strings.Trim(digits, "3") == "":
		return billing.TaxIDUnavailable, TaxOfficeSilent
	}
	return billing.TaxIDVerified, TaxOfficeAnswers
}

// CreateTaxID is POST /v1/customers/{id}/tax_ids. Code tax_id_invalid where the
// value does not look like one of its type.
func (l *Ledger) CreateTaxID(ctx context.Context, c Call, customer, typ, value string) (TaxID, error) {
	return change(ctx, l, c, "tax_id.create", []any{customer, typ, value}, func(w *work) (TaxID, error) {
		return w.createTaxID(customer, typ, value)
	})
}

func (w *work) createTaxID(customer, typ, value string) (TaxID, error) {
	cus, err := get[Customer](w, "customer", customer)
	if err != nil {
		return TaxID{}, err
	}
	value, ok := billing.CheckTaxID(typ, value)
	if !ok {
		return TaxID{}, &Error{Status: 400, Type: InvalidRequest, Code: "tax_id_invalid", Param: "value", Message: "Invalid value for " + typ + "."}
	}
	if len(cus.TaxIDs) >= MaxTaxIDs {
		return TaxID{}, invalid("type", "A customer has at most %d tax ids.", MaxTaxIDs)
	}
	t := TaxID{ID: w.id("txi"), Created: w.now, Customer: cus.ID, Type: typ, Country: billing.TaxIDCountry(typ, value), Value: value}
	if slices.Contains([]string{"eu_vat", "eu_oss_vat", "gb_vat", "au_abn"}, typ) {
		t.Status = billing.TaxIDPending
		if s, after := taxOffice(&t); s != billing.TaxIDPending {
			if err := w.schedule("tax_id", cus.ID+" "+t.ID, time.Time{}, w.now.Add(after)); err != nil {
				return t, err
			}
		}
	}
	if err := write(w.tx, "tax_id", t.ID, cus.ID); err != nil {
		return t, err
	}
	cus.TaxIDs = append(cus.TaxIDs, t)
	if err := write(w.tx, "customer", cus.ID, cus); err != nil {
		return t, err
	}
	return t, w.effect("tax_id.create", cus.ID, t.ID)
}

// taxIDDue lets the tax office answer. key is "customer id".
func (w *work) taxIDDue(key string) error {
	customer, id, _ := strings.Cut(key, " ")
	if err := w.tx.Delete(dueKey(w.now, "tax_id", key)); err != nil {
		return err
	}
	cus, err := get[Customer](w, "customer", customer)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(cus.TaxIDs, func(t TaxID) bool { return t.ID == id })
	if i < 0 { // it was removed meanwhile
		return nil
	}
	t := &cus.TaxIDs[i]
	if t.Status, _ = taxOffice(t); t.Status == billing.TaxIDVerified {
		t.VerifiedName = cus.Name
	}
	if err := write(w.tx, "customer", cus.ID, cus); err != nil {
		return err
	}
	return w.effect("tax_id.verify", cus.ID, id)
}

// TaxID reads a tax id, also one that was removed: gone is true for it.
func (l *Ledger) TaxID(ctx context.Context, id string) (t TaxID, gone bool, err error) {
	t, err = read(ctx, l, func(w *work) (TaxID, error) {
		owner, err := get[string](w, "tax_id", id)
		if err != nil {
			return TaxID{}, err
		}
		cus, err := get[Customer](w, "customer", owner)
		if err != nil {
			return TaxID{}, err
		}
		if i := slices.IndexFunc(cus.TaxIDs, func(t TaxID) bool { return t.ID == id }); i >= 0 {
			return cus.TaxIDs[i], nil
		}
		gone = true
		return get[TaxID](w, "removed_tax_id", id)
	})
	return t, gone, err
}

// DeleteTaxID is DELETE /v1/customers/{id}/tax_ids/{id}. Without a key, which
// Stripe takes with no DELETE, a second one finds nothing.
func (l *Ledger) DeleteTaxID(ctx context.Context, c Call, customer, id string) (TaxID, error) {
	return change(ctx, l, c, "tax_id.delete", []any{customer, id}, func(w *work) (TaxID, error) {
		cus, err := get[Customer](w, "customer", customer)
		if err != nil {
			return TaxID{}, err
		}
		i := slices.IndexFunc(cus.TaxIDs, func(t TaxID) bool { return t.ID == id })
		if i < 0 {
			return TaxID{}, missing("tax_id", id)
		}
		t := cus.TaxIDs[i]
		cus.TaxIDs = slices.Delete(cus.TaxIDs, i, i+1)
		if err := write(w.tx, "removed_tax_id", t.ID, t); err != nil {
			return t, err
		}
		if err := write(w.tx, "customer", cus.ID, cus); err != nil {
			return t, err
		}
		return t, w.effect("tax_id.delete", cus.ID, t.ID)
	})
}

func (t TaxID) convert() billing.TaxID {
	return billing.TaxID{ID: t.ID, Type: t.Type, Country: t.Country, Value: t.Value, Status: t.Status, VerifiedName: t.VerifiedName, Created: t.Created}
}

// previewTaxID freezes the steps of a change of tax ids: the new one first, so
// that the customer is never without.
func (p *Provider) previewTaxID(v billing.Preview, cus Customer) (billing.Preview, error) {
	c := v.Action.TaxID
	if c == nil || c.Remove == "" && c.Type == "" || (c.Type == "") != (c.Value == "") {
		return v, refused("invalid_request", "tax_id", "neither a tax id to remove nor one to add")
	}
	if len(c.Type) > 40 || len(c.Value) > billing.MaxTaxID {
		return v, refused("tax_id_invalid", "value", "the tax id is too long")
	}
	if c.Remove != "" && !slices.ContainsFunc(cus.TaxIDs, func(t TaxID) bool { return t.ID == c.Remove }) {
		return v, notFound(c.Remove)
	}
	if c.Type != "" {
		st, err := step(stepTaxIDCreate, cus.ID, taxIDParams{Type: c.Type, Value: c.Value})
		if err != nil {
			return v, err
		}
		v.Steps = append(v.Steps, st)
	}
	if c.Remove != "" {
		st, err := step(stepTaxIDDelete, c.Remove, taxIDParams{Customer: cus.ID})
		if err != nil {
			return v, err
		}
		v.Steps = append(v.Steps, st)
	}
	return v, nil
}

// taxIDParams are the Params of the steps about tax ids: Type and Value of a
// new one, the Customer of one to remove, as its id alone does not say whose it
// is once it is gone.
type taxIDParams struct {
	Type     string `json:"type,omitempty"`
	Value    string `json:"value,omitempty"`
	Customer string `json:"customer,omitempty"`
}
