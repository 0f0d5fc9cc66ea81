package providertest

import (
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox/oracletest"
)

func init() {
	maps.Copy(scenarios, map[string]func(*scene){
		"usage/this period by day":                usageByDay,
		"usage/by month over a year":              usageByMonth,
		"usage/by day over a year":                usageYearByDay,
		"usage/none":                              usageNone,
		"usage/another customer's":                usageOthers,
		"usage/late events":                       usageLate,
		"usage/fractions":                         usageFractions,
		"usage/counted and kept":                  usageFormulas,
		"usage/bounds of a period and others":     usageBounds,
		"usage/bad bounds":                        usageBadBounds,
		"usage/fault":                             usageFault,
		"usage/two meters":                        usageTwoMeters,
		"metered/renewal bills the last period":   meteredRenewal,
		"metered/upcoming has the usage so far":   meteredUpcoming,
		"metered/with tax and balance":            meteredBalance,
		"metered/plan changed beside it":          meteredChange,
		"metered/usage moves while it is changed": meteredSameTerms,
		"metered/not to be chosen":                meteredNotChosen,
		"metered/cancelled, used to the end":      meteredCancel,
		"metered/resumed":                         meteredResume,
		"metered/trial is free":                   meteredTrial,
		"metered/last bill declined":              meteredEndDeclined,
		"tiers/graduated":                         tiersGraduated,
		"tiers/volume":                            tiersVolume,
		"tiers/flat amounts":                      tiersFlat,
		"tiers/fractions of the minor unit":       tiersDecimal,
		"tiers/quantity changed":                  tiersQuantity,
		"balance/bare customer":                   balanceBare,
		"balance/page by page and back":           balancePages,
		"balance/credits older than the balance":  balanceOneSided,
		"balance/bad cursor":                      balanceBadCursor,
		"balance/another customer's":              balanceOthers,
		"balance/fault":                           balanceFault,
		"grant/used in part":                      grantPart,
		"grant/several in their order":            grantOrder,
		"grant/expires":                           grantExpires,
		"grant/voided":                            grantVoided,
		"grant/not yet, or for other prices":      grantOther,
		"grant/back from a voided invoice":        grantBack,
		"grant/shown in what comes next":          grantUpcoming,
		"grant/more movements than one answer":    grantMany,
	})
}

const hour = time.Hour

// calls makes a meter of calls and a price of 2.50 per call in US dollars.
func calls(s *scene) string {
	s.World.Meter("mtr_calls", "calls", sandbox.FormulaSum)
	s.World.MonthlyPrice("price_calls", "usd", "mtr_calls", "250", "")
	return "price_calls"
}

// using is a customer with two of basic, and usage.
func using(s *scene, prices ...string) Made {
	return s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 2, Metered: prices})
}

func usageByDay(s *scene) {
	m := using(s, calls(s))
	start, end := period(s, m)
	for _, e := range []struct {
		after time.Duration
		value string
	}{{0, "1"}, {hour, "2"}, {13 * hour, "4"}, {14 * hour, "8"}, {10 * 24 * hour, "16"}} {
		s.World.Advance(start.Add(e.after).Sub(s.World.Now()))
		s.World.Use(m.ID, "calls", e.value, time.Time{})
	}
	u := s.meterOf(m, billing.UsageQuery{By: billing.Day})
	if u.Event != "calls" || u.Name != "Name of calls" || u.Item != m.Items[1] || u.Price.ID != "price_calls" || !u.Price.Metered {
		s.Errorf("usage %+v", u)
	}
	if !u.From.Equal(start.Truncate(time.Minute)) || !u.To.Equal(end.Truncate(time.Minute)) {
		s.Errorf("from %s to %s, the period is %s to %s", u.From, u.To, start, end)
	}
	// From 31 January 10:20 to 28 February 10:20 there are 29 days.
	if len(u.Points) != 29 || !u.Points[1].Start.Equal(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)) {
		s.Fatalf("%d points, the second from %s", len(u.Points), u.Points[1].Start)
	}
	for i, want := range map[int]int64{0: 7, 1: 8, 9: 0, 10: 16, 28: 0} {
		// 14 hours after 10:20 is the next day; 13 are not.
		if !u.Points[i].Value.Equal(decimal.NewFromInt(want)) {
			s.Errorf("day %d: %s, want %d", i, u.Points[i].Value, want)
		}
	}
	if !u.Total.Equal(decimal.NewFromInt(31)) || u.Cost == nil || *u.Cost != usd(31*250) {
		s.Errorf("%s used for %v", u.Total, u.Cost)
	}
}

// year lets a customer use 1, 2, 3, … every tenth day for a year, and returns
// what was used by month of the calendar.
func year(s *scene, m Made) map[time.Time]int64 {
	want := map[time.Time]int64{}
	for n := range int64(37) {
		now := s.World.Now()
		s.World.Use(m.ID, "calls", decimal.NewFromInt(n+1).String(), time.Time{})
		want[time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)] += n + 1
		s.World.Advance(10 * 24 * hour)
	}
	return want
}

func usageByMonth(s *scene) {
	m := using(s, calls(s))
	want := year(s, m)
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := s.meterOf(m, billing.UsageQuery{From: from, To: from.AddDate(0, 13, 0), By: billing.Month})
	if len(u.Points) != 13 || u.Cost != nil {
		s.Fatalf("%d points, cost %v", len(u.Points), u.Cost)
	}
	for i, p := range u.Points {
		if start := from.AddDate(0, i, 0); !p.Start.Equal(start) || !p.Value.Equal(decimal.NewFromInt(want[start])) {
			s.Errorf("month %d from %s: %s, want %d", i, p.Start, p.Value, want[start])
		}
	}
	if !u.Total.Equal(decimal.NewFromInt(37 * 38 / 2)) {
		s.Errorf("total %s", u.Total)
	}
}

func usageYearByDay(s *scene) {
	m := using(s, calls(s))
	year(s, m)
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := s.meterOf(m, billing.UsageQuery{From: from, To: from.AddDate(0, 13, 0), By: billing.Day})
	if len(u.Points) != 365+31 || !u.Total.Equal(decimal.NewFromInt(37*38/2)) {
		s.Errorf("%d days with %s", len(u.Points), u.Total)
	}
	var used int
	for _, p := range u.Points {
		if !p.Value.IsZero() {
			used++
		}
	}
	if used != 37 {
		s.Errorf("%d days with usage, want 37", used)
	}
}

