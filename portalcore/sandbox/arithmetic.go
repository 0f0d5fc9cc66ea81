package sandbox

import (
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Exponent is how many decimals the minor unit of a currency (lower case) has
// at Stripe (docs.stripe.com/currencies). It is not ISO 4217's table: ISK and
// UGX have no minor unit any more, but amounts in them are passed with two
// decimals (500 is 5 ISK); MGA is passed without decimals though ISO gives it
// two. The three-decimal currencies are passed in thousandths, and Stripe
// wants the last digit to be 0.
func Exponent(currency string) int {
	switch currency {
	case "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf":
		return 0
	case "bhd", "jod", "kwd", "omr", "tnd":
		return 3
	}
	return 2 // with isk and ugx
}

// round returns r as an integer, half away from zero: what Stripe does to
// each line and to the tax of each line.
func round(r *big.Rat) int64 {
	n := new(big.Int).Abs(r.Num())
	n.Mul(n, big.NewInt(2)).Add(n, r.Denom())
	n.Quo(n, new(big.Int).Mul(r.Denom(), big.NewInt(2)))
	if r.Sign() < 0 {
		n.Neg(n)
	}
	return n.Int64()
}

// taxOn is the exclusive tax on an amount without tax.
func taxOn(amount int64, percent decimal.Decimal) int64 {
	r := new(big.Rat).Mul(percent.Rat(), new(big.Rat).SetInt64(amount))
	return round(r.Quo(r, big.NewRat(100, 1)))
}

// nextBoundary is the first end of a period after t.
func nextBoundary(anchor, t time.Time, interval billing.Interval, count int) time.Time {
	days := int(t.Sub(anchor).Hours() / 24)
	n := 0
	switch interval {
	case billing.Day:
		n = days / count
	case billing.Week:
		n = days / 7 / count
	case billing.Month:
		n = days / 31 / count
	case billing.Year:
		n = days / 366 / count
	}
	for n = max(n-1, 1); !billing.AddPeriods(anchor, n, interval, count).After(t); n++ {
	}
	return billing.AddPeriods(anchor, n, interval, count)
}

// formatAmount writes an amount for descriptions and documents: "$19.99",
// "-€5.00", "KWD 1.500".
func formatAmount(amount decimal.Decimal, currency string) string {
	exp := int32(Exponent(currency))
	v := amount.Shift(-exp)
	digits := v.Abs().StringFixed(exp)
	if !v.Equal(v.Round(exp)) { // a fraction of a minor unit
		digits = v.Abs().String()
	}
	whole, frac, _ := strings.Cut(digits, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if frac != "" {
		whole += "." + frac
	}
	sign := ""
	if v.IsNegative() {
		sign = "-"
	}
	switch currency {
	case "usd":
		return sign + "$" + whole
	case "eur":
		return sign + "€" + whole
	}
	return sign + strings.ToUpper(currency) + " " + whole
}

func formatMinor(amount int64, currency string) string {
	return formatAmount(decimal.NewFromInt(amount), currency)
}

// every is a price's interval in words: "month", "3 months".
func every(p Price) string {
	if p.IntervalCount == 1 {
		return string(p.Interval)
	}
	return fmt.Sprintf("%d %ss", p.IntervalCount, p.Interval)
}
