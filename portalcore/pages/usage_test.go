package pages

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

func utc(month time.Month, day int) time.Time {
	return time.Date(2026, month, day, 0, 0, 0, 0, time.UTC)
}

// meterer answers with so many of a meter on each day, and notes what it was
// asked.
type meterer struct {
	mu    sync.Mutex
	asked []billing.UsageQuery
	perDay,
	lastPerDay int64
	name string
	fail func(billing.UsageQuery) error
	edit func(*billing.Usage)
	upTo time.Time
}

func (m *meterer) usage(_ context.Context, q billing.UsageQuery) (billing.Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, q)
	if m.fail != nil {
		if err := m.fail(q); err != nil {
			return billing.Usage{}, err
		}
	}
	from, to, n := q.From, q.To, m.lastPerDay
	if from.IsZero() {
		from, to, n = utc(5, 1), utc(6, 1), m.perDay
	}
	u := billing.MeterUsage{Meter: "mtr_1", Event: "api_calls", Name: m.name, Item: "si_calls", Price: callPrice, From: from, To: to}
	for at := from; at.Before(to); {
		next := at.AddDate(0, 0, 1)
		if q.By == billing.Month {
			next = time.Date(at.Year(), at.Month()+1, 1, 0, 0, 0, 0, time.UTC)
			if next.After(to) {
				next = to
			}
		}
		p := billing.UsagePoint{Start: at, End: next}
		if at.Before(m.upTo) {
			p.Value = decimal.NewFromInt(n)
		}
		u.Points, u.Total, at = append(u.Points, p), u.Total.Add(p.Value), next
	}
	if !q.From.IsZero() && q.From.Day() != 1 || q.By == billing.Day {
		u.Cost = &billing.Money{Amount: 1140, Currency: "eur"}
	}
	out := billing.Usage{Meters: []billing.MeterUsage{u}, UpTo: m.upTo}
	if m.edit != nil {
		m.edit(&out)
	}
	return out, nil
}

var callPrice = billing.Price{
	ID: "price_calls", Product: "prod_calls", ProductName: "Calls", Currency: "eur", UnitAmount: decimal.RequireFromString("0.2"),
	Interval: billing.Month, IntervalCount: 1, Active: true, Metered: true, Meter: "mtr_1",
}

// meteredEnv is an env whose customer cus_a has a metered item with a limit of
// 10,000.
func meteredEnv(t testing.TB) (*env, *meterer) {
	e := newEnv(t)
	m := &meterer{perDay: 500, lastPerDay: 300, name: "API calls", upTo: time.Date(2026, 5, 14, 13, 0, 0, 0, time.UTC)}
	e.provider.onUsage = m.usage
	s := &e.provider.accounts["cus_a"].Subscriptions[0]
	s.Created = utc(1, 1)
	s.Items = append(s.Items, billing.Item{ID: "si_calls", Price: callPrice, PeriodStart: utc(5, 1), PeriodEnd: utc(6, 1)})
	cat := must[billing.Catalogue](t)(billing.NewCatalogue([]billing.Plan{
		{Key: "basic", Name: "Basic", Rank: 1, Prices: []billing.Price{basic}, Limits: []billing.Limit{{Name: "api_calls", Value: 10_000}, {Name: "seats", Value: 5}}},
	}))
	e.corridor.Catalogue = func() *billing.Catalogue { return &cat }
	return e, m
}

// TestUsageBesideAPlan: what is billed by usage is said once, and a customer
// who pays by usage alone is offered plans for one, not for none.
func TestUsageBesideAPlan(t *testing.T) {
	e, _ := meteredEnv(t)
	b := e.signedIn("cus_a")
	for _, path := range []string{"/", "/plan"} {
		body := b.get(path).Body.String()
		says(t, body, "plus usage")
		saysNot(t, body, "more item")
	}
	s := &e.provider.accounts["cus_a"].Subscriptions[0]
	s.Items = s.Items[1:]
	e.advance(2 * time.Minute)
	body := b.get("/plan").Body.String()
	says(t, body, "Your plan: Calls", "Billed by usage", "€19.00 per month")
	saysNot(t, body, "€0.00", "0 at", "See what this quantity costs you")
}

