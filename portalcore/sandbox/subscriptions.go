package sandbox

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// pendingFor is how long a pending update waits, where the period does not
// end sooner (docs.stripe.com/billing/subscriptions/pending-updates-reference).
const pendingFor = 23 * time.Hour

// retryDays are the days after the first failed payment of an invoice on
// which it is tried again. After the last the subscription is canceled, which
// is what Stripe's retry settings do by default; the invoice stays open and is
// not tried any more.
var retryDays = []int{3, 5, 7}

// Subscription reads a subscription.
func (l *Ledger) Subscription(ctx context.Context, id string) (Subscription, error) {
	return read(ctx, l, func(w *work) (Subscription, error) { return get[Subscription](w, "subscription", id) })
}

// Subscriptions lists all of a customer's, ended ones too, newest first.
func (l *Ledger) Subscriptions(ctx context.Context, customer string) ([]Subscription, error) {
	return read(ctx, l, func(w *work) ([]Subscription, error) {
		return listOf[Subscription](w, "subscription", customer)
	})
}

// ended reports whether nothing happens to s any more.
func (s *Subscription) ended() bool {
	return s.Status == billing.Canceled || s.Status == billing.IncompleteExpired
}

func (s *Subscription) periodEnd() time.Time   { return s.Items[0].CurrentPeriodEnd }
func (s *Subscription) periodStart() time.Time { return s.Items[0].CurrentPeriodStart }

// due is when something happens to s by itself.
func (s *Subscription) due() time.Time {
	switch {
	case s.ID == "" || s.ended():
		return time.Time{}
	case s.Status == billing.Incomplete:
		return s.Created.Add(pendingFor)
	case s.PendingUpdate != nil && s.PendingUpdate.ExpiresAt.Before(s.periodEnd()):
		return s.PendingUpdate.ExpiresAt
	}
	return s.periodEnd()
}

// clone copies what a change would write through.
func (s Subscription) clone() Subscription {
	s.Items = slices.Clone(s.Items)
	if s.PendingUpdate != nil {
		p := *s.PendingUpdate
		p.Items = slices.Clone(p.Items)
		s.PendingUpdate = &p
	}
	return s
}

// put writes s, and keeps CancelAt and its place among what falls due.
func (w *work) putSubscription(s *Subscription) error {
	old, _, err := lookup[Subscription](w.tx, "subscription", s.ID)
	if err != nil {
		return err
	}
	if !s.ended() {
		s.CancelAt = time.Time{}
		if s.CancelAtPeriodEnd {
			s.CancelAt = s.periodEnd()
		}
	}
	if err := w.schedule("subscription", s.ID, old.due(), s.due()); err != nil {
		return err
	}
	return write(w.tx, "subscription", s.ID, s)
}

// CreateSubscription is POST /v1/subscriptions. With a trial the first
// invoice comes at its end; the period before is the trial.
func (l *Ledger) CreateSubscription(ctx context.Context, c Call, p SubscriptionCreate) (Subscription, error) {
	return change(ctx, l, c, "subscription.create", p, func(w *work) (Subscription, error) { return w.createSubscription(p) })
}

