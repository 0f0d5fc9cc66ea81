package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Invoice reads an invoice.
func (l *Ledger) Invoice(ctx context.Context, id string) (Invoice, error) {
	return read(ctx, l, func(w *work) (Invoice, error) { return get[Invoice](w, "invoice", id) })
}

// Invoices returns one page, newest first, and whether there are more in the
// direction of the page.
func (l *Ledger) Invoices(ctx context.Context, f InvoiceFilter) ([]Invoice, bool, error) {
	if f.Limit == 0 {
		f.Limit = 10
	}
	if f.Limit < 1 || f.Limit > 100 {
		return nil, false, invalid("limit", "A page has 1 to 100 objects.")
	}
	if f.EndingBefore != "" && (f.StartingAfter != "" || f.Customer+f.Subscription == "") {
		return nil, false, invalid("ending_before", "ending_before needs a customer or a subscription, and no starting_after.")
	}
	page, err := read(ctx, l, func(w *work) ([]Invoice, error) {
		page := []Invoice{}
		take := func(inv Invoice) bool {
			if (f.Subscription == "" || inv.Subscription == f.Subscription) && (f.Status == "" || inv.Status == f.Status) {
				page = append(page, inv)
			}
			return len(page) <= f.Limit
		}
		if f.Subscription != "" && f.Customer == "" {
			s, err := get[Subscription](w, "subscription", f.Subscription)
			if err != nil {
				return nil, err
			}
			f.Customer = s.Customer
		}
		if f.Customer != "" {
			if _, err := get[Customer](w, "customer", f.Customer); err != nil {
				return nil, err
			}
			behind := f.StartingAfter + f.EndingBefore
			if behind != "" {
				inv, err := get[Invoice](w, "invoice", behind)
				if err != nil {
					return nil, err
				}
				if inv.Customer != f.Customer {
					return nil, missing("invoice", behind)
				}
			}
			err := ofCustomer(w, "invoice", f.Customer, behind, f.EndingBefore != "", take)
			return page, err
		}
		list, err := all[Invoice](w, "invoice")
		if err != nil {
			return nil, err
		}
		slices.SortStableFunc(list, func(a, b Invoice) int { return b.Created.Compare(a.Created) })
		if f.StartingAfter != "" {
			i := slices.IndexFunc(list, func(inv Invoice) bool { return inv.ID == f.StartingAfter })
			if i < 0 {
				return nil, missing("invoice", f.StartingAfter)
			}
			list = list[i+1:]
		}
		for _, inv := range list {
			if !take(inv) {
				break
			}
		}
		return page, nil
	})
	if err != nil {
		return nil, false, err
	}
	more := len(page) > f.Limit
	if more {
		page = page[:f.Limit]
	}
	if f.EndingBefore != "" {
		slices.Reverse(page)
	}
	return page, more, nil
}

// draft is a new invoice as things stand, in memory. It changes nothing.
func (w *work) draft(cus *Customer, s *Subscription, lines []InvoiceLine, reason BillingReason) Invoice {
	inv := Invoice{
		Created: w.now, Customer: cus.ID, CustomerName: cus.Name, CustomerEmail: cus.Email, CustomerAddress: cus.Address,
		CustomerTaxIDs: slices.Clone(cus.TaxIDs), CustomFields: slices.Clone(cus.InvoiceFields),
		Subscription: s.ID, Status: billing.InvoiceDraft, BillingReason: reason, CollectionMethod: s.CollectionMethod, Currency: s.Currency,
		Lines: lines, TaxPercent: cus.TaxPercent, StartingBalance: cus.Balance, PeriodStart: w.now, PeriodEnd: w.now,
	}
	for _, l := range inv.Lines {
		if l.PeriodEnd.After(inv.PeriodEnd) {
			inv.PeriodEnd = l.PeriodEnd
		}
	}
	inv.sum()
	return inv
}

