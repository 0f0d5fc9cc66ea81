package sandbox

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Charge is Stripe's charge: one attempt to take the money of an invoice.
type Charge struct {
	ID            string    `json:"id"`
	Created       time.Time `json:"created"`
	Customer      string    `json:"customer"`
	Invoice       string    `json:"invoice"`
	PaymentIntent string    `json:"payment_intent"`
	Amount        int64     `json:"amount"`
	Refunded      int64     `json:"amount_refunded"`
	Currency      string    `json:"currency"`
	// Status is Stripe's charge.status: "pending", "succeeded" or "failed".
	Status      string        `json:"status"`
	FailureCode string        `json:"failure_code"` // "card_declined", "expired_card"
	DeclineCode string        `json:"decline_code"` // outcome.reason: "generic_decline"
	Method      PaymentMethod `json:"method"`       // as it was then
}

// charged writes down what an attempt to pay came to, where Stripe has a
// charge for it: none for a customer without a payment method, and none before
// the customer confirmed.
func (w *work) charged(pi *PaymentIntent) error {
	status := ""
	switch pi.Status {
	case PaymentSucceeded:
		status = "succeeded"
	case PaymentProcessing:
		status = "pending"
	case RequiresPaymentMethod:
		if c := pi.LastErrorCode; c != "" && c != "payment_method_required" && c != "payment_intent_authentication_failure" {
			status = "failed"
		}
	default:
	}
	if status == "" {
		return nil
	}
	var c Charge
	if last, err := w.charges(pi.Invoice); err != nil {
		return err
	} else if len(last) > 0 && last[0].Status == "pending" {
		c = last[0] // a bank debit that is decided now
	} else {
		pm, err := get[PaymentMethod](w, "payment_method", pi.PaymentMethod)
		if err != nil {
			return err
		}
		c = Charge{ID: w.id("ch"), Created: w.now, Customer: pi.Customer, Invoice: pi.Invoice, PaymentIntent: pi.ID, Amount: pi.Amount, Currency: pi.Currency, Method: pm}
		if err := w.index("charge", pi.Invoice, c.ID, c.Created); err != nil {
			return err
		}
	}
	c.Status, c.FailureCode, c.DeclineCode = status, "", ""
	if status == "failed" {
		c.FailureCode, c.DeclineCode = pi.LastErrorCode, pi.LastDeclineCode
	}
	return write(w.tx, "charge", c.ID, c)
}

// charges are the attempts to pay an invoice, newest first.
func (w *work) charges(invoice string) ([]Charge, error) {
	var list []Charge
	err := ofCustomer(w, "charge", invoice, "", false, func(c Charge) bool { list = append(list, c); return true })
	return list, err
}

// Charges lists the attempts to pay an invoice, newest first.
func (l *Ledger) Charges(ctx context.Context, invoice string) ([]Charge, error) {
	return read(ctx, l, func(w *work) ([]Charge, error) { return w.charges(invoice) })
}

// CreditNote is Stripe's credit_note with amounts and without lines of the
// invoice.
type CreditNote struct {
	ID       string    `json:"id"`
	Number   string    `json:"number"` // the invoice's number and "-CN-01"
	Created  time.Time `json:"created"`
	Customer string    `json:"customer"`
	Invoice  string    `json:"invoice"`
	Reason   string    `json:"reason"`
	Memo     string    `json:"memo"`
	Currency string    `json:"currency"`
	Subtotal int64     `json:"subtotal"`
	Tax      int64     `json:"tax"`
	Total    int64     `json:"total"`
	// Exactly one of the three is Total: what an open invoice asks for less, what
	// went back to the card, and what was added to the balance.
	Reduced   int64     `json:"pre_payment_amount"`
	Refunded  int64     `json:"refund_amount"`
	ToBalance int64     `json:"credit_amount"`
	VoidedAt  time.Time `json:"voided_at"`
}

// Void reports whether the note no longer counts.
func (n CreditNote) Void() bool { return !n.VoidedAt.IsZero() }

