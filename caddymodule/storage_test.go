package caddymodule

import (
	"context"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// othersTurn is a store that another process sweeps.
type othersTurn struct{ store.Store }

func (othersTurn) SweepTurn(context.Context, string, time.Time) (bool, error) { return false, nil }

// TestTurnsAreTaken holds that the store a portal gets is one that takes turns,
// through all that is put around it, and that one without turns is swept.
func TestTurnsAreTaken(t *testing.T) {
	for _, c := range []struct {
		st   store.Store
		want bool
	}{{othersTurn{}, false}, {struct{ store.Store }{}, true}} {
		st := failpointStore(&sharedStore{OpenStore: OpenStore{Store: c.st}})
		turns, ok := st.(store.Turns)
		if !ok {
			t.Fatalf("%T hides SweepTurn: every node sweeps", st)
		}
		if mine, err := turns.SweepTurn(t.Context(), "acme", time.Now()); err != nil || mine != c.want {
			t.Errorf("%T: got %v, %v, want %v", c.st, mine, err, c.want)
		}
	}
}