func (w *work) createSubscription(p SubscriptionCreate) (Subscription, error) {
	s := Subscription{
		ID: p.ID, Created: w.now, Customer: p.Customer, Status: billing.Active, CollectionMethod: p.CollectionMethod,
		BillingCycleAnchor: w.now, DefaultPaymentMethod: p.DefaultPaymentMethod, CancelAtPeriodEnd: p.CancelAtPeriodEnd, Metadata: maps.Clone(p.Metadata),
	}
	if s.ID == "" {
		s.ID = w.id("sub")
	}
	if _, found, err := lookup[Subscription](w.tx, "subscription", s.ID); err != nil {
		return s, err
	} else if found {
		return s, exists("id", s.ID)
	}
	cus, err := get[Customer](w, "customer", p.Customer)
	if err != nil {
		return s, err
	}
	if err := w.owns(cus.ID, p.DefaultPaymentMethod); err != nil {
		return s, err
	}
	switch {
	case p.PaymentBehavior != "" && p.PaymentBehavior != AllowIncomplete && p.PaymentBehavior != ErrorIfIncomplete:
		return s, invalid("payment_behavior", "A new subscription takes allow_incomplete or error_if_incomplete here.")
	case p.CollectionMethod == "" || p.CollectionMethod == ChargeAutomatically:
		s.CollectionMethod = ChargeAutomatically
	case p.CollectionMethod == SendInvoice:
		s.DaysUntilDue = p.DaysUntilDue
		if s.DaysUntilDue == 0 {
			s.DaysUntilDue = 30
		}
	default:
		return s, invalid("collection_method", "Invalid collection_method: %q.", p.CollectionMethod)
	}
	for i, it := range p.Items {
		if it.ID != "" || it.Deleted {
			return s, invalid(fmt.Sprintf("items[%d][id]", i), "A new subscription has no items yet.")
		}
	}
	if s.Items, err = w.itemsAfter(&s, p.Items); err != nil {
		return s, err
	}
	s.Currency = s.Items[0].Price.Currency
	if err := cus.use(s.Currency); err != nil {
		return s, err
	}
	if s.CancelAtPeriodEnd {
		s.CanceledAt = w.now
	}
	trial := p.TrialEnd.UTC().Truncate(time.Second)
	if !p.TrialEnd.IsZero() {
		if !trial.After(w.now) || trial.After(w.now.AddDate(5, 0, 0)) {
			return s, invalid("trial_end", "A trial ends in the future, within five years.")
		}
		s.Status, s.TrialStart, s.TrialEnd, s.BillingCycleAnchor = billing.Trialing, w.now, trial, trial
		s.setPeriod(w.now, trial)
	} else {
		s.setPeriod(w.now, nextBoundary(w.now, w.now, s.Items[0].Price.Interval, s.Items[0].Price.IntervalCount))
		inv := w.draft(&cus, &s, s.fullLines(s.periodStart(), s.periodEnd()), ReasonSubscriptionCreate)
		paid, err := w.issue(&cus, &s, &inv, true, "")
		if err != nil {
			return s, err
		}
		if !paid && !inv.Processing && s.CollectionMethod == ChargeAutomatically {
			if p.PaymentBehavior == ErrorIfIncomplete {
				return s, undone{w.cardError(&inv)}
			}
			s.Status = billing.Incomplete
		}
		if err := w.putInvoice(&inv); err != nil {
			return s, err
		}
		s.LatestInvoice = inv.ID
	}
	if err := write(w.tx, "customer", cus.ID, cus); err != nil {
		return s, err
	}
	if err := w.putSubscription(&s); err != nil {
		return s, err
	}
	if err := w.index("subscription", cus.ID, s.ID, s.Created); err != nil {
		return s, err
	}
	return s, w.effect("subscription.create", cus.ID, s.ID)
}

func (s *Subscription) setPeriod(start, end time.Time) {
	for i := range s.Items {
		s.Items[i].CurrentPeriodStart, s.Items[i].CurrentPeriodEnd = start, end
	}
}

// fullLines are the lines for one whole period that is paid before it: those of
// the items that are not metered.
func (s *Subscription) fullLines(start, end time.Time) []InvoiceLine {
	lines := make([]InvoiceLine, 0, len(s.Items))
	for _, it := range s.Items {
		if it.Price.Meter == "" {
			lines = append(lines, it.lines("", decimal.NewFromInt(it.Quantity), whole, start, end)...)
		}
	}
	return lines
}

