package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// The kinds of steps.
const (
	stepUpdate          = "subscription.update"   // POST subscriptions/{id}: items
	stepCancel          = "subscription.cancel"   // POST subscriptions/{id}: cancel_at_period_end=true
	stepResume          = "subscription.resume"   // POST subscriptions/{id}: the cancellation cleared
	stepDefault         = "subscription.default"  // POST subscriptions/{id}: default_payment_method
	stepVoid            = "invoice.void"          // POST invoices/{id}/void
	stepPay             = "invoice.pay"           // POST invoices/{id}/pay
	stepCustomer        = "customer.update"       // POST customers/{id}
	stepCustomerDefault = "customer.default"      // POST customers/{id}: invoice_settings
	stepSetup           = "checkout.setup"        // POST checkout/sessions: mode=setup
	stepDetach          = "payment_method.detach" // POST payment_methods/{id}/detach
	stepTaxIDCreate     = "tax_id.create"         // POST customers/{id}/tax_ids
	stepTaxIDDelete     = "tax_id.delete"         // DELETE customers/{id}/tax_ids/{id}
)

// refPaymentMethod names the payment method that a checkout session brought.
const refPaymentMethod = "payment_method"

// metaStep is the metadata key that carries a step's idempotency key where
// the API takes metadata, so that its outcome can be told for certain.
const metaStep = "portal_step"

// params are a Step's Params: the frozen request, and what its outcome is
// told by.
type params struct {
	// Form is the encoded body, to be sent byte for byte.
	Form string `json:"form"`
	// Fill names form parameters that take a value from an earlier step.
	Fill map[string]string `json:"fill,omitempty"` // ref name -> parameter
	// Items is what a subscription's items are to be.
	Items []billing.ItemChange `json:"items,omitempty"`
	// Invoice is the subscription's latest invoice before the change.
	Invoice string `json:"invoice,omitempty"`
	// Version is the object's version before the change.
	Version string `json:"version,omitempty"`
	// Delayed is true where the payment is known to have worked days later.
	Delayed bool `json:"delayed,omitempty"`
	// Details are the details that a customer.update sets.
	Details *billing.Details `json:"details,omitempty"`
	// TaxID is what a tax_id.create adds, and TaxIDsBefore the ids that were
	// there before it. Customer is whose tax id a tax_id.delete removes.
	TaxID        *billing.TaxIDChange `json:"tax_id,omitempty"`
	TaxIDsBefore []string             `json:"tax_ids_before,omitempty"`
	Customer     string               `json:"customer,omitempty"`
	// PaymentMethod is what a …default step sets, or an invoice.pay charges,
	// where it is known.
	PaymentMethod string `json:"payment_method,omitempty"`
	// ReturnURL is where the page leads back to that confirms an invoice.pay.
	ReturnURL string `json:"return_url,omitempty"`
	// Waits is true for an invoice.pay of what a change waits for.
	Waits bool `json:"waits,omitempty"`
}

func newStep(kind, object string, f form, p params) billing.Step {
	p.Form = f.encode()
	b, _ := json.Marshal(p) // strings, numbers and slices of them: cannot fail
	s := billing.Step{Kind: kind, Object: object, Params: b}
	for ref := range p.Fill {
		s.Needs = append(s.Needs, ref)
	}
	slices.Sort(s.Needs)
	return s
}

func refused(code, param string, err error) error {
	return &billing.Error{Fault: billing.Refused, Code: code, Param: param, Err: err}
}

// subscription reads a subscription of the customer with all that a change of
// it depends on.
func (p *Provider) subscription(ctx context.Context, customerID, id string) (*subscription, *answer, error) {
	f := form{}
	f.expand("items.data.price.product", "default_payment_method", "customer.invoice_settings.default_payment_method", "latest_invoice")
	if !p.live {
		f.expand("test_clock")
	}
	s := new(subscription)
	a, err := p.get(ctx, s, f, "subscriptions", id)
	if err != nil {
		return nil, nil, err
	}
	if s.Object != "subscription" || s.ID != id || s.Customer.ID != customerID {
		return nil, nil, notFound(id)
	}
	return s, a, nil
}

