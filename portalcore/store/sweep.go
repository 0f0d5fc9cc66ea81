package store

import (
	"context"
	"errors"
	"time"
)

// sweepKind is the second part of the keys of the expiry index.
const sweepKind = "sweep"

// PutExpiring puts a value and notes that Sweep may delete it once at has
// passed. It is garbage collection, never the check: what must not be used
// after a time says so in its value.
func PutExpiring(tx Tx, tenant string, key, value []byte, at time.Time) error {
	if err := tx.Put(key, value); err != nil {
		return err
	}
	return tx.Put(Key(tenant, sweepKind, TimePart(at.UnixNano()), string(key)), []byte{})
}

// Turns is for stores that several processes have open at the same time, so
// that one of them sweeps. Sweep does nothing while it is another one's turn.
type Turns interface {
	// SweepTurn reports whether it is this process's turn to sweep a tenant. It
	// never is while now, or the process's own clock, is far ahead of what the
	// processes agree on: what one sweeps is gone for all.
	SweepTurn(ctx context.Context, tenant string, now time.Time) (bool, error)
}

// Sweep deletes at most limit values of a tenant whose time has passed, and
// reports how many it deleted.
func Sweep(ctx context.Context, s Store, tenant string, now time.Time, limit int) (int, error) {
	if t, ok := s.(Turns); ok {
		if mine, err := t.SweepTurn(ctx, tenant, now); !mine || err != nil {
			return 0, err
		}
	}
	prefix := Key(tenant, sweepKind)
	n := 0
	err := s.Update(ctx, func(tx Tx) error {
		n = 0
		entries, err := tx.Scan(prefix, nil, limit, false)
		if err != nil {
			return err
		}
		for _, e := range entries {
			parts, ok := Parts(e.Key)
			if !ok || len(parts) != 4 {
				return errors.New("store: malformed key in the expiry index")
			}
			if parts[2] > TimePart(now.UnixNano()) {
				return nil
			}
			if err := tx.Delete([]byte(parts[3])); err != nil {
				return err
			}
			if err := tx.Delete(e.Key); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}
