package pages

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	entriesPerPage = 25
	maxGrantName   = 120
)

// balance is GET /balance.
func (v *visit) balance() {
	cursor := v.form["cursor"]
	if !validCursor(cursor) {
		v.notFound()
		return
	}
	if !v.mayView(policy.ViewBalance) {
		return
	}
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("payment", snap)
	if !ok {
		return
	}
	// The time in the frame is the account's, which the balance is newer than.
	l.undated()
	ctx, cancel := context.WithTimeout(v.r.Context(), patience)
	defer cancel()
	customer := v.sess.Customer
	key := fmt.Sprintf("%s %d %s", customer, v.rec.Version, cursor)
	page, err := v.balances.get(ctx, key, func(ctx context.Context) (billing.BalancePage, error) {
		return v.Corridor.Provider.Balance(ctx, customer, cursor, entriesPerPage)
	})
	switch {
	case billing.FaultOf(err) == billing.NotFound:
		v.notFound()
		return
	case err != nil:
		if v.r.Context().Err() == nil {
			v.Log.Warn("could not read a balance", zap.String("request_id", v.id), zap.Error(err))
		}
		l.page.Body = &templates.Balance{Failed: true, RetryHref: balanceHref(cursor)}
		l.show(http.StatusServiceUnavailable)
		return
	}
	body := &templates.Balance{Balances: page.Balances, Entries: page.Entries}
	if page.Newer != "" {
		body.NewerHref = balanceHref(page.Newer)
	}
	if page.Older != "" {
		body.OlderHref = balanceHref(page.Older)
	}
	for _, g := range page.Grants {
		g.Name = clip(g.Name, maxGrantName)
		out := templates.Grant{Grant: g, State: grantState(&g, l.acct.AsOf)}
		if out.State == "usable" || out.State == "later" {
			body.Grants = append(body.Grants, out)
		} else {
			body.Past = append(body.Past, out)
		}
	}
	l.page.Body = body
	l.show(http.StatusOK)
}

func balanceHref(cursor string) string {
	if cursor == "" {
		return templates.PathBalance
	}
	return templates.PathBalance + "?cursor=" + url.QueryEscape(cursor)
}

// grantState is how a credit stands at the provider's time.
func grantState(g *billing.Grant, now time.Time) string {
	switch {
	case g.Void:
		return "void"
	case g.Left.Amount <= 0:
		return "used"
	case !g.Expires.IsZero() && !g.Expires.After(now):
		return "expired"
	case g.Effective.After(now):
		return "later"
	}
	return "usable"
}

// balanceWeight is about how many bytes a page of a balance takes.
func balanceWeight(p billing.BalancePage) uint32 {
	n := uint32(256 + len(p.Entries)*256)
	for _, g := range p.Grants {
		n += 256 + uint32(len(g.Name))
	}
	return n
}
