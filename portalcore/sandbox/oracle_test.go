package sandbox_test

import (
	"errors"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox/oracletest"
)

// TestOracle compares previews and changes with an independent calculation
// over random prices, quantities, intervals, tax rates, balances and instants.
func TestOracle(t *testing.T) {
	const cases = 2100
	base := uint64(20260826)
	for n := range uint64(cases) {
		seed := base + n
		oracleCase(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func oracleCase(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	intervals := []billing.Interval{billing.Day, billing.Week, billing.Month, billing.Year}
	counts := map[billing.Interval]int{billing.Day: 400, billing.Week: 60, billing.Month: 15, billing.Year: 3}
	now := time.Date(2023+r.IntN(4), time.Month(1+r.IntN(12)), 1+r.IntN(31), r.IntN(24), r.IntN(60), r.IntN(60), 0, time.UTC)
	b := newBench(t, now)
	b.db.once = true
	ctx := t.Context()
	b.customer("cus_a", "4242424242424242")
	tax := decimal.New(r.Int64N(300_000), -4)
	if r.IntN(4) == 0 {
		tax = decimal.Zero
	}
	if _, err := b.UpdateCustomer(ctx, sandbox.Call{}, "cus_a", sandbox.CustomerParams{TaxPercent: &tax}); err != nil {
		t.Fatal(err)
	}

	items := 1 + r.IntN(3)
	interval := intervals[r.IntN(4)]
	count := 1 + r.IntN(counts[interval])
	other, otherCount := interval, count
	if r.IntN(3) == 0 {
		other = intervals[r.IntN(4)]
		otherCount = 1 + r.IntN(counts[other])
	}
	price := func(interval billing.Interval, count int) (string, *big.Rat) {
		unit := decimal.New(r.Int64N(2_000_000), -int32(r.IntN(3)))
		p, err := b.CreatePrice(ctx, sandbox.Call{}, sandbox.PriceParams{Product: "prod_x", Currency: "usd", UnitAmount: unit, Interval: interval, IntervalCount: count})
		if err != nil {
			t.Fatal(err)
		}
		exact, ok := new(big.Rat).SetString(unit.String())
		if !ok {
			t.Fatalf("%s is no number", unit)
		}
		return p.ID, exact
	}
	quantity := func() int64 { return 1 + r.Int64N([]int64{3, 40, 5000}[r.IntN(3)]) }

	c := oracletest.Change{TaxPercent: rat(t, tax)}
	var create, update []sandbox.ItemParams
	for range items {
		id, unit := price(interval, count)
		q := quantity()
		create = append(create, sandbox.ItemParams{Price: id, Quantity: &q})
		c.Before = append(c.Before, oracletest.Side{Unit: unit, Quantity: q, Interval: interval, Count: count})
	}
	s, err := b.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: create})
	if err != nil {
		t.Fatal(err)
	}
	for i := range items {
		id, unit := s.Items[i].Price.ID, c.Before[i].Unit
		q := s.Items[i].Quantity
		if other != interval || otherCount != count || r.IntN(2) == 0 {
			id, unit = price(other, otherCount)
		}
		if r.IntN(2) == 0 {
			q = quantity()
		}
		update = append(update, sandbox.ItemParams{ID: s.Items[i].ID, Price: id, Quantity: &q})
		c.After = append(c.After, oracletest.Side{Unit: unit, Quantity: q, Interval: other, Count: otherCount})
	}
	// Some renewals later, at any second of the period.
	n := r.IntN(4)
	if interval == billing.Year {
		n = r.IntN(3)
	}
	c.Start, c.End = now, oracletest.PeriodEnd(now, n+1, interval, count)
	if n > 0 {
		c.Start = oracletest.PeriodEnd(now, n, interval, count)
	}
	c.At = c.Start.Add(time.Duration(r.Int64N(int64(c.End.Sub(c.Start)/time.Second))) * time.Second)
	if r.IntN(10) == 0 {
		c.At = c.Start
	}
	b.advance(c.At.Sub(now))
	if r.IntN(3) == 0 {
		amount := r.Int64N(200_000) - 150_000
		if amount != 0 {
			if _, err := b.AdjustBalance(ctx, sandbox.Call{}, "cus_a", amount, "usd"); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Balance = b.cus("cus_a").Balance
	want := oracletest.Work(c)

	check := func(what string, inv sandbox.Invoice) {
		t.Helper()
		var lines, taxes []int64
		for _, l := range inv.Lines {
			lines, taxes = append(lines, l.Amount), append(taxes, l.Tax)
		}
		if !slices.Equal(lines, want.Lines) || !slices.Equal(taxes, want.Taxes) || inv.Subtotal != want.Subtotal || inv.Tax != want.Tax || inv.Total != want.Total ||
			inv.AmountDue != want.Due || inv.EndingBalance != want.Balance {
			t.Errorf("%s: lines %v taxes %v subtotal %d tax %d total %d due %d balance %d\nwant %+v\nchange %+v", what, lines, taxes, inv.Subtotal, inv.Tax, inv.Total, inv.AmountDue, inv.EndingBalance, want, c)
		}
	}
	preview := sandbox.PreviewParams{Subscription: s.ID, Items: update, ProrationBehavior: sandbox.AlwaysInvoice, ProrationDate: c.At}
	if len(want.Lines) > 0 {
		inv, err := b.Preview(ctx, preview)
		if err != nil {
			t.Fatal(err)
		}
		check("preview", inv)
	}
	preview.Recurring = true
	next, err := b.Preview(ctx, preview)
	if err != nil {
		t.Fatal(err)
	}
	if next.Subtotal != want.NextSubtotal || next.Tax != want.NextTax || !next.Created.Equal(want.PeriodEnd) {
		t.Errorf("next: subtotal %d tax %d at %s, want %+v", next.Subtotal, next.Tax, next.Created, want)
	}

	made := len(b.invoices("cus_a"))
	s, err = b.UpdateSubscription(ctx, sandbox.Call{}, s.ID, sandbox.SubscriptionUpdate{Items: update, ProrationBehavior: sandbox.AlwaysInvoice, ProrationDate: c.At, PaymentBehavior: sandbox.PendingIfIncomplete})
	if err != nil {
		t.Fatal(err)
	}
	switch list := b.invoices("cus_a"); {
	case len(want.Lines) == 0 && len(list) != made:
		t.Errorf("a change without money made an invoice")
	case len(want.Lines) > 0 && len(list) != made+1:
		t.Errorf("a change made %d invoices", len(list)-made)
	case len(want.Lines) > 0:
		check("update", list[0])
		if list[0].Status != billing.InvoicePaid || list[0].AmountPaid != want.Due {
			t.Errorf("the invoice is %s with %d paid", list[0].Status, list[0].AmountPaid)
		}
	}
	if got := b.cus("cus_a").Balance; got != want.Balance {
		t.Errorf("balance %d, want %d", got, want.Balance)
	}
	for i, it := range s.Items {
		if it.Quantity != c.After[i].Quantity || !it.CurrentPeriodStart.Equal(want.PeriodStart) || !it.CurrentPeriodEnd.Equal(want.PeriodEnd) {
			t.Errorf("item %d: %+v, want period %s to %s", i, it, want.PeriodStart, want.PeriodEnd)
		}
	}
	b.advance(want.PeriodEnd.Sub(c.At))
	inv := b.invoices("cus_a")[0]
	if inv.Subtotal != want.NextSubtotal || inv.Tax != want.NextTax || inv.AmountDue != want.NextDue || !inv.Created.Equal(want.PeriodEnd) {
		t.Errorf("renewal: subtotal %d tax %d due %d at %s, want %+v", inv.Subtotal, inv.Tax, inv.AmountDue, inv.Created, want)
	}
}

func rat(t *testing.T, d decimal.Decimal) *big.Rat {
	r, ok := new(big.Rat).SetString(d.String())
	if !ok {
		t.Fatal(errors.New(d.String()))
	}
	return r
}

// TestStripeExamples are the worked examples of
// docs.stripe.com/billing/subscriptions/prorations: from a 10 USD monthly plan
// to a 20 USD one halfway through the period is -5 USD and +10 USD, billed as
// 5 USD.
func TestStripeExamples(t *testing.T) {
	// April has 30 days, so 16 April is halfway.
	b := newBench(t, time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC))
	b.customer("cus_a", "4242424242424242")
	s := b.subscribe("cus_a", "ten", 1)
	b.advance(15 * 24 * time.Hour)
	s, err := b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "twenty", 1))
	if err != nil {
		t.Fatal(err)
	}
	inv := b.invoice(s.LatestInvoice)
	if len(inv.Lines) != 2 || inv.Lines[0].Amount != -500 || inv.Lines[1].Amount != 1000 || inv.AmountPaid != 500 || !inv.Lines[0].Proration || !inv.Lines[1].Proration {
		t.Errorf("got %+v", inv)
	}
	// And back at once: -10 USD and +5 USD leave 5 USD as credit, which the
	// next invoice of 10 USD uses.
	s, err = b.UpdateSubscription(t.Context(), sandbox.Call{}, s.ID, change(s, "ten", 1))
	if err != nil {
		t.Fatal(err)
	}
	inv = b.invoice(s.LatestInvoice)
	if inv.Total != -500 || inv.AmountDue != 0 || inv.Status != billing.InvoicePaid || b.cus("cus_a").Balance != -500 {
		t.Errorf("got %+v", inv)
	}
	b.advance(15 * 24 * time.Hour)
	inv = b.invoice(b.sub(s.ID).LatestInvoice)
	if inv.Total != 1000 || inv.AmountDue != 500 || inv.AmountPaid != 500 || b.cus("cus_a").Balance != 0 {
		t.Errorf("got %+v", inv)
	}
}