// CreditNoteParams make a credit note.
type CreditNoteParams struct {
	Invoice string `json:"invoice"`
	// Amount with tax, more than zero: at most what is left of the invoice's
	// total, and of what is due of one that is open.
	Amount int64 `json:"amount"`
	// Reason is "duplicate", "fraudulent", "order_change",
	// "product_unsatisfactory" or "".
	Reason string `json:"reason,omitempty"`
	Memo   string `json:"memo,omitempty"`
	// ToBalance credits the customer's balance. Default for a paid invoice: back
	// to the card that paid it.
	ToBalance bool `json:"to_balance,omitempty"`
}

// CreditNote reads a credit note.
func (l *Ledger) CreditNote(ctx context.Context, id string) (CreditNote, error) {
	return read(ctx, l, func(w *work) (CreditNote, error) { return get[CreditNote](w, "credit_note", id) })
}

// CreditNotes lists the credit notes of an invoice, newest first.
func (l *Ledger) CreditNotes(ctx context.Context, invoice string) ([]CreditNote, error) {
	return read(ctx, l, func(w *work) ([]CreditNote, error) { return w.creditNotes(invoice) })
}

func (w *work) creditNotes(invoice string) ([]CreditNote, error) {
	var list []CreditNote
	err := ofCustomer(w, "credit_note", invoice, "", false, func(n CreditNote) bool { list = append(list, n); return true })
	return list, err
}

// CreateCreditNote is POST /v1/credit_notes. An open invoice asks for that much
// less, and is paid where nothing is left to ask for.
func (l *Ledger) CreateCreditNote(ctx context.Context, c Call, p CreditNoteParams) (CreditNote, error) {
	return change(ctx, l, c, "credit_note.create", p, func(w *work) (CreditNote, error) {
		n, err := w.createCreditNote(p)
		if err != nil {
			return n, err
		}
		return n, w.effect("credit_note.create", n.Customer, n.ID)
	})
}

func (w *work) createCreditNote(p CreditNoteParams) (CreditNote, error) {
	inv, err := get[Invoice](w, "invoice", p.Invoice)
	if err != nil {
		return CreditNote{}, err
	}
	others, err := w.creditNotes(inv.ID)
	if err != nil {
		return CreditNote{}, err
	}
	left := inv.Total
	for _, o := range others {
		if !o.Void() {
			left -= o.Total
		}
	}
	switch {
	case p.Amount <= 0 || p.Amount > left:
		return CreditNote{}, invalid("amount", "The amount must be more than 0 and at most what is left of the invoice, %d.", max(left, 0))
	case !slices.Contains([]string{"", "duplicate", "fraudulent", "order_change", "product_unsatisfactory"}, p.Reason):
		return CreditNote{}, invalid("reason", "Invalid reason: %q.", p.Reason)
	case len(p.Memo) > 5000:
		return CreditNote{}, invalid("memo", "A memo has at most 5000 characters.")
	}
	n := CreditNote{
		ID: w.id("cn"), Number: fmt.Sprintf("%s-CN-%02d", inv.Number, len(others)+1), Created: w.now, Customer: inv.Customer, Invoice: inv.ID,
		Reason: p.Reason, Memo: p.Memo, Currency: inv.Currency, Total: p.Amount,
		// The tax is the invoice's share of the amount.
		Tax: round(new(big.Rat).Mul(big.NewRat(inv.Tax, inv.Total), big.NewRat(p.Amount, 1))),
	}
	n.Subtotal = n.Total - n.Tax
	switch {
	case inv.Status == billing.InvoiceOpen && (p.ToBalance || p.Amount > inv.AmountRemaining):
		return CreditNote{}, invalid("amount", "An open invoice takes a credit note of at most what is due, %d, and none to the balance.", inv.AmountRemaining)
	case inv.Status == billing.InvoiceOpen:
		n.Reduced = n.Total
		err = w.reduce(&inv, n.Total)
	case inv.Status != billing.InvoicePaid:
		return CreditNote{}, &Error{Status: 400, Type: InvalidRequest, Code: "invoice_not_open", Param: "invoice", Message: "This invoice is " + string(inv.Status) + "."}
	case p.ToBalance:
		n.ToBalance = n.Total
		err = w.credit(&n)
	default:
		n.Refunded = n.Total
		err = w.refund(&n)
	}
	if err != nil {
		return n, err
	}
	if err := w.index("credit_note", inv.ID, n.ID, n.Created); err != nil {
		return n, err
	}
	return n, write(w.tx, "credit_note", n.ID, n)
}

