//go:build !portal_test_failpoints

package caddymodule

import (
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

type plainStore struct{ store.Store }

// TestFailpointsCostNothing holds that the normal build has no failpoints: what
// is used is the very store and provider.
func TestFailpointsCostNothing(t *testing.T) {
	var st store.Store = &plainStore{}
	if got := failpointStore(st); got != st {
		t.Errorf("the store is wrapped: %T", got)
	}
	var p billing.Provider = &struct{ billing.Provider }{}
	if got := failpointProvider(p); got != p {
		t.Errorf("the provider is wrapped: %T", got)
	}
}