// itemsAfter works out the items of s after params, and checks them. Items
// that are new or changed have the price as it is now.
func (w *work) itemsAfter(s *Subscription, params []ItemParams) ([]SubscriptionItem, error) {
	items := slices.Clone(s.Items)
	named := map[string]bool{}
	for n, p := range params {
		param := func(name string) string { return fmt.Sprintf("items[%d][%s]", n, name) }
		if p.Quantity != nil && (*p.Quantity < 0 || *p.Quantity > billing.MaxQuantity) {
			return nil, invalid(param("quantity"), "A quantity is 0 to %d.", billing.MaxQuantity)
		}
		i := len(items)
		if p.ID != "" {
			i = slices.IndexFunc(items, func(it SubscriptionItem) bool { return it.ID == p.ID })
			if i < 0 || named[p.ID] {
				e := missing("subscription_item", p.ID)
				e.Param = param("id")
				return nil, e
			}
			named[p.ID] = true
		} else {
			if p.Price == "" || p.Deleted {
				return nil, invalid(param("price"), "An item without id is a new one and needs a price.")
			}
			items = append(items, SubscriptionItem{ID: w.id("si"), Created: w.now, Quantity: 1})
			if len(s.Items) > 0 {
				items[i].CurrentPeriodStart, items[i].CurrentPeriodEnd = s.periodStart(), s.periodEnd()
			}
		}
		if p.Deleted {
			if items[i].Price.Meter != "" {
				return nil, invalid(param("deleted"), "The ledger does not take a metered item away.")
			}
			items = slices.Delete(items, i, i+1)
			continue
		}
		if p.Price != "" && p.Price != items[i].Price.ID {
			price, found, err := lookup[Price](w.tx, "price", p.Price)
			if err != nil {
				return nil, err
			}
			if !found {
				e := missing("price", p.Price)
				e.Param = param("price")
				return nil, e
			}
			if !price.Active {
				return nil, invalid(param("price"), "The price specified is inactive. This field only accepts active prices.")
			}
			if (price.Meter != "" || items[i].Price.Meter != "") && len(s.Items) > 0 {
				return nil, invalid(param("price"), "The ledger takes metered prices when a subscription is made, and leaves them as they are then.")
			}
			items[i].Price, items[i].Quantity = price, 1
			if price.Meter != "" {
				items[i].Quantity = 0
			}
		}
		if p.Quantity != nil {
			if items[i].Price.Meter != "" {
				return nil, invalid(param("quantity"), "Quantity should not be specified where the price's usage_type is metered.")
			}
			items[i].Quantity = *p.Quantity
		}
	}
	if len(items) == 0 {
		return nil, invalid("items", "A subscription needs at least one item.")
	}
	if len(items) > 20 {
		return nil, invalid("items", "A subscription has at most 20 items.")
	}
	first := items[0].Price
	prices := map[string]bool{}
	for _, it := range items {
		switch {
		case it.Price.Currency != first.Currency || s.Currency != "" && it.Price.Currency != s.Currency:
			return nil, &Error{Status: 400, Type: InvalidRequest, Code: "currency_mismatch", Param: "items", Message: "All prices of a subscription must have its currency."}
		case it.Price.Interval != first.Interval || it.Price.IntervalCount != first.IntervalCount:
			return nil, invalid("items", "All prices of a subscription must have the same interval.")
		case prices[it.Price.ID]:
			return nil, invalid("items", "Two items of a subscription cannot have the same price: %s.", it.Price.ID)
		}
		prices[it.Price.ID] = true
	}
	return items, nil
}

// revision is what an update of items would do.
type revision struct {
	items  []SubscriptionItem // with their periods
	anchor time.Time          // the new billing cycle anchor, or zero
	lines  []InvoiceLine      // what is invoiced at once
}