// sum works out the sums of inv from its lines.
func (inv *Invoice) sum() {
	inv.Subtotal, inv.Credits, inv.Tax = 0, 0, 0
	for i := range inv.Lines {
		l := &inv.Lines[i]
		var credits int64
		for _, c := range l.Credits {
			credits += c.Amount
		}
		l.Tax = taxOn(l.Amount-credits, inv.TaxPercent)
		inv.Subtotal += l.Amount
		inv.Credits += credits
		inv.Tax += l.Tax
	}
	inv.Total = inv.Subtotal - inv.Credits + inv.Tax
	inv.settleBalance()
}

// settleBalance works out what is due after the balance. What is left below
// zero, of the balance or of the invoice itself, stays as credit.
func (inv *Invoice) settleBalance() {
	sum := inv.Total + inv.StartingBalance
	inv.AmountDue, inv.EndingBalance = max(sum, 0), min(sum, 0)
	inv.AmountRemaining = inv.AmountDue
}

// issue finalizes a draft: number, balance, and the payment where there is
// something to pay. It reports whether the invoice is paid. It changes cus and
// inv, which the caller writes; no more than the balance's transaction and the
// payment intent is written here.
func (w *work) issue(cus *Customer, s *Subscription, inv *Invoice, onSession bool, returnURL string) (bool, error) {
	inv.ID = w.id("in")
	inv.Number = fmt.Sprintf("%s-%04d", cus.InvoicePrefix, cus.NextInvoiceSequence)
	inv.Status = billing.InvoiceOpen
	cus.NextInvoiceSequence++
	for i := range inv.Lines {
		inv.Lines[i].ID = w.id("il")
	}
	if err := w.applyCredits(inv, true); err != nil {
		return false, err
	}
	if moved := inv.EndingBalance - inv.StartingBalance; moved != 0 {
		if _, err := w.moveBalance(cus, moved, "applied_to_invoice", inv.ID); err != nil {
			return false, err
		}
	}
	if err := w.index("invoice", cus.ID, inv.ID, inv.Created); err != nil {
		return false, err
	}
	if inv.AmountDue == 0 {
		inv.Status, inv.PaidAt, inv.Attempted = billing.InvoicePaid, w.now, true
		return true, nil
	}
	pi := PaymentIntent{ID: w.id("pi"), Created: w.now, Customer: cus.ID, Invoice: inv.ID, Amount: inv.AmountDue, Currency: inv.Currency, Status: RequiresPaymentMethod}
	inv.PaymentIntent = pi.ID
	if inv.CollectionMethod == SendInvoice {
		inv.DueDate = w.now.AddDate(0, 0, s.DaysUntilDue)
		return false, w.putIntent(&pi)
	}
	pm := s.DefaultPaymentMethod
	if pm == "" {
		pm = cus.DefaultPaymentMethod
	}
	paid, err := w.attempt(inv, pi, pm, onSession, returnURL)
	if err == nil && !paid && !inv.Processing {
		inv.NextPaymentAttempt = inv.Created.AddDate(0, 0, retryDays[0])
	}
	return paid, err
}

// debitDays is how many days a bank debit takes (Stripe: up to 4 for ACH, 5 for
// SEPA).
const debitDays = 5

// attempt tries to pay inv, and writes the payment intent.
func (w *work) attempt(inv *Invoice, pi PaymentIntent, paymentMethod string, onSession bool, returnURL string) (bool, error) {
	inv.Attempted = true
	inv.AttemptCount++
	pi.PaymentMethod, pi.Status, pi.LastErrorCode, pi.LastDeclineCode = paymentMethod, RequiresPaymentMethod, "card_declined", "generic_decline"
	if returnURL != "" {
		pi.ReturnURL = returnURL
	}
	if paymentMethod == "" {
		pi.LastErrorCode, pi.LastDeclineCode = "payment_method_required", ""
		return false, w.putIntent(&pi)
	}
	pm, err := get[PaymentMethod](w, "payment_method", paymentMethod)
	if err != nil {
		return false, err
	}
	switch {
	case pm.expired(w.now), pm.Behavior == CardExpired:
		pi.LastErrorCode, pi.LastDeclineCode = "expired_card", ""
	case pm.debit():
		pi.Status, pi.LastErrorCode, pi.LastDeclineCode = PaymentProcessing, "", ""
		pi.SettlesAt = w.now.AddDate(0, 0, debitDays)
		inv.Processing, inv.NextPaymentAttempt = true, time.Time{}
	case pm.Behavior == CardAsks && onSession, pm.Behavior == CardAsksAlways:
		pi.Status, pi.LastErrorCode, pi.LastDeclineCode = RequiresAction, "authentication_required", ""
	case pm.Behavior == CardInsufficientFunds, pm.Behavior == CardLost:
		pi.LastDeclineCode = string(pm.Behavior)
	case pm.Behavior != CardDeclinesCharges:
		pi.Status, pi.LastErrorCode, pi.LastDeclineCode = PaymentSucceeded, "", ""
		inv.markPaid(w.now)
	}
	if err := w.charged(&pi); err != nil {
		return false, err
	}
	return inv.Status == billing.InvoicePaid, w.putIntent(&pi)
}

