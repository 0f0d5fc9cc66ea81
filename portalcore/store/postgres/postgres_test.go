package postgres

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/storetest"
)

// shared is the server of all tests that do not break theirs.
var shared struct {
	once sync.Once
	srv  *pgtest.Server
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.srv != nil {
		if err := shared.srv.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// server is the shared server.
func serverOf(t testing.TB) *pgtest.Server {
	t.Helper()
	shared.once.Do(func() { shared.srv, shared.err = pgtest.New() })
	pgtest.Check(t, shared.err)
	return shared.srv
}

// fresh is the connection string of an empty database.
func fresh(t testing.TB) string {
	t.Helper()
	srv := serverOf(t)
	return srv.DSN(srv.Database(t))
}

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

func mustOpen(t testing.TB, dsn string, o Options) *Store {
	t.Helper()
	o.DSN = dsn
	if o.Sealer == nil {
		o.Sealer = sealer(t, 1)
	}
	s, err := Open(t.Context(), o)
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

func TestStore(t *testing.T) {
	dsn := fresh(t)
	storetest.Run(t, func(t *testing.T) store.Store {
		return mustOpen(t, dsn, Options{})
	}, func(t *testing.T, s store.Store) store.Store {
		if err := s.(*Store).Close(); err != nil {
			t.Fatal(err)
		}
		return mustOpen(t, dsn, Options{})
	})
}
