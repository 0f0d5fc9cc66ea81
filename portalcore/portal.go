// Package portalcore is the billing portal as a plain net/http handler. It
// knows nothing of the server it runs in.
package portalcore

import (
	"context"
	"net/http"
)

// Portal serves one tenant.
type Portal struct{}

// New checks o and builds a portal. It does no I/O; Start does.
func New(o Options) (*Portal, error) { return nil, nil }

// CheckTenant is the part of New that needs neither store nor provider: what
// can be said of a config before anything is opened.
func CheckTenant(t Tenant) error { return nil }

// Start reads or makes the tenant's keys, resolves the catalogue against the
// provider where it can be reached (a plan whose price is not there is an
// error; a provider that does not answer is a warning, and the catalogue is
// resolved later), and recovers what a dead process left behind. It returns
// before recovery has finished.
func (p *Portal) Start(ctx context.Context) error { return nil }

// Run does the portal's background work (recovery, sweeping, key rotation)
// until ctx ends.
func (p *Portal) Run(ctx context.Context) {}

// ServeHTTP answers every request to the tenant's origin.
func (p *Portal) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// Intents lists the tenant's intents, newest last, for operators.
func (p *Portal) Intents(ctx context.Context) (any, error) { return nil, nil }
