package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// maxCached bounds each of the caches of what does not change at Stripe.
const maxCached = 2000

// maxSide is how many prices or meters are read side by side.
const maxSide = 8

// cache keeps what does not change at Stripe, by id. Full, it begins anew.
type cache[T any] struct {
	mu   sync.Mutex
	kept map[string]T
}

func (c *cache[T]) get(id string) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.kept[id]
	return v, ok
}

func (c *cache[T]) put(id string, v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil || len(c.kept) >= maxCached {
		c.kept = map[string]T{}
	}
	c.kept[id] = v
}

// priceTier is Stripe's price_tier.
type priceTier struct {
	UpTo              *int64 `json:"up_to"`
	UnitAmount        *int64 `json:"unit_amount"`
	UnitAmountDecimal string `json:"unit_amount_decimal"`
	FlatAmount        *int64 `json:"flat_amount"`
	FlatAmountDecimal string `json:"flat_amount_decimal"`
}

// tiering is what a tiered price never changes.
type tiering struct {
	mode  string
	tiers []priceTier
}

func (p *price) metered() bool { return p.Recurring != nil && p.Recurring.UsageType == "metered" }

func (p *price) transformed() bool {
	return len(p.TransformQuantity) > 0 && string(p.TransformQuantity) != "null"
}

func (p *price) convertTiers(out *billing.Price) error {
	amount := func(exact string, whole *int64) (decimal.Decimal, error) {
		switch {
		case exact != "":
			return decimal.NewFromString(exact)
		case whole != nil:
			return decimal.NewFromInt(*whole), nil
		}
		return decimal.Zero, nil
	}
	if p.BillingScheme != "tiered" || len(p.Tiers) == 0 {
		return nil
	}
	out.TiersMode = billing.TiersMode(p.TiersMode)
	if out.TiersMode != billing.Graduated && out.TiersMode != billing.Volume {
		return fmt.Errorf("price %s: tiers_mode %q is not known", p.ID, p.TiersMode)
	}
	for _, t := range p.Tiers {
		unit, err := amount(t.UnitAmountDecimal, t.UnitAmount)
		flat, err2 := amount(t.FlatAmountDecimal, t.FlatAmount)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("price %s: a tier's amount is not a number", p.ID)
		}
		b := billing.Tier{UnitAmount: unit, FlatAmount: flat}
		if t.UpTo != nil {
			b.UpTo = *t.UpTo
		}
		out.Tiers = append(out.Tiers, b)
	}
	// Lowest first, and the one without an end last.
	slices.SortStableFunc(out.Tiers, func(a, b billing.Tier) int {
		switch {
		case a.UpTo == b.UpTo:
			return 0
		case b.UpTo == 0 || a.UpTo != 0 && a.UpTo < b.UpTo:
			return -1
		}
		return 1
	})
	return nil
}

// metered reports whether s bills usage.
func (s *subscription) metered() bool {
	return slices.ContainsFunc(s.Items.Data, func(it subscriptionItem) bool { return it.Price.metered() })
}

// bills reports whether there will be another invoice by itself: a regular one,
// or the last one of a cancelled subscription that bills usage.
func (s *subscription) bills() bool {
	return s.renews() || s.CancelAtPeriodEnd && s.PauseCollection == nil && !s.ended() && s.Status != string(billing.Incomplete) && s.metered()
}

// prices are those of s, now and after a pending update.
func (s *subscription) prices() []*price {
	var out []*price
	for i := range s.Items.Data {
		out = append(out, &s.Items.Data[i].Price)
	}
	if u := s.PendingUpdate; u != nil {
		for i := range u.Items {
			out = append(out, &u.Items[i].Price)
		}
	}
	return out
}

func pricesOf(subs []subscription) []*price {
	var out []*price
	for i := range subs {
		out = append(out, subs[i].prices()...)
	}
	return out
}

