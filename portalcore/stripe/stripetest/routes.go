package stripetest

import (
	"net/http"
	"slices"
	"strings"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// only is an endpoint that takes nothing but expand.
func only(properties ...string) map[string]*spec {
	return map[string]*spec{"expand": expands(properties...)}
}

// changedItems are the items of an update and of a preview.
var changedItems = &spec{kind: array, elem: obj(map[string]*spec{
	"id": str, "price": str, "quantity": num, "deleted": flag,
})}

var proration = oneOf("always_invoice", "create_prorations", "none")

func (h *handler) routes() {
	h.handle("GET /v1/customers/{id}", only(ofCustomer...), getCustomer)
	h.handle("POST /v1/customers/{id}", map[string]*spec{
		"name": clearStr, "email": clearStr, "phone": clearStr, "metadata": metadata, "expand": expands(),
		"address": obj(map[string]*spec{
			"line1": clearStr, "line2": clearStr, "city": clearStr, "state": clearStr, "postal_code": clearStr, "country": clearStr,
		}),
		"invoice_settings": obj(map[string]*spec{
			"default_payment_method": clearStr,
			"custom_fields":          {kind: array, clear: true, elem: obj(map[string]*spec{"name": str, "value": str})},
		}),
		"preferred_locales": strs,
	}, postCustomer)
	h.papers()
	h.handle("GET /v1/customers/{id}/payment_methods", paged(map[string]*spec{"type": str}), listMethods)
	h.handle("GET /v1/payment_methods/{id}", only(), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		m, err := v.l.PaymentMethod(v.ctx, id)
		return method(m), err
	})
	h.handle("POST /v1/payment_methods/{id}/detach", only(), func(v *view, id string, _ args, c sandbox.Call) (any, error) {
		m, err := v.l.DetachPaymentMethod(v.ctx, c, id)
		if err != nil {
			return nil, err
		}
		return method(m), nil
	})
	h.handle("GET /v1/payment_intents", paged(map[string]*spec{"customer": str}, "data.payment_method"), listIntents)
	h.handle("POST /v1/payment_intents/{id}/confirm", map[string]*spec{"return_url": str, "expand": expands()}, func(v *view, id string, a args, c sandbox.Call) (any, error) {
		p, err := v.l.ConfirmIntent(v.ctx, c, id, a.str("return_url"))
		if err != nil {
			return nil, err
		}
		return v.paymentIntent(p, nil, "")
	})
	h.handle("GET /v1/products", paged(map[string]*spec{"ids": strs, "active": flag}), listProducts)
	h.handle("GET /v1/prices", paged(map[string]*spec{
		"active": flag, "type": oneOf("one_time", "recurring"), "lookup_keys": strs, "product": str,
	}, "data.product"), listPrices)
	h.handle("GET /v1/prices/{id}", only("product", "tiers"), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		x := a.expansions()
		p, err := v.l.Price(v.ctx, id)
		if err != nil {
			return nil, err
		}
		o, err := v.price(p, x["product"])
		if err == nil && x["tiers"] && len(p.Tiers) > 0 {
			o["tiers"] = tiers(p.Tiers)
		}
		return o, err
	})

	h.handle("GET /v1/subscriptions", paged(map[string]*spec{
		"customer": str, "status": oneOf("active", "all", "canceled", "ended", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid"),
	}, listed(ofSubscription)...), listSubscriptions)
	h.handle("GET /v1/subscriptions/{id}", only(ofSubscription...), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		x := a.expansions()
		s, err := v.l.Subscription(v.ctx, id)
		if err != nil {
			return nil, err
		}
		return v.subscription(s, x, "")
	})
	h.handle("POST /v1/subscriptions/{id}", map[string]*spec{
		"items": changedItems, "proration_behavior": proration, "proration_date": num, "metadata": metadata, "expand": expands(ofSubscription...),
		"payment_behavior":     oneOf("allow_incomplete", "default_incomplete", "pending_if_incomplete", "error_if_incomplete"),
		"cancel_at_period_end": flag, "cancel_at": {kind: integer, clear: true}, "default_payment_method": str, "off_session": flag,
	}, postSubscription)

	h.handle("GET /v1/invoices", paged(map[string]*spec{
		"customer": str, "subscription": str, "status": oneOf("draft", "open", "paid", "uncollectible", "void"),
	}, listed(ofInvoice)...), listInvoices)
	h.handle("POST /v1/invoices/create_preview", map[string]*spec{
		"customer": str, "subscription": str, "preview_mode": oneOf("next", "recurring"), "expand": expands(),
		"subscription_details": obj(map[string]*spec{
			"items": changedItems, "proration_behavior": proration, "proration_date": num, "cancel_at_period_end": flag,
			"cancel_at": {kind: integer, clear: true},
		}),
	}, preview)
	h.handle("GET /v1/invoices/{id}", only(ofPaper...), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		i, err := v.l.Invoice(v.ctx, id)
		if err != nil {
			return nil, err
		}
		return v.whole(i, a.expansions())
	})
	h.handle("POST /v1/invoices/{id}/void", only(), func(v *view, id string, _ args, c sandbox.Call) (any, error) {
		i, err := v.l.VoidInvoice(v.ctx, c, id)
		if err != nil {
			return nil, err
		}
		return v.invoice(i, nil, "")
	})
	h.handle("POST /v1/invoices/{id}/pay", map[string]*spec{"payment_method": str, "off_session": flag, "expand": expands()},
		func(v *view, id string, a args, c sandbox.Call) (any, error) {
			off := true
			if p := a.flagp("off_session"); p != nil {
				off = *p
			}
			i, err := v.l.PayInvoice(v.ctx, c, id, sandbox.PayParams{PaymentMethod: a.str("payment_method"), OffSession: off})
			if err != nil {
				return nil, err
			}
			return v.invoice(i, nil, "")
		})
	h.handle("GET /v1/invoice_payments", paged(map[string]*spec{"invoice": str, "status": oneOf("canceled", "open", "paid")}, "data.payment.payment_intent", "data.payment.payment_intent.payment_method"), listPayments)

	h.handle("GET /v1/checkout/sessions", paged(map[string]*spec{"customer": str}), listSessions)
	h.handle("POST /v1/checkout/sessions", map[string]*spec{
		"mode": oneOf("payment", "setup", "subscription"), "customer": str, "currency": str, "success_url": str, "cancel_url": str,
		"metadata": metadata, "payment_method_types": strs, "expires_at": num, "expand": expands(),
	}, postSession)
	h.handle("GET /v1/checkout/sessions/{id}", only("setup_intent"), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		x := a.expansions()
		s, err := v.l.CheckoutSession(v.ctx, id)
		if err != nil {
			return nil, err
		}
		return v.session(s, x, ""), nil
	})

	h.usageRoutes()

	h.mux.Handle("/pages/", http.StripPrefix("/pages", h.l.Pages()))
	h.mux.HandleFunc("GET /files/{id}/{mac}/pdf", h.file)
	h.mux.HandleFunc("GET /storage/{id}/{mac}/pdf", h.file)
	h.mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		h.serve(w, r, nil, func(*view, string, args, sandbox.Call) (any, error) {
			return nil, &sandbox.Error{Status: http.StatusNotFound, Type: sandbox.InvalidRequest, Message: "Unrecognized request URL."}
		})
	})
}

