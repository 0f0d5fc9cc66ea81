package pages

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	// maxCards is how many subscriptions the overview shows.
	maxCards = 12
	// subscriptionsPerPage is how many a page of all of them shows.
	subscriptionsPerPage = 25
)

// urgency orders the states in which a subscription wants something of the
// customer, the most urgent first.
var urgency = []string{"past_due", "unpaid", "incomplete", "waiting", "checking", "ending"}

// byUrgency sorts subscriptions: those that want something first, then by
// their next renewal.
func (l *look) byUrgency(subs []*billing.Subscription) []*billing.Subscription {
	rank := make(map[string]int, len(subs))
	for _, s := range subs {
		if rank[s.ID] = slices.Index(urgency, l.status(s)); rank[s.ID] < 0 {
			rank[s.ID] = len(urgency)
		}
	}
	out := slices.Clone(subs)
	slices.SortStableFunc(out, func(a, b *billing.Subscription) int {
		if d := rank[a.ID] - rank[b.ID]; d != 0 {
			return d
		}
		return a.PeriodEnd().Compare(b.PeriodEnd())
	})
	return out
}

func (l *look) cards(subs []*billing.Subscription) ([]templates.Subscription, error) {
	out := make([]templates.Subscription, 0, len(subs))
	for _, s := range subs {
		card, err := l.subscription(s)
		if err != nil {
			return nil, err
		}
		out = append(out, card)
	}
	return out, nil
}

// subscriptions is GET /subscriptions: all of them, a page at a time.
func (v *visit) subscriptions() {
	n := 1
	if p, ok := v.form["page"]; ok {
		var err error
		if n, err = strconv.Atoi(p); err != nil || n < 1 || n > 10_000 || strconv.Itoa(n) != p {
			v.notFound()
			return
		}
	}
	if v.refreshed() {
		return
	}
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("overview", snap)
	if !ok {
		return
	}
	subs := l.byUrgency(l.going())
	from := (n - 1) * subscriptionsPerPage
	if from >= len(subs) && n > 1 {
		v.notFound()
		return
	}
	to := min(from+subscriptionsPerPage, len(subs))
	cards, err := l.cards(subs[from:to])
	if err != nil {
		v.failed(err)
		return
	}
	body := &templates.Subscriptions{Subscriptions: cards, From: min(from+1, to), To: to, All: len(subs)}
	href := func(n int) string { return templates.PathPlans + "?page=" + strconv.Itoa(n) }
	if n > 1 {
		body.BackHref = href(n - 1)
	}
	if to < len(subs) {
		body.OnHref = href(n + 1)
	}
	l.page.Body = body
	l.show(http.StatusOK)
}
