package stripe

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// openInvoices lists a customer's open invoices, newest first, at most
// billing.MaxDebts, with the ids of their payments.
func (p *Provider) openInvoices(ctx context.Context, customerID string) ([]invoice, error) {
	f := form{{"customer", customerID}, {"status", "open"}, {"limit", itoa(billing.MaxDebts)}}
	f.expand("data.payments")
	var l list[invoice]
	a, err := p.get(ctx, &l, f, "invoices")
	if err != nil {
		return nil, err
	}
	for _, v := range l.Data {
		if v.Customer.ID != customerID || v.Status != "open" {
			return nil, readFault(a, errors.New("the list holds what was not asked for"))
		}
	}
	return l.Data, nil
}

// intents reads how the payments of open invoices went, by the ids of their
// payment intents: the customer's latest hundred in one list, as the intent is
// one level too deep to be expanded in a list of invoices. Nil where none was
// tried.
func (p *Provider) intents(ctx context.Context, customerID string, open []invoice) (map[string]*paymentIntent, error) {
	if !slices.ContainsFunc(open, func(v invoice) bool { return v.Attempted }) {
		return nil, nil
	}
	f := form{{"customer", customerID}, {"limit", "100"}}
	f.expand("data.payment_method")
	var l list[paymentIntent]
	if _, err := p.get(ctx, &l, f, "payment_intents"); err != nil {
		return nil, err
	}
	out := map[string]*paymentIntent{}
	for i := range l.Data {
		out[l.Data[i].ID] = &l.Data[i]
	}
	return out, nil
}

// debts are the open invoices that are debts, oldest first, with how their last
// payment went.
func (p *Provider) debts(open []invoice, pending map[string]bool, intents map[string]*paymentIntent) []billing.Invoice {
	var out []billing.Invoice
	for i := range slices.Backward(open) {
		v := &open[i]
		b := p.withPage(v, v.convert(pending))
		if !b.Debt() {
			continue
		}
		for _, pay := range v.Payments.Data {
			if in := intents[pay.Payment.PaymentIntent.ID]; in != nil && v.Attempted && pay.Status == "open" {
				if b.Processing, b.Failure, b.Method = in.went(); b.Processing {
					break // whatever else was tried: money is on its way
				}
			}
		}
		out = append(out, b)
	}
	slices.SortStableFunc(out, func(a, b billing.Invoice) int { return a.Created.Compare(b.Created) })
	return out
}

// went says how a payment that did not succeed stands.
func (in *paymentIntent) went() (processing bool, failure string, with *billing.PaymentMethod) {
	m := in.PaymentMethod.Obj
	e := in.LastPaymentError
	switch {
	case in.Status == "processing":
		processing = true
	case in.Status == "requires_action":
		failure = "authentication_required"
	case e != nil:
		failure = billing.DeclineCode(e.Code, e.DeclineCode)
		if m == nil {
			m = e.PaymentMethod // a failed payment lets go of it
		}
	}
	if m != nil {
		b := m.convert()
		with = &b
	}
	return processing, failure, with
}

// withPage is b, which v was converted to, with the page where it can be paid.
func (p *Provider) withPage(v *invoice, b billing.Invoice) billing.Invoice {
	if b.Status == billing.InvoiceOpen && p.safePage(v.HostedURL) {
		b.PaymentPage = v.HostedURL
	}
	return b
}

// payable reads an invoice of the customer with its payments.
func (p *Provider) payable(ctx context.Context, customerID, id string) (*invoice, *answer, error) {
	f := form{}
	f.expand("payments.data.payment.payment_intent")
	v := new(invoice)
	a, err := p.get(ctx, v, f, "invoices", id)
	if err == nil && (v.Object != "invoice" || v.ID != id || v.Customer.ID != customerID) {
		err = notFound(id)
	}
	return v, a, err
}

// intent is the payment of v that has a status, or nil.
func (v *invoice) intent(status string) *paymentIntent {
	for _, pay := range v.Payments.Data {
		if in := pay.Payment.PaymentIntent.Obj; in != nil && in.Status == status {
			return in
		}
	}
	return nil
}

