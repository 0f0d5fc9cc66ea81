package pages

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shopspring/decimal"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// The periods that /usage shows, as they stand in its address.
const (
	periodThis   = "this"
	periodLast   = "last"
	periodYear   = "year" // the last 12 months, of which this is one
	periodCustom = "custom"
)

const (
	// maxUsageMonths is what a provider answers at once.
	maxUsageMonths = 13
	// byMonthFrom is the length from which a time is shown by month unless days
	// are asked for.
	byMonthFrom = 92 * 24 * time.Hour
	// maxPoints bounds what is taken from a provider: three years of days.
	maxPoints = 1200
	// maxMeters and maxMeterName bound the page; a subscription has at most 20
	// items at Stripe.
	maxMeters    = 50
	maxMeterName = 120
)

// usageAsk is what the address of /usage asks for.
type usageAsk struct {
	period string
	by     billing.Interval // "" to choose by the length
	// entered are the dates of "custom" as they came, from and to what "custom"
	// and "year" mean: midnights in UTC, to the one after the last day.
	entered  [2]string
	from, to time.Time
	errs     []templates.FieldError
}

// readUsageAsk reads the fields of /usage. now is the provider's time. It
// reports false for what no form of ours sends; dates that cannot be are in
// errs.
func readUsageAsk(f form, now time.Time) (usageAsk, bool) {
	a := usageAsk{period: cmp.Or(f[templates.FieldPeriod], periodThis), by: billing.Interval(f[templates.FieldBy])}
	if a.by != "" && a.by != billing.Day && a.by != billing.Month {
		return a, false
	}
	now = now.UTC()
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
	switch a.period {
	case periodThis, periodLast:
	case periodYear:
		a.from, a.to = time.Date(now.Year(), now.Month()-11, 1, 0, 0, 0, 0, time.UTC), today.AddDate(0, 0, 1)
		a.by = cmp.Or(a.by, billing.Month)
	case periodCustom:
		c := check{form: f}
		a.entered = [2]string{clip(f[templates.FieldFrom], 40), clip(f[templates.FieldTo], 40)}
		var last time.Time
		a.from = c.date(templates.FieldFrom, today)
		last = c.date(templates.FieldTo, today)
		a.to = last.AddDate(0, 0, 1)
		if len(c.errs) == 0 {
			switch {
			case last.Before(a.from):
				c.wrong(templates.FieldTo, "date_order", nil)
			case a.to.After(a.from.AddDate(0, maxUsageMonths, 0)):
				c.wrong(templates.FieldTo, "date_span", nil)
			}
		}
		if a.errs = c.errs; len(a.errs) > 0 {
			a.from, a.to = time.Time{}, time.Time{}
		}
		if a.by == "" && a.to.Sub(a.from) > byMonthFrom {
			a.by = billing.Month
		}
	default:
		return a, false
	}
	return a, true
}

// date reads a day up to today.
func (c *check) date(field string, today time.Time) time.Time {
	t, err := time.Parse(time.DateOnly, strings.TrimSpace(c.form[field]))
	switch {
	case err != nil || t.Year() < 2000:
		c.wrong(field, "date", nil)
	case t.After(today):
		c.wrong(field, "date_future", nil)
	default:
		return t
	}
	return time.Time{}
}

// metered reports whether s has a price that bills what was used.
func metered(s *billing.Subscription) bool {
	return slices.ContainsFunc(s.Items, func(it billing.Item) bool { return it.Price.Metered })
}

// hasUsage reports whether there is usage to show. Only then is it in the
// navigation: for everybody else it would lead nowhere.
func hasUsage(a *billing.Account) bool {
	for i := range a.Subscriptions {
		if s := &a.Subscriptions[i]; !s.Ended() && metered(s) {
			return true
		}
	}
	return false
}

