package policy

import (
	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Direction says which way a change of plan goes.
type Direction string

const (
	Upgrade         Direction = "upgrade"
	Downgrade       Direction = "downgrade"
	Crossgrade      Direction = "crossgrade"
	IntervalLonger  Direction = "interval_longer"
	IntervalShorter Direction = "interval_shorter"
	// Mixed is the direction of a change whose parts go different ways. Rules
	// do not name it: each part is decided for itself.
	Mixed Direction = "mixed"
)

// Directions lists the directions that rules can name.
var Directions = []Direction{Upgrade, Downgrade, Crossgrade, IntervalLonger, IntervalShorter}

// Part is one thing that a change does: to a plan, to the interval or to the
// quantity of one item.
type Part struct {
	Direction Direction
	From, To  string // plan keys, "" for a price outside the catalogue
}

// PartsOf takes a change apart. Another plan goes by the catalogue's rank,
// else by the exact monthly amount at equal quantity, else it is a crossgrade;
// another interval is longer or shorter; more of a price is an upgrade, fewer
// a downgrade. A change that does several of these has several parts, so that
// none slips through on the back of another: a higher plan for fewer seats is
// an upgrade and a downgrade. Items that stay as they are have no part.
// It reports false where a change names an item or price that is not there.
func PartsOf(cat *billing.Catalogue, sub *billing.Subscription, changes []billing.ItemChange) ([]Part, bool) {
	var parts []Part
	for _, ch := range changes {
		var it *billing.Item
		for i := range sub.Items {
			if sub.Items[i].ID == ch.Item {
				it = &sub.Items[i]
			}
		}
		if it == nil {
			return nil, false
		}
		to := &it.Price
		if ch.Price != it.Price.ID {
			var ok bool
			if to, ok = cat.Price(ch.Price); !ok {
				return nil, false
			}
		}
		fromPlan, _ := cat.PlanOf(it.Price.ID)
		toPlan, _ := cat.PlanOf(to.ID)
		part := Part{From: key(fromPlan), To: key(toPlan)}
		add := func(d Direction) {
			part.Direction = d
			parts = append(parts, part)
		}
		if ch.Price != it.Price.ID {
			samePlan := fromPlan != nil && toPlan != nil && fromPlan.Key == toPlan.Key
			if !samePlan {
				add(planDirection(fromPlan, toPlan, &it.Price, to))
			}
			switch c := months(&it.Price).Cmp(months(to)); {
			case c < 0:
				add(IntervalLonger)
			case c > 0:
				add(IntervalShorter)
			case samePlan: // the same plan and interval at another price
				add(amountDirection(&it.Price, to))
			}
		}
		switch {
		case ch.Quantity > it.Quantity:
			add(Upgrade)
		case ch.Quantity < it.Quantity:
			add(Downgrade)
		}
	}
	return parts, true
}

// Overall is the direction of the whole: the one that all parts share, or
// Mixed, or "" where nothing changes.
func Overall(parts []Part) Direction {
	var d Direction
	for _, p := range parts {
		switch {
		case d == "":
			d = p.Direction
		case d != p.Direction:
			return Mixed
		}
	}
	return d
}

func key(p *billing.Plan) string {
	if p == nil {
		return ""
	}
	return p.Key
}

func planDirection(from, to *billing.Plan, fp, tp *billing.Price) Direction {
	if from != nil && to != nil && from.Rank != to.Rank {
		if to.Rank > from.Rank {
			return Upgrade
		}
		return Downgrade
	}
	return amountDirection(fp, tp)
}

func amountDirection(fp, tp *billing.Price) Direction {
	if fp.Currency != tp.Currency {
		return Crossgrade
	}
	// a/x against b/y without dividing: a*y against b*x.
	switch c := fp.UnitAmount.Mul(months(tp)).Cmp(tp.UnitAmount.Mul(months(fp))); {
	case c < 0:
		return Upgrade
	case c > 0:
		return Downgrade
	}
	return Crossgrade
}

// months is the length of a price's period in months of 1/12 year; days are
// 1/365 year, so that every pair of intervals can be compared exactly.
func months(p *billing.Price) decimal.Decimal {
	n := decimal.NewFromInt(int64(max(p.IntervalCount, 1)))
	// In units of 1/365 month: a month is 365, a year 12*365, a day 12.
	switch p.Interval {
	case billing.Year:
		return n.Mul(decimal.NewFromInt(12 * 365))
	case billing.Week:
		return n.Mul(decimal.NewFromInt(7 * 12))
	case billing.Day:
		return n.Mul(decimal.NewFromInt(12))
	}
	return n.Mul(decimal.NewFromInt(365))
}
