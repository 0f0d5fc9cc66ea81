package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// safeReturn reports whether raw can be a page to come back to.
func (p *Provider) safeReturn(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Host != "" && u.User == nil && (u.Scheme == "https" || u.Scheme == "http")
}

// Execute implements billing.Provider. It reads the object first, to see that
// it is the customer's, and then sends one POST with the key; nothing else
// changes anything. See executeFault for what its errors mean.
func (p *Provider) Execute(ctx context.Context, customerID string, step billing.Step, key string) (billing.Result, error) {
	ctx = forChange(ctx, customerID)
	var par params
	if err := json.Unmarshal(step.Params, &par); err != nil {
		return billing.Result{}, refused("invalid_request", step.Kind, errors.New("the step's parameters are not this adapter's"))
	}
	if key == "" || len(key) > 255 {
		return billing.Result{}, refused("invalid_request", "key", errors.New("an idempotency key has 1 to 255 characters"))
	}
	if step.Kind == stepTaxIDDelete {
		return p.deleteTaxID(ctx, customerID, step, par)
	}
	method, err := filled(step, par)
	if err != nil {
		return billing.Result{}, err
	}
	u, err := p.owned(ctx, customerID, step, par, method)
	if err != nil {
		return billing.Result{}, err
	}
	body := body(step, par, key)
	a, err := p.send(ctx, http.MethodPost, u, body, key)
	if err != nil {
		return billing.Result{}, executeFault(nil, err)
	}
	if a.status/100 != 2 {
		fault := executeFault(a, nil)
		if step.Kind == stepPay && billing.FaultOf(fault) == billing.Refused && billing.CodeOf(fault) == "authentication_required" {
			o, _ := a.errorObject()
			if res, waits := p.payAsks(ctx, customerID, step, par, key, strings.HasSuffix(o.Code, "_requires_action")); waits {
				return res, nil
			}
		}
		return billing.Result{}, p.tooLate(ctx, customerID, step, fault)
	}
	res, err := p.result(ctx, customerID, step, par, key, a)
	if err != nil {
		return billing.Result{}, executeFault(a, err)
	}
	return res, nil
}

// filled checks that all references are there and returns the payment method
// that the step uses, if any.
func filled(step billing.Step, par params) (string, error) {
	method := par.PaymentMethod
	for ref := range par.Fill {
		v := step.Refs[ref]
		if v == "" {
			return "", refused("invalid_request", ref, errors.New("a value that an earlier step brings is not there yet"))
		}
		if ref == refPaymentMethod {
			method = v
		}
	}
	return method, nil
}

// body is the request's body: the frozen form, the references in the order of
// their names, and the key where metadata is taken.
func body(step billing.Step, par params, key string) string {
	var f form
	for _, ref := range slices.Sorted(slices.Values(step.Needs)) {
		f.add(par.Fill[ref], step.Refs[ref])
	}
	if step.Kind == stepUpdate || step.Kind == stepSetup {
		f.add("metadata["+metaStep+"]", key)
	}
	extra := f.encode()
	if par.Form == "" || extra == "" {
		return par.Form + extra
	}
	return par.Form + "&" + extra
}

// owned checks that the step's object, and the payment method it uses, are
// the customer's, and returns the path of the call. As nothing was sent yet, a
// read that failed is Retryable.
func (p *Provider) owned(ctx context.Context, customerID string, step billing.Step, par params, method string) (string, error) {
	var u string
	var ok bool
	var read func() error
	switch step.Kind {
	case stepUpdate, stepCancel, stepResume, stepDefault:
		u, ok = path("subscriptions", step.Object)
		read = func() error {
			var s subscription
			_, err := p.get(ctx, &s, nil, "subscriptions", step.Object)
			if err == nil && (s.ID != step.Object || s.Customer.ID != customerID) {
				return notFound(step.Object)
			}
			return err
		}
	case stepVoid, stepPay:
		verb := "void"
		if step.Kind == stepPay {
			verb = "pay"
		}
		u, ok = path("invoices", step.Object, verb)
		read = func() error { _, err := p.invoice(ctx, customerID, step.Object); return err }
	case stepDetach:
		u, ok = path("payment_methods", step.Object, "detach")
		read = func() error { _, err := p.detached(ctx, customerID, step.Object); return err }
	case stepCustomer, stepCustomerDefault, stepSetup, stepTaxIDCreate:
		if step.Object != customerID {
			return "", notFound(step.Object)
		}
		u, ok = path("customers", customerID)
		switch step.Kind {
		case stepSetup:
			u = "/v1/checkout/sessions"
		case stepTaxIDCreate:
			u, ok = path("customers", customerID, "tax_ids")
		}
		read = func() error { _, _, err := p.customer(ctx, customerID); return err }
	default:
		return "", refused("invalid_request", step.Kind, fmt.Errorf("stripe: no step %q", step.Kind))
	}
	if !ok {
		return "", notFound(step.Object)
	}
	checks := []func() error{read}
	if method != "" {
		checks = append(checks, func() error {
			m, err := p.paymentMethod(ctx, customerID, method)
			if err == nil && par.Waits && m.delayed() {
				err = refused("not_changeable", method, errors.New("the payment takes longer than the change waits"))
			}
			return err
		})
	}
	return u, beforeSending(parallel(checks...))
}