func usageNone(s *scene) {
	m := s.World.Customer(on(basic))
	if u := s.usage(m.ID, billing.UsageQuery{Subscription: m.Subscription, By: billing.Day}); len(u.Meters) != 0 || u.UpTo.IsZero() {
		s.Errorf("usage of a plan without any: %+v", u)
	}
	m = using(s, calls(s))
	u := s.meterOf(m, billing.UsageQuery{By: billing.Month})
	if !u.Total.IsZero() || len(u.Points) != 2 || u.Cost == nil || *u.Cost != usd(0) {
		s.Errorf("nothing used: %+v", u)
	}
}

func usageOthers(s *scene) {
	price := calls(s)
	mine, other := using(s, price), using(s, price)
	s.World.Use(other.ID, "calls", "1000", time.Time{})
	if u := s.meterOf(mine, billing.UsageQuery{By: billing.Day}); !u.Total.IsZero() {
		s.Errorf("another customer's usage counts: %s", u.Total)
	}
	for what, q := range map[string]billing.UsageQuery{
		"other": {Subscription: other.Subscription, By: billing.Day}, "none": {Subscription: "sub_none", By: billing.Day},
		"path": {Subscription: "../customers", By: billing.Day}, "no name": {By: billing.Day},
	} {
		u, err := s.Provider.Usage(s.ctx, mine.ID, q)
		if billing.FaultOf(err) != billing.NotFound || len(u.Meters) != 0 {
			s.Errorf("%s: %+v, %v", what, u, err)
		}
	}
	_, err := s.Provider.Usage(s.ctx, "cus_nobody", billing.UsageQuery{Subscription: mine.Subscription, By: billing.Day})
	s.fails("nobody", err, billing.NotFound)
}

func usageLate(s *scene) {
	m := using(s, calls(s))
	start, end := period(s, m)
	s.World.Use(m.ID, "calls", "3", time.Time{})
	s.World.Advance(end.Sub(s.World.Now()) + 2*hour)
	billed := s.latest(m.ID)
	s.World.Use(m.ID, "calls", "5", end.Add(-hour)) // of the period that is over
	s.World.Use(m.ID, "calls", "7", end.Add(hour))
	last := s.meterOf(m, billing.UsageQuery{From: start, To: end, By: billing.Day})
	if !last.Total.Equal(decimal.NewFromInt(8)) || last.Cost == nil || *last.Cost != usd(8*250) {
		s.Errorf("the last period: %s for %v", last.Total, last.Cost)
	}
	if u := s.meterOf(m, billing.UsageQuery{By: billing.Day}); !u.Total.Equal(decimal.NewFromInt(7)) {
		s.Errorf("this period: %s", u.Total)
	}
	if now := s.latest(m.ID); now.ID != billed.ID || now.Subtotal != usd(2000+3*250) {
		s.Errorf("a bill that is written changed: %+v", now)
	}
}

func usageFractions(s *scene) {
	m := using(s, calls(s))
	for _, v := range []string{"0.25", "1.000000000001", "0.5"} {
		s.World.Use(m.ID, "calls", v, time.Time{})
	}
	_, end := period(s, m)
	u := s.meterOf(m, billing.UsageQuery{By: billing.Day})
	if u.Total.String() != "1.750000000001" || u.Cost == nil || *u.Cost != usd(438) { // 437.50000000025
		s.Errorf("%s for %v", u.Total, u.Cost)
	}
	s.World.Advance(end.Sub(s.World.Now()))
	if v := s.latest(m.ID); !slices.Equal(amounts(v.Lines), []int64{2000, 438}) {
		s.Errorf("billed %v", amounts(v.Lines))
	}
}

func usageFormulas(s *scene) {
	s.World.Meter("mtr_count", "count", sandbox.FormulaCount)
	s.World.Meter("mtr_last", "last", sandbox.FormulaLast)
	s.World.MonthlyPrice("price_count", "usd", "mtr_count", "10", "")
	s.World.MonthlyPrice("price_last", "usd", "mtr_last", "100", "")
	m := using(s, "price_count", "price_last")
	_, end := period(s, m)
	for _, v := range []string{"7", "9", "4"} {
		for _, e := range []string{"count", "last"} {
			s.World.Use(m.ID, e, v, time.Time{})
		}
		s.World.Advance(20 * hour)
	}
	for _, by := range []billing.Interval{billing.Day, billing.Month} {
		u := s.usage(m.ID, billing.UsageQuery{Subscription: m.Subscription, By: by})
		if len(u.Meters) != 2 || u.Meters[0].Total.String() != "3" || u.Meters[1].Total.String() != "4" {
			s.Fatalf("usage %+v", u.Meters)
		}
		if last := u.Meters[1].Points; by == billing.Month && (last[0].Value.String() != "7" || last[1].Value.String() != "4") {
			s.Errorf("the last of a month: %v", last)
		}
	}
	s.World.Advance(end.Sub(s.World.Now()))
	if v := s.latest(m.ID); !slices.Equal(amounts(v.Lines), []int64{2000, 30, 400}) {
		s.Errorf("billed %v", amounts(v.Lines))
	}
}

func usageBounds(s *scene) {
	m := using(s, calls(s))
	first, second := period(s, m)
	s.World.Use(m.ID, "calls", "2", time.Time{})
	s.World.Advance(70 * 24 * hour) // the 31st, the 28th, the 31st, the 30th
	from, to := period(s, m)
	if u := s.meterOf(m, billing.UsageQuery{From: first, To: second, By: billing.Month}); u.Cost == nil || *u.Cost != usd(500) {
		s.Errorf("the first period costs %v", u.Cost)
	}
	if u := s.meterOf(m, billing.UsageQuery{From: from, To: to, By: billing.Month}); u.Cost == nil || *u.Cost != usd(0) {
		s.Errorf("the current period costs %v", u.Cost)
	}
	for _, q := range []billing.UsageQuery{
		{From: first, To: to},
		{From: first.Add(time.Minute), To: second},
		{From: first.AddDate(0, -1, 0), To: first},
		{From: first, To: second.Add(-24 * hour)},
		{From: first.Add(30 * time.Minute), To: first.Add(45 * time.Minute)},
	} {
		q.By = billing.Day
		if u := s.meterOf(m, q); u.Cost != nil {
			s.Errorf("%s to %s is no period and costs %v", q.From, q.To, u.Cost)
		}
	}
}

