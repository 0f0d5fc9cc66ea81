//go:build !portal_test_noguard

package session

import (
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// checkGuard refuses a token that the store may have forgotten. The build tag
// portal_test_noguard takes it out, for tests that show single use without it;
// there is no option that does.
func checkGuard(g store.Guard, c link.Claims, own bool, now time.Time) error {
	if own {
		if c.Generation != g.Generation {
			return ErrForgotten
		}
		return nil
	}
	// iat has whole seconds, so a token of the cutoff's own second may be from
	// before it.
	if usable := g.Cutoff.Add(store.GuardSkew); !c.IssuedAt.After(usable) {
		return &TooSoonError{Wait: max(usable.Sub(now).Truncate(time.Second)+time.Second, time.Second)}
	}
	return nil
}