// putIntent writes pi and keeps its place among what falls due.
func (w *work) putIntent(pi *PaymentIntent) error {
	if pi.Status != PaymentProcessing {
		pi.SettlesAt = time.Time{}
	}
	old, _, err := lookup[PaymentIntent](w.tx, "payment_intent", pi.ID)
	if err != nil {
		return err
	}
	if err := w.schedule("payment_intent", pi.ID, old.SettlesAt, pi.SettlesAt); err != nil {
		return err
	}
	return write(w.tx, "payment_intent", pi.ID, pi)
}

// paymentDue says what became of a bank debit. One that failed leaves the
// invoice open, to be tried again on the next of the retry days.
func (w *work) paymentDue(id string) error {
	pi, err := get[PaymentIntent](w, "payment_intent", id)
	if err != nil {
		return err
	}
	inv, err := w.openInvoice(pi.Invoice)
	if err != nil {
		return err
	}
	pm, err := get[PaymentMethod](w, "payment_method", pi.PaymentMethod)
	if err != nil {
		return err
	}
	inv.Processing = false
	if pm.Behavior == CardWorks {
		pi.Status = PaymentSucceeded
		inv.markPaid(w.now)
		if err := w.charged(&pi); err != nil {
			return err
		}
		if err := w.putIntent(&pi); err != nil {
			return err
		}
		if err := w.settled(&inv); err != nil {
			return err
		}
		return w.effect("payment_intent.settle", pi.Customer, pi.ID)
	}
	pi.Status, pi.LastErrorCode, pi.LastDeclineCode = RequiresPaymentMethod, string(pm.Behavior), ""
	if err := w.charged(&pi); err != nil {
		return err
	}
	if err := w.putIntent(&pi); err != nil {
		return err
	}
	s, err := get[Subscription](w, "subscription", inv.Subscription)
	if err != nil {
		return err
	}
	if inv.CollectionMethod == ChargeAutomatically && !s.ended() && !inv.ForPendingUpdate {
		for _, d := range slices.Backward(retryDays) {
			if at := inv.Created.AddDate(0, 0, d); at.After(w.now) {
				inv.NextPaymentAttempt = at
			}
		}
	}
	if err := w.putInvoice(&inv); err != nil {
		return err
	}
	if err := w.effect("payment_intent.fail", pi.Customer, pi.ID); err != nil {
		return err
	}
	switch {
	case inv.CollectionMethod == SendInvoice, inv.ForPendingUpdate, s.ended():
		return nil
	case inv.NextPaymentAttempt.IsZero():
		return w.end(&s, billing.Canceled, "subscription.end_unpaid")
	case s.Status == billing.Active:
		s.Status = billing.PastDue
		return w.putSubscription(&s)
	}
	return nil
}

func (inv *Invoice) markPaid(now time.Time) {
	inv.Status, inv.PaidAt = billing.InvoicePaid, now
	inv.AmountPaid, inv.AmountRemaining = inv.AmountDue, 0
	inv.NextPaymentAttempt, inv.Processing = time.Time{}, false
}