// detached reports whether a payment method that is or was the customer's is
// nobody's any more.
func (p *Provider) detached(ctx context.Context, customerID, id string) (bool, error) {
	var m paymentMethod
	if _, err := p.get(ctx, &m, nil, "payment_methods", id); err != nil {
		return false, err
	}
	if m.Object != "payment_method" || m.ID != id || m.Customer.ID != "" && m.Customer.ID != customerID {
		return false, notFound(id)
	}
	return m.Customer.ID == "", nil
}

// tooLate makes a payment or a removal that Stripe refused "not_changeable"
// where the reason is that it is done, or on its way, already.
func (p *Provider) tooLate(ctx context.Context, customerID string, step billing.Step, fault error) error {
	e, ok := errors.AsType[*billing.Error](fault)
	if !ok || e.Fault != billing.Refused || e.Code != "invalid_request" {
		return fault
	}
	switch step.Kind {
	case stepPay:
		if v, _, err := p.payable(ctx, customerID, step.Object); err == nil && (v.Status != "open" || v.intent("processing") != nil) {
			e.Code = "not_changeable"
		}
	case stepDetach:
		if gone, err := p.detached(ctx, customerID, step.Object); err == nil && gone {
			e.Code = "not_changeable"
		}
	}
	return fault
}

// payAsks is the result of a payment that asks the customer to confirm: the
// payment is confirmed with the page to come back to, as paying an invoice takes
// none (docs.stripe.com/api/payment_intents/confirm). Where that fails, the
// hosted invoice page does it. Where surely is set it is certain that the payment
// waits, and what the page needs is read best effort. Where it is not, the bank
// may have declined for want of a confirmation: waits is then false where no
// payment stands that could be confirmed.
func (p *Provider) payAsks(ctx context.Context, customerID string, step billing.Step, par params, key string, surely bool) (res billing.Result, waits bool) {
	v, a, err := p.payable(ctx, customerID, step.Object)
	if err != nil {
		return billing.Result{State: billing.AwaitingCustomer, Reason: "authentication_required", Object: step.Object}, true
	}
	in := v.intent("requires_action")
	if in == nil && !surely && v.Status == "open" {
		return billing.Result{}, false
	}
	if in == nil || in.page() != "" || par.ReturnURL == "" {
		return p.payWaits(ctx, customerID, v, a, nil), true
	}
	u, ok := path("payment_intents", in.ID, "confirm")
	key += ".confirm"
	if !ok || len(key) > 255 {
		return p.payWaits(ctx, customerID, v, a, nil), true
	}
	c, err := p.send(ctx, http.MethodPost, u, form{{"return_url", par.ReturnURL}}.encode(), key)
	if err != nil || c.status/100 != 2 {
		return p.payWaits(ctx, customerID, v, a, nil), true
	}
	var now paymentIntent
	if c.decode(&now) == nil && now.Object == "payment_intent" && now.ID == in.ID {
		in.NextAction = now.NextAction
	}
	if now.Status == "succeeded" {
		// The bank asked for nothing more after all.
		if paid, _, err := p.payable(ctx, customerID, step.Object); err == nil && paid.Status == "paid" {
			inv := paid.convert(nil)
			return billing.Result{State: billing.Done, Object: paid.ID, Invoice: &inv}, true
		}
	}
	return p.payWaits(ctx, customerID, v, a, nil), true
}

// page is where the customer confirms, or "".
func (in *paymentIntent) page() string {
	if in == nil || in.NextAction == nil || in.NextAction.RedirectToURL == nil {
		return ""
	}
	return in.NextAction.RedirectToURL.URL
}

// payWaits is the result of a payment of v, read with a, that waits for the
// customer.
func (p *Provider) payWaits(ctx context.Context, customerID string, v *invoice, a *answer, last *billing.Result) billing.Result {
	res := billing.Result{State: billing.AwaitingCustomer, Reason: "authentication_required", Object: v.ID, Until: a.at.Add(billing.ConfirmWithin)}
	waits := false
	if v.BillingReason == "subscription_update" && v.subscription() != "" {
		if s, _, err := p.subscription(ctx, customerID, v.subscription()); err == nil && s.PendingUpdate != nil && s.LatestInvoice.ID == v.ID {
			waits = true
			res.Until = s.PendingUpdate.ExpiresAt.time()
		}
	}
	if !waits && last != nil && !last.Until.IsZero() {
		res.Until = last.Until
	}
	inv := v.convert(map[string]bool{v.ID: waits})
	res.Invoice = &inv
	switch page := v.intent("requires_action").page(); {
	case p.safePage(page):
		res.GoTo = page
	case last != nil && last.GoTo != "":
		res.GoTo = last.GoTo
	case p.safePage(v.HostedURL):
		res.GoTo = v.HostedURL
	}
	return res
}

