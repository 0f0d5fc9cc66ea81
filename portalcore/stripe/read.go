package stripe

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Bounds of an Account.
const (
	maxPages    = 5  // of 100 prices or subscriptions; more pages are not read
	maxEnded    = 10 // ended subscriptions shown
	maxUpcoming = 3  // next invoices previewed; at 25 requests a second more would hold the page up
	maxLatest   = 6  // latest invoices shown
)

// Prices implements billing.Provider. Tiered, metered and transformed prices
// are left out: this build cannot sell them.
func (p *Provider) Prices(ctx context.Context) ([]billing.Price, error) {
	var out []billing.Price
	after := ""
	for range 10 * maxPages {
		f := form{{"active", "true"}, {"type", "recurring"}, {"limit", "100"}}
		if after != "" {
			f.add("starting_after", after)
		}
		f.expand("data.product")
		var l list[price]
		a, err := p.get(ctx, &l, f, "prices")
		if err != nil {
			return nil, err
		}
		for i := range l.Data {
			pr := &l.Data[i]
			if !pr.perUnit() || !pr.Active || pr.Product.Obj == nil || pr.Product.Obj.Deleted || !pr.Product.Obj.Active {
				continue
			}
			b, err := pr.convert(nil)
			if err != nil {
				return nil, readFault(a, err)
			}
			out = append(out, b)
		}
		if !l.HasMore || len(l.Data) == 0 {
			return out, nil
		}
		after = l.Data[len(l.Data)-1].ID
	}
	return nil, &billing.Error{Fault: billing.Unavailable, Code: "invalid_request", Err: fmt.Errorf("more than %d active recurring prices; name the plans' prices in the config", 1000*maxPages)}
}

// customer reads a customer, with its default payment method and its tax ids
// expanded.
func (p *Provider) customer(ctx context.Context, id string) (*customer, *answer, error) {
	f := form{}
	f.expand("invoice_settings.default_payment_method", "tax_ids")
	if !p.live {
		f.expand("test_clock")
	}
	c := new(customer)
	a, err := p.get(ctx, c, f, "customers", id)
	if err != nil {
		return nil, nil, err
	}
	if c.Deleted || c.ID != id || c.Object != "customer" {
		return nil, nil, notFound(id)
	}
	return c, a, nil
}

// Find implements billing.Provider.
func (p *Provider) Find(ctx context.Context, id string) (billing.Customer, error) {
	c, _, err := p.customer(forCustomer(ctx, id), id)
	if err != nil {
		return billing.Customer{}, err
	}
	return c.convert(), nil
}

// subscriptions lists all of a customer's, newest first.
func (p *Provider) subscriptions(ctx context.Context, customerID string) ([]subscription, error) {
	var out []subscription
	after := ""
	for range maxPages {
		f := form{{"customer", customerID}, {"status", "all"}, {"limit", "100"}}
		if after != "" {
			f.add("starting_after", after)
		}
		// The product would be the fifth level, which Stripe refuses: products
		// are read in a second stage.
		f.expand("data.latest_invoice")
		var l list[subscription]
		a, err := p.get(ctx, &l, f, "subscriptions")
		if err != nil {
			return nil, err
		}
		for _, s := range l.Data {
			if s.Customer.ID != customerID {
				return nil, readFault(a, errors.New("the list holds another customer's subscription"))
			}
		}
		out = append(out, l.Data...)
		if !l.HasMore || len(l.Data) == 0 {
			break
		}
		after = l.Data[len(l.Data)-1].ID
	}
	return out, nil
}

