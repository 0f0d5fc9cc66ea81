// Package oracletest works out, a second time and in another way, what a
// change of a subscription costs. It is for tests only: providers are compared
// with it. It shares no code with any provider, calculates in exact rationals,
// and follows docs.stripe.com/billing/subscriptions/prorations: by the second,
// each line rounded by itself, half away from zero, and so the exclusive tax
// of each line.
package oracletest

import (
	"math/big"
	"strconv"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Side is an item before or after a change.
type Side struct {
	Unit     *big.Rat // minor units for one unit and one period
	Quantity int64
	Interval billing.Interval
	Count    int // intervals in a period, at least 1
}

// Change is a change of a subscription that is billed at once
// (proration_behavior=always_invoice), with one currency and one interval per
// side.
type Change struct {
	// Before and After are the items, in one order: After[i] replaces
	// Before[i].
	Before, After []Side
	// Start and End are the current period, At the proration moment in it.
	Start, End, At time.Time
	// Trial is true while a trial runs: nothing is billed.
	Trial      bool
	TaxPercent *big.Rat
	// Balance is the customer's before the change; below zero is credit.
	Balance int64
}

// Bill is what a change costs, in minor units.
type Bill struct {
	// Lines and Taxes are the amounts line by line, as an invoice has them:
	// for each changed item the credit, then the debit; with a new interval
	// all credits, then all whole periods.
	Lines, Taxes                   []int64
	Subtotal, Tax, Total           int64
	Due                            int64 // to be collected now
	Balance                        int64 // the customer's, after
	PeriodStart, PeriodEnd         time.Time
	NextSubtotal, NextTax, NextDue int64 // of the next regular invoice, NextDue after the balance
}

// Work works out a change.
func Work(c Change) Bill {
	b := Bill{PeriodStart: c.Start, PeriodEnd: c.End}
	left := big.NewRat(c.End.Unix()-c.At.Unix(), c.End.Unix()-c.Start.Unix())
	whole := big.NewRat(1, 1)
	line := func(s Side, share *big.Rat, sign int64) {
		x := new(big.Rat).SetInt64(sign * s.Quantity)
		x.Mul(x, s.Unit).Mul(x, share)
		amount := nearest(x)
		b.Lines = append(b.Lines, amount)
		b.Taxes = append(b.Taxes, tax(amount, c.TaxPercent))
	}
	newInterval := c.Before[0].Interval != c.After[0].Interval || c.Before[0].Count != c.After[0].Count
	switch {
	case c.Trial:
	case newInterval:
		for _, s := range c.Before {
			line(s, left, -1)
		}
		for _, s := range c.After {
			line(s, whole, 1)
		}
		b.PeriodStart, b.PeriodEnd = c.At, PeriodEnd(c.At, 1, c.After[0].Interval, c.After[0].Count)
	default:
		for i, s := range c.After {
			if old := c.Before[i]; old.Unit.Cmp(s.Unit) != 0 || old.Quantity != s.Quantity {
				line(old, left, -1)
				line(s, left, 1)
			}
		}
	}
	for i := range b.Lines {
		b.Subtotal += b.Lines[i]
		b.Tax += b.Taxes[i]
	}
	b.Total = b.Subtotal + b.Tax
	b.Due, b.Balance = collect(b.Total, c.Balance)
	if len(b.Lines) == 0 {
		b.Due, b.Balance = 0, c.Balance // no invoice
	}
	for _, s := range c.After {
		amount := nearest(new(big.Rat).Mul(s.Unit, new(big.Rat).SetInt64(s.Quantity)))
		b.NextSubtotal += amount
		b.NextTax += tax(amount, c.TaxPercent)
	}
	b.NextDue, _ = collect(b.NextSubtotal+b.NextTax, b.Balance)
	return b
}

// Paper is a regular invoice of a whole period.
type Paper struct {
	Sides      []Side
	TaxPercent *big.Rat
	Balance    int64 // the customer's before; below zero is credit
}

// Sums are what an invoice comes to, in minor units.
type Sums struct {
	Lines                []int64
	Subtotal, Tax, Total int64
	Due                  int64
	FromBalance          int64 // the part that the balance paid; below zero it was added
}

// Issue works out a regular invoice.
func Issue(p Paper) Sums {
	var s Sums
	for _, x := range p.Sides {
		amount := nearest(new(big.Rat).Mul(x.Unit, new(big.Rat).SetInt64(x.Quantity)))
		s.Lines = append(s.Lines, amount)
		s.Subtotal += amount
		s.Tax += tax(amount, p.TaxPercent)
	}
	s.Total = s.Subtotal + s.Tax
	var after int64
	s.Due, after = collect(s.Total, p.Balance)
	s.FromBalance = after - p.Balance
	return s
}

// CreditNote is how an amount with tax that is taken off an invoice divides: the
// tax is the same share of it as it is of the invoice.
func CreditNote(invoice Sums, amount int64) (subtotal, taxes int64) {
	share := big.NewRat(invoice.Tax, invoice.Total)
	taxes = nearest(share.Mul(share, new(big.Rat).SetInt64(amount)))
	return amount - taxes, taxes
}

// collect is what is due of total, and what the balance becomes.
func collect(total, balance int64) (due, after int64) {
	if total+balance > 0 {
		return total + balance, 0
	}
	return 0, total + balance
}

func tax(amount int64, percent *big.Rat) int64 {
	if percent == nil {
		return 0
	}
	return nearest(new(big.Rat).Mul(big.NewRat(amount, 100), percent))
}

// nearest rounds half away from zero, as big.Rat's decimal notation does.
func nearest(x *big.Rat) int64 {
	n, err := strconv.ParseInt(x.FloatString(0), 10, 64)
	if err != nil {
		panic("oracletest: an amount beyond 64 bits: " + x.String())
	}
	return n
}

// PeriodEnd is the end of the n-th period after an anchor: days and weeks have
// 24-hour days, months and years keep the anchor's day where the month has it
// and end on its last day where not.
func PeriodEnd(anchor time.Time, n int, interval billing.Interval, count int) time.Time {
	const day = 24 * 60 * 60
	switch interval {
	case billing.Day:
		return time.Unix(anchor.Unix()+int64(n*count)*day, 0).UTC()
	case billing.Week:
		return time.Unix(anchor.Unix()+int64(n*count)*7*day, 0).UTC()
	case billing.Month:
	case billing.Year:
		count *= 12
	}
	anchor = anchor.UTC()
	months := anchor.Year()*12 + int(anchor.Month()) - 1 + n*count
	year, month := months/12, months%12
	days := [...]int{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
		days[1] = 29
	}
	return time.Date(year, time.Month(month+1), min(anchor.Day(), days[month]), anchor.Hour(), anchor.Minute(), anchor.Second(), 0, time.UTC)
}
