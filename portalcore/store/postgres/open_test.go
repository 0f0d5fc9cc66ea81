package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

func TestCheckServer(t *testing.T) {
	for _, tc := range []struct {
		version string
		number  int
		want    string
	}{
		{"PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc", 150018, ""},
		{"PostgreSQL 13.0 on x86_64", 130000, ""},
		{"PostgreSQL 12.22 on x86_64", 120022, "the server is PostgreSQL 12, at least 13 is needed"},
		{"CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu, built 2024/05/15)", 130000, "the server is CockroachDB, which speaks"},
		{"PostgreSQL 15.2-YB-2025.1.0.0-b0 on x86_64-pc-linux-gnu", 150002, "the server is YugabyteDB, which speaks"},
		{"PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc, Redshift 1.0.77467", 80002, "which speaks"},
		{"CrateDB 5.1 (built x)", 140000, "the server is CrateDB 5.1, which speaks"},
	} {
		err := checkServer(tc.version, tc.number)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.version, err, tc.want)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct {
		dsn, name string
		exposed   bool
	}{
		{"postgres://u:CANARY@localhost/db", "localhost:5432/db", false},
		{"postgres://u@127.0.0.1:6432/db?sslmode=disable", "127.0.0.1:6432/db", false},
		{"postgres://u@[::1]/db", "[::1]:5432/db", false},
		{"host=/run/postgresql dbname=db", "/run/postgresql:5432/db", false},
		{"postgres://u@db.internal/db", "db.internal:5432/db", true}, // sslmode=prefer
		{"postgres://u@db.internal/db?sslmode=disable", "db.internal:5432/db", true},
		{"postgres://u@db.internal/db?sslmode=require", "db.internal:5432/db", true},
		{"postgres://u@db.internal/db?sslmode=verify-ca", "db.internal:5432/db", false},
		{"postgres://u@db.internal/db?sslmode=verify-full", "db.internal:5432/db", false},
		{"postgres://u@a:1,b:2/db?sslmode=verify-full", "a:1,b:2/db", false},
		{"postgres://u@localhost:1,b:2/db?sslmode=prefer", "localhost:1,b:2/db", true},
	} {
		got, err := ParseTarget(tc.dsn)
		if err != nil || got != (Target{tc.name, tc.exposed}) {
			t.Errorf("%s: %+v, %v, want %s, exposed %v", tc.dsn, got, err, tc.name, tc.exposed)
		}
	}
	for _, dsn := range []string{"postgres://u:CANARY/x@db/db", "CANARY", "host=db password='CANARY", "postgres://u:CANARY@db/db?sslmode=CANARY", "postgres://u:CANARY@db:x/db"} {
		if got, err := ParseTarget(dsn); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %+v, %v", dsn, got, err)
		}
	}
}

// FuzzParseTarget holds that no string that an operator may have put a
// password into comes back.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"postgres://u:%s@db/x", "host=db password=%s", "postgres://u:%s/@db", "%s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const secret = "kZ8vQ2pL7w"
		if strings.Contains(s, "service") || strings.Contains(s, "ssl") || strings.Contains(s, "passfile") {
			t.Skip() // they read files
		}
		if _, err := ParseTarget(strings.ReplaceAll(s, "%s", secret)); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the password: %v", err)
		}
	})
}

func openError(t *testing.T, dsn string, s *store.Sealer) error {
	t.Helper()
	st, err := Open(t.Context(), Options{DSN: dsn, Sealer: s})
	if err == nil {
		_ = st.Close()
		t.Fatal("it opened")
	}
	return err
}

func TestOpenRefuses(t *testing.T) {
	dsn := fresh(t)
	s := mustOpen(t, dsn, Options{})
	if err := put(t.Context(), s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := openError(t, dsn, sealer(t, 2)); !errors.Is(err, store.ErrSealed) || !strings.Contains(err.Error(), "give that key") {
		t.Errorf("another seal key: %v", err)
	}
	if _, err := Open(t.Context(), Options{DSN: dsn}); err == nil {
		t.Error("opened without a sealer")
	}

	raw(t, dsn, `update billing_portal_schema set version = 99`)
	if err := openError(t, dsn, sealer(t, 1)); !strings.Contains(err.Error(), "newer version (schema 99, this one knows up to 1)") || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a newer schema: %v", err)
	}
	raw(t, dsn, `update billing_portal_schema set version = 1`)

	raw(t, dsn, `delete from billing_portal_kv where k = $1`, canaryKey)
	if err := openError(t, dsn, sealer(t, 1)); !strings.Contains(err.Error(), "lacks the store's first records") {
		t.Errorf("rows without the first record: %v", err)
	}
}

