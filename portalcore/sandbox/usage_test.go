package sandbox_test

import (
	"fmt"
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

// TestArrearsOracle compares renewals with usage, tiers, taxes, credits and
// balances at random with an independent calculation.
func TestArrearsOracle(t *testing.T) {
	for seed := range uint64(150) {
		arrearsCase(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func arrearsCase(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 4))
	start := time.Date(2026, time.Month(1+r.IntN(12)), 1+r.IntN(31), r.IntN(24), r.IntN(60), r.IntN(60), 0, time.UTC)
	b := newBench(t, start)
	b.db.once = true
	ctx := t.Context()
	b.customer("cus_a", works)
	tax := decimal.New(r.Int64N(300_000), -4)
	if _, err := b.UpdateCustomer(ctx, sandbox.Call{}, "cus_a", sandbox.CustomerParams{TaxPercent: &tax}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateMeter(ctx, sandbox.Call{}, sandbox.MeterParams{ID: "mtr_a", EventName: "a", DisplayName: "A"}); err != nil {
		t.Fatal(err)
	}
	amount := func() decimal.Decimal { return decimal.New(r.Int64N(50_000), -int32(r.IntN(4))) }
	var tiers []billing.Tier
	var bands []oracletest.Band
	var up int64
	count := 1 + r.IntN(4)
	for i := range count {
		x := billing.Tier{UnitAmount: amount()}
		if r.IntN(2) == 0 {
			x.FlatAmount = amount()
		}
		if r.IntN(5) == 0 {
			x.UnitAmount = decimal.Zero
		}
		band := oracletest.Band{Unit: rat(t, x.UnitAmount), Flat: rat(t, x.FlatAmount)}
		if i < count-1 {
			up += 1 + r.Int64N(20)
			x.UpTo, band.UpTo = up, new(big.Rat).SetInt64(up)
		}
		tiers, bands = append(tiers, x), append(bands, band)
	}
	mode := []billing.TiersMode{billing.Graduated, billing.Volume}[r.IntN(2)]
	if _, err := b.CreatePrice(ctx, sandbox.Call{}, sandbox.PriceParams{ID: "price_a", Product: "prod_x", Currency: "usd", Interval: billing.Month, Meter: "mtr_a", Tiers: tiers, TiersMode: mode}); err != nil {
		t.Fatal(err)
	}
	seat, err := b.CreatePrice(ctx, sandbox.Call{}, sandbox.PriceParams{Product: "prod_x", Currency: "usd", UnitAmount: decimal.NewFromInt(1 + r.Int64N(9999)), Interval: billing.Month})
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: []sandbox.ItemParams{{Price: seat.ID}, {Price: "price_a"}}})
	if err != nil {
		t.Fatal(err)
	}
	end := s.Items[0].CurrentPeriodEnd
	used := new(big.Rat)
	for range r.IntN(6) {
		v := decimal.New(r.Int64N(20_000), -int32(r.IntN(4)))
		if r.IntN(3) == 0 { // so that a tier is often filled exactly
			v = decimal.NewFromInt(r.Int64N(up + 2))
		}
		b.advance(time.Duration(r.Int64N(int64(24*time.Hour))) / time.Second * time.Second)
		if err := b.ReportUsage(ctx, sandbox.Call{}, sandbox.UsageEvent{EventName: "a", Customer: "cus_a", Value: v}); err != nil {
			t.Fatal(err)
		}
		used.Add(used, rat(t, v))
	}
	a := oracletest.Arrears{Ahead: []int64{seat.UnitAmount.IntPart()}, Used: oracletest.Bands(mode == billing.Volume, bands, used, big.NewRat(1, 1)), TaxPercent: rat(t, tax)}
	for range r.IntN(3) {
		n := 1 + r.Int64N(30_000)
		if _, err := b.CreateGrant(ctx, sandbox.Call{}, sandbox.GrantParams{Customer: "cus_a", Amount: n, Currency: "usd"}); err != nil {
			t.Fatal(err)
		}
		a.Credits = append(a.Credits, n)
		b.advance(time.Second)
	}
	if n := r.Int64N(40_000) - 30_000; n != 0 && r.IntN(2) == 0 {
		if _, err := b.AdjustBalance(ctx, sandbox.Call{}, "cus_a", n, "usd"); err != nil {
			t.Fatal(err)
		}
		a.Balance = n
	}
	want := oracletest.WorkArrears(a)
	check := func(what string, inv sandbox.Invoice) {
		t.Helper()
		var lines []int64
		for _, l := range inv.Lines {
			lines = append(lines, l.Amount)
		}
		if !slices.Equal(lines, slices.Concat(a.Ahead, a.Used)) || inv.Subtotal != want.Subtotal || inv.Credits != want.Credits || inv.Tax != want.Tax || inv.Total != want.Total ||
			inv.AmountDue != want.Due || inv.EndingBalance != want.Balance {
			t.Errorf("%s: %v, %+v\nwant %v, %+v", what, lines, inv, a, want)
		}
	}
	preview, err := b.Preview(ctx, sandbox.PreviewParams{Subscription: s.ID})
	if err != nil {
		t.Fatal(err)
	}
	check("preview", preview)
	b.advance(end.Sub(b.clock.now()))
	inv := b.invoices("cus_a")[0]
	check("renewal", inv)
	if inv.Status != billing.InvoicePaid || !inv.Created.Equal(end) {
		t.Errorf("the renewal is %s at %s", inv.Status, inv.Created)
	}
	grants, err := b.Grants(ctx, "cus_a")
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(grants)
	for i, g := range grants {
		if g.Left != want.Left[i] {
			t.Errorf("grant %d: %d left, want %d", i, g.Left, want.Left[i])
		}
	}
}

// TestUsageIsKeptSmall reports very many events and finds a record for each
// hour, not for each event.
func TestUsageIsKeptSmall(t *testing.T) {
	b := newBench(t, noon)
	b.db.once = true
	b.customer("cus_a", works)
	if _, err := b.CreateMeter(t.Context(), sandbox.Call{}, sandbox.MeterParams{ID: "mtr_a", EventName: "a", DisplayName: "A"}); err != nil {
		t.Fatal(err)
	}
	b.advance(3 * time.Hour)
	before := len(b.db.data)
	const times, each = 50, 1000
	for range times {
		var events []sandbox.UsageEvent
		for i := range each {
			events = append(events, sandbox.UsageEvent{EventName: "a", Customer: "cus_a", Value: decimal.New(1, -12), Timestamp: noon.Add(time.Duration(i*7) * time.Second)})
		}
		if err := b.ReportUsage(t.Context(), sandbox.Call{}, events...); err != nil {
			t.Fatal(err)
		}
	}
	// 7,000 seconds are within two hours.
	if n := len(b.db.data) - before; n != 2 {
		t.Errorf("%d records of %d events", n, times*each)
	}
	list, err := b.UsageSummaries(t.Context(), "mtr_a", "cus_a", noon, noon.Add(2*time.Hour), sandbox.WindowWhole)
	if err != nil || len(list) != 1 || list[0].Value.String() != "0.00000005" {
		t.Errorf("%v, %v", list, err)
	}
	hours, err := b.UsageSummaries(t.Context(), "mtr_a", "cus_a", noon.Truncate(time.Hour), noon.Truncate(time.Hour).Add(2*time.Hour), sandbox.WindowHour)
	if err != nil || len(hours) != 2 {
		t.Errorf("%v, %v", hours, err)
	}
}

func TestUsageRefused(t *testing.T) {
	b := newBench(t, noon)
	ctx := t.Context()
	b.customer("cus_a", works)
	meter := sandbox.MeterParams{ID: "mtr_a", EventName: "a", DisplayName: "A"}
	if _, err := b.CreateMeter(ctx, sandbox.Call{}, meter); err != nil {
		t.Fatal(err)
	}
	for i, p := range []sandbox.MeterParams{meter, {EventName: "a", DisplayName: "B"}, {DisplayName: "B"}, {EventName: "b"}, {EventName: "b", DisplayName: "B", Formula: "max"}} {
		if _, err := b.CreateMeter(ctx, sandbox.Call{}, p); err == nil {
			t.Errorf("meter %d was made", i)
		}
	}
	good := sandbox.UsageEvent{EventName: "a", Customer: "cus_a", Value: decimal.NewFromInt(1)}
	for name, change := range map[string]func(*sandbox.UsageEvent){
		"no meter": func(e *sandbox.UsageEvent) { e.EventName = "b" }, "no customer": func(e *sandbox.UsageEvent) { e.Customer = "cus_b" },
		"below zero": func(e *sandbox.UsageEvent) { e.Value = decimal.NewFromInt(-1) }, "too large": func(e *sandbox.UsageEvent) { e.Value = decimal.New(1, 16) },
		"too exact": func(e *sandbox.UsageEvent) { e.Value = decimal.New(1, -13) }, "too old": func(e *sandbox.UsageEvent) { e.Timestamp = noon.AddDate(0, 0, -36) },
		"in the future": func(e *sandbox.UsageEvent) { e.Timestamp = noon.Add(time.Second) },
	} {
		bad := good
		change(&bad)
		if err := b.ReportUsage(ctx, sandbox.Call{}, good, bad); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if err := b.ReportUsage(ctx, sandbox.Call{}); err == nil {
		t.Error("no events were taken")
	}
	from := noon.Truncate(24 * time.Hour)
	list, err := b.UsageSummaries(ctx, "mtr_a", "cus_a", from, from.AddDate(0, 0, 2), sandbox.WindowDay)
	if err != nil || len(list) != 0 {
		t.Errorf("of two events of which one is refused none is taken: %v, %v", list, err)
	}
	for i, x := range []struct {
		from, to time.Time
		window   sandbox.UsageWindow
	}{{from.Add(time.Hour), from.AddDate(0, 0, 1), sandbox.WindowDay}, {from, from.Add(time.Minute), sandbox.WindowHour}, {from.Add(time.Second), from.Add(time.Hour), sandbox.WindowWhole}, {from, from, sandbox.WindowWhole}, {from, from.AddDate(0, 0, 1), "week"}} {
		if _, err := b.UsageSummaries(ctx, "mtr_a", "cus_a", x.from, x.to, x.window); err == nil {
			t.Errorf("bounds %d were taken", i)
		}
	}
	price := sandbox.PriceParams{Product: "prod_x", Currency: "usd", Interval: billing.Month, TiersMode: billing.Volume}
	one, two := decimal.NewFromInt(1), decimal.NewFromInt(2)
	for i, p := range []func(*sandbox.PriceParams){
		func(p *sandbox.PriceParams) {}, func(p *sandbox.PriceParams) { p.Tiers = []billing.Tier{{UpTo: 5, UnitAmount: one}} },
		func(p *sandbox.PriceParams) { p.Tiers = []billing.Tier{{UpTo: 5, UnitAmount: one}, {UpTo: 5}, {}} },
		func(p *sandbox.PriceParams) { p.Tiers = []billing.Tier{{}, {UpTo: 5}} }, func(p *sandbox.PriceParams) { p.Tiers, p.TiersMode = []billing.Tier{{}}, "" },
		func(p *sandbox.PriceParams) { p.Tiers, p.UnitAmount = []billing.Tier{{}}, two }, func(p *sandbox.PriceParams) { p.Tiers = []billing.Tier{{UnitAmount: two.Neg()}} },
		func(p *sandbox.PriceParams) { p.Tiers = []billing.Tier{{FlatAmount: decimal.New(1, -13)}} }, func(p *sandbox.PriceParams) { p.Tiers, p.Meter = []billing.Tier{{}}, "mtr_none" },
		func(p *sandbox.PriceParams) { p.Tiers = slices.Repeat([]billing.Tier{{}}, 101) },
	} {
		q := price
		p(&q)
		if _, err := b.CreatePrice(ctx, sandbox.Call{}, q); err == nil {
			t.Errorf("price %d was made: %+v", i, q)
		}
	}
	// Metered items have no quantity, and stay as they are.
	price.Meter, price.TiersMode, price.UnitAmount = "mtr_a", "", one
	m, err := b.CreatePrice(ctx, sandbox.Call{}, price)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(2)
	if _, err := b.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: []sandbox.ItemParams{{Price: m.ID, Quantity: &n}}}); err == nil {
		t.Error("a metered item with a quantity was made")
	}
	s := b.subscribe("cus_a", "ten", 1)
	with, err := b.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: []sandbox.ItemParams{{Price: m.ID}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range []struct {
		sub  string
		item sandbox.ItemParams
	}{
		{s.ID, sandbox.ItemParams{Price: m.ID}},
		{s.ID, sandbox.ItemParams{ID: s.Items[0].ID, Price: m.ID}},
		{with.ID, sandbox.ItemParams{ID: with.Items[0].ID, Quantity: &n}},
		{with.ID, sandbox.ItemParams{ID: with.Items[0].ID, Price: s.Items[0].Price.ID}},
		{with.ID, sandbox.ItemParams{ID: with.Items[0].ID, Deleted: true}},
	} {
		if _, err := b.UpdateSubscription(ctx, sandbox.Call{}, x.sub, sandbox.SubscriptionUpdate{Items: []sandbox.ItemParams{x.item}, ProrationBehavior: sandbox.AlwaysInvoice}); err == nil {
			t.Errorf("change %d was made", i)
		}
	}
}

func TestGrantRefused(t *testing.T) {
	b := newBench(t, noon)
	ctx := t.Context()
	b.customer("cus_a", works)
	licensed := b.subscribe("cus_a", "ten", 1).Items[0].Price.ID
	bad := -1
	for i, change := range []func(*sandbox.GrantParams){
		func(p *sandbox.GrantParams) { p.Customer = "cus_b" }, func(p *sandbox.GrantParams) { p.Amount = 0 }, func(p *sandbox.GrantParams) { p.Amount = -5 },
		func(p *sandbox.GrantParams) { p.Currency = "USD" }, func(p *sandbox.GrantParams) { p.Category = "gift" }, func(p *sandbox.GrantParams) { p.Priority = &bad },
		func(p *sandbox.GrantParams) { p.EffectiveAt = noon.Add(-time.Hour) }, func(p *sandbox.GrantParams) { p.ExpiresAt = noon },
		func(p *sandbox.GrantParams) { p.Prices = []string{licensed} }, func(p *sandbox.GrantParams) { p.Prices = []string{"price_none"} },
		func(p *sandbox.GrantParams) { p.Name = fmt.Sprintf("%101d", 1) },
	} {
		p := sandbox.GrantParams{Customer: "cus_a", Amount: 100, Currency: "usd"}
		change(&p)
		if _, err := b.CreateGrant(ctx, sandbox.Call{}, p); err == nil {
			t.Errorf("grant %d was made: %+v", i, p)
		}
	}
	g, err := b.CreateGrant(ctx, sandbox.Call{}, sandbox.GrantParams{Customer: "cus_a", Amount: 100, Currency: "usd"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.VoidGrant(ctx, sandbox.Call{}, g.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.VoidGrant(ctx, sandbox.Call{}, g.ID); err == nil {
		t.Error("it was voided twice")
	}
	if _, err := b.ExpireGrant(ctx, sandbox.Call{}, g.ID); err == nil {
		t.Error("what was voided expired")
	}
	// What was used in part can expire and cannot be voided.
	if _, err := b.CreateMeter(ctx, sandbox.Call{}, sandbox.MeterParams{ID: "mtr_a", EventName: "a", DisplayName: "A"}); err != nil {
		t.Fatal(err)
	}
	m, err := b.CreatePrice(ctx, sandbox.Call{}, sandbox.PriceParams{Product: "prod_x", Currency: "usd", Interval: billing.Month, UnitAmount: decimal.NewFromInt(1), Meter: "mtr_a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{Customer: "cus_a", Items: []sandbox.ItemParams{{Price: m.ID}}}); err != nil {
		t.Fatal(err)
	}
	if err := b.ReportUsage(ctx, sandbox.Call{}, sandbox.UsageEvent{EventName: "a", Customer: "cus_a", Value: decimal.NewFromInt(30)}); err != nil {
		t.Fatal(err)
	}
	if g, err = b.CreateGrant(ctx, sandbox.Call{}, sandbox.GrantParams{Customer: "cus_a", Amount: 100, Currency: "usd"}); err != nil {
		t.Fatal(err)
	}
	b.advance(32 * day)
	_, err = b.VoidGrant(ctx, sandbox.Call{}, g.ID)
	wantCode(t, err, sandbox.InvalidRequest, "parameter_invalid")
	if g, err = b.ExpireGrant(ctx, sandbox.Call{}, g.ID); err != nil || g.Left != 0 {
		t.Errorf("%+v, %v", g, err)
	}
	moves, err := b.CreditTransactions(ctx, "cus_a")
	if err != nil || len(moves) != 5 || moves[0].Type != sandbox.CreditsExpired || moves[0].Amount != 70 {
		t.Errorf("%+v, %v", moves, err)
	}
}