// reduce takes amount off what an open invoice asks for; below zero puts it
// back.
func (w *work) reduce(inv *Invoice, amount int64) error {
	if inv.Processing {
		return processing()
	}
	pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
	if err != nil {
		return err
	}
	inv.AmountDue -= amount
	inv.AmountRemaining -= amount
	pi.Amount = inv.AmountRemaining
	if inv.AmountRemaining > 0 {
		if err := w.putIntent(&pi); err != nil {
			return err
		}
		return w.putInvoice(inv)
	}
	pi.Amount, pi.Status = amount, PaymentCanceled
	if err := w.putIntent(&pi); err != nil {
		return err
	}
	inv.markPaid(w.now)
	return w.settled(inv)
}

func (w *work) credit(n *CreditNote) error {
	cus, err := get[Customer](w, "customer", n.Customer)
	if err != nil {
		return err
	}
	if _, err := w.moveBalance(&cus, -n.ToBalance, "credit_note", n.Invoice); err != nil {
		return err
	}
	return write(w.tx, "customer", cus.ID, cus)
}

func (w *work) refund(n *CreditNote) error {
	charges, err := w.charges(n.Invoice)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(charges, func(c Charge) bool { return c.Status == "succeeded" && c.Amount-c.Refunded >= n.Refunded })
	if i < 0 {
		return invalid("refund_amount", "No payment of this invoice is large enough to give that back; credit the balance.")
	}
	charges[i].Refunded += n.Refunded
	return write(w.tx, "charge", charges[i].ID, charges[i])
}

// VoidCreditNote is POST /v1/credit_notes/{id}/void, for a note of an invoice
// that is still open.
func (l *Ledger) VoidCreditNote(ctx context.Context, c Call, id string) (CreditNote, error) {
	return change(ctx, l, c, "credit_note.void", id, func(w *work) (CreditNote, error) {
		n, err := get[CreditNote](w, "credit_note", id)
		if err != nil {
			return n, err
		}
		if n.Void() {
			return n, invalid("id", "This credit note is void already.")
		}
		inv, err := w.openInvoice(n.Invoice)
		if err != nil {
			return n, err
		}
		if err := w.reduce(&inv, -n.Reduced); err != nil {
			return n, err
		}
		n.VoidedAt = w.now
		if err := write(w.tx, "credit_note", n.ID, n); err != nil {
			return n, err
		}
		return n, w.effect("credit_note.void", n.Customer, n.ID)
	})
}

func (n CreditNote) convert() billing.CreditNote {
	return billing.CreditNote{
		ID: n.ID, Number: n.Number, Created: n.Created, Reason: n.Reason, Total: billing.Money{Amount: n.Total, Currency: n.Currency},
		Void: n.Void(), HasDocument: true,
	}
}

// Bounds of an InvoiceDetail.
const (
	detailLines = 500
	detailList  = 20 // payments, and credit notes
)

// Invoice implements billing.Provider.
func (p *Provider) Invoice(ctx context.Context, customer, invoice string) (billing.InvoiceDetail, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return billing.InvoiceDetail{}, err
	}
	d, err := read(ctx, p.ledger, func(w *work) (billing.InvoiceDetail, error) {
		inv, err := get[Invoice](w, "invoice", invoice)
		if err != nil {
			return billing.InvoiceDetail{}, err
		}
		if inv.Customer != customer {
			return billing.InvoiceDetail{}, notFound(invoice)
		}
		return p.detail(w, inv)
	})
	if err != nil {
		return billing.InvoiceDetail{}, readError(err)
	}
	return d, nil
}

