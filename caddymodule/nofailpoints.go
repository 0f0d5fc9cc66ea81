//go:build !portal_test_failpoints

package caddymodule

import (
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// failpointStore and failpointProvider are where the build tag
// portal_test_failpoints lets a process die by itself; see failpoints.go. In
// every other build they do nothing.
func failpointStore(st store.Store) store.Store { return st }

func failpointProvider(p billing.Provider) billing.Provider { return p }