// usage is GET /usage.
func (v *visit) usage() {
	l, ok := v.usageLook()
	if !ok {
		return
	}
	body := &templates.Usage{}
	l.page.Body = body
	l.undated()
	sub, others := l.meteredSubscription(v.form[fieldSubscription])
	if sub == nil {
		if others != nil || v.form[fieldSubscription] != "" {
			l.notFound()
			return
		}
		body.None = true
		l.show(http.StatusOK)
		return
	}
	ask, ok := readUsageAsk(v.form, l.acct.AsOf)
	if !ok {
		l.badRequest()
		return
	}
	ask.chooseWidth(sub)
	body.PlanName, body.Period, body.By, body.Errors = l.planName(sub.Items), ask.period, ask.by, ask.errs
	body.From, body.To = ask.entered[0], ask.entered[1]
	if len(others) > 0 || v.form[fieldSubscription] != "" {
		body.Subscription = sub.ID
	}
	for _, s := range others {
		body.Others = append(body.Others, templates.UsageOf{PlanName: l.planName(s.Items), Href: withSubscription(templates.PathUsage, s.ID)})
	}
	if len(ask.errs) > 0 {
		l.show(http.StatusUnprocessableEntity)
		return
	}
	query := l.usageQuery(&ask, body.Subscription)
	meters, upTo, err := l.meters(sub, &ask)
	if err != nil {
		l.usageFailed(err)
		body.Failed, body.RetryHref = true, templates.PathUsage+query
		l.show(http.StatusServiceUnavailable)
		return
	}
	if body.Meters = meters; len(meters) > 0 {
		body.CSVHref = templates.PathUsageCSV + query
	}
	// What is over and counted moves no more.
	if slices.ContainsFunc(meters, unfinished) {
		body.UpTo = upTo
	}
	l.show(http.StatusOK)
}

// usageLook begins both answers about usage.
func (v *visit) usageLook() (*look, bool) {
	if !v.mayView(policy.ViewUsage) {
		return nil, false
	}
	snap, ok := v.account()
	if !ok {
		return nil, false
	}
	return v.look("usage", snap)
}

func unfinished(m templates.Meter) bool {
	return slices.ContainsFunc(m.Points, func(p templates.Point) bool {
		return p.State == templates.PointOpen || p.State == templates.PointLater
	})
}

func (v *visit) usageFailed(err error) {
	if v.r.Context().Err() == nil {
		v.Log.Warn("could not read usage", zap.String("request_id", v.id), zap.Error(err))
	}
}

// meteredSubscription finds the subscription that a request names, or the first
// with metered items, and the others that have some.
func (l *look) meteredSubscription(id string) (found *billing.Subscription, others []*billing.Subscription) {
	for _, s := range l.going() {
		switch {
		case !metered(s):
		case found == nil && (id == "" || s.ID == id):
			found = s
		default:
			others = append(others, s)
		}
	}
	return found, others
}

// chooseWidth shows long periods by month where nothing else is asked for.
func (a *usageAsk) chooseWidth(sub *billing.Subscription) {
	for _, it := range sub.Items {
		if a.by == "" && it.Price.Metered && (a.period == periodThis || a.period == periodLast) && it.PeriodEnd.Sub(it.PeriodStart) > byMonthFrom {
			a.by = billing.Month
		}
	}
	a.by = cmp.Or(a.by, billing.Day)
}

// usageQuery is the address of what is shown, for the file beside it.
func (l *look) usageQuery(a *usageAsk, subscription string) string {
	q := url.Values{templates.FieldPeriod: {a.period}, templates.FieldBy: {string(a.by)}}
	if subscription != "" {
		q.Set(fieldSubscription, subscription)
	}
	if a.period == periodCustom {
		q.Set(templates.FieldFrom, a.from.Format(time.DateOnly))
		q.Set(templates.FieldTo, a.to.AddDate(0, 0, -1).Format(time.DateOnly))
	}
	return "?" + q.Encode()
}

// span is a time with an end. The zero span is each item's current period.
type span struct{ from, to time.Time }

