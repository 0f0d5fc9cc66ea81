package stripetest

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// papers are the endpoints about billing details, and about what belongs to an
// invoice.
func (h *handler) papers() {
	h.handle("GET /v1/customers", paged(map[string]*spec{"email": str}, listed(ofCustomer)...), func(v *view, _ string, a args, _ sandbox.Call) (any, error) {
		if a.str("email") == "" {
			return nil, invalid("parameter_missing", "email", "This test server lists customers by email only.")
		}
		all, err := v.l.SearchCustomers(v.ctx, a.str("email"), "")
		if err != nil {
			return nil, err
		}
		all, more, e := page(all, func(c sandbox.Customer) string { return c.ID }, a)
		if e != nil {
			return nil, e
		}
		data, err := v.customers(all, a.expansions())
		return listOf("/v1/customers", more, data), err
	})
	h.handle("GET /v1/customers/search", map[string]*spec{"query": str, "limit": num, "expand": expands(listed(ofCustomer)...)}, searchCustomers)
	h.handle("GET /v1/customers/{id}/tax_ids", paged(map[string]*spec{}), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		c, err := v.l.Customer(v.ctx, id)
		if err != nil {
			return nil, err
		}
		return taxIDList(c), nil
	})
	h.handle("POST /v1/customers/{id}/tax_ids", map[string]*spec{"type": str, "value": str, "expand": expands()}, func(v *view, id string, a args, c sandbox.Call) (any, error) {
		for _, name := range []string{"type", "value"} {
			if a.str(name) == "" {
				return nil, invalid("parameter_missing", name, "Missing required param: %s.", name)
			}
		}
		t, err := v.l.CreateTaxID(v.ctx, c, id, a.str("type"), a.str("value"))
		return taxID(t), err
	})
	h.handle("GET /v1/customers/{id}/tax_ids/{sub}", only(), func(v *view, id string, _ args, _ sandbox.Call) (any, error) {
		t, gone, err := v.l.TaxID(v.ctx, v.sub)
		if err != nil {
			return nil, err
		}
		if gone || t.Customer != id {
			return nil, &sandbox.Error{Status: 404, Type: sandbox.InvalidRequest, Code: "resource_missing", Param: "id", Message: "No such tax id: '" + v.sub + "'"}
		}
		return taxID(t), nil
	})
	h.handle("DELETE /v1/customers/{id}/tax_ids/{sub}", map[string]*spec{}, func(v *view, id string, _ args, _ sandbox.Call) (any, error) {
		// Stripe takes no key with a DELETE.
		t, err := v.l.DeleteTaxID(v.ctx, sandbox.Call{}, id, v.sub)
		return object{"id": t.ID, "object": "tax_id", "deleted": true}, err
	})
	h.handle("GET /v1/invoices/{id}/lines", paged(map[string]*spec{}), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		i, err := v.l.Invoice(v.ctx, id)
		if err != nil {
			return nil, err
		}
		lines, more, e := page(linesOf(i), func(x any) string { return x.(object)["id"].(string) }, a)
		if e != nil {
			return nil, e
		}
		return listOf("/v1/invoices/"+id+"/lines", more, lines), nil
	})
	h.handle("GET /v1/credit_notes", paged(map[string]*spec{"invoice": str}), func(v *view, _ string, a args, _ sandbox.Call) (any, error) {
		if a.str("invoice") == "" {
			return nil, invalid("parameter_missing", "invoice", "This test server lists credit notes by invoice only.")
		}
		if _, err := v.l.Invoice(v.ctx, a.str("invoice")); err != nil {
			return nil, err
		}
		all, err := v.l.CreditNotes(v.ctx, a.str("invoice"))
		if err != nil {
			return nil, err
		}
		all, more, e := page(all, func(n sandbox.CreditNote) string { return n.ID }, a)
		if e != nil {
			return nil, e
		}
		var data []any
		for _, n := range all {
			data = append(data, v.creditNote(n))
		}
		return listOf("/v1/credit_notes", more, data), nil
	})
	h.handle("GET /v1/credit_notes/{id}", only(), func(v *view, id string, _ args, _ sandbox.Call) (any, error) {
		n, err := v.l.CreditNote(v.ctx, id)
		return v.creditNote(n), err
	})
	h.handle("GET /v1/charges", paged(map[string]*spec{"payment_intent": str}), func(v *view, _ string, a args, _ sandbox.Call) (any, error) {
		if a.str("payment_intent") == "" {
			return nil, invalid("parameter_missing", "payment_intent", "This test server lists charges by payment intent only.")
		}
		pi, err := v.l.PaymentIntent(v.ctx, a.str("payment_intent"))
		if err != nil {
			return nil, err
		}
		all, err := v.l.Charges(v.ctx, pi.Invoice)
		if err != nil {
			return nil, err
		}
		all, more, e := page(all, func(c sandbox.Charge) string { return c.ID }, a)
		if e != nil {
			return nil, e
		}
		var data []any
		for _, c := range all {
			data = append(data, chargeOf(c))
		}
		return listOf("/v1/charges", more, data), nil
	})
}