// cardError is the failure of inv's last payment attempt.
func (w *work) cardError(inv *Invoice) *Error {
	e := &Error{Status: 402, Type: CardError, Code: "card_declined", DeclineCode: "generic_decline", Message: "Your card was declined.", PaymentIntent: inv.PaymentIntent}
	pi, found, err := lookup[PaymentIntent](w.tx, "payment_intent", inv.PaymentIntent)
	if err != nil || !found {
		return e
	}
	e.Code, e.DeclineCode = pi.LastErrorCode, pi.LastDeclineCode
	switch pi.LastErrorCode {
	case "expired_card":
		e.Message = "Your card has expired."
	case "authentication_required":
		e.Message = "This payment requires the customer to confirm it."
	case "payment_method_required":
		e.Message = "There is no payment method to charge."
	}
	return e
}

// putInvoice writes inv and keeps its place among what falls due.
func (w *work) putInvoice(inv *Invoice) error {
	old, _, err := lookup[Invoice](w.tx, "invoice", inv.ID)
	if err != nil {
		return err
	}
	if err := w.schedule("invoice", inv.ID, old.NextPaymentAttempt, inv.NextPaymentAttempt); err != nil {
		return err
	}
	return write(w.tx, "invoice", inv.ID, inv)
}

// settled writes a paid invoice and does what its payment brings about: a
// pending update applies, a subscription without other debts is active again.
func (w *work) settled(inv *Invoice) error {
	if err := w.putInvoice(inv); err != nil {
		return err
	}
	if inv.Subscription == "" {
		return nil
	}
	s, err := get[Subscription](w, "subscription", inv.Subscription)
	if err != nil {
		return err
	}
	switch {
	case inv.ForPendingUpdate:
		if s.PendingUpdate == nil || s.PendingUpdate.Invoice != inv.ID {
			return nil
		}
		s.apply(s.PendingUpdate.Items, s.PendingUpdate.BillingCycleAnchor)
		s.PendingUpdate = nil
	case s.Status == billing.PastDue || s.Status == billing.Incomplete:
		open, err := w.openInvoices(&s)
		if err != nil {
			return err
		}
		if len(open) > 0 {
			return nil
		}
		s.Status = billing.Active
	default:
		return nil
	}
	return w.putSubscription(&s)
}

// openInvoice reads an invoice that can be paid or voided.
func (w *work) openInvoice(id string) (Invoice, error) {
	inv, err := get[Invoice](w, "invoice", id)
	if err == nil && inv.Status != billing.InvoiceOpen {
		err = &Error{Status: 400, Type: InvalidRequest, Code: "invoice_not_open", Param: "invoice", Message: "This invoice is " + string(inv.Status) + "."}
	}
	return inv, err
}

// PayInvoice is POST /v1/invoices/{id}/pay. CardError card_declined,
// expired_card or payment_method_required; authentication_required where the
// customer has to confirm first. With a bank debit the invoice stays open and is
// processing.
func (l *Ledger) PayInvoice(ctx context.Context, c Call, id string, p PayParams) (Invoice, error) {
	return change(ctx, l, c, "invoice.pay", []any{id, p}, func(w *work) (Invoice, error) {
		inv, err := w.openInvoice(id)
		if err != nil {
			return inv, err
		}
		if p.ReturnURL != "" && !isWebURL(p.ReturnURL) {
			return inv, &Error{Status: 400, Type: InvalidRequest, Code: "url_invalid", Param: "return_url", Message: "Not a valid URL"}
		}
		if inv.Processing {
			return inv, processing()
		}
		pm := p.PaymentMethod
		if err := w.owns(inv.Customer, pm); err != nil {
			return inv, err
		}
		if pm == "" {
			if pm, err = w.methodOf(&inv); err != nil {
				return inv, err
			}
		}
		paid, err := w.pay(&inv, pm, !p.OffSession, p.ReturnURL)
		if err != nil {
			return inv, err
		}
		if !paid && !inv.Processing {
			return inv, w.cardError(&inv)
		}
		return inv, w.effect("invoice.pay", inv.Customer, inv.ID)
	})
}

