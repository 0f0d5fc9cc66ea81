package billing

import (
	"math"

	"github.com/shopspring/decimal"
)

// Charge is one part of what a quantity costs by a Price: one line of an
// invoice.
type Charge struct {
	// Tier counts from 1; 0 where the price has no tiers.
	Tier int
	// Flat marks a tier's flat amount: Quantity is 1 and Unit the amount.
	Flat     bool
	Quantity decimal.Decimal
	Unit     decimal.Decimal // minor units, exact
}

// Amount is what the part costs for a whole period, rounded half away from
// zero to minor units: Stripe rounds line by line
// (docs.stripe.com/billing/subscriptions/decimal-amounts).
func (c Charge) Amount() int64 { return minor(c.Quantity.Mul(c.Unit)) }

// Charges are the parts of what a quantity, not below zero, costs by p. A tier
// is a part of its own, and so is its flat amount; the first tier's is due
// without any unit, too
// (docs.stripe.com/subscriptions/pricing-models/tiered-pricing).
func (p *Price) Charges(quantity decimal.Decimal) []Charge {
	if len(p.Tiers) == 0 {
		return []Charge{{Quantity: quantity, Unit: p.UnitAmount}}
	}
	var list []Charge
	add := func(tier int, n decimal.Decimal) {
		t := p.Tiers[tier]
		if t.FlatAmount.IsZero() || !n.IsZero() && !t.UnitAmount.IsZero() {
			list = append(list, Charge{Tier: tier + 1, Quantity: n, Unit: t.UnitAmount})
		}
		if !t.FlatAmount.IsZero() {
			list = append(list, Charge{Tier: tier + 1, Flat: true, Quantity: decimal.NewFromInt(1), Unit: t.FlatAmount})
		}
	}
	below := decimal.Zero // where the tier begins
	for i, t := range p.Tiers {
		end := decimal.NewFromInt(t.UpTo)
		last := t.UpTo == 0 || i == len(p.Tiers)-1 || quantity.LessThanOrEqual(end)
		switch {
		case p.TiersMode == Volume && last:
			add(i, quantity)
		case p.TiersMode == Volume:
		case last:
			add(i, quantity.Sub(below))
		default:
			add(i, end.Sub(below))
		}
		if last {
			break
		}
		below = end
	}
	return list
}

// Cost is what a quantity costs by p for a whole period, without tax: the sum
// of its Charges as an invoice has them.
func (p *Price) Cost(quantity decimal.Decimal) Money {
	m := Money{Currency: p.Currency}
	for _, c := range p.Charges(quantity) {
		m.Amount += c.Amount()
	}
	return m
}

// minor rounds to whole minor units; what 64 bits do not hold is their largest
// number, which no provider bills.
func minor(d decimal.Decimal) int64 {
	n := d.Round(0).BigInt()
	if n.IsInt64() {
		return n.Int64()
	}
	return int64(n.Sign()) * math.MaxInt64
}