// pays is the payment method that pays for s, or nil.
func (s *subscription) pays() *paymentMethod {
	if s.DefaultPaymentMethod.ID != "" {
		return s.DefaultPaymentMethod.Obj
	}
	if s.Customer.Obj != nil {
		return s.Customer.Obj.InvoiceSettings.DefaultPaymentMethod.Obj
	}
	return nil
}

// Preview implements billing.Provider.
func (p *Provider) Preview(ctx context.Context, customerID string, action billing.Action, at time.Time) (billing.Preview, error) {
	ctx = forCustomer(ctx, customerID)
	switch action.Kind {
	case billing.ChangePlan:
		return p.previewChange(ctx, customerID, action, at)
	case billing.DropPending, billing.Cancel, billing.Resume:
		return p.previewSubscription(ctx, customerID, action, at)
	case billing.UpdateDetails, billing.UpdateTaxID:
		return p.previewCustomer(ctx, customerID, action, at)
	case billing.AddPaymentMethod, billing.SetDefaultPaymentMethod, billing.RemovePaymentMethod, billing.PayInvoices:
		return p.previewMethod(ctx, customerID, action, at)
	}
	return billing.Preview{}, refused("invalid_request", "kind", fmt.Errorf("stripe: no action %q", action.Kind))
}

// previewChange asks Stripe for the invoice that the change makes at once,
// with every parameter that the change itself will have, and for the next
// regular one.
func (p *Provider) previewChange(ctx context.Context, customerID string, action billing.Action, at time.Time) (billing.Preview, error) {
	s, ans, err := p.subscription(ctx, customerID, action.Subscription)
	if err != nil {
		return billing.Preview{}, err
	}
	if at.IsZero() {
		at = ans.now(s.TestClock)
	}
	at = at.UTC().Truncate(time.Second)
	switch billing.SubscriptionStatus(s.Status) {
	case billing.Active, billing.Trialing, billing.PastDue:
	default:
		return billing.Preview{}, refused("not_changeable", s.ID, fmt.Errorf("the subscription is %s", s.Status))
	}
	if s.Schedule.ID != "" {
		return billing.Preview{}, refused("not_changeable", s.ID, errors.New("a schedule drives the subscription"))
	}
	if s.PendingUpdate != nil {
		return billing.Preview{}, refused("not_changeable", s.ID, errors.New("another change waits for its payment"))
	}
	if s.Items.HasMore {
		return billing.Preview{}, refused("not_changeable", s.ID, errors.New("the subscription has more items than one answer holds"))
	}

	// Every item is named with price and quantity: a price without a quantity
	// would reset it to 1, an entry without an id would add an item.
	target := make([]billing.ItemChange, len(s.Items.Data))
	index := map[string]int{}
	for i, it := range s.Items.Data {
		target[i] = billing.ItemChange{Item: it.ID, Price: it.Price.ID, Quantity: it.Quantity}
		index[it.ID] = i
	}
	changed := map[string]bool{}
	different := false
	for _, c := range action.Items {
		i, ok := index[c.Item]
		switch {
		case !ok:
			return billing.Preview{}, notFound(c.Item)
		case s.Items.Data[i].Price.metered():
			return billing.Preview{}, refused("not_changeable", c.Item, errors.New("what is used is not chosen"))
		case changed[c.Item]:
			return billing.Preview{}, refused("invalid_request", "items", errors.New("an item is named twice"))
		case c.Quantity < 1 || c.Quantity > billing.MaxQuantity:
			return billing.Preview{}, refused("invalid_request", "quantity", fmt.Errorf("quantity %d", c.Quantity))
		}
		changed[c.Item] = true
		different = different || target[i] != c
		target[i] = c
	}
	if !different {
		return billing.Preview{}, refused("invalid_request", "items", errors.New("nothing would change"))
	}
	prices, err := p.newPrices(ctx, s, target)
	if err != nil {
		return billing.Preview{}, err
	}

	items := func(f *form, prefix string) {
		for i, t := range target {
			k := fmt.Sprintf("%s[%d]", prefix, i)
			f.add(k+"[id]", t.Item)
			f.add(k+"[price]", t.Price)
			if !s.Items.Data[i].Price.metered() { // Stripe refuses one for usage
				f.add(k+"[quantity]", itoa(t.Quantity))
			}
		}
	}
	now := form{{"customer", customerID}, {"subscription", s.ID}}
	items(&now, "subscription_details[items]")
	now.add("subscription_details[proration_behavior]", "always_invoice")
	now.add("subscription_details[proration_date]", itoa(at.Unix()))
	later := form{{"customer", customerID}, {"subscription", s.ID}, {"preview_mode", "recurring"}}
	items(&later, "subscription_details[items]")
	later.add("subscription_details[proration_behavior]", "none")

	var v, nv *invoice
	renews := s.renews()
	err = parallel(
		func() (err error) { v, err = p.createPreview(ctx, now); return err },
		func() (err error) {
			if !renews {
				return nil
			}
			nv, err = p.createPreview(ctx, later)
			if billing.CodeOf(err) == "invoice_upcoming_none" {
				return nil
			}
			return err
		},
	)
	if err != nil {
		return billing.Preview{}, err
	}

	out := billing.Preview{
		Action: action, At: at, ObjectVersion: s.version(), Effective: at,
		Lines: v.lines(), Subtotal: v.money(v.Subtotal), Tax: v.tax(), Total: v.money(v.Total), DueNow: v.money(v.AmountDue),
		ToBalance: v.money(max(0, -v.Total)), FromBalance: v.money(min(max(0, v.Total-v.AmountDue), max(0, -v.StartingBalance))),
	}
	// A line that is no proration is a new period's: where the interval
	// changes, the period starts anew today.
	start, due := time.Time{}, s.periodEnd()
	var ends time.Time
	for i := range v.Lines.Data {
		l := v.Lines.Data[i].convert()
		if !l.Proration && l.PeriodEnd.After(at) && (ends.IsZero() || l.PeriodEnd.Before(ends)) {
			start, ends = l.PeriodStart, l.PeriodEnd
		}
	}
	if !ends.IsZero() {
		due = ends
	}
	if nv != nil {
		out.Next = nv.upcoming(s.ID, due)
		// A recurring preview leaves the balance out: take what today's
		// invoice leaves of it.
		out.Next.AmountDue.Amount = max(0, nv.Total+min(0, v.StartingBalance+v.Total))
	}
	for i, t := range target {
		it := billing.Item{
			ID: t.Item, Price: prices[t.Price], Quantity: t.Quantity,
			PeriodStart: s.Items.Data[i].PeriodStart.time(), PeriodEnd: s.Items.Data[i].PeriodEnd.time(),
		}
		if !ends.IsZero() {
			it.PeriodStart, it.PeriodEnd = start, ends
		}
		out.Items = append(out.Items, it)
	}

	f := form{}
	items(&f, "items")
	f.add("proration_behavior", "always_invoice")
	f.add("proration_date", itoa(at.Unix()))
	delayed := false
	if m := s.pays(); m != nil {
		delayed = m.delayed()
	}
	// Invoices paid by hand and bank debits cannot hold a change back.
	if s.CollectionMethod != "send_invoice" && !delayed {
		f.add("payment_behavior", "pending_if_incomplete")
	}
	f.expand("latest_invoice")
	out.Steps = []billing.Step{newStep(stepUpdate, s.ID, f, params{
		Items: target, Invoice: s.LatestInvoice.ID, Version: out.ObjectVersion, Delayed: delayed,
	})}
	return out, nil
}