func says(t *testing.T, body string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(plainText(body), w) {
			t.Errorf("the page does not say %q: %s", w, plainText(body))
		}
	}
}

func saysNot(t *testing.T, body string, never ...string) {
	t.Helper()
	for _, w := range never {
		if strings.Contains(plainText(body), w) {
			t.Errorf("the page says %q", w)
		}
	}
}

// plainText is a page without its tags.
func plainText(body string) string {
	for _, cell := range []string{"td", "th", "dt", "dd", "h1", "h2", "h3", "p", "caption", "tbody"} {
		body = strings.ReplaceAll(body, "</"+cell+">", " ")
	}
	var b strings.Builder
	in := false
	for _, r := range body {
		switch {
		case r == '<':
			in = true
		case r == '>':
			in = false
		case !in:
			b.WriteRune(r)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func TestUsageOfThisPeriod(t *testing.T) {
	e, m := meteredEnv(t)
	b := e.signedIn("cus_a")
	w := b.get("/usage")
	body := w.Body.String()
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, body)
	}
	says(t, body, "7,000 of 10,000 used (70%)", "About €11.40 so far, without tax. Final when the period closes on 1 June 2026.",
		"Counts from zero again on 1 June 2026.", "First 13 days 6,500, in the last period 3,900", "Last period in full 9,000, from 1 April 2026 to 1 May 2026",
		"Most on 1 May 2026: 500.", "Usage up to 14 May 2026, 13:00 UTC; newer events still arrive.", "€0.002 for each unit", "Estimate: about 16,000 by 1 June 2026",
		"14 May 2026 500 so far", "15 May 2026 Not counted yet", "Total 7,000")
	if n := strings.Count(body, `class="column`); n != 14 {
		t.Errorf("%d bars for 14 days", n)
	}
	if !strings.Contains(body, `aria-current="page">Usage`) {
		t.Error("the navigation does not name the page")
	}
	saysNot(t, body, "is reached", "Close to the limit")
	if len(m.asked) != 2 {
		t.Errorf("asked %v", m.asked)
	}
	// The next one within the minute asks nobody.
	b.get("/usage")
	b.get("/usage.csv?period=this&by=day")
	if len(m.asked) != 2 {
		t.Errorf("asked again: %v", m.asked)
	}
	e.advance(61 * time.Second)
	b.get("/usage")
	if len(m.asked) != 4 {
		t.Errorf("asked %d times after a minute", len(m.asked))
	}
}

func TestUsagePeriods(t *testing.T) {
	for path, want := range map[string]struct {
		query billing.UsageQuery
		says  []string
	}{
		"/usage?period=last": {billing.UsageQuery{From: utc(4, 1), To: utc(5, 1), By: billing.Day}, []string{"9,000 of 10,000 used (90%)", "Close to the limit of your plan", "1 April 2026 to 1 May 2026", "€11.40, without tax."}},
		"/usage?period=year": {billing.UsageQuery{From: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC), To: utc(5, 15), By: billing.Month}, []string{"3,600 used", "Most in June 2025: 300.", "1 June 2025 to 14 May 2026", "May 2026 300 so far"}},
		"/usage?period=custom&from=2026-03-02&to=2026-03-04":     {billing.UsageQuery{From: utc(3, 2), To: utc(3, 5), By: billing.Day}, []string{"900 used", "2 March 2026 to 4 March 2026", "Total 900"}},
		"/usage?period=custom&from=2026-05-14&to=2026-05-14":     {billing.UsageQuery{From: utc(5, 14), To: utc(5, 15), By: billing.Day}, []string{"300 used"}},
		"/usage?period=custom&from=2025-04-15&to=2026-05-14":     {billing.UsageQuery{From: time.Date(2025, 4, 15, 0, 0, 0, 0, time.UTC), To: utc(5, 15), By: billing.Month}, []string{"April 2025 300"}},
		"/usage?period=custom&from=2026-01-01&to=2026-05-01&by=": {billing.UsageQuery{From: utc(1, 1), To: utc(5, 2), By: billing.Month}, nil},
	} {
		t.Run(path, func(t *testing.T) {
			e, m := meteredEnv(t)
			w := e.signedIn("cus_a").get(path)
			if w.Code != http.StatusOK {
				t.Fatalf("%d %s", w.Code, plainText(w.Body.String()))
			}
			says(t, w.Body.String(), want.says...)
			saysNot(t, w.Body.String(), "Estimate")
			want.query.Subscription = "sub_a"
			if len(m.asked) != 1 || m.asked[0] != want.query {
				t.Errorf("asked %v, want %v", m.asked, want.query)
			}
		})
	}
}

