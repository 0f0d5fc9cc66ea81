package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Bounds of an InvoiceDetail.
const (
	maxLinePages = 5  // of 100 lines; more are not read
	maxPapers    = 20 // payments, and credit notes
	maxIntents   = 5  // payment intents whose charges are read
)

// paper is what an invoice says beside what the lists show of it.
type paper struct {
	Name    string  `json:"customer_name"`
	Email   string  `json:"customer_email"`
	Address address `json:"customer_address"`
	TaxIDs  []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"customer_tax_ids"`
	Fields        []billing.InvoiceField `json:"custom_fields"`
	EndingBalance *int64                 `json:"ending_balance"`
	Discounts     []struct {
		Amount   int64 `json:"amount"`
		Discount expandable[struct {
			Source struct {
				Coupon expandable[struct {
					Name string `json:"name"`
				}] `json:"coupon"`
			} `json:"source"`
		}] `json:"discount"`
	} `json:"total_discount_amounts"`
	Credits []struct {
		Amount int64  `json:"amount"`
		Type   string `json:"type"`
	} `json:"total_pretax_credit_amounts"`
	Taxes []struct {
		Amount   int64  `json:"amount"`
		Behavior string `json:"tax_behavior"`
		Taxable  int64  `json:"taxable_amount"`
		Details  *struct {
			Rate expandable[struct {
				Name    string      `json:"display_name"`
				Percent json.Number `json:"percentage"`
			}] `json:"tax_rate"`
		} `json:"tax_rate_details"`
	} `json:"total_taxes"`
	Transitions struct {
		PaidAt stamp `json:"paid_at"`
	} `json:"status_transitions"`
	Parent *struct {
		Details *struct {
			Subscription expandable[struct {
				Latest  expandable[struct{}] `json:"latest_invoice"`
				Pending *struct{}            `json:"pending_update"`
			}] `json:"subscription"`
		} `json:"subscription_details"`
	} `json:"parent"`
}

// wholeInvoice is an invoice and its paper, from one object.
type wholeInvoice struct {
	invoice
	paper paper
}

func (w *wholeInvoice) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &w.invoice); err != nil {
		return err
	}
	return json.Unmarshal(b, &w.paper)
}

type creditNote struct {
	Object   string               `json:"object"`
	ID       string               `json:"id"`
	Number   string               `json:"number"`
	Created  stamp                `json:"created"`
	Customer expandable[struct{}] `json:"customer"`
	Invoice  expandable[struct{}] `json:"invoice"`
	Currency string               `json:"currency"`
	Reason   string               `json:"reason"`
	Status   string               `json:"status"`
	Total    int64                `json:"total"`
	PDF      string               `json:"pdf"`
}

func (n *creditNote) convert() billing.CreditNote {
	return billing.CreditNote{
		ID: n.ID, Number: n.Number, Created: n.Created.time(), Reason: n.Reason, Total: billing.Money{Amount: n.Total, Currency: n.Currency},
		Void: n.Status == "void", HasDocument: n.PDF != "",
	}
}

type charge struct {
	ID          string               `json:"id"`
	Customer    expandable[struct{}] `json:"customer"`
	Created     stamp                `json:"created"`
	Amount      int64                `json:"amount"`
	Refunded    int64                `json:"amount_refunded"`
	Currency    string               `json:"currency"`
	Status      string               `json:"status"`
	FailureCode string               `json:"failure_code"`
	Outcome     struct {
		Reason string `json:"reason"`
	} `json:"outcome"`
	MethodID string         `json:"payment_method"`
	Method   *paymentMethod `json:"payment_method_details"` // the same members, without id
}

func (c *charge) convert() billing.Payment {
	out := billing.Payment{
		ID: c.ID, Time: c.Created.time(), Amount: billing.Money{Amount: c.Amount, Currency: c.Currency}, Status: billing.PaymentFailed,
		Refunded: billing.Money{Amount: c.Refunded, Currency: c.Currency},
	}
	switch {
	case c.Status == "succeeded" && c.Refunded > 0 && c.Refunded >= c.Amount:
		out.Status = billing.PaymentRefunded
	case c.Status == "succeeded":
		out.Status = billing.PaymentSucceeded
	case c.Status == "pending":
		out.Status = billing.PaymentProcessing
	default:
		out.Failure = billing.DeclineCode(c.FailureCode, c.Outcome.Reason)
	}
	if c.Method != nil {
		m := c.Method.convert()
		m.ID = c.MethodID
		out.Method = &m
	}
	return out
}

// Invoice implements billing.Provider. Two stages: the invoice, its lines, its
// credit notes and its payments side by side; then the charges of each payment
// intent, which are the attempts.
func (p *Provider) Invoice(ctx context.Context, customerID, id string) (billing.InvoiceDetail, error) {
	ctx = forCustomer(ctx, customerID)
	var (
		v     wholeInvoice
		lines list[invoiceLine]
		notes list[creditNote]
		pays  list[invoicePayment]
	)
	err := parallel(
		func() error {
			f := form{}
			f.expand("total_taxes.tax_rate_details.tax_rate", "total_discount_amounts.discount.source.coupon", "parent.subscription_details.subscription")
			_, err := p.get(ctx, &v, f, "invoices", id)
			if err == nil && (v.Object != "invoice" || v.ID != id || v.Customer.ID != customerID || v.Status == "draft") {
				return notFound(id)
			}
			return err
		},
		func() (err error) { lines, err = p.lines(ctx, id); return err },
		func() error {
			_, err := p.get(ctx, &notes, form{{"invoice", id}, {"limit", itoa(maxPapers)}}, "credit_notes")
			return err
		},
		func() error {
			f := form{{"invoice", id}, {"limit", itoa(maxPapers)}}
			f.expand("data.payment.payment_intent.payment_method")
			_, err := p.get(ctx, &pays, f, "invoice_payments")
			return err
		},
	)
	if err != nil {
		return billing.InvoiceDetail{}, err
	}
	v.Lines = lines
	out := v.detail()
	out.Invoice = p.withPage(&v.invoice, out.Invoice)
	for _, x := range pays.Data {
		if in := x.Payment.PaymentIntent.Obj; in != nil && out.Status == billing.InvoiceOpen && out.Attempted && x.Status == "open" {
			out.Processing, out.Failure, out.Method = in.went()
		}
	}
	for i := range notes.Data {
		if n := &notes.Data[i]; n.Customer.ID == customerID && n.Invoice.ID == id {
			out.CreditNotes = append(out.CreditNotes, n.convert())
		}
	}
	out.Payments, err = p.payments(ctx, &v.invoice, pays.Data)
	return out, err
}

// lines reads an invoice's lines, as far as they are read.
func (p *Provider) lines(ctx context.Context, id string) (list[invoiceLine], error) {
	var out list[invoiceLine]
	after := ""
	for range maxLinePages {
		f := form{{"limit", "100"}}
		if after != "" {
			f.add("starting_after", after)
		}
		var l list[invoiceLine]
		if _, err := p.get(ctx, &l, f, "invoices", id, "lines"); err != nil {
			return out, err
		}
		out.Data = append(out.Data, l.Data...)
		out.HasMore = l.HasMore
		if !l.HasMore || len(l.Data) == 0 {
			break
		}
		after = l.Data[len(l.Data)-1].ID
	}
	return out, nil
}

// detail is what the invoice's own object says.
func (w *wholeInvoice) detail() billing.InvoiceDetail {
	v, pa := &w.invoice, &w.paper
	pending := map[string]bool{}
	if pa.Parent != nil && pa.Parent.Details != nil {
		if s := pa.Parent.Details.Subscription.Obj; s != nil && s.Pending != nil {
			pending[s.Latest.ID] = true
		}
	}
	out := billing.InvoiceDetail{
		Invoice: v.convert(pending), Name: pa.Name, Email: pa.Email, Address: billing.Address(pa.Address), Fields: pa.Fields,
		FromBalance: v.money(0), FromCredits: v.money(0), MoreLines: v.Lines.HasMore, PaidAt: pa.Transitions.PaidAt.time(),
	}
	for _, t := range pa.TaxIDs {
		out.TaxIDs = append(out.TaxIDs, billing.TaxID{Type: t.Type, Value: t.Value})
	}
	for _, d := range pa.Discounts {
		l := billing.Line{Description: "Discount", Amount: v.money(-d.Amount)}
		if o := d.Discount.Obj; o != nil && o.Source.Coupon.Obj != nil && o.Source.Coupon.Obj.Name != "" {
			l.Description = o.Source.Coupon.Obj.Name
		}
		out.Discounts = append(out.Discounts, l)
	}
	for _, t := range pa.Taxes {
		l := billing.TaxLine{Name: "Tax", Inclusive: t.Behavior == "inclusive", Taxable: v.money(t.Taxable), Amount: v.money(t.Amount)}
		if t.Details != nil && t.Details.Rate.Obj != nil {
			l.Name = t.Details.Rate.Obj.Name
			if d, err := decimal.NewFromString(t.Details.Rate.Obj.Percent.String()); err == nil {
				l.Percent = d.String()
			}
		}
		out.TaxLines = append(out.TaxLines, l)
	}
	if pa.EndingBalance != nil {
		out.FromBalance.Amount = *pa.EndingBalance - v.StartingBalance
	}
	for _, c := range pa.Credits {
		if c.Type == "credit_balance_transaction" {
			out.FromCredits.Amount += c.Amount
		}
	}
	return out
}

// payments are the attempts to pay v, newest first: the charges of its payment
// intents, and an intent that waits for the customer, which has none yet.
func (p *Provider) payments(ctx context.Context, v *invoice, pays []invoicePayment) ([]billing.Payment, error) {
	var ids []string
	var out []billing.Payment
	for _, x := range pays {
		in := x.Payment.PaymentIntent
		if in.ID == "" || len(ids) == maxIntents {
			continue
		}
		ids = append(ids, in.ID)
		if o := in.Obj; o != nil && o.Status == "requires_action" && v.Status == "open" {
			w := billing.Payment{ID: in.ID, Time: o.Created.time(), Amount: v.money(o.Amount), Status: billing.PaymentWaiting, Refunded: v.money(0)}
			_, _, w.Method = o.went()
			out = append(out, w)
		}
	}
	found := make([]list[charge], len(ids))
	fns := make([]func() error, len(ids))
	for i, id := range ids {
		fns[i] = func() error {
			a, err := p.get(ctx, &found[i], form{{"payment_intent", id}, {"limit", itoa(maxPapers)}}, "charges")
			for _, c := range found[i].Data {
				if err == nil && c.Customer.ID != v.Customer.ID {
					err = readFault(a, errors.New("the list holds another customer's charge"))
				}
			}
			return err
		}
	}
	if err := parallel(fns...); err != nil {
		return nil, err
	}
	waiting := len(out)
	for _, l := range found {
		for i := range l.Data {
			out = append(out, l.Data[i].convert())
		}
	}
	slices.SortStableFunc(out[waiting:], func(a, b billing.Payment) int { return b.Time.Compare(a.Time) })
	return out[:min(len(out), maxPapers)], nil
}

// creditNote reads a credit note of the customer's invoice.
func (p *Provider) creditNote(ctx context.Context, customerID, invoiceID, id string) (*creditNote, error) {
	n := new(creditNote)
	if _, err := p.get(ctx, n, nil, "credit_notes", id); err != nil {
		return nil, err
	}
	if n.Object != "credit_note" || n.ID != id || n.Customer.ID != customerID || n.Invoice.ID != invoiceID {
		return nil, notFound(id)
	}
	return n, nil
}
