package session_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// server is the PostgreSQL server of this package's tests.
var server struct {
	once sync.Once
	srv  *pgtest.Server
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if server.srv != nil {
		if err := server.srv.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// onTwoNodes runs a test with two managers of one tenant: over one Badger store,
// as two configs of a reload have it, and over two connections to a PostgreSQL
// server, as two machines have it.
func onTwoNodes(t *testing.T, test func(t *testing.T, nodes []*session.Manager, c *clock)) {
	t.Run("badger", func(t *testing.T) {
		m, c := newManager(t)
		test(t, []*session.Manager{m, sibling(m)}, c)
	})
	t.Run("postgres", func(t *testing.T) {
		nodes, c, _ := postgresNodes(t)
		test(t, nodes, c)
	})
}

// postgresNodes are two managers of one tenant on one PostgreSQL database.
func postgresNodes(t *testing.T) (nodes []*session.Manager, c *clock, dsn string) {
	server.once.Do(func() { server.srv, server.err = pgtest.New(pgtest.NoSync()) })
	pgtest.Check(t, server.err)
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	c = &clock{}
	c.ns.Store(time.Now().UnixNano())
	dsn = server.srv.DSN(server.srv.Database(t))
	for range 2 {
		s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn, Sealer: sealer, Now: c.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		m, _ := newManager(t)
		m.Store, m.Now = s, c.Now
		nodes = append(nodes, m)
	}
	return nodes, c, dsn
}

// TestRedeemsOfDifferentCustomersDoNotWait holds that on PostgreSQL customers
// sign in beside one another, also where a commit takes long (a standby that is
// far away) and nobody ever ended all of the tenant's sessions.
func TestRedeemsOfDifferentCustomersDoNotWait(t *testing.T) {
	nodes, _, dsn := postgresNodes(t)
	for _, m := range nodes {
		if err := m.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `
		create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.02); return null; end';
		create constraint trigger slow after insert on billing_portal_kv deferrable initially deferred
			for each row execute function slow()`); err != nil {
		t.Fatal(err)
	}
	redeem := func(n int) error {
		m := nodes[n%len(nodes)]
		_, _, err := m.Redeem(t.Context(), own(t, m, fmt.Sprint("cus_", n)), true, "", "")
		return err
	}
	began := time.Now()
	if err := redeem(0); err != nil {
		t.Fatal(err)
	}
	alone := time.Since(began)
	const many = 8
	began = time.Now()
	var working sync.WaitGroup
	for n := range many {
		working.Go(func() {
			if err := redeem(n + 1); err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	if took := time.Since(began); took > many/2*alone {
		t.Errorf("%d customers at once took %s, one alone %s", many, took, alone)
	}
}

// TestPrepareKeepsRevocations holds that a start forgets no revocation.
func TestPrepareKeepsRevocations(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, nodes []*session.Manager, _ *clock) {
		m := nodes[0]
		if err := m.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, cookie, err := m.Redeem(t.Context(), own(t, m, "cus_1"), true, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.RevokeTenant(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := nodes[1].Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Read(t.Context(), cookie); !errors.Is(err, session.ErrNone) {
			t.Errorf("a session that was ended, after a start: %v", err)
		}
	})
}