// PayByHand is what the customer does on the page of an invoice: it is paid with
// a payment method that is not kept. CardError as PayInvoice, but for a card that
// asks: there the payment requires action. The payment intent is returned with
// an error as well, where there is one.
func (l *Ledger) PayByHand(ctx context.Context, c Call, intent string, p CardParams) (PaymentIntent, error) {
	pi, err := change(ctx, l, c, "invoice.pay_by_hand", []any{intent, p.known()}, func(w *work) (PaymentIntent, error) {
		pi, err := get[PaymentIntent](w, "payment_intent", intent)
		if err != nil {
			return pi, err
		}
		inv, err := w.openInvoice(pi.Invoice)
		if err != nil {
			return pi, err
		}
		pm, card, err := p.card(w.now)
		switch {
		case err != nil:
			return pi, err
		case inv.Processing:
			return pi, processing()
		case card.Declined:
			return pi, &Error{Status: 402, Type: CardError, Code: "card_declined", DeclineCode: "generic_decline", Message: "Your card was declined."}
		case pm.debit() && inv.ForPendingUpdate:
			return pi, invalid("card", "A bank debit takes longer than the change waits for its payment.")
		}
		pm.ID, pm.Created = w.id("pm"), w.now
		if err := write(w.tx, "payment_method", pm.ID, pm); err != nil {
			return pi, err
		}
		paid, err := w.pay(&inv, pm.ID, true, "")
		if err != nil {
			return pi, err
		}
		if pi, err = get[PaymentIntent](w, "payment_intent", intent); err != nil {
			return pi, err
		}
		if !paid && !inv.Processing && pi.Status != RequiresAction {
			return pi, w.cardError(&inv)
		}
		return pi, w.effect("invoice.pay", inv.Customer, inv.ID)
	})
	if err == nil {
		return pi, nil
	}
	pi, rerr := l.PaymentIntent(ctx, intent)
	return pi, cmp.Or(rerr, err)
}

// processing refuses what would touch a payment that is on its way.
func processing() *Error {
	return &Error{Status: 400, Type: InvalidRequest, Code: "payment_intent_unexpected_state", Param: "invoice", Message: "A payment of this invoice is processing."}
}

// methodOf is what inv is paid with: its subscription's method, else its
// customer's.
func (w *work) methodOf(inv *Invoice) (string, error) {
	if inv.Subscription != "" {
		s, err := get[Subscription](w, "subscription", inv.Subscription)
		if err != nil || s.DefaultPaymentMethod != "" {
			return s.DefaultPaymentMethod, err
		}
	}
	cus, err := get[Customer](w, "customer", inv.Customer)
	return cus.DefaultPaymentMethod, err
}

// pay tries to pay an open invoice and writes what came of it.
func (w *work) pay(inv *Invoice, pm string, onSession bool, returnURL string) (bool, error) {
	pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
	if err != nil {
		return false, err
	}
	paid, err := w.attempt(inv, pi, pm, onSession, returnURL)
	if err != nil {
		return false, err
	}
	if !paid {
		return false, w.putInvoice(inv)
	}
	return true, w.settled(inv)
}

// invoiceDue tries again to collect an invoice.
func (w *work) invoiceDue(id string) error {
	inv, err := w.openInvoice(id)
	if err != nil {
		return err
	}
	pm, err := w.methodOf(&inv)
	if err != nil {
		return err
	}
	tried := slices.IndexFunc(retryDays, func(d int) bool { return !inv.Created.AddDate(0, 0, d).Before(w.now) })
	inv.NextPaymentAttempt = time.Time{}
	last := tried < 0 || tried == len(retryDays)-1
	if !last {
		inv.NextPaymentAttempt = inv.Created.AddDate(0, 0, retryDays[tried+1])
	}
	paid, err := w.pay(&inv, pm, false, "")
	if err != nil {
		return err
	}
	if err := w.effect("invoice.retry", inv.Customer, inv.ID); err != nil || paid || inv.Processing || !last {
		return err
	}
	s, err := get[Subscription](w, "subscription", inv.Subscription)
	if err != nil || s.ended() {
		return err
	}
	return w.end(&s, billing.Canceled, "subscription.end_unpaid")
}