// newPrices returns the prices of target, reading those that the subscription
// does not have yet.
func (p *Provider) newPrices(ctx context.Context, s *subscription, target []billing.ItemChange) (map[string]billing.Price, error) {
	out := map[string]billing.Price{}
	if err := p.fillTiers(ctx, s.prices()); err != nil {
		return nil, err
	}
	for i := range s.Items.Data {
		b, err := s.Items.Data[i].Price.convert(nil)
		if err != nil {
			return nil, readFault(&answer{}, err)
		}
		out[b.ID] = b
	}
	var missing []string
	for _, t := range target {
		if _, ok := out[t.Price]; !ok && !slices.Contains(missing, t.Price) {
			missing = append(missing, t.Price)
		}
	}
	read := make([]price, len(missing))
	fns := make([]func() error, len(missing))
	for i, id := range missing {
		fns[i] = func() error {
			f := form{}
			f.expand("product")
			_, err := p.get(ctx, &read[i], f, "prices", id)
			if err == nil && (read[i].Object != "price" || read[i].ID != id) {
				return notFound(id)
			}
			return err
		}
	}
	if err := parallel(fns...); err != nil {
		return nil, err
	}
	for i := range read {
		pr := &read[i]
		switch {
		case pr.Currency != s.Currency:
			return nil, refused("currency_mismatch", pr.ID, fmt.Errorf("the price is in %s, the subscription in %s", pr.Currency, s.Currency))
		case !pr.Active || !pr.perUnit():
			return nil, refused("not_changeable", pr.ID, errors.New("the price cannot be sold"))
		}
		b, err := pr.convert(nil)
		if err != nil {
			return nil, readFault(&answer{}, err)
		}
		out[b.ID] = b
	}
	return out, nil
}