func usageBadBounds(s *scene) {
	m := using(s, calls(s))
	now := s.World.Now()
	for _, q := range []billing.UsageQuery{
		{},
		{By: billing.Week},
		{By: "hour"},
		{By: billing.Day, From: now},
		{By: billing.Day, To: now},
		{By: billing.Day, From: now, To: now},
		{By: billing.Day, From: now, To: now.Add(-hour)},
		{By: billing.Month, From: now.AddDate(0, -13, -1), To: now},
	} {
		q.Subscription = m.Subscription
		_, err := s.Provider.Usage(s.ctx, m.ID, q)
		s.fails("query", err, billing.Refused)
	}
}

func usageFault(s *scene) {
	m := using(s, calls(s))
	q := billing.UsageQuery{Subscription: m.Subscription, By: billing.Day}
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.Fault500Before, sandbox.FaultRateLimit, sandbox.FaultGarbage} {
		s.World.Fault(sandbox.Fault{On: "any", Times: 100, Kind: k})
		_, err := s.Provider.Usage(s.ctx, m.ID, q)
		s.fails("usage, "+string(k), err, billing.Unavailable)
		s.World.ClearFaults()
	}
	s.usage(m.ID, q)
}

func usageTwoMeters(s *scene) {
	price := calls(s)
	s.World.Meter("mtr_bytes", "bytes", sandbox.FormulaSum)
	s.World.MonthlyPrice("price_bytes", "usd", "mtr_bytes", "", billing.Graduated, tier(10, "5", ""), tier(0, "3", ""))
	m := using(s, price, "price_bytes")
	s.World.Use(m.ID, "calls", "2", time.Time{})
	s.World.Use(m.ID, "bytes", "12", time.Time{})
	u := s.usage(m.ID, billing.UsageQuery{Subscription: m.Subscription, By: billing.Day})
	if len(u.Meters) != 2 || *u.Meters[0].Cost != usd(500) || *u.Meters[1].Cost != usd(56) || len(u.Meters[1].Price.Tiers) != 2 {
		s.Errorf("usage %+v", u.Meters)
	}
}

// usedIn are the names of currencies: those whose minor unit is not what one would think, and those
// whose is. KWD amounts must end in 0 when they are charged.
var usedIn = func() []string {
	list := make([]string, 0, len(currencies))
	for _, c := range currencies {
		list = append(list, c.currency)
	}
	return list
}()

// billed checks a customer's newest invoice against the oracle.
func (s *scene) billed(customer string, a oracletest.Arrears) oracletest.ArrearsBill {
	s.Helper()
	v := s.latest(customer)
	b := oracletest.WorkArrears(a)
	if want := slices.Concat(a.Ahead, a.Used); !slices.Equal(amounts(v.Lines), want) {
		s.Errorf("lines %d, the oracle says %d", amounts(v.Lines), want)
	}
	if v.Subtotal.Amount != b.Subtotal || v.Tax.Amount != b.Tax || v.Total.Amount != b.Total || v.AmountDue.Amount != b.Due {
		s.Errorf("billed %d, tax %d, total %d, due %d; the oracle says %+v", v.Subtotal.Amount, v.Tax.Amount, v.Total.Amount, v.AmountDue.Amount, b)
	}
	return b
}

func meteredRenewal(s *scene) {
	s.World.Meter("mtr_calls", "calls", sandbox.FormulaSum)
	var made []Made
	for _, cur := range usedIn {
		s.World.MonthlyPrice(in(cur, "seat"), cur, "", "1230", "")
		s.World.MonthlyPrice(in(cur, "call"), cur, "mtr_calls", "17.5", "")
		m := s.World.Customer(Customer{Card: CardWorks, Price: in(cur, "seat"), Quantity: 3, Metered: []string{in(cur, "call")}, TaxPercent: "19"})
		s.World.Use(m.ID, "calls", "41", time.Time{})
		if v := s.latest(m.ID); !slices.Equal(amounts(v.Lines), []int64{3690}) {
			s.Errorf("%s: the beginning is billed %v", cur, amounts(v.Lines))
		}
		made = append(made, m)
	}
	start, end := period(s, made[0])
	s.World.Advance(end.Sub(s.World.Now()) + hour)
	for i, m := range made {
		s.World.Use(m.ID, "calls", "1000", time.Time{}) // of the next period
		s.billed(m.ID, oracletest.Arrears{Ahead: []int64{3690}, Used: []int64{718}, TaxPercent: big.NewRat(19, 1)})
		v := s.latest(m.ID)
		if l := v.Lines[1]; !l.PeriodStart.Equal(start) || !l.PeriodEnd.Equal(end) || l.Quantity != 41 || l.Proration || l.Price != in(usedIn[i], "call") {
			s.Errorf("the line of the usage: %+v", l)
		}
		if l := v.Lines[0]; !l.PeriodStart.Equal(end) || v.Status != billing.InvoicePaid {
			s.Errorf("the line of the seats: %+v", l)
		}
	}
}

func meteredUpcoming(s *scene) {
	m := using(s, calls(s))
	for n, want := range []int64{2000, 2750, 3500} {
		if n > 0 {
			s.World.Use(m.ID, "calls", "3", time.Time{})
		}
		a := s.account(m.ID)
		if len(a.Upcoming) != 1 || a.Upcoming[0].Total != usd(want) || len(a.Upcoming[0].Lines) != 2 || !a.Upcoming[0].Due.Equal(a.Subscriptions[0].PeriodEnd()) {
			s.Errorf("upcoming %+v, want %d", a.Upcoming, want)
		}
		if it := a.Subscriptions[0].Items[1]; !it.Price.Metered || it.Price.Meter != "mtr_calls" || it.Quantity != 0 {
			s.Errorf("item %+v", it)
		}
	}
}