// readTiers reads the tiers of tiered prices that have none yet. On a
// subscription's item they would be the fifth level, which Stripe refuses to
// expand; so each distinct price is read once, for good: the tiers of a price
// never change.
func (p *Provider) readTiers(ctx context.Context, prices []*price) (map[string]tiering, error) {
	out := map[string]tiering{}
	var missing []string
	for _, pr := range prices {
		if pr.BillingScheme != "tiered" || len(pr.Tiers) > 0 {
			continue
		}
		if t, ok := p.tiers.get(pr.ID); ok {
			out[pr.ID] = t
		} else if !slices.Contains(missing, pr.ID) {
			missing = append(missing, pr.ID)
		}
	}
	var mu sync.Mutex
	err := limited(missing, func(id string) error {
		f := form{}
		f.expand("tiers")
		var full price
		a, err := p.get(ctx, &full, f, "prices", id)
		if err != nil {
			return err
		}
		if full.Object != "price" || full.ID != id || len(full.Tiers) == 0 {
			return readFault(a, errors.New("the price has no tiers"))
		}
		t := tiering{full.TiersMode, full.Tiers}
		p.tiers.put(id, t)
		mu.Lock()
		defer mu.Unlock()
		out[id] = t
		return nil
	})
	return out, err
}

// setTiers fills in what readTiers read.
func setTiers(prices []*price, read map[string]tiering) {
	for _, pr := range prices {
		if t, ok := read[pr.ID]; ok {
			pr.TiersMode, pr.Tiers = t.mode, t.tiers
		}
	}
}

func (p *Provider) fillTiers(ctx context.Context, prices []*price) error {
	read, err := p.readTiers(ctx, prices)
	setTiers(prices, read)
	return err
}

// limited calls fn for each id, maxSide at a time, and returns the first error
// in their order.
func limited(ids []string, fn func(id string) error) error {
	slots := make(chan struct{}, maxSide)
	fns := make([]func() error, len(ids))
	for i, id := range ids {
		fns[i] = func() error {
			slots <- struct{}{}
			defer func() { <-slots }()
			return fn(id)
		}
	}
	return parallel(fns...)
}

// meter is Stripe's billing.meter. How it counts never changes.
type meter struct {
	Object      string `json:"object"`
	ID          string `json:"id"`
	EventName   string `json:"event_name"`
	DisplayName string `json:"display_name"`
	Aggregation struct {
		Formula string `json:"formula"`
	} `json:"default_aggregation"`
}

// eventSummary is Stripe's billing.meter_event_summary.
type eventSummary struct {
	ID    string      `json:"id"`
	Start stamp       `json:"start_time"`
	Value json.Number `json:"aggregated_value"`
}

// meter reads a meter, once for good.
func (p *Provider) meter(ctx context.Context, id string) (meter, error) {
	if m, ok := p.meters.get(id); ok {
		return m, nil
	}
	var m meter
	a, err := p.get(ctx, &m, nil, "billing", "meters", id)
	if err != nil {
		return m, err
	}
	if m.Object != "billing.meter" || m.ID != id {
		return m, readFault(a, errors.New("the answer is not the meter"))
	}
	p.meters.put(id, m)
	return m, nil
}