// TestReadOnlyServers refuses what takes no writes, and says so.
func TestReadOnlyServers(t *testing.T) {
	srv := pgtest.Start(t)
	db := srv.Database(t)
	s := mustOpen(t, srv.DSN(db), Options{})
	standby := srv.Standby(t)
	err := openError(t, standby.DSN(db), sealer(t, 1))
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "read only") {
		t.Errorf("a standby: %v", err)
	}
	// Of several, the one that takes writes.
	both := mustOpen(t, pgtest.MultiDSN(db, []*pgtest.Server{standby, srv}), Options{})
	if err := put(t.Context(), both, "k", "v"); err != nil || get(t, s, "k") != "v" {
		t.Errorf("with the standby named first: %v", err)
	}
	// Providers make a database read-only when its disk is full.
	raw(t, srv.DSN(db), `alter database `+db+` set default_transaction_read_only = on`)
	if err := openError(t, srv.DSN(db), sealer(t, 1)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a read-only database: %v", err)
	}
	both.pool.Reset()
	if err := put(t.Context(), both, "k", "w"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("a database that became read-only: %v", err)
	}
	srv.Exec(t, `alter database `+db+` reset default_transaction_read_only`)
	if err := put(t.Context(), both, "k", "w"); err != nil || get(t, both, "k") != "w" {
		t.Errorf("when it takes writes again: %v", err)
	}
}