// previewSubscription previews what moves no money on a subscription.
func (p *Provider) previewSubscription(ctx context.Context, customerID string, action billing.Action, at time.Time) (billing.Preview, error) {
	s, ans, err := p.subscription(ctx, customerID, action.Subscription)
	if err != nil {
		return billing.Preview{}, err
	}
	if at.IsZero() {
		at = ans.now(s.TestClock)
	}
	at = at.UTC().Truncate(time.Second)
	if s.ended() || s.Schedule.ID != "" || s.Status == string(billing.Incomplete) {
		return billing.Preview{}, refused("not_changeable", s.ID, fmt.Errorf("the subscription is %s, schedule %q", s.Status, s.Schedule.ID))
	}
	out := billing.Preview{Action: action, At: at, ObjectVersion: s.version(), Effective: at}
	if err := p.fillTiers(ctx, s.prices()); err != nil {
		return billing.Preview{}, err
	}
	if out.Items, err = convertItems(s.Items.Data, nil); err != nil {
		return billing.Preview{}, readFault(ans, err)
	}
	par := params{Version: out.ObjectVersion}
	cancelling := s.CancelAtPeriodEnd || s.CancelAt != 0
	switch action.Kind {
	case billing.DropPending:
		if s.PendingUpdate == nil || s.LatestInvoice.ID == "" {
			return billing.Preview{}, refused("not_changeable", s.ID, errors.New("no change waits"))
		}
		out.Steps = []billing.Step{newStep(stepVoid, s.LatestInvoice.ID, nil, par)}
		if s.renews() {
			if out.Next, err = p.upcoming(ctx, s, nil); err != nil {
				return billing.Preview{}, err
			}
		}
	case billing.Cancel:
		if cancelling {
			return billing.Preview{}, refused("not_changeable", s.ID, errors.New("the subscription is cancelled already"))
		}
		out.Effective = s.periodEnd()
		if s.renews() && s.metered() { // a last invoice for what was used
			if out.Next, err = p.upcoming(ctx, s, form{{"subscription_details[cancel_at_period_end]", "true"}}); err != nil {
				return billing.Preview{}, err
			}
		}
		out.Steps = []billing.Step{newStep(stepCancel, s.ID, form{{"cancel_at_period_end", "true"}}, par)}
	case billing.Resume:
		if !cancelling {
			return billing.Preview{}, refused("not_changeable", s.ID, errors.New("the subscription is not cancelled"))
		}
		// The two parameters exclude each other; clearing the flag clears the
		// date that comes from it.
		f, change := form{{"cancel_at", ""}}, form{{"subscription_details[cancel_at]", ""}}
		if s.CancelAtPeriodEnd {
			f, change = form{{"cancel_at_period_end", "false"}}, form{{"subscription_details[cancel_at_period_end]", "false"}}
		}
		out.Steps = []billing.Step{newStep(stepResume, s.ID, f, par)}
		if out.Next, err = p.upcoming(ctx, s, change); err != nil {
			return billing.Preview{}, err
		}
	}
	return out, nil
}

