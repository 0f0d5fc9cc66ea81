// Package sandbox is a payment provider of its own: a ledger with customers,
// prices, subscriptions, prorations, invoices, test cards and a clock that
// can be moved, in a store of its own. It is what the demo and the tests run
// on; no real money moves. It is right rather than complete: what it knows, it
// does as Stripe does it.
package sandbox

import (
	"io"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Ledger is the sandbox's book of accounts. Its methods are safe for
// concurrent use and are Stripe's API calls as Go functions.
//
// A call that changes something runs in one store transaction: the change,
// the answer saved under its idempotency key, and its Effect are there
// together or not at all. A key used again within 24 hours of ledger time with
// the same operation and parameters replays the first answer, also a decline;
// with others it is refused with an IdempotencyError. Calls refused with an
// InvalidRequest are not saved. Calls run one after another, so a key in use
// waits where Stripe answers with idempotency_key_in_use.
//
// Ledger time is Options.Now plus a durable offset that Advance moves. It has
// whole seconds and never goes back. Before any call, all that fell due by
// then is carried out in order, each at its own time.
//
// One Ledger at a time may use a store.
type Ledger struct {
	db   store.Store
	opts Options
	mu   sync.Mutex // held from a call's tick to its commit
}

// Options configure a Ledger.
type Options struct {
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Rand makes ids. Default: crypto/rand.
	Rand io.Reader
	// Logger gets one line per effect at debug level. Default: none.
	Logger *zap.Logger
}