// VoidInvoice is POST /v1/invoices/{id}/void. Balance that the invoice used
// comes back, and a pending update that waits for it is dropped.
func (l *Ledger) VoidInvoice(ctx context.Context, c Call, id string) (Invoice, error) {
	return change(ctx, l, c, "invoice.void", id, func(w *work) (Invoice, error) {
		inv, err := w.openInvoice(id)
		if err != nil {
			return inv, err
		}
		if inv.Processing {
			return inv, processing()
		}
		if inv.ForPendingUpdate {
			s, err := get[Subscription](w, "subscription", inv.Subscription)
			if err != nil {
				return inv, err
			}
			if s.PendingUpdate != nil && s.PendingUpdate.Invoice == inv.ID {
				s.PendingUpdate = nil
				if err := w.putSubscription(&s); err != nil {
					return inv, err
				}
			}
		}
		if err := w.void(&inv); err != nil {
			return inv, err
		}
		return inv, w.effect("invoice.void", inv.Customer, inv.ID)
	})
}

// void voids an open invoice and writes it, its customer and its payment
// intent.
func (w *work) void(inv *Invoice) error {
	if moved := inv.EndingBalance - inv.StartingBalance; moved != 0 {
		cus, err := get[Customer](w, "customer", inv.Customer)
		if err != nil {
			return err
		}
		if _, err := w.moveBalance(&cus, -moved, "unapplied_from_invoice", inv.ID); err != nil {
			return err
		}
		if err := write(w.tx, "customer", cus.ID, cus); err != nil {
			return err
		}
	}
	if err := w.reinstateCredits(inv); err != nil {
		return err
	}
	pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
	if err != nil {
		return err
	}
	pi.Status = PaymentCanceled
	if err := w.putIntent(&pi); err != nil {
		return err
	}
	inv.Processing = false
	inv.Status, inv.VoidedAt, inv.NextPaymentAttempt = billing.InvoiceVoid, w.now, time.Time{}
	return w.putInvoice(inv)
}

// PaymentIntent reads the payment of an invoice.
func (l *Ledger) PaymentIntent(ctx context.Context, id string) (PaymentIntent, error) {
	return read(ctx, l, func(w *work) (PaymentIntent, error) { return get[PaymentIntent](w, "payment_intent", id) })
}

// ConfirmPayment is what the customer does on the confirmation page of a
// payment that requires action: confirm, which pays the invoice, or decline,
// which leaves it waiting for another card.
func (l *Ledger) ConfirmPayment(ctx context.Context, c Call, id string, confirm bool) (PaymentIntent, error) {
	return change(ctx, l, c, "payment_intent.confirm", []any{id, confirm}, func(w *work) (PaymentIntent, error) {
		pi, err := get[PaymentIntent](w, "payment_intent", id)
		if err != nil {
			return pi, err
		}
		if pi.Status != RequiresAction {
			return pi, &Error{Status: 400, Type: InvalidRequest, Code: "payment_intent_unexpected_state", Param: "payment_intent", Message: "This PaymentIntent's status is " + string(pi.Status) + "."}
		}
		if !confirm {
			pi.Status, pi.LastErrorCode = RequiresPaymentMethod, "payment_intent_authentication_failure"
			if err := w.putIntent(&pi); err != nil {
				return pi, err
			}
			return pi, w.effect("payment_intent.decline", pi.Customer, pi.ID)
		}
		inv, err := w.openInvoice(pi.Invoice)
		if err != nil {
			return pi, err
		}
		pi.Status, pi.LastErrorCode = PaymentSucceeded, ""
		if err := w.charged(&pi); err != nil {
			return pi, err
		}
		if err := w.putIntent(&pi); err != nil {
			return pi, err
		}
		inv.markPaid(w.now)
		if err := w.settled(&inv); err != nil {
			return pi, err
		}
		return pi, w.effect("payment_intent.confirm", pi.Customer, pi.ID)
	})
}