// previous is the billing period of it before the current one. It reports
// false where there is none, or it is longer than a provider answers.
func previous(s *billing.Subscription, it *billing.Item) (span, bool) {
	var from time.Time
	start, n := it.PeriodStart.UTC(), max(it.Price.IntervalCount, 1)
	switch it.Price.Interval {
	case billing.Day:
		from = start.AddDate(0, 0, -n)
	case billing.Week:
		from = start.AddDate(0, 0, -7*n)
	case billing.Month, billing.Year:
		if it.Price.Interval == billing.Year {
			n *= 12
		}
		// The day that periods begin on is the later of the two that are known:
		// 28 February to 31 March came after 31 January.
		day := max(start.Day(), it.PeriodEnd.UTC().Day())
		first := time.Date(start.Year(), start.Month()-time.Month(n), 1, start.Hour(), start.Minute(), start.Second(), 0, time.UTC)
		from = first.AddDate(0, 0, min(day, first.AddDate(0, 1, -1).Day())-1)
	default:
		return span{}, false
	}
	// A first period may be shorter; the trial before it is one of its own.
	if created := s.Created.UTC(); from.Before(created) || s.TrialEnd.Equal(it.PeriodStart) {
		from = created
	}
	if start.Sub(from) < time.Minute || start.After(from.AddDate(0, maxUsageMonths, 0)) {
		return span{}, false
	}
	return span{from, start}, true
}

// meters reads what ask asks for of a subscription, and what it is compared
// with. What cannot be compared is said so; it fails only where the usage
// itself cannot be read.
func (l *look) meters(sub *billing.Subscription, ask *usageAsk) ([]templates.Meter, time.Time, error) {
	// The current period is one read; periods before it are one for all items
	// that share them, which is nearly always one.
	before := map[string]span{} // by item
	spans := map[span]bool{}
	switch ask.period {
	case periodThis:
		spans[span{}] = true
		fallthrough
	case periodLast:
		for i := range sub.Items {
			if it := &sub.Items[i]; it.Price.Metered {
				if s, ok := previous(sub, it); ok {
					before[it.ID], spans[s] = s, true
				}
			}
		}
	default:
		spans[span{ask.from, ask.to}] = true
	}
	ctx, cancel := context.WithTimeout(l.r.Context(), patience)
	defer cancel()
	type answer struct {
		usage billing.Usage
		err   error
	}
	answers := make(map[span]answer, len(spans))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for s := range spans {
		wg.Go(func() {
			u, err := l.readUsage(ctx, billing.UsageQuery{Subscription: sub.ID, From: s.from, To: s.to, By: ask.by})
			mu.Lock()
			defer mu.Unlock()
			answers[s] = answer{u, err}
		})
	}
	wg.Wait()

	var out []templates.Meter
	var upTo time.Time
	add := func(s span, keep func(item string) bool) error {
		a := answers[s]
		if a.err != nil {
			return a.err
		}
		upTo = cmp.Or(a.usage.UpTo, l.acct.AsOf)
		for i := range a.usage.Meters {
			if u := &a.usage.Meters[i]; keep(u.Item) {
				out = append(out, l.meter(sub, ask, u, upTo))
				m := &out[len(out)-1]
				if b, ok := before[u.Item]; ok && ask.period == periodThis {
					m.Before = compared(m, answers[b].usage, answers[b].err, u.Item, upTo)
				}
			}
		}
		return nil
	}
	if ask.period != periodLast {
		err := add(span{ask.from, ask.to}, func(string) bool { return true })
		return out, upTo, err
	}
	for s := range spans {
		if err := add(s, func(item string) bool { return before[item] == s }); err != nil {
			return nil, time.Time{}, err
		}
	}
	slices.SortStableFunc(out, func(a, b templates.Meter) int { return cmp.Compare(a.Name, b.Name) })
	return out, upTo, nil
}