func (p *Provider) detail(w *work, inv Invoice) (billing.InvoiceDetail, error) {
	money := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: inv.Currency} }
	d := billing.InvoiceDetail{
		Invoice: p.invoice(inv), Name: inv.CustomerName, Email: inv.CustomerEmail, Address: inv.CustomerAddress, Fields: slices.Clone(inv.CustomFields),
		FromBalance: money(inv.EndingBalance - inv.StartingBalance), FromCredits: money(inv.Credits), PaidAt: inv.PaidAt,
	}
	for _, t := range inv.CustomerTaxIDs {
		d.TaxIDs = append(d.TaxIDs, billing.TaxID{Type: t.Type, Value: t.Value})
	}
	if len(d.Lines) > detailLines {
		d.Lines, d.MoreLines = d.Lines[:detailLines], true
	}
	if inv.Tax != 0 {
		d.TaxLines = []billing.TaxLine{{Name: TaxName, Percent: inv.TaxPercent.String(), Taxable: money(inv.Subtotal - inv.Credits), Amount: money(inv.Tax)}}
	}
	charges, err := w.charges(inv.ID)
	if err != nil {
		return d, err
	}
	if inv.PaymentIntent != "" && inv.Status == billing.InvoiceOpen {
		if err := w.went(inv, &d.Invoice); err != nil {
			return d, err
		}
		pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
		if err != nil {
			return d, err
		}
		if pi.Status == RequiresAction {
			pm, err := get[PaymentMethod](w, "payment_method", pi.PaymentMethod)
			if err != nil {
				return d, err
			}
			m := methodOf(pm)
			d.Payments = append(d.Payments, billing.Payment{ID: pi.ID, Time: pi.Created, Amount: money(pi.Amount), Status: billing.PaymentWaiting, Method: &m, Refunded: money(0)})
		}
	}
	for _, c := range charges {
		m := methodOf(c.Method)
		pay := billing.Payment{
			ID: c.ID, Time: c.Created, Amount: money(c.Amount), Method: &m, Refunded: money(c.Refunded),
			Status: map[string]billing.PaymentStatus{"succeeded": billing.PaymentSucceeded, "pending": billing.PaymentProcessing, "failed": billing.PaymentFailed}[c.Status],
		}
		if c.Status == "failed" {
			pay.Failure = billing.DeclineCode(c.FailureCode, c.DeclineCode)
		}
		if c.Refunded > 0 && c.Refunded == c.Amount {
			pay.Status = billing.PaymentRefunded
		}
		d.Payments = append(d.Payments, pay)
	}
	d.Payments = d.Payments[:min(len(d.Payments), detailList)]
	notes, err := w.creditNotes(inv.ID)
	for _, n := range notes[:min(len(notes), detailList)] {
		d.CreditNotes = append(d.CreditNotes, n.convert())
	}
	return d, err
}

// TaxName is what the sandbox calls its only tax.
const TaxName = "Tax"

// SearchCustomers returns the customers with exactly that e-mail, or with that
// MetaReference, newest first; the argument that is "" is not looked at.
func (l *Ledger) SearchCustomers(ctx context.Context, email, reference string) ([]Customer, error) {
	all, err := l.Customers(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(c Customer) bool {
		return email != "" && c.Email != email || reference != "" && c.Metadata[MetaReference] != reference || email+reference == ""
	})
	slices.SortStableFunc(all, func(a, b Customer) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// MetaReference is the metadata key of a customer under which the vendor keeps
// an id of its own.
const MetaReference = "portal_reference"

// Search implements billing.Provider.
func (p *Provider) Search(ctx context.Context, q billing.CustomerQuery) ([]billing.Customer, error) {
	if err := p.reading(ctx, "account"); err != nil {
		return nil, err
	}
	var found []Customer
	var err error
	switch {
	case q.Email != "":
		found, err = p.ledger.SearchCustomers(ctx, q.Email, "")
	case q.Reference != "":
		found, err = p.ledger.SearchCustomers(ctx, "", q.Reference)
		if c, cerr := p.ledger.Customer(ctx, q.Reference); cerr == nil && strings.HasPrefix(c.ID, "cus_") {
			found = []Customer{c}
		}
	}
	if err != nil {
		return nil, readError(err)
	}
	list := []billing.Customer{}
	for _, c := range found[:min(len(found), 20)] {
		list = append(list, customerOf(c))
	}
	return list, nil
}
