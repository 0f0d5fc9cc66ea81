package billing

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ConfirmWithin is how long a payment of an invoice waits for its customer to
// confirm it. After that it counts as not made; the invoice stays a debt.
const ConfirmWithin = time.Hour

// DeclineCode is the code that a customer's page may know of a payment that
// did not work, by Stripe's code and decline code of it. Everything that hints
// at a stolen card or at fraud is a plain decline.
// Source: https://docs.stripe.com/declines/codes.
func DeclineCode(code, decline string) string {
	switch code {
	case "expired_card", "incorrect_cvc", "incorrect_number", "processing_error", "insufficient_funds", "payment_method_required":
		return code
	case "authentication_required", "invoice_payment_intent_requires_action", "subscription_payment_intent_requires_action",
		"payment_intent_authentication_failure":
		return "authentication_required"
	}
	switch decline {
	case "insufficient_funds", "expired_card", "authentication_required":
		return decline
	}
	return "card_declined"
}

// PaysFor is the id of the payment method that v is paid with where nobody
// names another: its subscription's, else the customer's; "" where there is
// none.
func (a *Account) PaysFor(v *Invoice) string {
	if s, ok := a.Subscription(v.Subscription); ok && s.DefaultPaymentMethod != "" {
		return s.DefaultPaymentMethod
	}
	return a.Customer.DefaultPaymentMethod
}

// Removable says why the payment method id cannot be removed: nil where it
// can, NotFound where it is not there, Refused "in_use" where it pays for a
// subscription that goes on or for a debt, and "last_payment_method" where a
// subscription that is charged automatically would have none left.
func (a *Account) Removable(id string) error {
	refuse := func(code, why string) error {
		return &Error{Fault: Refused, Code: code, Param: id, Err: errors.New(why)}
	}
	if _, ok := a.PaymentMethod(id); !ok {
		return &Error{Fault: NotFound, Code: "resource_missing", Param: id}
	}
	charged := false
	for i := range a.Subscriptions {
		s := &a.Subscriptions[i]
		if s.Ended() {
			continue
		}
		charged = charged || !s.SendInvoice
		own := s.DefaultPaymentMethod
		if own == id || own == "" && !s.SendInvoice && a.Customer.DefaultPaymentMethod == id {
			return refuse("in_use", "it pays for subscription "+s.ID)
		}
	}
	for i := range a.Debts {
		v := &a.Debts[i]
		if v.Processing && v.Method != nil && v.Method.ID == id || !v.SendInvoice && a.PaysFor(v) == id {
			return refuse("in_use", "it pays for invoice "+v.ID)
		}
	}
	if charged && len(a.PaymentMethods) == 1 {
		return refuse("last_payment_method", "a subscription goes on and this is the only payment method")
	}
	return nil
}

// PayWhat returns the debts of a that action.Invoices name, in that order.
// Refused "not_changeable" where one is no debt any more or is being paid,
// "currency_mismatch" where they cannot be summed up. missing is asked for an
// invoice that is not among the debts and says why: NotFound for one that is
// not the customer's, nil for one that is.
func (a *Account) PayWhat(action Action, missing func(invoice string) error) ([]Invoice, error) {
	if n := len(action.Invoices); n > MaxPay {
		return nil, &Error{Fault: Refused, Code: "invalid_request", Param: "invoices", Err: fmt.Errorf("%d invoices, at most %d are paid at once", n, MaxPay)}
	}
	var out []Invoice
	for n, id := range action.Invoices {
		if slices.Contains(action.Invoices[:n], id) {
			return nil, &Error{Fault: Refused, Code: "invalid_request", Param: "invoices", Err: errors.New("an invoice is named twice")}
		}
		i := slices.IndexFunc(a.Debts, func(v Invoice) bool { return v.ID == id })
		if i < 0 {
			if err := missing(id); err != nil {
				return nil, err
			}
			return nil, &Error{Fault: Refused, Code: "not_changeable", Param: id, Err: errors.New("the invoice is not a debt")}
		}
		v := a.Debts[i]
		if v.Processing {
			return nil, &Error{Fault: Refused, Code: "not_changeable", Param: id, Err: errors.New("the invoice is being paid")}
		}
		if len(out) > 0 && v.AmountRemaining.Currency != out[0].AmountRemaining.Currency {
			return nil, &Error{Fault: Refused, Code: "currency_mismatch", Param: id, Err: errors.New("the invoices are in different currencies")}
		}
		out = append(out, v)
	}
	return out, nil
}

// Pays makes p show what paying invoices comes to, one line each, and lets
// p.ObjectVersion move whenever one of them does.
func (p *Preview) Pays(invoices []Invoice) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", p.ObjectVersion)
	for _, v := range invoices {
		m := v.AmountRemaining
		p.Lines = append(p.Lines, Line{Description: v.Number, Amount: m})
		p.Total = Money{p.Total.Amount + m.Amount, m.Currency}
		fmt.Fprintf(h, "%s %s %d %s\n", v.ID, v.Status, m.Amount, m.Currency)
	}
	p.Subtotal, p.DueNow, p.Tax = p.Total, p.Total, Money{Currency: p.Total.Currency}
	p.ObjectVersion = hex.EncodeToString(h.Sum(nil)[:12])
}
