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

// Sweep deletes at most limit values of a tenant whose time has passed, and
// reports how many it deleted.
func Sweep(ctx context.Context, s Store, tenant string, now time.Time, limit int) (int, error) {
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
