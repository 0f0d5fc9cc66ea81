package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Formula is Stripe's billing.meter default_aggregation.formula.
type Formula string

// How a meter makes one number of many events.
const (
	FormulaSum   Formula = "sum"
	FormulaCount Formula = "count"
	FormulaLast  Formula = "last"
)

// Meter is Stripe's billing.meter.
type Meter struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	EventName   string    `json:"event_name"` // unique
	DisplayName string    `json:"display_name"`
	Formula     Formula   `json:"formula"`
}

// MeterParams make a meter.
type MeterParams struct {
	ID          string  `json:"id,omitempty"`
	EventName   string  `json:"event_name"`
	DisplayName string  `json:"display_name"`
	Formula     Formula `json:"formula,omitempty"` // default FormulaSum
}

// UsageEvent is Stripe's billing.meter_event.
type UsageEvent struct {
	EventName string `json:"event_name"`
	Customer  string `json:"customer"`
	// Value is not below zero, with at most 12 decimals.
	Value decimal.Decimal `json:"value"`
	// Timestamp is in the last 35 days and not in the future. Zero: now.
	Timestamp time.Time `json:"timestamp,omitzero"`
}

// UsageWindow is Stripe's value_grouping_window.
type UsageWindow string

// Windows begin with the hour or with the day in UTC.
const (
	WindowWhole UsageWindow = ""
	WindowHour  UsageWindow = "hour"
	WindowDay   UsageWindow = "day"
)

// UsageSummary is Stripe's billing.meter_event_summary: the usage in
// [Start, End).
type UsageSummary struct {
	Start, End time.Time
	Value      decimal.Decimal
}

const (
	// lateness is how old a reported event may be
	// (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
	lateness = 35 * 24 * time.Hour
	maxTiers = 100
)

var maxValue = decimal.New(1, 15)

// unitAmount reports whether d can be a unit amount.
func unitAmount(d decimal.Decimal) bool {
	return !d.IsNegative() && !d.GreaterThan(decimal.NewFromInt(99_999_999)) && d.Equal(d.Round(12))
}

// checkTiers checks the tiers and the meter of a new price.
func (w *work) checkTiers(p *Price) error {
	if p.Meter != "" {
		if _, err := get[Meter](w, "meter", p.Meter); err != nil {
			return err
		}
	}
	if len(p.Tiers) == 0 && p.TiersMode == "" {
		return nil
	}
	switch {
	case p.TiersMode != billing.Graduated && p.TiersMode != billing.Volume:
		return invalid("tiers_mode", "Invalid tiers_mode: must be one of graduated or volume")
	case len(p.Tiers) == 0 || len(p.Tiers) > maxTiers:
		return invalid("tiers", "A tiered price has 1 to %d tiers.", maxTiers)
	case !p.UnitAmount.IsZero():
		return invalid("unit_amount_decimal", "A tiered price has its amounts in its tiers.")
	}
	var below int64
	for i, t := range p.Tiers {
		last := i == len(p.Tiers)-1
		switch {
		case last != (t.UpTo == 0) || !last && t.UpTo <= below:
			return invalid(fmt.Sprintf("tiers[%d][up_to]", i), "Tiers go up, and only the last one has no end.")
		case !unitAmount(t.UnitAmount) || !unitAmount(t.FlatAmount):
			return invalid(fmt.Sprintf("tiers[%d]", i), "An amount is 0 to 99999999 with at most 12 decimals.")
		}
		below = t.UpTo
	}
	return nil
}

// terms are p as the arithmetic of billing takes it.
func (p *Price) terms() *billing.Price {
	return &billing.Price{Currency: p.Currency, UnitAmount: p.UnitAmount, Tiers: p.Tiers, TiersMode: p.TiersMode}
}

var whole = big.NewRat(1, 1)

// left is the share of the period that is left at a moment, by the second.
func (it SubscriptionItem) left(at time.Time) *big.Rat {
	return big.NewRat(it.CurrentPeriodEnd.Unix()-at.Unix(), it.CurrentPeriodEnd.Unix()-it.CurrentPeriodStart.Unix())
}

