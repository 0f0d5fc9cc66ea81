package sandbox_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

// TestReopen runs the ledger on its real store: seeded, moved a year, closed
// and opened again, it has the same time, effects, accounts and saved answers.
func TestReopen(t *testing.T) {
	sealer, err := store.NewSealer(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var effects []sandbox.Effect
	var account billing.Account
	key := sandbox.Call{Key: "k"}
	no := false
	for round := range 2 {
		db, err := badger.Open(dir, badger.Options{Sealer: sealer, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		l, err := sandbox.Open(t.Context(), db, sandbox.Options{Now: func() time.Time { return noon }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sandbox.Seed(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if _, err := l.Advance(t.Context(), 365*day); err != nil {
				t.Fatal(err)
			}
		}
		var replayed bool
		key.Replayed = &replayed
		if _, err := l.UpdateSubscription(t.Context(), key, "sub_northwind", sandbox.SubscriptionUpdate{CancelAtPeriodEnd: &no}); err != nil || replayed != (round == 1) {
			t.Fatal(replayed, err)
		}
		now, err := l.Now(t.Context())
		if err != nil || !now.Equal(noon.Add(365*day)) {
			t.Errorf("time %s %v", now, err)
		}
		e, err := l.Effects(t.Context(), 0)
		if err != nil || len(e) < 30 {
			t.Fatal(len(e), err)
		}
		a, err := sandbox.NewProvider(l, nil, sandbox.ProviderOptions{}).Account(t.Context(), "cus_northwind")
		if err != nil {
			t.Fatal(err)
		}
		if round == 1 && (!slices.Equal(e, effects) || a.Subscriptions[0].Version != account.Subscriptions[0].Version || a.Invoices[0].ID != account.Invoices[0].ID) {
			t.Error("the ledger came back different")
		}
		effects, account = e, a
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