func meteredBalance(s *scene) {
	price := calls(s)
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 2, Metered: []string{price}, TaxPercent: "8.875", Credit: 777})
	s.World.Use(m.ID, "calls", "3", time.Time{})
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()))
	b := s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{750}, TaxPercent: big.NewRat(8875, 1000), Balance: -777})
	if c := s.account(m.ID).Customer; c.Balance.Amount != b.Balance {
		s.Errorf("balance %d, the oracle says %d", c.Balance.Amount, b.Balance)
	}
}

func meteredChange(s *scene) {
	m := using(s, calls(s))
	start, end := period(s, m)
	s.World.Use(m.ID, "calls", "3", time.Time{})
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 4))
	// What is due now has nothing of the usage.
	b := oracletest.Work(oracletest.Change{Before: []oracletest.Side{side("1000", 2)}, After: []oracletest.Side{side("2500", 4)}, Start: start, End: end, At: p.At})
	if p.DueNow.Amount != b.Due || !slices.Equal(amounts(p.Lines), b.Lines) {
		s.Errorf("due %d for %v, the oracle says %d for %v", p.DueNow.Amount, amounts(p.Lines), b.Due, b.Lines)
	}
	if p.Next == nil || !slices.Equal(amounts(p.Next.Lines), []int64{10000, 750}) {
		s.Errorf("next %+v", p.Next)
	}
	if len(p.Items) != 2 || !p.Items[1].Price.Metered || p.Items[1].Quantity != 0 {
		s.Errorf("items %+v", p.Items)
	}
	s.charged(p, s.carry(m.ID, p, nil))
	sub := s.account(m.ID).Subscriptions[0]
	if sub.Items[0].Price.ID != team || sub.Items[0].Quantity != 4 || sub.Items[1].Price.ID != "price_calls" || sub.Items[1].ID != m.Items[1] {
		s.Errorf("items %+v", sub.Items)
	}
	s.World.Use(m.ID, "calls", "5", time.Time{})
	s.World.Advance(end.Sub(s.World.Now()))
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{10000}, Used: []int64{2000}})
}

func meteredSameTerms(s *scene) {
	m := using(s, calls(s))
	s.World.Advance(by)
	act := change(m, team, 2)
	p := s.preview(m.ID, act)
	s.World.Use(m.ID, "calls", "5", time.Time{})
	q, err := s.Provider.Preview(s.ctx, m.ID, act, p.At)
	s.must(err)
	if p.Next.Total == q.Next.Total || !p.SameTerms(q) {
		s.Errorf("the estimate went from %v to %v; the same terms: %v", p.Next.Total, q.Next.Total, p.SameTerms(q))
	}
	q.Next.Lines[0].Amount.Amount++
	if p.SameTerms(q) {
		s.Error("another price of the plan is the same terms")
	}
}

func meteredNotChosen(s *scene) {
	price := calls(s)
	s.World.MonthlyPrice("price_tiered", "usd", "", "", billing.Volume, tier(0, "5", ""))
	m := using(s, price)
	before := s.effects(m.ID)
	for _, it := range []billing.ItemChange{{Item: m.Items[1], Price: price, Quantity: 1}, {Item: m.Items[1], Price: basic, Quantity: 1}, {Item: m.Items[0], Price: "price_tiered", Quantity: 1}} {
		_, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.ChangePlan, Subscription: m.Subscription, Items: []billing.ItemChange{it}}, time.Time{})
		s.fails("preview", err, billing.Refused)
		if billing.CodeOf(err) != "not_changeable" {
			s.Errorf("code %q", billing.CodeOf(err))
		}
	}
	other := s.World.Customer(on(basic))
	_, err := s.Provider.Preview(s.ctx, other.ID, change(other, price, 1), time.Time{})
	s.fails("to a metered price", err, billing.Refused)
	ps, err := s.Provider.Prices(s.ctx)
	s.must(err)
	if slices.ContainsFunc(ps, func(p billing.Price) bool { return p.Metered || len(p.Tiers) > 0 }) {
		s.Error("the catalogue offers what is not sold by the unit")
	}
	if s.effects(m.ID) != before {
		s.Error("a preview had an effect")
	}
}

func meteredCancel(s *scene) {
	m := using(s, calls(s))
	_, end := period(s, m)
	s.World.Use(m.ID, "calls", "3", time.Time{})
	p := s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription})
	if p.Next == nil || !slices.Equal(amounts(p.Next.Lines), []int64{750}) || !p.Next.Due.Equal(end) {
		s.Errorf("the last bill: %+v", p.Next)
	}
	s.carry(m.ID, p, nil)
	s.World.Use(m.ID, "calls", "4", time.Time{})
	if a := s.account(m.ID); len(a.Upcoming) != 1 || a.Upcoming[0].Total != usd(1750) {
		s.Errorf("upcoming %+v", a.Upcoming)
	}
	s.World.Advance(end.Sub(s.World.Now()) + hour)
	s.billed(m.ID, oracletest.Arrears{Used: []int64{1750}})
	a := s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Status != billing.Canceled || a.Invoices[0].Status != billing.InvoicePaid || len(a.Upcoming) != 0 {
		s.Errorf("in the end: %+v, %+v", sub, a.Invoices[0])
	}
	// What was used can be read afterwards, too.
	if u := s.meterOf(m, billing.UsageQuery{By: billing.Month}); !u.Total.Equal(decimal.NewFromInt(7)) || u.Cost == nil || *u.Cost != usd(1750) {
		s.Errorf("used %s for %v", u.Total, u.Cost)
	}
}

func meteredResume(s *scene) {
	m := using(s, calls(s))
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}), nil)
	s.World.Use(m.ID, "calls", "2", time.Time{})
	p := s.preview(m.ID, billing.Action{Kind: billing.Resume, Subscription: m.Subscription})
	if p.Next == nil || p.Next.Total != usd(2500) {
		s.Errorf("next %+v", p.Next)
	}
	s.carry(m.ID, p, nil)
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()))
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{500}})
}

