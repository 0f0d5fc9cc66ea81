package sandbox

import (
	"cmp"
	"context"
	"slices"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func methodOf(m PaymentMethod) billing.PaymentMethod {
	return billing.PaymentMethod{
		ID: m.ID, Type: m.kind(), Brand: m.Brand, Last4: m.Last4, ExpMonth: m.ExpMonth, ExpYear: m.ExpYear,
		Wallet: m.Wallet, Bank: m.Bank, Country: m.Country, Email: m.Email,
	}
}

// methods are a customer's payment methods, newest first.
func (w *work) methods(customer string) ([]billing.PaymentMethod, error) {
	list, err := listOf[PaymentMethod](w, "payment_method", customer)
	out := slices.Grow([]billing.PaymentMethod(nil), len(list))
	for _, m := range list {
		out = append(out, methodOf(m))
	}
	return out, err
}

// invoice is inv with the page that it can be paid on.
func (p *Provider) invoice(inv Invoice) billing.Invoice {
	b := invoiceOf(inv)
	if inv.Status == billing.InvoiceOpen && inv.PaymentIntent != "" {
		b.PaymentPage = p.pages + "/confirm/" + inv.PaymentIntent
	}
	return b
}

// debts are a customer's debts, oldest first, with how their last payment went.
func (p *Provider) debts(w *work, customer string) ([]billing.Invoice, error) {
	var open []Invoice
	err := ofCustomer(w, "invoice", customer, "", false, func(inv Invoice) bool {
		if b := invoiceOf(inv); b.Debt() {
			open = append(open, inv)
		}
		return len(open) < billing.MaxDebts
	})
	if err != nil {
		return nil, err
	}
	var out []billing.Invoice
	for _, inv := range slices.Backward(open) {
		b := p.invoice(inv)
		if err := w.went(inv, &b); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// went says in b how the last payment of inv, which is open, went.
func (w *work) went(inv Invoice, b *billing.Invoice) error {
	b.Processing = inv.Processing
	pi, err := get[PaymentIntent](w, "payment_intent", inv.PaymentIntent)
	if err != nil {
		return err
	}
	if pi.LastErrorCode != "" && pi.LastErrorCode != "payment_method_required" {
		b.Failure = billing.DeclineCode(pi.LastErrorCode, pi.LastDeclineCode)
	}
	if pi.PaymentMethod != "" {
		m, err := get[PaymentMethod](w, "payment_method", pi.PaymentMethod)
		if err != nil {
			return err
		}
		pm := methodOf(m)
		b.Method = &pm
	}
	return nil
}

// canWait refuses to pay what a change waits for by a payment that takes longer
// than the change waits.
func (p *Provider) canWait(ctx context.Context, invoice, method string) error {
	_, err := read(ctx, p.ledger, func(w *work) (struct{}, error) {
		inv, err := get[Invoice](w, "invoice", invoice)
		if err != nil || !inv.ForPendingUpdate || method == "" {
			return struct{}{}, err
		}
		m, err := get[PaymentMethod](w, "payment_method", method)
		if err == nil && m.debit() {
			err = refused("not_changeable", method, "a bank debit takes longer than the change waits")
		}
		return struct{}{}, err
	})
	return err
}

// previewMethod previews what is about payment methods and debts.
func (p *Provider) previewMethod(w *work, v billing.Preview, cus Customer) (billing.Preview, error) {
	a := billing.Account{Customer: customerOf(cus)}
	subs, err := listOf[Subscription](w, "subscription", cus.ID)
	if err != nil {
		return v, err
	}
	for _, s := range subs {
		b, err := p.subscription(w, s)
		if err != nil {
			return v, err
		}
		a.Subscriptions = append(a.Subscriptions, b)
	}
	if a.PaymentMethods, err = w.methods(cus.ID); err != nil {
		return v, err
	}
	if a.Debts, err = p.debts(w, cus.ID); err != nil {
		return v, err
	}
	action := v.Action
	var sub *billing.Subscription
	if action.Subscription != "" {
		var ok bool
		if sub, ok = a.Subscription(action.Subscription); !ok {
			return v, notFound(action.Subscription)
		}
		if sub.Ended() {
			return v, refused("not_changeable", sub.ID, "the subscription has ended")
		}
		v.ObjectVersion = sub.Version
	}
	if action.PaymentMethod != "" {
		if _, ok := a.PaymentMethod(action.PaymentMethod); !ok {
			return v, notFound(action.PaymentMethod)
		}
	}
	invoices, err := a.PayWhat(action, func(id string) error {
		inv, err := get[Invoice](w, "invoice", id)
		if err == nil && inv.Customer != cus.ID {
			err = notFound(id)
		}
		return err
	})
	if err != nil {
		return v, err
	}
	add := func(kind, object string, params any, independent bool, needs ...string) error {
		st, err := step(kind, object, params)
		st.Needs, st.Independent = needs, independent
		v.Steps = append(v.Steps, st)
		return err
	}
	switch action.Kind {
	case billing.SetDefaultPaymentMethod:
		switch {
		case action.PaymentMethod == "":
			return v, refused("invalid_request", "payment_method", "no payment method given")
		case sub != nil:
			return v, add(stepSubscriptionUpdate, sub.ID, SubscriptionUpdate{DefaultPaymentMethod: &action.PaymentMethod}, false)
		}
		v.Steps, err = p.defaultSteps(w, cus.ID, action.PaymentMethod, action.ReturnURL)
		return v, err
	case billing.RemovePaymentMethod:
		if err := a.Removable(action.PaymentMethod); err != nil {
			return v, err
		}
		return v, add(stepMethodDetach, action.PaymentMethod, struct{}{}, false)
	case billing.PayInvoices:
		if len(invoices) == 0 {
			return v, refused("invalid_request", "invoices", "no invoices given")
		}
		v.Pays(invoices)
		for i := range invoices {
			method := cmp.Or(action.PaymentMethod, a.PaysFor(&invoices[i]))
			if m, ok := a.PaymentMethod(method); !ok {
				return v, refused("payment_method_required", invoices[i].ID, "there is no payment method to pay with")
			} else if m.Type == "customer_balance" {
				return v, refused("invalid_request", "payment_method", "a bank transfer comes from the customer's bank")
			}
			if err := add(stepInvoicePay, invoices[i].ID, PayParams{PaymentMethod: action.PaymentMethod, ReturnURL: action.ReturnURL}, true); err != nil {
				return v, err
			}
		}
		return v, nil
	}
	// AddPaymentMethod
	if action.ReturnURL == "" {
		return v, refused("invalid_request", "return_url", "no return URL given")
	}
	if err := add(stepSessionCreate, cus.ID, SessionParams{Customer: cus.ID, SuccessURL: action.ReturnURL, CancelURL: action.ReturnURL}, false); err != nil {
		return v, err
	}
	switch {
	case action.Use == billing.UseEverything && sub == nil:
		steps, err := p.defaultSteps(w, cus.ID, "", action.ReturnURL)
		if err != nil {
			return v, err
		}
		v.Steps = append(v.Steps, steps...)
	case action.Use == billing.UseSubscription && sub != nil:
		pm := ""
		if err := add(stepSubscriptionUpdate, sub.ID, SubscriptionUpdate{DefaultPaymentMethod: &pm}, false, refPaymentMethod); err != nil {
			return v, err
		}
	case action.Use == billing.UseNothing && sub == nil:
	default:
		return v, refused("invalid_request", "use", "the use of the payment method and the subscription do not go together")
	}
	if len(invoices) > 0 {
		v.Pays(invoices)
	}
	for i := range invoices {
		if err := add(stepInvoicePay, invoices[i].ID, PayParams{ReturnURL: action.ReturnURL}, true, refPaymentMethod); err != nil {
			return v, err
		}
	}
	return v, nil
}