// readUsage asks the provider, or takes what it said within the last minute.
func (l *look) readUsage(ctx context.Context, q billing.UsageQuery) (billing.Usage, error) {
	key := fmt.Sprintf("%s %d %s %d %d %s", l.sess.Customer, l.rec.Version, q.Subscription, q.From.Unix(), q.To.Unix(), q.By)
	customer := l.sess.Customer
	return l.usages.get(ctx, key, func(ctx context.Context) (billing.Usage, error) {
		u, err := l.Corridor.Provider.Usage(ctx, customer, q)
		if err != nil {
			return billing.Usage{}, err
		}
		return u, checkUsage(&u)
	})
}

// checkUsage refuses an answer that no page can be made of.
func checkUsage(u *billing.Usage) error {
	bad := func(format string, a ...any) error {
		return &billing.Error{Fault: billing.Unavailable, Code: "bad_answer", Err: fmt.Errorf(format, a...)}
	}
	if len(u.Meters) > maxMeters {
		return bad("%d meters", len(u.Meters))
	}
	for i := range u.Meters {
		m := &u.Meters[i]
		if len(m.Points) > maxPoints {
			return bad("%d points", len(m.Points))
		}
		if !m.To.After(m.From) {
			return bad("a time that ends before it begins")
		}
		sizes := []decimal.Decimal{m.Total, m.Price.UnitAmount}
		for _, t := range m.Price.Tiers {
			sizes = append(sizes, t.UnitAmount, t.FlatAmount)
		}
		for j, p := range m.Points {
			if !p.End.After(p.Start) || j > 0 && p.Start.Before(m.Points[j-1].End) {
				return bad("points that are not in order")
			}
			sizes = append(sizes, p.Value)
		}
		for _, d := range sizes {
			// Numbers with an exponent of millions are short to send and long to
			// write.
			if d.Exponent() < -40 || d.Exponent() > 40 || d.Coefficient().BitLen() > 256 {
				return bad("a number out of bounds")
			}
		}
	}
	return nil
}

// meter is the card of one meter's usage.
func (l *look) meter(sub *billing.Subscription, ask *usageAsk, u *billing.MeterUsage, upTo time.Time) templates.Meter {
	m := templates.Meter{
		Name: meterName(u), Total: u.Total, From: u.From, To: u.To, Cost: u.Cost, Price: u.Price, By: ask.by, Points: points(u, upTo),
	}
	m.Sums = sum(u.Points).Equal(u.Total)
	if ask.period == periodYear || ask.period == periodCustom {
		// Days have no price of their own: tiers and free units count by period.
		m.Dates, m.From, m.To, m.Cost = true, ask.from, ask.to.AddDate(0, 0, -1), nil
		return m
	}
	m.Open = u.To.After(l.acct.AsOf)
	if plan := l.planOf(sub.Items); plan != nil {
		for _, limit := range plan.Limits {
			if limit.Name == u.Event {
				m.Limit, m.HasLimit = limit.Value, true
			}
		}
	}
	if m.Open {
		if ends := sub.Ends(); ends.IsZero() || ends.After(u.To) {
			m.Resets = u.To
		}
		m.Expected = expected(&m, upTo)
	}
	return m
}

func meterName(u *billing.MeterUsage) string {
	name := strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case act.Invisible(r):
			return -1
		case unicode.IsControl(r):
			return ' '
		}
		return r
	}, cmp.Or(u.Name, u.Event)))
	return clip(name, maxMeterName)
}

// clip shortens s to n characters.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// points marks what is not finished, and puts what the provider left out
// between two points in as missing.
func points(u *billing.MeterUsage, upTo time.Time) []templates.Point {
	out := make([]templates.Point, 0, len(u.Points))
	for _, p := range u.Points {
		if n := len(out); n > 0 && p.Start.After(out[n-1].End) {
			out = append(out, templates.Point{Start: out[n-1].End, End: p.Start, State: templates.PointMissing})
		}
		t := templates.Point{Start: p.Start, End: p.End, Value: p.Value}
		switch {
		case !p.End.After(upTo):
		case p.Start.Before(upTo), !p.Value.IsZero():
			t.State = templates.PointOpen
		default:
			t.State = templates.PointLater
		}
		out = append(out, t)
	}
	return out
}