// Usage implements billing.Provider. The subscription is read first, then its
// meters and tiers as far as they are not known, then all usage side by side.
//
// Stripe counts days in UTC, and takes bounds in whole minutes where it does not
// group: so a period that begins within a day is read as the rest of that day,
// the whole days, and the part of the last one.
// Source: https://docs.stripe.com/api/billing/meter-event-summary/list.
func (p *Provider) Usage(ctx context.Context, customerID string, q billing.UsageQuery) (billing.Usage, error) {
	ctx = forCustomer(ctx, customerID)
	if err := q.Check(); err != nil {
		return billing.Usage{}, err
	}
	s, ans, err := p.subscription(ctx, customerID, q.Subscription)
	if err != nil {
		return billing.Usage{}, err
	}
	if s.Items.HasMore {
		return billing.Usage{}, readFault(ans, errors.New("the subscription has more items than one answer holds"))
	}
	out := billing.Usage{UpTo: ans.now(s.TestClock)}
	var prices []*price
	var items []subscriptionItem
	var ids []string
	for i, it := range s.Items.Data {
		if it.Price.metered() && it.Price.Recurring.Meter != "" {
			items, prices = append(items, it), append(prices, &s.Items.Data[i].Price)
			if !slices.Contains(ids, it.Price.Recurring.Meter) {
				ids = append(ids, it.Price.Recurring.Meter)
			}
		}
	}
	meters := map[string]meter{}
	var mu sync.Mutex
	err = parallel(
		func() error { return p.fillTiers(ctx, prices) },
		func() error {
			return limited(ids, func(id string) error {
				m, err := p.meter(ctx, id)
				mu.Lock()
				defer mu.Unlock()
				meters[id] = m
				return err
			})
		},
	)
	if err != nil {
		return billing.Usage{}, err
	}
	for i := range items {
		items[i].Price = *prices[i]
	}
	list, err := convertItems(items, nil)
	if err != nil {
		return billing.Usage{}, readFault(ans, err)
	}
	out.Meters = make([]billing.MeterUsage, len(list))
	reads := make([]func() error, len(list))
	for i := range list {
		reads[i] = func() error {
			it := &list[i]
			m := meters[it.Price.Meter]
			from, to := q.Bounds(it)
			u := billing.MeterUsage{Meter: m.ID, Event: m.EventName, Name: m.DisplayName, Item: it.ID, Price: it.Price, From: from, To: to}
			days, err := p.days(ctx, customerID, m.ID, from, to, out.UpTo)
			if err != nil {
				return err
			}
			u.Points, u.Total = billing.UsagePoints(from, to, q.By, days, m.Aggregation.Formula == "last")
			if !items[i].Price.transformed() { // a package has another price than its units
				u.Cost = it.UsageCost(from, to, u.Total, s.Anchor.time(), billing.SubscriptionStatus(s.Status))
			}
			out.Meters[i] = u
			return nil
		}
	}
	if err := parallel(reads...); err != nil {
		return billing.Usage{}, err
	}
	if len(out.Meters) == 0 {
		out.Meters = nil
	}
	return out, nil
}

// daysAtOnce is how many days one list holds.
const daysAtOnce = 100

// days reads a customer's usage by one meter from to to, day by day, as far
// as now.
func (p *Provider) days(ctx context.Context, customerID, meter string, from, to, now time.Time) ([]billing.UsageDay, error) {
	if end := billing.Minute(now).Add(time.Minute); end.Before(to) {
		to = end
	}
	if !from.Before(to) {
		return nil, nil
	}
	const day = 24 * time.Hour
	type window struct {
		from, to time.Time
		grouped  bool
	}
	var windows []window
	first, last := from.Truncate(day), to.Truncate(day) // of UTC, as zero time is
	if !first.Equal(from) {
		first = first.Add(day)
		windows = append(windows, window{from: from, to: earlier(first, to)})
	}
	for at := first; at.Before(last); {
		next := earlier(at.Add(daysAtOnce*day), last)
		windows = append(windows, window{at, next, true})
		at = next
	}
	if last.Before(to) && !last.Before(first) {
		windows = append(windows, window{from: last, to: to})
	}
	found := make([][]billing.UsageDay, len(windows))
	reads := make([]func() error, len(windows))
	for i, w := range windows {
		reads[i] = func() (err error) {
			f := form{{"customer", customerID}, {"start_time", itoa(w.from.Unix())}, {"end_time", itoa(w.to.Unix())}, {"limit", itoa(daysAtOnce)}}
			if w.grouped {
				f.add("value_grouping_window", "day")
			}
			var l list[eventSummary]
			a, err := p.get(ctx, &l, f, "billing", "meters", meter, "event_summaries")
			if err != nil {
				return err
			}
			for _, e := range l.Data {
				v, err := decimal.NewFromString(e.Value.String())
				start := e.Start.time()
				if err != nil || start.Before(w.from) || !start.Before(w.to) {
					return readFault(a, errors.New("a summary is not one of the usage asked for"))
				}
				found[i] = append(found[i], billing.UsageDay{Start: start, Value: v, Any: true})
			}
			slices.SortFunc(found[i], func(a, b billing.UsageDay) int { return a.Start.Compare(b.Start) })
			return nil
		}
	}
	if err := parallel(reads...); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