// revise works out an update of items at the ledger's time, with prorations
// for the moment at.
//
// While a trial runs there is nothing to prorate: no line, no invoice, and the
// trial stays, in another interval too. Otherwise each changed item gives a
// credit for the unused time of what it was and a debit for the remaining time
// of what it becomes. A new interval begins a new period now: all old items
// are credited, and all new ones billed for a whole period.
func (w *work) revise(s *Subscription, params []ItemParams, behavior ProrationBehavior, at time.Time) (revision, error) {
	var r revision
	switch s.Status {
	case billing.Active, billing.PastDue, billing.Trialing:
	case billing.Canceled, billing.IncompleteExpired:
		return r, &Error{Status: 400, Type: InvalidRequest, Code: "invalid_canceled_subscription_fields", Param: "items", Message: "A canceled subscription cannot be changed."}
	default:
		return r, invalid("items", "A subscription that is %s cannot be changed.", s.Status)
	}
	items, err := w.itemsAfter(s, params)
	if err != nil {
		return r, err
	}
	r.items = items
	if behavior != AlwaysInvoice && behavior != NoProration {
		return r, invalid("proration_behavior", "The sandbox takes always_invoice and none.")
	}
	if !at.IsZero() && behavior == NoProration {
		return r, invalid("proration_date", "You cannot pass proration_date with proration_behavior=none.")
	}
	if at.IsZero() {
		at = w.now
	} else if at.Before(s.periodStart()) || !at.Before(s.periodEnd()) {
		return r, &Error{Status: 400, Type: InvalidRequest, Code: "invalid_proration_date", Param: "proration_date", Message: "Cannot specify proration_date outside of current subscription period."}
	}
	was := func(id string) *SubscriptionItem {
		if i := slices.IndexFunc(s.Items, func(it SubscriptionItem) bool { return it.ID == id }); i >= 0 {
			return &s.Items[i]
		}
		return nil
	}
	resets := items[0].Price.Interval != s.Items[0].Price.Interval || items[0].Price.IntervalCount != s.Items[0].Price.IntervalCount
	if s.Status == billing.Trialing {
		return r, nil
	}
	credit := func(it SubscriptionItem) {
		if behavior == AlwaysInvoice {
			r.lines = append(r.lines, it.lines("Unused time", decimal.NewFromInt(it.Quantity), new(big.Rat).Neg(it.left(at)), at, it.CurrentPeriodEnd)...)
		}
	}
	for _, old := range s.Items {
		if !slices.ContainsFunc(items, func(it SubscriptionItem) bool { return it.ID == old.ID }) {
			credit(old)
		}
	}
	if resets {
		r.anchor = w.now
		end := nextBoundary(w.now, w.now, items[0].Price.Interval, items[0].Price.IntervalCount)
		after := Subscription{Items: items}
		for _, it := range items {
			if old := was(it.ID); old != nil {
				credit(*old)
			}
		}
		after.setPeriod(w.now, end)
		r.lines = append(r.lines, after.fullLines(w.now, end)...)
		return r, nil
	}
	for _, it := range items {
		old := was(it.ID)
		if old != nil && old.Price.ID == it.Price.ID && old.Quantity == it.Quantity {
			continue
		}
		if old != nil {
			credit(*old)
		}
		if behavior == AlwaysInvoice {
			r.lines = append(r.lines, it.lines("Remaining time", decimal.NewFromInt(it.Quantity), it.left(at), at, it.CurrentPeriodEnd)...)
		}
	}
	return r, nil
}

func (s *Subscription) apply(items []SubscriptionItem, anchor time.Time) {
	s.Items = items
	if !anchor.IsZero() {
		s.BillingCycleAnchor = anchor
	}
}

// UpdateSubscription is POST /v1/subscriptions/{id}. An update of items drops
// one that is pending.
func (l *Ledger) UpdateSubscription(ctx context.Context, c Call, id string, p SubscriptionUpdate) (Subscription, error) {
	return change(ctx, l, c, "subscription.update", []any{id, p}, func(w *work) (Subscription, error) { return w.updateSubscription(id, p) })
}