// ofSubscription is what can be expanded on a subscription.
var ofSubscription = []string{
	"items.data.price.product", "default_payment_method", "customer", "customer.invoice_settings.default_payment_method",
	"latest_invoice", "test_clock",
}

// ofInvoice is what can be expanded on an invoice.
var ofInvoice = []string{"payments", "payments.data.payment.payment_intent"}

// listed is properties in a list: one level deeper.
func listed(properties []string) []string {
	var out []string
	for _, p := range properties {
		if strings.Count(p, ".") < 3 {
			out = append(out, "data."+p)
		}
	}
	return out
}

func getCustomer(v *view, id string, a args, _ sandbox.Call) (any, error) {
	x := a.expansions()
	c, err := v.l.Customer(v.ctx, id)
	if err != nil {
		return nil, err
	}
	return v.customer(c, x, "")
}

func postCustomer(v *view, id string, a args, c sandbox.Call) (any, error) {
	p := sandbox.CustomerParams{
		Name: a.strp("name"), Email: a.strp("email"), Phone: a.strp("phone"), Metadata: a.meta(),
		DefaultPaymentMethod: a.args("invoice_settings").strp("default_payment_method"),
	}
	if x := a.args("invoice_settings"); x.has("custom_fields") {
		fields := []billing.InvoiceField{}
		for _, f := range x.list("custom_fields") {
			fields = append(fields, billing.InvoiceField{Name: f.(args).str("name"), Value: f.(args).str("value")})
		}
		p.InvoiceFields = &fields
	}
	if a.has("preferred_locales") {
		p.PreferredLocales = a.strs("preferred_locales")
	}
	if a.has("address") {
		// Members that are not named stay.
		old, err := v.l.Customer(v.ctx, id)
		if err != nil {
			return nil, err
		}
		ad, x := old.Address, a.args("address")
		for name, at := range map[string]*string{
			"line1": &ad.Line1, "line2": &ad.Line2, "city": &ad.City, "state": &ad.State, "postal_code": &ad.PostalCode, "country": &ad.Country,
		} {
			if s := x.strp(name); s != nil {
				*at = *s
			}
		}
		p.Address = &ad
	}
	cus, err := v.l.UpdateCustomer(v.ctx, c, id, p)
	if err != nil {
		return nil, err
	}
	return v.customer(cus, nil, "")
}