func meteredTrial(s *scene) {
	price := calls(s)
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 2, Metered: []string{price}, Trial: 14 * 24 * hour})
	s.World.Use(m.ID, "calls", "3", time.Time{})
	if u := s.meterOf(m, billing.UsageQuery{By: billing.Day}); !u.Total.Equal(decimal.NewFromInt(3)) || u.Cost == nil || *u.Cost != usd(0) {
		s.Errorf("in the trial: %s for %v", u.Total, u.Cost)
	}
	if a := s.account(m.ID); len(a.Upcoming) != 1 || a.Upcoming[0].Total != usd(2000) {
		s.Errorf("upcoming %+v", a.Upcoming)
	}
	s.World.Advance(14*24*hour + hour)
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}})
	s.World.Use(m.ID, "calls", "2", time.Time{})
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()))
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{500}})
}

func meteredEndDeclined(s *scene) {
	price := calls(s)
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2, Metered: []string{price}})
	s.World.Use(m.ID, "calls", "3", time.Time{})
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}), nil)
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()) + hour)
	a := s.account(m.ID)
	if v := a.Invoices[0]; a.Subscriptions[0].Status != billing.Canceled || v.Status != billing.InvoiceOpen || v.AmountRemaining != usd(750) || v.NextAttempt.IsZero() {
		s.Errorf("the last bill: %s, %+v", a.Subscriptions[0].Status, v)
	}
	s.World.Advance(10 * 24 * hour)
	if v := s.latest(m.ID); v.Status != billing.InvoiceOpen || !v.NextAttempt.IsZero() {
		s.Errorf("in the end: %+v", v)
	}
}

// bands are tiers for the oracle.
func bands(tiers []billing.Tier) []oracletest.Band {
	var out []oracletest.Band
	rat := func(d decimal.Decimal) *big.Rat {
		r, _ := new(big.Rat).SetString(d.String())
		return r
	}
	for _, t := range tiers {
		b := oracletest.Band{Unit: rat(t.UnitAmount), Flat: rat(t.FlatAmount)}
		if t.UpTo != 0 {
			b.UpTo = new(big.Rat).SetInt64(t.UpTo)
		}
		out = append(out, b)
	}
	return out
}

// tiered bills each of the quantities in a currency by tiers, and compares what
// is billed, what the usage says that it costs, and the oracle. One quantity is
// worked out by hand besides.
func tiered(s *scene, currency string, mode billing.TiersMode, tiers []billing.Tier, byHand string, want []int64, quantities ...string) {
	s.Helper()
	meter, event, price := "mtr_t"+currency, "t"+currency, in(currency, "tiered")
	s.World.Meter(meter, event, sandbox.FormulaSum)
	s.World.MonthlyPrice(in(currency, "seat"), currency, "", "100", "")
	s.World.MonthlyPrice(price, currency, meter, "", mode, tiers...)
	var made []Made
	quantities = append(quantities, byHand)
	for _, q := range quantities {
		m := s.World.Customer(Customer{Card: CardWorks, Price: in(currency, "seat"), Quantity: 1, Metered: []string{price}})
		if q != "0" {
			s.World.Use(m.ID, event, q, time.Time{})
		}
		made = append(made, m)
	}
	start, end := period(s, made[0])
	s.World.Advance(end.Sub(s.World.Now()) + time.Minute)
	for i, m := range made {
		q, _ := new(big.Rat).SetString(quantities[i])
		lines := oracletest.Bands(mode == billing.Volume, bands(tiers), q, big.NewRat(1, 1))
		if quantities[i] == byHand && !slices.Equal(lines, want) {
			s.Errorf("%s units: the oracle says %v, by hand it is %v", byHand, lines, want)
		}
		s.billed(m.ID, oracletest.Arrears{Ahead: []int64{100}, Used: lines})
		var sum int64
		for _, n := range lines {
			sum += n
		}
		u := s.meterOf(m, billing.UsageQuery{From: start, To: end, By: billing.Month})
		if u.Cost == nil || u.Cost.Amount != sum || u.Price.TiersMode != mode || len(u.Price.Tiers) != len(tiers) {
			s.Errorf("%s %s units: cost %v, billed %d; %+v", quantities[i], currency, u.Cost, sum, u.Price)
		}
	}
	a := s.account(made[0].ID)
	if p := a.Subscriptions[0].Items[1].Price; p.TiersMode != mode || len(p.Tiers) != len(tiers) || p.Tiers[len(tiers)-1].UpTo != 0 || !p.UnitAmount.IsZero() {
		s.Errorf("the account's price: %+v", p)
	}
}

func tiersGraduated(s *scene) {
	// The tiers of docs.stripe.com/subscriptions/pricing-models/tiered-pricing.
	fonts := []billing.Tier{tier(5, "700", ""), tier(10, "650", ""), tier(0, "600", "")}
	tiered(s, "usd", billing.Graduated, fonts, "20", []int64{3500, 3250, 6000}, "0", "1", "5", "6", "10", "11", "5.5")
	for _, cur := range usedIn[1:] {
		tiered(s, cur, billing.Graduated, fonts, "6", []int64{3500, 650}, "11")
	}
}

func tiersVolume(s *scene) {
	fonts := []billing.Tier{tier(5, "700", ""), tier(10, "650", ""), tier(0, "600", "")}
	tiered(s, "usd", billing.Volume, fonts, "20", []int64{12000}, "0", "1", "5", "6", "10", "11", "5.5")
	for _, cur := range usedIn[1:] {
		tiered(s, cur, billing.Volume, fonts, "6", []int64{3900}, "11")
	}
}

func tiersFlat(s *scene) {
	tiered(s, "usd", billing.Graduated, []billing.Tier{tier(100, "0", "1000"), tier(200, "3", ""), tier(0, "2", "500")},
		"250", []int64{1000, 300, 100, 500}, "0", "100", "101", "200", "201")
	tiered(s, "eur", billing.Volume, []billing.Tier{tier(100, "0", "1000"), tier(200, "3", ""), tier(0, "2", "500")},
		"201", []int64{402, 500}, "0", "100", "101", "200")
	tiered(s, "kwd", billing.Graduated, []billing.Tier{tier(0, "0", "1230")}, "7", []int64{1230}, "0")
}