// previewCustomer previews what is about the customer as a whole.
func (p *Provider) previewCustomer(ctx context.Context, customerID string, action billing.Action, at time.Time) (billing.Preview, error) {
	c, ans, err := p.customer(ctx, customerID)
	if err != nil {
		return billing.Preview{}, err
	}
	if at.IsZero() {
		at = ans.now(c.TestClock)
	}
	at = at.UTC().Truncate(time.Second)
	b := c.convert()
	out := billing.Preview{Action: action, At: at, ObjectVersion: b.Version, Effective: at}
	if action.Kind == billing.UpdateTaxID {
		out.Steps, err = taxIDSteps(c, action.TaxID)
		return out, err
	}
	f, err := detailsForm(c, action.Details)
	if err != nil {
		return billing.Preview{}, err
	}
	out.Steps = []billing.Step{newStep(stepCustomer, customerID, f, params{Version: b.Version, Details: action.Details})}
	return out, nil
}

// waits reports whether a change of s waits for an invoice that can be paid.
func (s *subscription) waits() bool {
	return s.PendingUpdate != nil && s.LatestInvoice.Obj != nil && s.LatestInvoice.Obj.Status == "open"
}

// methodStep is a step that uses a payment method in param: m, or the one that
// an earlier step brings where m is "".
func methodStep(kind, object, param, m string, f form, par params) billing.Step {
	if m != "" {
		f = append(form{{param, m}}, f...)
		par.PaymentMethod = m
	} else {
		par.Fill = map[string]string{refPaymentMethod: param}
	}
	return newStep(kind, object, f, par)
}

// present tells Stripe that the customer is there and can confirm.
var present = form{{"off_session", "false"}}

// defaultSteps make a payment method the default on every level, and pay
// what waits for one. m is nil where an earlier step brings it. A bank debit
// takes longer than a change waits.
func defaultSteps(customerID string, subs []subscription, m *paymentMethod, returnURL string) []billing.Step {
	id := ""
	if m != nil {
		id = m.ID
	}
	out := []billing.Step{methodStep(stepCustomerDefault, customerID, "invoice_settings[default_payment_method]", id, nil, params{})}
	for i := range subs {
		// While a subscription has a default of its own, the customer's does
		// nothing for it.
		if s := &subs[i]; !s.ended() && s.DefaultPaymentMethod.ID != "" {
			out = append(out, methodStep(stepDefault, s.ID, "default_payment_method", id, nil, params{}))
		}
	}
	for i := range subs {
		if s := &subs[i]; s.waits() && (m == nil || !m.delayed()) {
			out = append(out, methodStep(stepPay, s.LatestInvoice.ID, "payment_method", id, present, params{ReturnURL: returnURL, Waits: true}))
		}
	}
	return out
}

func detailsForm(c *customer, d *billing.Details) (form, error) {
	var f form
	if d == nil {
		d = &billing.Details{}
	}
	set := func(name string, v *string) {
		if v != nil {
			f.add(name, *v)
		}
	}
	set("name", d.Name)
	set("email", d.Email)
	set("phone", d.Phone)
	if a := d.Address; a != nil {
		// An empty member clears it: the address is replaced as a whole.
		f = append(f, form{
			{"address[line1]", a.Line1},
			{"address[line2]", a.Line2},
			{"address[city]", a.City},
			{"address[state]", a.State},
			{"address[postal_code]", a.PostalCode},
			{"address[country]", a.Country},
		}...)
	}
	if d.InvoiceFields != nil {
		if err := fieldsForm(&f, *d.InvoiceFields); err != nil {
			return nil, err
		}
	}
	switch l := d.Locale; {
	case l == nil || *l == "" && len(c.Locales) == 0:
	case *l == "":
		return nil, refused("invalid_request", "locale", errors.New("a language can be replaced and not unset"))
	default:
		f.add("preferred_locales[0]", *l)
	}
	if len(f) == 0 {
		return nil, refused("invalid_request", "details", errors.New("nothing would change"))
	}
	return f, nil
}

// paymentMethod reads a payment method of the customer.
func (p *Provider) paymentMethod(ctx context.Context, customerID, id string) (paymentMethod, error) {
	var m paymentMethod
	if _, err := p.get(ctx, &m, nil, "payment_methods", id); err != nil {
		return m, err
	}
	if m.Object != "payment_method" || m.ID != id || m.Customer.ID != customerID {
		return m, notFound(id)
	}
	return m, nil
}
