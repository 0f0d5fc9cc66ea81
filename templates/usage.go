package templates

import (
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Where the pages about usage and balance are.
const (
	PathUsage    = "/usage"
	PathUsageCSV = "/usage.csv"
	PathBalance  = "/balance"
)

// The fields of Usage's forms. FieldFrom and FieldTo are the ids of the inputs.
const (
	FieldPeriod = "period" // a value of Usage.Period
	FieldBy     = "by"     // "day" or "month"
	FieldFrom   = "from"   // YYYY-MM-DD
	FieldTo     = "to"     // YYYY-MM-DD, the last day that counts
)

// Usage is /usage: what one subscription's metered items counted.
type Usage struct {
	// None is set where no subscription has a usage-based price.
	None bool
	// Failed is set where the usage could not be read.
	Failed   bool
	PlanName string
	// Others are further subscriptions with usage.
	Others []UsageOf
	// Subscription is the one shown, for the forms.
	Subscription string
	// Period: "this", "last", "year" (the last 12 months) or "custom".
	Period string
	By     billing.Interval // Day or Month
	// From and To are the dates of "custom" as entered.
	From, To string
	Errors   []FieldError
	Meters   []Meter
	// UpTo is how far the provider has counted, zero where that no longer
	// matters or is not known.
	UpTo      time.Time
	CSVHref   string // "" where there is nothing in it
	RetryHref string
}

// UsageOf leads to the usage of another subscription.
type UsageOf struct{ PlanName, Href string }

// Meter is a metered item's card.
type Meter struct {
	Name  string // "" where it has none
	Total decimal.Decimal
	// From and To bound it: moments of the billing period, or with Dates the
	// first and the last day in UTC.
	From, To time.Time
	Dates    bool
	// Open is set while the period goes on.
	Open bool
	// Limit is what the plan says may be used, where HasLimit is set.
	Limit    int64
	HasLimit bool
	// Cost is what it costs without tax, nil where that is not known.
	Cost   *billing.Money
	Price  billing.Price
	By     billing.Interval
	Points []Point
	// Resets is when the count begins anew, zero where it does not or the period
	// is over.
	Resets time.Time
	// Expected is a straight line through what was counted so far, drawn to the
	// end of the period; nil where that says nothing.
	Expected *decimal.Decimal
	Before   *UsageBefore
	// Sums is set where the points add up to Total.
	Sums bool
}

// Point is what was used in [Start, End).
type Point struct {
	Start, End time.Time
	Value      decimal.Decimal
	State      string
}

// The states of a Point that is not finished.
const (
	PointOpen    = "open"    // still being counted
	PointLater   = "later"   // not begun, or nothing counted of it yet
	PointMissing = "missing" // the provider says nothing about it
)

// UsageBefore is the period before, to compare with.
type UsageBefore struct {
	// Failed is set where it could not be read; nothing else is then.
	Failed   bool
	From, To time.Time
	Total    decimal.Decimal
	// Days is how many finished days both periods are compared over, 0 for
	// none; Now and Then are what was used in them.
	Days      int
	Now, Then decimal.Decimal
}

// Percent is the share of the limit that is used, rounded down. It is zero
// where there is no share to speak of.
func (m Meter) Percent() decimal.Decimal {
	if !m.HasLimit || m.Limit <= 0 || !m.Total.IsPositive() {
		return decimal.Zero
	}
	q, _ := m.Total.Shift(2).QuoRem(decimal.NewFromInt(m.Limit), 0)
	return q
}

// Tone is how near to the limit it is: "ok", "warn" from 80 % on, "danger" where
// it is reached.
func (m Meter) Tone() string {
	switch p := m.Percent(); {
	case m.HasLimit && m.Limit <= 0 && m.Total.IsPositive(), !p.LessThan(decimal.NewFromInt(100)):
		return "danger"
	case !p.LessThan(decimal.NewFromInt(80)):
		return "warn"
	}
	return "ok"
}

// Width is how much of the bar is filled.
func (m Meter) Width() string {
	if m.Tone() == "danger" {
		return share(1)
	}
	return share(m.Percent().InexactFloat64() / 100)
}

// Used reports whether anything was counted.
func (m Meter) Used() bool {
	if !m.Total.IsZero() {
		return true
	}
	for _, p := range m.Points {
		if !p.Value.IsZero() {
			return true
		}
	}
	return false
}

// tierRow is a line of the table that explains a price. To 0 has no end.
type tierRow struct {
	From, To   int64
	Unit, Flat exactly
}

func tiers(p billing.Price) []tierRow {
	rows := make([]tierRow, 0, len(p.Tiers))
	from := int64(1)
	for _, t := range p.Tiers {
		rows = append(rows, tierRow{from, t.UpTo, exactly{t.UnitAmount, p.Currency}, exactly{t.FlatAmount, p.Currency}})
		from = t.UpTo + 1
	}
	return rows
}

// hasFlat reports whether a tier costs something by itself.
func hasFlat(p billing.Price) bool {
	for _, t := range p.Tiers {
		if !t.FlatAmount.IsZero() {
			return true
		}
	}
	return false
}

// unitPrice is what one unit of p costs.
func unitPrice(p billing.Price) exactly { return exactly{p.UnitAmount, p.Currency} }

// pointName is the name of a point's time: a day or a month in UTC.
func pointName(by billing.Interval, t time.Time) any {
	if by == billing.Month {
		return monthUTC(t)
	}
	return dayUTC(t)
}

// Balance is /balance: what the customer has with the vendor, and what moved it.
type Balance struct {
	Failed bool
	// Balances are by currency; below zero is credit.
	Balances []billing.Money
	// Grants can still be used, now or later; Past cannot.
	Grants, Past         []Grant
	Entries              []billing.BalanceEntry
	NewerHref, OlderHref string
	RetryHref            string
}

// Grant is a credit with its state: "usable", "later", "used", "expired",
// "void".
type Grant struct {
	billing.Grant
	State string
}
