package oracletest

import "math/big"

// Band is a tier of a price: units up to and with UpTo, which is nil for the
// last one.
type Band struct {
	UpTo, Unit, Flat *big.Rat
}

// Bands are the amounts of an invoice's lines for a quantity of a tiered price:
// for each band that counts its units, unless they cost nothing beside a flat
// amount, then its flat amount. share is the part of a period, 1 for a whole
// one.
//
// It follows docs.stripe.com/subscriptions/pricing-models/tiered-pricing: with
// volume the band of the whole quantity is for all units, else each unit has
// the price of its own.
func Bands(volume bool, bands []Band, quantity, share *big.Rat) []int64 {
	var lines []int64
	part := func(b Band, units *big.Rat) {
		free := b.Flat == nil || b.Flat.Sign() == 0
		if x := new(big.Rat).Mul(units, b.Unit); free || x.Sign() != 0 {
			lines = append(lines, nearest(x.Mul(x, share)))
		}
		if !free {
			lines = append(lines, nearest(new(big.Rat).Mul(b.Flat, share)))
		}
	}
	lower := new(big.Rat)
	for i, b := range bands {
		reached := i == 0 || quantity.Cmp(lower) > 0
		within := b.UpTo == nil || quantity.Cmp(b.UpTo) <= 0
		if volume && reached && within {
			part(b, quantity)
		}
		if !volume && reached {
			top := quantity
			if !within {
				top = b.UpTo
			}
			part(b, new(big.Rat).Sub(top, lower))
		}
		if b.UpTo != nil {
			lower = b.UpTo
		}
	}
	return lines
}

// Arrears is a renewal: what is billed ahead, and what was used.
type Arrears struct {
	Ahead, Used []int64
	// Credits are what the customer's grants hold, in the order of their use.
	Credits    []int64
	TaxPercent *big.Rat
	Balance    int64 // before
}

// ArrearsBill is what a renewal costs.
type ArrearsBill struct {
	Subtotal, Credits, Tax, Total, Due, Balance int64
	Left                                        []int64 // of Credits
}

// WorkArrears works out a renewal: credits pay for what was used, then the rest
// is taxed line by line, then the balance is used.
func WorkArrears(a Arrears) ArrearsBill {
	b := ArrearsBill{Left: append([]int64(nil), a.Credits...)}
	for _, n := range a.Ahead {
		b.Subtotal += n
		b.Tax += tax(n, a.TaxPercent)
	}
	for _, n := range a.Used {
		b.Subtotal += n
		open := n
		for i := range b.Left {
			pays := max(min(open, b.Left[i]), 0)
			open, b.Left[i], b.Credits = open-pays, b.Left[i]-pays, b.Credits+pays
		}
		b.Tax += tax(open, a.TaxPercent)
	}
	b.Total = b.Subtotal - b.Credits + b.Tax
	b.Due, b.Balance = collect(b.Total, a.Balance)
	return b
}