func (p *Provider) outcomePay(ctx context.Context, customerID string, step billing.Step, last *billing.Result) (billing.Outcome, billing.Result, error) {
	v, a, err := p.payable(ctx, customerID, step.Object)
	if err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	inv := v.convert(nil)
	switch {
	case v.Status == "paid":
		return billing.Applied, billing.Result{State: billing.Done, Object: v.ID, Invoice: &inv}, nil
	case v.Status != "open":
	case v.intent("processing") != nil:
		return billing.Applied, billing.Result{State: billing.Processing, Object: v.ID, Invoice: &inv}, nil
	case v.intent("requires_action") != nil:
		// A payment that asks for confirmation took effect, and waits.
		res := p.payWaits(ctx, customerID, v, a, last)
		if a.at.Before(res.Until) {
			return billing.Applied, res, nil
		}
	}
	return billing.NotApplied, billing.Result{}, nil
}

// previewMethod previews what is about payment methods and debts.
func (p *Provider) previewMethod(ctx context.Context, customerID string, action billing.Action, at time.Time) (billing.Preview, error) {
	var (
		c       *customer
		ans     *answer
		subs    []subscription
		m       *paymentMethod
		methods list[paymentMethod]
		open    []invoice
	)
	owes := len(action.Invoices) > 0 || action.Kind == billing.RemovePaymentMethod
	reads := []func() error{
		func() (err error) { c, ans, err = p.customer(ctx, customerID); return err },
		func() (err error) { subs, err = p.subscriptions(ctx, customerID); return err },
	}
	if action.PaymentMethod != "" {
		reads = append(reads, func() error {
			read, err := p.paymentMethod(ctx, customerID, action.PaymentMethod)
			m = &read
			return err
		})
	}
	if action.Kind == billing.RemovePaymentMethod {
		reads = append(reads, func() error {
			_, err := p.get(ctx, &methods, form{{"limit", "100"}}, "customers", customerID, "payment_methods")
			return err
		})
	}
	if owes {
		reads = append(reads, func() (err error) { open, err = p.openInvoices(ctx, customerID); return err })
	}
	if err := parallel(reads...); err != nil {
		return billing.Preview{}, err
	}
	intents, err := p.intents(ctx, customerID, open)
	if err != nil {
		return billing.Preview{}, err
	}
	if at.IsZero() {
		at = ans.now(c.TestClock)
	}
	at = at.UTC().Truncate(time.Second)

	acc := billing.Account{Customer: c.convert()}
	pending := map[string]bool{}
	for i := range subs {
		b, err := subs[i].convert(nil, "")
		if err != nil {
			return billing.Preview{}, readFault(ans, err)
		}
		if b.Pending != nil {
			pending[b.Pending.InvoiceID] = true
		}
		acc.Subscriptions = append(acc.Subscriptions, b)
	}
	for i := range methods.Data {
		if methods.Data[i].Customer.ID == customerID {
			acc.PaymentMethods = append(acc.PaymentMethods, methods.Data[i].convert())
		}
	}
	if m != nil {
		if _, ok := acc.PaymentMethod(m.ID); !ok {
			acc.PaymentMethods = append(acc.PaymentMethods, m.convert())
		}
	}
	acc.Debts = p.debts(open, pending, intents)

	out := billing.Preview{Action: action, At: at, ObjectVersion: acc.Customer.Version, Effective: at}
	no := func(err error) (billing.Preview, error) { return billing.Preview{}, err }
	var sub *subscription
	if action.Subscription != "" {
		i := slices.IndexFunc(subs, func(s subscription) bool { return s.ID == action.Subscription })
		if i < 0 {
			return no(notFound(action.Subscription))
		}
		if sub = &subs[i]; sub.ended() {
			return no(refused("not_changeable", sub.ID, errors.New("the subscription has ended")))
		}
		out.ObjectVersion = sub.version()
	}
	invoices, err := acc.PayWhat(action, func(id string) error { _, err := p.invoice(ctx, customerID, id); return err })
	if err != nil {
		return no(err)
	}
	pay := func(id string) {
		st := newStep(stepPay, id, present, params{ReturnURL: action.ReturnURL})
		if action.Kind == billing.AddPaymentMethod || m != nil {
			st = methodStep(stepPay, id, "payment_method", action.PaymentMethod, present, params{ReturnURL: action.ReturnURL})
		}
		st.Independent = true
		out.Steps = append(out.Steps, st)
	}
	if action.ReturnURL != "" && !p.safeReturn(action.ReturnURL) {
		return no(refused("invalid_request", "return_url", errors.New("the return URL is not an absolute http or https URL")))
	}
	switch action.Kind {
	case billing.SetDefaultPaymentMethod:
		switch {
		case m == nil:
			return no(refused("invalid_request", "payment_method", errors.New("no payment method given")))
		case sub != nil:
			out.Steps = []billing.Step{methodStep(stepDefault, sub.ID, "default_payment_method", m.ID, nil, params{})}
		default:
			out.Steps = defaultSteps(customerID, subs, m, action.ReturnURL)
		}
		return out, nil
	case billing.RemovePaymentMethod:
		if err := acc.Removable(action.PaymentMethod); err != nil {
			return no(err)
		}
		out.Steps = []billing.Step{newStep(stepDetach, action.PaymentMethod, nil, params{})}
		return out, nil
	case billing.PayInvoices:
		if len(invoices) == 0 {
			return no(refused("invalid_request", "invoices", errors.New("no invoices given")))
		}
		if m != nil && m.Type == "customer_balance" {
			return no(refused("invalid_request", "payment_method", errors.New("a bank transfer comes from the customer's bank")))
		}
		out.Pays(invoices)
		for i := range invoices {
			v := open[slices.IndexFunc(open, func(o invoice) bool { return o.ID == invoices[i].ID })]
			if m == nil && acc.PaysFor(&invoices[i]) == "" && !hasSource(&v, c, subs) {
				return no(refused("payment_method_required", v.ID, errors.New("there is no payment method to pay with")))
			}
			pay(v.ID)
		}
		return out, nil
	}

	// AddPaymentMethod
	if action.ReturnURL == "" {
		return no(refused("invalid_request", "return_url", errors.New("no return URL given")))
	}
	currency := c.Currency
	for i := range subs {
		if currency == "" && !subs[i].ended() {
			currency = subs[i].Currency
		}
	}
	f := form{{"mode", "setup"}, {"customer", customerID}, {"success_url", action.ReturnURL}, {"cancel_url", action.ReturnURL}}
	if currency != "" {
		// Which kinds of payment method are offered depends on it.
		f.add("currency", currency)
	} else {
		f.add("payment_method_types[0]", "card")
	}
	out.Steps = []billing.Step{newStep(stepSetup, customerID, f, params{})}
	switch {
	case action.Use == billing.UseEverything && sub == nil:
		out.Steps = append(out.Steps, defaultSteps(customerID, subs, nil, action.ReturnURL)...)
	case action.Use == billing.UseSubscription && sub != nil:
		out.Steps = append(out.Steps, methodStep(stepDefault, sub.ID, "default_payment_method", "", nil, params{}))
	case action.Use == billing.UseNothing && sub == nil:
	default:
		return no(refused("invalid_request", "use", errors.New("the use of the payment method and the subscription do not go together")))
	}
	if len(invoices) > 0 {
		out.Pays(invoices)
	}
	for i := range invoices {
		pay(invoices[i].ID)
	}
	return out, nil
}

// hasSource reports whether v is paid with something that is none of the
// portal's payment methods: one of its own, or a source of the old kind.
func hasSource(v *invoice, c *customer, subs []subscription) bool {
	return v.DefaultPaymentMethod.ID+v.DefaultSource.ID+c.DefaultSource.ID != "" ||
		slices.ContainsFunc(subs, func(s subscription) bool { return s.ID == v.subscription() && s.DefaultSource.ID != "" })
}