func TestUsageQueriesThatCannotBe(t *testing.T) {
	e, m := meteredEnv(t)
	b := e.signedIn("cus_a")
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"/usage?period=custom":                               {422, "From: Enter a date"},
		"/usage?period=custom&from=2026-05-01":               {422, "To: Enter a date"},
		"/usage?period=custom&from=1.5.26&to=2026-05-02":     {422, "Enter a date, like 2026-05-31."},
		"/usage?period=custom&from=2026-02-30&to=2026-05-02": {422, "Enter a date, like 2026-05-31."},
		"/usage?period=custom&from=0001-01-01&to=2026-05-02": {422, "Enter a date, like 2026-05-31."},
		"/usage?period=custom&from=2026-05-02&to=2026-05-01": {422, "Enter a last day that is not before the first."},
		"/usage?period=custom&from=2026-05-02&to=2026-05-15": {422, "Enter a day that is not in the future."},
		"/usage?period=custom&from=2025-04-01&to=2026-05-14": {422, "Choose at most 13 months."},
		"/usage?period=always":                               {400, "We couldn’t read what was sent"},
		"/usage?by=year":                                     {400, "We couldn’t read what was sent"},
		"/usage?period=this&period=last":                     {400, "We couldn’t read what was sent"},
		"/usage?subscription=sub_b":                          {404, "Page not found"},
		"/usage.csv?subscription=sub_b":                      {404, "Page not found"},
		"/usage.csv?period=custom&from=x&to=y":               {400, "We couldn’t read what was sent"},
	} {
		w := b.get(path)
		if w.Code != want.code {
			t.Errorf("%s: %d, want %d", path, w.Code, want.code)
		}
		says(t, w.Body.String(), want.says)
	}
	if len(m.asked) != 0 {
		t.Errorf("the provider was asked %v", m.asked)
	}
	body := b.get("/usage?period=custom&from=2026-05-02&to=2026-05-01").Body.String()
	for _, want := range []string{`value="2026-05-02"`, `value="2026-05-01"`, `href="#to"`, `aria-describedby="to-error"`, "<title>Error: "} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestUsageIsOnlyWhereThereIsAMeter(t *testing.T) {
	e, _ := meteredEnv(t)
	b := e.signedIn("cus_b")
	w := b.get("/usage")
	says(t, w.Body.String(), "No usage-based prices in your plan.", "See your plan")
	if w.Code != http.StatusOK || strings.Contains(w.Body.String(), `href="/usage"`) {
		t.Errorf("%d, or the navigation leads to usage", w.Code)
	}
	if body := e.signedIn("cus_a").get("/").Body.String(); !strings.Contains(body, `href="/usage"`) {
		t.Error("the overview does not lead to usage")
	}
}