func sum(points []billing.UsagePoint) decimal.Decimal {
	var total decimal.Decimal
	for _, p := range points {
		total = total.Add(p.Value)
	}
	return total
}

// expected draws a straight line through what was counted to the end of the
// period, to two digits. It says nothing before three days and a tenth of the
// period are over, nor where points do not add up.
func expected(m *templates.Meter, upTo time.Time) *decimal.Decimal {
	gone, all := upTo.Sub(m.From), m.To.Sub(m.From)
	if !m.Sums || !m.Total.IsPositive() || gone < 72*time.Hour || gone < all/10 || gone >= all {
		return nil
	}
	e := m.Total.Mul(decimal.NewFromInt(int64(all/time.Second))).DivRound(decimal.NewFromInt(int64(gone/time.Second)), 12)
	e = e.Round(2 - int32(e.NumDigits()) - e.Exponent())
	if !e.GreaterThan(m.Total) {
		return nil
	}
	return &e
}

// compared sets m beside the period before: in full, and over the days that are
// finished in both. Both begin at the same time of day, so days are alike.
func compared(m *templates.Meter, last billing.Usage, err error, item string, upTo time.Time) *templates.UsageBefore {
	if err != nil {
		return &templates.UsageBefore{Failed: true}
	}
	i := slices.IndexFunc(last.Meters, func(u billing.MeterUsage) bool { return u.Item == item })
	if i < 0 {
		return nil // the item is newer than that
	}
	u := &last.Meters[i]
	b := &templates.UsageBefore{From: u.From, To: u.To, Total: u.Total}
	if m.By != billing.Day || !m.Sums || !sum(u.Points).Equal(u.Total) {
		return b
	}
	for j, p := range m.Points {
		if p.State != "" || j >= len(u.Points) || p.End.After(upTo) {
			break
		}
		if p.End.Sub(p.Start) != u.Points[j].End.Sub(u.Points[j].Start) {
			break
		}
		b.Days, b.Now, b.Then = j+1, b.Now.Add(p.Value), b.Then.Add(u.Points[j].Value)
	}
	return b
}

// usageCSV is GET /usage.csv: what /usage shows with the same query.
func (v *visit) usageCSV() {
	l, ok := v.usageLook()
	if !ok {
		return
	}
	sub, _ := l.meteredSubscription(v.form[fieldSubscription])
	if sub == nil {
		l.notFound()
		return
	}
	ask, ok := readUsageAsk(v.form, l.acct.AsOf)
	if !ok || len(ask.errs) > 0 {
		l.badRequest()
		return
	}
	ask.chooseWidth(sub)
	meters, _, err := l.meters(sub, &ask)
	if err != nil {
		l.providerDown(err)
		return
	}
	body, err := usageTable(meters)
	if err != nil {
		l.failed(err)
		return
	}
	v.w.Header().Set("Content-Disposition", `attachment; filename="usage-`+ask.period+`-`+l.acct.AsOf.UTC().Format(time.DateOnly)+`.csv"`)
	v.send(http.StatusOK, "text/csv; charset=utf-8", body)
}

// usageTable is the file of the points. A state says what is not a finished
// number; what is missing has no value.
func usageTable(meters []templates.Meter) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{"meter", "start", "end", "used", "state"}}
	for _, m := range meters {
		for _, p := range m.Points {
			value, state := p.Value.String(), cmp.Or(p.State, "final")
			if p.State == templates.PointMissing || p.State == templates.PointLater {
				value = ""
			}
			rows = append(rows, []string{
				cell(m.Name), p.Start.UTC().Format(time.RFC3339), p.End.UTC().Format(time.RFC3339), value, state,
			})
		}
	}
	err := errors.Join(w.WriteAll(rows), w.Error())
	return b.Bytes(), err
}

// usageWeight is about how many bytes a usage takes.
func usageWeight(u billing.Usage) uint32 {
	n := uint32(64)
	for _, m := range u.Meters {
		n += 1024 + uint32(len(m.Name)) + uint32(len(m.Points))*160
	}
	return n
}