// lines are what quantity units of it cost for a share of a period: one line,
// or one for each tier and one for each flat amount, each rounded by itself.
// about is "" for a whole period, else "Unused time" or "Remaining time".
func (it SubscriptionItem) lines(about string, quantity decimal.Decimal, share *big.Rat, start, end time.Time) []InvoiceLine {
	name, per := it.Price.ProductName, every(it.Price)
	charges := it.Price.terms().Charges(quantity)
	list := make([]InvoiceLine, 0, len(charges))
	for _, c := range charges {
		amount := new(big.Rat).Mul(c.Unit.Rat(), c.Quantity.Rat())
		at := formatAmount(c.Unit, it.Price.Currency)
		d := fmt.Sprintf("%s × %s (at %s / %s)", c.Quantity, name, at, per)
		switch {
		case c.Flat:
			d = fmt.Sprintf("%s (Tier %d, flat amount, at %s / %s)", name, c.Tier, at, per)
		case c.Tier > 0:
			d = fmt.Sprintf("%s × %s (Tier %d at %s / %s)", c.Quantity, name, c.Tier, at, per)
		}
		if about != "" {
			d = fmt.Sprintf("%s on %s × %s after %s", about, c.Quantity, name, start.Format("2 Jan 2006"))
			if c.Tier > 0 {
				d += fmt.Sprintf(" (Tier %d)", c.Tier)
			}
		}
		list = append(list, InvoiceLine{
			Description: d, Price: it.Price.ID, Product: it.Price.Product, UnitAmount: c.Unit, Quantity: c.Quantity.IntPart(), QuantityDecimal: c.Quantity,
			Amount: round(amount.Mul(amount, share)), Proration: about != "", SubscriptionItem: it.ID, Metered: it.Price.Meter != "", PeriodStart: start, PeriodEnd: end,
		})
	}
	return list
}

// quantity is l's with its fraction. Lines from before there were fractions
// have none.
func (l *InvoiceLine) quantity() string {
	if l.QuantityDecimal.IsZero() {
		return fmt.Sprint(l.Quantity)
	}
	return l.QuantityDecimal.String()
}

// meteredLines are the lines for what s used in its current period so far: each
// metered item's, at the price as it is, also for nothing. A trial's usage is
// free.
func (w *work) meteredLines(s *Subscription) ([]InvoiceLine, error) {
	var list []InvoiceLine
	if s.Status == billing.Trialing {
		return nil, nil
	}
	for _, it := range s.Items {
		if it.Price.Meter == "" {
			continue
		}
		m, err := get[Meter](w, "meter", it.Price.Meter)
		if err != nil {
			return nil, err
		}
		t, err := w.usage(m, s.Customer, it.CurrentPeriodStart, it.CurrentPeriodEnd)
		if err != nil {
			return nil, err
		}
		list = append(list, it.lines("", t.value(m.Formula), whole, it.CurrentPeriodStart, it.CurrentPeriodEnd)...)
	}
	return list, nil
}

// metered reports whether s bills usage.
func (s *Subscription) metered() bool {
	return slices.ContainsFunc(s.Items, func(it SubscriptionItem) bool { return it.Price.Meter != "" })
}

// sellable refuses a change to another price that is tiered or metered: the
// catalogue sells by the unit. One that an item has already can stay.
func (w *work) sellable(from, to string) error {
	if from == to {
		return nil
	}
	p, found, err := lookup[Price](w.tx, "price", to)
	if err == nil && found && (p.Meter != "" || len(p.Tiers) > 0) {
		err = refused("not_changeable", to, "the price cannot be sold")
	}
	return err
}

// endOfPeriod ends a cancelled s, and bills the usage of its last period.
func (w *work) endOfPeriod(s *Subscription) error {
	used, err := w.meteredLines(s)
	if err != nil {
		return err
	}
	if err := w.end(s, billing.Canceled, "subscription.end"); err != nil || len(used) == 0 {
		return err
	}
	cus, err := get[Customer](w, "customer", s.Customer)
	if err != nil {
		return err
	}
	inv := w.draft(&cus, s, used, ReasonSubscriptionCycle)
	if _, err := w.issue(&cus, s, &inv, false, ""); err != nil {
		return err
	}
	s.LatestInvoice = inv.ID
	if err := w.putInvoice(&inv); err != nil {
		return err
	}
	if err := write(w.tx, "customer", cus.ID, cus); err != nil {
		return err
	}
	return w.putSubscription(s)
}

// CreateMeter is POST /v1/billing/meters.
func (l *Ledger) CreateMeter(ctx context.Context, c Call, p MeterParams) (Meter, error) {
	return change(ctx, l, c, "meter.create", p, func(w *work) (Meter, error) { return w.createMeter(p) })
}

func (w *work) createMeter(p MeterParams) (Meter, error) {
	m := Meter{ID: p.ID, Created: w.now, EventName: p.EventName, DisplayName: p.DisplayName, Formula: p.Formula}
	if m.ID == "" {
		m.ID = w.id("mtr")
	}
	if m.Formula == "" {
		m.Formula = FormulaSum
	}
	switch {
	case m.EventName == "" || len(m.EventName) > 100:
		return m, invalid("event_name", "An event name has 1 to 100 characters.")
	case m.DisplayName == "" || len(m.DisplayName) > 250:
		return m, invalid("display_name", "A display name has 1 to 250 characters.")
	case m.Formula != FormulaSum && m.Formula != FormulaCount && m.Formula != FormulaLast:
		return m, invalid("default_aggregation[formula]", "Invalid formula: %q.", m.Formula)
	}
	for kind, id := range map[string]string{"meter": m.ID, "meter_event_name": m.EventName} {
		if _, err := w.tx.Get(store.Key("sandbox", kind, id)); err == nil {
			return m, exists(kind, id)
		}
	}
	if err := write(w.tx, "meter_event_name", m.EventName, m.ID); err != nil {
		return m, err
	}
	if err := write(w.tx, "meter", m.ID, m); err != nil {
		return m, err
	}
	return m, w.effect("meter.create", "", m.ID)
}