// beforeSending is the error of a change that was not sent, because what comes
// before it could not be read: nothing changed.
func beforeSending(err error) error {
	var e *billing.Error
	if errors.As(err, &e) && e.Fault == billing.Unavailable {
		e.Fault = billing.Retryable
		if e.Code == "authentication" || e.Code == "permission" || e.Code == "invalid_request" {
			e.Fault = billing.Refused
		}
	}
	return err
}

// result reads a 2xx answer. An error means that the answer is not what the
// step must give, so that the outcome is unknown.
func (p *Provider) result(ctx context.Context, customerID string, step billing.Step, par params, key string, a *answer) (billing.Result, error) {
	switch step.Kind {
	case stepUpdate, stepCancel, stepResume, stepDefault:
		var s subscription
		if err := a.decode(&s); err != nil {
			return billing.Result{}, err
		}
		if s.Object != "subscription" || s.ID != step.Object || s.Customer.ID != customerID {
			return billing.Result{}, errors.New("the answer is not the customer's subscription")
		}
		switch {
		case step.Kind == stepUpdate:
			outcome, res := p.updated(ctx, &s, par, key)
			if outcome != billing.Applied {
				return billing.Result{}, errors.New("the answer does not show the change")
			}
			return res, nil
		case step.Kind == stepCancel && !s.CancelAtPeriodEnd && s.CancelAt == 0,
			step.Kind == stepResume && (s.CancelAtPeriodEnd || s.CancelAt != 0):
			return billing.Result{}, errors.New("the answer does not show the change")
		}
		return billing.Result{State: billing.Done, Object: s.ID}, nil
	case stepVoid, stepPay:
		var v invoice
		if err := a.decode(&v); err != nil {
			return billing.Result{}, err
		}
		want := "void"
		if step.Kind == stepPay {
			want = "paid"
		}
		if v.Object != "invoice" || v.ID != step.Object || v.Customer.ID != customerID {
			return billing.Result{}, errors.New("the answer is not the customer's invoice")
		}
		if v.Status == "open" && step.Kind == stepPay {
			inv := v.convert(nil)
			return billing.Result{State: billing.Processing, Object: v.ID, Invoice: &inv}, nil
		}
		if v.Status != want {
			return billing.Result{}, fmt.Errorf("the invoice is %q", v.Status)
		}
		inv := v.convert(nil)
		return billing.Result{State: billing.Done, Object: v.ID, Invoice: &inv}, nil
	case stepDetach:
		var m paymentMethod
		if err := a.decode(&m); err != nil {
			return billing.Result{}, err
		}
		if m.Object != "payment_method" || m.ID != step.Object || m.Customer.ID != "" {
			return billing.Result{}, errors.New("the answer is not the payment method without its customer")
		}
		return billing.Result{State: billing.Done, Object: m.ID}, nil
	case stepSetup:
		var c checkoutSession
		if err := a.decode(&c); err != nil {
			return billing.Result{}, err
		}
		if c.Object != "checkout.session" || c.Customer.ID != customerID || c.Mode != "setup" || !p.safePage(c.URL) {
			return billing.Result{}, errors.New("the answer is not a setup session of the customer")
		}
		return c.awaiting(), nil
	}
	if step.Kind == stepTaxIDCreate {
		var t taxID
		if err := a.decode(&t); err != nil {
			return billing.Result{}, err
		}
		if t.Object != "tax_id" || t.Customer.ID != customerID || t.Type != par.TaxID.Type {
			return billing.Result{}, errors.New("the answer is not the customer's new tax id")
		}
		return billing.Result{State: billing.Done, Object: t.ID}, nil
	}
	var c customer
	if err := a.decode(&c); err != nil {
		return billing.Result{}, err
	}
	if c.Object != "customer" || c.ID != customerID {
		return billing.Result{}, errors.New("the answer is not the customer")
	}
	return billing.Result{State: billing.Done, Object: c.ID}, nil
}

