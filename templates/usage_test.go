package templates

import (
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func dec(s string) decimal.Decimal { return decimal.RequireFromString(s) }

func midnight(month time.Month, d int) time.Time {
	return time.Date(2026, month, d, 0, 0, 0, 0, time.UTC)
}

var calls = billing.Price{
	ID: "price_calls", Currency: "eur", Interval: billing.Month, IntervalCount: 1, Metered: true, Meter: "mtr_1", TiersMode: billing.Graduated,
	Tiers: []billing.Tier{{UpTo: 1000}, {UpTo: 10000, UnitAmount: dec("0.2"), FlatAmount: dec("500")}, {UnitAmount: dec("0.125")}},
}

// meter is a metered item half way through May.
func meter() Meter {
	m := Meter{
		Name: "API calls", From: midnight(5, 1), To: midnight(6, 1), Open: true, Limit: 10000, HasLimit: true, Cost: eurp(1140),
		Price: calls, By: billing.Day, Resets: midnight(6, 1), Sums: true, Expected: new(dec("14000")),
		Before: &UsageBefore{From: midnight(4, 1), To: midnight(5, 1), Total: dec("9800"), Days: 13, Now: dec("6050"), Then: dec("5100")},
	}
	for d := 1; d <= 31; d++ {
		p := Point{Start: midnight(5, d), End: midnight(5, d+1), Value: decimal.NewFromInt(int64(d * 40 % 900))}
		switch {
		case d == 9:
			p.Value = decimal.NewFromInt(812)
		case d == 14:
			p.State = PointOpen
		case d > 14:
			p.State, p.Value = PointLater, decimal.Zero
		}
		m.Points = append(m.Points, p)
		m.Total = m.Total.Add(p.Value)
	}
	return m
}

// months are a year of points by month.
func months(values ...string) []Point {
	var out []Point
	for i, v := range values {
		start := time.Date(2025, time.June+time.Month(i), 1, 0, 0, 0, 0, time.UTC)
		out = append(out, Point{Start: start, End: start.AddDate(0, 1, 0), Value: dec(v)})
	}
	return out
}

func usage(m ...Meter) *Usage {
	return &Usage{
		PlanName: "Team", Period: "this", By: billing.Day, Meters: m, UpTo: time.Date(2026, 5, 14, 13, 0, 0, 0, time.UTC),
		CSVHref: "/usage.csv?period=this&by=day", RetryHref: "/usage",
	}
}

func usageFixtures() map[string]*Page {
	year := func(values ...string) Meter {
		return change(new(meter()), func(m *Meter) {
			m.Points, m.By, m.Dates, m.Open, m.HasLimit, m.Cost, m.Before, m.Expected = months(values...), billing.Month, true, false, false, nil, nil, nil
			m.From, m.To, m.Resets, m.Total = midnight(-6, 1), midnight(5, 14), time.Time{}, decimal.Zero
			for _, p := range m.Points {
				m.Total = m.Total.Add(p.Value)
			}
		}).plain()
	}
	withNav := func(p *Page) *Page { p.Usage, p.Balance, p.AsOf, p.RefreshHref = true, true, time.Time{}, ""; return p }
	return map[string]*Page{
		"usage": withNav(page("usage", usage(meter()))),
		"usage-limits": withNav(page("usage", usage(
			change(new(meter()), func(m *Meter) { m.Total, m.Before, m.Expected = dec("8190"), nil, nil }).plain(),
			change(new(meter()), func(m *Meter) {
				m.Name, m.Total, m.Before, m.Expected = "", dec("12600"), &UsageBefore{Failed: true}, nil
				m.Price = billing.Price{Currency: "eur", UnitAmount: dec("0.0004"), Metered: true}
			}).plain(),
			change(new(meter()), func(m *Meter) {
				m.Name, m.Limit, m.Sums, m.Price.TiersMode, m.Cost = "Peak storage", 0, false, billing.Volume, nil
			}).plain(),
		))),
		"usage-year": withNav(page("usage", change(usage(
			year("0.000001", "0", "0.0000035", "0", "0", "0", "0.000002", "0", "0", "0", "0", "0.0000009"),
			year("1e30", "2500000", "-3e29", "0", "0", "0", "1.5e29", "0", "0", "0", "7e29", "1"),
			change(new(year("10", "20", "30", "40", "50", "60")), func(m *Meter) {
				m.Name, m.Points[2].State, m.Points[2].Value, m.Points[5].State, m.Total = "Reports", PointMissing, decimal.Zero, PointOpen, dec("180")
			}).plain(),
		), func(u *Usage) {
			u.Period, u.By, u.Subscription = "year", billing.Month, "sub_1"
			u.Others = []UsageOf{{"Archive", "/usage?subscription=sub_2"}}
		}))),
		"usage-nothing": withNav(page("usage", usage(change(new(meter()), func(m *Meter) {
			m.Total, m.HasLimit, m.Before, m.Expected = decimal.Zero, false, nil, nil
			for i := range m.Points {
				m.Points[i].Value = decimal.Zero
			}
		}).plain()))),
		"usage-first":  withNav(page("usage", change(usage(), func(u *Usage) { u.Period, u.UpTo, u.CSVHref = "last", time.Time{}, "" }))),
		"usage-none":   page("usage", &Usage{None: true}),
		"usage-failed": withNav(page("usage", change(usage(), func(u *Usage) { u.Failed, u.UpTo, u.CSVHref = true, time.Time{}, "" }))),
		"usage-errors": withNav(page("usage", change(usage(), func(u *Usage) {
			u.Period, u.UpTo, u.CSVHref, u.From, u.To = "custom", time.Time{}, "", "2026-05-31", "yesterday"
			u.Errors = []FieldError{{Field: FieldFrom, Key: "date_future"}, {Field: FieldTo, Key: "date"}}
		}))),
		"balance": withNav(page("payment", &Balance{
			Balances: []billing.Money{eur(-1200), {Amount: 400, Currency: "usd"}, {Currency: "jpy"}},
			Grants: []Grant{
				{billing.Grant{Name: "Welcome", Amount: eur(1000), Left: eur(500), Effective: day(1, 1), Expires: day(6, 30)}, "usable"},
				{billing.Grant{Paid: true, Amount: eur(10000), Left: eur(10000), Effective: day(7, 1)}, "later"},
			},
			Past: []Grant{
				{billing.Grant{Name: "Spring", Amount: eur(1000), Left: eur(200), Expires: day(4, 30)}, "expired"},
				{billing.Grant{Name: "Mistake", Amount: eur(1000), Left: eur(1000), Void: true}, "void"},
				{billing.Grant{Name: "Autumn", Amount: eur(1000), Left: eur(0)}, "used"},
			},
			Entries: []billing.BalanceEntry{
				{ID: "cbtxn_3", Time: day(5, 1), Type: "applied_to_invoice", Amount: eur(1800), After: eurp(-1200), Invoice: "in_3"},
				{ID: "cbtxn_2", Time: day(4, 1), Type: "credits_granted", Amount: eur(-1000), Grant: "credgr_1"},
				{ID: "cbtxn_1", Time: day(3, 1), Type: "no such type", Amount: eur(-3400), After: eurp(400)},
				{ID: "cbtxn_0", Time: day(2, 1), Type: "adjustment", Amount: eur(0), After: eurp(0)},
			},
			NewerHref: "/balance?cursor=a", OlderHref: "/balance?cursor=b",
		})),
		"balance-empty":  withNav(page("payment", &Balance{})),
		"balance-end":    withNav(page("payment", &Balance{Balances: []billing.Money{eur(0)}, NewerHref: "/balance?cursor=a"})),
		"balance-failed": withNav(page("payment", &Balance{Failed: true, RetryHref: "/balance"})),
	}
}

// plain is m as a value.
func (m *Meter) plain() Meter { return *m }