// Account implements billing.Provider. What does not depend on another is read
// side by side. The longest chain is the pages of subscriptions and then, side
// by side, the next invoices, the products' names and the payments of waiting
// changes. Without the customer, the subscriptions and their products there is
// no account; every other section fails alone, and soon.
//
// AsOf is the Date header of the customer's answer, or the frozen time of the
// test clock that the customer stands on.
func (p *Provider) Account(ctx context.Context, id string) (billing.Account, error) {
	ctx, cancel := context.WithCancelCause(forCustomer(ctx, id))
	defer cancel(nil)
	var (
		c        *customer
		at       *answer
		subs     subscriptionStage
		methods  list[paymentMethod]
		invoices list[invoice]
		open     []invoice
		intents  map[string]*paymentIntent
	)
	failed := sections{p: p, customer: id}
	// Without what is needed nobody waits for the rest.
	needed := func(err error) error {
		if err != nil {
			cancel(err)
		}
		return err
	}
	err := parallel(
		func() (err error) { c, at, err = p.customer(ctx, id); return needed(err) },
		func() (err error) { subs, err = p.subscriptionStage(ctx, id, &failed); return needed(err) },
		failed.section(ctx, billing.SectionPaymentMethods, func(ctx context.Context) error {
			_, err := p.get(ctx, &methods, form{{"limit", "100"}}, "customers", id, "payment_methods")
			return err
		}),
		failed.section(ctx, billing.SectionInvoices, func(ctx context.Context) error {
			// Drafts are dropped: ask for a few more.
			_, err := p.get(ctx, &invoices, form{{"customer", id}, {"limit", "10"}}, "invoices")
			return err
		}),
		failed.section(ctx, billing.SectionDebts, func(ctx context.Context) (err error) {
			if open, err = p.openInvoices(ctx, id); err == nil {
				intents, err = p.intents(ctx, id, open)
			}
			return err
		}),
	)
	if err != nil {
		// The first failure is the reason; what it cancelled is not.
		if be, ok := errors.AsType[*billing.Error](context.Cause(ctx)); ok {
			err = be
		}
		return billing.Account{}, err
	}
	acc := billing.Account{Customer: c.convert(), AsOf: at.now(c.TestClock), Failed: failed.names()}

	pending := map[string]bool{}
	for i := range subs.all {
		b, err := subs.all[i].convert(subs.products, subs.confirm[subs.all[i].ID])
		if err != nil {
			return billing.Account{}, readFault(at, err)
		}
		if b.Pending != nil {
			pending[b.Pending.InvoiceID] = true
		}
		acc.Subscriptions = append(acc.Subscriptions, b)
	}
	shareMetadata(acc.Subscriptions)
	if !acc.Missing(billing.SectionDebts) {
		acc.Debts = p.debts(open, pending, intents)
	}
	if !acc.Missing(billing.SectionPaymentMethods) {
		for i := range methods.Data {
			if m := &methods.Data[i]; m.Customer.ID == id {
				acc.PaymentMethods = append(acc.PaymentMethods, m.convert())
			}
		}
		// The default may be older than the hundred that one list holds.
		if m := c.InvoiceSettings.DefaultPaymentMethod.Obj; m != nil && m.Customer.ID == id {
			if _, ok := acc.PaymentMethod(m.ID); !ok {
				acc.PaymentMethods = append(acc.PaymentMethods, m.convert())
			}
		}
	}
	if !acc.Missing(billing.SectionInvoices) {
		for i := range invoices.Data {
			v := &invoices.Data[i]
			if v.Customer.ID == id && v.Status != "draft" && len(acc.Invoices) < maxLatest {
				b := p.withPage(v, v.convert(pending))
				if i := slices.IndexFunc(acc.Debts, func(d billing.Invoice) bool { return d.ID == b.ID }); i >= 0 {
					b = acc.Debts[i] // it says how its payment went, too
				}
				acc.Invoices = append(acc.Invoices, b)
			}
		}
	}
	if !acc.Missing(billing.SectionUpcoming) {
		for _, u := range subs.upcoming {
			if u != nil {
				acc.Upcoming = append(acc.Upcoming, *u)
			}
		}
	}
	if acc.Customer.Balance.Currency == "" && len(acc.Subscriptions) > 0 {
		acc.Customer.Balance.Currency = acc.Subscriptions[0].Currency
	}
	return acc, nil
}

// bounded orders subscriptions, newest first and ended ones last, and keeps
// the latest few of the ended ones.
func bounded(subs []subscription) []subscription {
	slices.SortStableFunc(subs, func(a, b subscription) int {
		if a.ended() != b.ended() {
			if a.ended() {
				return 1
			}
			return -1
		}
		return b.Created.time().Compare(a.Created.time())
	})
	live := slices.IndexFunc(subs, func(s subscription) bool { return s.ended() })
	if live >= 0 && len(subs) > live+maxEnded {
		subs = subs[:live+maxEnded]
	}
	return subs
}

// upcoming previews the next regular invoice of s, changed as change says
// (subscription_details[…] parameters), or nil where there is none.
func (p *Provider) upcoming(ctx context.Context, s *subscription, change form) (*billing.Upcoming, error) {
	f := append(form{{"customer", s.Customer.ID}, {"subscription", s.ID}}, change...)
	v, err := p.createPreview(ctx, f)
	switch {
	case billing.CodeOf(err) == "invoice_upcoming_none":
		return nil, nil
	case billing.FaultOf(err) == billing.Refused:
		// Stripe cannot say what comes next; the page still has the rest.
		return nil, nil
	case err != nil:
		return nil, err
	}
	return v.upcoming(s.ID, s.periodEnd()), nil
}

func (v *invoice) upcoming(sub string, due time.Time) *billing.Upcoming {
	return &billing.Upcoming{
		Subscription: sub, Due: due, Lines: v.lines(), Subtotal: v.money(v.Subtotal), Tax: v.tax(),
		Total: v.money(v.Total), AmountDue: v.money(v.AmountDue),
	}
}

// createPreview is POST /v1/invoices/create_preview. It changes nothing and
// takes no idempotency key.
func (p *Provider) createPreview(ctx context.Context, f form) (*invoice, error) {
	a, err := p.send(ctx, http.MethodPost, "/v1/invoices/create_preview", f.encode(), "")
	if err != nil {
		return nil, readFault(nil, err)
	}
	if a.status/100 != 2 {
		return nil, previewFault(a, nil)
	}
	v := new(invoice)
	if err := a.decode(v); err != nil {
		return nil, readFault(a, err)
	}
	if v.Object != "invoice" {
		return nil, readFault(a, errors.New("the preview is not an invoice"))
	}
	return v, nil
}

