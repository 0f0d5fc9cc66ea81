package sandbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// PastInvoice is an invoice that ImportInvoices enters.
type PastInvoice struct {
	// Subscription is whose items it is for, one whole period from Created on,
	// at their prices and quantities as they are now.
	Subscription string
	// Created is when it was made, before now.
	Created time.Time
	// Status is paid, void or uncollectible. Default: paid.
	Status billing.InvoiceStatus
}

// importChunk is how many invoices one transaction enters.
const importChunk = 250

// ImportInvoices enters a customer's history from before the books were
// opened, for demos and measurements: thousands take a second or two. The
// invoices are numbered in the order of their times, after those that are there
// already, are collected by card, leave the balance alone and have no effects.
// It returns their ids, oldest first. What a failure leaves is whole invoices,
// oldest first; all entries are checked before any is entered.
func (l *Ledger) ImportInvoices(ctx context.Context, customer string, list []PastInvoice) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.presentLocked(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.Clone(list)
	for i := range list {
		p := &list[i]
		p.Created = p.Created.UTC().Truncate(time.Second)
		switch p.Status {
		case "":
			p.Status = billing.InvoicePaid
		case billing.InvoicePaid, billing.InvoiceVoid, billing.InvoiceUncollectible:
		default:
			return nil, invalid("status", "Invoice %d: a past invoice is paid, void or uncollectible, not %q.", i, p.Status)
		}
		if !p.Created.Before(now) {
			return nil, invalid("created", "Invoice %d: %s is not in the past.", i, p.Created.Format(time.RFC3339))
		}
	}
	err = l.db.View(ctx, func(tx store.Tx) error {
		owned := map[string]bool{}
		for _, p := range list {
			if owned[p.Subscription] {
				continue
			}
			s, err := get[Subscription](&work{tx: tx}, "subscription", p.Subscription)
			if err != nil {
				return err
			}
			if s.Customer != customer {
				return missing("subscription", p.Subscription)
			}
			owned[p.Subscription] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b PastInvoice) int { return a.Created.Compare(b.Created) })
	ids := make([]string, 0, len(list))
	for chunk := range slices.Chunk(list, importChunk) {
		var entered []string
		err := l.update(ctx, now, "", func(w *work) error {
			w.quiet = true
			var err error
			entered, err = w.importInvoices(customer, chunk)
			return err
		})
		if err != nil {
			return ids, fmt.Errorf("importing invoices: %w", err)
		}
		ids = append(ids, entered...)
	}
	return ids, nil
}

func (w *work) importInvoices(customer string, list []PastInvoice) ([]string, error) {
	cus, err := get[Customer](w, "customer", customer)
	if err != nil {
		return nil, err
	}
	now := w.now
	defer func() { w.now = now }()
	var ids []string
	for _, p := range list {
		s, err := get[Subscription](w, "subscription", p.Subscription)
		if err != nil {
			return nil, err
		}
		w.now = p.Created
		price := s.Items[0].Price
		lines := s.fullLines(p.Created, nextBoundary(p.Created, p.Created, price.Interval, price.IntervalCount))
		inv := w.draft(&cus, &s, lines, ReasonSubscriptionCycle)
		inv.CollectionMethod, inv.StartingBalance = ChargeAutomatically, 0
		inv.settleBalance()
		inv.EndingBalance = 0
		inv.ID, inv.Number = w.id("in"), fmt.Sprintf("%s-%04d", cus.InvoicePrefix, cus.NextInvoiceSequence)
		cus.NextInvoiceSequence++
		for i := range inv.Lines {
			inv.Lines[i].ID = w.id("il")
		}
		if err := w.settleImported(&inv, &cus, &s, p.Status); err != nil {
			return nil, err
		}
		if err := w.index("invoice", cus.ID, inv.ID, inv.Created); err != nil {
			return nil, err
		}
		if err := w.putInvoice(&inv); err != nil {
			return nil, err
		}
		ids = append(ids, inv.ID)
	}
	return ids, write(w.tx, "customer", cus.ID, cus)
}

// settleImported brings a draft to the state that it was left in, with the
// payment intent that shows how.
func (w *work) settleImported(inv *Invoice, cus *Customer, s *Subscription, status billing.InvoiceStatus) error {
	inv.Status = status
	if inv.AmountDue == 0 {
		inv.Status, inv.PaidAt, inv.Attempted = billing.InvoicePaid, inv.Created, true
		return nil
	}
	pi := PaymentIntent{
		ID: w.id("pi"), Created: inv.Created, Customer: cus.ID, Invoice: inv.ID, Amount: inv.AmountDue, Currency: inv.Currency,
		Status: PaymentCanceled, PaymentMethod: s.DefaultPaymentMethod,
	}
	if pi.PaymentMethod == "" {
		pi.PaymentMethod = cus.DefaultPaymentMethod
	}
	inv.PaymentIntent = pi.ID
	switch status {
	case billing.InvoicePaid:
		pi.Status = PaymentSucceeded
		inv.Attempted, inv.AttemptCount = true, 1
		inv.markPaid(inv.Created)
	case billing.InvoiceVoid:
		inv.VoidedAt = inv.Created
	default:
		pi.Status, pi.LastErrorCode = RequiresPaymentMethod, "card_declined"
		inv.Attempted, inv.AttemptCount = true, 1
	}
	return write(w.tx, "payment_intent", pi.ID, pi)
}
