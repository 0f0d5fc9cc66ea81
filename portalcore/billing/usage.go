package billing

import (
	"errors"
	"time"

	"github.com/shopspring/decimal"
)

// MaxUsageMonths bounds a UsageQuery.
const MaxUsageMonths = 13

// Check refuses a query ("invalid_request") that names no subscription, no
// width of points, or bounds that are not in order or more than MaxUsageMonths
// apart.
func (q UsageQuery) Check() error {
	refuse := func(param, why string) error {
		return &Error{Fault: Refused, Code: "invalid_request", Param: param, Err: errors.New(why)}
	}
	switch {
	case q.Subscription == "":
		return &Error{Fault: NotFound, Code: "resource_missing", Param: "subscription"}
	case q.By != Day && q.By != Month:
		return refuse("by", "usage is shown by day or by month")
	case q.From.IsZero() != q.To.IsZero():
		return refuse("from", "both bounds are needed, or none")
	case !q.From.IsZero() && !Minute(q.From).Before(Minute(q.To)):
		return refuse("from", "the end is not after the beginning")
	case !q.From.IsZero() && q.To.After(q.From.UTC().AddDate(0, MaxUsageMonths, 0)):
		return refuse("to", "the bounds are more than 13 months apart")
	}
	return nil
}

// Bounds are the bounds of the usage of one item, in whole minutes, which is
// how exactly meters count: those of the query, or the item's current period.
func (q UsageQuery) Bounds(it *Item) (from, to time.Time) {
	if q.From.IsZero() {
		return Minute(it.PeriodStart), Minute(it.PeriodEnd)
	}
	return Minute(q.From), Minute(q.To)
}

// Minute is the beginning of t's minute, in UTC.
func Minute(t time.Time) time.Time { return t.UTC().Truncate(time.Minute) }

// IsPeriod reports whether bounds in whole minutes are those of a billing
// period, counted from a subscription's anchor. Periods before the anchor (a
// trial) are none.
func IsPeriod(anchor time.Time, interval Interval, count int, from, to time.Time) bool {
	if anchor.IsZero() || count < 1 {
		return false
	}
	days := map[Interval]int{Day: 1, Week: 7, Month: 31, Year: 366}[interval] * count
	if days == 0 || from.Before(Minute(anchor)) {
		return false
	}
	for n := max(int(from.Sub(anchor).Hours()/24)/days-1, 0); ; n++ {
		at := Minute(AddPeriods(anchor, n, interval, count))
		if at.After(from) {
			return false
		}
		if at.Equal(from) {
			return Minute(AddPeriods(anchor, n+1, interval, count)).Equal(to)
		}
	}
}

// AddPeriods is anchor plus n periods. Months and years are counted from the
// anchor, and its day is clamped to the month's last: 31 January, 28 February,
// 31 March (docs.stripe.com/billing/subscriptions/billing-cycle).
func AddPeriods(anchor time.Time, n int, interval Interval, count int) time.Time {
	anchor = anchor.UTC()
	n *= count
	switch interval {
	case Day:
		return anchor.AddDate(0, 0, n)
	case Week:
		return anchor.AddDate(0, 0, 7*n)
	case Month:
	case Year:
		n *= 12
	}
	y, m, d := anchor.Date()
	first := time.Date(y, m+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
	last := first.AddDate(0, 1, -1).Day()
	return time.Date(first.Year(), first.Month(), min(d, last), anchor.Hour(), anchor.Minute(), anchor.Second(), 0, time.UTC)
}

// UsageDay is the usage of one day, or of the part of it within the bounds.
type UsageDay struct {
	Start time.Time // any time of it
	Value decimal.Decimal
	// Any is false where nothing was reported: a meter that keeps the last
	// value does not count it.
	Any bool
}

// UsagePoints are points between from and to, by day or by month in UTC, each with
// the sum of the days in it, and the sum of all. Days come in order, and those
// without usage may be missing. With last, which is for meters that keep the
// last value, the last one counts instead of the sum.
func UsagePoints(from, to time.Time, by Interval, days []UsageDay, last bool) (points []UsagePoint, total decimal.Decimal) {
	add := func(sum, v decimal.Decimal) decimal.Decimal {
		if last {
			return v
		}
		return sum.Add(v)
	}
	for at := from; at.Before(to); {
		next := time.Date(at.Year(), at.Month(), at.Day()+1, 0, 0, 0, 0, time.UTC)
		if by == Month {
			next = time.Date(at.Year(), at.Month()+1, 1, 0, 0, 0, 0, time.UTC)
		}
		if next.After(to) {
			next = to
		}
		points = append(points, UsagePoint{Start: at, End: next})
		at = next
	}
	i := 0
	for _, d := range days {
		for i < len(points) && !d.Start.Before(points[i].End) {
			i++
		}
		if i == len(points) {
			break
		}
		if d.Any && !d.Start.Before(from) {
			points[i].Value, total = add(points[i].Value, d.Value), add(total, d.Value)
		}
	}
	return points, total
}

// UsageCost is what a metered item's usage between bounds costs, or nil where
// these are not the current period's nor another one's, counted from the
// subscription's anchor. A trial's usage is free.
func (it *Item) UsageCost(from, to time.Time, total decimal.Decimal, anchor time.Time, status SubscriptionStatus) *Money {
	current := from.Equal(Minute(it.PeriodStart)) && to.Equal(Minute(it.PeriodEnd))
	if !current && !IsPeriod(anchor, it.Price.Interval, it.Price.IntervalCount, from, to) {
		return nil
	}
	m := it.Price.Cost(decimal.Max(total, decimal.Zero))
	if current && status == Trialing {
		m.Amount = 0
	}
	return &m
}