// wait is why a change waits for its payment.
type wait struct {
	reason string // "card_declined" or "authentication_required"
	goTo   string // where the customer confirms, for authentication_required
}

// waiting reads the payment that s's pending update waits for. The default
// payment's intent is four levels below the invoice, so it has a list of its
// own.
func (p *Provider) waiting(ctx context.Context, s *subscription) (wait, error) {
	w := wait{reason: "card_declined"}
	if s.LatestInvoice.ID == "" {
		return w, nil
	}
	f := form{{"invoice", s.LatestInvoice.ID}, {"limit", "10"}}
	f.expand("data.payment.payment_intent")
	var l list[invoicePayment]
	if _, err := p.get(ctx, &l, f, "invoice_payments"); err != nil {
		return w, err
	}
	for _, pay := range l.Data {
		in := pay.Payment.PaymentIntent.Obj
		if in == nil || in.Status != "requires_action" {
			continue
		}
		w.reason = "authentication_required"
		if in.NextAction != nil && in.NextAction.RedirectToURL != nil && p.safePage(in.NextAction.RedirectToURL.URL) {
			w.goTo = in.NextAction.RedirectToURL.URL
		} else if v := s.LatestInvoice.Obj; v != nil && p.safePage(v.HostedURL) {
			w.goTo = v.HostedURL
		}
	}
	return w, nil
}

// safePage reports whether a customer may be sent to a page: https, or http
// on a loopback host where the API itself is on one.
func (p *Provider) safePage(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && p.loopback && isLoopback(u.Hostname())
}

// Invoices implements billing.Provider. A cursor names the invoice at the
// page's edge; the list is always the customer's own.
func (p *Provider) Invoices(ctx context.Context, customerID, cursor string, limit int) (billing.InvoicePage, error) {
	ctx = forCustomer(ctx, customerID)
	edge, older := "", true
	if cursor != "" {
		b, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(b) < 2 || (b[0] != 'o' && b[0] != 'n') {
			return billing.InvoicePage{}, notFound("cursor")
		}
		edge, older = string(b[1:]), b[0] == 'o'
	}
	limit = min(max(limit, 1), 100)
	var found []invoice
	more := true
	// Drafts are dropped, so a page may need a second list.
	for i := 0; i < maxPages && more && len(found) < limit; i++ {
		f := form{{"customer", customerID}, {"limit", itoa(int64(limit))}}
		if edge != "" && older {
			f.add("starting_after", edge)
		} else if edge != "" {
			f.add("ending_before", edge)
		}
		var l list[invoice]
		a, err := p.get(ctx, &l, f, "invoices")
		if err != nil {
			return billing.InvoicePage{}, err
		}
		if len(l.Data) == 0 {
			more = false
			break
		}
		more = l.HasMore
		keep := make([]invoice, 0, len(l.Data))
		for _, v := range l.Data {
			if v.Customer.ID != customerID {
				return billing.InvoicePage{}, readFault(a, errors.New("the list holds another customer's invoice"))
			}
			if v.Status != "draft" {
				keep = append(keep, v)
			}
		}
		if older {
			edge = l.Data[len(l.Data)-1].ID
			found = append(found, keep...)
		} else {
			edge = l.Data[0].ID
			found = append(keep, found...)
		}
	}
	if len(found) > limit {
		more = true
		if older {
			found = found[:limit]
		} else {
			found = found[len(found)-limit:]
		}
	}
	pending := map[string]bool{}
	if slices.ContainsFunc(found, func(v invoice) bool { return v.Status == "open" && v.BillingReason == "subscription_update" }) {
		subs, err := p.subscriptions(ctx, customerID)
		if err != nil {
			return billing.InvoicePage{}, err
		}
		for i := range subs {
			if subs[i].PendingUpdate != nil {
				pending[subs[i].LatestInvoice.ID] = true
			}
		}
	}
	page := billing.InvoicePage{}
	for i := range found {
		page.Invoices = append(page.Invoices, p.withPage(&found[i], found[i].convert(pending)))
	}
	if len(found) == 0 {
		return page, nil
	}
	mark := func(dir byte, id string) string {
		return base64.RawURLEncoding.EncodeToString(append([]byte{dir}, id...))
	}
	if first := found[0].ID; older && cursor != "" || !older && more {
		page.Newer = mark('n', first)
	}
	if last := found[len(found)-1].ID; older && more || !older {
		page.Older = mark('o', last)
	}
	return page, nil
}

// invoice reads an invoice of the customer.
func (p *Provider) invoice(ctx context.Context, customerID, id string) (*invoice, error) {
	v := new(invoice)
	if _, err := p.get(ctx, v, nil, "invoices", id); err != nil {
		return nil, err
	}
	if v.Object != "invoice" || v.ID != id || v.Customer.ID != customerID {
		return nil, notFound(id)
	}
	return v, nil
}
