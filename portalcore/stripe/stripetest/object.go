package stripetest

import (
	"context"
	"fmt"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// object is a JSON object in Stripe's shape.
type object = map[string]any

func unix(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.Unix()
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func metadataOf(m map[string]string) object {
	out := object{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func listOf(url string, more bool, data []any) object {
	if data == nil {
		data = []any{}
	}
	return object{"object": "list", "url": url, "has_more": more, "data": data}
}

// view renders ledger objects. One view serves one answer.
type view struct {
	ctx context.Context
	l   *sandbox.Ledger
	h   *handler
	sub string // the second id in the path, if any
	to  string // the origin that pages and files are on; "" for an event, which has no links to them
}

func addressOf(a billing.Address) any {
	if a.IsZero() {
		return nil
	}
	return object{
		"line1": orNull(a.Line1), "line2": orNull(a.Line2), "city": orNull(a.City), "state": orNull(a.State),
		"postal_code": orNull(a.PostalCode), "country": orNull(a.Country),
	}
}

func (v *view) customer(c sandbox.Customer, x expansions, at string) (any, error) {
	pm := orNull(c.DefaultPaymentMethod)
	if c.DefaultPaymentMethod != "" && x[at+"invoice_settings.default_payment_method"] {
		m, err := v.l.PaymentMethod(v.ctx, c.DefaultPaymentMethod)
		if err != nil {
			return nil, err
		}
		pm = method(m)
	}
	locales := []any{}
	for _, s := range c.PreferredLocales {
		locales = append(locales, s)
	}
	out := object{
		"id": c.ID, "object": "customer", "created": unix(c.Created), "livemode": false,
		"name": orNull(c.Name), "email": orNull(c.Email), "phone": orNull(c.Phone), "address": addressOf(c.Address),
		"shipping": nil, "description": nil, "delinquent": false, "default_source": nil, "tax_exempt": "none",
		"balance": c.Balance, "currency": orNull(c.Currency), "preferred_locales": locales,
		"invoice_prefix": c.InvoicePrefix, "next_invoice_sequence": c.NextInvoiceSequence,
		"invoice_settings": object{"custom_fields": fieldsOf(c.InvoiceFields), "default_payment_method": pm, "footer": nil, "rendering_options": nil},
		"metadata":         metadataOf(c.Metadata), "test_clock": nil,
	}
	if x[at+"tax_ids"] {
		out["tax_ids"] = taxIDList(c)
	}
	return out, nil
}

func productOf(p sandbox.Product) object {
	return object{
		"id": p.ID, "object": "product", "created": unix(p.Created), "livemode": false, "active": p.Active, "name": p.Name,
		"metadata": metadataOf(p.Metadata), "description": nil, "images": []any{}, "default_price": nil,
	}
}

func (v *view) price(p sandbox.Price, expandProduct bool) (object, error) {
	var product any = p.Product
	if expandProduct {
		x, err := v.l.Product(v.ctx, p.Product)
		if err != nil {
			return nil, err
		}
		product = productOf(x)
	}
	// A price with a fraction of the minor unit has no unit_amount.
	var amount any
	if p.UnitAmount.IsInteger() {
		amount = p.UnitAmount.IntPart()
	}
	o := object{
		"id": p.ID, "object": "price", "created": unix(p.Created), "livemode": false, "active": p.Active,
		"billing_scheme": "per_unit", "currency": p.Currency, "lookup_key": orNull(p.LookupKey), "nickname": nil,
		"metadata": metadataOf(p.Metadata), "product": product, "type": "recurring", "tax_behavior": "exclusive",
		"recurring":   object{"interval": p.Interval, "interval_count": p.IntervalCount, "meter": nil, "usage_type": "licensed"},
		"unit_amount": amount, "unit_amount_decimal": p.UnitAmount.String(), "tiers_mode": nil, "transform_quantity": nil,
		"custom_unit_amount": nil,
	}
	tieredOrMetered(p, o)
	return o, nil
}

func method(m sandbox.PaymentMethod) object {
	kind := m.Type
	if kind == "" {
		kind = "card"
	}
	o := object{
		"id": m.ID, "object": "payment_method", "created": unix(m.Created), "livemode": false, "type": kind,
		"customer": orNull(m.Customer), "metadata": object{}, "allow_redisplay": "always",
		"billing_details": object{"address": nil, "email": nil, "name": nil, "phone": nil},
	}
	switch kind {
	case "card":
		card := object{
			"brand": m.Brand, "last4": m.Last4, "exp_month": m.ExpMonth, "exp_year": m.ExpYear, "funding": "credit", "country": orNull(m.Country), "wallet": nil,
		}
		if m.Wallet != "" {
			card["wallet"] = object{"type": m.Wallet, m.Wallet: object{}, "dynamic_last4": nil}
		}
		o[kind] = card
	case "sepa_debit":
		o[kind] = object{"bank_code": m.Bank, "branch_code": "", "country": m.Country, "fingerprint": nil, "generated_from": nil, "last4": m.Last4}
	case "us_bank_account":
		o[kind] = object{
			"bank_name": m.Bank, "last4": m.Last4, "routing_number": "110000000", "account_type": "checking", "account_holder_type": "company",
			"financial_connections_account": nil, "fingerprint": nil, "networks": nil, "status_details": nil,
		}
	case "link":
		o[kind] = object{"email": m.Email}
	case "paypal":
		o[kind] = object{"payer_email": m.Email, "payer_id": nil, "country": m.Country}
	default:
		o[kind] = object{}
	}
	return o
}

func (v *view) items(sub string, items []sandbox.SubscriptionItem, expandProduct bool) ([]any, error) {
	out := []any{}
	for _, it := range items {
		p, err := v.price(it.Price, expandProduct)
		if err != nil {
			return nil, err
		}
		o := object{
			"id": it.ID, "object": "subscription_item", "created": unix(it.Created), "subscription": sub, "price": p,
			"quantity": it.Quantity, "current_period_start": unix(it.CurrentPeriodStart), "current_period_end": unix(it.CurrentPeriodEnd),
			"metadata": object{}, "discounts": []any{}, "tax_rates": []any{}, "billing_thresholds": nil,
		}
		if it.Price.Meter != "" {
			delete(o, "quantity")
		}
		out = append(out, o)
	}
	return out, nil
}

func (v *view) subscription(s sandbox.Subscription, x expansions, at string) (any, error) {
	items, err := v.items(s.ID, s.Items, x[at+"items.data.price.product"])
	if err != nil {
		return nil, err
	}
	var cus, pm, latest any = s.Customer, orNull(s.DefaultPaymentMethod), orNull(s.LatestInvoice)
	if x[at+"customer"] {
		c, err := v.l.Customer(v.ctx, s.Customer)
		if err != nil {
			return nil, err
		}
		if cus, err = v.customer(c, x, at+"customer."); err != nil {
			return nil, err
		}
	}
	if s.DefaultPaymentMethod != "" && x[at+"default_payment_method"] {
		m, err := v.l.PaymentMethod(v.ctx, s.DefaultPaymentMethod)
		if err != nil {
			return nil, err
		}
		pm = method(m)
	}
	if s.LatestInvoice != "" && x[at+"latest_invoice"] {
		i, err := v.l.Invoice(v.ctx, s.LatestInvoice)
		if err != nil {
			return nil, err
		}
		if latest, err = v.invoice(i, nil, ""); err != nil {
			return nil, err
		}
	}
	var pending any
	if u := s.PendingUpdate; u != nil {
		up, err := v.items(s.ID, u.Items, false)
		if err != nil {
			return nil, err
		}
		pending = object{
			"expires_at": unix(u.ExpiresAt), "subscription_items": up, "billing_cycle_anchor": unix(u.BillingCycleAnchor),
			"trial_end": nil, "trial_from_plan": nil, "metadata": metadataOf(s.Metadata), "discounts": nil,
		}
	}
	// A flag of its own at the ledger, a date that comes with the flag at
	// Stripe.
	cancelAt := s.CancelAt
	if s.CancelAtPeriodEnd && cancelAt.IsZero() && len(s.Items) > 0 {
		cancelAt = s.Items[0].CurrentPeriodEnd
	}
	var days any
	if s.CollectionMethod == sandbox.SendInvoice {
		days = s.DaysUntilDue
	}
	return object{
		"id": s.ID, "object": "subscription", "created": unix(s.Created), "start_date": unix(s.Created), "livemode": false,
		"customer": cus, "status": s.Status, "currency": s.Currency, "collection_method": s.CollectionMethod, "days_until_due": days,
		"billing_cycle_anchor": unix(s.BillingCycleAnchor), "billing_mode": object{"type": "classic"},
		"trial_start": unix(s.TrialStart), "trial_end": unix(s.TrialEnd), "cancel_at_period_end": s.CancelAtPeriodEnd,
		"cancel_at": unix(cancelAt), "canceled_at": unix(s.CanceledAt), "ended_at": unix(s.EndedAt),
		"default_payment_method": pm, "default_source": nil, "latest_invoice": latest, "discounts": []any{},
		"items":          listOf("/v1/subscription_items?subscription="+s.ID, false, items),
		"pending_update": pending, "pause_collection": nil, "schedule": nil, "test_clock": nil, "metadata": metadataOf(s.Metadata),
		"automatic_tax": object{"enabled": false},
	}, nil
}

func linesOf(i sandbox.Invoice) []any {
	lines := []any{}
	for _, l := range i.Lines {
		var taxes []any
		if l.Tax != 0 {
			taxes = append(taxes, object{"amount": l.Tax, "tax_behavior": "exclusive", "taxable_amount": l.Amount - creditsOf(l), "type": "tax_rate_details"})
		}
		lines = append(lines, object{
			"id": "il_" + l.ID, "object": "line_item", "description": l.Description, "amount": l.Amount, "currency": i.Currency,
			"quantity": l.Quantity, "period": object{"start": unix(l.PeriodStart), "end": unix(l.PeriodEnd)}, "subtotal": l.Amount,
			"pricing": object{
				"type": "price_details", "unit_amount_decimal": l.UnitAmount.String(),
				"price_details": object{"price": l.Price, "product": l.Product},
			},
			"parent": object{
				"type": "subscription_item_details", "invoice_item_details": nil,
				"subscription_item_details": object{"proration": l.Proration, "subscription": i.Subscription, "subscription_item": l.SubscriptionItem},
			},
			"taxes": taxes, "metadata": object{}, "discounts": []any{}, "discountable": true,
			"quantity_decimal": l.QuantityDecimal.String(), "pretax_credit_amounts": pretax(l.Credits),
		})
	}
	return lines
}

func (v *view) invoice(i sandbox.Invoice, x expansions, at string) (any, error) {
	lines := linesOf(i)
	var credits []sandbox.LineCredit
	for _, l := range i.Lines {
		credits = append(credits, l.Credits...)
	}
	taxes := []any{}
	if i.Tax != 0 {
		taxes = append(taxes, object{
			"amount": i.Tax, "tax_behavior": "exclusive", "taxable_amount": i.Subtotal - i.Credits, "type": "tax_rate_details",
			"tax_rate_details": object{"tax_rate": taxRate(i, false)},
		})
	}
	taxIDs := []any{}
	for _, t := range i.CustomerTaxIDs {
		taxIDs = append(taxIDs, object{"type": t.Type, "value": t.Value})
	}
	id := i.ID
	var pdf, hosted, ending any
	if id == "" {
		id = "upcoming_in_" + i.Subscription
	} else {
		ending = i.EndingBalance
		if v.to != "" {
			pdf = v.h.fileURL(v.to, id)
		}
		if i.PaymentIntent != "" && v.to != "" {
			hosted = v.h.confirmURL(v.to, i.PaymentIntent)
		}
	}
	o := object{
		"id": id, "object": "invoice", "created": unix(i.Created), "livemode": false, "customer": i.Customer,
		"number": orNull(i.Number), "status": i.Status, "billing_reason": i.BillingReason, "collection_method": i.CollectionMethod,
		"currency": i.Currency, "description": nil, "due_date": unix(i.DueDate), "period_start": unix(i.PeriodStart),
		"period_end": unix(i.PeriodEnd), "lines": listOf("/v1/invoices/"+id+"/lines", false, lines),
		"subtotal": i.Subtotal, "total": i.Total, "total_excluding_tax": i.Total - i.Tax, "total_taxes": taxes,
		"total_pretax_credit_amounts": pretax(credits),
		"starting_balance":            i.StartingBalance, "ending_balance": ending, "amount_due": i.AmountDue, "amount_paid": i.AmountPaid,
		"amount_remaining": i.AmountRemaining, "attempt_count": i.AttemptCount, "attempted": i.Attempted,
		"next_payment_attempt": unix(i.NextPaymentAttempt), "invoice_pdf": pdf, "hosted_invoice_url": hosted,
		"customer_name": orNull(i.CustomerName), "customer_email": orNull(i.CustomerEmail), "customer_address": addressOf(i.CustomerAddress),
		"customer_tax_ids": taxIDs, "custom_fields": fieldsOf(i.CustomFields), "total_discount_amounts": []any{},
		"status_transitions": object{"paid_at": unix(i.PaidAt), "voided_at": unix(i.VoidedAt)}, "metadata": object{},
		"parent": object{
			"type": "subscription_details", "quote_details": nil,
			"subscription_details": object{"subscription": i.Subscription, "metadata": object{}},
		},
		"default_payment_method": nil, "default_source": nil,
	}
	if x[at+"payments"] {
		data, err := v.payments(i, x, at+"payments.data.")
		if err != nil {
			return nil, err
		}
		o["payments"] = listOf("/v1/invoice_payments?invoice="+id, false, data)
	}
	return o, nil
}

// payments are the payments of an invoice: one, or none where there is nothing
// to pay.
func (v *view) payments(i sandbox.Invoice, x expansions, at string) ([]any, error) {
	if i.PaymentIntent == "" {
		return nil, nil
	}
	pi, err := v.l.PaymentIntent(v.ctx, i.PaymentIntent)
	if err != nil {
		return nil, err
	}
	var in any = pi.ID
	if x[at+"payment.payment_intent"] {
		if in, err = v.paymentIntent(pi, x, at+"payment.payment_intent."); err != nil {
			return nil, err
		}
	}
	status := "open"
	switch pi.Status {
	case sandbox.PaymentSucceeded:
		status = "paid"
	case sandbox.PaymentCanceled:
		status = "canceled"
	}
	return []any{object{
		"id": "inpay_" + pi.ID, "object": "invoice_payment", "created": unix(pi.Created), "livemode": false, "currency": pi.Currency,
		"invoice": i.ID, "is_default": true, "amount_requested": pi.Amount, "status": status,
		"payment": object{"type": "payment_intent", "payment_intent": in},
	}}, nil
}

func (v *view) paymentIntent(p sandbox.PaymentIntent, x expansions, at string) (any, error) {
	var next, last any
	if p.Status == sandbox.RequiresAction {
		// As Stripe does for the payment of an invoice: as long as no return URL
		// was given, there is nothing to redirect to but the hosted invoice.
		next = object{"type": "use_stripe_sdk", "use_stripe_sdk": object{}}
		if p.ReturnURL != "" && v.to != "" {
			next = object{"type": "redirect_to_url", "redirect_to_url": object{"url": v.h.confirmURL(v.to, p.ID), "return_url": p.ReturnURL}}
		}
	}
	// A payment that failed lets go of its payment method; the error keeps it.
	held := p.Status != sandbox.RequiresPaymentMethod
	var pm any
	if p.PaymentMethod != "" {
		m, err := v.l.PaymentMethod(v.ctx, p.PaymentMethod)
		if err != nil {
			return nil, err
		}
		if held {
			if pm = m.ID; x[at+"payment_method"] {
				pm = method(m)
			}
		}
		if p.LastErrorCode != "" {
			e := object{"type": "card_error", "code": p.LastErrorCode, "message": "The payment did not go through.", "payment_method": method(m)}
			if p.LastDeclineCode != "" {
				e["decline_code"] = p.LastDeclineCode
			}
			last = e
		}
	}
	return object{
		"id": p.ID, "object": "payment_intent", "created": unix(p.Created), "livemode": false, "amount": p.Amount,
		"currency": p.Currency, "customer": p.Customer, "status": p.Status, "payment_method": pm,
		"next_action": next, "last_payment_error": last, "metadata": object{},
	}, nil
}

func setupIntent(s sandbox.CheckoutSession) object {
	status := "requires_payment_method"
	switch s.Status {
	case sandbox.SessionComplete:
		status = "succeeded"
	case sandbox.SessionExpired:
		status = "canceled"
	}
	return object{
		"id": s.SetupIntent, "object": "setup_intent", "created": unix(s.Created), "livemode": false, "customer": s.Customer,
		"status": status, "payment_method": orNull(s.PaymentMethod), "usage": "off_session", "metadata": object{},
	}
}

func (v *view) session(s sandbox.CheckoutSession, x expansions, at string) object {
	var si any = s.SetupIntent
	if x[at+"setup_intent"] {
		si = setupIntent(s)
	}
	var url any
	if s.Status == sandbox.SessionOpen && v.to != "" {
		url = v.h.cardURL(v.to, s.ID)
	}
	return object{
		"id": s.ID, "object": "checkout.session", "created": unix(s.Created), "livemode": false, "customer": s.Customer,
		"mode": "setup", "status": s.Status, "payment_status": "no_payment_required", "expires_at": unix(s.ExpiresAt),
		"success_url": s.SuccessURL, "cancel_url": s.CancelURL, "setup_intent": si, "url": url, "metadata": metadataOf(s.Metadata),
		"payment_method_types": []any{"card"}, "ui_mode": "hosted_page",
	}
}

// draw is the object of an event, without expansions.
func (h *handler) draw(ctx context.Context, kind, id string) (any, error) {
	if o, ok, err := h.drawPaper(ctx, kind, id); ok {
		return o, err
	}
	v := &view{ctx: ctx, l: h.l, h: h}
	switch kind {
	case "customer":
		c, err := h.l.Customer(ctx, id)
		if err != nil {
			return nil, err
		}
		return v.customer(c, nil, "")
	case "subscription":
		s, err := h.l.Subscription(ctx, id)
		if err != nil {
			return nil, err
		}
		return v.subscription(s, nil, "")
	case "price":
		p, err := h.l.Price(ctx, id)
		if err != nil {
			return nil, err
		}
		return v.price(p, false)
	case "product":
		p, err := h.l.Product(ctx, id)
		return productOf(p), err
	case "invoice":
		i, err := h.l.Invoice(ctx, id)
		if err != nil {
			return nil, err
		}
		return v.invoice(i, nil, "")
	case "billing.credit_grant":
		g, err := h.l.Grant(ctx, id)
		return grant(g), err
	case "payment_intent":
		p, err := h.l.PaymentIntent(ctx, id)
		if err != nil {
			return nil, err
		}
		return v.paymentIntent(p, nil, "")
	case "payment_method":
		m, err := h.l.PaymentMethod(ctx, id)
		return method(m), err
	case "setup_intent":
		s, err := h.l.CheckoutSession(ctx, id)
		return setupIntent(s), err
	case "checkout.session":
		s, err := h.l.CheckoutSession(ctx, id)
		return v.session(s, nil, ""), err
	}
	return nil, fmt.Errorf("stripetest: there is no drawing of a %s", kind)
}
