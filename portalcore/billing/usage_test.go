package billing_test

import (
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// A period that began on the 31st ends on the last day of shorter months, and
// bounds are compared in whole minutes.
func TestIsPeriod(t *testing.T) {
	at := func(s string) time.Time {
		x, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	anchor := at("2026-01-31T10:20:30Z")
	for _, tt := range []struct {
		interval billing.Interval
		count    int
		from, to string
		want     bool
	}{
		{billing.Month, 1, "2026-01-31T10:20:00Z", "2026-02-28T10:20:00Z", true},
		{billing.Month, 1, "2026-02-28T10:20:00Z", "2026-03-31T10:20:00Z", true},
		{billing.Month, 1, "2028-02-29T10:20:00Z", "2028-03-31T10:20:00Z", true},
		{billing.Month, 1, "2026-02-28T10:20:00Z", "2026-03-28T10:20:00Z", false},
		{billing.Month, 1, "2026-02-28T10:20:30Z", "2026-03-31T10:20:30Z", false},
		{billing.Month, 1, "2025-12-31T10:20:00Z", "2026-01-31T10:20:00Z", false},
		{billing.Month, 3, "2026-04-30T10:20:00Z", "2026-07-31T10:20:00Z", true},
		{billing.Month, 3, "2026-03-31T10:20:00Z", "2026-06-30T10:20:00Z", false},
		{billing.Year, 1, "2036-01-31T10:20:00Z", "2037-01-31T10:20:00Z", true},
		{billing.Week, 2, "2026-02-14T10:20:00Z", "2026-02-28T10:20:00Z", true},
		{billing.Week, 2, "2026-02-07T10:20:00Z", "2026-02-21T10:20:00Z", false},
		{billing.Day, 1, "2029-05-05T10:20:00Z", "2029-05-06T10:20:00Z", true},
		{billing.Day, 0, "2026-01-31T10:20:00Z", "2026-02-01T10:20:00Z", false},
		{"hour", 1, "2026-01-31T10:20:00Z", "2026-01-31T11:20:00Z", false},
	} {
		if got := billing.IsPeriod(anchor, tt.interval, tt.count, at(tt.from), at(tt.to)); got != tt.want {
			t.Errorf("%s to %s every %d %s: %v", tt.from, tt.to, tt.count, tt.interval, got)
		}
	}
}

// Sums of a size that no bill has do not wrap around.
func TestChargeBeyond64Bits(t *testing.T) {
	p := billing.Price{Currency: "usd", UnitAmount: decimal.New(1, 20)}
	if m := p.Cost(decimal.New(1, 20)); m.Amount <= 0 {
		t.Errorf("cost %d", m.Amount)
	}
}

// What an estimate does between preview and confirmation is no new offer; the
// price of what is paid ahead is.
func TestSameTermsOfAnEstimate(t *testing.T) {
	usd := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "usd"} }
	preview := func(seat, used int64, metered bool) billing.Preview {
		return billing.Preview{
			Items: []billing.Item{{Price: billing.Price{ID: "price_seat"}}, {Price: billing.Price{ID: "price_call", Metered: metered}}},
			Next:  &billing.Upcoming{Total: usd(seat + used), Lines: []billing.Line{{Price: "price_seat", Amount: usd(seat)}, {Price: "price_call", Amount: usd(used)}}},
		}
	}
	for name, tt := range map[string]struct {
		p, q billing.Preview
		want bool
	}{
		"more was used":         {preview(1000, 10, true), preview(1000, 90, true), true},
		"the seat costs more":   {preview(1000, 10, true), preview(1010, 10, true), false},
		"both, to the same sum": {preview(1000, 20, true), preview(1010, 10, true), false},
		"nothing is metered":    {preview(1000, 10, false), preview(1000, 90, false), false},
	} {
		if got := tt.p.SameTerms(tt.q); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