func tiersDecimal(s *scene) {
	// Each line is rounded by itself: 0.5 and 0.5 are 1 and 1.
	tiered(s, "usd", billing.Graduated, []billing.Tier{tier(1, "0.5", ""), tier(0, "0.5", "")}, "2", []int64{1, 1}, "1", "3", "1000001")
	tiered(s, "jpy", billing.Graduated, []billing.Tier{tier(1000, "0.123456789012", "0.4"), tier(0, "0.000000000001", "")}, "1001", []int64{123, 0, 0}, "4", "1000")
	tiered(s, "mga", billing.Volume, []billing.Tier{tier(10, "2.25", ""), tier(0, "1.05", "0.5")}, "10", []int64{23}, "2", "11", "0.5")
}

// tiersQuantity changes the quantity of a tiered price that is paid ahead.
func tiersQuantity(s *scene) {
	tiers := []billing.Tier{tier(5, "700", "1000"), tier(10, "650.5", ""), tier(0, "600", "")}
	for _, cur := range usedIn {
		s.World.MonthlyPrice(in(cur, "fonts"), cur, "", "", billing.Graduated, tiers...)
		m := s.World.Customer(Customer{Card: CardWorks, Price: in(cur, "fonts"), Quantity: 4})
		start, end := period(s, m)
		one := big.NewRat(1, 1)
		if v := s.latest(m.ID); !slices.Equal(amounts(v.Lines), oracletest.Bands(false, bands(tiers), big.NewRat(4, 1), one)) || v.Subtotal.Amount != 3800 {
			s.Errorf("4 fonts: %v", amounts(v.Lines))
		}
		s.World.Advance(by)
		p := s.preview(m.ID, change(m, in(cur, "fonts"), 12))
		left := big.NewRat(end.Unix()-p.At.Unix(), end.Unix()-start.Unix())
		lines := oracletest.Bands(false, bands(tiers), big.NewRat(4, 1), new(big.Rat).Neg(left))
		lines = append(lines, oracletest.Bands(false, bands(tiers), big.NewRat(12, 1), left)...)
		var due int64
		for _, n := range lines {
			due += n
		}
		if !slices.Equal(amounts(p.Lines), lines) || p.DueNow.Amount != due || due <= 0 {
			s.Errorf("due %d for %v, the oracle says %d for %v", p.DueNow.Amount, amounts(p.Lines), due, lines)
		}
		if p.Next == nil || !slices.Equal(amounts(p.Next.Lines), oracletest.Bands(false, bands(tiers), big.NewRat(12, 1), one)) || len(p.Items[0].Price.Tiers) != 3 {
			s.Errorf("next %+v", p.Next)
		}
		s.charged(p, s.carry(m.ID, p, nil))
	}
}

func balanceBare(s *scene) {
	m := s.World.Customer(Customer{})
	if p := s.balance(m.ID, "", 10); len(p.Balances)+len(p.Entries)+len(p.Grants) != 0 || p.Newer != "" || p.Older != "" {
		s.Errorf("balance %+v", p)
	}
	m = s.World.Customer(on(basic))
	if p := s.balance(m.ID, "", 10); !slices.Equal(p.Balances, []billing.Money{usd(0)}) || len(p.Entries) != 0 {
		s.Errorf("balance %+v", p)
	}
	_, err := s.Provider.Balance(s.ctx, "cus_nobody", "", 10)
	s.fails("nobody", err, billing.NotFound)
}

// paged walks through all entries and back, and checks each page against the
// list in one piece.
func (s *scene) paged(customer string, limit int) []billing.BalanceEntry {
	s.Helper()
	all := s.balance(customer, "", 100)
	if all.Newer != "" || all.Older != "" {
		s.Errorf("all on one page, with cursors %q, %q", all.Newer, all.Older)
	}
	same := func(page billing.BalancePage, from int) {
		s.Helper()
		want := all.Entries[from:min(from+limit, len(all.Entries))]
		if !slices.EqualFunc(page.Entries, want, func(a, b billing.BalanceEntry) bool {
			return a.ID == b.ID && a.Amount == b.Amount && a.Time.Equal(b.Time)
		}) {
			s.Errorf("from %d: %+v, want %+v", from, page.Entries, want)
		}
		if (page.Newer != "") != (from > 0) || (page.Older != "") != (from+limit < len(all.Entries)) {
			s.Errorf("from %d: newer %v, older %v", from, page.Newer != "", page.Older != "")
		}
	}
	page := s.balance(customer, "", limit)
	from := 0
	for same(page, from); page.Older != ""; same(page, from) {
		from += limit
		page = s.balance(customer, page.Older, limit)
		if len(page.Grants) != 0 {
			s.Error("grants are on another page than the first")
		}
	}
	for page.Newer != "" {
		from -= limit
		page = s.balance(customer, page.Newer, limit)
		same(page, from)
	}
	if from != 0 {
		s.Errorf("back again it ends at %d", from)
	}
	return all.Entries
}

func balancePages(s *scene) {
	m := using(s, calls(s))
	for i := range int64(4) {
		s.World.Adjust(m.ID, -100*(i+1), "usd")
		s.World.Advance(hour)
		s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 10 * (i + 1), Currency: "usd", Name: "Welcome"})
		if i%2 == 1 {
			s.World.Adjust(m.ID, 50, "usd") // at the same second
		}
		s.World.Advance(24 * hour)
	}
	s.World.Use(m.ID, "calls", "1", time.Time{})
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()) + hour)
	for _, limit := range []int{1, 2, 3, 5} {
		list := s.paged(m.ID, limit)
		// 4 + 2 adjustments, 4 grants, 4 uses of them and one of the balance.
		if len(list) != 15 {
			s.Errorf("%d entries", len(list))
		}
	}
	p := s.balance(m.ID, "", 1)
	e := p.Entries[0]
	// 2250 in all, of which the grants pay 100 and the balance 900.
	if e.Type != "applied_to_invoice" || e.Amount != usd(900) || e.After == nil || *e.After != usd(0) || e.Invoice == "" || e.Grant != "" {
		s.Errorf("the newest: %+v", e)
	}
	if v := s.latest(m.ID); e.Invoice != v.ID || v.AmountDue != usd(1250) {
		s.Errorf("invoice %+v", v)
	}
}

