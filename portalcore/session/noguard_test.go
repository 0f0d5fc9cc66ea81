//go:build portal_test_noguard

package session_test

import (
	"crypto/rand"
	"errors"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// TestGuardIsOut holds that the build tag really takes the amnesia guard out,
// so that the tests run with it show what the store does alone.
func TestGuardIsOut(t *testing.T) {
	m, c := newManager(t)
	before := own(t, m, "cus_1")
	guard, err := store.NewGuard(rand.Reader, c.Now(), "a test")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Store.Update(t.Context(), func(tx store.Tx) error { return store.WriteGuard(tx, guard) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Redeem(t.Context(), before, true, "", ""); err != nil {
		t.Errorf("a link of the generation before: %v", err)
	}
	if _, _, err := m.Redeem(t.Context(), before, true, "", ""); !errors.Is(err, session.ErrUsed) {
		t.Errorf("again: got %v, want ErrUsed", err)
	}
}