// TestOpenTogether opens an empty database from many nodes at once: one makes
// the tables and the first generation.
func TestOpenTogether(t *testing.T) {
	dsn := fresh(t)
	const nodes = 8
	stores := make([]*Store, nodes)
	each(nodes, func(i int) {
		s, err := Open(t.Context(), Options{DSN: dsn, Sealer: sealer(t, 1), MaxConns: 2})
		if err != nil {
			t.Error(err)
			return
		}
		stores[i] = s
	})
	generation := ""
	for _, s := range stores {
		if s == nil {
			continue
		}
		g := guardOf(t, s)
		if generation != "" && g.Generation != generation || g.Reason != "the store is new" {
			t.Errorf("another generation: %+v", g)
		}
		generation = g.Generation
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLeastPrivileges opens tables that somebody else made.
func TestLeastPrivileges(t *testing.T) {
	srv := serverOf(t)
	db := srv.Database(t)
	dsn := srv.DSN(db)
	role := "portal_" + db
	raw(t, dsn, `create role `+role+` login; revoke create on schema public from public`)
	own := strings.Replace(dsn, "postgres@", role+"@", 1)
	if err := openError(t, own, sealer(t, 1)); !strings.Contains(err.Error(), "needs CREATE on the schema") || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a role that may not make tables: %v", err)
	}
	if err := mustOpen(t, dsn, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, dsn, `grant select, insert, update, delete on billing_portal_kv to `+role+`; grant select on billing_portal_schema to `+role)
	s := mustOpen(t, own, Options{})
	if err := put(t.Context(), s, "k", "v"); err != nil || get(t, s, "k") != "v" {
		t.Error(err)
	}
}

// TestSealed reads the table behind the store's back.
func TestSealed(t *testing.T) {
	dsn := fresh(t)
	s := mustOpen(t, dsn, Options{})
	const secret = "a value that must not be readable"
	for _, k := range []string{"a", "b"} {
		if err := put(t.Context(), s, k, secret+k); err != nil {
			t.Fatal(err)
		}
	}
	if v := ask[[]byte](t, dsn, `select v from billing_portal_kv where k = $1`, store.Key("a")); len(v) != len(secret)+1+store.SealOverhead || bytes.Contains(v, []byte("value")) {
		t.Errorf("the table holds %q", v)
	}
	raw(t, dsn, `update billing_portal_kv set v = (select v from billing_portal_kv where k = $1) where k = $2`, store.Key("a"), store.Key("b"))
	if v, err := s.GetAll(t.Context(), store.Key("b")); !errors.Is(err, store.ErrSealed) {
		t.Errorf("a value that was copied to another key: %q, %v", v, err)
	}
	err := s.View(t.Context(), func(tx store.Tx) error {
		if _, err := tx.Get(store.Key("b")); !errors.Is(err, store.ErrSealed) {
			t.Errorf("Get: %v", err)
		}
		if _, err := tx.Scan(store.Key(), nil, 0, false); !errors.Is(err, store.ErrSealed) {
			t.Errorf("Scan: %v", err)
		}
		v, err := tx.Get(store.Key("a"))
		if err != nil || string(v) != secret+"a" {
			t.Errorf("what is not touched: %q, %v", v, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReseal changes the key of a store that is written to meanwhile.
func TestReseal(t *testing.T) {
	dsn := fresh(t)
	old := mustOpen(t, dsn, Options{Sealer: sealer(t, 1)})
	const n = 2500
	for from := 0; from < n; from += 500 {
		err := old.Update(t.Context(), func(tx store.Tx) error {
			for i := from; i < from+500; i++ {
				if err := tx.Put(store.Key("k", fmt.Sprintf("%05d", i)), []byte(fmt.Sprint(i))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	both := mustOpen(t, dsn, Options{Sealer: sealer(t, 2, 1)})
	var writes atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			err := both.Update(t.Context(), func(tx store.Tx) error {
				return tx.Put(store.Key("k", "00042"), fmt.Append(nil, writes.Load()+1))
			})
			if err == nil {
				writes.Add(1)
			}
		}
	}()
	resealed, err := both.Reseal(t.Context())
	stop.Store(true)
	<-done
	if err != nil || resealed < n {
		t.Fatalf("sealed %d of %d anew, %v", resealed, n, err)
	}
	if again, err := both.Reseal(t.Context()); err != nil || again != 0 {
		t.Errorf("sealed %d again, %v", again, err)
	}
	alone := mustOpen(t, dsn, Options{Sealer: sealer(t, 2)})
	values, err := alone.GetAll(t.Context(), store.Key("k", "00007"), store.Key("k", "00042"))
	if err != nil || string(values[0]) != "7" || string(values[1]) != fmt.Sprint(writes.Load()) {
		t.Errorf("read %q, %v after %d writes", values, err, writes.Load())
	}
	if err := openError(t, dsn, sealer(t, 1)); !errors.Is(err, store.ErrSealed) {
		t.Errorf("the old key: %v", err)
	}
	if g, o := guardOf(t, alone), guardOf(t, both); g != o || g.Reason != "the store is new" {
		t.Errorf("the guard changed: %+v", g)
	}
}

func TestClose(t *testing.T) {
	s := mustOpen(t, fresh(t), Options{})
	inside, release := make(chan struct{}), make(chan struct{})
	updated := make(chan error, 1)
	go func() {
		updated <- s.Update(t.Context(), func(tx store.Tx) error {
			close(inside)
			<-release
			return tx.Put(store.Key("k"), []byte("v"))
		})
	}()
	<-inside
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
		t.Fatal("closed under a running update")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-updated; err != nil {
		t.Errorf("the update that was running: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	fn := func(store.Tx) error { return nil }
	if err := s.Update(t.Context(), fn); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Update: %v", err)
	}
	if err := s.View(t.Context(), fn); !errors.Is(err, store.ErrClosed) {
		t.Errorf("View: %v", err)
	}
	if _, err := s.GetAll(t.Context(), store.Key("k")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("GetAll: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

// TestTransactionSettings asks the server, inside of an update.
func TestTransactionSettings(t *testing.T) {
	srv := serverOf(t)
	db := srv.Database(t)
	dsn := srv.DSN(db)
	for _, tc := range []struct{ configured, want string }{
		{"off", "on"}, {"local", "on"}, {"remote_write", "on"}, {"on", "on"}, {"remote_apply", "remote_apply"},
	} {
		raw(t, dsn, `alter database `+db+` set synchronous_commit = `+tc.configured)
		s := mustOpen(t, dsn, Options{StatementTimeout: 2 * time.Second})
		err := s.Update(t.Context(), func(tx store.Tx) error {
			rows, err := tx.(*transaction).conn.Query(t.Context(), `select current_setting(n) from unnest(array['synchronous_commit', 'transaction_isolation', 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) n`)
			if err != nil {
				return err
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if want := []string{tc.want, "repeatable read", "2s", "1600ms", "4s"}; err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("with synchronous_commit=%s: %v, %v, want %v", tc.configured, got, err, want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		err = s.View(t.Context(), func(tx store.Tx) error {
			var statement, idle string
			err := tx.(*transaction).conn.QueryRow(t.Context(), `select current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')`).Scan(&statement, &idle)
			if statement != "2s" || idle != "15min" {
				t.Errorf("a view has %s and %s", statement, idle)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