// refSession names the checkout session.
const refSession = "checkout_session"

func (c *checkoutSession) awaiting() billing.Result {
	return billing.Result{
		State: billing.AwaitingCustomer, Reason: "enter_card", GoTo: c.URL, Until: c.ExpiresAt.time(), Object: c.ID,
		Refs: map[string]string{refSession: c.ID},
	}
}

// updated says whether s shows the change that par asks for: in its items, or
// in a pending update that waits for its payment.
func (p *Provider) updated(ctx context.Context, s *subscription, par params, key string) (billing.Outcome, billing.Result) {
	res := billing.Result{Object: s.ID, State: billing.Done}
	if v := s.LatestInvoice.Obj; v != nil && v.ID != par.Invoice {
		inv := v.convert(map[string]bool{v.ID: s.PendingUpdate != nil})
		res.Invoice = &inv
	}
	if u := s.PendingUpdate; u != nil && (u.Metadata[metaStep] == key || matches(u.Items, par.Items)) {
		// Why it waits is for the page; that it waits is certain already.
		w, _ := p.waiting(ctx, s)
		res.State, res.Until, res.Reason, res.GoTo = billing.AwaitingCustomer, u.ExpiresAt.time(), w.reason, w.goTo
		return billing.Applied, res
	}
	if matches(s.Items.Data, par.Items) {
		if par.Delayed && res.Invoice != nil && res.Invoice.Status == billing.InvoiceOpen {
			// The change stands either way; the read says whether its payment is
			// still on its way.
			if v, _, err := p.payable(ctx, s.Customer.ID, res.Invoice.ID); err != nil || v.intent("processing") != nil {
				res.State = billing.Processing
			}
		}
		return billing.Applied, res
	}
	return billing.NotApplied, billing.Result{}
}

func matches(have []subscriptionItem, want []billing.ItemChange) bool {
	if len(have) != len(want) {
		return false
	}
	for _, h := range have {
		if !slices.Contains(want, billing.ItemChange{Item: h.ID, Price: h.Price.ID, Quantity: h.Quantity}) {
			return false
		}
	}
	return true
}

// Outcome implements billing.Provider.
//
// A step that still waits for the customer, or for the bank, is Applied with
// a Result that says so. A subscription.update is told by the key in the metadata of the
// subscription or its pending update, and by the items; the other steps by
// the state they set, as theirs can be set twice without harm.
func (p *Provider) Outcome(ctx context.Context, customerID string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	ctx = forChange(ctx, customerID)
	var par params
	if err := json.Unmarshal(step.Params, &par); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, refused("invalid_request", step.Kind, errors.New("the step's parameters are not this adapter's"))
	}
	method, err := filled(step, par)
	if err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	says := func(yes bool, object string) (billing.Outcome, billing.Result, error) {
		if yes {
			return billing.Applied, billing.Result{State: billing.Done, Object: object}, nil
		}
		return billing.NotApplied, billing.Result{}, nil
	}
	unsure := func(err error) (billing.Outcome, billing.Result, error) {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	switch step.Kind {
	case stepUpdate, stepCancel, stepResume, stepDefault:
		s, _, err := p.subscription(ctx, customerID, step.Object)
		if err != nil {
			return unsure(err)
		}
		switch step.Kind {
		case stepCancel:
			return says(s.CancelAtPeriodEnd || s.CancelAt != 0 || s.ended(), s.ID)
		case stepResume:
			return says(!s.CancelAtPeriodEnd && s.CancelAt == 0 && !s.ended(), s.ID)
		case stepDefault:
			return says(s.DefaultPaymentMethod.ID == method, s.ID)
		}
		return p.outcomeUpdate(ctx, s, par, key, last)
	case stepVoid:
		v, err := p.invoice(ctx, customerID, step.Object)
		if err != nil {
			return unsure(err)
		}
		if v.Status != "void" {
			return says(false, v.ID)
		}
		inv := v.convert(nil)
		return billing.Applied, billing.Result{State: billing.Done, Object: v.ID, Invoice: &inv}, nil
	case stepPay:
		return p.outcomePay(ctx, customerID, step, last)
	case stepDetach:
		gone, err := p.detached(ctx, customerID, step.Object)
		if err != nil {
			return unsure(err)
		}
		return says(gone, step.Object)
	case stepSetup:
		return p.outcomeSetup(ctx, customerID, key, last)
	case stepTaxIDDelete:
		if par.Customer != customerID {
			return unsure(notFound(step.Object))
		}
		has, err := p.hasTaxID(ctx, customerID, step.Object)
		if err != nil {
			return unsure(err)
		}
		return says(!has, step.Object)
	case stepCustomer, stepCustomerDefault, stepTaxIDCreate:
		if step.Object != customerID {
			return unsure(notFound(step.Object))
		}
		c, _, err := p.customer(ctx, customerID)
		if err != nil {
			return unsure(err)
		}
		if step.Kind == stepTaxIDCreate {
			t, yes := c.added(par)
			return says(yes, t.ID)
		}
		if step.Kind == stepCustomerDefault {
			return says(c.InvoiceSettings.DefaultPaymentMethod.ID == method, c.ID)
		}
		return says(hasDetails(c, par.Details), c.ID)
	}
	return unsure(refused("invalid_request", step.Kind, fmt.Errorf("stripe: no step %q", step.Kind)))
}

