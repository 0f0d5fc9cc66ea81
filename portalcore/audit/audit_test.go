package audit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

// The newest come first, one customer's and one tenant's only, and writing a
// record again does not double it.
func TestLatest(t *testing.T) {
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := time.Unix(1_700_000_000, 0).UTC()
	err = s.Update(t.Context(), func(tx store.Tx) error {
		for n := range 5 {
			r := audit.Record{ID: fmt.Sprint("r", n), Time: at.Add(time.Duration(n) * time.Second), Customer: "cus", Event: "denied"}
			for range 2 {
				if err := audit.Put(tx, "acme", r); err != nil {
					return err
				}
			}
			r.ID = "foreign"
			if err := audit.Put(tx, "acme2", r); err != nil {
				return err
			}
			r.Customer = "cus2"
			if err := audit.Put(tx, "acme", r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]string{2: "r4 r3 ", 10: "r4 r3 r2 r1 r0 "} {
		err = s.View(t.Context(), func(tx store.Tx) error {
			records, err := audit.Latest(tx, "acme", "cus", limit)
			got := ""
			for _, r := range records {
				got += r.ID + " "
			}
			if got != want {
				t.Errorf("limit %d: got %q, want %q", limit, got, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