func balanceOneSided(s *scene) {
	m := using(s, calls(s))
	for range 3 {
		s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 500, Currency: "usd"})
		s.World.Advance(hour)
	}
	for range 3 {
		s.World.Adjust(m.ID, -100, "usd")
		s.World.Advance(hour)
	}
	if n := len(s.paged(m.ID, 2)); n != 6 {
		s.Errorf("%d entries", n)
	}
	// And the other way round: the balance's are older.
	m = using(s, "price_calls")
	for range 3 {
		s.World.Adjust(m.ID, -100, "usd")
		s.World.Advance(hour)
	}
	for range 3 {
		s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 500, Currency: "usd"})
		s.World.Advance(hour)
	}
	if n := len(s.paged(m.ID, 2)); n != 6 {
		s.Errorf("%d entries", n)
	}
	// And with none of the one or the other.
	m = using(s, "price_calls")
	for range 3 {
		s.World.Adjust(m.ID, -100, "usd")
	}
	s.paged(m.ID, 2)
	m = using(s, "price_calls")
	for range 3 {
		s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 500, Currency: "usd"})
	}
	s.paged(m.ID, 2)
}

func balanceBadCursor(s *scene) {
	m := using(s, calls(s))
	s.World.Adjust(m.ID, -100, "usd")
	for _, c := range []string{"not a cursor", "older:", "b2xkZXI", "YQ", "older:cbtxn_none", "YWNidHhuX25vbmUgYQ", "aWNidHhuX25vbmUgbg"} {
		_, err := s.Provider.Balance(s.ctx, m.ID, c, 5)
		s.fails("cursor", err, billing.NotFound)
	}
}

func balanceOthers(s *scene) {
	price := calls(s)
	mine, other := using(s, price), using(s, price)
	for range 3 {
		s.World.Adjust(other.ID, -100, "usd")
		s.World.Grant(sandbox.GrantParams{Customer: other.ID, Amount: 500, Currency: "usd"})
		s.World.Advance(hour)
	}
	if p := s.balance(mine.ID, "", 10); len(p.Entries)+len(p.Grants) != 0 {
		s.Errorf("another customer's: %+v", p)
	}
	p := s.balance(other.ID, "", 2)
	for {
		for _, c := range []string{p.Newer, p.Older} {
			if c == "" {
				continue
			}
			if q, err := s.Provider.Balance(s.ctx, mine.ID, c, 2); billing.FaultOf(err) != billing.NotFound || len(q.Entries) != 0 {
				s.Errorf("with another customer's cursor: %+v, %v", q, err)
			}
		}
		if p.Older == "" {
			break
		}
		p = s.balance(other.ID, p.Older, 2)
	}
}

func balanceFault(s *scene) {
	m := using(s, calls(s))
	s.World.Adjust(m.ID, -100, "usd")
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.Fault500Before, sandbox.FaultRateLimit, sandbox.FaultGarbage} {
		s.World.Fault(sandbox.Fault{On: "any", Times: 100, Kind: k})
		_, err := s.Provider.Balance(s.ctx, m.ID, "", 5)
		s.fails("balance, "+string(k), err, billing.Unavailable)
		s.World.ClearFaults()
	}
	s.balance(m.ID, "", 5)
}

func grantPart(s *scene) {
	s.World.Meter("mtr_calls", "calls", sandbox.FormulaSum)
	var made []Made
	for _, cur := range usedIn {
		s.World.MonthlyPrice(in(cur, "seat"), cur, "", "1230", "")
		s.World.MonthlyPrice(in(cur, "call"), cur, "mtr_calls", "17.5", "")
		m := s.World.Customer(Customer{Card: CardWorks, Price: in(cur, "seat"), Quantity: 3, Metered: []string{in(cur, "call")}, TaxPercent: "19", Credit: 500})
		s.World.Use(m.ID, "calls", "41", time.Time{})
		s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 600, Currency: cur, Name: "Bought"})
		made = append(made, m)
	}
	_, end := period(s, made[0])
	s.World.Advance(end.Sub(s.World.Now()))
	second := func(i int, credits []int64, used int64) oracletest.ArrearsBill {
		s.Helper()
		return s.billed(made[i].ID, oracletest.Arrears{Ahead: []int64{3690}, Used: []int64{used}, Credits: credits, TaxPercent: big.NewRat(19, 1), Balance: -500})
	}
	for i, m := range made {
		b := second(i, []int64{600}, 718)
		p := s.balance(m.ID, "", 10)
		if len(p.Grants) != 1 || p.Grants[0].Left.Amount != b.Left[0] || p.Grants[0].Amount.Amount != 600 || !p.Grants[0].Paid || p.Grants[0].Name != "Bought" || !p.Grants[0].Expires.IsZero() {
			s.Errorf("grants %+v, the oracle says %v left", p.Grants, b.Left)
		}
		v := s.latest(m.ID)
		e := p.Entries[1] // the balance's is the newest
		if e.Type != "credits_applied" || e.Amount.Amount != b.Credits || e.Invoice != v.ID || e.Grant != p.Grants[0].ID || e.After != nil {
			s.Errorf("entry %+v", e)
		}
	}
}

func grantOrder(s *scene) {
	m := using(s, calls(s))
	first, late := 10, 90
	soon := s.World.Now().Add(60 * 24 * hour)
	give := func(p sandbox.GrantParams) string {
		p.Customer, p.Amount, p.Currency = m.ID, 100, "usd"
		defer s.World.Advance(time.Second)
		return s.World.Grant(p)
	}
	// Made in an order that is not theirs.
	order := make([]string, 6)
	order[5] = give(sandbox.GrantParams{Priority: &late, Name: "last"})
	order[3] = give(sandbox.GrantParams{Name: "bought first"})
	order[4] = give(sandbox.GrantParams{Name: "bought second"})
	order[2] = give(sandbox.GrantParams{Name: "given", Category: sandbox.GrantPromotional})
	order[1] = give(sandbox.GrantParams{Name: "expires", ExpiresAt: soon})
	order[0] = give(sandbox.GrantParams{Name: "first", Priority: &first})
	s.World.Use(m.ID, "calls", "1.4", time.Time{}) // 350
	_, end := period(s, m)
	s.World.Advance(end.Sub(s.World.Now()))
	b := s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{350}, Credits: []int64{100, 100, 100, 100, 100, 100}})
	p := s.balance(m.ID, "", 50)
	for i, id := range order {
		n := slices.IndexFunc(p.Grants, func(g billing.Grant) bool { return g.ID == id })
		if n < 0 || p.Grants[n].Left.Amount != b.Left[i] {
			s.Errorf("grant %d of the order: %+v, the oracle says %v left", i, p.Grants, b.Left)
		}
	}
	if len(p.Grants) != 6 || p.Grants[2].Left.Amount == 0 || p.Grants[3].Left.Amount != 0 {
		s.Errorf("those that can be used come first: %+v", p.Grants)
	}
}