func listMethods(v *view, id string, a args, _ sandbox.Call) (any, error) {
	all, err := v.l.PaymentMethods(v.ctx, id)
	if err != nil {
		return nil, err
	}
	all, more, e := page(all, func(m sandbox.PaymentMethod) string { return m.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, m := range all {
		data = append(data, method(m))
	}
	return listOf("/v1/customers/"+id+"/payment_methods", more, data), nil
}

func listProducts(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	all, err := v.l.Products(v.ctx)
	if err != nil {
		return nil, err
	}
	if ids := a.strs("ids"); len(ids) > 0 {
		all = slices.DeleteFunc(all, func(p sandbox.Product) bool { return !slices.Contains(ids, p.ID) })
	}
	if want := a.flagp("active"); want != nil {
		all = slices.DeleteFunc(all, func(p sandbox.Product) bool { return p.Active != *want })
	}
	all, more, e := page(all, func(p sandbox.Product) string { return p.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, p := range all {
		data = append(data, productOf(p))
	}
	return listOf("/v1/products", more, data), nil
}

func listPrices(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	x := a.expansions()
	if a.str("type") == "one_time" {
		return listOf("/v1/prices", false, nil), nil
	}
	all, err := v.l.Prices(v.ctx, sandbox.PriceFilter{Active: a.flagp("active"), LookupKeys: a.strs("lookup_keys"), Product: a.str("product")})
	if err != nil {
		return nil, err
	}
	all, more, e := page(all, func(p sandbox.Price) string { return p.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, p := range all {
		o, err := v.price(p, x["data.product"])
		if err != nil {
			return nil, err
		}
		data = append(data, o)
	}
	return listOf("/v1/prices", more, data), nil
}

// customerOf checks the customer that a list is filtered by: a list of one
// that is not there is refused.
func (v *view) customerOf(a args) (string, error) {
	id := a.str("customer")
	if id == "" {
		return "", invalid("parameter_missing", "customer", "This test server lists by customer only.")
	}
	if _, err := v.l.Customer(v.ctx, id); err != nil {
		return "", invalid("resource_missing", "customer", "No such customer: '%s'", id)
	}
	return id, nil
}

func listSubscriptions(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	x := a.expansions()
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	all, err := v.l.Subscriptions(v.ctx, id)
	if err != nil {
		return nil, err
	}
	status := a.str("status")
	all = slices.DeleteFunc(all, func(s sandbox.Subscription) bool {
		ended := s.Status == billing.Canceled || s.Status == billing.IncompleteExpired
		switch status {
		case "all":
			return false
		case "":
			return s.Status == billing.Canceled
		case "ended":
			return !ended
		}
		return string(s.Status) != status
	})
	all, more, e := page(all, func(s sandbox.Subscription) string { return s.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, s := range all {
		o, err := v.subscription(s, x, "data.")
		if err != nil {
			return nil, err
		}
		data = append(data, o)
	}
	return listOf("/v1/subscriptions", more, data), nil
}

func itemParams(a args) []sandbox.ItemParams {
	var out []sandbox.ItemParams
	for _, x := range a.list("items") {
		it := x.(args)
		p := sandbox.ItemParams{ID: it.str("id"), Price: it.str("price"), Quantity: it.nump("quantity")}
		if d := it.flagp("deleted"); d != nil {
			p.Deleted = *d
		}
		out = append(out, p)
	}
	return out
}

// cancelAt reads cancel_at. The ledger knows the end of the period only, so
// clearing it is all that is taken.
func cancelAt(a args, flag *bool) (*bool, *sandbox.Error) {
	if !a.has("cancel_at") {
		return flag, nil
	}
	if flag != nil {
		return nil, invalid("parameters_exclusive", "cancel_at", "You may only specify one of these parameters: cancel_at, cancel_at_period_end.")
	}
	if a["cancel_at"] != "" {
		return nil, invalid("", "cancel_at", "This test server only clears cancel_at.")
	}
	no := false
	return &no, nil
}

func postSubscription(v *view, id string, a args, c sandbox.Call) (any, error) {
	x := a.expansions()
	end, e := cancelAt(a, a.flagp("cancel_at_period_end"))
	if e != nil {
		return nil, e
	}
	s, err := v.l.UpdateSubscription(v.ctx, c, id, sandbox.SubscriptionUpdate{
		Items: itemParams(a), ProrationBehavior: sandbox.ProrationBehavior(a.str("proration_behavior")), ProrationDate: a.at("proration_date"),
		PaymentBehavior: sandbox.PaymentBehavior(a.str("payment_behavior")), CancelAtPeriodEnd: end,
		DefaultPaymentMethod: a.strp("default_payment_method"), Metadata: a.meta(),
	})
	if err != nil {
		return nil, err
	}
	return v.subscription(s, x, "")
}

func listInvoices(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	limit, after, before, e := cut(a)
	if e != nil {
		return nil, e
	}
	// The ledger cuts the page itself: a customer may have thousands.
	f := sandbox.InvoiceFilter{
		Customer: id, Subscription: a.str("subscription"), Status: billing.InvoiceStatus(a.str("status")),
		StartingAfter: after, EndingBefore: before, Limit: limit,
	}
	all, more, err := v.l.Invoices(v.ctx, f)
	if err != nil {
		return nil, err
	}
	var data []any
	for _, i := range all {
		o, err := v.invoice(i, a.expansions(), "data.")
		if err != nil {
			return nil, err
		}
		data = append(data, o)
	}
	return listOf("/v1/invoices", more, data), nil
}

func preview(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	d := a.args("subscription_details")
	end, e := cancelAt(d, d.flagp("cancel_at_period_end"))
	if e != nil {
		return nil, e
	}
	if a.str("subscription") == "" {
		return nil, invalid("parameter_missing", "subscription", "This test server previews subscriptions only.")
	}
	if d.has("proration_date") && d.str("proration_behavior") == "none" {
		return nil, invalid("", "subscription_details[proration_date]", "proration_date can't be used with proration_behavior=none.")
	}
	i, err := v.l.Preview(v.ctx, sandbox.PreviewParams{
		Subscription: a.str("subscription"), Customer: a.str("customer"), Items: itemParams(d),
		ProrationBehavior: sandbox.ProrationBehavior(d.str("proration_behavior")), ProrationDate: d.at("proration_date"),
		CancelAtPeriodEnd: end, Recurring: a.str("preview_mode") == "recurring",
	})
	if err != nil {
		return nil, err
	}
	return v.invoice(i, nil, "")
}

func listPayments(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	x := a.expansions()
	i, err := v.l.Invoice(v.ctx, a.str("invoice"))
	if err != nil {
		return nil, err
	}
	data, err := v.payments(i, x, "data.")
	if err != nil {
		return nil, err
	}
	if want := a.str("status"); want != "" {
		data = slices.DeleteFunc(data, func(o any) bool { return o.(object)["status"] != want })
	}
	return listOf("/v1/invoice_payments", false, data), nil
}

func listIntents(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	all, err := v.l.PaymentIntents(v.ctx, id)
	if err != nil {
		return nil, err
	}
	all, more, e := page(all, func(p sandbox.PaymentIntent) string { return p.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, p := range all {
		o, err := v.paymentIntent(p, a.expansions(), "data.")
		if err != nil {
			return nil, err
		}
		data = append(data, o)
	}
	return listOf("/v1/payment_intents", more, data), nil
}

func listSessions(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	// The ledger has no list of sessions; its effects name each.
	effects, err := v.l.Effects(v.ctx, 0)
	if err != nil {
		return nil, err
	}
	var all []sandbox.CheckoutSession
	for _, e := range slices.Backward(effects) {
		if e.Kind != "checkout_session.create" || e.Customer != id {
			continue
		}
		s, err := v.l.CheckoutSession(v.ctx, e.Object)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	all, more, e := page(all, func(s sandbox.CheckoutSession) string { return s.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, s := range all {
		data = append(data, v.session(s, nil, ""))
	}
	return listOf("/v1/checkout/sessions", more, data), nil
}

func postSession(v *view, _ string, a args, c sandbox.Call) (any, error) {
	switch {
	case a.str("mode") != "setup":
		return nil, invalid("", "mode", "This test server knows mode=setup only.")
	case a.str("currency") == "" && !a.has("payment_method_types"):
		return nil, invalid("parameter_missing", "currency", "In setup mode you must provide either currency or payment_method_types.")
	case a.str("success_url") == "":
		return nil, invalid("parameter_missing", "success_url", "Missing required param: success_url.")
	}
	s, err := v.l.CreateSession(v.ctx, c, sandbox.SessionParams{
		Customer: a.str("customer"), SuccessURL: a.str("success_url"), CancelURL: a.str("cancel_url"),
		ExpiresAt: a.at("expires_at"), Metadata: a.meta(),
	})
	if err != nil {
		return nil, err
	}
	return v.session(s, nil, ""), nil
}
