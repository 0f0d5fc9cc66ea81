package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
	if dsn := os.Getenv(childEnv); dsn != "" {
		child(dsn)
		return
	}
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

// raw runs SQL beside the store.
func raw(t testing.TB, dsn, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// ask returns what a query answers in its first column.
func ask[T any](t testing.TB, dsn, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func guardOf(t testing.TB, s store.Store) store.Guard {
	t.Helper()
	var g store.Guard
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		g, err = store.ReadGuard(tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func put(ctx context.Context, s store.Store, key, value string) error {
	return s.Update(ctx, func(tx store.Tx) error { return tx.Put(store.Key(key), []byte(value)) })
}

// get returns the value of key, "<none>" where there is none.
func get(t testing.TB, s store.Store, key string) string {
	t.Helper()
	values, err := s.GetAll(t.Context(), store.Key(key))
	if err != nil {
		t.Fatal(err)
	}
	if values[0] == nil {
		return "<none>"
	}
	return string(values[0])
}

// eventually waits for what happens by itself.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 300 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("not within 15 s: %s", what)
}