// ofCustomer is what can be expanded on a customer.
var ofCustomer = []string{"invoice_settings.default_payment_method", "tax_ids", "test_clock"}

// ofPaper is what can be expanded on an invoice that is read alone.
var ofPaper = []string{
	"payments", "payments.data.payment.payment_intent",
	"total_taxes.tax_rate_details.tax_rate", "total_discount_amounts.discount.source.coupon", "parent.subscription_details.subscription",
}

func (v *view) customers(all []sandbox.Customer, x expansions) ([]any, error) {
	var data []any
	for _, c := range all {
		o, err := v.customer(c, x, "data.")
		if err != nil {
			return nil, err
		}
		data = append(data, o)
	}
	return data, nil
}

// byReference is the one query that the portal makes, as it is written in
// Stripe's search query language (docs.stripe.com/search): a value between
// quotes, in which a quote and a backslash are escaped.
var byReference = regexp.MustCompile(`^metadata\[(?:'portal_reference'|"portal_reference")\]:(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")$`)

func searchCustomers(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	m := byReference.FindStringSubmatch(a.str("query"))
	if m == nil {
		return nil, invalid("", "query", "We were unable to parse your search query.")
	}
	limit := 10
	if n := a.nump("limit"); n != nil {
		if *n < 1 || *n > 100 {
			return nil, invalid("parameter_invalid_integer", "limit", "The limit is 1 to 100.")
		}
		limit = int(*n)
	}
	value := regexp.MustCompile(`\\(.)`).ReplaceAllString(m[1]+m[2], "$1")
	all, err := v.l.SearchCustomers(v.ctx, "", value)
	if err != nil {
		return nil, err
	}
	more := len(all) > limit
	data, err := v.customers(all[:min(len(all), limit)], a.expansions())
	if data == nil {
		data = []any{}
	}
	return object{"object": "search_result", "url": "/v1/customers/search", "has_more": more, "next_page": nil, "data": data}, err
}

func taxID(t sandbox.TaxID) object {
	var verification any
	if t.Status != "" {
		verification = object{"status": t.Status, "verified_name": orNull(t.VerifiedName), "verified_address": nil}
	}
	return object{
		"id": t.ID, "object": "tax_id", "created": unix(t.Created), "livemode": false, "customer": t.Customer, "type": t.Type,
		"country": orNull(t.Country), "value": t.Value, "verification": verification, "owner": object{"type": "customer", "customer": t.Customer},
	}
}

// taxIDList is newest first, as Stripe's lists are.
func taxIDList(c sandbox.Customer) object {
	var data []any
	for _, t := range c.TaxIDs {
		data = append([]any{taxID(t)}, data...)
	}
	return listOf("/v1/customers/"+c.ID+"/tax_ids", false, data)
}

func fieldsOf(fields []billing.InvoiceField) any {
	if len(fields) == 0 {
		return nil
	}
	var list []any
	for _, f := range fields {
		list = append(list, object{"name": f.Name, "value": f.Value})
	}
	return list
}

