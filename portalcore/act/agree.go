package act

import (
	"context"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
)

// MovedError says that an action costs another sum than the one that the page
// named: nothing was sent.
type MovedError struct{ Now billing.Money }

func (e *MovedError) Error() string { return "act: the sum is not the one that was shown" }

// Agree carries out an action whose own page named the sum, so that the page
// was the preview: open invoices are paid, or paid with a method that is about
// to be entered. shown is that sum; where it is another one now, nothing is
// sent and the error is a MovedError. nonce makes the form good for one intent.
func (c *Corridor) Agree(ctx context.Context, who Who, nonce string, shown billing.Money, a billing.Action) (journal.Intent, error) {
	if !validNonce(nonce) {
		return journal.Intent{}, ErrNonce
	}
	if i, ok, err := c.existing(ctx, who, nonce); err != nil || ok {
		return i, err
	}
	if c.ReturnURL != nil && a.ReturnURL == "" {
		a.ReturnURL = c.ReturnURL(IntentID(c.Tenant, who.Hash, nonce))
	}
	look := func(who Who) (billing.Preview, billing.Account, error) {
		acct, err := c.fresh(ctx, who)
		if err != nil {
			return billing.Preview{}, billing.Account{}, err
		}
		if err := c.check(ctx, who, a, &acct); err != nil {
			return billing.Preview{}, billing.Account{}, err
		}
		p, err := c.preview(ctx, who, a, time.Time{})
		if err != nil {
			return billing.Preview{}, billing.Account{}, err
		}
		now := p.DueNow
		if a.Kind == billing.AddPaymentMethod {
			// Entering it charges nothing: what is paid afterwards does.
			if now, err = owed(&acct, a.Invoices); err != nil {
				return billing.Preview{}, billing.Account{}, err
			}
		}
		if now != shown {
			return billing.Preview{}, billing.Account{}, &MovedError{Now: now}
		}
		return p, acct, nil
	}
	if a.Kind == billing.AddPaymentMethod {
		return c.addPaymentMethod(ctx, who, nonce, a, look)
	}
	return c.decide(ctx, who, nonce, look)
}

// owed adds up what is to be paid of some debts of one currency. ErrNotFound
// where one of them is no debt of the customer's.
func owed(acct *billing.Account, invoices []string) (billing.Money, error) {
	var sum billing.Money
	for _, id := range invoices {
		v, ok := acct.Debt(id)
		if !ok || sum.Currency != "" && v.AmountRemaining.Currency != sum.Currency {
			return billing.Money{}, ErrNotFound
		}
		sum = billing.Money{Amount: sum.Amount + v.AmountRemaining.Amount, Currency: v.AmountRemaining.Currency}
	}
	return sum, nil
}
