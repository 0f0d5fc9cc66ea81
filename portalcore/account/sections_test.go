package account_test

import (
	"context"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// sections answers Account with what it holds.
type sections struct {
	billing.Provider
	account billing.Account
	err     error
	reads   int
}

func (p *sections) Account(context.Context, string) (billing.Account, error) {
	p.reads++
	return p.account, p.err
}

func TestFailedSection(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := &sections{account: billing.Account{PaymentMethods: []billing.PaymentMethod{{ID: "pm"}}}}
	a, err := account.New(p, func() time.Time { return now }, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	look := func(failed, methods, reads int, stale bool) {
		t.Helper()
		s, err := a.Cached(t.Context(), "cus", 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Account.Failed) != failed || len(s.Account.PaymentMethods) != methods || p.reads != reads || s.Stale != stale {
			t.Errorf("got %d failed, %d methods, stale %v after %d reads; want %d, %d, %v, %d",
				len(s.Account.Failed), len(s.Account.PaymentMethods), s.Stale, p.reads, failed, methods, stale, reads)
		}
	}
	look(0, 1, 1, false)
	// The older copy of the section is at hand and must not be shown.
	p.account = billing.Account{Failed: []billing.Section{billing.SectionPaymentMethods}}
	now = now.Add(account.DefaultMaxAge)
	look(1, 0, 2, false)
	look(1, 0, 2, false)
	if _, err := a.Fresh(t.Context(), "cus", 1); billing.FaultOf(err) != billing.Unavailable || billing.CodeOf(err) != "section_failed" {
		t.Errorf("a decision on a part of an account: %v", err)
	}
	look(1, 0, 3, false)
	now = now.Add(4 * time.Second)
	look(1, 0, 4, false)
	now = now.Add(4 * time.Second)
	p.err = unavailable
	look(1, 0, 5, true)
	p.account, p.err = billing.Account{PaymentMethods: []billing.PaymentMethod{{ID: "pm"}}}, nil
	now = now.Add(4 * time.Second)
	look(0, 1, 6, false)
	if _, err := a.Fresh(t.Context(), "cus", 1); err != nil {
		t.Error(err)
	}
}
