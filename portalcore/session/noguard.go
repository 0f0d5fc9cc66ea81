//go:build portal_test_noguard

package session

import (
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// checkGuard lets every token pass: tests use it to show that single use rests
// on the store, not on the guard.
func checkGuard(store.Guard, link.Claims, bool, time.Time) error { return nil }