// Meter reads a meter.
func (l *Ledger) Meter(ctx context.Context, id string) (Meter, error) {
	return read(ctx, l, func(w *work) (Meter, error) { return get[Meter](w, "meter", id) })
}

// tally is what is kept of the events of one minute: enough for each formula.
// Minutes are as exactly as meters count, so billing periods begin and end with
// one.
type tally struct {
	Sum   decimal.Decimal `json:"sum"`
	Count int64           `json:"count"`
	Last  decimal.Decimal `json:"last"`
	At    time.Time       `json:"at"` // of Last
}

func (t *tally) add(u tally) {
	t.Sum, t.Count = t.Sum.Add(u.Sum), t.Count+u.Count
	if !u.At.Before(t.At) {
		t.Last, t.At = u.Last, u.At
	}
}

func (t *tally) value(f Formula) decimal.Decimal {
	switch f {
	case FormulaCount:
		return decimal.NewFromInt(t.Count)
	case FormulaLast:
		return t.Last
	}
	return t.Sum
}

// usageHour is the usage of a customer by one meter in one hour: a record of
// bounded size however many events there are.
type usageHour struct {
	Start   time.Time     `json:"start"`
	Minutes map[int]tally `json:"minutes"`
}

// ReportUsage is POST /v1/billing/meter_events, for several events of which all
// are taken or none. It leaves no effect: Stripe tells nobody of usage either.
func (l *Ledger) ReportUsage(ctx context.Context, c Call, events ...UsageEvent) error {
	_, err := change(ctx, l, c, "meter_event.create", events, func(w *work) (struct{}, error) { return struct{}{}, w.reportUsage(events) })
	return err
}

func (w *work) reportUsage(events []UsageEvent) error {
	if len(events) == 0 || len(events) > 1000 {
		return invalid("events", "1 to 1000 events are taken at once.")
	}
	hours := map[string]*usageHour{}
	for _, e := range events {
		at := e.Timestamp.UTC().Truncate(time.Second)
		if e.Timestamp.IsZero() {
			at = w.now
		}
		meter, found, err := lookup[string](w.tx, "meter_event_name", e.EventName)
		switch {
		case err != nil:
			return err
		case !found:
			return missing("event_name", e.EventName)
		case e.Value.IsNegative() || e.Value.GreaterThan(maxValue) || !e.Value.Equal(e.Value.Round(12)):
			return invalid("payload[value]", "A value is 0 to %s with at most 12 decimals.", maxValue)
		case at.After(w.now) || at.Before(w.now.Add(-lateness)):
			return invalid("timestamp", "The timestamp must be within the past 35 days and not in the future.")
		}
		if _, err := get[Customer](w, "customer", e.Customer); err != nil {
			return err
		}
		start := at.Truncate(time.Hour)
		key := store.Key("sandbox", "usage", meter, e.Customer, store.TimePart(start.UnixNano()))
		h := hours[string(key)]
		if h == nil {
			h = &usageHour{Start: start, Minutes: map[int]tally{}}
			if raw, err := w.tx.Get(key); err == nil {
				err = json.Unmarshal(raw, h)
				if err != nil {
					return err
				}
			}
			hours[string(key)] = h
		}
		t := h.Minutes[at.Minute()]
		t.add(tally{Sum: e.Value, Count: 1, Last: e.Value, At: at})
		h.Minutes[at.Minute()] = t
	}
	keys := make([]string, 0, len(hours))
	for k := range hours {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		raw, err := json.Marshal(hours[k])
		if err != nil {
			return err
		}
		if err := w.tx.Put([]byte(k), raw); err != nil {
			return err
		}
	}
	return nil
}

