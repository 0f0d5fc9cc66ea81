package badger

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	bdb "github.com/dgraph-io/badger/v4"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/storetest"
)

func sealer(t testing.TB, current byte, previous ...byte) *store.Sealer {
	t.Helper()
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, store.SealKeySize) }
	var old [][]byte
	for _, b := range previous {
		old = append(old, key(b))
	}
	s, err := store.NewSealer(key(current), old...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustOpen(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	if o.Sealer == nil {
		o.Sealer = sealer(t, 1)
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// fill writes 256 KiB, in an order that makes tables overlap.
func fill(t testing.TB, s *Store, i int) {
	t.Helper()
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for j := range 8 {
			if err := tx.Put(store.Key("fill", store.TimePart(int64(i*7919%5000)), store.TimePart(int64(j))), make([]byte, 32<<10)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	for name, nosync := range map[string]bool{"Sync": false, "NoSync": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{Sealer: sealer(t, 1), Now: time.Now, NoSync: nosync}
			storetest.Run(t, func(t *testing.T) store.Store {
				return mustOpen(t, t.TempDir(), o)
			}, func(t *testing.T, s store.Store) store.Store {
				mustClose(t, s.(*Store))
				return mustOpen(t, s.(*Store).dir, o)
			})
		})
	}
}

// A commit whose reply is lost may have been made or not.
func TestLostCommits(t *testing.T) {
	for name, applied := range map[string]bool{"applied": true, "not applied": false} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, t.TempDir(), Options{})
			var broken atomic.Bool
			commit := s.commit
			s.commit = func(txn *bdb.Txn) error {
				if !broken.Load() {
					return commit(txn)
				}
				if applied {
					if err := commit(txn); err != nil {
						return err
					}
				}
				return errors.New("input/output error")
			}
			storetest.Crash(t, s, func() { broken.Store(true) }, func() store.Store {
				mustClose(t, s)
				return mustOpen(t, s.dir, Options{})
			})
		})
	}
}