func (w *work) updateSubscription(id string, p SubscriptionUpdate) (Subscription, error) {
	s, err := get[Subscription](w, "subscription", id)
	if err != nil {
		return s, err
	}
	if s.ended() {
		return s, &Error{Status: 400, Type: InvalidRequest, Code: "invalid_canceled_subscription_fields", Message: "A canceled subscription cannot be changed."}
	}
	pending := p.PaymentBehavior == PendingIfIncomplete
	switch {
	case p.PaymentBehavior != "" && p.PaymentBehavior != AllowIncomplete && p.PaymentBehavior != ErrorIfIncomplete && !pending:
		return s, invalid("payment_behavior", "The sandbox takes allow_incomplete, pending_if_incomplete and error_if_incomplete.")
	case pending && (p.CancelAtPeriodEnd != nil || p.DefaultPaymentMethod != nil):
		return s, invalid("payment_behavior", "pending_if_incomplete takes items and proration only.")
	case pending && s.CollectionMethod == SendInvoice:
		return s, invalid("payment_behavior", "pending_if_incomplete is not there for collection_method=send_invoice.")
	case len(p.Items) == 0 && (!p.ProrationDate.IsZero() || pending):
		return s, invalid("items", "There is nothing to prorate without items.")
	case p.ReturnURL != "" && !isWebURL(p.ReturnURL):
		return s, &Error{Status: 400, Type: InvalidRequest, Code: "url_invalid", Param: "return_url", Message: "Not a valid URL"}
	}
	s.Metadata = mergeMetadata(s.Metadata, p.Metadata)
	if p.DefaultPaymentMethod != nil {
		if err := w.owns(s.Customer, *p.DefaultPaymentMethod); err != nil {
			return s, err
		}
		s.DefaultPaymentMethod = *p.DefaultPaymentMethod
	}
	if p.CancelAtPeriodEnd != nil && *p.CancelAtPeriodEnd != s.CancelAtPeriodEnd {
		s.CancelAtPeriodEnd, s.CanceledAt = *p.CancelAtPeriodEnd, time.Time{}
		if s.CancelAtPeriodEnd {
			s.CanceledAt = w.now
		}
	}
	if len(p.Items) == 0 {
		if err := w.putSubscription(&s); err != nil {
			return s, err
		}
		return s, w.effect("subscription.update", s.Customer, s.ID)
	}
	if pending {
		if debit, err := w.debited(&s); err != nil {
			return s, err
		} else if debit {
			return s, invalid("payment_behavior", "pending_if_incomplete is not there for payments that are known to have worked days later.")
		}
	}
	r, err := w.revise(&s, p.Items, p.ProrationBehavior, p.ProrationDate)
	if err != nil {
		return s, err
	}
	if s.PendingUpdate != nil {
		if err := w.dropPending(&s); err != nil {
			return s, err
		}
	}
	kind := "subscription.update"
	if len(r.lines) == 0 {
		s.apply(r.items, r.anchor)
	} else {
		cus, err := get[Customer](w, "customer", s.Customer)
		if err != nil {
			return s, err
		}
		inv := w.draft(&cus, &s, r.lines, ReasonSubscriptionUpdate)
		paid, err := w.issue(&cus, &s, &inv, true, p.ReturnURL)
		if err != nil {
			return s, err
		}
		switch {
		case paid || inv.Processing || s.CollectionMethod == SendInvoice:
			s.apply(r.items, r.anchor)
		case pending:
			kind = "subscription.update_pending"
			inv.ForPendingUpdate, inv.NextPaymentAttempt = true, time.Time{}
			s.PendingUpdate = &PendingUpdate{Items: r.items, ExpiresAt: w.now.Add(pendingFor), BillingCycleAnchor: r.anchor, Invoice: inv.ID}
			if end := s.periodEnd(); end.Before(s.PendingUpdate.ExpiresAt) {
				s.PendingUpdate.ExpiresAt = end
			}
		case p.PaymentBehavior == ErrorIfIncomplete:
			return s, undone{w.cardError(&inv)}
		default:
			s.apply(r.items, r.anchor)
			s.Status = billing.PastDue
		}
		s.LatestInvoice = inv.ID
		if err := w.putInvoice(&inv); err != nil {
			return s, err
		}
		if err := write(w.tx, "customer", cus.ID, cus); err != nil {
			return s, err
		}
	}
	if err := w.putSubscription(&s); err != nil {
		return s, err
	}
	return s, w.effect(kind, s.Customer, s.ID)
}

// debited reports whether s is paid by bank debit.
func (w *work) debited(s *Subscription) (bool, error) {
	if s.CollectionMethod == SendInvoice {
		return false, nil
	}
	id := s.DefaultPaymentMethod
	if id == "" {
		cus, err := get[Customer](w, "customer", s.Customer)
		if err != nil {
			return false, err
		}
		id = cus.DefaultPaymentMethod
	}
	if id == "" {
		return false, nil
	}
	pm, err := get[PaymentMethod](w, "payment_method", id)
	return pm.debit(), err
}