// taxRate is the tax rate of an invoice.
func taxRate(i sandbox.Invoice, expanded bool) any {
	id := "txr_" + strings.ReplaceAll(i.TaxPercent.String(), ".", "_")
	if !expanded {
		return id
	}
	return object{
		"id": id, "object": "tax_rate", "active": true, "created": unix(i.Created), "livemode": false, "display_name": sandbox.TaxName,
		"inclusive": false, "percentage": json.Number(i.TaxPercent.String()),
	}
}

// whole is an invoice as it is read alone, with what can be expanded there.
func (v *view) whole(i sandbox.Invoice, x expansions) (any, error) {
	all, err := v.invoice(i, x, "")
	if err != nil {
		return nil, err
	}
	o := all.(object)
	if x["total_taxes.tax_rate_details.tax_rate"] {
		for _, t := range o["total_taxes"].([]any) {
			t.(object)["tax_rate_details"] = object{"tax_rate": taxRate(i, true)}
		}
	}
	if x["parent.subscription_details.subscription"] && i.Subscription != "" {
		s, err := v.l.Subscription(v.ctx, i.Subscription)
		if err != nil {
			return nil, err
		}
		sub, err := v.subscription(s, nil, "")
		if err != nil {
			return nil, err
		}
		o["parent"].(object)["subscription_details"].(object)["subscription"] = sub
	}
	return o, nil
}

func (v *view) creditNote(n sandbox.CreditNote) object {
	kind, status := "post_payment", "issued"
	if n.Reduced != 0 {
		kind = "pre_payment"
	}
	if n.Void() {
		status = "void"
	}
	pdf := ""
	if v.to != "" {
		pdf = v.h.fileURL(v.to, n.ID)
	}
	return object{
		"id": n.ID, "object": "credit_note", "number": n.Number, "created": unix(n.Created), "livemode": false, "customer": n.Customer,
		"invoice": n.Invoice, "currency": n.Currency, "reason": orNull(n.Reason), "memo": orNull(n.Memo), "status": status, "type": kind,
		"amount": n.Total, "subtotal": n.Subtotal, "total": n.Total, "total_excluding_tax": n.Subtotal, "pdf": pdf,
		"pre_payment_amount": n.Reduced, "post_payment_amount": n.Refunded + n.ToBalance, "voided_at": unix(n.VoidedAt),
		"lines": listOf("/v1/credit_notes/"+n.ID+"/lines", false, nil), "metadata": object{},
	}
}

func chargeOf(c sandbox.Charge) object {
	m := method(c.Method)
	kind := m["type"].(string)
	details := object{}
	if full, ok := m[kind].(object); ok {
		for _, k := range []string{"brand", "last4", "exp_month", "exp_year", "funding", "country", "bank_code", "bank_name", "wallet", "email", "payer_email"} {
			if x, ok := full[k]; ok {
				details[k] = x
			}
		}
	}
	reason := orNull(c.DeclineCode)
	if c.Status == "failed" && c.DeclineCode == "" {
		reason = c.FailureCode
	}
	return object{
		"id": c.ID, "object": "charge", "created": unix(c.Created), "livemode": false, "customer": c.Customer, "payment_intent": c.PaymentIntent,
		"amount": c.Amount, "amount_captured": c.Amount, "amount_refunded": c.Refunded, "refunded": c.Refunded == c.Amount, "currency": c.Currency,
		"captured": c.Status == "succeeded", "paid": c.Status == "succeeded", "status": c.Status, "failure_code": orNull(c.FailureCode),
		"outcome":        object{"type": map[bool]string{true: "issuer_declined", false: "authorized"}[c.Status == "failed"], "reason": reason},
		"payment_method": c.Method.ID, "payment_method_details": object{"type": kind, kind: details},
		"billing_details": object{"address": nil, "email": nil, "name": nil, "phone": nil, "tax_id": nil},
	}
}

// drawPaper is the part of draw that is about papers and details.
func (h *handler) drawPaper(ctx context.Context, kind, id string) (any, bool, error) {
	switch kind {
	case "tax_id":
		t, _, err := h.l.TaxID(ctx, id)
		return taxID(t), true, err
	case "credit_note":
		n, err := h.l.CreditNote(ctx, id)
		return (&view{ctx: ctx, l: h.l, h: h}).creditNote(n), true, err
	}
	return nil, false, nil
}