// eachMinute calls fn with the usage minute by minute, in order, of the minutes
// that begin in those of from to to, which are the bounds without their
// seconds.
func (w *work) eachMinute(m Meter, customer string, from, to time.Time, fn func(time.Time, tally)) error {
	from, to = billing.Minute(from), billing.Minute(to)
	prefix := store.Key("sandbox", "usage", m.ID, customer)
	first := store.Key("sandbox", "usage", m.ID, customer, store.TimePart(from.Truncate(time.Hour).UnixNano()))
	return scan(w.tx, prefix, first, false, func(e store.Entry) (bool, error) {
		var h usageHour
		if err := json.Unmarshal(e.Value, &h); err != nil {
			return false, err
		}
		for minute := range 60 {
			at := h.Start.Add(time.Duration(minute) * time.Minute)
			if t, ok := h.Minutes[minute]; ok && !at.Before(from) && at.Before(to) {
				fn(at, t)
			}
		}
		return h.Start.Before(to), nil
	})
}

// usage is a customer's usage between from and to.
func (w *work) usage(m Meter, customer string, from, to time.Time) (tally, error) {
	var sum tally
	err := w.eachMinute(m, customer, from, to, func(_ time.Time, t tally) { sum.add(t) })
	return sum, err
}

// UsageSummaries is GET /v1/billing/meters/{id}/event_summaries, oldest first:
// one for each window in which there was usage.
func (l *Ledger) UsageSummaries(ctx context.Context, meter, customer string, from, to time.Time, window UsageWindow) ([]UsageSummary, error) {
	unit := map[UsageWindow]time.Duration{WindowWhole: time.Minute, WindowHour: time.Hour, WindowDay: 24 * time.Hour}[window]
	switch {
	case unit == 0:
		return nil, invalid("value_grouping_window", "Invalid value_grouping_window: must be one of day or hour")
	case !from.Equal(from.Truncate(unit)) || !to.Equal(to.Truncate(unit)) || !from.Before(to):
		return nil, invalid("start_time", "start_time and end_time must be in order and aligned with the %s in UTC.", strings.TrimSpace("minute "+string(window)))
	}
	return read(ctx, l, func(w *work) ([]UsageSummary, error) {
		m, err := get[Meter](w, "meter", meter)
		if err != nil {
			return nil, err
		}
		if _, err := get[Customer](w, "customer", customer); err != nil {
			return nil, err
		}
		var list []UsageSummary
		var sum tally
		err = w.eachMinute(m, customer, from, to, func(at time.Time, t tally) {
			start, end := from.UTC(), to.UTC()
			if window != WindowWhole {
				start = at.Truncate(unit)
				end = start.Add(unit)
			}
			if len(list) == 0 || !list[len(list)-1].Start.Equal(start) {
				list, sum = append(list, UsageSummary{Start: start, End: end}), tally{}
			}
			sum.add(t)
			list[len(list)-1].Value = sum.value(m.Formula)
		})
		return list, err
	})
}

// Usage implements billing.Provider.
func (p *Provider) Usage(ctx context.Context, customer string, q billing.UsageQuery) (billing.Usage, error) {
	if err := q.Check(); err != nil {
		return billing.Usage{}, err
	}
	if err := p.reading(ctx, "account"); err != nil {
		return billing.Usage{}, err
	}
	u, err := read(ctx, p.ledger, func(w *work) (billing.Usage, error) {
		u := billing.Usage{UpTo: w.now}
		s, err := get[Subscription](w, "subscription", q.Subscription)
		if err != nil {
			return u, err
		}
		if s.Customer != customer {
			return u, notFound(q.Subscription)
		}
		items, err := w.items(s.Items)
		if err != nil {
			return u, err
		}
		for i := range items {
			if !items[i].Price.Metered {
				continue
			}
			mu, err := w.meterUsage(&s, &items[i], q)
			if err != nil {
				return u, err
			}
			u.Meters = append(u.Meters, mu)
		}
		return u, nil
	})
	return u, readError(err)
}

func (w *work) meterUsage(s *Subscription, it *billing.Item, q billing.UsageQuery) (billing.MeterUsage, error) {
	m, err := get[Meter](w, "meter", it.Price.Meter)
	if err != nil {
		return billing.MeterUsage{}, err
	}
	from, to := q.Bounds(it)
	u := billing.MeterUsage{Meter: m.ID, Event: m.EventName, Name: m.DisplayName, Item: it.ID, Price: it.Price, From: from, To: to}
	var days []billing.UsageDay
	var sum tally
	err = w.eachMinute(m, s.Customer, from, to, func(at time.Time, t tally) {
		day := at.Truncate(24 * time.Hour)
		if len(days) == 0 || days[len(days)-1].Start.Before(day) {
			days, sum = append(days, billing.UsageDay{Any: true}), tally{}
		}
		sum.add(t)
		days[len(days)-1].Start, days[len(days)-1].Value = at, sum.value(m.Formula)
	})
	if err != nil {
		return u, err
	}
	u.Points, u.Total = billing.UsagePoints(from, to, q.By, days, m.Formula == FormulaLast)
	u.Cost = it.UsageCost(from, to, u.Total, s.BillingCycleAnchor, s.Status)
	return u, nil
}