func (p *Provider) outcomeUpdate(ctx context.Context, s *subscription, par params, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	if last != nil && last.Invoice != nil && last.Invoice.ID != s.LatestInvoice.ID {
		// A renewal came in between: the change is told by its own invoice.
		v, _, err := p.payable(ctx, s.Customer.ID, last.Invoice.ID)
		if err != nil {
			return billing.OutcomeUnsure, billing.Result{}, err
		}
		s.LatestInvoice = expandable[invoice]{ID: v.ID, Obj: v}
	}
	outcome, res := p.updated(ctx, s, par, key)
	if last == nil {
		if outcome == billing.NotApplied && s.Metadata[metaStep] == key {
			// The key arrived and the items are others: the change was made
			// and changed again, or dropped. Not for us to guess.
			return billing.OutcomeUnsure, billing.Result{}, nil
		}
		return outcome, res, nil
	}
	return outcome, res, nil
}

func (p *Provider) outcomeSetup(ctx context.Context, customerID, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	id := ""
	if last != nil {
		id = last.Refs[refSession]
	}
	if id == "" {
		// The answer was lost: look for the session that carries the key.
		var l list[checkoutSession]
		if _, err := p.get(ctx, &l, form{{"customer", customerID}, {"limit", "100"}}, "checkout", "sessions"); err != nil {
			return billing.OutcomeUnsure, billing.Result{}, err
		}
		i := slices.IndexFunc(l.Data, func(c checkoutSession) bool {
			return c.Customer.ID == customerID && c.Metadata[metaStep] == key
		})
		if i < 0 {
			if l.HasMore {
				return billing.OutcomeUnsure, billing.Result{}, nil
			}
			return billing.NotApplied, billing.Result{}, nil
		}
		id = l.Data[i].ID
	}
	var c checkoutSession
	f := form{}
	f.expand("setup_intent")
	if _, err := p.get(ctx, &c, f, "checkout", "sessions", id); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	if c.ID != id || c.Customer.ID != customerID || c.Mode != "setup" {
		return billing.OutcomeUnsure, billing.Result{}, notFound(id)
	}
	switch c.Status {
	case "complete":
		si := c.SetupIntent.Obj
		if si == nil || si.Customer.ID != "" && si.Customer.ID != customerID {
			return billing.OutcomeUnsure, billing.Result{}, notFound(c.SetupIntent.ID)
		}
		if si.Status == "processing" || si.Status == "requires_action" {
			return billing.Applied, c.awaiting(), nil
		}
		if si.Status != "succeeded" || si.PaymentMethod.ID == "" {
			return billing.NotApplied, billing.Result{}, nil
		}
		return billing.Applied, billing.Result{
			State: billing.Done, Object: c.ID,
			Refs: map[string]string{refSession: c.ID, refPaymentMethod: si.PaymentMethod.ID},
		}, nil
	case "open":
		if !p.safePage(c.URL) {
			return billing.OutcomeUnsure, billing.Result{}, nil
		}
		return billing.Applied, c.awaiting(), nil
	}
	return billing.NotApplied, billing.Result{}, nil
}

func hasDetails(c *customer, d *billing.Details) bool {
	if d == nil {
		return false
	}
	same := func(want *string, have string) bool { return want == nil || *want == have }
	locale := ""
	if len(c.Locales) > 0 {
		locale = c.Locales[0]
	}
	return same(d.Locale, locale) && (d.InvoiceFields == nil || slices.Equal(*d.InvoiceFields, c.InvoiceSettings.CustomFields)) &&
		same(d.Name, c.Name) && same(d.Email, c.Email) && same(d.Phone, c.Phone) &&
		(d.Address == nil || *d.Address == billing.Address(c.Address))
}