func TestUsageFailures(t *testing.T) {
	e, m := meteredEnv(t)
	b := e.signedIn("cus_a")
	down := &billing.Error{Fault: billing.Unavailable, Err: errors.New("secret: connection refused")}
	m.fail = func(billing.UsageQuery) error { return down }
	w := b.get("/usage?by=day&period=year")
	says(t, w.Body.String(), "We couldn’t load your usage.", "Try again")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), `href="/usage?by=day&amp;period=year"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	saysNot(t, w.Body.String(), "0 used", "No usage recorded", "secret", "Download")
	if w := b.get("/usage.csv"); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Header().Get("Content-Type"), "csv") {
		t.Errorf("csv: %d %s", w.Code, w.Header())
	}
	// A failure is not kept, and the period to compare with may fail alone.
	m.fail = func(q billing.UsageQuery) error {
		if !q.From.IsZero() {
			return down
		}
		return nil
	}
	w = b.get("/usage")
	says(t, w.Body.String(), "7,000 of 10,000 used", "We couldn’t load the last period to compare with.")
	if w.Code != http.StatusOK {
		t.Errorf("%d", w.Code)
	}
	m.fail = func(billing.UsageQuery) error { panic("boom") }
	e.advance(2 * time.Minute)
	if w := b.get("/usage"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("after a panic: %d", w.Code)
	}
}

// TestUsageAnswersThatCannotBe holds that what no page can be made of counts as
// no answer, not as no usage.
func TestUsageAnswersThatCannotBe(t *testing.T) {
	for name, edit := range map[string]func(*billing.Usage){
		"exponent": func(u *billing.Usage) { u.Meters[0].Total = decimal.New(1, 1_000_000) },
		"tiny":     func(u *billing.Usage) { u.Meters[0].Points[3].Value = decimal.New(1, -1_000_000) },
		"price":    func(u *billing.Usage) { u.Meters[0].Price.UnitAmount = decimal.New(1, 1_000_000) },
		"tier": func(u *billing.Usage) {
			u.Meters[0].Price.Tiers = []billing.Tier{{FlatAmount: decimal.New(1, 1_000_000)}}
		},
		"order":      func(u *billing.Usage) { u.Meters[0].Points[3].Start = utc(5, 1) },
		"backwards":  func(u *billing.Usage) { u.Meters[0].Points[3].End = utc(5, 1) },
		"no time":    func(u *billing.Usage) { u.Meters[0].To = u.Meters[0].From },
		"points":     func(u *billing.Usage) { u.Meters[0].Points = make([]billing.UsagePoint, maxPoints+1) },
		"too many":   func(u *billing.Usage) { u.Meters = make([]billing.MeterUsage, maxMeters+1) },
		"many digit": func(u *billing.Usage) { u.Meters[0].Total = decimal.RequireFromString(strings.Repeat("9", 500)) },
	} {
		t.Run(name, func(t *testing.T) {
			e, m := meteredEnv(t)
			m.edit = edit
			w := e.signedIn("cus_a").get("/usage")
			if w.Code != http.StatusServiceUnavailable {
				t.Errorf("%d", w.Code)
			}
			saysNot(t, w.Body.String(), " used (")
		})
	}
}

func TestUsageHostileAnswers(t *testing.T) {
	long := "\u202E=HYPERLINK(\"http://evil.example\")\x00\r\n<script>" + strings.Repeat("é", 10_000)
	for name, edit := range map[string]func(*billing.Usage){
		"names": func(u *billing.Usage) { u.Meters[0].Name = long },
		"numbers": func(u *billing.Usage) {
			for i, v := range []string{"1e30", "-5", "0.000001", "-1e29", "0"} {
				u.Meters[0].Points[i].Value = decimal.RequireFromString(v)
			}
			u.Meters[0].Total = decimal.RequireFromString("1e30")
		},
		"gap": func(u *billing.Usage) {
			u.Meters[0].Points = append(u.Meters[0].Points[:3:3], u.Meters[0].Points[6:]...)
		},
		"nothing": func(u *billing.Usage) { u.Meters[0].Points, u.Meters[0].Total = nil, decimal.Zero },
		"no item": func(u *billing.Usage) { u.Meters[0].Item = "si_other" },
		"none":    func(u *billing.Usage) { u.Meters = nil },
		"no time": func(u *billing.Usage) { u.UpTo = time.Time{} },
	} {
		t.Run(name, func(t *testing.T) {
			e, m := meteredEnv(t)
			m.edit = edit
			b := e.signedIn("cus_a")
			w := b.get("/usage")
			body := w.Body.String()
			if w.Code != http.StatusOK || strings.Contains(body, "<script") || strings.ContainsAny(body, "\u202E\x00") {
				t.Errorf("%d %s", w.Code, body)
			}
			if len(body) > 100_000 {
				t.Errorf("a page of %d bytes", len(body))
			}
			if name == "gap" {
				says(t, body, "Hatched: no data.", "4 May 2026 No data")
			}
			w = b.get("/usage.csv")
			rows, err := csv.NewReader(w.Body).ReadAll()
			if err != nil || w.Code != http.StatusOK {
				t.Fatalf("%d %v", w.Code, err)
			}
			for _, row := range rows[1:] {
				if strings.ContainsAny(row[0][:1], "=+-@\t\r") || strings.ContainsAny(row[0], "\r\n\x00\u202E") {
					t.Errorf("a cell %q", row[0])
				}
				if name == "gap" && row[4] == templates.PointMissing && row[3] != "" {
					t.Errorf("missing is %q", row[3])
				}
			}
		})
	}
}

// TestUsageFromOneSource holds page, table and file to the same numbers.
func TestUsageFromOneSource(t *testing.T) {
	e, m := meteredEnv(t)
	random := rand.New(rand.NewPCG(1, 2))
	m.edit = func(u *billing.Usage) {
		p := &u.Meters[0]
		p.Total = decimal.Zero
		for i := range 13 {
			p.Points[i].Value = decimal.New(random.Int64N(1e6), -2)
		}
		for _, v := range p.Points {
			p.Total = p.Total.Add(v.Value)
		}
	}
	b := e.signedIn("cus_a")
	body := plainText(b.get("/usage").Body.String())
	w := b.get("/usage.csv?period=this&by=day")
	if got := w.Header().Get("Content-Disposition"); got != `attachment; filename="usage-this-2026-05-14.csv"` {
		t.Error(got)
	}
	rows, err := csv.NewReader(w.Body).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var total decimal.Decimal
	states := map[string]int{}
	for _, row := range rows[1:] {
		states[row[4]]++
		if row[3] == "" {
			continue
		}
		v := decimal.RequireFromString(row[3])
		total = total.Add(v)
	}
	if fmt.Sprint(states) != "map[final:13 later:17 open:1]" {
		t.Error(states)
	}
	whole, cents, _ := strings.Cut(total.String(), ".")
	if want := whole[:len(whole)-3] + "," + whole[len(whole)-3:] + "." + cents; !strings.Contains(body, "Total "+want) || !strings.Contains(body, want+" of 10,000 used") {
		t.Errorf("the file adds up to %s, the page says %s", want, body)
	}
}

// TestUsageReadsAreShared holds that all who look at the same time share a
// read, and that nobody waits longer than the patience of a page for it.
func TestUsageReadsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		s := must[*shelf[int]](t)(newShelf(time.Now, func(int) uint32 { return 1 }))
		defer s.close()
		slow := func(ctx context.Context) (int, error) {
			reads.Add(1)
			select {
			case <-time.After(5 * time.Second):
				return 7, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		var wg sync.WaitGroup
		start := time.Now()
		for range 20 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if _, err := s.get(ctx, "k", slow); billing.FaultOf(err) != billing.Unavailable {
					t.Errorf("want a failed section, got %v", err)
				}
			})
		}
		wg.Wait()
		if waited := time.Since(start); waited != patience || reads.Load() != 1 {
			t.Errorf("waited %s, %d reads", waited, reads.Load())
		}
		// It went on, and is there for those who try again.
		time.Sleep(5 * time.Second)
		if v, err := s.get(t.Context(), "k", slow); v != 7 || err != nil || reads.Load() != 1 {
			t.Errorf("%d %v, %d reads", v, err, reads.Load())
		}
	})
}

func TestPreviousPeriod(t *testing.T) {
	at := func(s string) time.Time { return must[time.Time](t)(time.Parse("2006-01-02 15:04", s)) }
	for name, c := range map[string]struct {
		start, end, created, trial, want string
		interval                         billing.Interval
		count                            int
	}{
		"month":           {"2026-05-01 13:02", "2026-06-01 13:02", "2025-01-01 00:00", "", "2026-04-01 13:02", billing.Month, 1},
		"31st":            {"2026-02-28 09:00", "2026-03-31 09:00", "2025-01-31 09:00", "", "2026-01-31 09:00", billing.Month, 1},
		"31st, after":     {"2026-03-31 09:00", "2026-04-30 09:00", "2025-01-31 09:00", "", "2026-02-28 09:00", billing.Month, 1},
		"30th":            {"2026-03-30 09:00", "2026-04-30 09:00", "2025-01-31 09:00", "", "2026-02-28 09:00", billing.Month, 1},
		"January":         {"2026-01-15 00:00", "2026-02-15 00:00", "2025-01-31 09:00", "", "2025-12-15 00:00", billing.Month, 1},
		"quarter":         {"2026-05-01 00:00", "2026-08-01 00:00", "2025-01-31 09:00", "", "2026-02-01 00:00", billing.Month, 3},
		"year, 29 Feb":    {"2025-02-28 00:00", "2026-02-28 00:00", "2020-02-29 00:00", "", "2024-02-28 00:00", billing.Year, 1},
		"week":            {"2026-05-08 00:00", "2026-05-15 00:00", "2025-01-31 09:00", "", "2026-05-01 00:00", billing.Week, 1},
		"day":             {"2026-05-08 00:00", "2026-05-09 00:00", "2025-01-31 09:00", "", "2026-05-07 00:00", billing.Day, 1},
		"short first one": {"2026-05-01 00:00", "2026-06-01 00:00", "2026-04-20 09:00", "", "2026-04-20 09:00", billing.Month, 1},
		"trial":           {"2026-05-01 00:00", "2026-06-01 00:00", "2026-02-20 09:00", "2026-05-01 00:00", "2026-02-20 09:00", billing.Month, 1},
		"first one":       {"2026-05-01 00:00", "2026-06-01 00:00", "2026-05-01 00:00", "", "", billing.Month, 1},
		"too long":        {"2026-05-01 00:00", "2028-06-01 00:00", "2020-05-01 00:00", "", "", billing.Year, 2},
		"no interval":     {"2026-05-01 00:00", "2026-06-01 00:00", "2020-05-01 00:00", "", "", "", 1},
	} {
		s := &billing.Subscription{Created: at(c.created)}
		if c.trial != "" {
			s.TrialEnd = at(c.trial)
		}
		it := &billing.Item{PeriodStart: at(c.start), PeriodEnd: at(c.end), Price: billing.Price{Interval: c.interval, IntervalCount: c.count}}
		got, ok := previous(s, it)
		if ok != (c.want != "") {
			t.Errorf("%s: %v %v", name, got, ok)
		} else if ok && (!got.from.Equal(at(c.want)) || !got.to.Equal(it.PeriodStart)) {
			t.Errorf("%s: from %s to %s, want %s", name, got.from, got.to, c.want)
		}
	}
}

func TestUsageOfSeveralSubscriptions(t *testing.T) {
	e, m := meteredEnv(t)
	a := e.provider.accounts["cus_a"]
	second := a.Subscriptions[0]
	second.ID = "sub_a2"
	plain := billing.Subscription{ID: "sub_a3", Status: billing.Active, Items: a.Subscriptions[0].Items[:1], Version: "s"}
	a.Subscriptions = append(a.Subscriptions, second, plain)
	b := e.signedIn("cus_a")
	if body := b.get("/usage").Body.String(); !strings.Contains(body, `href="/usage?subscription=sub_a2"`) || strings.Contains(body, "sub_a3") {
		t.Errorf("does not lead to the other one: %s", body)
	}
	body := b.get("/usage?subscription=sub_a2").Body.String()
	if m.asked[len(m.asked)-1].Subscription != "sub_a2" || !strings.Contains(body, `<input type="hidden" name="subscription" value="sub_a2">`) {
		t.Errorf("asked %v", m.asked)
	}
	// One that has no metered item has no usage.
	if w := b.get("/usage?subscription=sub_a3"); w.Code != http.StatusNotFound {
		t.Errorf("%d", w.Code)
	}
}

func FuzzUsageQuery(f *testing.F) {
	for _, s := range []string{
		"", "period=this", "period=last&by=month", "period=year", "period=custom&from=2026-01-01&to=2026-02-01", "period=custom&from=2025-04-15&to=2026-05-14",
		"period=custom&from=9999-99-99&to=-1", "period=custom&from=2026-01-01&to=2025-01-01&by=day", "period=%00&by=\xff", "period=custom&from=+2026-01-01+&to=2026-01-01",
	} {
		f.Add(s)
	}
	now := time.Date(2026, 5, 14, 15, 2, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, query string) {
		form, err := parseForm(query)
		if err != nil {
			return
		}
		a, ok := readUsageAsk(form, now)
		if !ok {
			return
		}
		if len(a.errs) > 0 || a.period == periodThis || a.period == periodLast {
			if !a.from.IsZero() || !a.to.IsZero() {
				t.Errorf("%q: from %s to %s", query, a.from, a.to)
			}
			return
		}
		if !a.from.Before(a.to) || a.to.After(a.from.AddDate(0, 13, 0)) || a.to.After(now.AddDate(0, 0, 1)) || a.from.Truncate(24*time.Hour) != a.from || a.to.Truncate(24*time.Hour) != a.to {
			t.Errorf("%q: from %s to %s", query, a.from, a.to)
		}
	})
}

// TestDeniedViews holds that what a policy denies reading is neither shown nor
// led to, and that the page says who can.
func TestDeniedViews(t *testing.T) {
	e, m := meteredEnv(t)
	e.provider.accounts["cus_a"].Customer.Balance.Amount = -1234
	e.provider.onBalance = func(string) (billing.BalancePage, error) { panic("asked") }
	rules := []policy.Rule{{Verdict: policy.Deny, Actions: []string{policy.ViewUsage, policy.ViewBalance}, Roles: []string{policy.Billing}}}
	pol := must[*policy.Policy](t)(policy.New(rules, nil))
	e.corridor.Policy = func(string) *policy.Policy { return pol }
	b := e.signedIn("cus_a", func(c *link.Claims) { c.Role = policy.Billing })
	for _, path := range []string{"/usage", "/usage.csv", "/balance"} {
		w := b.get(path)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", path, w.Code)
		}
		says(t, w.Body.String(), "You can’t open this page", "Ask an owner of the account.")
	}
	for _, path := range []string{"/", "/payment", "/usage"} {
		if body := b.get(path).Body.String(); strings.Contains(body, `href="/usage"`) || strings.Contains(body, `href="/balance"`) || strings.Contains(body, "12.34") {
			t.Errorf("%s leads to what is denied, or shows it", path)
		}
	}
	if len(m.asked) != 0 {
		t.Errorf("asked %v", m.asked)
	}
	// The owner's copy of the account is whole.
	owner := e.signedIn("cus_a")
	if body := owner.get("/").Body.String(); !strings.Contains(body, "€12.34") || !strings.Contains(body, `href="/usage"`) || !strings.Contains(body, `href="/balance"`) {
		t.Errorf("the owner does not see it: %s", body)
	}
	rules[0].Roles, rules[0].Text = nil, "Ask sales@acme.example."
	pol = must[*policy.Policy](t)(policy.New(rules, nil))
	says(t, owner.get("/usage").Body.String(), "You can’t open this page", "Ask sales@acme.example.")
	rules[0].Text = ""
	pol = must[*policy.Policy](t)(policy.New(rules, nil))
	says(t, owner.get("/balance").Body.String(), "Acme doesn’t show this here.")
}

// TestPlanWithUsage holds that no price per period is named where only usage is
// billed, and that usage is named beside one.
func TestPlanWithUsage(t *testing.T) {
	e, _ := meteredEnv(t)
	says(t, e.signedIn("cus_a").get("/").Body.String(), "plus usage", "€76.00 per month")
	e, _ = meteredEnv(t)
	s := &e.provider.accounts["cus_a"].Subscriptions[0]
	s.Items = s.Items[1:]
	b := e.signedIn("cus_a")
	for _, path := range []string{"/", "/cancel"} {
		body := b.get(path).Body.String()
		says(t, body, "Billed by usage")
		saysNot(t, body, "€0.00 per month", "plus usage", "0 at")
	}
	says(t, b.get("/plan").Body.String(), "Your plan: Calls", "Billed by usage")
}
