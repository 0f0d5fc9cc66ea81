package store_test

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// mapTx is a transaction of Get and Put alone.
type mapTx map[string][]byte

func (m mapTx) Get(key []byte) ([]byte, error) {
	if v, ok := m[string(key)]; ok {
		return v, nil
	}
	return nil, store.ErrNotFound
}

func (m mapTx) Put(key, value []byte) error { m[string(key)] = value; return nil }

func (m mapTx) Delete(key []byte) error { delete(m, string(key)); return nil }

func (m mapTx) Scan(_, _ []byte, _ int, _ bool) ([]store.Entry, error) { return nil, nil }

func TestGuardRoundTrip(t *testing.T) {
	tx := mapTx{}
	if _, err := store.ReadGuard(tx); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no guard: %v", err)
	}
	now := time.Date(2026, 5, 4, 3, 2, 1, 7, time.FixedZone("", 3600))
	want, err := store.NewGuard(rand.Reader, now, "the store is new")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.WriteGuard(tx, want); err != nil {
		t.Fatal(err)
	}
	got, err := store.ReadGuard(tx)
	if err != nil || got != want || !got.Cutoff.Equal(now) || len(got.Generation) != 22 {
		t.Errorf("read %+v, %v, wrote %+v", got, err, want)
	}
	other, err := store.NewGuard(rand.Reader, now, "")
	if err != nil || other.Generation == want.Generation {
		t.Errorf("the same generation twice: %v", err)
	}
	if _, err := store.NewGuard(strings.NewReader("short"), now, ""); err == nil {
		t.Error("a generation out of too little randomness")
	}
}

func TestReadGuardRefusesIncomplete(t *testing.T) {
	for _, value := range []string{"", "{}", `{"generation":"x"}`, `{"cutoff":"2026-01-01T00:00:00Z"}`} {
		if g, err := store.ReadGuard(mapTx{string(store.GuardKey()): []byte(value)}); err == nil {
			t.Errorf("guard %q read as %+v", value, g)
		}
	}
}
