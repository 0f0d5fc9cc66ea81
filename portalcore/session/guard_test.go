//go:build !portal_test_noguard

package session_test

import (
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func TestGuardRefusesWhatMayBeForgotten(t *testing.T) {
	m, c := newManager(t)
	before := own(t, m, "cus_1")
	c.advance(10 * time.Second)
	guard, err := store.NewGuard(rand.Reader, c.Now(), "a test")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Store.Update(t.Context(), func(tx store.Tx) error { return store.WriteGuard(tx, guard) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Redeem(t.Context(), before, true, "", ""); !errors.Is(err, session.ErrForgotten) {
		t.Errorf("an own link of the generation before: got %v, want ErrForgotten", err)
	}
	if _, _, err := m.Redeem(t.Context(), own(t, m, "cus_1"), true, "", ""); err != nil {
		t.Errorf("the first own link of the new generation: %v", err)
	}
	for _, tt := range []struct {
		iat  time.Duration // after the cutoff
		wait time.Duration // 0: accepted
	}{
		{-time.Hour, 6 * time.Second}, {0, 6 * time.Second}, {store.GuardSkew, 6 * time.Second}, {store.GuardSkew + time.Second, 0},
	} {
		vendor := own(t, m, "cus_1")
		vendor.Issuer, vendor.Generation = "acme", ""
		vendor.IssuedAt = c.Now().Add(tt.iat)
		_, _, err := m.Redeem(t.Context(), vendor, false, "", "")
		var soon *session.TooSoonError
		switch {
		case tt.wait == 0 && err != nil:
			t.Errorf("iat %s after the cutoff: %v", tt.iat, err)
		case tt.wait != 0 && (!errors.As(err, &soon) || !errors.Is(err, session.ErrForgotten) || soon.Wait != tt.wait):
			t.Errorf("iat %s after the cutoff: got %v, want to be told to wait %s", tt.iat, err, tt.wait)
		}
	}
}
