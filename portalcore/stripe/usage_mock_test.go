package stripe_test

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

// Every request about usage, tiers, balances and credits that the provider can
// send is accepted by stripe-mock, and asks to expand what can be expanded.
func TestStripeMockAcceptsUsageAndBalance(t *testing.T) {
	m, sp := mock(t)
	o := &owner{t: t, mock: m, shapes: sp.Components.Schemas, seen: map[string]bool{}}
	srv := httptest.NewServer(o)
	defer srv.Close()
	p, err := stripe.New(stripe.Options{Key: "rk_test_0123456789", BaseURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	now := time.Now()
	o.edit = func(path string, v map[string]any) {
		each(v, "subscription", func(s map[string]any) {
			s["status"], s["currency"], s["schedule"], s["pending_update"] = "active", "usd", nil, nil
			s["test_clock"] = nil // the fixtures stand still in 2009
			s["billing_cycle_anchor"], s["cancel_at_period_end"], s["cancel_at"] = now.AddDate(0, 0, -40).Unix(), false, nil
			for _, x := range s["items"].(map[string]any)["data"].([]any) {
				it := x.(map[string]any)
				delete(it, "quantity")
				it["current_period_start"], it["current_period_end"] = now.AddDate(0, 0, -10).Unix(), now.AddDate(0, 0, 20).Unix()
			}
		})
		each(v, "price", func(pr map[string]any) {
			pr["id"], pr["active"], pr["billing_scheme"], pr["unit_amount"], pr["unit_amount_decimal"] = "price_1", true, "tiered", nil, nil
			pr["tiers_mode"], pr["transform_quantity"], pr["currency"] = "graduated", nil, "usd"
			pr["recurring"] = map[string]any{"interval": "month", "interval_count": 1, "usage_type": "metered", "meter": "mtr_1"}
			delete(pr, "tiers")
			if strings.HasSuffix(path, "/prices/price_1") {
				pr["tiers"] = []any{map[string]any{"up_to": nil, "unit_amount_decimal": "2.5"}, map[string]any{"up_to": 10, "unit_amount": 5, "flat_amount": 7}}
			}
		})
		each(v, "billing.meter", func(m map[string]any) { m["id"] = "mtr_1" })
		each(v, "billing.meter_event_summary", func(s map[string]any) { s["start_time"], s["aggregated_value"] = now.AddDate(0, 0, -5).Unix(), 2.5 })
		each(v, "billing.credit_grant", func(g map[string]any) { g["expires_at"], g["voided_at"] = nil, nil })
		if v["object"] == "list" && strings.HasSuffix(path, "/credit_balance_transactions") {
			v["has_more"] = true // so that each grant is summed up
		}
		if v["object"] == "list" && strings.HasSuffix(path, "/event_summaries") {
			v["data"] = []any{} // the fixtures' times are not those asked for
		}
	}
	const cus = "cus_1"
	for _, q := range []billing.UsageQuery{
		{By: billing.Day}, {By: billing.Month, From: now.AddDate(0, -13, 0), To: now},
	} {
		q.Subscription = "sub_1"
		u, err := p.Usage(t.Context(), cus, q)
		if err != nil || len(u.Meters) != 1 || len(u.Meters[0].Points) == 0 {
			t.Errorf("%+v, %v", u, err)
			continue
		}
		// The one without an end is the last.
		if ts := u.Meters[0].Price.Tiers; len(ts) != 2 || ts[0].UpTo != 10 || ts[1].UpTo != 0 || ts[0].FlatAmount.String() != "7" || ts[1].UnitAmount.String() != "2.5" {
			t.Errorf("tiers %+v", ts)
		}
	}
	first, err := p.Balance(t.Context(), cus, "", 1)
	if err != nil || len(first.Grants) == 0 || len(first.Entries) != 1 || first.Older == "" {
		t.Errorf("%+v, %v", first, err)
	}
	// "ncbtxn …" and the like: both lists forwards, backwards, and from their end.
	for _, c := range []string{first.Older, "YmNidHhuXzEgYmNidHhuXzI", "aWNidHhuXzEgaWNidHhuXzI"} {
		if _, err := p.Balance(t.Context(), cus, c, 5); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	want := []string{
		"GET /v1/billing/credit_balance_summary", "GET /v1/billing/credit_balance_transactions", "GET /v1/billing/credit_balance_transactions/{id}",
		"GET /v1/billing/credit_grants", "GET /v1/billing/meters/mtr_1", "GET /v1/billing/meters/mtr_1/event_summaries",
		"GET /v1/customers/{id}", "GET /v1/customers/{id}/balance_transactions", "GET /v1/customers/{id}/balance_transactions/{id}",
		"GET /v1/prices/{id}", "GET /v1/subscriptions/{id}",
	}
	var got []string
	for k := range o.seen {
		got = append(got, strings.Replace(strings.Replace(k, "/cbtxn_1", "/{id}", 1), "/cbtxn_2", "/{id}", 1))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("requests sent:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if o.expanded < 5 {
		t.Errorf("only %d expansions were seen", o.expanded)
	}
}
