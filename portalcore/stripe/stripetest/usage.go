package stripetest

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// usageRoutes are meters, what was used, credit grants and what moved them and
// the customer's balance.
func (h *handler) usageRoutes() {
	h.handle("GET /v1/billing/meters/{id}", only(), func(v *view, id string, _ args, _ sandbox.Call) (any, error) {
		m, err := v.l.Meter(v.ctx, id)
		return meter(m), err
	})
	h.handle("GET /v1/billing/meters/{id}/event_summaries", paged(map[string]*spec{
		"customer": str, "start_time": num, "end_time": num, "value_grouping_window": oneOf("day", "hour"),
	}), listSummaries)
	h.handle("GET /v1/billing/credit_grants", paged(map[string]*spec{"customer": str}), listGrants)
	h.handle("GET /v1/billing/credit_balance_transactions", paged(map[string]*spec{"customer": str, "credit_grant": str}), listCredits)
	h.handle("GET /v1/billing/credit_balance_transactions/{id}", only("credit_grant"), func(v *view, id string, a args, _ sandbox.Call) (any, error) {
		t, err := v.l.CreditTransaction(v.ctx, id)
		if err != nil {
			return nil, err
		}
		o := credit(t)
		if a.expansions()["credit_grant"] {
			g, err := v.l.Grant(v.ctx, t.Grant)
			if err != nil {
				return nil, err
			}
			o["credit_grant"] = grant(g)
		}
		return o, nil
	})
	h.handle("GET /v1/billing/credit_balance_summary", map[string]*spec{
		"customer": str, "expand": expands(), "filter": obj(map[string]*spec{
			"type": oneOf("applicability_scope", "credit_grant"), "credit_grant": str,
		}),
	}, creditSummary)
	h.handle("GET /v1/customers/{id}/balance_transactions", paged(map[string]*spec{"invoice": str}), listBalance)
	h.mux.HandleFunc("GET /v1/customers/{customer}/balance_transactions/{id}", func(w http.ResponseWriter, r *http.Request) {
		h.serve(w, r, only(), func(v *view, id string, _ args, _ sandbox.Call) (any, error) {
			t, err := v.l.BalanceTransaction(v.ctx, r.PathValue("customer"), id)
			if err != nil {
				return nil, err
			}
			return balance(t), nil
		})
	})
}

// tieredOrMetered draws what o, a price per unit, has otherwise. Tiers are there
// where they are asked for only.
func tieredOrMetered(p sandbox.Price, o object) {
	if p.Meter != "" {
		o["recurring"] = object{"interval": p.Interval, "interval_count": p.IntervalCount, "meter": p.Meter, "usage_type": "metered"}
	}
	if len(p.Tiers) > 0 {
		o["billing_scheme"], o["tiers_mode"], o["unit_amount"], o["unit_amount_decimal"] = "tiered", p.TiersMode, nil, nil
	}
}

func tiers(list []billing.Tier) []any {
	var out []any
	for _, t := range list {
		o := object{
			"up_to": nil, "unit_amount": nil, "unit_amount_decimal": t.UnitAmount.String(), "flat_amount": nil, "flat_amount_decimal": nil,
		}
		if t.UpTo != 0 {
			o["up_to"] = t.UpTo
		}
		if t.UnitAmount.IsInteger() {
			o["unit_amount"] = t.UnitAmount.IntPart()
		}
		if !t.FlatAmount.IsZero() {
			o["flat_amount_decimal"] = t.FlatAmount.String()
			if t.FlatAmount.IsInteger() {
				o["flat_amount"] = t.FlatAmount.IntPart()
			}
		}
		out = append(out, o)
	}
	return out
}

func creditsOf(l sandbox.InvoiceLine) int64 {
	var n int64
	for _, c := range l.Credits {
		n += c.Amount
	}
	return n
}

func pretax(credits []sandbox.LineCredit) []any {
	out := []any{}
	for _, c := range credits {
		out = append(out, object{"amount": c.Amount, "type": "credit_balance_transaction", "credit_balance_transaction": orNull(c.Transaction)})
	}
	return out
}

func meter(m sandbox.Meter) object {
	return object{
		"id": m.ID, "object": "billing.meter", "created": unix(m.Created), "updated": unix(m.Created), "livemode": false, "status": "active",
		"event_name": m.EventName, "display_name": m.DisplayName, "event_time_window": nil,
		"default_aggregation": object{"formula": m.Formula}, "value_settings": object{"event_payload_key": "value"},
		"customer_mapping": object{"type": "by_id", "event_payload_key": "stripe_customer_id"},
	}
}

