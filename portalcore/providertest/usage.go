package providertest

import (
	"context"
	"fmt"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// UsageWorld is the part of World that is about usage, credits and balances.
type UsageWorld interface {
	// Meter makes a meter that counts events of the name event.
	Meter(id, event string, formula sandbox.Formula)
	// MonthlyPrice makes a price per month with a product of its own: metered
	// with meter, tiered with tiers, both, or neither.
	MonthlyPrice(id, currency, meter, amount string, mode billing.TiersMode, tiers ...billing.Tier)
	// Use reports usage. at zero is now.
	Use(customer, event, value string, at time.Time)
	// Grant gives a credit grant and returns its id.
	Grant(p sandbox.GrantParams) string
	// EndGrant voids a grant, or lets it expire now.
	EndGrant(id string, void bool)
	// Adjust moves a customer's balance; below zero is credit.
	Adjust(customer string, amount int64, currency string)
	// Void voids an open invoice.
	Void(invoice string)
}

// Meter implements World.
func (l Ledger) Meter(id, event string, formula sandbox.Formula) {
	_, err := l.Ledger.CreateMeter(context.Background(), sandbox.Call{}, sandbox.MeterParams{ID: id, EventName: event, DisplayName: "Name of " + event, Formula: formula})
	l.check(err)
}

// MonthlyPrice implements World.
func (l Ledger) MonthlyPrice(id, currency, meter, amount string, mode billing.TiersMode, tiers ...billing.Tier) {
	ctx := context.Background()
	p, err := l.Ledger.CreateProduct(ctx, sandbox.Call{}, sandbox.ProductParams{Name: "Product of " + id})
	l.check(err)
	params := sandbox.PriceParams{ID: id, Product: p.ID, Currency: currency, Interval: billing.Month, Meter: meter, TiersMode: mode, Tiers: tiers}
	if amount != "" {
		params.UnitAmount = decimal.RequireFromString(amount)
	}
	_, err = l.Ledger.CreatePrice(ctx, sandbox.Call{}, params)
	l.check(err)
}

// Use implements World.
func (l Ledger) Use(customer, event, value string, at time.Time) {
	l.check(l.Ledger.ReportUsage(context.Background(), sandbox.Call{}, sandbox.UsageEvent{EventName: event, Customer: customer, Value: decimal.RequireFromString(value), Timestamp: at}))
}

// Grant implements World.
func (l Ledger) Grant(p sandbox.GrantParams) string {
	g, err := l.Ledger.CreateGrant(context.Background(), sandbox.Call{}, p)
	l.check(err)
	return g.ID
}

// EndGrant implements World.
func (l Ledger) EndGrant(id string, void bool) {
	end := l.Ledger.ExpireGrant
	if void {
		end = l.Ledger.VoidGrant
	}
	_, err := end(context.Background(), sandbox.Call{}, id)
	l.check(err)
}

// Adjust implements World.
func (l Ledger) Adjust(customer string, amount int64, currency string) {
	_, err := l.Ledger.AdjustBalance(context.Background(), sandbox.Call{}, customer, amount, currency)
	l.check(err)
}

// Void implements World.
func (l Ledger) Void(invoice string) {
	_, err := l.Ledger.VoidInvoice(context.Background(), sandbox.Call{}, invoice)
	l.check(err)
}

// usage reads usage and notes it.
func (s *scene) usage(customer string, q billing.UsageQuery) billing.Usage {
	s.Helper()
	u, err := s.Provider.Usage(s.ctx, customer, q)
	s.must(err)
	s.note("usage", u)
	for _, m := range u.Meters {
		sum, at := decimal.Zero, m.From
		for _, p := range m.Points {
			if !p.Start.Equal(at) || !p.End.After(p.Start) {
				s.Errorf("a point is from %s to %s, the one before ends at %s", p.Start, p.End, at)
			}
			sum, at = sum.Add(p.Value), p.End
		}
		if !at.Equal(m.To) || !sum.Equal(m.Total) && m.Event != "last" {
			s.Errorf("the points end at %s with %s, the usage at %s with %s", at, sum, m.To, m.Total)
		}
	}
	return u
}

// meterOf reads the usage of a customer's one metered item.
func (s *scene) meterOf(m Made, q billing.UsageQuery) billing.MeterUsage {
	s.Helper()
	q.Subscription = m.Subscription
	u := s.usage(m.ID, q)
	if len(u.Meters) != 1 {
		s.Fatalf("%d meters, want 1", len(u.Meters))
	}
	if !u.UpTo.Equal(s.World.Now()) {
		s.Errorf("usage up to %s, it is %s", u.UpTo, s.World.Now())
	}
	return u.Meters[0]
}

// balance reads a page of the balance and notes it.
func (s *scene) balance(customer, cursor string, limit int) billing.BalancePage {
	s.Helper()
	p, err := s.Provider.Balance(s.ctx, customer, cursor, limit)
	s.must(err)
	q := p
	q.Newer, q.Older = present(p.Newer), present(p.Older)
	s.note("balance", q)
	return p
}

// latest is a customer's newest invoice.
func (s *scene) latest(customer string) billing.Invoice {
	s.Helper()
	a := s.account(customer)
	if len(a.Invoices) == 0 {
		s.Fatal("no invoice")
	}
	return a.Invoices[0]
}

func amounts(lines []billing.Line) []int64 {
	out := []int64{}
	for _, l := range lines {
		out = append(out, l.Amount.Amount)
	}
	return out
}

func usd(n int64) billing.Money { return billing.Money{Amount: n, Currency: "usd"} }

func tier(upTo int64, unit, flat string) billing.Tier {
	t := billing.Tier{UpTo: upTo, UnitAmount: decimal.RequireFromString(unit)}
	if flat != "" {
		t.FlatAmount = decimal.RequireFromString(flat)
	}
	return t
}

func in(currency, what string) string { return fmt.Sprintf("price_%s_%s", what, currency) }