func grantExpires(s *scene) {
	m := using(s, calls(s))
	_, end := period(s, m)
	s.World.Use(m.ID, "calls", "4", time.Time{})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd", ExpiresAt: end.Add(-hour)})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 200, Currency: "usd", ExpiresAt: end.Add(hour)})
	now := s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 700, Currency: "usd"})
	s.World.EndGrant(now, false)
	s.World.Advance(end.Sub(s.World.Now()) + 2*hour)
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{1000}, Credits: []int64{200}})
	p := s.balance(m.ID, "", 50)
	var expired []int64
	for _, e := range p.Entries {
		if e.Type == "credits_expired" {
			expired = append(expired, e.Amount.Amount)
		}
	}
	if !slices.Equal(expired, []int64{300, 700}) {
		s.Errorf("expired %v", expired)
	}
	for _, g := range p.Grants {
		if g.Left.Amount != 0 || g.Void || g.Expires.IsZero() {
			s.Errorf("grant %+v", g)
		}
	}
}

func grantVoided(s *scene) {
	m := using(s, calls(s))
	_, end := period(s, m)
	s.World.Use(m.ID, "calls", "4", time.Time{})
	id := s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd", Category: sandbox.GrantPromotional, ExpiresAt: end.Add(hour)})
	s.World.Advance(hour)
	s.World.EndGrant(id, true)
	s.World.Advance(end.Sub(s.World.Now()) + 2*hour)
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{1000}})
	p := s.balance(m.ID, "", 50)
	if len(p.Grants) != 1 || !p.Grants[0].Void || p.Grants[0].Left.Amount != 0 || p.Grants[0].Paid {
		s.Errorf("grants %+v", p.Grants)
	}
	if len(p.Entries) != 2 || p.Entries[0].Type != "credits_voided" || p.Entries[0].Amount != usd(300) || p.Entries[1].Type != "credits_granted" || p.Entries[1].Amount != usd(-300) {
		s.Errorf("entries %+v", p.Entries)
	}
}

func grantOther(s *scene) {
	price := calls(s)
	s.World.MonthlyPrice("price_other_calls", "usd", "mtr_calls", "1", "")
	m := using(s, price)
	_, end := period(s, m)
	s.World.Use(m.ID, "calls", "4", time.Time{})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd", EffectiveAt: end.Add(hour)})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 400, Currency: "usd", Prices: []string{"price_other_calls"}})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 500, Currency: "eur"})
	s.World.Advance(end.Sub(s.World.Now()))
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{1000}})
	p := s.balance(m.ID, "", 50)
	for _, g := range p.Grants {
		if g.Left != g.Amount {
			s.Errorf("grant %+v", g)
		}
	}
	// What is not usage no credit pays for, whatever it holds.
	s.World.Advance(2 * hour)
	_, end = period(s, m)
	s.World.Advance(end.Sub(s.World.Now()))
	s.billed(m.ID, oracletest.Arrears{Ahead: []int64{2000}, Used: []int64{0}, Credits: []int64{300}})
}

func grantBack(s *scene) {
	price := calls(s)
	m := s.World.Customer(Customer{Card: CardDeclines, Price: basic, Quantity: 2, Metered: []string{price}})
	_, end := period(s, m)
	s.World.Use(m.ID, "calls", "4", time.Time{})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd", ExpiresAt: end.Add(24 * hour)})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 400, Currency: "usd"})
	s.World.Advance(end.Sub(s.World.Now()))
	v := s.latest(m.ID)
	if v.Status != billing.InvoiceOpen || v.AmountDue != usd(2300) {
		s.Fatalf("invoice %+v", v)
	}
	s.World.Advance(30 * hour) // the first one has expired
	s.World.Void(v.ID)
	p := s.balance(m.ID, "", 50)
	if p.Grants[0].Left != usd(400) || p.Grants[1].Left != usd(0) {
		s.Errorf("grants %+v", p.Grants)
	}
	var types []string
	for _, e := range p.Entries {
		types = append(types, e.Type)
		if e.Type == "credits_application_invoice_voided" && (e.Invoice != v.ID || e.Amount.Amount >= 0) {
			s.Errorf("entry %+v", e)
		}
	}
	slices.Sort(types)
	if want := []string{
		"credits_application_invoice_voided", "credits_application_invoice_voided", "credits_applied", "credits_applied", "credits_expired",
		"credits_granted", "credits_granted",
	}; !slices.Equal(types, want) {
		s.Errorf("entries %v", types)
	}
}

func grantUpcoming(s *scene) {
	m := using(s, calls(s))
	s.World.Use(m.ID, "calls", "4", time.Time{})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd"})
	a := s.account(m.ID)
	if u := a.Upcoming[0]; u.Subtotal != usd(3000) || u.Total != usd(2700) || u.AmountDue != usd(2700) {
		s.Errorf("upcoming %+v", u)
	}
	// Looking uses nothing up.
	if p := s.balance(m.ID, "", 10); p.Grants[0].Left != usd(300) || len(p.Entries) != 1 {
		s.Errorf("balance %+v", p)
	}
}

func grantMany(s *scene) {
	m := using(s, calls(s))
	for range 60 {
		s.World.EndGrant(s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 100, Currency: "usd"}), true)
	}
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 300, Currency: "usd"})
	s.World.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 400, Currency: "usd", EffectiveAt: s.World.Now().Add(hour)})
	p := s.balance(m.ID, "", 5)
	if len(p.Grants) != 62 || p.Grants[0].Left != usd(400) || p.Grants[1].Left != usd(300) || p.Grants[2].Left != usd(0) || len(p.Entries) != 5 || p.Older == "" {
		s.Errorf("balance %+v", p)
	}
}
