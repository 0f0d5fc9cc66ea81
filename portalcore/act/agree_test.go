package act

import (
	"errors"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

// TestAgree carries out what a page named the sum of, once, and nothing else.
func TestAgree(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	usd := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "usd"} }
	for name, shown := range map[string]billing.Money{"another sum": usd(999), "another currency": {Amount: 1000, Currency: "eur"}, "no sum": {}} {
		var moved *MovedError
		if _, err := c.Agree(t.Context(), who(1), nonce(t, c), shown, change(1)); !errors.As(err, &moved) || moved.Now != usd(1000) {
			t.Errorf("%s: %v, want a MovedError with 10.00", name, err)
		}
	}
	viewer := who(1)
	viewer.Role = policy.Viewer
	if _, err := c.Agree(t.Context(), viewer, nonce(t, c), usd(1000), change(1)); !errors.Is(err, policy.ErrDenied) {
		t.Errorf("a viewer: %v", err)
	}
	if _, err := c.Agree(t.Context(), who(1), "x", usd(1000), change(1)); !errors.Is(err, ErrNonce) {
		t.Errorf("a malformed nonce: %v", err)
	}
	if len(w.fake.effects) != 0 {
		t.Fatalf("effects %v", w.fake.effects)
	}
	n := nonce(t, c)
	i, err := c.Agree(t.Context(), who(1), n, usd(1000), change(1))
	if err != nil || i.State != journal.Succeeded || i.ID != IntentID(tenant, who(1).Hash, n) {
		t.Fatalf("%+v, %v", i, err)
	}
	// Posted again, with whatever sum: the same intent.
	if again, err := c.Agree(t.Context(), who(1), n, usd(5), change(1)); err != nil || again.ID != i.ID || len(w.fake.effects) != 1 {
		t.Errorf("%+v, %v, effects %v", again, err, w.fake.effects)
	}
}

// TestCardPageForEachPurpose holds that a card page that was opened for one
// thing is not where the customer enters a card for another.
func TestCardPageForEachPurpose(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	w.fake.steps = func(customer string, _ billing.Action) []billing.Step {
		return []billing.Step{{Kind: "await", Object: customer}, {Kind: "change", Object: customer, Needs: []string{"payment_method"}}}
	}
	mine := who(1)
	mine.Expires = w.clock.Now().Add(8 * time.Hour)
	add := func(use billing.Use) journal.Intent {
		t.Helper()
		i, err := c.Agree(t.Context(), mine, nonce(t, c), billing.Money{}, billing.Action{Kind: billing.AddPaymentMethod, Use: use})
		if err != nil || i.State != journal.AwaitingCustomer || i.Action.Use != use {
			t.Fatalf("%+v, %v", i, err)
		}
		return i
	}
	everything := add(billing.UseEverything)
	if add(billing.UseNothing).ID == everything.ID {
		t.Error("a card that is to be kept would pay everything")
	}
}

func TestOwed(t *testing.T) {
	invoice := func(id, currency string, n int64) billing.Invoice {
		return billing.Invoice{ID: id, Status: billing.InvoiceOpen, AmountRemaining: billing.Money{Amount: n, Currency: currency}}
	}
	acct := &billing.Account{Debts: []billing.Invoice{invoice("in_1", "eur", 100), invoice("in_2", "eur", 23), invoice("in_3", "usd", 5)}}
	if sum, err := owed(acct, []string{"in_1", "in_2"}); err != nil || sum != (billing.Money{Amount: 123, Currency: "eur"}) {
		t.Errorf("%v, %v", sum, err)
	}
	for _, ids := range [][]string{{"in_1", "in_3"}, {"in_4"}} {
		if _, err := owed(acct, ids); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v: %v", ids, err)
		}
	}
}