// ConfirmIntent is POST /v1/payment_intents/{id}/confirm with a return_url, for
// a payment that requires action: it says where the confirmation page leads back
// to.
func (l *Ledger) ConfirmIntent(ctx context.Context, c Call, id, returnURL string) (PaymentIntent, error) {
	return change(ctx, l, c, "payment_intent.return_url", []any{id, returnURL}, func(w *work) (PaymentIntent, error) {
		pi, err := get[PaymentIntent](w, "payment_intent", id)
		if err != nil {
			return pi, err
		}
		switch {
		case pi.Status != RequiresAction:
			return pi, &Error{Status: 400, Type: InvalidRequest, Code: "payment_intent_unexpected_state", Param: "payment_intent", Message: "This PaymentIntent's status is " + string(pi.Status) + "."}
		case !isWebURL(returnURL):
			return pi, &Error{Status: 400, Type: InvalidRequest, Code: "url_invalid", Param: "return_url", Message: "Not a valid URL"}
		}
		pi.ReturnURL = returnURL
		return pi, w.putIntent(&pi)
	})
}

// PaymentIntents lists a customer's payments of invoices, newest first.
func (l *Ledger) PaymentIntents(ctx context.Context, customer string) ([]PaymentIntent, error) {
	return read(ctx, l, func(w *work) ([]PaymentIntent, error) {
		invoices, err := listOf[Invoice](w, "invoice", customer)
		if err != nil {
			return nil, err
		}
		var list []PaymentIntent
		for _, inv := range invoices {
			if inv.PaymentIntent == "" {
				continue
			}
			pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
			if err != nil {
				return nil, err
			}
			list = append(list, pi)
		}
		return list, nil
	})
}

// Preview is POST /v1/invoices/create_preview. Code invoice_upcoming_none
// where there is no next invoice.
func (l *Ledger) Preview(ctx context.Context, p PreviewParams) (Invoice, error) {
	return read(ctx, l, func(w *work) (Invoice, error) { return w.preview(p) })
}

func (w *work) preview(p PreviewParams) (Invoice, error) {
	none := &Error{Status: 404, Type: InvalidRequest, Code: "invoice_upcoming_none", Message: "No upcoming invoices for customer."}
	s, err := get[Subscription](w, "subscription", p.Subscription)
	if err != nil {
		return Invoice{}, err
	}
	if p.Customer != "" && p.Customer != s.Customer {
		return Invoice{}, missing("subscription", p.Subscription)
	}
	cus, err := get[Customer](w, "customer", s.Customer)
	if err != nil {
		return Invoice{}, err
	}
	if s.PendingUpdate != nil && len(p.Items) > 0 { // the update would drop it
		inv, err := get[Invoice](w, "invoice", s.PendingUpdate.Invoice)
		if err != nil {
			return Invoice{}, err
		}
		cus.Balance -= inv.EndingBalance - inv.StartingBalance
	}
	if p.CancelAtPeriodEnd != nil {
		s.CancelAtPeriodEnd = *p.CancelAtPeriodEnd
	}
	if len(p.Items) > 0 {
		if !p.ProrationDate.IsZero() && p.ProrationDate.Before(w.now) && !p.ProrationDate.Before(s.periodStart()) {
			w.now = p.ProrationDate // so that the same moment gives the same periods
		}
		r, err := w.revise(&s, p.Items, p.ProrationBehavior, p.ProrationDate)
		if err != nil {
			return Invoice{}, err
		}
		if len(r.lines) > 0 && !p.Recurring {
			return w.draft(&cus, &s, r.lines, ReasonSubscriptionUpdate), nil
		}
		s.apply(r.items, r.anchor)
		if !p.Recurring && p.ProrationBehavior == AlwaysInvoice { // nothing is invoiced now
			return w.draft(&cus, &s, nil, ReasonSubscriptionUpdate), nil
		}
	}
	if s.ended() || s.Status == billing.Incomplete {
		return Invoice{}, none
	}
	lines, err := w.meteredLines(&s)
	if err != nil {
		return Invoice{}, err
	}
	w.now = s.periodEnd()
	if p.Recurring {
		cus.Balance = 0
	}
	switch {
	case !s.CancelAtPeriodEnd:
		end := nextBoundary(s.BillingCycleAnchor, w.now, s.Items[0].Price.Interval, s.Items[0].Price.IntervalCount)
		lines = append(s.fullLines(w.now, end), lines...)
	case len(lines) == 0: // with metered items the usage is still to be paid
		return Invoice{}, none
	}
	inv := w.draft(&cus, &s, lines, ReasonUpcoming)
	return inv, w.applyCredits(&inv, false)
}