// dropPending drops s's pending update and voids its invoice; the caller
// writes s.
func (w *work) dropPending(s *Subscription) error {
	inv, err := get[Invoice](w, "invoice", s.PendingUpdate.Invoice)
	if err != nil {
		return err
	}
	s.PendingUpdate = nil
	return w.void(&inv)
}

// CancelSubscription ends it now, without proration (DELETE; invoice_now and
// prorate are false). Usage of the period is not billed then, as at Stripe.
func (l *Ledger) CancelSubscription(ctx context.Context, c Call, id string) (Subscription, error) {
	return change(ctx, l, c, "subscription.cancel", id, func(w *work) (Subscription, error) {
		s, err := get[Subscription](w, "subscription", id)
		if err == nil && s.ended() {
			err = missing("subscription", id)
		}
		if err != nil {
			return s, err
		}
		return s, w.end(&s, billing.Canceled, "subscription.cancel")
	})
}

// end ends s: a pending update is dropped, and its open invoices are not
// tried any more.
func (w *work) end(s *Subscription, status billing.SubscriptionStatus, kind string) error {
	if s.PendingUpdate != nil {
		if err := w.dropPending(s); err != nil {
			return err
		}
	}
	open, err := w.openInvoices(s)
	if err != nil {
		return err
	}
	for _, inv := range open {
		inv.NextPaymentAttempt = time.Time{}
		if status == billing.IncompleteExpired {
			err = w.void(&inv)
		} else {
			err = w.putInvoice(&inv)
		}
		if err != nil {
			return err
		}
	}
	s.Status, s.EndedAt = status, w.now
	if s.CanceledAt.IsZero() {
		s.CanceledAt = w.now
	}
	if err := w.putSubscription(s); err != nil {
		return err
	}
	return w.effect(kind, s.Customer, s.ID)
}

// openInvoices are the debts of s: its open invoices but a pending update's.
func (w *work) openInvoices(s *Subscription) ([]Invoice, error) {
	var open []Invoice
	err := ofCustomer(w, "invoice", s.Customer, "", false, func(inv Invoice) bool {
		if inv.Subscription == s.ID && inv.Status == billing.InvoiceOpen && !inv.ForPendingUpdate {
			open = append(open, inv)
		}
		return true
	})
	return open, err
}

// subscriptionDue does what s.due is about.
func (w *work) subscriptionDue(id string) error {
	s, err := get[Subscription](w, "subscription", id)
	if err != nil {
		return err
	}
	switch {
	case s.Status == billing.Incomplete:
		return w.end(&s, billing.IncompleteExpired, "subscription.expire")
	case s.PendingUpdate != nil && !w.now.Before(s.PendingUpdate.ExpiresAt):
		if err := w.dropPending(&s); err != nil {
			return err
		}
		if err := w.putSubscription(&s); err != nil {
			return err
		}
		return w.effect("subscription.pending_update_expire", s.Customer, s.ID)
	case s.CancelAtPeriodEnd:
		return w.endOfPeriod(&s)
	}
	used, err := w.meteredLines(&s)
	if err != nil {
		return err
	}
	kind := "subscription.renew"
	if s.Status == billing.Trialing {
		kind, s.Status = "subscription.trial_end", billing.Active
	}
	s.setPeriod(w.now, nextBoundary(s.BillingCycleAnchor, w.now, s.Items[0].Price.Interval, s.Items[0].Price.IntervalCount))
	cus, err := get[Customer](w, "customer", s.Customer)
	if err != nil {
		return err
	}
	inv := w.draft(&cus, &s, append(s.fullLines(s.periodStart(), s.periodEnd()), used...), ReasonSubscriptionCycle)
	paid, err := w.issue(&cus, &s, &inv, false, "")
	if err != nil {
		return err
	}
	if !paid && !inv.Processing && s.CollectionMethod == ChargeAutomatically {
		s.Status = billing.PastDue
	}
	s.LatestInvoice = inv.ID
	if err := w.putInvoice(&inv); err != nil {
		return err
	}
	if err := write(w.tx, "customer", cus.ID, cus); err != nil {
		return err
	}
	if err := w.putSubscription(&s); err != nil {
		return err
	}
	return w.effect(kind, s.Customer, s.ID)
}