// listSummaries lists the windows with usage, newest first.
func listSummaries(v *view, id string, a args, _ sandbox.Call) (any, error) {
	for _, name := range []string{"customer", "start_time", "end_time"} {
		if !a.has(name) {
			return nil, invalid("parameter_missing", name, "Missing required param: %s.", name)
		}
	}
	all, err := v.l.UsageSummaries(v.ctx, id, a.str("customer"), a.at("start_time"), a.at("end_time"), sandbox.UsageWindow(a.str("value_grouping_window")))
	if err != nil {
		return nil, err
	}
	slices.Reverse(all)
	name := func(s sandbox.UsageSummary) string {
		return "mtrusg_" + s.Start.Format("200601021504") + s.End.Format("200601021504")
	}
	all, more, e := page(all, name, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, s := range all {
		data = append(data, object{
			"id": name(s), "object": "billing.meter_event_summary", "livemode": false, "meter": id, "start_time": unix(s.Start), "end_time": unix(s.End),
			"aggregated_value": json.Number(s.Value.String()),
		})
	}
	return listOf("/v1/billing/meters/"+id+"/event_summaries", more, data), nil
}

func monetary(amount int64, currency string) object {
	return object{"type": "monetary", "monetary": object{"value": amount, "currency": currency}}
}

func grant(g sandbox.CreditGrant) object {
	scope := object{"price_type": "metered"}
	if len(g.Prices) > 0 {
		var prices []any
		for _, id := range g.Prices {
			prices = append(prices, object{"id": id})
		}
		scope = object{"prices": prices}
	}
	return object{
		"id": g.ID, "object": "billing.credit_grant", "created": unix(g.Created), "updated": unix(g.Updated), "livemode": false, "customer": g.Customer,
		"name": orNull(g.Name), "category": g.Category, "amount": monetary(g.Amount, g.Currency), "priority": g.Priority, "metadata": object{},
		"applicability_config": object{"scope": scope}, "effective_at": unix(g.EffectiveAt), "expires_at": unix(g.ExpiresAt),
		"voided_at": unix(g.VoidedAt), "test_clock": nil,
	}
}

func listGrants(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	all, err := v.l.Grants(v.ctx, id)
	if err != nil {
		return nil, err
	}
	all, more, e := page(all, func(g sandbox.CreditGrant) string { return g.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, g := range all {
		data = append(data, grant(g))
	}
	return listOf("/v1/billing/credit_grants", more, data), nil
}

func credit(t sandbox.CreditTransaction) object {
	o := object{
		"id": t.ID, "object": "billing.credit_balance_transaction", "created": unix(t.Created), "effective_at": unix(t.EffectiveAt), "livemode": false,
		"credit_grant": t.Grant, "type": "credit", "credit": nil, "debit": nil, "test_clock": nil,
	}
	d := object{"type": t.Type, "amount": monetary(t.Amount, t.Currency)}
	switch of := (object{"invoice": t.Invoice, "invoice_line_item": "il_" + t.Line}); t.Type {
	case sandbox.CreditsApplied:
		d["credits_applied"] = of
	case sandbox.CreditsReinstated:
		d["credits_application_invoice_voided"] = of
	}
	if t.Type.Debit() {
		o["type"], o["debit"] = "debit", d
	} else {
		o["credit"] = d
	}
	return o
}

func listCredits(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	all, err := v.l.CreditTransactions(v.ctx, id)
	if err != nil {
		return nil, err
	}
	if g := a.str("credit_grant"); g != "" {
		all = slices.DeleteFunc(all, func(t sandbox.CreditTransaction) bool { return t.Grant != g })
	}
	all, more, e := page(all, func(t sandbox.CreditTransaction) string { return t.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, t := range all {
		data = append(data, credit(t))
	}
	return listOf("/v1/billing/credit_balance_transactions", more, data), nil
}

// creditSummary is the summary of one grant.
func creditSummary(v *view, _ string, a args, _ sandbox.Call) (any, error) {
	id, err := v.customerOf(a)
	if err != nil {
		return nil, err
	}
	f := a.args("filter")
	if f.str("type") != "credit_grant" || f.str("credit_grant") == "" {
		return nil, invalid("parameter_missing", "filter", "This test server sums up one credit grant at a time.")
	}
	g, err := v.l.Grant(v.ctx, f.str("credit_grant"))
	if err != nil {
		return nil, err
	}
	if g.Customer != id {
		return nil, invalid("resource_missing", "filter[credit_grant]", "No such credit grant: '%s'", g.ID)
	}
	now, err := v.l.Now(v.ctx)
	if err != nil {
		return nil, err
	}
	available := g.Left
	if g.EffectiveAt.After(now) {
		available = 0
	}
	return object{
		"object": "billing.credit_balance_summary", "customer": id, "livemode": false,
		"balances": []any{object{"available_balance": monetary(available, g.Currency), "ledger_balance": monetary(g.Left, g.Currency)}},
	}, nil
}

func balance(t sandbox.BalanceTransaction) object {
	return object{
		"id": t.ID, "object": "customer_balance_transaction", "created": unix(t.Created), "livemode": false, "customer": t.Customer,
		"amount": t.Amount, "currency": t.Currency, "ending_balance": t.EndingBalance, "type": t.Type, "invoice": orNull(t.Invoice),
		"credit_note": nil, "description": nil, "metadata": object{},
	}
}

func listBalance(v *view, id string, a args, _ sandbox.Call) (any, error) {
	all, err := v.l.BalanceTransactions(v.ctx, id)
	if err != nil {
		return nil, err
	}
	if inv := a.str("invoice"); inv != "" {
		all = slices.DeleteFunc(all, func(t sandbox.BalanceTransaction) bool { return t.Invoice != inv })
	}
	all, more, e := page(all, func(t sandbox.BalanceTransaction) string { return t.ID }, a)
	if e != nil {
		return nil, e
	}
	var data []any
	for _, t := range all {
		data = append(data, balance(t))
	}
	return listOf("/v1/customers/"+id+"/balance_transactions", more, data), nil
}
